"""The files of a run directory as they grow: what was written since the last look, up to a time.

Times are those of the rows, CLOCK_MONOTONIC ns.
"""

from __future__ import annotations

import contextlib
import heapq
import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, Final, Generic, NamedTuple, TypeVar

import msgspec

from lab.rows import FaultChange, HistoryRow, Judged, LiveRow, decode_live_row
from lab.rundir import RunDir
from lab.show.window import lines_between
from lab.words import EVENTS
from nodeproc.core.messages import NodeId

T = TypeVar("T")
FOREVER: Final = 1 << 63
CHUNK_BYTES: Final = 1 << 20
_decode_history: Callable[[bytes], HistoryRow] = msgspec.json.Decoder(HistoryRow).decode


class NodeEvent(NamedTuple):
    """An event that a node logged. kind: its name. text: for people."""

    t: int
    node: NodeId
    kind: str
    text: str


class Source(Generic[T]):
    """The rows of one file that grows. It stays open, so that a file that is removed is read to its end.

    Args:
        decode: returns the row of a line; None: the line is no row for a watcher.
        time_of: the time of a row.
    """

    def __init__(self, path: Path, decode: Callable[[bytes], T | None], time_of: Callable[[T], int]) -> None:
        self._path, self._decode, self._time_of = path, decode, time_of
        self._file: BinaryIO | None = None
        self._rest = b""
        self._lines: Iterator[bytes] = iter(())
        self._next: T | None = None

    def due(self) -> int:
        """Return the time of the next row; FOREVER if there is none yet."""
        if self._next is None:
            self._next = self._read()
        return FOREVER if self._next is None else self._time_of(self._next)

    def rows(self, until: int = FOREVER) -> Iterator[tuple[int, T]]:
        """Yield (time, row) for each row that is there by now and not later than `until`."""
        while (t := self.due()) <= until and (row := self._next) is not None:
            self._next = None
            yield t, row

    def _read(self) -> T | None:
        """Return the next row; None if there is none yet."""
        while True:
            for line in self._lines:
                row = self._decode(line)
                if row is not None:
                    return row
            if not self._more():
                return None

    def _more(self) -> bool:
        if self._file is None:
            try:
                self._file = self._path.open("rb")
            except FileNotFoundError:
                return False
        data = self._file.read(CHUNK_BYTES)
        whole, newline, self._rest = (self._rest + data).rpartition(b"\n")
        self._lines = iter(io.BytesIO(whole + newline))
        return bool(data)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


class Run:
    """All that a watcher reads of one run directory."""

    def __init__(self, path: Path) -> None:
        self._run = RunDir(path)
        self._live: Source[LiveRow] = Source(self._run.live, _live_row, _live_time)
        self._events: dict[NodeId, Source[NodeEvent]] = {}
        self._history: dict[str, Source[HistoryRow]] = {}
        self._tails: dict[NodeId, tuple[tuple[int, int], list[dict[str, object]]]] = {}
        """Node -> ((size, time of change) of its message log when it was read, its last messages)."""

    def start(self) -> int:
        """Return the time of the first row of live.jsonl; 0 if there is none yet."""
        due = self._live.due()
        return 0 if due == FOREVER else due

    def live(self, until: int = FOREVER) -> Iterator[tuple[int, LiveRow]]:
        """Yield the rows of live.jsonl since the last call."""
        return self._live.rows(until)

    def events(self, nodes: Iterator[NodeId], until: int = FOREVER) -> list[NodeEvent]:
        """Return the events of these nodes since the last call, the earliest first."""
        for node in nodes:
            if node not in self._events:
                self._events[node] = Source(self._run.events(node), _event, lambda event: event.t)
        found = [event for source in self._events.values() for _, event in source.rows(until)]
        return sorted(found, key=lambda event: event.t)

    def history(self, until: int = FOREVER) -> Iterator[HistoryRow]:
        """Yield the rows of the clients since the last call; of one file they are in order."""
        paths = sorted(self._run.path.glob("history-*.part"))
        if not paths and not self._history:
            paths = [self._run.history]
        for path in paths:
            if path.name not in self._history:
                self._history[path.name] = Source(path, _history_row, lambda row: row.t)
        parts = [source.rows(until) for source in self._history.values()]
        return (row for _, row in heapq.merge(*parts, key=lambda item: item[0]))

    def last_lines(self, node: NodeId, count: int) -> list[dict[str, object]]:
        """Return the last messages of a node's message log, as JSON objects; it is read only if it has changed."""
        path = self._run.message_log(node)
        try:
            stat = path.stat()
        except FileNotFoundError:
            return []
        changed, lines = self._tails.get(node, ((0, 0), []))
        if changed != (stat.st_size, stat.st_mtime_ns):
            lines = _last_messages(path, count)
            self._tails[node] = (stat.st_size, stat.st_mtime_ns), lines
        return lines

    def lines_up_to(self, node: NodeId, seq_no: int, count: int) -> list[dict[str, object]]:
        """Return the messages up to this one in a node's message log, as JSON objects; at most `count`."""
        lines = lines_between(self._run.message_log(node), seq_no - count + 1, seq_no, key=b'"seq_no":')
        return [json.loads(line) for line in lines]

    def close(self) -> None:
        self._live.close()
        for events in self._events.values():
            events.close()
        for part in self._history.values():
            part.close()


LINES_BYTES: Final = 64 << 10
"""At most this much of the end of a message log is read."""


def _last_messages(path: Path, count: int) -> list[dict[str, object]]:
    """Return the last messages of a log. Lines that are none are left out: a power loss may leave any bytes."""
    with path.open("rb") as file:
        size = file.seek(0, io.SEEK_END)
        file.seek(max(0, size - LINES_BYTES))
        lines = file.read().split(b"\n")[1 if size > LINES_BYTES else 0 : -1]
    found: list[dict[str, object]] = []
    for line in reversed(lines):
        if len(found) == count:
            break
        with contextlib.suppress(ValueError):
            row = json.loads(line)
            if isinstance(row, dict) and row.keys() >= {"seq_no", "sender_id", "payload"}:
                found.append(row)
    return found[::-1]


def _live_row(line: bytes) -> LiveRow | None:
    try:
        row: LiveRow = decode_live_row(line)
        return row
    except msgspec.MsgspecError:  # Of another version of the lab.
        return None


def _live_time(row: LiveRow) -> int:
    """Return when a row was written; 0: at once, wherever it stands."""
    if isinstance(row, FaultChange):
        return row.row.t if row.begins else row.row.t_healed or row.row.t_done
    return 0 if isinstance(row, Judged) else row.t


def _history_row(line: bytes) -> HistoryRow | None:
    try:
        return _decode_history(line)
    except msgspec.MsgspecError:
        return None


def _event(line: bytes) -> NodeEvent | None:
    try:
        fields = json.loads(line)
        kind = EVENTS[fields["event"]]
        return NodeEvent(fields["t_ns"], fields["node"], fields["event"], kind.text.format_map(fields))
    except (ValueError, KeyError):  # A torn line, or an event of another version or program.
        return None
