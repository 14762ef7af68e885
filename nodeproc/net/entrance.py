"""The listening port, shared by nodes and clients: a connection's first byte (inside TLS) says which one it is."""

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
from nodeproc.net.sockets import descriptor_limit, reason_of

BACKLOG: Final = 1024
ACCEPT_AT_ONCE: Final = 64
"""The most connections accepted before open connections are read again."""
ACCEPT_AGAIN_S: Final = 0.1
"""Pause after the system had no descriptor left."""
EXHAUSTED: Final = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
"""The system has no resources for another connection. Any other error of accept() concerns one connection only: Linux
passes on the network errors of that connection."""
RESERVED_DESCRIPTORS: Final = 128
"""Descriptors that accepted connections never use: for files, dialled links and the event loop."""


def listen(host: str, port: int) -> socket.socket:
    """Return a listening socket. Old connections of the port in TIME_WAIT do not matter.

    Raises:
        ConfigError: the port is in use, or the address does not belong to this machine.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        sock = socket.socket(family, kind, protocol)
    except (OSError, UnicodeError) as error:  # A host such as a..b is a UnicodeError.
        raise ConfigError(f"can't listen on {host}:{port}: {reason_of(error)}") from None
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
        sock.listen(BACKLOG)
        sock.setblocking(False)
    except OSError as error:
        sock.close()
        raise ConfigError(f"can't listen on {host}:{port}: {reason_of(error)}") from None
    return sock


class Entrance:
    """Gives each accepted connection the protocol of a node or of a client, by its first byte.

    Silent connections do not block new ones: if there are too many, of one address or in total, the oldest is closed.

    Args:
        for_node, for_client: create the protocol of one connection.
        tls: the port's TLS settings; None: no TLS.
        complain: called with the reason why a connection failed, and its address.
        descriptors: the process's limit of open files, including RESERVED_DESCRIPTORS; None: the system's limit.
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
        """Set while nothing is accepted."""

    def open(self, sock: socket.socket) -> None:
        """Accept connections from this listening socket."""
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
        """Number of connections that have not sent a byte."""
        return len(self._undecided)

    @property
    def paused(self) -> bool:
        """Whether accepting is paused because the system has no resources left."""
        return self._pause is not None

    # The loop's own servers don't fit: asyncio's does not report failed TLS handshakes, and uvloop's closes the
    # listening socket after an error of a single connection.

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
                continue  # The connection is closed already.
            # The system assigns the lowest free number, so all numbers below are in use.
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
        """Add a connection. If there are too many, close the oldest: honest ones send their first byte at once."""
        neighbours = self._of_address.get(each.address, {})
        if len(neighbours) >= self.limits.max_per_address:
            self._drop(next(iter(neighbours)))
        if len(self._undecided) >= self.limits.max_silent:
            self._drop(next(iter(self._undecided)))
        self._undecided[each] = None
        self._of_address.setdefault(each.address, {})[each] = None

    def left(self, each: Undecided) -> None:
        """Forget a connection that has sent a byte or is closed."""
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
        """The TLS handshake, if there is TLS, and the hand-over to the loop."""
        self._sock: socket.socket | None = None
        """None once the loop owns the socket."""
        self.transport: asyncio.Transport | None = None
        """None until the TLS handshake is complete."""

    def take(self, sock: socket.socket) -> None:
        """Wait for the first byte of this connection; with TLS, after the handshake."""
        patience_s = self._entrance.limits.first_line_ms / 1000
        self._timer = asyncio.get_running_loop().call_later(patience_s, self.drop)
        self._sock = sock
        self._opening = asyncio.ensure_future(self._open())
        self._entrance.came(self)

    async def _open(self) -> None:
        assert self._sock is not None
        sock, self._sock = self._sock, None  # From here on the loop owns it.
        tls, patience_s = self._entrance.tls, self._entrance.limits.first_line_ms / 1000
        try:
            await asyncio.get_running_loop().connect_accepted_socket(
                lambda: self, sock, ssl=tls, ssl_handshake_timeout=None if tls is None else patience_s
            )
        except ssl.SSLError as error:
            self._entrance.complain(f"no TLS: {reason_of(error)}", self.address)
        except OSError:
            pass  # The connection is closed.
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
