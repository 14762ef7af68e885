"""The message log of a node, made from the records that its engine's store holds."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

import msgspec
from msgspec import Struct

from lab.engines.engine import Entry
from nodeproc.core.messages import Line, SeqNo, Term


class Record(Struct, frozen=True):
    """The value of an entry: consecutive messages of one session, as one adapter received them.

    term: that of the latest leader that the adapter knew.
    """

    sender_id: int
    term: Term
    timestamp: float
    payloads: tuple[str, ...]

    def text(self) -> str:
        """Return the record as the driver stores it."""
        return msgspec.json.encode(self).decode()


class ForeignRecord(Exception):
    """The store holds a record that no adapter has written."""


_decode = msgspec.json.Decoder(Record).decode
_encode = msgspec.json.Encoder().encode


class MessageLog:
    """Lines in the order of the store. seq_no is the place in it; the term is the highest of all records so far."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.lines: list[bytes] = []
        self.seq_nos: dict[str, SeqNo] = {}
        """msg_id -> seq_no."""
        self.grown = asyncio.Condition()
        """Notified when lines were added."""
        self._term = 0

    async def begin(self, entries: Sequence[Entry]) -> None:
        """Replace the log by these entries. The file is not touched if it holds exactly these lines."""
        self.lines.clear()
        self.seq_nos.clear()
        self._term = 0
        content = self._take(entries)
        if not self._path.exists() or self._path.read_bytes() != content:
            self._path.write_bytes(content)
        await self._tell()

    async def add(self, entries: Sequence[Entry]) -> None:
        """Append entries."""
        content = self._take(entries)
        with self._path.open("ab") as file:
            file.write(content)
        await self._tell()

    async def _tell(self) -> None:
        async with self.grown:
            self.grown.notify_all()

    def _take(self, entries: Sequence[Entry]) -> bytes:
        """Add the messages of these entries; return their lines. Raises: ForeignRecord."""
        begun = len(self.lines)
        for entry in entries:
            try:
                record = _decode(entry.value)
            except msgspec.DecodeError as error:
                raise ForeignRecord(f"the store holds {entry.value[:100]!r}: {error}") from None
            self._term = max(self._term, record.term)
            first = entry.last - len(record.payloads) + 1
            for n, payload in enumerate(record.payloads, first):
                seq_no, msg_id = len(self.lines) + 1, f"{entry.session}-{n}"
                line = Line(seq_no, self._term, record.sender_id, msg_id, record.timestamp, payload)
                self.seq_nos[msg_id] = seq_no
                self.lines.append(_encode(line) + b"\n")
        return b"".join(self.lines[begun:])
