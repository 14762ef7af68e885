"""One node's disk, as its program's system calls change it: which of it is durable, and faults by order.

Each call that may change a data file stops here before it happens. The supervisor opens files and changes names itself,
so that it knows the result and the order of these changes. The kernel carries out writes and syncs after their stop.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from random import Random
from typing import NamedTuple

from lab.live.supervise.contents import Tail
from lab.live.supervise.kernel import Call
from lab.live.supervise.names import Names
from lab.live.supervise.naming import Naming
from lab.live.supervise.openfiles import OpenFiles
from lab.live.supervise.opening import Opening
from lab.live.supervise.processes import Paths
from lab.live.supervise.state import State
from lab.live.supervise.syncing import Syncing
from lab.live.supervise.writing import Writing
from lab.steps.orders import Counts, Orders

MOST_SHOWN = 40
"""Changes of names that the result of a power loss lists."""


class Lost(NamedTuple):
    """The result of a power loss.

    unsynced_bytes: bytes that were not durable. lost_bytes: those of them that did not survive.
    unsynced_names: changes of names that were not durable. lost_names: those of them that were undone.
    names: at most MOST_SHOWN of the undone changes.
    """

    unsynced_bytes: int
    lost_bytes: int
    unsynced_names: int
    lost_names: int
    names: tuple[str, ...]


class Disk:
    """See the module.

    Args:
        paths: which files are data files. All others are left alone.
        kept: see Names.
        numbers: see OpenFiles.
        writeback_s: see Syncing.
        die: kills the program.
    """

    def __init__(
        self, paths: Paths, kept: Path, numbers: tuple[int, int], writeback_s: float, die: Callable[[], None]
    ) -> None:
        files = OpenFiles(paths, numbers)
        self._state = State(paths, files, Names(kept, files.freed), die)
        self._syncing = Syncing(self._state, writeback_s)
        self.tick = self._syncing.tick

    @property
    def problems(self) -> list[str]:
        """What the supervisor could not follow."""
        return self._state.problems

    @property
    def handlers(self) -> dict[str, Callable[[Call], None]]:
        """Name of a system call -> what handles it. An OSError of a handler is the result of the call."""
        opening, writing, syncing, naming = (
            Opening(self._state),
            Writing(self._state),
            self._syncing,
            Naming(self._state),
        )
        return {
            "open": opening.open,
            "openat": opening.openat,
            "creat": opening.creat,
            "close": opening.close,
            "dup": opening.dup,
            "fcntl": opening.fcntl,
            "write": writing.write,
            "pwrite64": writing.pwrite,
            "writev": writing.writev,
            "pwritev": writing.pwritev,
            "pwritev2": writing.pwritev2,
            "sendfile": writing.sendfile,
            "splice": writing.splice,
            "copy_file_range": writing.splice,
            "ftruncate": writing.ftruncate,
            "truncate": writing.truncate,
            "fallocate": writing.fallocate,
            "mmap": opening.mmap,
            "fsync": syncing.sync_file,
            "fdatasync": syncing.sync_file,
            "sync": syncing.sync_all,
            "syncfs": syncing.sync_all,
            "msync": syncing.msync,
            "rename": naming.rename,
            "renameat": naming.renameat,
            "renameat2": naming.renameat,
            "unlink": naming.unlink,
            "unlinkat": naming.unlinkat,
            "rmdir": naming.rmdir,
            "mkdir": naming.mkdir,
            "mkdirat": naming.mkdirat,
            "link": naming.link,
            "linkat": naming.linkat,
            "symlink": naming.symlink,
            "symlinkat": naming.symlinkat,
        }

    # ---- orders ------------------------------------------------------------------------------------

    def order(self, orders: Orders) -> None:
        """Obey these orders from now on. The orders for clocks are not for the disk."""
        self._state.orders = orders

    def counts(self) -> Counts:
        """Return how often orders took effect. No clock is ever misread."""
        tally = self._state.tally
        return Counts(tally.operations, tally.appended, tally.synced, tally.refused, tally.failed, tally.slowed)

    def durable_prefixes(self) -> dict[str, int]:
        """Return how many bytes at the start of each file are durable, by its name below the data directory."""
        root = self._state.paths.root
        return {os.path.relpath(path, root): content.durable_prefix() for path, content in self._state.known_files()}

    @property
    def wakes_after_s(self) -> float | None:
        """See Syncing."""
        return self._syncing.wakes_after_s

    # ---- after the program has ended ---------------------------------------------------------------

    def close_files(self) -> None:
        """No process has a data file open any more."""
        self._state.files.close_all()
        self._syncing.forget()

    def begin_anew(self) -> None:
        """Everything that is on the disk now is durable."""
        self._state.names.commit()
        self._state.files.forget_contents()

    def lose_power(self, tail: Tail, seed: int, keep: Mapping[str, int]) -> Lost:
        """Change the files of a dead program to what a power loss leaves.

        Args:
            keep: file name below the data directory -> the number of its first bytes that survive, whatever the tail.
                If there is one, all names survive.
        """
        rng = Random(seed)
        if keep:
            self._state.names.commit()
        unsynced_names = self._state.names.pending
        names = self._state.names.lose(tail, rng)
        unsynced = lost = 0
        for path, content in list(self._state.known_files()):
            name = os.path.relpath(path, self._state.paths.root)
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
            try:
                loss = content.lose(fd, tail, rng, keep=keep.get(name))
            finally:
                os.close(fd)
            unsynced, lost = unsynced + loss.unsynced_bytes, lost + loss.lost_bytes
        self.begin_anew()
        shown = tuple(name.replace(self._state.paths.root + "/", "") for name in names[-MOST_SHOWN:])
        return Lost(unsynced, lost, unsynced_names, len(names), shown)
