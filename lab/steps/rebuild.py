"""`rebuild`: a node loses its disk and starts again, empty."""

from __future__ import annotations

import signal
from typing import Any

from lab.steps.machine import Machine, Run
from lab.steps.outlook import UP, Outlook
from lab.steps.step import Effect, Fault, Needs
from lab.words import Target
from nodeproc.yamlfile import Place


class Rebuild(Fault, frozen=True):
    """The node loses its disk and starts again, empty; the lab's own with `--rebuild`. Other programs need
    `disks: supervised`. Ends when it answers.
    """

    word = "rebuild"
    effect = Effect.DOWN
    short = "target"
    in_nemesis = False
    also = ("start",)
    needs = Needs(own_node=True, or_supervised=True)
    leaves_nodes = UP
    target: Target

    def foresee(self, outlook: Outlook, place: Place) -> None:
        super().foresee(outlook, place)
        outlook.damaged = None

    async def do(self, run: Run, index: int) -> None:
        await run.world.together([self._rebuild(run, each, index) for each in run.choose(self.target)])

    async def _rebuild(self, run: Run, machine: Machine, index: int) -> None:
        row = run.book.begin(self.word, index, machine)
        evidence: dict[str, Any] = {"disk": "lost"}
        if machine.running:
            evidence |= row.identity
            exited = await machine.end(signal.SIGKILL)
            if exited is None:
                row.write(evidence, False)
                return
            evidence["exit"] = exited.code
        lost = evidence["lost_bytes"] = machine.wipe()
        run.book.causes.forget(machine.node)
        row.write(evidence, lost > 0)
        row = run.book.begin("start", index, machine)
        took = await run.world.launch([machine.node], rebuild=True)
        ready = {"ready_s": round(took[machine.node], 4)} if took else {}
        row.write(machine.identity() | {"rebuild": True} | ready, bool(took))
