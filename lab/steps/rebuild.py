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
    """The node loses its disk and starts again, empty, with `--rebuild`. Ends when it answers."""

    word = "rebuild"
    effect = Effect.DOWN
    short = "target"
    in_nemesis = False
    rows = ("rebuild", "start")
    ends_process = True
    proofs = (("rebuild",),)
    needs = Needs(own_node=True)
    leaves_nodes = UP
    target: Target

    def foresee(self, outlook: Outlook, place: Place) -> None:
        super().foresee(outlook, place)
        outlook.damaged = None

    async def do(self, run: Run, index: int) -> None:
        await run.world.together([self._rebuild(run, each, index) for each in run.choose(self.target)])

    async def _rebuild(self, run: Run, machine: Machine, index: int) -> None:
        node, role, began = machine.node, machine.role, run.now_ns()
        evidence: dict[str, Any] = {"disk": "lost"}
        if machine.running:
            evidence |= machine.identity()
            exited = await machine.end(signal.SIGKILL)
            if exited is None:
                run.book.write(self.word, node, role, began, evidence, False, index)
                return
            evidence["exit"] = exited.code
        lost = evidence["lost_bytes"] = machine.wipe()
        run.book.causes.forget(node)
        run.book.write(self.word, node, role, began, evidence, lost > 0, index)
        began = run.now_ns()
        took = await run.world.launch([node], rebuild=True)
        evidence = machine.identity() | {"rebuild": True}
        if node in took:
            evidence["ready_s"] = round(took[node], 4)
        run.book.write("start", node, "down", began, evidence, node in took, index)
