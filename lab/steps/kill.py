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


class Kill(Fault, frozen=True):
    """SIGKILL. Ends when the processes are gone."""

    word = "kill"
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
        await end(run, run.choose(self.target), signal.SIGKILL, index)


_WORDS = {signal.SIGKILL: "kill", signal.SIGTERM: "stop"}


async def end(run: Run, machines: Sequence[Machine], how: signal.Signals, index: int) -> None:
    """Send SIGKILL or SIGTERM to these nodes' processes, all at once; done when they are gone."""
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
        run.book.write(_WORDS[how], node, role, began, evidence, exited is not None, index, t_done=done)
    await run.world.breathe()
