"""System calls that change the contents of data files."""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

from lab.live.supervise.kernel import Call, read_memory
from lab.live.supervise.openfiles import Handle
from lab.live.supervise.state import State
from lab.steps.orders import NEVER

_KEEP_SIZE, _PUNCH_HOLE, _ZERO_RANGE = 1, 2, 16
_RWF_SYNCS, _RWF_APPEND = 2 | 4, 16
_CURRENT_POSITION = 2**64 - 1
_VECTOR = struct.Struct("=QQ")
_MOST_VECTORS = 1024

Parts: TypeAlias = Sequence[tuple[int, int]]
"""(address, size) of the data of a write, in the program's memory."""


class _Write(NamedTuple):
    """A write that a program asks for.

    at: None: at the file's position.
    parts: empty if the data does not stand in the program's memory.
    """

    fd: int
    at: int | None
    size: int
    parts: Parts
    appends: bool = False
    syncs: bool = False


class Writing:
    """See the module."""

    def __init__(self, state: State) -> None:
        self._state = state

    def write(self, call: Call) -> None:
        fd, address, size, *_ = call.arguments
        self._write(call, _Write(fd, None, size, ((address, size),)))

    def pwrite(self, call: Call) -> None:
        fd, address, size, at, *_ = call.arguments
        self._write(call, _Write(fd, at, size, ((address, size),)))

    def writev(self, call: Call) -> None:
        parts = _vectors(call)
        self._write(call, _Write(call.arguments[0], None, _size(parts), parts))

    def pwritev(self, call: Call) -> None:
        parts = _vectors(call)
        self._write(call, _Write(call.arguments[0], call.arguments[3], _size(parts), parts))

    def pwritev2(self, call: Call) -> None:
        fd, _, _, at, _, flags = call.arguments
        parts, where = _vectors(call), None if at == _CURRENT_POSITION else at
        self._write(call, _Write(fd, where, _size(parts), parts, bool(flags & _RWF_APPEND), bool(flags & _RWF_SYNCS)))

    def sendfile(self, call: Call) -> None:
        self._write(call, _Write(call.arguments[0], None, call.arguments[3], ()))

    def splice(self, call: Call) -> None:
        """splice and copy_file_range, whose arguments are the same."""
        _, _, fd, address, size, _ = call.arguments
        at = int.from_bytes(read_memory(call.thread, address, 8), "little") if address else None
        self._write(call, _Write(fd, at, size, ()))

    def _write(self, call: Call, write: _Write) -> None:
        handle = self._state.files.of(call, write.fd)
        if handle is None:
            call.pass_on()
            return
        content, tally, orders = handle.content, self._state.tally, self._state.orders
        tally.operations += 1
        syncs = write.syncs or handle.syncs
        if orders.fail_append or (syncs and orders.fail_sync):
            tally.failed += 1
            call.finish(-errno.EIO)
            return
        if write.appends or handle.appends:
            at = os.fstat(handle.fd).st_size
        elif write.at is None:
            at = os.lseek(handle.fd, 0, os.SEEK_CUR)
        else:
            at = write.at
        if at < content.durable or content.unwritten:
            content.about_to_write(handle.readable, at, write.size)
        content.touch()
        if self._state.dies():
            _write_part(call, handle, write, at, write.size // 2)
            self._state.die()
        elif orders.room != NEVER and not self._fits(handle, at, write.size):
            self._write_what_fits(call, handle, write, at)
        else:
            if syncs:
                content.sync_range(handle.readable, at, write.size)
            call.pass_on()

    def _fits(self, handle: Handle, at: int, size: int) -> bool:
        """Return whether the disk has room for a write; if so, take the room."""
        grows = max(0, at + size - max(at, os.fstat(handle.fd).st_size))
        if grows > self._state.orders.room - self._state.tally.appended:
            return False
        self._state.tally.appended += grows
        return True

    def _write_what_fits(self, call: Call, handle: Handle, write: _Write, at: int) -> None:
        """Carry out a write to a full disk: what fits is written, and ENOSPC follows when nothing fits any more."""
        tally = self._state.tally
        tally.refused += 1
        overwritten = max(0, os.fstat(handle.fd).st_size - at)
        fits = overwritten + max(0, self._state.orders.room - tally.appended)
        written = _write_part(call, handle, write, at, fits)
        tally.appended += max(0, written - overwritten)
        call.finish(written or -errno.ENOSPC)

    def ftruncate(self, call: Call) -> None:
        fd, size, *_ = call.arguments
        handle = self._state.files.of(call, fd)
        if handle is not None:
            self._state.cut(handle.content, handle.readable, size)
        call.pass_on()

    def truncate(self, call: Call) -> None:
        path = self._state.path(call)
        if self._state.paths.has_content(path):
            self._state.cut_at(path, call.arguments[1])
        call.pass_on()

    def fallocate(self, call: Call) -> None:
        fd, mode, at, size, *_ = call.arguments
        handle = self._state.files.of(call, fd)
        if handle is None:
            call.pass_on()
            return
        content = handle.content
        content.touch()
        if mode & ~_KEEP_SIZE:  # It changes bytes: of its range, or, where a range is taken out, of all that follows.
            only_range = mode & (_PUNCH_HOLE | _ZERO_RANGE)
            content.about_to_write(handle.readable, at, size if only_range else max(0, content.durable - at))
        elif self._state.orders.room != NEVER and not self._fits(handle, at, size):
            self._state.tally.refused += 1
            call.finish(-errno.ENOSPC)
            return
        call.pass_on()


def _vectors(call: Call) -> Parts:
    """Return the parts of a vectored write."""
    _, address, count, *_ = call.arguments
    return list(_VECTOR.iter_unpack(read_memory(call.thread, address, min(count, _MOST_VECTORS) * _VECTOR.size)))


def _size(parts: Parts) -> int:
    return sum(size for _, size in parts)


def _write_part(call: Call, handle: Handle, write: _Write, at: int, size: int) -> int:
    """Write the first bytes of the program's data in its place; return their number."""
    data = b"".join(read_memory(call.thread, address, min(length, size)) for address, length in write.parts if length)
    if write.at is None and not write.appends:
        return os.write(handle.fd, data[:size])
    return os.pwrite(handle.fd, data[:size], at)
