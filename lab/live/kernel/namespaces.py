"""User and network namespaces of this process, by system calls. Linux only; they need no root.

A network namespace has interfaces, addresses, ports and a packet filter of its own. The kernel removes it, with all of
these, when no process, socket or descriptor refers to it any more. Nothing is mounted and no file is written.
"""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from lab.steps.machine import RunFailed

NEWUSER: Final = 0x10000000
NEWNET: Final = 0x40000000
CAP_NET_ADMIN: Final = 12
CAPABILITY_VERSION: Final = 0x20080522
PR_CAP_AMBIENT: Final = 47
RAISE, CLEAR_ALL = 2, 4
PRESENT: Final = "/proc/thread-self/ns/net"
TOOLS_PATH: Final = os.pathsep.join((os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"))
"""Users' own PATH often lacks the directories of the network tools."""

_has_entered = False


def has_entered() -> bool:
    """Return whether enter() has been called in this process."""
    return _has_entered


def enter() -> None:
    """Move this process, which must have a single thread, into a new network namespace that it may change.

    A process without the right to do so first moves into a new user namespace, where it keeps its user and group and
    has all capabilities. Programs that it starts have none of them, unless the user is root.

    Raises:
        OSError: this system does not allow it.
    """
    global _has_entered
    try:
        _call("unshare", NEWNET)
    except PermissionError:
        user, group = os.geteuid(), os.getegid()
        try:
            _call("unshare", NEWUSER | NEWNET)
        except OSError as error:
            reason = f"{error.strerror} (see sysctl user.max_user_namespaces)"
            raise OSError(error.errno, reason, "unshare of user and network") from None
        for name, line in (("setgroups", "deny"), ("uid_map", f"{user} {user} 1"), ("gid_map", f"{group} {group} 1")):
            write(f"/proc/self/{name}", line)
    _let_tools_inherit()
    _has_entered = True


class Namespace:
    """A network namespace. Inside a `with` block of it, this thread opens sockets and starts programs in it.

    The block must not await: the other tasks of the thread would be in the namespace too.
    """

    def __init__(self) -> None:
        self._home = os.open(PRESENT, os.O_RDONLY)
        _call("unshare", NEWNET)
        self.fd = os.open(PRESENT, os.O_RDONLY)
        _call("setns", self._home, NEWNET)

    def __enter__(self) -> None:
        _call("setns", self.fd, NEWNET)

    def __exit__(self, *_: object) -> None:
        _call("setns", self._home, NEWNET)


def tool(*command: str, given: str = "", fds: Sequence[int] = ()) -> str:
    """Run a network tool, with the right to change the present namespace; return its output.

    Args:
        given: its standard input.
        fds: descriptors that it inherits.

    Raises:
        RunFailed: it is not installed or has failed; quotes what it said.
    """
    program = shutil.which(command[0], path=TOOLS_PATH)
    if program is None:
        raise RunFailed(f"the program {command[0]} is not installed")
    _ambient(RAISE, CAP_NET_ADMIN)
    try:
        done = subprocess.run(
            [program, *command[1:]], input=given, text=True, capture_output=True, check=False, pass_fds=fds
        )
    finally:
        _ambient(CLEAR_ALL, 0)
    if done.returncode:
        raise RunFailed(f"{' '.join(command)}: {' '.join(done.stderr.split())}")
    return done.stdout


def _ambient(action: int, capability: int) -> None:
    """Change the capabilities that programs started from now on get, whatever their user."""
    _call("prctl", PR_CAP_AMBIENT, *map(ctypes.c_ulong, (action, capability, 0, 0)))


def write(path: str, text: str) -> None:
    """Write a file of /proc. Raises OSError with the path also where closing the file fails."""
    try:
        Path(path).write_text(text)
    except OSError as error:
        raise OSError(error.errno, error.strerror, path) from None


def explained(error: OSError | RunFailed) -> str:
    """Return what failed, a file or a system call, and why."""
    return f"{error.filename}: {error.strerror}" if isinstance(error, OSError) and error.filename else str(error)


class _Header(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _Set(ctypes.Structure):
    """32 of the capabilities of a process."""

    _fields_ = (("effective", ctypes.c_uint32), ("permitted", ctypes.c_uint32), ("inheritable", ctypes.c_uint32))


def _let_tools_inherit() -> None:
    """Make CAP_NET_ADMIN inheritable, without which the kernel does not let tool() raise it as ambient."""
    header, sets = _Header(CAPABILITY_VERSION, 0), (_Set * 2)()
    _call("capget", ctypes.byref(header), sets)
    sets[0].inheritable |= 1 << CAP_NET_ADMIN
    _call("capset", ctypes.byref(header), sets)


def _call(name: str, *arguments: Any) -> None:
    """Make a system call by libc. Raises OSError."""
    function = getattr(ctypes.CDLL(None, use_errno=True), name, None)
    if function is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS), name)
    if function(*arguments):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), name)
