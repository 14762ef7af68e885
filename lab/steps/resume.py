"""`resume`: SIGCONT."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

from lab.steps.lot import Lot
from lab.steps.machine import Machine, Run
from lab.steps.outlook import UP
from lab.steps.step import Effect, Fault
from lab.words import Target


class Resume(Fault, frozen=True):
    """SIGCONT. Ends when the nodes answer."""

    word = "resume"
    effect = Effect.UP
    short = "target"
    in_nemesis = False
    drawn_from = 1
    leaves_nodes = UP
    target: Target

    @classmethod
    def draw(cls, lot: Lot) -> Self:
        return cls(target="all")

    async def do(self, run: Run, index: int) -> None:
        await resume(run, run.choose(self.target), index)


async def resume(run: Run, machines: Sequence[Machine], index: int) -> None:
    """SIGCONT to the processes of these nodes, one after the other; done when they answer."""
    for machine in machines:
        role, began = machine.role, run.now_ns()
        hit = machine.running and machine.paused
        evidence: dict[str, Any] = {"found": "was not paused"}
        if hit:
            machine.wake()
            evidence = machine.identity() | {"answered_s": round(await machine.ready(), 4)}
        run.book.write("resume", machine.node, role, began, evidence, hit, index)
    await run.world.breathe()
