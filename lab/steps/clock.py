"""`clock`: clocks run at another speed, or are set forward."""

from __future__ import annotations

from typing import Annotated, Self

from msgspec import Meta

from lab.steps.entry import Entry
from lab.steps.lot import Lot
from lab.steps.machine import Run
from lab.steps.step import Effect, Fault, Needs
from lab.words import Duration, Target

MOST_DRIFT = 0.5


class Clock(Fault, frozen=True):
    """Inject a clock fault into these nodes.

    drift: the share by which the clock runs fast (0.05) or slow (-0.05) from now on, -0.5..0.5.
    jump: set the wall clock forward by this much, once; clocks that measure time spans are not changed.
    """

    word = "clock"
    drawn_from = 1
    needs = Needs(layer=True, clock=True, own_node=True)
    effect = Effect.SLOW
    on: Target
    drift: Annotated[float, Meta(ge=-MOST_DRIFT, le=MOST_DRIFT)] = 0.0
    jump: Duration = Duration(0)

    def check(self, entry: Entry) -> None:
        if not self.drift and not self.jump:
            entry.fail("does nothing; give drift or jump (heal ends a drift)")

    @classmethod
    def draw(cls, lot: Lot) -> Self:
        return cls(on=lot.one(), drift=lot.rng.choice((-0.3, -0.1, 0.1, 0.3)))

    async def do(self, run: Run, index: int) -> None:
        for machine in run.choose(self.on):
            row, before = run.book.begin(self.word, index, machine), machine.counts()
            machine.set_clock(self.drift, float(self.jump))
            row.lasts({"drift": self.drift, "jump_s": float(self.jump)}, machine, "misread", before)
        await run.world.breathe()
