"""`kill`: SIGKILL."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from typing import Any, Self

from lab.rows import NodeExit
from lab.steps.lot import Lot
from lab.steps.machine import Machine, Run
from lab.steps.outlook import DOWN
from lab.steps.step import Effect, Fault
from lab.words import Target
from nodeproc.core.messages import NodeId

SIGNALS = {"kill": signal.SIGKILL, "stop": signal.SIGTERM}


class Ending(Fault, frozen=True):
    """What `kill` and `stop` have in common: a signal that ends the processes of these nodes."""

    effect = Effect.DOWN
    short = "target"
    drawn_from = 1
    ends_process = True
    leaves_nodes = DOWN
    target: Target

    @classmethod
    def draw(cls, lot: Lot) -> Self:
        return cls(target=lot.some())

    async def do(self, run: Run, index: int) -> None:
        await end(run, run.choose(self.target), self.word, index)


class Kill(Ending, frozen=True):
    """SIGKILL. Ends when the processes are gone."""

    word = "kill"


async def end(run: Run, machines: Sequence[Machine], word: str, index: int) -> None:
    """End these nodes' processes, all at once; done when they are gone. word: one of SIGNALS."""
    how = SIGNALS[word]
    roles, began = {each.node: each.role for each in machines}, run.now_ns()
    called = {each.node: each.identity() for each in machines}
    running = [each for each in machines if each.running]
    ends = await run.world.together([each.end(how) for each in running])
    exits: dict[NodeId, NodeExit | None] = {each.node: end for each, end in zip(running, ends, strict=True)}
    for node, role in roles.items():
        exited = exits.get(node)
        evidence: dict[str, Any] = {"found": "runs on" if node in exits else "did not run"}
        if exited is not None:
            evidence = called[node] | {"signal": how.name, "exit": exited.code}
        done = began if exited is None else exited.t
        run.book.write(word, node, role, began, evidence, exited is not None, index, t_done=done)
    await run.world.breathe()
