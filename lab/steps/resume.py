"""`resume`: SIGCONT."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

from lab.steps.lot import Lot
from lab.steps.machine import Machine, Run
from lab.steps.outlook import PAUSED, UP
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
    acts_on = PAUSED
    target: Target

    @classmethod
    def draw(cls, lot: Lot) -> Self:
        return cls(target="all")

    async def do(self, run: Run, index: int) -> None:
        await resume(run, run.choose(self.target), index)


async def resume(run: Run, machines: Sequence[Machine], index: int) -> None:
    """SIGCONT to the processes of these nodes, one after the other; return when they answer."""
    for machine in machines:
        row = run.book.begin("resume", index, machine)
        if machine.running and machine.paused:
            machine.wake()
            row.write(row.identity | {"answered_s": round(await machine.ready(), 4)}, True)
        else:
            row.write({"found": "was not paused"}, False)
    await run.world.breathe()
