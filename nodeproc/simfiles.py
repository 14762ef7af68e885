"""A data directory in memory that knows what a power loss would leave of it.

Each file has the bytes that reads show and the bytes that are durable; each name is durable only once its folder was
synced. A crash keeps the durable part and, drawn from a random generator, some of the rest: a prefix of the unsynced
bytes, sometimes followed by zeros or noise where a length was written and its data was not, and a prefix of the
unsynced renames and removals. It does not model pages that reach the disk out of order inside one unsynced tail (a hole
with intact data behind it): recovery refuses such a tail, because it can't tell it from damage (K2).
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from random import Random

from nodeproc.files import Buffer


class PowerLost(BaseException):
    """The simulated machine stopped in the middle of an operation; no code of the node runs any more."""


@dataclass(eq=False, slots=True)
class _Inode:
    """A file's content apart from its names.

    synced: bytes at the start that a power loss leaves as they are.
    before_cut: what was durable before the file was cut below it; None once the cut is durable too.
    """

    data: bytearray = field(default_factory=bytearray)
    synced: int = 0
    before_cut: bytes | None = None

    def sync(self, size: int) -> None:
        """The first `size` bytes are durable now."""
        self.synced = min(size, len(self.data))
        self.before_cut = None

    def truncate(self, size: int) -> None:
        if size < self.synced:
            if self.before_cut is None:
                self.before_cut = bytes(self.data[: self.synced])
            self.synced = size
        del self.data[size:]

    def left_by_crash(self, rng: Random) -> bytes:
        """What a power loss leaves: never less than what was synced and not cut since."""
        if self.before_cut is not None and rng.random() < 0.5:
            return self.before_cut  # The cut was not durable.
        kept = rng.randint(self.synced, len(self.data))
        missing = len(self.data) - kept
        left = bytes(self.data[:kept])
        if missing and rng.random() < 0.4:
            hole = rng.randint(1, missing)
            left += bytes(hole) if rng.random() < 0.5 else rng.randbytes(hole)
        return left


class SimFile:
    """One open file of SimFiles; see nodeproc.files.File."""

    def __init__(self, files: SimFiles, name: str, inode: _Inode) -> None:
        self._files, self._name, self._inode = files, name, inode

    def append(self, buffers: Sequence[Buffer]) -> None:
        data = b"".join(buffers)
        files = self._files
        try:
            files.about_to("append", self._name)
        except PowerLost:
            self._inode.data += data[: files.rng.randint(0, len(data))]
            raise
        if files.capacity is not None and len(data) > (room := files.capacity - files.used()):
            self._inode.data += data[: max(room, 0)]
            raise OSError(errno.ENOSPC, "No space left on device", self._name)
        self._inode.data += data

    def pread(self, size: int, at: int) -> bytes:
        self._files.about_to("pread", self._name)
        data = bytes(memoryview(self._inode.data)[at : at + size])
        self._files.bytes_read += len(data)
        return data

    def size(self) -> int:
        return len(self._inode.data)

    def sync(self) -> None:
        files, inode = self._files, self._inode
        files.about_to("sync", self._name)
        if files.under_way is None:
            inode.sync(len(inode.data))
        else:
            files.under_way.append((inode, len(inode.data)))

    def truncate(self, size: int) -> None:
        self._files.about_to("truncate", self._name)
        self._inode.truncate(size)

    def close(self) -> None:
        pass


class SimFiles:
    """A data directory in memory; see nodeproc.files.Files.

    Args:
        rng: decides what a crash in the middle of an append leaves.
        capacity: bytes that fit; None is no limit. May be changed at any time.
    """

    def __init__(self, rng: Random | None = None, capacity: int | None = None) -> None:
        self.rng = rng or Random(0)
        self.capacity = capacity
        self.bytes_read = 0
        """By pread since the start; what a restart costs."""
        self.operations = 0
        """File operations so far, to place a crash."""
        self.crash_at: int | None = None
        """Raise PowerLost instead of the operation of this number."""
        self.on_operation: Callable[[str, str], None] | None = None
        """Called with operation and name before each; raises OSError to make it fail."""
        self.under_way: list[tuple[_Inode, int]] | None = None
        """Where it is a list, fdatasync only begins: each file and how much of it is durable after settle()."""
        self._names: dict[str, _Inode] = {}
        self._durable: dict[str, _Inode] = {}
        self._unsynced: list[tuple[str, dict[str, _Inode]]] = []
        """(folder, all its names) after each change that its folder was not synced since."""

    # ---- the interface of nodeproc.files.Files -------------------------------------------------------

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

    def where(self, name: str) -> str:
        return name

    def close(self) -> None:
        pass

    def settle(self, begun: list[tuple[_Inode, int]]) -> None:
        """The fdatasyncs that had begun have returned."""
        for inode, size in begun:
            inode.sync(max(size, inode.synced))

    def sync_all(self) -> None:
        """Whatever was written to any file is durable; names are not."""
        for inode in self._names.values():
            inode.sync(len(inode.data))

    # ---- faults --------------------------------------------------------------------------------------

    def crash(self, rng: Random) -> SimFiles:
        """The directory as the machine finds it after a power loss, all of it durable then."""
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
        """The directory as reads show it, all of it durable, as after a crash of the process alone."""
        return SimFiles.holding({name: bytes(inode.data) for name, inode in self._names.items()})

    @classmethod
    def holding(cls, contents: dict[str, bytes]) -> SimFiles:
        """A directory with these files, all durable."""
        files = cls()
        for name, data in contents.items():
            files.put(name, data)
        return files

    def contents(self) -> dict[str, bytes]:
        """File name -> bytes, as reads show them."""
        return {name: bytes(inode.data) for name, inode in sorted(self._names.items())}

    def synced(self) -> dict[str, int]:
        """File name -> bytes at its start that a power loss leaves as they are."""
        return {name: inode.synced for name, inode in sorted(self._names.items())}

    def put(self, name: str, data: bytes) -> None:
        """Replace a file's content, durably: damage, or a file put back."""
        self._names[name] = self._durable[name] = _Inode(bytearray(data), len(data))

    def remove(self, name: str) -> None:
        """Lose a file, durably."""
        del self._names[name]
        self._durable.pop(name, None)

    def used(self) -> int:
        """Bytes that all files take."""
        return sum(len(inode.data) for inode in self._names.values())

    def about_to(self, operation: str, name: str) -> None:
        """Count an operation, and fail it where that was asked for."""
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
    """`names` with the entries of one folder taken from `source`."""
    kept = {name: inode for name, inode in names.items() if _folder(name) != folder}
    kept.update((name, inode) for name, inode in source.items() if _folder(name) == folder)
    return kept
