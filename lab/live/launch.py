"""Start another program as a node. This script starts a watcher and then replaces itself by the program.

    python -I -S launch.py LIFELINE_FD DIRECTORY PROGRAM ARGUMENT...

The program gets the harness's environment, runs in DIRECTORY and keeps this process's id. It need not know about the
lab. The watcher makes sure that the program does not outlive the harness: when the other end of the lifeline closes, it
kills the program's process group. Only the standard library is imported.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys

POLL_EVERY_MS = 100
"""Interval at which a watcher without pidfd checks whether the program still runs."""
EXIT_NOT_STARTED = 127
"""Exit code if the program cannot be started, as in shells."""


def main() -> None:
    lifeline, directory, command = int(sys.argv[1]), sys.argv[2], sys.argv[3:]
    leave_watcher(os.getpid(), lifeline)
    os.close(lifeline)
    try:
        os.chdir(directory)
        os.execvp(command[0], command)
    except OSError as error:
        print(f"can't start {command[0]} in {directory}: {error.strerror}", file=sys.stderr, flush=True)
        os._exit(EXIT_NOT_STARTED)


def leave_watcher(program: int, lifeline: int) -> None:
    """Start the watcher, as a process that is neither a child of the program nor in its process group."""
    between = os.fork()
    if between:
        os.waitpid(between, 0)
        return
    os.setsid()
    if not os.fork():
        watch(program, lifeline)
    os._exit(0)


def watch(program: int, lifeline: int) -> None:
    """Return when the program or the harness has ended."""
    poll = select.poll()
    if not hasattr(os, "pidfd_open"):
        watch_by_polling(program, lifeline, poll)
        return
    try:
        ended = os.pidfd_open(program)
    except ProcessLookupError:
        return
    poll.register(ended, select.POLLIN)
    poll.register(lifeline, select.POLLIN)  # nothing is ever written: it becomes readable at its end
    ready = [number for number, _ in poll.poll()]
    if ended not in ready:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(program, signal.SIGKILL)


def watch_by_polling(program: int, lifeline: int, poll: select.poll) -> None:
    """As watch(), on systems without pidfd."""
    poll.register(lifeline, select.POLLIN)
    with contextlib.suppress(ProcessLookupError):
        while not poll.poll(POLL_EVERY_MS):
            os.kill(program, 0)
        os.killpg(program, signal.SIGKILL)


if __name__ == "__main__":
    main()
