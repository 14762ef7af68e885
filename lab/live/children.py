"""Processes of the lab's own (proxy, load workers): orders go in on standard input, answers come out, JSON lines.

A child obeys its standard input until it ends. The harness holds the other end, so that a child can't outlive it,
however the harness dies.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Coroutine
from pathlib import Path
from typing import Any

from lab.steps.machine import RunFailed

PROJECT_ROOT = Path(__file__).resolve().parents[2]
LINE_LIMIT = 16 << 20
"""Bytes of one order or answer."""
EXIT_PATIENCE_S = 5.0


def child_environment() -> dict[str, str]:
    """The harness's own environment, with this project importable from any directory."""
    path = os.pathsep.join([str(PROJECT_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**os.environ, "PYTHONPATH": path}


# ---- in the harness ------------------------------------------------------------------------------


class Child:
    """One such process, as the harness holds it."""

    def __init__(self, name: str, process: asyncio.subprocess.Process, log: Path) -> None:
        self.name = name
        self.process = process
        self._log = log

    @classmethod
    async def spawn(cls, name: str, module: str, log: Path) -> Child:
        """Start `python -m module`.

        Args:
            log: where its standard error goes.
        """
        with log.open("ab") as errors:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                module,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env=child_environment(),
                process_group=0,  # Ctrl+C is the harness's to handle
                limit=LINE_LIMIT,
            )
        return cls(name, process, log)

    def order(self, line: bytes) -> None:
        """Send one order, without its newline."""
        assert self.process.stdin is not None
        self.process.stdin.write(line + b"\n")

    async def answer(self) -> bytes:
        """The next line it says.

        Raises:
            RunFailed: it ended instead; quotes the end of its log.
        """
        assert self.process.stdout is not None
        line = await self.process.stdout.readline()
        if not line.endswith(b"\n"):
            code = await self.process.wait()
            raise RunFailed(f"{self.name} ended with exit code {code}: {last_line(self._log)}")
        return line

    async def ask(self, line: bytes) -> bytes:
        """One order and its answer, for children that answer each order once."""
        self.order(line)
        return await self.answer()

    async def close(self) -> None:
        """End its input and wait until it is gone; kill it when that takes too long."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        try:
            async with asyncio.timeout(EXIT_PATIENCE_S):
                await self.process.wait()
        except TimeoutError:
            self.kill()
            await self.process.wait()

    def kill(self) -> None:
        """SIGKILL, if it is still there."""
        if self.process.returncode is None:
            self.process.kill()


def last_line(log: Path) -> str:
    """The last line that a process wrote to its log, for error messages; indented ones only explain it."""
    try:
        lines = log.read_text("utf-8", "replace").splitlines()
    except OSError as error:
        return f"(no log: {error.strerror})"
    return next((line for line in reversed(lines) if line[:1].strip()), "(it said nothing)")


# ---- in the child --------------------------------------------------------------------------------


async def orders() -> AsyncIterator[bytes]:
    """The lines of standard input until it ends."""
    reader = asyncio.StreamReader(limit=LINE_LIMIT)
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while (line := await reader.readline()).endswith(b"\n"):
        yield line


def say(line: bytes) -> None:
    """One answer, without its newline. The harness reads at any time, so this does not block for long."""
    sys.stdout.buffer.write(line + b"\n")
    sys.stdout.buffer.flush()


def run_child(main: Coroutine[Any, Any, None]) -> None:
    """Run a child's main on the fastest loop there is; a harness that went away is no error."""
    try:
        import uvloop
    except ImportError:
        runner = asyncio.Runner()
    else:
        runner = asyncio.Runner(loop_factory=uvloop.new_event_loop)
    try:
        with runner:
            runner.run(main)
    except (BrokenPipeError, KeyboardInterrupt):
        os._exit(1)
