"""One subscriber of a node: it is sent every delivered message from a seq_no on, without gaps. Rules: S6, K6."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Final

from nodeproc.core.messages import Position, SeqNo
from nodeproc.errors import Unreadable

CHUNK_BYTES: Final = 256 << 10
"""Bytes read from the disk at once."""


class Subscription:
    """Sends messages as they are delivered, or from the disk while the subscriber is behind.

    Args:
        next_seq: the first seq_no to send.
        read_lines: see nodeproc.disk.reading.Reading.lines. If it raises Unreadable, read_again() is called later.
        fail: called with the reason why the subscriber can't be served here; closes the connection.
    """

    def __init__(
        self,
        next_seq: SeqNo,
        transport: asyncio.Transport,
        read_lines: Callable[[SeqNo, int], tuple[bytes, SeqNo]],
        fail: Callable[[str], None],
    ) -> None:
        self._next, self._transport, self._read_lines, self._fail = next_seq, transport, read_lines, fail
        self._behind = True
        """The next messages come from the disk."""
        self._lacking: Position | None = None
        """If the next messages can't be read: the position before them, until a copy arrives or there is none."""
        self._choked = self._closed = False

    def push(self, first: SeqNo, last: SeqNo, bodies: Sequence[memoryview]) -> None:
        """Send messages that were just delivered, unless the subscriber is behind."""
        if self._behind or last < self._next:
            return
        if self._choked or first != self._next:
            self._behind = True  # hit: S6 a subscriber is served from disk
            self.pump()
        else:
            self._transport.writelines(bodies)
            self._next = last + 1

    def choke(self, choked: bool) -> None:
        """Stop or continue writing: the connection's buffer is full, or empty again."""
        self._choked = choked
        self.pump()

    def pump(self) -> None:
        """Send one chunk from the disk, if the subscriber is behind; the next one in a later pass of the event loop."""
        if not self._behind or self._choked or self._closed or self._lacking is not None:
            return
        try:
            lines, last = self._read_lines(self._next, CHUNK_BYTES)
        except Unreadable as error:
            self._lacking = Position(*error.after)
            return
        if not lines:
            self._behind = False
            return
        self._transport.write(lines)
        self._next = last + 1
        asyncio.get_running_loop().call_soon(self.pump)

    def read_again(self, after: Position, reason: str) -> None:
        """Continue after damaged records; if they stay unreadable, fail, because a subscriber never gets a gap.

        Args:
            after: the position before the damaged records.
            reason: why they can't be read; "" if they can.
        """
        if self._lacking is None:
            return
        if reason and self._lacking == after:
            # hit: K6 a subscriber is told what is missing
            self._fail(f"messages from seq_no {self._next} on can't be read here: {reason}; ask another node")
        else:
            self._lacking = None
            self.pump()

    def close(self) -> None:
        self._closed = True
