"""A8: what a subscriber was shown is a contiguous piece of the log.

A row of the history says which lines a subscriber was shown and the CRC of their bytes. Each subscriber has its own
place in the reference log, which only moves forward.
"""

from __future__ import annotations

from typing import BinaryIO
from zlib import crc32

import msgspec

from lab.check.history import CHUNK_BYTES, MessageLog, read_pieces
from lab.check.verdict import Check, Findings, quote
from lab.rows import Shown
from lab.rundir import RunDir

_START_OF_ROW = b'{"op":"shown"'
_decode = msgspec.json.Decoder(Shown).decode


class _Reader:
    """One subscriber's place in the log: behind line `line`, at byte `_offset`."""

    def __init__(self, log: MessageLog, file: BinaryIO) -> None:
        self._log, self._file = log, file
        self.line = 0
        self._offset = 0

    def go_before(self, line: int) -> bool:
        """Move so that `line` comes next; False where the log is shorter."""
        start, self._offset = self._log.start_of(line)
        self.line = start - 1
        return self.crc_to(line - 1) is not None

    def crc_to(self, last: int) -> int | None:
        """CRC of the lines from here to line `last`, None where the log ends before; moves behind it."""
        crc = 0
        while self.line < last:
            data = self._read_lines(last - self.line)
            if not data:
                return None
            crc = crc32(data, crc)
        return crc

    def _read_lines(self, wanted: int) -> bytes:
        """At most so many whole lines from here; empty where there is none."""
        size = min(CHUNK_BYTES, wanted * 256)
        data = self._read(size)
        while b"\n" not in data and len(data) == size:
            size *= 4
            data = self._read(size)
        found = data.count(b"\n")
        end = data.rfind(b"\n") + 1 if found <= wanted else _end_of_line(data, wanted)
        self.line += min(found, wanted)
        self._offset += end
        return data[:end]

    def _read(self, size: int) -> bytes:
        self._file.seek(self._offset)
        return self._file.read(size)


def _end_of_line(data: bytes, number: int) -> int:
    """Index behind the number-th newline, of which there are enough."""
    end = 0
    for _ in range(number):
        end = data.index(b"\n", end) + 1
    return end


def check_subscribers(run: RunDir, log: MessageLog, wanted: bool) -> Check:
    """Judge A8.

    Args:
        log: the reference log, read to its end.
        wanted: the scenario has subscribers, so that their rows must be there.
    """
    findings = Findings("A8", "subscribers")
    readers: dict[int, _Reader] = {}
    lines = 0
    with log.path.open("rb") as file:
        for piece in read_pieces(run.history):
            if _START_OF_ROW not in piece.data:
                continue
            for number, text in enumerate(piece.data.split(b"\n"), piece.first_line):
                if text.startswith(_START_OF_ROW):
                    row = _decode(text)
                    lines += row.last - row.first + 1
                    _judge(findings, f"{run.history.name}:{number}", text, row, readers, log, file)
    if not lines:
        return findings.unknown("no subscriber was shown anything", decisive=wanted)
    return findings.passed(f"{len(readers)} subscribers, {lines} lines")


def _judge(
    findings: Findings,
    place: str,
    text: bytes,
    row: Shown,
    readers: dict[int, _Reader],
    log: MessageLog,
    file: BinaryIO,
) -> None:
    shown = quote(place, text)
    reader = readers.get(row.client)
    if row.last < row.first:
        findings.add(place, f"lines {row.first}..{row.last} run backwards", shown)
        return
    if reader is None or row.first != reader.line + 1:
        if reader is not None:
            message = f"client {row.client} was shown line {row.first} where {reader.line + 1} is due"
            findings.add(place, message, shown)
        reader = readers[row.client] = _Reader(log, file)
        if not reader.go_before(row.first):
            findings.add(place, f"client {row.client} was shown line {row.first}; the log ends before it", shown)
            return
    crc = reader.crc_to(row.last)
    if crc is None:
        message = f"client {row.client} was shown lines up to {row.last}; {log.name} ends at {log.line_count}"
        findings.add(place, message, shown)
    elif crc != row.crc:
        message = f"client {row.client} was shown other bytes than lines {row.first}..{row.last} of {log.name}"
        findings.add(place, message, shown)
