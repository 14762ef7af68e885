"""Starting programs under the filter, and ending them with all their descendants."""

from __future__ import annotations

import contextlib
import os
import resource
import select
import signal
import socket
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NoReturn

import psutil

from lab.live.supervise import kernel
from lab.live.supervise.orders import Ended, Start

EXIT_NOT_STARTED = 127
"""Exit code if a program cannot be started, as in shells."""


class NotStarted(Exception):
    """A program could not be started under the filter."""


@dataclass(slots=True, eq=False)
class Program:
    """A started program. listener: of its filter. pidfd: readable once it has ended."""

    pid: int
    listener: int
    pidfd: int

    def reap(self) -> Ended:
        """Wait for its exit; kill what it has left behind in its process group."""
        os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        _, status, usage = os.wait4(self.pid, 0)
        os.close(self.pidfd)
        return Ended(os.waitstatus_to_exitcode(status), usage.ru_utime + usage.ru_stime, usage.ru_oublock)


def start(order: Start, filter_program: bytes, end_fd: int) -> Program:
    """Start a program in a process group of its own.

    Args:
        end_fd: the program's limit of open files.

    Raises:
        NotStarted: the system refuses the filter.
    """
    ours, theirs = socket.socketpair()
    supervisor = os.getpid()
    pid = os.fork()
    if not pid:
        ours.close()
        _become(order, filter_program, end_fd, theirs, supervisor)
    theirs.close()
    with ours:
        said, listeners, _, _ = socket.recv_fds(ours, 4096, 1)
    if not listeners:
        os.waitpid(pid, 0)
        raise NotStarted(said.decode())
    return Program(pid, listeners[0], os.pidfd_open(pid))


def _become(order: Start, filter_program: bytes, end_fd: int, channel: socket.socket, supervisor: int) -> NoReturn:
    """In the new process: become the program."""
    try:
        os.setpgid(0, 0)
        for each in (signal.SIGPIPE, signal.SIGINT, signal.SIGTERM, signal.SIGXFSZ):
            signal.signal(each, signal.SIG_DFL)
        kernel.prctl(kernel.PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != supervisor:
            os._exit(EXIT_NOT_STARTED)
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (end_fd, hard))
        _redirect_output(order.output)
        os.chdir(order.directory)
        environment: Mapping[str, str] = os.environ if order.environment is None else order.environment
        listener = kernel.install_filter(filter_program)
        socket.send_fds(channel, [b"+"], [listener])
        os.close(listener)
    except OSError as error:
        channel.sendall(str(error).encode())
        os._exit(EXIT_NOT_STARTED)
    try:
        os.execvpe(order.command[0], list(order.command), dict(environment))
    except OSError as error:
        print(f"can't start {order.command[0]}: {error.strerror}", file=sys.stderr, flush=True)
    os._exit(EXIT_NOT_STARTED)


def _redirect_output(output: str) -> None:
    nothing = os.open(os.devnull, os.O_RDONLY)
    log = os.open(output, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    os.dup2(nothing, 0)
    os.dup2(log, 1)
    os.dup2(log, 2)


def kill_descendants() -> None:
    """Kill all descendants of this process and wait until none runs. Their exit codes can still be asked for.

    This process must be a child subreaper, so that no descendant gets away.
    """
    while running := _running_descendants():
        for process in running:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        for process in running:
            _wait_for_end(process.pid)


def _running_descendants() -> list[psutil.Process]:
    running = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if process.status() != psutil.STATUS_ZOMBIE:
                running.append(process)
    return running


def _wait_for_end(pid: int) -> None:
    """Wait until a killed process has ended, without reaping it."""
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        ended = select.poll()
        ended.register(pidfd, select.POLLIN)
        ended.poll()
    finally:
        os.close(pidfd)
