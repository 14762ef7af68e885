"""Observation of the nodes from outside: their STATUS and their event files."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from pathlib import Path

import msgspec
from msgspec import UNSET

from lab.course.observation import as_text
from nodeproc.client import Address
from nodeproc.errors import FrameError
from nodeproc.lines import Status, StatusRequest, decode_node_line, encode_line

STATUS_PATIENCE_S = 1.0


class StatusLine:
    """A connection on which one node is polled for its STATUS.

    Args:
        source: the address to connect from; "": any.
    """

    def __init__(self, address: Address, client_token: str = "", source: str = "") -> None:
        self._address, self._from = address, (source, 0) if source else None
        self._request = encode_line(StatusRequest(client_token or UNSET))
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._lock = asyncio.Lock()

    async def ask(self) -> Status | None:
        """Return the node's STATUS; None if it does not answer in time."""
        async with self._lock:
            fresh = self._writer is None
            answer = await self._ask_once()
            # The old connection may have belonged to an earlier process.
            return answer if answer is not None or fresh else await self._ask_once()

    async def _ask_once(self) -> Status | None:
        try:
            async with asyncio.timeout(STATUS_PATIENCE_S):
                if self._reader is None or self._writer is None:
                    self._reader, self._writer = await asyncio.open_connection(*self._address, local_addr=self._from)
                self._writer.write(self._request)
                while True:
                    answer = decode_node_line(await self._reader.readuntil(b"\n"))
                    if isinstance(answer, Status):
                        return answer
        except (OSError, FrameError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):  # TimeoutError is one
            self.hang_up()
            return None
        except asyncio.CancelledError:
            self.hang_up()
            raise

    def hang_up(self) -> None:
        if self._writer is not None:
            self._writer.transport.abort()
        self._reader = self._writer = None


class EventCount:
    """Counts one kind of event in growing event files.

    Args:
        offsets: file -> number of its bytes that do not count.
        where: field -> value; values are compared as text.
    """

    def __init__(self, offsets: Mapping[Path, int], event: str, where: Mapping[str, str | int | bool]) -> None:
        self._offsets = dict(offsets)
        self._event = event
        self._needle = f'"event":"{event}"'.encode()
        self._where = {key: as_text(value) for key, value in where.items()}
        self.count = 0

    def update(self) -> int:
        """Count the events written since the last call; an incomplete line counts later."""
        for path, offset in self._offsets.items():
            try:
                with path.open("rb") as file:
                    file.seek(offset)
                    data = file.read()
            except FileNotFoundError:
                continue
            end = data.rfind(b"\n") + 1
            self._offsets[path] = offset + end
            self.count += sum(self._is_wanted(line) for line in data[:end].split(b"\n") if self._needle in line)
        return self.count

    def _is_wanted(self, line: bytes) -> bool:
        try:
            event = msgspec.json.decode(line)
        except msgspec.DecodeError:  # torn by a kill, and written on behind it
            return False
        return event.get("event") == self._event and all(
            as_text(event.get(key)) == value for key, value in self._where.items()
        )


def file_sizes(paths: Iterable[Path]) -> dict[Path, int]:
    """Return the size of each file in bytes; 0 if it does not exist yet."""
    return {path: path.stat().st_size if path.exists() else 0 for path in paths}
