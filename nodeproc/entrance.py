"""The one listening port: a connection's first byte tells a node from a client."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import Final, cast

from nodeproc.config import Limits
from nodeproc.errors import ConfigError
from nodeproc.wire import PREAMBLE

BACKLOG: Final = 1024


def listen(host: str, port: int) -> socket.socket:
    """A listening socket. A port whose old connections are still fading away (TIME_WAIT) can be taken at once.

    Raises:
        ConfigError: the port is in use or the address is not this machine's.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        sock = socket.socket(family, kind, protocol)
    except OSError as error:
        raise ConfigError(f"can't listen on {host}:{port}: {error.strerror or error}") from None
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
        sock.listen(BACKLOG)
        sock.setblocking(False)
    except OSError as error:
        sock.close()
        raise ConfigError(f"can't listen on {host}:{port}: {error.strerror or error}") from None
    return sock


def address_of(transport: asyncio.BaseTransport) -> str:
    """The host at the other end; "" where there is none to tell."""
    name = transport.get_extra_info("peername")
    return str(name[0]) if isinstance(name, tuple) else ""


class Entrance:
    """Hands every connection to the protocol that its first byte asks for.

    Silent connections lock nobody out: where they are too many, of one address or of all, the oldest goes.

    Args:
        for_node, for_client: make the protocol of one connection.
    """

    def __init__(
        self,
        for_node: Callable[[], asyncio.Protocol],
        for_client: Callable[[], asyncio.Protocol],
        limits: Limits | None = None,
    ) -> None:
        self.for_node, self.for_client = for_node, for_client
        self.limits = limits or Limits()
        self._undecided: dict[Undecided, None] = {}
        self._of_address: dict[str, dict[Undecided, None]] = {}
        self._server: asyncio.Server | None = None

    async def open(self, sock: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: Undecided(self), sock=sock, backlog=BACKLOG)

    def close(self) -> None:
        """Refuse connections from now on."""
        if self._server is not None:
            self._server.close()
        for each in list(self._undecided):
            each.drop()

    @property
    def silent(self) -> int:
        """Connections that have not sent a byte."""
        return len(self._undecided)

    def came(self, each: Undecided) -> None:
        """Make room for it. It is about to speak, as everybody with something to say does at once."""
        neighbours = self._of_address.get(each.address, {})
        if len(neighbours) >= self.limits.max_per_address:
            self._drop(next(iter(neighbours)))
        if len(self._undecided) >= self.limits.max_silent:
            self._drop(next(iter(self._undecided)))
        self._undecided[each] = None
        self._of_address.setdefault(each.address, {})[each] = None

    def left(self, each: Undecided) -> None:
        """It has spoken, or is gone."""
        if each in self._undecided:
            del self._undecided[each]
            neighbours = self._of_address[each.address]
            del neighbours[each]
            if not neighbours:
                del self._of_address[each.address]

    def _drop(self, each: Undecided) -> None:
        self.left(each)
        each.drop()


class Undecided(asyncio.Protocol):
    """A connection that has not sent its first byte."""

    def __init__(self, entrance: Entrance) -> None:
        self._entrance = entrance
        self._timer: asyncio.TimerHandle | None = None
        self.transport: asyncio.Transport
        self.address = ""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.address = address_of(transport)
        patience_s = self._entrance.limits.first_line_ms / 1000
        self._timer = asyncio.get_running_loop().call_later(patience_s, self.drop)
        self._entrance.came(self)

    def data_received(self, data: bytes) -> None:
        self._leave()
        entrance = self._entrance
        protocol = entrance.for_node() if data[0] == PREAMBLE[0] else entrance.for_client()
        self.transport.set_protocol(protocol)
        protocol.connection_made(self.transport)
        protocol.data_received(data)

    def connection_lost(self, error: Exception | None) -> None:
        self._leave()

    def drop(self) -> None:
        self.transport.abort()

    def _leave(self) -> None:
        self._entrance.left(self)
        if self._timer is not None:
            self._timer.cancel()
