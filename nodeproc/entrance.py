"""The one listening port: a connection's first byte, inside TLS where there is TLS, tells a node from a client."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable
from typing import Final, cast

from nodeproc.config import Limits
from nodeproc.errors import ConfigError
from nodeproc.tls import describe
from nodeproc.wire import PREAMBLE

BACKLOG: Final = 1024
ACCEPT_AGAIN_S: Final = 1.0
"""After the system could not give another descriptor."""


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
        tls: what the port speaks; None: no TLS.
        complain: told what was wrong with a connection that came to nothing.
    """

    def __init__(
        self,
        for_node: Callable[[], asyncio.Protocol],
        for_client: Callable[[], asyncio.Protocol],
        limits: Limits | None = None,
        tls: ssl.SSLContext | None = None,
        complain: Callable[[str], None] = lambda reason: None,
    ) -> None:
        self.for_node, self.for_client = for_node, for_client
        self.limits = limits or Limits()
        self.tls, self.complain = tls, complain
        self._undecided: dict[Undecided, None] = {}
        self._of_address: dict[str, dict[Undecided, None]] = {}
        self._server: asyncio.Server | None = None
        self._listening: socket.socket | None = None
        """With TLS."""

    async def open(self, sock: socket.socket) -> None:
        """Take connections from this listening socket."""
        loop = asyncio.get_running_loop()
        if self.tls is None:
            self._server = await loop.create_server(lambda: Undecided(self), sock=sock, backlog=BACKLOG)
        else:
            self._accept_on(sock, self.tls)

    def close(self) -> None:
        """Refuse connections from now on."""
        if self._server is not None:
            self._server.close()
        if self._listening is not None:
            asyncio.get_running_loop().remove_reader(self._listening)
            self._listening.close()
            self._listening = None
        for each in list(self._undecided):
            each.drop()

    @property
    def silent(self) -> int:
        """Connections that have not sent a byte."""
        return len(self._undecided)

    def _accept_on(self, sock: socket.socket, tls: ssl.SSLContext) -> None:
        """With TLS connections are accepted here: a server of the loop tells of none that has not agreed on it."""
        self._listening = sock
        asyncio.get_running_loop().add_reader(sock, self._accept, sock, tls)

    def _accept(self, sock: socket.socket, tls: ssl.SSLContext) -> None:
        for _ in range(BACKLOG):
            try:
                connection, _ = sock.accept()
                connection.setblocking(False)
                Undecided(self).secure(connection, tls)
            except (BlockingIOError, InterruptedError):
                return
            except ConnectionError:
                continue  # It is gone already.
            except OSError as error:  # No descriptors, no memory: the next ones wait until there may be some.
                self.complain(f"can't accept connections: {error.strerror}")
                loop = asyncio.get_running_loop()
                loop.remove_reader(sock)
                loop.call_later(ACCEPT_AGAIN_S, self._accept_again, sock, tls)
                return

    def _accept_again(self, sock: socket.socket, tls: ssl.SSLContext) -> None:
        if self._listening is sock:
            self._accept_on(sock, tls)

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
        self._securing: asyncio.Task[None] | None = None
        """Agrees on TLS, where the port speaks it."""
        self.transport: asyncio.Transport | None = None
        """None: TLS is not agreed on yet."""
        self.address = ""

    def secure(self, sock: socket.socket, tls: ssl.SSLContext) -> None:
        """Agree on TLS first."""
        self._begin(str(sock.getpeername()[0]))
        self._securing = asyncio.ensure_future(self._secure(sock, tls))

    async def _secure(self, sock: socket.socket, tls: ssl.SSLContext) -> None:
        patience_s = self._entrance.limits.first_line_ms / 1000
        try:
            await asyncio.get_running_loop().connect_accepted_socket(
                lambda: self, sock, ssl=tls, ssl_handshake_timeout=patience_s
            )
        except ssl.SSLError as error:
            self._entrance.complain(f"no TLS: {describe(error)}")
        except OSError:
            pass  # It is gone.
        finally:
            if self.transport is None:
                self._leave()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        if self._securing is None:
            self._begin(address_of(transport))

    def _begin(self, address: str) -> None:
        self.address = address
        patience_s = self._entrance.limits.first_line_ms / 1000
        self._timer = asyncio.get_running_loop().call_later(patience_s, self.drop)
        self._entrance.came(self)

    def data_received(self, data: bytes) -> None:
        assert self.transport is not None
        self._leave()
        entrance = self._entrance
        protocol = entrance.for_node() if data[0] == PREAMBLE[0] else entrance.for_client()
        self.transport.set_protocol(protocol)
        protocol.connection_made(self.transport)
        protocol.data_received(data)

    def connection_lost(self, error: Exception | None) -> None:
        self._leave()

    def drop(self) -> None:
        if self.transport is not None:
            self.transport.abort()
        elif self._securing is not None:
            self._securing.cancel()

    def _leave(self) -> None:
        self._entrance.left(self)
        if self._timer is not None:
            self._timer.cancel()
