"""What the proxy asks of its TCP connections."""

from __future__ import annotations

import asyncio
import socket
import struct

HELD_BYTES = 32 << 20
"""On their way over one link; past it the sender is not read any more."""


def no_delay(transport: asyncio.Transport) -> None:
    """Small frames don't wait for the acknowledgement of the one before (Nagle)."""
    _set_option(transport, socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def abort(transport: asyncio.Transport, *, reset: bool) -> None:
    """Close at once, what was still to be sent is lost. reset: the other end gets a RST."""
    if reset:
        _set_option(transport, socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    transport.abort()


def _set_option(transport: asyncio.Transport, level: int, option: int, value: int | bytes) -> None:
    sock = transport.get_extra_info("socket")
    if sock is not None:
        sock.setsockopt(level, option, value)
