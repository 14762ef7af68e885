"""Decodes what a node sends to a client: answers, and runs of delivered messages. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, cast

from nodeproc.core.messages import Line, SeqNo
from nodeproc.errors import FrameError
from nodeproc.lines import MESSAGE_START, NodeLine, Shown, decode_node_line

_ANSWER_START: Final = b'{"type":'
_ANSWER: Final = b'\n{"type":'


class NodeStream:
    """Splits a node's bytes into answers and runs of delivered messages, which stay bytes. One per connection.

    A run is not parsed line by line; only its first and last line and the number of lines are checked. So a subscriber
    costs per run, not per message.

    Args:
        max_line: limit in bytes, which bounds the client's memory.
    """

    def __init__(self, max_line: int = 8 << 20) -> None:
        self._max_line = max_line
        self._rest = b""

    def feed(self, data: bytes) -> Iterator[NodeLine | Shown]:
        """Yield what is complete now, in order.

        Raises:
            FrameError: bytes that no node sends.
        """
        if not self._rest and data.find(b"\n") == len(data) - 1 and data.startswith(_ANSWER_START):
            yield cast(NodeLine, decode_node_line(data))  # One answer: what most reads of a client are.
            return
        data = self._rest + data if self._rest else data
        end = data.rfind(b"\n") + 1
        self._rest = data[end:]
        if len(self._rest) > self._max_line:
            raise FrameError(f"a line of over {self._max_line} bytes, the longest allowed")
        at = 0
        while at < end:
            if data.startswith(MESSAGE_START, at):
                answer = data.find(_ANSWER, at, end)
                stop = end if answer < 0 else answer + 1
                yield read_run(data[at:stop])
            else:
                stop = data.find(b"\n", at) + 1
                if data[at:stop].strip():
                    line = decode_node_line(data[at : stop - 1])
                    assert not isinstance(line, Line), line
                    yield line
            at = stop


def read_run(lines: bytes) -> Shown:
    """Check whole lines of the message log and return them as one contiguous run. Rule: S6.

    Raises:
        FrameError: first, last and the number of lines don't agree.
    """
    try:
        first = int(lines[len(MESSAGE_START) : lines.index(b",")])
        tail = lines.rfind(b"\n", 0, -1) + 1
        last = int(lines[tail + len(MESSAGE_START) : lines.index(b",", tail)])
    except ValueError:
        raise FrameError(f"not lines of the message log: {lines[:80]!r}") from None
    count = lines.count(b"\n")
    if not (1 <= first <= last and count == last - first + 1):
        raise FrameError(f"{count} lines from seq_no={first} to {last}, allowed {last - first + 1}")
    return Shown(first, last, lines)


def cut_run(shown: Shown, start: SeqNo) -> Shown:
    """Return the part of a run from `start` on; start must be in it."""
    assert shown.first < start <= shown.last, (shown.first, start, shown.last)
    at = 0
    for _ in range(start - shown.first):
        at = shown.lines.index(b"\n", at) + 1
    return Shown(start, shown.last, shown.lines[at:])
