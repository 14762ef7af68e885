"""Forward TCP connections: bytes that arrive at one end pass a link (lab.course.links) and leave at the other end."""

from __future__ import annotations

import asyncio
import socket
import struct
import time
from collections.abc import Callable, Sequence
from typing import Protocol, cast

from lab.course.links import NEVER, Link
from nodeproc.client import Address

HELD_BYTES = 32 << 20
"""Limit of the bytes under way in one direction; beyond it the proxy stops reading from the sender."""


class Gate(Protocol):
    """A port of the proxy."""

    address: Address
    """Where the connections continue."""

    def refuses(self) -> bool:
        """Return whether a connection that opens now must be refused; if so, count it."""

    def opened(self, connection: Connection) -> None:
        """A connection was accepted."""

    def closed(self, connection: Connection) -> None:
        """A connection has ended."""


class Connection:
    """A connection that was opened to the proxy (`near`), and its continuation (`far`)."""

    def __init__(self, gate: Gate, near: End, far: End) -> None:
        self._gate, self.near, self.far = gate, near, far
        near.connection = far.connection = self
        near.other, far.other = far, near
        self._broken = False

    def made(self, end: End) -> None:
        """One end is connected."""
        if end is self.far:
            self.near.pump()
            self.far.pump()
        elif self._gate.refuses():
            self.break_off(reset=True)
        else:
            self._gate.opened(self)
            self._dialling = asyncio.get_running_loop().create_task(self._dial())

    async def _dial(self) -> None:
        try:
            await asyncio.get_running_loop().create_connection(lambda: self.far, *self._gate.address)
        except OSError:
            self.break_off(reset=True)
            return
        if self._broken:
            self.far.abort(reset=True)

    def break_off(self, *, reset: bool) -> None:
        """Close both ends at once; the bytes under way are lost. reset: send a RST to both."""
        if self._broken:
            return
        self._broken = True
        self._gate.closed(self)
        self.near.abort(reset=reset)
        self.far.abort(reset=reset)


class End(asyncio.Protocol):
    """One end of a connection.

    Args:
        link: for the bytes that arrive here.
        clock: returns monotonic seconds.
    """

    connection: Connection
    other: End

    def __init__(self, link: Link[bytes], clock: Callable[[], float] = time.monotonic) -> None:
        self.link, self.clock = link, clock
        self.transport: asyncio.Transport | None = None
        self.ended = False
        """No more bytes arrive here."""
        self.full = False
        """The transport's buffer is full."""
        self.held_bytes = 0
        """Bytes that arrived here and have not left at the other end."""
        self._reading = True
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's transport is no subclass.
        # Without Nagle's algorithm: a small frame does not wait for the acknowledgement of the frame before.
        _set_option(self.transport, socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.read(False)
        self.connection.made(self)

    def data_received(self, data: bytes) -> None:
        self.held_bytes += len(data) * self.link.enter("", data, self.clock())
        self.pump()

    def eof_received(self) -> bool:
        self.ended = True
        self.pump()
        return True  # The bytes under way are still delivered.

    def connection_lost(self, exc: Exception | None) -> None:
        self.connection.break_off(reset=exc is not None)

    def pause_writing(self) -> None:
        self.full = True
        self.other.pump()

    def resume_writing(self) -> None:
        self.full = False
        self.other.pump()

    def pump(self) -> None:
        """Write the bytes that are due to the other end, and run again when more are due."""
        far = self.other.transport
        if self.transport is None or far is None or far.is_closing():
            return
        now = self.clock()
        pieces = self.link.leave(now)
        if pieces:
            self.held_bytes -= sum(map(len, pieces))
            self.left(pieces, now)
            far.writelines(pieces)
        due = self.link.next_due()
        if self._timer is not None:
            self._timer.cancel()
        if due != NEVER:
            self._timer = asyncio.get_running_loop().call_later(max(0.0, due - now), self.pump)
        elif self.ended:
            self.finish(far)
        self.read(not self.ended and not self.other.full and self.held_bytes < HELD_BYTES)

    def finish(self, far: asyncio.Transport) -> None:
        """Everything that arrived before the end has left."""
        far.close()

    def left(self, pieces: Sequence[bytes], now: float) -> None:
        """These bytes are written to the other end now."""

    def read(self, on: bool) -> None:
        """Read from the connection, or stop reading."""
        if self.transport is None or on == self._reading or self.transport.is_closing():
            return
        self._reading = on
        if on:
            self.transport.resume_reading()
        else:
            self.transport.pause_reading()

    def abort(self, *, reset: bool) -> None:
        """Close this end at once. reset: send a RST."""
        if self._timer is not None:
            self._timer.cancel()
        if self.transport is not None:
            if reset:
                _set_option(self.transport, socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.transport.abort()


def _set_option(transport: asyncio.Transport, level: int, option: int, value: int | bytes) -> None:
    sock = transport.get_extra_info("socket")
    if sock is not None:
        sock.setsockopt(level, option, value)
