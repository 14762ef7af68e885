"""connect(), redirected by a table: the program dials an address, and reaches another one, such as a proxy's port."""

from __future__ import annotations

import os
import socket
import struct
import threading
from collections.abc import Mapping
from typing import TypeAlias

from lab.live.supervise.kernel import Call, read_memory, take_fd
from lab.live.supervise.openfiles import INT
from lab.live.supervise.processes import status_of

Address: TypeAlias = tuple[str, int]
"""(IPv4 address, port)."""

_IN6_BYTES = 28
_MAPPED = bytes(10) + b"\xff\xff"
"""The beginning of an IPv6 address that stands for an IPv4 one."""


class Links:
    """Handles connect(). table: dialled address -> address to which the connection goes instead."""

    def __init__(self) -> None:
        self.table: Mapping[Address, Address] = {}
        self.redirected = 0

    def connect(self, call: Call) -> None:
        fd, address, size, *_ = call.arguments
        dialled = _address(read_memory(call.thread, address, min(size, _IN6_BYTES))) if self.table else None
        target = None if dialled is None else self.table.get(dialled)
        if target is None:
            call.pass_on()
            return
        self.redirected += 1
        connection = socket.socket(fileno=take_fd(int(status_of(call.thread)["Tgid"]), fd & INT))
        if os.get_blocking(connection.fileno()):
            # It may wait, and the supervisor may not. Only this thread knows the call from here on.
            threading.Thread(target=_connect, args=(call, connection, target), daemon=True).start()
        else:
            _connect(call, connection, target)


def _address(raw: bytes) -> Address | None:
    """Return the IPv4 address and port of a struct sockaddr; None if it has none."""
    if len(raw) < 8:
        return None
    (family,), (port,) = struct.unpack_from("=H", raw), struct.unpack_from("!H", raw, 2)
    if family == socket.AF_INET:
        return socket.inet_ntoa(raw[4:8]), port
    if family == socket.AF_INET6 and raw[8:20] == _MAPPED:
        return socket.inet_ntoa(raw[20:24]), port
    return None


def _connect(call: Call, connection: socket.socket, target: Address) -> None:
    """Connect the program's socket, and finish its call with the result."""
    host, port = target
    with connection:
        name = host if connection.family == socket.AF_INET else f"::ffff:{host}"
        # Without a timeout of its own, a socket object waits only if the program's socket does.
        error = connection.connect_ex((name, port))
    call.finish(-error)
