"""Writing history.jsonl: every process writes a part of its own, and at the end they are merged by time."""

from __future__ import annotations

import heapq
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from lab.rows import Acked, Failed, HistoryRow, Unknown, encode_row
from nodeproc.session import Outcome

FLUSH_BYTES = 64 << 10
MERGE_CHUNK = 1 << 20


def outcome_row(now_ns: int, session: str, outcome: Outcome) -> HistoryRow:
    """What became of some of a session's messages."""
    count = outcome.last - outcome.first + 1
    match outcome.kind:
        case "ok":
            return Acked(now_ns, session, outcome.last, outcome.seq_no)
        case "rejected":
            return Failed(now_ns, session, outcome.first, count, outcome.reason)
        case "unknown":
            return Unknown(now_ns, session, outcome.first, count)


class HistoryWriter:
    """One part of the history; rows must come in the order of their t.

    Rows are gathered until somebody flushes, now and then: what is not written is lost with the process.
    """

    def __init__(self, path: Path, now_ns: Callable[[], int] = time.monotonic_ns) -> None:
        self._now_ns = now_ns
        self._file = path.open("ab", buffering=0)
        self._rows: list[bytes] = []
        self._size = 0

    def write(self, row: HistoryRow) -> None:
        line = encode_row(row)
        self._rows.append(line)
        self._size += len(line)
        if self._size >= FLUSH_BYTES:
            self.flush()

    def outcome(self, session: str, outcome: Outcome) -> None:
        """What became of some of a session's messages, as of now."""
        self.write(outcome_row(self._now_ns(), session, outcome))

    def flush(self) -> None:
        if self._rows:
            left = memoryview(b"".join(self._rows))
            self._rows.clear()
            self._size = 0
            while left:  # A nearly full disk takes a part first, and says why at the next try.
                left = left[self._file.write(left) :]

    def close(self) -> None:
        self.flush()
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


_T_KEY = b'"t":'


def row_time(line: bytes) -> int:
    """The t of an encoded row, without parsing the rest of it.

    Raises:
        ValueError: there is none.
    """
    start = line.index(_T_KEY) + len(_T_KEY)
    end = line.find(b",", start)
    return int(line[start : end if end >= 0 else line.index(b"}", start)])


def merge(parts: Sequence[Path], whole: Path) -> None:
    """Merge parts, each ascending by t, into one file and remove them; a torn last line is left out."""
    with whole.open("wb", buffering=MERGE_CHUNK) as out:
        out.writelines(heapq.merge(*(_whole_lines(part) for part in parts), key=row_time))
    for part in parts:
        part.unlink()


def _whole_lines(part: Path) -> Iterator[bytes]:
    with part.open("rb", buffering=MERGE_CHUNK) as file:
        for line in file:
            if line.endswith(b"\n"):
                yield line
