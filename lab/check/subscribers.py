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
        """CRC of the lines from here to line `last`, None where the log ends before; moves behind it.

        The end is found by how the next line starts: in a log that A2 holds for, line and seq_no are the same, and no
        payload has a bare newline in it.
        """
        if last == self.line:
            return 0
        next_start = b'\n{"seq_no":%d,' % (last + 1)
        crc, size = 0, min(CHUNK_BYTES, (last - self.line) * 256 + 256)
        while True:
            self._file.seek(self._offset)
            data = self._file.read(size)
            found = data.find(next_start)
            at_end = found < 0 and len(data) < size
            if at_end and last != self._log.line_count:
                return None
            end = data.rfind(b"\n") + 1 if at_end else found + 1 if found >= 0 else size - len(next_start)
            crc = crc32(data[:end], crc)
            self._offset += end
            if at_end or found >= 0:
                self.line = last
                return crc
            size = CHUNK_BYTES


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
