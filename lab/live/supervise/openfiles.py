"""The data files that a program has open, each under a number from FIRST_FD on.

The supervisor opens a data file itself and copies it into the program at a high number, so that the filter knows data
files by their numbers. The supervisor keeps a duplicate; one that it has given up is taken from the process again.
"""

from __future__ import annotations

import fcntl
import os
import stat
from dataclasses import dataclass

from lab.live.supervise.contents import Content, Key
from lab.live.supervise.kernel import Call, take_fd
from lab.live.supervise.processes import Paths, status_of

MOST_HANDLES = 4096
"""Duplicates that the supervisor holds at a time."""
INT = 0xFFFFFFFF
"""Mask of a 32 bit argument."""


@dataclass(slots=True, eq=False)
class Handle:
    """An open data file. fd: the supervisor's duplicate. appends: O_APPEND. syncs: O_SYNC or O_DSYNC."""

    fd: int
    content: Content
    appends: bool
    syncs: bool
    _readable: int = -1

    @property
    def readable(self) -> int:
        """The file, open for reading."""
        if self._readable < 0:
            self._readable = os.open(f"/proc/self/fd/{self.fd}", os.O_RDONLY | os.O_CLOEXEC)
        return self._readable

    def close(self) -> None:
        os.close(self.fd)
        if self._readable >= 0:
            os.close(self._readable)


class OpenFiles:
    """The open data files of one program and its descendants, and the contents of all data files.

    Args:
        numbers: the first number for data files, and the end of these numbers.
    """

    def __init__(self, paths: Paths, numbers: tuple[int, int]) -> None:
        self._paths = paths
        self._contents: dict[Key, Content] = {}
        self._handles: dict[int, Handle] = {}
        self._first, self._end = numbers
        self._next, self._wrapped = self._first, False

    # ---- contents ----------------------------------------------------------------------------------

    def content(self, found: os.stat_result) -> Content:
        """Return what is known of a file; a file that is new to the supervisor is durable as it is."""
        key = found.st_dev, found.st_ino
        if key not in self._contents:
            self._contents[key] = Content(found.st_size)
        return self._contents[key]

    def known(self, found: os.stat_result) -> Content | None:
        return self._contents.get((found.st_dev, found.st_ino))

    def created(self, found: os.stat_result) -> None:
        """The program has created this file; none of it is durable."""
        self._contents[found.st_dev, found.st_ino] = Content(0)

    def freed(self, key: Key) -> None:
        """The file's last name was removed; its inode may become another file."""
        self._contents.pop(key, None)

    def forget_contents(self) -> None:
        """All files are durable as they are."""
        self._contents.clear()

    # ---- numbers -----------------------------------------------------------------------------------

    def give(self, call: Call, fd: int, *, close_on_exec: bool) -> bool:
        """Let a call return this data file, under a number that the filter knows. The file belongs to this object then.

        Returns:
            False if the program has lowered its limit of open files. It gets the file under a low number; its writes
            are not seen, but its syncs are.
        """
        handle = self._handle(fd)
        number = self._free_number(call.thread)
        if call.finish_with_fd(fd, number, close_on_exec=close_on_exec):
            self._remember(number, handle)
            return True
        call.finish_with_fd(fd, None, close_on_exec=close_on_exec)
        handle.close()
        return False

    def of(self, call: Call, fd: int) -> Handle | None:
        """Return the open data file with this number; None if it is no data file."""
        number = fd & INT
        handle = self._handles.get(number)
        if handle is None and self._first <= number < self._end:
            return self._taken(call, number)
        return handle

    def close(self, fd: int) -> None:
        """A process closes this number. If it has forked, others may go on using theirs: see _taken."""
        handle = self._handles.pop(fd & INT, None)
        if handle is not None:
            handle.close()

    def close_all(self) -> None:
        for handle in self._handles.values():
            handle.close()
        self._handles.clear()

    def _handle(self, fd: int) -> Handle:
        flags = fcntl.fcntl(fd, fcntl.F_GETFL)
        return Handle(fd, self.content(os.fstat(fd)), bool(flags & os.O_APPEND), bool(flags & os.O_DSYNC))

    def _taken(self, call: Call, number: int) -> Handle | None:
        """Duplicate an open file of the process that the supervisor does not hold any more."""
        fd = take_fd(int(status_of(call.thread)["Tgid"]), number)
        if not stat.S_ISREG(os.fstat(fd).st_mode) or not self._paths.has_content(os.readlink(f"/proc/self/fd/{fd}")):
            os.close(fd)
            return None
        handle = self._handle(fd)
        self._remember(number, handle)
        return handle

    def _remember(self, number: int, handle: Handle) -> None:
        self._handles[number] = handle
        if len(self._handles) > MOST_HANDLES:
            self._handles.pop(next(iter(self._handles))).close()

    def _free_number(self, thread: int) -> int:
        while True:
            number, self._next = self._next, self._next + 1
            if self._next == self._end:
                self._next, self._wrapped = self._first, True
            if number not in self._handles and not (self._wrapped and os.path.lexists(f"/proc/{thread}/fd/{number}")):
                return number
