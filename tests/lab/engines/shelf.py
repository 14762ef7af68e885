"""A driver of an engine that needs no program: all nodes share one file. Run by tests as a node's program.

    python -m tests.lab.engines.shelf CONFIG [forgets]

With `forgets`, a node that starts removes the last records from the file, as a store that was never synced.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import sys
from collections.abc import AsyncGenerator, Mapping, Sequence

from lab.engines.adapter import run
from lab.engines.engine import Engine, EngineStatus, Entry, Place

FORGOTTEN = 20
WAIT = "import signal; signal.sigwait([signal.SIGTERM])"


class Shelf(Engine):
    """See Engine. The leader is always the node with the highest id."""

    def __init__(self, place: Place, program: str, options: Mapping[str, str]) -> None:
        super().__init__(place, program, options)
        self._file = place.data_dir.parents[1] / "shelf"
        self._forgets = "forgets" in options

    def command(self) -> Sequence[str]:
        if self._forgets and self._file.exists():
            lines = self._file.read_bytes().splitlines(keepends=True)
            self._file.write_bytes(b"".join(lines[:-FORGOTTEN]))
        return [sys.executable, "-c", WAIT]

    async def ready(self) -> bool:
        return True

    async def status(self) -> EngineStatus:
        return EngineStatus(max(self.place.ids), 1)

    async def append(self, session: str, first: int, last: int, value: str) -> int:
        with self._file.open("a+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            has = max((entry.last for entry in self._read() if entry.session == session), default=0)
            if has == first - 1:
                file.write(json.dumps([session, last, value]).encode() + b"\n")
                return last
        return has

    async def tail(self) -> AsyncGenerator[Sequence[Entry], None]:
        entries = self._read()
        yield entries
        while len(now := self._read()) >= len(entries):
            if len(now) > len(entries):
                yield now[len(entries) :]
            entries = now
            await asyncio.sleep(0.01)

    def _read(self) -> list[Entry]:
        lines = self._file.read_bytes().split(b"\n")[:-1] if self._file.exists() else []
        return [Entry(*json.loads(line)) for line in lines]


if __name__ == "__main__":
    run(sys.argv[1], lambda config, place: Shelf(place, "", dict.fromkeys(sys.argv[2:], "")))
