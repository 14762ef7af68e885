"""A8: a subscriber is shown the log from its first line on, and all of it in time.

A row of the history says which lines a subscriber was shown and the CRC of their bytes. Each subscriber has its own
place in the reference log, which only moves forward. While no fault is in force a subscriber that lacks what has been
acknowledged must be shown something within the bound of A9, and at the end each has everything.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import BinaryIO, NamedTuple
from zlib import crc32

import msgspec

from lab.check.history import CHUNK_BYTES, MessageLog, read_pieces
from lab.check.verdict import Check, Findings, quote
from lab.rows import Acked, FaultRow, HistoryRow, Shown
from lab.rundir import RunDir

NS_PER_S = 1_000_000_000
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


class Span(NamedTuple):
    """A part of the run, CLOCK_MONOTONIC ns."""

    start: int
    end: int


def quiet_spans(faults: Sequence[FaultRow], late_nodes: Sequence[int], t_start: int, t_end: int) -> list[Span]:
    """The parts of a run in which every node runs and no fault is in force, ascending.

    Args:
        late_nodes: nodes that are not started at the run's beginning.
    """
    held = [(row.t, _over_at(row, t_end)) for row in faults]
    for node in late_nodes:
        started = (row.t_done for row in faults if row.fault == "start" and row.target == node and row.effect)
        held.append((t_start, next(started, t_end)))
    spans, since = [], t_start
    for begin, end in sorted(held):
        if begin > since:
            spans.append(Span(since, begin))
        since = max(since, end)
    return [*spans, Span(since, t_end)] if since < t_end else spans


def _over_at(row: FaultRow, t_end: int) -> int:
    if row.fault in _INSTANT or (not row.moved and row.fault in _MOVES):
        return row.t_done
    return row.t_healed or t_end


_INSTANT = ("start", "resume", "heal", "refusal", "garbage")
_MOVES = ("kill", "stop", "pause")


class Starvation:
    """Follows who is shown what while the history is read. Feed it every row, then finish().

    Args:
        subscribers: client ids.
        bound_s: within which a subscriber that lacks something must be shown something.
    """

    def __init__(self, subscribers: Sequence[int], spans: Sequence[Span], bound_s: float) -> None:
        self._shown = dict.fromkeys(subscribers, 0)
        self._since: dict[int, int] = {}
        """Subscriber that lacks something -> since when it was shown nothing."""
        self._spans, self._bound_s = spans, bound_s
        self._acked = self._latest = 0
        self.found: list[tuple[int, str]] = []
        """(line of the history, what was found)."""

    def on_row(self, place: int, row: HistoryRow) -> None:
        self._latest = place
        if isinstance(row, Acked) and row.seq_no > self._acked:
            self._acked = row.seq_no
            for client, last in self._shown.items():
                if last < row.seq_no:
                    self._since.setdefault(client, row.t)
        elif isinstance(row, Shown) and row.client in self._shown:
            self._end_wait(place, row.client, row.t)
            self._shown[row.client] = row.last
            if row.last < self._acked:
                self._since[row.client] = row.t

    def finish(self, t_end: int) -> None:
        for client in list(self._since):
            self._end_wait(self._latest, client, t_end)

    def _end_wait(self, place: int, client: int, t: int) -> None:
        since = self._since.pop(client, t)
        for span in self._spans:
            waited = (min(t, span.end) - max(since, span.start)) / NS_PER_S
            if waited > self._bound_s:
                text = (
                    f"client {client} was shown lines up to {self._shown[client]} and then nothing for {waited:.3f} s "
                )
                text += f"while every node ran and no fault was in force (allowed {self._bound_s:g} s)"
                self.found.append((place, text))
                return


def check_subscribers(
    run: RunDir, log: MessageLog, subscribers: Sequence[int] | None, upto: int, starvation: Starvation | None
) -> Check:
    """Judge A8.

    Args:
        log: the reference log, read to its end.
        subscribers: client ids of the scenario's; None: it can't be read.
        upto: the seq_no that each of them must have been shown; 0: the run did not come to its end.
        starvation: has followed the history; None where meta.json or faults.jsonl can't be read.
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
    for place, found in () if starvation is None else starvation.found:
        findings.add(f"{run.history.name}:{place}", found)
    for client in subscribers or ():
        last = readers[client].line if client in readers else 0
        if last < upto:
            message = (
                f"client {client} was shown lines up to {last}; all nodes had delivered {upto}, and it stayed connected"
            )
            findings.add(run.history.name, message)
    if not lines:
        return findings.unknown(
            "no subscriber was shown anything", decisive=subscribers is None or len(subscribers) > 0
        )
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
    due = 1 if reader is None else reader.line + 1
    if reader is None or row.first != due:
        if row.first != due:
            findings.add(place, f"client {row.client} was shown line {row.first} where {due} is due", shown)
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
