"""Whether this system allows a supervisor: it does once all that a supervisor does, with a child of its own."""

from __future__ import annotations

import errno
import os
import platform
import select
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

from lab.live.supervise import filter as bpf
from lab.live.supervise import kernel, syscalls

PATIENCE_S = 10.0
NEEDED = "Linux 5.19"
"""The first kernel whose seccomp user notifications are not interrupted by signals."""
_YAMA = Path("/proc/sys/kernel/yama/ptrace_scope")


class _Refused(Exception):
    """A step that the system does not allow."""


def why_not(folder: Path) -> str:
    """Return why this system allows no supervisor; "" if it does. folder: for a file of the probe."""
    if platform.system() != "Linux" or syscalls.HERE is None:
        known = " and ".join(syscalls.ARCHITECTURES)
        return f"the supervisor knows Linux on {known}, found {platform.system()} on {platform.machine()}"
    ours, theirs = socket.socketpair()
    child = os.fork()
    if not child:
        ours.close()
        _try(folder / "probe", theirs)
    theirs.close()
    listener = -1
    try:
        listener = _take_listener(ours)
        _answer(listener)
    except _Refused as refused:
        return str(refused)
    finally:
        ours.close()
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        if listener >= 0:
            os.close(listener)
        (folder / "probe").unlink(missing_ok=True)
    return ""


def _try(path: Path, channel: socket.socket) -> NoReturn:
    """In the child: open a file and connect a socket, under the filter."""
    assert syscalls.HERE is not None
    try:
        listener = kernel.install_filter(bpf.program(syscalls.HERE, *bpf.fd_range()))
        socket.send_fds(channel, [b"+"], [listener])
        os.close(listener)
        os.open(path, os.O_RDWR | os.O_CREAT)
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM).connect(("127.0.0.1", 9))
    except OSError as error:
        channel.sendall(f"{error.errno or 0}".encode())
    os._exit(0)


def _take_listener(channel: socket.socket) -> int:
    said, listeners, _, _ = socket.recv_fds(channel, 100, 1)
    if listeners:
        return listeners[0]
    if said == str(errno.EINVAL).encode():
        raise _Refused(f"seccomp user notifications that signals do not interrupt need {NEEDED}, found {os.uname()[2]}")
    if said == str(errno.EBUSY).encode():
        raise _Refused("another supervisor uses seccomp user notifications of this process")
    raise _Refused(f"seccomp: {os.strerror(int(said or b'0'))}")


def _answer(listener: int) -> None:
    """Handle the child's two calls as a supervisor does."""
    call = _next(listener)
    with _step("process_vm_readv"):
        path = kernel.read_path(call.thread, call.arguments[1])
    with _step("seccomp: SECCOMP_IOCTL_NOTIF_ADDFD"):
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        given = call.finish_with_fd(fd, bpf.fd_range()[0], close_on_exec=True)
        os.close(fd)
        if not given:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
    call = _next(listener)
    with _step("pidfd_getfd"):
        os.close(kernel.take_fd(call.thread, call.arguments[0]))


def _next(listener: int) -> kernel.Call:
    stops = select.poll()
    stops.register(listener, select.POLLIN)
    if not stops.poll(PATIENCE_S * 1000) or (call := kernel.receive(listener)) is None:
        raise _Refused("seccomp: no system call of the probe stopped")
    return call


@contextmanager
def _step(what: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        why = f"{what}: {os.strerror(error.errno or 0)}"
        if error.errno in (errno.EPERM, errno.EACCES):
            scope = f"; Yama's ptrace_scope is {_YAMA.read_text().strip()}" if _YAMA.exists() else ""
            why += f" (a container's seccomp profile may forbid it{scope})"
        raise _Refused(why) from None
