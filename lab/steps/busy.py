"""`busy`: other processes burn CPU."""

from __future__ import annotations

import asyncio
from typing import Annotated

from msgspec import Meta

from lab.steps.machine import Run
from lab.steps.step import Effect, Fault, Needs
from lab.words import Duration


class Busy(Fault, frozen=True, rename={"time": "for"}):
    """Start this many processes that burn CPU (live only). Ends after `for`; without `for` it ends at once, and they
    run until `heal: busy`.
    """

    word = "busy"
    effect = Effect.SLOW
    short = "processes"
    needs = Needs(real_time="a simulation has no processor")
    processes: Annotated[int, Meta(ge=1, le=1000)]
    time: Duration = Duration(0)

    async def do(self, run: Run, index: int) -> None:
        row = run.book.begin(self.word, index)
        await run.world.start_busy(self.processes)
        row.busy(self.processes)
        if self.time:
            await asyncio.sleep(self.time)
            run.book.busy_over(await run.world.end_busy())
