"""Events as lines: human-readable on the console, machine-readable in events.jsonl.

The console may be a terminal whose output is stopped, or a pipe that is not read. So a thread of its own writes there,
from a bounded queue; text that does not fit is left out and counted. events.jsonl is a plain file, written once a turn.
A full file becomes events.jsonl.1, the one before it events.jsonl.2, and so on.
"""

from __future__ import annotations

import contextlib
import os
import queue
import re
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec

from nodeproc.core.events import Event, Level
from nodeproc.core.messages import Line, NodeId

RANK: Final[dict[Level, int]] = {"DEBUG": 10, "INFO": 20, "WARNING": 30, "ERROR": 40}

KEPT: Final = 3
"""Full files that are kept beside the current one."""
CONSOLE_MAX_BYTES: Final = 4 << 20
"""The most that waits for the console; more is left out."""

_encode = msgspec.json.Encoder().encode
_decode_lines = msgspec.json.Decoder(Line).decode_lines
_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")


def read_messages(body: bytes | memoryview) -> list[Line]:
    """Return the messages of whole lines of the message log."""
    return _decode_lines(body)


def show_message(line: Line) -> str:
    """Return a message as the console shows it: `[seq=1] node_9999: Hello from node 1!`."""
    return f"[seq={line.seq_no}] node_{line.sender_id}: {printable(line.payload)}"


def show_messages(body: bytes | memoryview) -> str:
    """Return lines of the message log as the console shows them."""
    return "".join([f"{show_message(line)}\n" for line in _decode_lines(body)])


def printable(text: str) -> str:
    """Return the text on one line, with escapes for all characters that could control a terminal."""
    return text if text.isprintable() else _CONTROL.sub(lambda match: repr(match[0])[1:-1], text)


class Console:
    """Writes to stderr and stdout in a thread of its own, in order.

    Args:
        log_fd, message_fd: file descriptors. Errors of a broken one are ignored: the terminal is gone.
    """

    def __init__(self, log_fd: int = 2, message_fd: int = 1) -> None:
        self._log_fd, self._message_fd = log_fd, message_fd
        self._queue: queue.SimpleQueue[tuple[int, str, Sequence[bytes | memoryview]] | None] = queue.SimpleQueue()
        self._waiting = 0
        self._left_out = 0
        self._lock = threading.Lock()
        self._writer = threading.Thread(target=self._run, name="console", daemon=True)
        self._writer.start()

    def show(self, text: str, bodies: Sequence[bytes | memoryview] = ()) -> None:
        """Queue log lines for stderr, then delivered lines for stdout. Never waits."""
        size = len(text) + sum(map(len, bodies))
        with self._lock:
            if self._waiting + size > CONSOLE_MAX_BYTES and self._waiting:
                self._left_out += size
                return
            self._waiting += size
            left_out, self._left_out = self._left_out, 0
        if left_out:
            text = f"(the console is too slow: {left_out} bytes left out here)\n{text}"
        self._queue.put((size, text, bodies))

    def close(self, timeout: float = 0.3) -> None:
        """Write everything that waits, for at most `timeout` seconds."""
        self._queue.put(None)
        self._writer.join(timeout)

    def _run(self) -> None:
        while (item := self._queue.get()) is not None:
            size, text, bodies = item
            with contextlib.suppress(OSError):
                write_all(self._log_fd, text.encode(errors="backslashreplace"))
            for body in bodies:
                with contextlib.suppress(OSError):
                    write_all(self._message_fd, show_messages(body).encode())
            with self._lock:
                self._waiting -= size


def write_all(fd: int, data: bytes) -> None:
    """Write all bytes, with as many calls as that takes."""
    view = memoryview(data)
    while view:
        written = os.write(fd, view)
        view = view[written:]


def part(events: Path, number: int) -> Path:
    """Return the path of the file that was full `number` files ago; 0: the current file."""
    return events.with_name(f"{events.name}.{number}") if number else events


class EventLog:
    """Writes a node's events. Events below `level` are left out.

    Args:
        events: path of events.jsonl, opened for appending; None: not written.
        max_bytes: the most bytes in one such file.
        console: None: nothing is shown.
        show_delivered: whether delivered messages appear on the console.
    """

    def __init__(
        self,
        node_id: NodeId,
        *,
        level: Level,
        events: Path | None,
        console: Console | None,
        show_delivered: bool,
        max_bytes: int = 64 << 20,
    ) -> None:
        self._node_id = node_id
        self._rank = RANK[level]
        self._events, self._max_bytes = events, max_bytes
        self._fd, self._size = -1, 0
        if events is not None:
            self._open(events)
        self._console = console
        self._show_delivered = show_delivered and console is not None
        self._rows: list[bytes] = []
        self._text: list[str] = []
        self._stamp = (0, "")
        self._lock = threading.Lock()
        """Held from the time of an event to its place in the file, so that the times there never go back."""

    def emit(self, events: Sequence[Event]) -> None:
        """Take events, from any thread; flush() writes them."""
        rank = self._rank
        with self._lock:
            for event in events:
                if RANK[event.level] >= rank:
                    self._rows.append(self._row(event))
                    if self._console is not None:
                        self._text.append(self._line(event))

    def delivered(self, bodies: Sequence[memoryview]) -> None:
        """Show delivered messages; parsed only here, and in the console's thread."""
        if self._show_delivered and self._console is not None:
            self.flush()
            self._console.show("", [bytes(body) for body in bodies])

    def flush(self) -> None:
        """Write all events since the last call. Called once a turn: a killed process has written its last turn."""
        if not self._rows:
            return
        with self._lock:
            rows, self._rows = self._rows, []
            text, self._text = self._text, []
            if self._fd >= 0:
                try:
                    self._write(b"".join(rows))
                except OSError as error:  # The node continues. If the disk is full, the storage ends it.
                    self._close_file()
                    text.append(f"{self._events} is no longer written: {error.strerror}\n")
            if self._console is not None:
                self._console.show("".join(text))

    def _open(self, events: Path) -> None:
        self._fd = os.open(events, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        self._size = os.fstat(self._fd).st_size

    def _write(self, data: bytes) -> None:
        """Append whole rows; begin a new file if the current one is full."""
        assert self._events is not None
        if self._size and self._size + len(data) > self._max_bytes:
            self._close_file()
            for number in range(KEPT, 0, -1):
                younger = part(self._events, number - 1)
                if younger.exists():
                    younger.replace(part(self._events, number))
            self._open(self._events)
        write_all(self._fd, data)
        self._size += len(data)

    def close(self) -> None:
        self.flush()
        self._close_file()
        if self._console is not None:
            self._console.close()

    def _close_file(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def _row(self, event: Event) -> bytes:
        return b'{"t_ns":%d,"node":%d,%s\n' % (time.monotonic_ns(), self._node_id, _encode(event)[1:])

    def _line(self, event: Event) -> str:
        clock, text = self._clock(), printable(event.line())
        return f"{clock} - {event.logger}.{self._node_id} - {event.level} - {text}\n"

    def _clock(self) -> str:
        """Return the local time with seconds, for the console."""
        second = int(time.time())
        if second != self._stamp[0]:
            self._stamp = (second, time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(second)))
        return self._stamp[1]
