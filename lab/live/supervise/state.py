"""The state of one node's disk that all its calls share, and the orders that they obey."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from lab.live.supervise.contents import Content
from lab.live.supervise.kernel import Call
from lab.live.supervise.names import Names
from lab.live.supervise.openfiles import OpenFiles
from lab.live.supervise.processes import AT_FDCWD, Paths
from lab.steps.orders import NEVER, Orders


@dataclass(slots=True)
class Tally:
    """See lab.steps.orders.Counts."""

    operations: int = 0
    appended: int = 0
    synced: int = 0
    refused: int = 0
    failed: int = 0
    slowed: int = 0


@dataclass(slots=True, eq=False)
class State:
    """The state of one node's disk.

    die: kills the program.
    has_mappings: a data file was mapped for writing.
    problems: what the supervisor could not follow.
    """

    paths: Paths
    files: OpenFiles
    names: Names
    die: Callable[[], None]
    orders: Orders = field(default_factory=Orders)
    tally: Tally = field(default_factory=Tally)
    has_mappings: bool = False
    problems: list[str] = field(default_factory=list)

    def path(self, call: Call, argument: int = 0) -> str:
        """Return the path that is this argument of a call without a folder's file descriptor."""
        return self.paths.argument(call.thread, AT_FDCWD, call.arguments[argument])

    def dies(self) -> bool:
        """Return whether to kill the program in the middle of this operation."""
        return self.orders.die_at != NEVER and self.tally.operations >= self.orders.die_at

    def cut_at(self, path: str, size: int) -> None:
        """A file will be truncated or extended to this size."""
        with open_to_read(path) as fd:
            self.cut(self.files.content(os.fstat(fd)), fd, size)

    def cut(self, content: Content, fd: int, size: int) -> None:
        """As cut_at. fd: the file, open for reading."""
        self.tally.operations += 1
        content.touch()
        if size < content.durable:
            content.about_to_write(fd, size, content.durable - size)
        if self.dies():
            self.die()

    def known_files(self) -> Iterator[tuple[str, Content]]:
        """Yield the path and the content of each data file that the program has opened for writing."""
        for folder, folders, names in os.walk(self.paths.root):
            folders.sort()
            for name in sorted(names):
                path = f"{folder}/{name}"
                if not self.paths.is_data(path):
                    continue
                with contextlib.suppress(FileNotFoundError):
                    found = os.lstat(path)
                    content = self.files.known(found) if stat.S_ISREG(found.st_mode) else None
                    if content is not None:
                        yield path, content


@contextlib.contextmanager
def open_to_read(path: str) -> Iterator[int]:
    """Open a file for reading; yield its file descriptor."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)
