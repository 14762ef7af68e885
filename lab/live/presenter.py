"""The presenter of a run: a person at the terminal who lets the run continue after a `hold` step."""

from __future__ import annotations

import asyncio
import os
import sys
import termios
from collections.abc import Awaitable, Callable
from typing import TypeAlias

GoOn: TypeAlias = Callable[[], Awaitable[None]]


def at_terminal() -> GoOn | None:
    """Return a function that waits for Enter; None if nobody can press it.

    Nobody can on a build server, and without a terminal whose foreground process this is: reading from the terminal
    would stop a background process.
    """
    if os.environ.get("CI") or not (sys.stdin.isatty() and sys.stderr.isatty()):
        return None
    terminal = sys.stdin.fileno()
    return lambda: _enter(terminal) if os.tcgetpgrp(terminal) == os.getpgrp() else _at_once()


async def _enter(terminal: int) -> None:
    """Wait for a line from the terminal; lines that were typed before do not count."""
    loop, pressed = asyncio.get_running_loop(), asyncio.Event()
    termios.tcflush(terminal, termios.TCIFLUSH)
    loop.add_reader(terminal, pressed.set)
    try:
        await pressed.wait()
        os.read(terminal, 4096)
    finally:
        loop.remove_reader(terminal)


async def _at_once() -> None:
    pass
