"""Run one node with a disk and a clock that orders control (lab.steps.orders).

    python -m lab.live.inside.faulty_node --ledger DIR --config FILE …

All other arguments, and the exit codes, are those of `python -m nodeproc`, or of the module that `--run` names, which
must call the product in the end. The product is not aware of the faults: lab.live.inside.faulty_files wraps its real
files, and its clocks are replaced by clocks that drift or jump by order of the ledger. Timers of its event loop follow
the drifting clock; timeouts of connections do not.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lab.live.inside.faulty_files import FaultyFiles
from lab.live.inside.ledger import Ledger
from nodeproc import __main__ as product
from nodeproc import runtime
from nodeproc.runtime import Runtime


class Clock:
    """Replaces the module `time` in the product, with the functions that the product uses.

    Args:
        orders: the ledger to obey.
        misread: called for each reading that was wrong.
    """

    def __init__(self, ledger: Ledger, misread: Callable[[], None]) -> None:
        self._ledger, self._misread = ledger, misread

    def monotonic(self) -> float:
        orders, t = self._ledger.orders(), time.monotonic()
        if orders.drift:
            self._misread()
        return orders.monotonic(t)

    def time(self) -> float:
        ahead = self._ledger.orders().wall_s
        if ahead:
            self._misread()
        return time.time() + ahead

    def real(self, span: float) -> float:
        """Return the real duration, in seconds, of what this clock measures as `span`."""
        return span / (1.0 + self._ledger.orders().drift)


class _Loop:
    """The event loop, with timers that follow the faulty clock."""

    def __init__(self, loop: asyncio.AbstractEventLoop, clock: Clock) -> None:
        self._loop, self._clock = loop, clock

    def call_later(self, delay: float, callback: Callable[..., object], *args: Any) -> asyncio.TimerHandle:
        return self._loop.call_later(self._clock.real(delay), callback, *args)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loop, name)


def take_over(ledger: Ledger) -> None:
    """Replace the product's disk and clock by those of the ledger, for the life of this process."""
    opened: list[FaultyFiles] = []

    def misread() -> None:
        for files in opened:
            files.count(misread=1)

    clock = Clock(ledger, misread)

    def files(root: Path) -> FaultyFiles:
        opened.append(FaultyFiles(root, ledger))
        return opened[-1]

    class DriftingRuntime(Runtime):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            self._loop = _Loop(self._loop, clock)  # type: ignore[assignment]

    for module, name, value in (
        (product, "RealFiles", files),
        (product, "Runtime", DriftingRuntime),
        (product, "time", clock),
        (runtime, "time", clock),
    ):
        assert name in vars(module), (module, name)
        setattr(module, name, value)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the node and return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m lab.live.inside.faulty_node", add_help=False, allow_abbrev=False)
    parser.add_argument("--ledger", required=True, type=Path, metavar="DIR")
    parser.add_argument("--run", default="nodeproc", metavar="MODULE")
    options, others = parser.parse_known_args(arguments)
    take_over(Ledger(options.ledger))
    module = product if options.run == "nodeproc" else importlib.import_module(options.run)
    return int(module.main(others))


if __name__ == "__main__":
    sys.exit(main())
