"""The disk of a node's machine, and what is done to the files on it: the same on real files and in virtual time."""

from __future__ import annotations

import random
from abc import abstractmethod
from collections.abc import Iterable
from typing import Protocol

from lab.course.damage import draw_rot, file_name, lost_place
from lab.steps.damage import Rot
from nodeproc.core.messages import NodeId
from nodeproc.disk import archive, checkpoint, recovery, wal


class NodeFiles(Protocol):
    """What a node keeps, by the names that it has for them (nodeproc.disk.files)."""

    def names(self) -> list[str]: ...

    def contents(self, names: Iterable[str]) -> dict[str, bytes]:
        """Those of these that are there."""

    def change(self, rot: Rot) -> None:
        """One byte becomes another by itself."""

    def remove(self, name: str) -> None:
        """A file is gone, durably."""

    def replace(self, contents: dict[str, bytes]) -> None:
        """These are all that there is from now on, durably."""

    def wipe(self) -> int:
        """All are gone, durably; returns their bytes."""


class MachineDisk:
    """Half of a lab.steps.machine.Machine: the other half is a process, real or simulated."""

    node: NodeId

    def __init__(self) -> None:
        self._copy: dict[str, bytes] | None = None
        self._rotten: list[Rot] = []
        """What old rot has changed, under a node that may run."""

    @property
    @abstractmethod
    def files(self) -> NodeFiles:
        """Of the disk that the machine has now."""

    def rot(self, what: str, rng: random.Random) -> Rot | None:
        """See Machine."""
        # The checkpoint first: what a node that runs has in its other files by then is at least what it says.
        names = [checkpoint.NAME, archive.HEADERS, archive.INDEX, recovery.lines_name(self.node)]
        if what in ("wal", "last"):
            names += [name for name in self.files.names() if name.startswith(wal.FOLDER + "/") and ".wal" in name]
        rot = draw_rot(self.files.contents(names), what, self.node, rng)
        if rot is not None:
            self.files.change(rot)
            if what.startswith("old_"):
                self._rotten.append(rot)
        return rot

    @property
    def rotten(self) -> list[str]:
        """Bytes that old rot has changed and nobody has repaired yet."""
        found = self.files.contents({rot.name for rot in self._rotten})
        return [str(rot) for rot in self._rotten if found.get(rot.name, b"")[rot.at : rot.at + 1] == bytes([rot.after])]

    def lose(self, what: str) -> tuple[str, str]:
        """See Machine."""
        name = file_name(what, self.node, self.files.names())
        if not name:
            return "", ""
        self.files.remove(name)
        return name, lost_place(name)

    def take_copy(self) -> int:
        """Copy all files as they are now; returns bytes."""
        self._copy = self.files.contents(self.files.names())
        return sum(map(len, self._copy.values()))

    def restore(self) -> str:
        """See Machine."""
        contents = self.files.contents(self.files.names())
        if self._copy is None or self._copy == contents:
            return ""
        self.files.replace(self._copy)
        return f"{sum(map(len, self._copy.values()))} bytes instead of {sum(map(len, contents.values()))}"

    def wipe(self) -> int:
        """See Machine."""
        return self.files.wipe()
