"""Busy processes: they take all the processor time that they get, as other programs of a host may do.

`python -m lab.live.busy` is one of them. It says when it has begun, and computes until its standard input ends: that is
when its harness wants it to, and when its harness is gone.
"""

from __future__ import annotations

import asyncio
import contextlib
import select
import sys
from pathlib import Path

import psutil

from lab.live.children import Child, say

BURST = 50_000
"""Additions between two looks at standard input: a few milliseconds."""


class BusyProcesses:
    """Some of them, as the harness holds them."""

    def __init__(self, log: Path) -> None:
        self._log = log
        self._children: list[Child] = []
        self._before: dict[int, float] = {}
        """Process -> CPU seconds when it began, its start-up."""

    async def begin(self, processes: int) -> None:
        """Start so many; done when all compute."""
        for _ in range(processes):
            self._children.append(await Child.spawn("a busy process", "lab.live.busy", self._log))
        await asyncio.gather(*(child.answer() for child in self._children))
        self._before = {child.process.pid: _cpu_s(child.process.pid) for child in self._children}

    async def end(self) -> float:
        """End them; returns the CPU seconds that they took."""
        took = sum(_cpu_s(pid) - before for pid, before in self._before.items())
        await asyncio.gather(*(child.close() for child in self._children))
        return took

    def kill(self) -> None:
        """SIGKILL, without waiting."""
        for child in self._children:
            child.kill()

    async def gone(self) -> None:
        """Wait for the end of processes that were killed."""
        await asyncio.gather(*(child.process.wait() for child in self._children))


def _cpu_s(pid: int) -> float:
    """User and system seconds so far; 0 where the process is gone."""
    with contextlib.suppress(psutil.Error):
        times = psutil.Process(pid).cpu_times()
        return float(times.user + times.system)
    return 0.0


def main() -> None:
    """Compute until standard input ends."""
    say(b"busy")
    number = 0
    while not select.select([sys.stdin], [], [], 0)[0]:
        for _ in range(BURST):
            number += 1


if __name__ == "__main__":
    main()
