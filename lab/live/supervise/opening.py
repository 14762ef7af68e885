"""System calls that open, close and map data files."""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat

from lab.live.supervise.kernel import Call
from lab.live.supervise.openfiles import INT
from lab.live.supervise.processes import umask_of
from lab.live.supervise.state import State


class Opening:
    """See the module."""

    def __init__(self, state: State) -> None:
        self._state = state

    def openat(self, call: Call) -> None:
        folder, path, flags, mode, *_ = call.arguments
        self._open(call, self._state.paths.argument(call.thread, folder, path), flags & INT, mode)

    def open(self, call: Call) -> None:
        _, flags, mode, *_ = call.arguments
        self._open(call, self._state.path(call), flags & INT, mode)

    def creat(self, call: Call) -> None:
        self._open(call, self._state.path(call), os.O_CREAT | os.O_WRONLY | os.O_TRUNC, call.arguments[1])

    def _open(self, call: Call, path: str, flags: int, mode: int) -> None:
        is_unnamed = flags & os.O_TMPFILE == os.O_TMPFILE
        if not (self._state.paths.has_folder(path) if is_unnamed else self._state.paths.has_content(path)):
            call.pass_on()
            return
        before = None
        if not is_unnamed:
            with contextlib.suppress(FileNotFoundError):
                before = os.stat(path)
            if (before is None and not flags & os.O_CREAT) or (before is not None and not stat.S_ISREG(before.st_mode)):
                call.pass_on()
                return
        if before is not None and flags & os.O_TRUNC:
            self._state.cut_at(path, 0)
        with umask_of(call.thread):
            fd = os.open(path, flags | os.O_CLOEXEC, mode & 0o7777)
        if before is None:
            self._state.files.created(os.fstat(fd))
            if not is_unnamed:
                self._state.names.created(os.path.realpath(path))
        self._give(call, fd, close_on_exec=bool(flags & os.O_CLOEXEC))

    def _give(self, call: Call, fd: int, *, close_on_exec: bool) -> None:
        if not self._state.files.give(call, fd, close_on_exec=close_on_exec):
            self._state.problems.append("the program's limit of open files is too low to follow its writes")

    def close(self, call: Call) -> None:
        call.pass_on()
        self._state.files.close(call.arguments[0])

    def dup(self, call: Call) -> None:
        self._duplicate(call, close_on_exec=False)

    def fcntl(self, call: Call) -> None:
        """Duplicate: the filter stops only the commands F_DUPFD and F_DUPFD_CLOEXEC."""
        self._duplicate(call, close_on_exec=call.arguments[1] & INT == fcntl.F_DUPFD_CLOEXEC)

    def _duplicate(self, call: Call, *, close_on_exec: bool) -> None:
        """Give the duplicate a number that the filter knows too."""
        handle = self._state.files.of(call, call.arguments[0])
        if handle is None:
            call.pass_on()
        else:
            self._give(call, os.dup(handle.fd), close_on_exec=close_on_exec)

    def mmap(self, call: Call) -> None:
        """A writable, shared mapping."""
        handle = self._state.files.of(call, call.arguments[4])
        if handle is not None and not handle.content.is_mapped:
            handle.content.map(handle.readable)
            self._state.has_mappings = True
        call.pass_on()
