"""The lines of a file of rows that belong to a part of the run; the rest of the file is not read."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

_CLOSE_BYTES = 1 << 14
"""From here on reading is faster than searching."""


def lines_between(path: Path, since: int, until: int, key: bytes = b'"t":') -> Iterator[bytes]:
    """Yield the lines whose time is in since..until, ns. The lines of the file must be in the order of time.

    Args:
        key: stands before the time in each line. A line without it is left out: a kill has cut it off.
    """
    if not path.is_file():
        return
    with path.open("rb") as file:
        file.seek(_start(file, path.stat().st_size, since, key))
        for line in file:
            t = _time(line, key)
            if t > until:
                return
            if t >= since:
                yield line


def _start(file: BinaryIO, size: int, since: int, key: bytes) -> int:
    """Return the offset of the beginning of a line, before all lines from `since` on."""
    low, high = 0, size
    while high - low > _CLOSE_BYTES:
        middle = (low + high) // 2
        file.seek(middle)
        file.readline()
        at = file.tell()
        line = file.readline()
        while line and _time(line, key) < 0:
            line = file.readline()
        if line and _time(line, key) < since:
            low = at
        else:
            high = middle
    return low


def _time(line: bytes, key: bytes) -> int:
    """Return the time of a line; -1 if it has none."""
    start = line.find(key)
    if start < 0:
        return -1
    digits = line[start + len(key) : start + len(key) + 24].lstrip()
    length = next((at for at, each in enumerate(digits) if not 48 <= each <= 57), len(digits))
    return int(digits[:length] or b"-1")
