"""The kernel's interface for a supervisor, by ctypes: seccomp user notification and access to another process.

See seccomp_unotify(2), process_vm_readv(2) and pidfd_getfd(2). Nothing here needs root: a process may be supervised by
another process of the same user.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import functools
import os
import struct
from dataclasses import dataclass

from lab.live.supervise import syscalls

PAGE_BYTES = 4096
LONGEST_PATH_BYTES = 4096

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER, PR_SET_NO_NEW_PRIVS = 1, 36, 38

_SET_MODE_FILTER = 1
_NEW_LISTENER, _WAIT_KILLABLE_RECV = 1 << 3, 1 << 5
_RECV, _SEND, _ADDFD, _SET_FLAGS = 0xC0502100, 0xC0182101, 0x40182103, 0x40082104
_CONTINUE = 1
_ADDFD_SETFD, _ADDFD_SEND = 1, 2
_SYNC_WAKE_UP = 1

_NOTIFICATION = struct.Struct("<QIIiIQ6Q")
_RESPONSE = struct.Struct("<QqiI")
_ADDED_FD = struct.Struct("<QIIII")
_EMPTY = bytes(_NOTIFICATION.size)


@functools.cache
def _libc() -> ctypes.CDLL:
    """Return the C library; systems without this one import the module too."""
    return ctypes.CDLL(None, use_errno=True)


def _number(name: str) -> int:
    assert syscalls.HERE is not None, "probe() refuses other architectures"
    return syscalls.HERE.numbers[name]


def _system_call(name: str, *arguments: object) -> int:
    """Call the system; raise OSError if that fails."""
    result = int(_libc().syscall(ctypes.c_long(_number(name)), *arguments))
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{name}: {os.strerror(code)}")
    return result


def prctl(option: int, value: int) -> None:
    """See prctl(2)."""
    if _libc().prctl(option, ctypes.c_ulong(value), 0, 0, 0):
        code = ctypes.get_errno()
        raise OSError(code, f"prctl: {os.strerror(code)}")


# ---- the filter ----------------------------------------------------------------------------------


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_char_p))


def install_filter(program: bytes) -> int:
    """Install a BPF program for this process and its descendants; return the file descriptor of its listener.

    Raises:
        OSError: EINVAL: the kernel is older than 5.19, from which on signals do not interrupt a call that the
            supervisor handles. EBUSY: another supervisor supervises this process.
    """
    prctl(PR_SET_NO_NEW_PRIVS, 1)
    flags = _NEW_LISTENER | _WAIT_KILLABLE_RECV
    return _system_call("seccomp", _SET_MODE_FILTER, flags, ctypes.byref(_Program(len(program) // 8, program)))


# ---- notifications -------------------------------------------------------------------------------


@dataclass(slots=True, eq=False)
class Call:
    """A system call that waits for the supervisor. thread: its Linux thread id. arguments: six, unsigned 64 bit."""

    listener: int
    ident: int
    thread: int
    number: int
    arguments: tuple[int, ...]

    @property
    def name(self) -> str:
        return syscalls.names()[self.number]

    def finish(self, value: int) -> None:
        """Let the call return this value, without carrying it out. A negative value is an errno."""
        error = min(value, 0)
        self._send(_RESPONSE.pack(self.ident, max(value, 0), error, 0))

    def pass_on(self) -> None:
        """Let the kernel carry the call out."""
        self._send(_RESPONSE.pack(self.ident, 0, 0, _CONTINUE))

    def finish_with_fd(self, fd: int, number: int | None, *, close_on_exec: bool) -> bool:
        """Copy a file descriptor of the supervisor into the process, and let the call return it.

        Args:
            number: the number that it gets there; None: the lowest free one.

        Returns:
            False if the process does not take this number; the call still waits then.
        """
        flags = _ADDFD_SEND | (_ADDFD_SETFD if number is not None else 0)
        added = _ADDED_FD.pack(self.ident, flags, fd, number or 0, os.O_CLOEXEC if close_on_exec else 0)
        try:
            fcntl.ioctl(self.listener, _ADDFD, added)
        except OSError as error:
            if error.errno in (errno.EBADF, errno.EMFILE):
                return False
            _unless_gone(error)
        return True

    def _send(self, response: bytes) -> None:
        try:
            fcntl.ioctl(self.listener, _SEND, response)
        except OSError as error:
            _unless_gone(error)


def _unless_gone(error: OSError) -> None:
    """Raise the error again, except if it says that the calling thread was killed."""
    if error.errno != errno.ENOENT:
        raise error


def receive(listener: int) -> Call | None:
    """Return the next call; None if its thread was killed meanwhile."""
    buffer = bytearray(_EMPTY)
    try:
        fcntl.ioctl(listener, _RECV, buffer)
    except OSError as error:
        _unless_gone(error)
        return None
    ident, thread, _, number, _, _, *arguments = _NOTIFICATION.unpack(buffer)
    return Call(listener, ident, thread, number, tuple(arguments))


def wake_synchronously(listener: int) -> None:
    """Let the kernel switch between caller and supervisor on one CPU (Linux 6.6); older kernels are only slower."""
    try:
        fcntl.ioctl(listener, _SET_FLAGS, _SYNC_WAKE_UP)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise


# ---- other processes -----------------------------------------------------------------------------


class _Vector(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


def read_memory(thread: int, address: int, size: int) -> bytes:
    """Return up to `size` bytes of a process's memory; fewer if the memory ends before.

    Raises:
        OSError: EFAULT: no such memory. ESRCH: the process is gone. EPERM: the system forbids it.
    """
    buffer = ctypes.create_string_buffer(size)
    local, remote = _Vector(ctypes.addressof(buffer), size), _Vector(address, size)
    one, flags = ctypes.c_ulong(1), ctypes.c_ulong(0)
    got = _system_call("process_vm_readv", thread, ctypes.byref(local), one, ctypes.byref(remote), one, flags)
    return buffer.raw[:got]


def read_path(thread: int, address: int) -> str:
    """Return a path from a process's memory.

    Raises:
        OSError: as read_memory; ENAMETOOLONG.
    """
    found = b""
    while len(found) <= LONGEST_PATH_BYTES:
        # Never beyond a page: the next one may not be mapped.
        part = read_memory(thread, address, PAGE_BYTES - address % PAGE_BYTES)
        text, end, _ = part.partition(b"\0")
        found += text
        if end:
            return os.fsdecode(found)
        address += len(part)
    raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))


def take_fd(process: int, fd: int) -> int:
    """Return a duplicate of another process's file descriptor. process: its process id, not a thread's."""
    pidfd = os.pidfd_open(process)
    try:
        return _system_call("pidfd_getfd", pidfd, fd, 0)
    finally:
        os.close(pidfd)


def rename(old: str, new: str, flags: int) -> None:
    """See renameat2(2)."""
    here = ctypes.c_int(-100)
    _system_call("renameat2", here, os.fsencode(old), here, os.fsencode(new), ctypes.c_uint(flags))
