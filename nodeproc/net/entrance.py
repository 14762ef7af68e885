"""The one listening port: a connection's first byte, inside TLS where there is TLS, tells a node from a client."""

from __future__ import annotations

import asyncio
import errno
import socket
import ssl
from collections.abc import Callable
from typing import Final, cast

from nodeproc.config import Limits
from nodeproc.errors import ConfigError
from nodeproc.frames import PREAMBLE
from nodeproc.net.sockets import descriptor_limit
from nodeproc.tls import describe

BACKLOG: Final = 1024
ACCEPT_AT_ONCE: Final = 64
"""Connections accepted before those that are here already are read."""
ACCEPT_AGAIN_S: Final = 0.1
"""After the system could not give another descriptor."""
EXHAUSTED: Final = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
"""The system has nothing left for a connection. Any other error of accept() belongs to the one connection that it was
about: Linux passes on what the network has reported of it."""
RESERVED_DESCRIPTORS: Final = 128
"""Kept from connections that come in: for the files, the links that this node dials, and the loop."""


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


class Entrance:
    """Hands every connection to the protocol that its first byte asks for.

    Silent connections lock nobody out: where they are too many, of one address or of all, the oldest goes.

    Args:
        for_node, for_client: make the protocol of one connection.
        tls: what the port speaks; None: no TLS.
        complain: told what was wrong with a connection that came to nothing, and its address.
        descriptors: open files that the process may have, RESERVED_DESCRIPTORS of them never for connections; None: the
            system's limit.
    """

    def __init__(
        self,
        for_node: Callable[[], asyncio.Protocol],
        for_client: Callable[[], asyncio.Protocol],
        limits: Limits | None = None,
        tls: ssl.SSLContext | None = None,
        complain: Callable[[str, str], None] = lambda reason, address: None,
        descriptors: int | None = None,
    ) -> None:
        self.for_node, self.for_client = for_node, for_client
        self.limits = limits or Limits()
        self.tls, self.complain = tls, complain
        self._descriptors = descriptor_limit() if descriptors is None else descriptors
        self._undecided: dict[Undecided, None] = {}
        self._of_address: dict[str, dict[Undecided, None]] = {}
        self._listening: socket.socket | None = None
        self._pause: asyncio.TimerHandle | None = None
        """Nothing is accepted until it ends."""

    async def open(self, sock: socket.socket) -> None:
        """Take connections from this listening socket."""
        self._listening = sock
        asyncio.get_running_loop().add_reader(sock, self._accept, sock)

    def close(self) -> None:
        """Refuse connections from now on."""
        if self._listening is not None:
            if self._pause is not None:
                self._pause.cancel()
            else:
                asyncio.get_running_loop().remove_reader(self._listening)
            self._listening.close()
            self._listening = None
        for each in list(self._undecided):
            each.drop()

    @property
    def silent(self) -> int:
        """Connections that have not sent a byte."""
        return len(self._undecided)

    @property
    def paused(self) -> bool:
        """Nothing is accepted for a moment: the system has nothing left for a connection."""
        return self._pause is not None

    # Connections are accepted here and not by a server of the loop. asyncio's reports no connection that has not agreed
    # on TLS, and uvloop's closes the listening socket for good at an error that one connection had.

    def _accept(self, sock: socket.socket) -> None:
        for _ in range(ACCEPT_AT_ONCE):
            try:
                connection, address = sock.accept()
            except (BlockingIOError, InterruptedError):
                return
            except OSError as error:
                if error.errno in EXHAUSTED:
                    self.complain(f"can't accept connections: {error.strerror}", "")
                    self._pause_accepting(sock)
                    return
                continue  # It is gone already.
            # The system gives the lowest free number: all below are in use.
            if connection.fileno() >= self._descriptors - RESERVED_DESCRIPTORS:
                connection.close()
                reserved = f"{RESERVED_DESCRIPTORS} of {self._descriptors} open files are kept for this node itself"
                self.complain(f"no room for another connection: {reserved}", str(address[0]))
                continue
            connection.setblocking(False)
            Undecided(self, str(address[0])).take(connection)

    def _pause_accepting(self, sock: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        loop.remove_reader(sock)
        self._pause = loop.call_later(ACCEPT_AGAIN_S, self._accept_again, sock)

    def _accept_again(self, sock: socket.socket) -> None:
        self._pause = None
        asyncio.get_running_loop().add_reader(sock, self._accept, sock)

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

    def __init__(self, entrance: Entrance, address: str) -> None:
        self._entrance, self.address = entrance, address
        self._timer: asyncio.TimerHandle | None = None
        self._opening: asyncio.Task[None] | None = None
        """Agrees on TLS, where the port speaks it."""
        self._sock: socket.socket | None = None
        """None: the loop has it."""
        self.transport: asyncio.Transport | None = None
        """None: TLS is not agreed on yet."""

    def take(self, sock: socket.socket) -> None:
        """Speak on this connection; agree on TLS first where the port speaks it."""
        patience_s = self._entrance.limits.first_line_ms / 1000
        self._timer = asyncio.get_running_loop().call_later(patience_s, self.drop)
        self._sock = sock
        self._opening = asyncio.ensure_future(self._open())
        self._entrance.came(self)

    async def _open(self) -> None:
        assert self._sock is not None
        sock, self._sock = self._sock, None  # From here on the loop closes it.
        tls, patience_s = self._entrance.tls, self._entrance.limits.first_line_ms / 1000
        try:
            await asyncio.get_running_loop().connect_accepted_socket(
                lambda: self, sock, ssl=tls, ssl_handshake_timeout=None if tls is None else patience_s
            )
        except ssl.SSLError as error:
            self._entrance.complain(f"no TLS: {describe(error)}", self.address)
        except OSError:
            pass  # It is gone.
        finally:
            if self.transport is None:
                self._leave()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

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
        elif self._opening is not None:
            self._opening.cancel()
            if self._sock is not None:
                self._sock.close()
                self._leave()

    def _leave(self) -> None:
        self._entrance.left(self)
        if self._timer is not None:
            self._timer.cancel()
