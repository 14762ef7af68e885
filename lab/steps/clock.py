"""`clock`: clocks that run at another speed, or are set forward."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from lab.steps.entry import Entry
from lab.steps.machine import Run
from lab.steps.step import Effect, Fault, Needs
from lab.words import Duration, Target

MOST_DRIFT = 0.5


class Clock(Fault, frozen=True):
    """The clocks of these nodes go wrong.

    drift: share by which they run fast (0.05) or slow (-0.05) from now on, -0.5..0.5.
    jump: the wall clock is set forward by so much, once; what measures time spans does not notice.
    """

    word = "clock"
    effect = Effect.SLOW
    on: Target
    drift: Annotated[float, Meta(ge=-MOST_DRIFT, le=MOST_DRIFT)] = 0.0
    jump: Duration = Duration(0)

    def check(self, entry: Entry) -> None:
        if not self.drift and not self.jump:
            entry.fail("does nothing; give drift or jump (heal ends a drift)")

    @property
    def needs(self) -> Needs:
        return Needs(layer=True, own_node=True)

    async def do(self, run: Run, index: int) -> None:
        for machine in run.choose(self.on):
            role, began, before = machine.role, run.now_ns(), machine.counts()
            machine.set_clock(self.drift, float(self.jump))
            evidence = {"drift": self.drift, "jump_s": float(self.jump), "misread": 0}
            number = run.book.write(self.word, machine.node, role, began, evidence, False, index, lasts=True)
            run.book.lasts(number, machine, "misread", before)
        await run.world.breathe()
