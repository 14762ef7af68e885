"""The lab's own processes (proxy, load workers, …): orders on standard input, answers on standard output, JSON lines.

A child process ends when its standard input ends. The harness holds the other end of that pipe, so that no child
outlives the harness, however the harness dies.
"""

from __future__ import annotations

import asyncio
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

from lab.places import CHECKOUT, ROOT
from lab.steps.machine import RunFailed

LINE_LIMIT = 16 << 20
"""Limit of one order or answer, bytes."""
EXIT_PATIENCE_S = 5.0


def child_environment() -> dict[str, str]:
    """Return the environment of the harness, in which `python -m` finds the lab wherever it is started.

    PYTHONSAFEPATH: modules in the working directory replace neither those of the lab nor those of its packages.
    """
    # An installed lab is found as it is: site-packages in PYTHONPATH would stand before the standard library.
    path = [str(ROOT)] if CHECKOUT else []
    path += filter(None, [os.environ.get("PYTHONPATH")])
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path), "PYTHONSAFEPATH": "1"}


# ---- in the harness ------------------------------------------------------------------------------


class Child:
    """One child process, as seen by the harness."""

    def __init__(self, name: str, process: asyncio.subprocess.Process, log: Path) -> None:
        self.name = name
        self.process = process
        self._log = log

    @classmethod
    async def spawn(cls, name: str, module: str, log: Path) -> Child:
        """Start `python -m module`. log: receives its standard error."""
        with log.open("ab") as errors:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                module,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env=child_environment(),
                process_group=0,  # The harness alone handles Ctrl+C.
                limit=LINE_LIMIT,
            )
        return cls(name, process, log)

    def order(self, line: bytes) -> None:
        """Send one order, without its newline."""
        assert self.process.stdin is not None
        self.process.stdin.write(line + b"\n")

    async def answer(self) -> bytes:
        """Return the next line that it writes.

        Raises:
            RunFailed: the process ended instead; quotes the end of its log.
        """
        assert self.process.stdout is not None
        line = await self.process.stdout.readline()
        if not line.endswith(b"\n"):
            code = await self.process.wait()
            raise RunFailed(f"{self.name} ended with exit code {code}: {last_line(self._log)}")
        return line

    async def ask(self, line: bytes) -> bytes:
        """Send an order and return the answer, for children that answer each order once."""
        self.order(line)
        return await self.answer()

    async def close(self) -> None:
        """Close its input and wait for its exit; kill it if that takes longer than EXIT_PATIENCE_S."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        try:
            async with asyncio.timeout(EXIT_PATIENCE_S):
                await self.process.wait()
        except TimeoutError:
            self.kill()
            await self.process.wait()

    def terminate(self) -> None:
        """SIGTERM, if it still runs."""
        if self.process.returncode is None:
            self.process.terminate()

    def kill(self) -> None:
        """SIGKILL, if it still runs."""
        if self.process.returncode is None:
            self.process.kill()


class Children:
    """The child processes of one run."""

    def __init__(self) -> None:
        self._all: list[Child] = []

    async def spawn(self, name: str, module: str, log: Path) -> Child:
        """See Child.spawn."""
        child = await Child.spawn(name, module, log)
        self._all.append(child)
        return child

    def kill(self) -> None:
        """SIGKILL to those that still run, without waiting."""
        for child in self._all:
            child.kill()

    async def gone(self) -> None:
        """Wait until all have exited."""
        await asyncio.gather(*(child.process.wait() for child in self._all))


def last_line(log: Path) -> str:
    """Return the last line of a process's log that is not indented, for error messages."""
    try:
        lines = log.read_text("utf-8", "replace").splitlines()
    except OSError as error:
        return f"(no log: {error.strerror})"
    return next((line for line in reversed(lines) if line[:1].strip()), "(it said nothing)")


def end_on_sigterm() -> None:
    """Have SIGTERM cancel the current task, as Ctrl+C does, which asyncio.run handles by itself."""
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)


# ---- in the child --------------------------------------------------------------------------------


async def orders() -> AsyncIterator[bytes]:
    """Yield the lines of standard input until it ends."""
    reader = asyncio.StreamReader(limit=LINE_LIMIT)
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while (line := await reader.readline()).endswith(b"\n"):
        yield line


def orders_until(end: Callable[[], None]) -> Iterator[bytes]:
    """Yield the lines of standard input, for a child that blocks while it carries out an order.

    Args:
        end: called in another thread when the input ends, because the harness has ended; it must end this process.
    """
    waiting: queue.SimpleQueue[bytes] = queue.SimpleQueue()

    def read() -> None:
        for line in sys.stdin.buffer:
            waiting.put(line)
        end()

    threading.Thread(target=read, daemon=True).start()
    while True:
        yield waiting.get()


def say(line: bytes) -> None:
    """Write one answer, without its newline. The harness always reads, so this does not block for long."""
    sys.stdout.buffer.write(line + b"\n")
    sys.stdout.buffer.flush()


def run_child(main: Coroutine[Any, Any, None]) -> None:
    """Run a child's main on uvloop, if it is installed. A harness that has died is no error."""
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
