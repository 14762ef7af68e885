"""`pause`: SIGSTOP."""

from __future__ import annotations

from typing import Self

from lab.steps.lot import Lot
from lab.steps.machine import Run
from lab.steps.outlook import PAUSED, UP
from lab.steps.step import Effect, Fault
from lab.words import Target


class Pause(Fault, frozen=True):
    """SIGSTOP. Ends when the processes are stopped."""

    word = "pause"
    effect = Effect.DOWN
    short = "target"
    drawn_from = 1
    leaves_nodes = PAUSED
    acts_on = UP
    target: Target

    @classmethod
    def draw(cls, lot: Lot) -> Self:
        return cls(target=lot.one())

    async def do(self, run: Run, index: int) -> None:
        for machine in run.choose(self.target):
            row = run.book.begin(self.word, index, machine)
            hit = machine.running and not machine.paused and await machine.freeze()
            row.write(row.identity | {"state": machine.state()} if machine.running else {"found": "did not run"}, hit)
