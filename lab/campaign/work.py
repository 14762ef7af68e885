"""What runs inside a Dask worker: one child process for each of its threads, which plays the seeds."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import threading
from pathlib import Path
from typing import Final

from lab.campaign.code import code_version
from lab.campaign.orders import NATIVE, Lost, Ready, decode_line, encode
from lab.live.children import child_environment
from lab.places import ROOT

ATTEMPTS: Final = 3
"""Times that an order is given to a child. Whatever ends a child three times in a row is the order."""


class WrongCode(Exception):
    """The code of this worker changed after the campaign had accepted the worker."""


class Closed(Exception):
    """The campaign ends, and its own workers with it."""


class _Child:
    """A child process of one thread. Its pipes close with this process, so it cannot outlive it for long."""

    def __init__(self, root: Path, code: str, native: bool) -> None:
        environment = child_environment()
        if root != ROOT:
            environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(root), environment["PYTHONPATH"]]))
        self.made_of = root, code, native
        self.process = subprocess.Popen(
            [sys.executable, "-m", "lab.campaign.child", *([NATIVE] if native else [])],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            process_group=0,  # The campaign alone handles Ctrl+C.
        )
        found = decode_line(self._line())
        assert isinstance(found, Ready), found
        if found.code != code:
            self.close()
            raise WrongCode(f"{platform.node()}: found code {found.code} in {root}, allowed {code}")

    def ask(self, order: bytes) -> bytes:
        """Return the answer to an order.

        Raises:
            EOFError: the child ended instead; the text says how.
        """
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(order + b"\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            raise self._ended() from None
        return self._line()

    def _line(self) -> bytes:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line.endswith(b"\n"):
            raise self._ended()
        return line

    def _ended(self) -> EOFError:
        return EOFError(f"the playing process ended with exit code {self.process.wait()}")

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            try:
                pipe.close()
            except BrokenPipeError:  # An order was still in the buffer.
                continue


class _Children:
    """All children of this process, by thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._of_thread: dict[int, _Child] = {}
        self._closed = False

    def of_this_thread(self, root: Path, code: str, native: bool) -> _Child:
        """Return this thread's child, started now if there is none with this code and mode."""
        me = threading.get_ident()
        with self._lock:
            if self._closed:
                raise Closed
            found = self._of_thread.get(me)
        if found is not None and found.made_of == (root, code, native):
            return found
        self.drop()
        made = _Child(root, code, native)
        with self._lock:
            if self._closed:
                made.close()
                raise Closed
            self._of_thread[me] = made
        return made

    def drop(self) -> None:
        """End this thread's child, if there is one."""
        with self._lock:
            found = self._of_thread.pop(threading.get_ident(), None)
        if found is not None:
            found.close()

    def close(self) -> None:
        """End all children; orders under way fail, and no child is started any more until open()."""
        with self._lock:
            self._closed = True
            for child in self._of_thread.values():
                child.process.kill()
            for child in self._of_thread.values():
                child.process.wait()

    def open(self) -> None:
        with self._lock:
            self._closed = False
            self._of_thread.clear()


_children = _Children()
open_children = _children.open
close_children = _children.close


def describe(root: str) -> tuple[str, str]:
    """Return the version of this worker's code and the name of its host.

    Args:
        root: the directory of the code; "" for that of the running lab.
    """
    return code_version(Path(root) if root else ROOT), platform.node()


def carry_out(root: str, code: str, native: bool, orders: list[bytes]) -> tuple[str, list[bytes]]:
    """Carry out orders on this thread's child; return the worker's address and an answer for each order.

    Args:
        root: as in describe().
        code: the version that the child must have.
        native: use compiled modules, if the worker has a build of them.

    Raises:
        WrongCode: the child has another version.
    """
    from distributed import get_worker

    answers = [_answer(Path(root) if root else ROOT, code, native, order) for order in orders]
    return get_worker().address, answers


def _answer(root: Path, code: str, native: bool, order: bytes) -> bytes:
    """Return the answer to an order. Only the first attempt is native: an endless loop of compiled code ends its child,
    while a plain child ends the seed and reports it."""
    reason = ""
    for attempt in range(ATTEMPTS):
        try:
            return _children.of_this_thread(root, code, native and not attempt).ask(order)
        except EOFError as error:
            reason = str(error)
            _children.drop()
    return encode(Lost(reason))
