"""The history of a run: its rows as they are written, and the merging of its parts."""

from __future__ import annotations

import heapq
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from lab.rows import Acked, Failed, HistoryRow, Unknown, encode_row
from nodeproc.outcome import Outcome

FLUSH_BYTES = 64 << 10
MERGE_CHUNK = 1 << 20


class History:
    """Receives the rows of the clients and of the runner, in the order of their t.

    Args:
        now_ns: the time, as in the rows.
    """

    def __init__(self, now_ns: Callable[[], int]) -> None:
        self._now_ns = now_ns

    def write(self, row: HistoryRow) -> None:
        raise NotImplementedError

    def outcome(self, session: str, outcome: Outcome) -> None:
        """Write the outcome of some of a session's messages, as of now."""
        if outcome.kind == "ok":
            self.write(Acked(self._now_ns(), session, outcome.last, outcome.seq_no))
            return
        count = outcome.last - outcome.first + 1
        if outcome.kind == "rejected":
            self.write(Failed(self._now_ns(), session, outcome.first, count, outcome.reason))
        else:
            self.write(Unknown(self._now_ns(), session, outcome.first, count))

    def flush(self) -> None:
        """Let no row that was written be lost with this process."""


class HistoryWriter(History):
    """Writes one part of the history to a file. Every process writes a part of its own; merge() joins them.

    Rows are gathered until the next flush. If the process dies, the rows since then are lost.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(time.monotonic_ns)
        self._file = path.open("ab", buffering=0)
        self._rows: list[bytes] = []
        self._size = 0

    def write(self, row: HistoryRow) -> None:
        line = encode_row(row)
        self._rows.append(line)
        self._size += len(line)
        if self._size >= FLUSH_BYTES:
            self.flush()

    def flush(self) -> None:
        if self._rows:
            left = memoryview(b"".join(self._rows))
            self._rows.clear()
            self._size = 0
            while left:  # A nearly full disk takes a part first, and reports its error at the next try.
                written = self._file.write(left)
                left = left[written:]

    def close(self) -> None:
        self.flush()
        self._file.close()


_T_KEY = b'"t":'


def row_time(line: bytes) -> int:
    """Return the t of an encoded row, without parsing the rest of the row.

    Raises:
        ValueError: the row has no t.
    """
    start = line.index(_T_KEY) + len(_T_KEY)
    end = line.find(b",", start)
    return int(line[start : end if end >= 0 else line.index(b"}", start)])


def merge(parts: Sequence[Path], whole: Path) -> None:
    """Merge parts, each ascending by t, into one file, and remove them. Incomplete last lines are left out."""
    with whole.open("wb", buffering=MERGE_CHUNK) as out:
        out.writelines(heapq.merge(*(_whole_lines(part) for part in parts), key=row_time))
    for part in parts:
        part.unlink()


def _whole_lines(part: Path) -> Iterator[bytes]:
    with part.open("rb", buffering=MERGE_CHUNK) as file:
        for line in file:
            if line.endswith(b"\n"):
                yield line
