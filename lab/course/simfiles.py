"""A data directory in memory that models what a power loss would leave of it.

A file has the bytes that reads show, of which some are durable. A name is durable once its folder was synced. A crash
keeps what is durable and, drawn from a random generator, some of the rest:

- a prefix of the unsynced bytes, sometimes followed by zeros or noise, as if the length was written and the data not;
- or some pages of them in any order; between these pages stand the old bytes, or zeros;
- a prefix of the unsynced renames and removals.

A failed sync of a file behaves as on Linux: the pages that could not be written count as clean. Reads show them, later
syncs skip them, and a power loss loses them. (Rebello et al., Can Applications Recover from fsync Failures?, USENIX ATC
2020.) A failed sync of a folder leaves its names to the next sync: they are in the file system's journal, and a file
system whose journal cannot be written stops all writing.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Final, TypeAlias

from nodeproc.disk.files import Buffer


class PowerLost(BaseException):
    """The simulated machine stopped in the middle of an operation; the node's code must not run on."""


PAGES: Final = (16, 64, 512, 4096)
"""Page sizes in bytes; a page reaches the disk as a whole or not at all. Small pages make holes in short files too."""

Range: TypeAlias = tuple[int, int]


@dataclass(eq=False, slots=True)
class _Inode:
    """A file's content, apart from its names.

    synced: number of bytes at the start that are durable, except for `unwritten`.
    unwritten: ranges that a failed sync has marked clean; only a truncation ends one.
    before_cut: the durable content before a truncation into it; None once the truncation is durable too.
    """

    data: bytearray = field(default_factory=bytearray)
    synced: int = 0
    unwritten: list[Range] = field(default_factory=list)
    before_cut: bytes | None = None

    def sync(self, size: int) -> None:
        """Make the first `size` bytes durable, except for `unwritten`."""
        self.synced = min(size, len(self.data))
        self.before_cut = None

    def fail_to_sync(self, size: int) -> None:
        """The operating system could not write the first `size` bytes, and will not try again."""
        if self.synced < size:
            self.unwritten.append((self.synced, size))

    def truncate(self, size: int) -> None:
        if size < self.synced:
            if self.before_cut is None:
                self.before_cut = self._durable()
            self.synced = size
        del self.data[size:]
        self.unwritten = cut_ranges(self.unwritten, size)

    def durable_prefix(self) -> int:
        return min([self.synced, *(start for start, _ in self.unwritten)])

    def _durable(self) -> bytes:
        return blanked(self.data[: self.synced], self.unwritten)

    def left_by_crash(self, rng: Random) -> bytes:
        """Return what a power loss leaves: at least the bytes that were synced and not truncated since."""
        old = b""
        if self.before_cut is not None and rng.random() < 0.5:
            old = self.before_cut  # The cut was not durable.
            if rng.random() < 0.5:
                return old
        if self.synced < len(self.data) and rng.random() < 0.4:
            return self._pages_in_any_order(rng, old)
        if old:
            return old
        kept = rng.randint(self.synced, len(self.data))
        missing = len(self.data) - kept
        left = self.data[:kept]
        if missing and rng.random() < 0.4:
            hole = rng.randint(1, missing)
            left += bytes(hole) if rng.random() < 0.5 else rng.randbytes(hole)
        return blanked(left, self.unwritten)

    def _pages_in_any_order(self, rng: Random, old: bytes) -> bytes:
        """Keep some pages of the unsynced tail and lose at least one; in its place stand the old bytes, or zeros."""
        page, share = rng.choice(PAGES), rng.random()
        lost = rng.randrange(self.synced, len(self.data)) // page
        left = bytearray(old or self.data[: self.synced])
        if rng.random() < 0.3:
            left += bytes(max(0, len(self.data) - len(left)))  # The length was written.
        for at in range(self.synced - self.synced % page, len(self.data), page):
            if rng.random() < share and at // page != lost:
                start, end = max(at, self.synced), min(at + page, len(self.data))
                left += bytes(max(0, end - len(left)))
                left[start:end] = self.data[start:end]
        return blanked(left, self.unwritten)


def cut_ranges(ranges: Sequence[Range], size: int) -> list[Range]:
    """Return the parts of these ranges that lie below `size`."""
    return [(start, min(end, size)) for start, end in ranges if start < size]


def blanked(data: bytes | bytearray, ranges: Sequence[Range]) -> bytes:
    """Return the data with zeros in these ranges."""
    left = bytearray(data)
    for start, end in cut_ranges(ranges, len(left)):
        left[start:end] = bytes(end - start)
    return bytes(left)


class SimFile:
    """One open file of SimFiles; see nodeproc.disk.files.File."""

    def __init__(self, files: SimFiles, name: str, inode: _Inode) -> None:
        self._files, self._name, self._inode = files, name, inode

    def append(self, buffers: Sequence[Buffer]) -> None:
        data = b"".join(buffers)
        files = self._files
        try:
            files.about_to("append", self._name)
        except PowerLost:
            kept = files.rng.randint(0, len(data))
            self._inode.data += data[:kept]
            raise
        if files.capacity is not None and len(data) > (room := files.capacity - files.used()):
            self._inode.data += data[: max(room, 0)]
            raise OSError(errno.ENOSPC, "No space left on device", self._name)
        self._inode.data += data

    def pread(self, size: int, at: int) -> bytes:
        self._files.about_to("pread", self._name)
        data = bytes(self._inode.data[at : at + size])  # No memoryview: a scrub may read in another thread.
        self._files.bytes_read += len(data)
        return data

    def size(self) -> int:
        return len(self._inode.data)

    def sync(self) -> None:
        files, inode = self._files, self._inode
        size = len(inode.data) if files.began is None else files.began.get(inode, 0)
        try:
            files.about_to("sync", self._name)
        except OSError:
            inode.fail_to_sync(size)
            raise
        inode.sync(max(size, inode.synced))

    def truncate(self, size: int) -> None:
        self._files.about_to("truncate", self._name)
        self._inode.truncate(size)

    def close(self) -> None:
        pass

    def never_written(self, ranges: Sequence[Range]) -> None:
        """Set the ranges that failed syncs have marked clean."""
        self._inode.unwritten = list(ranges)


class SimFiles:
    """A data directory in memory; see nodeproc.disk.files.Files.

    Args:
        rng: draws what a crash in the middle of an append leaves.
        capacity: bytes that the disk holds; None: no limit. May be changed at any time.
    """

    def __init__(self, rng: Random | None = None, capacity: int | None = None) -> None:
        self.rng = rng or Random(0)
        self.capacity = capacity
        self.bytes_read = 0
        """Bytes read by pread so far: the cost of a restart."""
        self.operations = 0
        """File operations so far; `crash_at` refers to them."""
        self.crash_at: int | None = None
        """Raise PowerLost instead of the operation with this number."""
        self.on_operation: Callable[[str, str], None] | None = None
        """Called before each operation with its kind and the file's name; may raise OSError to make it fail."""
        self.began: dict[_Inode, int] | None = None
        """The sizes() at which the syncs that end now began: they cover no more. None: a sync takes no time."""
        self._names: dict[str, _Inode] = {}
        self._durable: dict[str, _Inode] = {}
        self._unsynced: list[tuple[str, dict[str, _Inode]]] = []
        """(folder, all names afterwards) for each change of names that no sync of the folder has made durable."""

    # ---- the interface of nodeproc.disk.files.Files -------------------------------------------------------

    def open(self, name: str, *, create: bool = False) -> SimFile:
        self.about_to("open", name)
        if name not in self._names:
            if not create:
                raise FileNotFoundError(errno.ENOENT, "No such file or directory", name)
            self._change(_folder(name), {**self._names, name: _Inode()})
        return SimFile(self, name, self._names[name])

    def names(self, folder: str) -> list[str]:
        return sorted(name.rpartition("/")[2] for name in self._names if _folder(name) == folder)

    def make_folder(self, folder: str) -> None:
        self.about_to("make_folder", folder)

    def sync_folder(self, folder: str) -> None:
        self.about_to("sync_folder", folder)
        self._unsynced = [change for change in self._unsynced if change[0] != folder]
        self._durable = _with_folder(self._durable, folder, self._names)

    def rename(self, old: str, new: str) -> None:
        self.about_to("rename", old)
        names = dict(self._names)
        names[new] = names.pop(old)
        self._change(_folder(new), names)

    def unlink(self, name: str) -> None:
        self.about_to("unlink", name)
        if name not in self._names:
            raise FileNotFoundError(errno.ENOENT, "No such file or directory", name)
        self._change(_folder(name), {each: inode for each, inode in self._names.items() if each != name})

    def rewrite(self, name: str, at: int, data: Buffer) -> None:
        inode = self._names[name]
        try:
            self.about_to("rewrite", name)
        except PowerLost:
            done = self.rng.randint(0, len(data))
            inode.data[at : at + done] = data[:done]
            raise
        inode.data[at : at + len(data)] = data

    def where(self, name: str) -> str:
        return name

    def close(self) -> None:
        pass

    def sizes(self) -> dict[_Inode, int]:
        """Return the present length of each file; for `began`."""
        return {inode: len(inode.data) for inode in self._names.values()}

    # ---- faults, and lab.course.machine.NodeFiles ------------------------------------------------------

    def crash(self, rng: Random) -> SimFiles:
        """Return the directory after a power loss; all that is left is durable."""
        names = dict(self._durable)
        changes: dict[str, list[dict[str, _Inode]]] = {}
        for folder, after in self._unsynced:
            changes.setdefault(folder, []).append(after)
        for folder, states in sorted(changes.items()):
            survived = rng.randint(0, len(states))
            if survived:
                names = _with_folder(names, folder, states[survived - 1])
        survivor = SimFiles(self.rng, self.capacity)
        for name in sorted(names):
            survivor.put(name, names[name].left_by_crash(rng))
        return survivor

    def copy(self) -> SimFiles:
        """Return the directory as reads show it, all of it durable: a crash of the process loses nothing."""
        return SimFiles.holding({name: bytes(inode.data) for name, inode in self._names.items()})

    @classmethod
    def holding(cls, contents: dict[str, bytes]) -> SimFiles:
        """Return a directory with these files, all durable."""
        files = cls()
        for name, data in contents.items():
            files.put(name, data)
        return files

    def all_names(self) -> list[str]:
        return sorted(self._names)

    def contents(self, names: Iterable[str] | None = None) -> dict[str, bytes]:
        """File name -> bytes, as reads show them; of those of these files that exist, or of all."""
        wanted = sorted(self._names) if names is None else names
        return {name: bytes(self._names[name].data) for name in wanted if name in self._names}

    def synced(self) -> dict[str, int]:
        """File name -> number of durable bytes at its start."""
        return {name: inode.durable_prefix() for name, inode in sorted(self._names.items())}

    def put(self, name: str, data: bytes) -> None:
        """Replace a file's content, durably."""
        inode = _Inode(bytearray(data), len(data))
        for names in (self._names, self._durable, *(after for _, after in self._unsynced)):
            names[name] = inode

    def replace(self, contents: dict[str, bytes]) -> None:
        """Replace all files by these, durably."""
        for name in self._names.keys() - contents.keys():
            self.remove(name)
        for name, data in contents.items():
            self.put(name, data)

    def rot(self, name: str, at: int, value: int) -> None:
        """Change one durable byte; the node may run."""
        self._names[name].data[at] = value

    def remove(self, name: str) -> None:
        """Delete a file, durably."""
        del self._names[name]
        for names in (self._durable, *(after for _, after in self._unsynced)):
            names.pop(name, None)

    def used(self) -> int:
        """Return the bytes of all files together."""
        return sum(len(inode.data) for inode in self._names.values())

    def about_to(self, operation: str, name: str) -> None:
        """Count an operation, and make it fail if `crash_at` or `on_operation` says so."""
        self.operations += 1
        if self.crash_at is not None and self.operations >= self.crash_at:
            raise PowerLost
        if self.on_operation is not None:
            self.on_operation(operation, name)

    def _change(self, folder: str, names: dict[str, _Inode]) -> None:
        self._names = names
        self._unsynced.append((folder, names))


def _folder(name: str) -> str:
    return name.rpartition("/")[0] or "."


def _with_folder(names: dict[str, _Inode], folder: str, source: dict[str, _Inode]) -> dict[str, _Inode]:
    """Return `names`, with the entries of one folder taken from `source`."""
    kept = {name: inode for name, inode in names.items() if _folder(name) != folder}
    kept.update((name, inode) for name, inode in source.items() if _folder(name) == folder)
    return kept
