"""`stop`: SIGTERM."""

from __future__ import annotations

import signal
from typing import Self

from lab.steps.kill import end
from lab.steps.lot import Lot
from lab.steps.machine import Run
from lab.steps.outlook import DOWN
from lab.steps.step import Effect, Fault
from lab.words import Target


class Stop(Fault, frozen=True):
    """SIGTERM. Ends when the processes are gone."""

    word = "stop"
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
        await end(run, run.choose(self.target), signal.SIGTERM, index)
