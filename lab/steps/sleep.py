"""`sleep`: time passes."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Self

from lab.steps.machine import Run
from lab.steps.reducing import shorter
from lab.steps.step import Step
from lab.words import Duration


class Sleep(Step, frozen=True, rename={"time": "for"}):
    """Let time pass. For rest between faults, never for waiting until something is so."""

    word = "sleep"
    short = "time"
    in_when = True
    time: Duration

    def reduce(self) -> Iterator[Self]:
        yield from super().reduce()
        yield from shorter(self, "time")

    async def do(self, run: Run, index: int) -> None:
        await asyncio.sleep(self.time)
