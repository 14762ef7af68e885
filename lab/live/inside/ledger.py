"""The ledger of a node: what a power loss would leave of its files, and the lab's orders for its disk and clock.

A node under lab.live.inside.faulty_node records beside its data directory how much of each file is durable, and which
names are. The lab reads this when the node is dead. The lab writes orders, which the node reads at each operation. All
of it is in small files, so that it outlives the node, and no operation waits for a message.

    orders   lab -> node   one Orders
    counts   node -> lab   one Counts, rewritten at each change
    names    node -> lab   a line for each change of a name, before it is made, and for each folder, after it is synced
    sizes    node -> lab   for each file, by its number, how many bytes from its start are durable (u64)
    kept/    node -> lab   NUMBER: content of a removed file, while a power loss may bring it back;
                           NUMBER.cut: length after a truncation (u64) and the durable bytes that it removed;
                           NUMBER.unwritten: ranges (u64, u64) that a failed fdatasync has marked clean

The node records a removal before it happens, and durability only after the system has confirmed it. So whenever the
node is killed, the ledger never claims more than the disk has.
"""

from __future__ import annotations

import os
import shutil
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, TypeAlias

import msgspec

from lab.course.simfiles import Range
from lab.steps.orders import Counts, Orders

_SIZE = struct.Struct("<Q")
_RANGE = struct.Struct("<QQ")
_ORDERS = struct.Struct("<dqq???dddd")
_COUNTS = struct.Struct("<7Q")


Number: TypeAlias = int
"""Number of a file's content, independent of its names, like an inode."""


class NameChange(msgspec.Struct, frozen=True, omit_defaults=True):
    """One line of `names`.

    make: a new file will get this name. found: the file existed, durable, before the ledger began.
    rename: from `old`. unlink: the name will be removed. folder: `name` was synced. lost: removed by the lab, durably.
    """

    do: Literal["make", "found", "rename", "unlink", "folder", "lost"]
    name: str
    number: Number = 0
    old: str = ""


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(NameChange).decode


class Ledger:
    """The ledger of one node, used by the node or by the lab. Not for several threads at once."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._kept = path / "kept"
        self._kept.mkdir(parents=True, exist_ok=True)
        self._orders = _opened(path / "orders")
        self._counts = _opened(path / "counts")
        self._sizes = _opened(path / "sizes")
        self._names = _opened(path / "names", os.O_APPEND)
        self.changes: list[NameChange] = []
        self.names: dict[str, Number] = {}
        """Name -> file, as seen by reads."""
        self._next = 1
        self._gone: list[tuple[str, Number]] = []
        """(folder, file) of removed names that a power loss may bring back."""
        for line in (path / "names").read_bytes().splitlines():
            self._take(_decode(line))

    def close(self) -> None:
        for fd in (self._orders, self._counts, self._sizes, self._names):
            os.close(fd)

    # ---- orders and counts -------------------------------------------------------------------------

    def orders(self) -> Orders:
        data = os.pread(self._orders, _ORDERS.size, 0)
        return Orders(*_ORDERS.unpack(data)) if data else Orders()

    def order(self, orders: Orders) -> None:
        os.pwrite(self._orders, _ORDERS.pack(*orders), 0)

    def counts(self) -> Counts:
        data = os.pread(self._counts, _COUNTS.size, 0)
        return Counts(*_COUNTS.unpack(data)) if data else Counts()

    def write_counts(self, counts: Counts) -> None:
        os.pwrite(self._counts, _COUNTS.pack(*counts), 0)

    # ---- names -------------------------------------------------------------------------------------

    def note(self, change: NameChange) -> None:
        """Append a change of a name."""
        os.write(self._names, _encode(change) + b"\n")
        self._take(change)

    def note_new(self, name: str) -> None:
        """Record that a file will be created."""
        self.write_synced(self._next, 0)
        self.note(NameChange("make", name, self._next))

    def note_found(self, name: str, size: int) -> None:
        """Record a file that existed, durable, before the ledger began."""
        self.write_synced(self._next, size)
        self.note(NameChange("found", name, self._next))

    def _take(self, change: NameChange) -> None:
        self.changes.append(change)
        names, name = self.names, change.name
        match change.do:
            case "make" | "found":
                names[name] = change.number
                self._next = change.number + 1
            case "rename":
                if name in names:
                    self._gone.append((folder_of(name), names[name]))
                names[name] = names.pop(change.old)
            case "unlink":
                self._gone.append((folder_of(name), names.pop(name)))
            case "folder":
                self._gone = [(folder, number) for folder, number in self._gone if folder != name]
            case "lost":
                names.pop(name, None)

    def undo_what_did_not_happen(self, exists: Callable[[str], bool]) -> None:
        """Remove the last note if the process was killed before it made the change.

        exists: whether a name exists on the disk.
        """
        last = self.changes[-1] if self.changes else None
        if last is None:
            return
        undone = {
            "make": not exists(last.name),
            "rename": bool(last.old) and exists(last.old),
            "unlink": exists(last.name),
        }
        if undone.get(last.do, False):
            before = self.changes[:-1]
            os.ftruncate(self._names, 0)
            self.changes, self.names, self._next, self._gone = [], {}, 1, []
            for change in before:
                self.note(change)

    # ---- contents ----------------------------------------------------------------------------------

    def synced(self, number: Number) -> int:
        """Return the number of durable bytes of a file."""
        data = os.pread(self._sizes, _SIZE.size, number * _SIZE.size)
        return int(_SIZE.unpack(data)[0]) if data else 0

    def write_synced(self, number: Number, size: int) -> None:
        os.pwrite(self._sizes, _SIZE.pack(size), number * _SIZE.size)

    def kept(self, number: Number) -> Path:
        """Return the path at which the content of a removed file is kept."""
        return self._kept / str(number)

    def note_synced(self, folder: str) -> None:
        """Record that a folder was synced, so that names removed from it stay removed."""
        gone = [number for each, number in self._gone if each == folder]
        self.note(NameChange("folder", folder))
        for number in gone:
            self.kept(number).unlink(missing_ok=True)

    def keep_cut(self, number: Number, size: int, taken: bytes) -> None:
        """Save the durable bytes that a truncation to `size` will remove."""
        aside = self._kept / "cut.new"
        aside.write_bytes(_SIZE.pack(size) + taken)
        aside.replace(self._cut(number))

    def cut(self, number: Number) -> tuple[int, bytes] | None:
        """Return the size and the removed bytes of a truncation that is not durable; None if there is none."""
        try:
            data = self._cut(number).read_bytes()
        except FileNotFoundError:
            return None
        return int(_SIZE.unpack_from(data)[0]), data[_SIZE.size :]

    def drop_cut(self, number: Number) -> None:
        """Forget a truncation of this file, if there was one, because it is durable."""
        self._cut(number).unlink(missing_ok=True)

    def _cut(self, number: Number) -> Path:
        return self._kept / f"{number}.cut"

    def write_unwritten(self, number: Number, ranges: Sequence[Range]) -> None:
        """Record ranges that the system could not write; only a truncation ends such a range."""
        aside = self._kept / "unwritten.new"
        aside.write_bytes(b"".join(_RANGE.pack(start, end) for start, end in ranges))
        aside.replace(self._unwritten(number))

    def unwritten(self, number: Number) -> list[Range]:
        """Return the ranges of a file that the system could not write but considers written."""
        try:
            return list(_RANGE.iter_unpack(self._unwritten(number).read_bytes()))
        except FileNotFoundError:
            return []

    def _unwritten(self, number: Number) -> Path:
        return self._kept / f"{number}.unwritten"

    def begin_anew(self) -> None:
        """Begin again: everything on the disk counts as found there. Orders and counts stay."""
        shutil.rmtree(self._kept)
        self._kept.mkdir()
        os.ftruncate(self._names, 0)
        os.ftruncate(self._sizes, 0)
        self.changes, self.names, self._next, self._gone = [], {}, 1, []


def folder_of(name: str) -> str:
    return name.rpartition("/")[0] or "."


def _opened(path: Path, more: int = 0) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | more, 0o644)
