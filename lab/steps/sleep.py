"""`sleep`: let time pass."""

from __future__ import annotations

import asyncio

from lab.steps.machine import Run
from lab.steps.step import Step
from lab.words import Duration
from nodeproc.core.messages import NodeId


class Sleep(Step, frozen=True, rename={"time": "for"}):
    """Let time pass between faults; to wait for a condition use `wait`."""

    word = "sleep"
    short = "time"
    hurts = frozenset[NodeId]()
    time: Duration

    async def do(self, run: Run, index: int) -> None:
        await asyncio.sleep(self.time)
