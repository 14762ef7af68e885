"""Busy processes: they use all the CPU time that they get, as other programs on a host may do.

`python -m lab.live.busy` is one of them. It writes a line when it begins, and computes until its standard input ends:
when the harness closes the pipe, or has died.
"""

from __future__ import annotations

import asyncio
import contextlib
import select
import sys
from pathlib import Path

import psutil

from lab.live.children import Child, Children, say

BURST = 50_000
"""Additions between two checks of standard input: a few milliseconds."""


class BusyProcesses:
    """The busy processes of one step, as seen by the harness."""

    def __init__(self) -> None:
        self._children: list[Child] = []
        self._before: dict[int, float] = {}
        """Process id -> CPU seconds that its start took."""

    async def begin(self, processes: int, children: Children, log: Path) -> None:
        """Start this many processes, among the children of the run; returns when all compute."""
        for _ in range(processes):
            self._children.append(await children.spawn("a busy process", "lab.live.busy", log))
        await asyncio.gather(*(child.answer() for child in self._children))
        self._before = {child.process.pid: _cpu_s(child.process.pid) for child in self._children}

    async def end(self) -> float:
        """End them; return the CPU seconds that they used."""
        took = sum(_cpu_s(pid) - before for pid, before in self._before.items())
        await asyncio.gather(*(child.close() for child in self._children))
        return took


def _cpu_s(pid: int) -> float:
    """Return user and system CPU seconds so far; 0 if the process has ended."""
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
