"""The disk of a node's machine, and what faults do to the files on it, in both worlds."""

from __future__ import annotations

import fnmatch
import random
from abc import abstractmethod
from collections.abc import Iterable
from typing import Protocol

from lab.course.damage import draw_rot, draw_rot_of_data, file_name, lost_place
from lab.steps.damage import Rot
from nodeproc.core.messages import NodeId
from nodeproc.disk import archive, checkpoint, recovery, wal


class NodeFiles(Protocol):
    """A node's files under the names that nodeproc.disk.files gives them. Every change is durable at once."""

    def all_names(self) -> list[str]: ...

    def contents(self, names: Iterable[str]) -> dict[str, bytes]:
        """Return the content of those of these files that exist."""

    def rot(self, name: str, at: int, value: int) -> None:
        """Change one byte."""

    def remove(self, name: str) -> None:
        """Delete a file."""

    def replace(self, contents: dict[str, bytes]) -> None:
        """Replace all files by these."""


class MachineDisk:
    """The part of a lab.steps.machine.Machine that changes files; a world adds the process, real or simulated."""

    def __init__(self, node: NodeId) -> None:
        self.node = node
        self._copy: dict[str, bytes] | None = None
        self._rotten: dict[tuple[str, int], Rot] = {}
        """Bytes that an `old_*` rot has changed, by file and offset: from their first value to their last."""

    @property
    @abstractmethod
    def files(self) -> NodeFiles:
        """The files of the machine's present disk."""

    def rot(self, what: str, rng: random.Random, file: str = "") -> Rot | None:
        """See Machine."""
        rot = self._draw_rot(what, rng, file or "*")
        if rot is not None:
            self.files.rot(rot.name, rot.at, rot.after)
            if what.startswith("old_"):
                place = rot.name, rot.at
                first = self._rotten.get(place, rot)
                self._rotten[place] = rot._replace(before=first.before)
        return rot

    def _draw_rot(self, what: str, rng: random.Random, pattern: str) -> Rot | None:
        if what == "data":
            return draw_rot_of_data(self.files.contents(fnmatch.filter(self.files.all_names(), pattern)), rng)
        # The checkpoint is read first: if the node runs, its other files then hold at least what the checkpoint says.
        names = [checkpoint.NAME, archive.HEADERS, archive.INDEX, recovery.lines_name(self.node)]
        if what in ("wal", "last"):
            names += [name for name in self.files.all_names() if name.startswith(wal.FOLDER + "/") and ".wal" in name]
        return draw_rot(self.files.contents(names), what, self.node, rng)

    @property
    def rotten(self) -> list[str]:
        """The bytes that an `old_*` rot has changed and that are not repaired yet."""
        changed = [rot for rot in self._rotten.values() if rot.before != rot.after]
        found = self.files.contents({rot.name for rot in changed}) if changed else {}
        return [str(rot) for rot in changed if found.get(rot.name, b"")[rot.at : rot.at + 1] == bytes([rot.after])]

    def lose(self, what: str) -> tuple[str, str]:
        """See Machine."""
        names = self.files.all_names()
        name = file_name(what, self.node, names)
        if not name:
            return "", ""
        self.files.remove(name)
        is_empty = not any(self.files.contents(each for each in names if each != name).values())
        return name, "" if is_empty else lost_place(name)

    def take_copy(self) -> int:
        """Copy all files as they are now; return the number of bytes."""
        self._copy = self.files.contents(self.files.all_names())
        return sum(map(len, self._copy.values()))

    def restore(self) -> str:
        """See Machine."""
        contents = self.files.contents(self.files.all_names())
        if self._copy is None or self._copy == contents:
            return ""
        self.files.replace(self._copy)
        return f"{sum(map(len, self._copy.values()))} bytes instead of {sum(map(len, contents.values()))}"
