"""`busy`: other processes take the processor."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Annotated, Self

from msgspec import Meta

from lab.steps.machine import Run
from lab.steps.reducing import shorter
from lab.steps.step import Effect, Fault, Needs
from lab.words import Duration


class Busy(Fault, frozen=True, rename={"time": "for"}):
    """So many other processes of the host take all the processor time that they get.

    time: done when it is over; 0s: done when all have begun, and they go on until they are healed.
    """

    word = "busy"
    effect = Effect.NONE
    short = "processes"
    processes: Annotated[int, Meta(ge=1, le=1000)]
    time: Duration = Duration(0)

    @property
    def needs(self) -> Needs:
        return Needs(real_time="there is no processor that could be busy in a simulation")

    def reduce(self) -> Iterator[Self]:
        yield from super().reduce()
        yield from shorter(self, "time")

    async def do(self, run: Run, index: int) -> None:
        evidence = {"processes": self.processes}
        number = run.book.write(self.word, 0, "", run.now_ns(), evidence, False, index, lasts=True)
        run.book.busy(number)
        await run.world.start_busy(self.processes)
        run.book.begun(number)
        if self.time:
            await asyncio.sleep(self.time)
            run.book.busy_over(await run.world.end_busy())
