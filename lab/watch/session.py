"""A session by hand that this server has started: `run_lab.py hands` in a process of its own.

The process gets its orders through a pipe that only this server has. If the server ends, the session ends in order and
is judged; nothing that the server does changes its exit code.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path
from typing import IO, Final

import msgspec

from lab.course.by_hand import Answer
from lab.live.children import child_environment

END_PATIENCE_S: Final = 60.0
"""A server that ends waits this long for the run's end; then the run goes on alone."""
LINE_LIMIT: Final = 1 << 20
_decode_answer = msgspec.json.Decoder(Answer).decode


class SessionOver(Exception):
    """The run takes no orders (any more)."""


class Session:
    """One session; see the module's docstring. Orders are carried out one after the other, in the order of their calls.

    directory: of the run.
    """

    def __init__(self, process: asyncio.subprocess.Process, directory: Path) -> None:
        self._process, self.directory = process, directory
        self._lock = asyncio.Lock()

    @classmethod
    async def begin(cls, out: Path, scenario: str, *options: str, errors: IO[bytes] | None = None) -> Session:
        """Start a run by hand.

        Args:
            scenario: file or name of the scenario with which it begins.
            options: further ones of `run_lab.py hands`.
            errors: for the run's errors and progress; None for this process's standard error.

        Raises:
            SessionOver: the run has ended at once.
        """
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "lab", "hands", "--json", "--out", str(out)),
            *(*options, scenario),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            env=child_environment(),
            process_group=0,  # Ctrl+C ends the server, and the server the session.
            limit=LINE_LIMIT,
        )
        assert process.stdout is not None
        if not (line := await process.stdout.readline()):
            raise SessionOver(f"the run ended with exit code {await process.wait()}; standard error says why")
        return cls(process, Path(msgspec.json.decode(line, type=dict[str, str])["run"]))

    @property
    def is_over(self) -> bool:
        """True if the run's process has exited."""
        return self._process.returncode is not None

    @property
    def exit_code(self) -> int | None:
        """The run's exit code; None while it is under way."""
        return self._process.returncode

    async def order(self, words: str) -> Answer:
        """Let the run carry out one step.

        Raises:
            SessionOver: it has ended instead.
        """
        assert self._process.stdin is not None and self._process.stdout is not None
        async with self._lock:
            if not self._process.stdin.is_closing():
                self._process.stdin.write(msgspec.json.encode({"step": words}) + b"\n")
                if line := await self._process.stdout.readline():
                    return _decode_answer(line)
        raise SessionOver("the session has ended")

    async def end(self) -> None:
        """End the session after the orders that were given. The run then heals, stops and is judged."""
        assert self._process.stdin is not None
        async with self._lock:
            self._process.stdin.close()

    async def close(self) -> None:
        """End the session, and wait for the end of its run."""
        await self.end()
        try:
            async with asyncio.timeout(END_PATIENCE_S):
                await self._process.wait()
        except TimeoutError:
            print(f"the session goes on alone: {self.directory}", file=sys.stderr)
