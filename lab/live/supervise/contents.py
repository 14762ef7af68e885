"""What a power loss would leave of the contents of files.

A file has the bytes that reads show, and a durable content: its size at the last sync, and for each page that was
changed since then the bytes from before. A power loss restores these, except for what the tail lets survive:

- none: everything that was not synced is lost;
- prefix: a random part of the bytes behind the durable size survives, overwritten pages do not;
- pages: each changed page survives or not, at random, with zeros in the holes behind the durable size.

A failed sync behaves as on Linux: the pages that it should have written count as clean, so a later sync does not write
them, unless they are changed again. (Rebello et al., Can Applications Recover from fsync Failures?, USENIX ATC 2020.)
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Literal, NamedTuple, TypeAlias

from lab.live.supervise.kernel import PAGE_BYTES

CHUNK_PAGES = 256

Tail: TypeAlias = Literal["none", "prefix", "pages"]
Key: TypeAlias = tuple[int, int]
"""(device, inode)."""


class ContentLoss(NamedTuple):
    """The bytes of one file that were not durable, and those of them that were lost."""

    unsynced_bytes: int
    lost_bytes: int


@dataclass(slots=True, eq=False)
class Content:
    """The content of one file, apart from its names.

    durable: the size that a power loss leaves.
    before: page number -> the durable bytes of a page that was changed since the last sync.
    unwritten: page number -> the bytes on the disk of a page that a failed sync has marked clean.
    is_mapped: stores through a shared mapping may change the file; they are not seen.
    dirty_since: monotonic time of the first change since the last sync; 0: there is none.
    """

    durable: int
    before: dict[int, bytes] = field(default_factory=dict)
    unwritten: dict[int, bytes] = field(default_factory=dict)
    is_mapped: bool = False
    dirty_since: float = 0.0

    def touch(self) -> None:
        """The file changes now."""
        if not self.dirty_since:
            self.dirty_since = time.monotonic()

    def about_to_write(self, fd: int, at: int, size: int) -> None:
        """Save the durable pages that a write will change. fd: the file, open for reading."""
        if self.unwritten:
            for page in range(at // PAGE_BYTES, _pages(at + size)):
                if page in self.unwritten:
                    self.before.setdefault(page, self.unwritten.pop(page)[: max(0, self.durable - page * PAGE_BYTES)])
        end = min(at + size, self.durable)
        if at < end:
            pages = range(at // PAGE_BYTES, (end - 1) // PAGE_BYTES + 1)
            for page, data in _read(fd, [page for page in pages if page not in self.before]):
                self.before[page] = data[: self.durable - page * PAGE_BYTES]

    def map(self, fd: int) -> None:
        """The file is mapped for writing: save all durable pages, because stores are not seen."""
        self.is_mapped = True
        self.dirty_since = time.monotonic()
        self.about_to_write(fd, 0, self.durable)

    def sync(self, fd: int) -> None:
        """Everything that was written is durable now."""
        self.durable = os.fstat(fd).st_size
        self.before.clear()
        self.dirty_since = 0.0
        if self.is_mapped:
            self.map(fd)

    def sync_range(self, fd: int, at: int, size: int) -> None:
        """These bytes are durable now: after an msync, or once a write with O_DSYNC that follows has ended."""
        self.durable = max(self.durable, at + size)
        for page in range(at // PAGE_BYTES, _pages(at + size)):
            self.before.pop(page, None)
        if self.is_mapped:
            self.about_to_write(fd, at, size)

    def fail_to_sync(self, fd: int) -> None:
        """The system could not write the changed pages, and will not try again."""
        size = os.fstat(fd).st_size
        for page in {*self.before, *range(self.durable // PAGE_BYTES, _pages(size))}:
            at = page * PAGE_BYTES
            old = self.before.get(page, b"")
            old += os.pread(fd, max(0, self.durable - at), at)[len(old) :]
            self.unwritten.setdefault(page, old[:PAGE_BYTES].ljust(PAGE_BYTES, b"\0"))
        self.before.clear()
        if self.is_mapped:
            self.map(fd)

    def durable_prefix(self) -> int:
        """Return how many bytes at the start of the file are durable as reads show them."""
        changed = [page * PAGE_BYTES for page in (*self.before, *self.unwritten)]
        return min([self.durable, *changed])

    def lose(self, fd: int, tail: Tail, rng: Random, *, keep: int | None = None) -> ContentLoss:
        """Change the file to what a power loss leaves; all of that is durable then.

        Args:
            fd: the file, open for reading and writing.
            keep: if not None, exactly these first bytes survive, whatever the tail.
        """
        size = os.fstat(fd).st_size
        # A write with O_DSYNC may have been killed before it grew the file.
        ends = [page * PAGE_BYTES + len(old) for page, old in self.before.items()]
        durable = min(self.durable, max([size, *ends]))
        if keep is not None:
            left, unsynced, lost = keep, max(0, size - durable), max(0, size - keep)
        else:
            unsynced, lost = self._restore_pages(fd, tail, rng)
            unsynced += max(0, size - durable)
            left = size if size < durable and tail != "none" and rng.random() < 0.5 else durable
            if size > durable and tail == "prefix":
                left = rng.randint(durable, size)
            elif size > durable and tail == "pages":
                left, zeroed = _keep_some_pages(fd, durable, size, rng)
                lost += zeroed
            lost += max(0, size - left)
        os.ftruncate(fd, left)
        self.durable, self.is_mapped, self.dirty_since = left, False, 0.0
        self.before.clear()
        self.unwritten.clear()
        return ContentLoss(unsynced, lost)

    def _restore_pages(self, fd: int, tail: Tail, rng: Random) -> tuple[int, int]:
        """Restore the pages that do not survive; return the bytes that were not durable, and those that were lost."""
        unsynced = lost = 0
        for page, old in sorted({**self.before, **self.unwritten}.items()):
            at = page * PAGE_BYTES
            if os.pread(fd, len(old), at) != old:
                unsynced += len(old)
                if page in self.unwritten or tail != "pages" or rng.random() < 0.5:
                    os.pwrite(fd, old, at)
                    lost += len(old)
        return unsynced, lost


def _keep_some_pages(fd: int, durable: int, size: int, rng: Random) -> tuple[int, int]:
    """Fill some of the pages behind the durable size with zeros; return the size that remains, and the bytes in it
    that were lost.
    """
    end, zeroed = durable, []
    for page in range(durable // PAGE_BYTES, _pages(size)):
        start, stop = max(durable, page * PAGE_BYTES), min(size, (page + 1) * PAGE_BYTES)
        if rng.random() < 0.5:
            end = stop
        else:
            os.pwrite(fd, bytes(stop - start), start)
            zeroed.append((start, stop))
    left = size if rng.random() < 0.5 else end
    return left, sum(stop - start for start, stop in zeroed if stop <= left)


def _pages(size: int) -> int:
    """Return the number of pages of this many bytes."""
    return -(-size // PAGE_BYTES)


def _read(fd: int, pages: Sequence[int]) -> Iterator[tuple[int, bytes]]:
    """Read these pages, many at a time where they are neighbours; yield (page, data)."""
    start = 0
    while start < len(pages):
        end = start + 1
        while end < len(pages) and end - start < CHUNK_PAGES and pages[end] == pages[end - 1] + 1:
            end += 1
        data = os.pread(fd, (end - start) * PAGE_BYTES, pages[start] * PAGE_BYTES)
        for index, page in enumerate(pages[start:end]):
            yield page, data[index * PAGE_BYTES : (index + 1) * PAGE_BYTES]
        start = end
