"""Options of TCP sockets, and the limit of open files of this process. Not every platform has every option."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import socket
import ssl
import struct
import sys
import threading
from collections.abc import Awaitable, Callable
from functools import lru_cache
from typing import Final, TypeVar

from nodeproc.tls import describe

KEEPALIVE_PROBES = 5
"""Number of unanswered probes that end an idle connection."""
WILDCARDS: Final = ("0.0.0.0", "::")
"""Hosts on which a node listens on all of its addresses."""


def address_of(transport: asyncio.BaseTransport) -> str:
    """Return the host at the other end; "" if it is not known."""
    name = transport.get_extra_info("peername")
    return str(name[0]) if isinstance(name, tuple) else ""


def reason_of(error: BaseException) -> str:
    """Return the reason of a failed connection in the system's words; asyncio's own text only repeats the address."""
    if isinstance(error, UnicodeError):
        return "not a host name"
    if isinstance(error, ssl.SSLError):
        return describe(error)
    if isinstance(error, TimeoutError):
        return "no answer"
    if isinstance(error, OSError) and error.errno and error.errno > 0:  # Those of name look-ups are negative.
        return os.strerror(error.errno)
    return (error.strerror if isinstance(error, OSError) else "") or str(error) or type(error).__name__


def send_at_once(transport: asyncio.BaseTransport) -> None:
    """Send small frames at once, without waiting for the acknowledgement of the previous one (disable Nagle's
    algorithm).
    """
    sock = _tcp_socket(transport)
    if sock is not None:
        with contextlib.suppress(OSError):  # macOS raises this if the other end has closed the connection.
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def probe_when_silent(transport: asyncio.BaseTransport, every_s: int) -> None:
    """Let the kernel probe an idle connection, so that a connection to a machine that is gone ends.

    Args:
        every_s: idle time before the first probe, and between two probes.
    """
    sock = _tcp_socket(transport)
    if sock is None:
        return
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        idle = getattr(socket, "TCP_KEEPIDLE", getattr(socket, "TCP_KEEPALIVE", None))  # The second name is macOS's.
        for option, value in (
            (idle, every_s),
            (getattr(socket, "TCP_KEEPINTVL", None), every_s),
            (getattr(socket, "TCP_KEEPCNT", None), KEEPALIVE_PROBES),
        ):
            if option is not None:
                sock.setsockopt(socket.IPPROTO_TCP, option, value)


def _tcp_socket(transport: asyncio.BaseTransport) -> socket.socket | None:
    sock: socket.socket | None = transport.get_extra_info("socket")
    return sock if sock is not None and sock.family in (socket.AF_INET, socket.AF_INET6) else None


def is_host(text: str) -> bool:
    """Return whether this could be a host, a name or a numeric address. What is no name may upset resolvers."""
    try:
        text.encode("idna")
    except UnicodeError:  # Such as "a..b".
        return False
    return bool(text) and text.isprintable() and " " not in text


T = TypeVar("T")
_resolving: dict[tuple[asyncio.AbstractEventLoop, str], asyncio.Future[list[str] | OSError]] = {}


@lru_cache
def _check_numeric(host: str) -> None:
    """Raise socket.gaierror if this is no numeric address. Answers are kept, errors are not."""
    socket.getaddrinfo(host, None, flags=socket.AI_NUMERICHOST)


async def resolve(host: str) -> list[str]:
    """Return the numeric addresses of a host.

    Without an answer from a name server, the system's resolver waits for up to a minute. A daemon thread waits for it,
    one for each name: a thread of the loop's executor would delay the end of the process, and the executor has too few
    threads for several such names. An answer that comes too late for this caller serves the next one.

    Raises:
        OSError: there is no such host.
    """
    if not is_host(host):
        raise OSError("not a host name")
    try:
        _check_numeric(host)
        return [host]
    except socket.gaierror:
        pass  # It is a name.
    key = (asyncio.get_running_loop(), host)
    if key not in _resolving:
        _resolving[key] = _resolve_in_thread(*key)
    waiting = _resolving[key]
    answer = await asyncio.shield(waiting)
    if _resolving.get(key) is waiting:
        del _resolving[key]
    if isinstance(answer, OSError):
        raise answer
    return answer


def _resolve_in_thread(loop: asyncio.AbstractEventLoop, host: str) -> asyncio.Future[list[str] | OSError]:
    answer: asyncio.Future[list[str] | OSError] = loop.create_future()

    def ask() -> None:
        found: list[str] | OSError
        try:
            found = [str(each[4][0]) for each in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)]
        except OSError as error:
            found = error
        with contextlib.suppress(RuntimeError):  # The loop has been closed meanwhile.
            loop.call_soon_threadsafe(answer.set_result, found)

    threading.Thread(target=ask, name=f"resolve {host}", daemon=True).start()
    return answer


async def reach(host: str, attempt: Callable[[str], Awaitable[T]]) -> T:
    """Make the attempt at one address of the host after the other; return the result of the first that succeeds.

    Raises:
        OSError: there is no such host, or the last attempt failed with this.
    """
    failure: OSError = OSError(f"no address for {host}")
    for address in await resolve(host):
        try:
            return await attempt(address)
        except OSError as error:
            failure = error
    raise failure


async def connect(host: str, port: int, patience_s: float) -> socket.socket:
    """Open a TCP connection.

    Raises:
        OSError: the other end's system refused, or did not answer in time.
    """

    async def dial(address: str) -> socket.socket:
        sock = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET)
        sock.setblocking(False)
        try:
            await asyncio.get_running_loop().sock_connect(sock, (address, port))
        except BaseException:
            sock.close()
            raise
        return sock

    async with asyncio.timeout(patience_s):
        return await reach(host, dial)


P = TypeVar("P", bound=asyncio.BaseProtocol)


async def hand_over(
    sock: socket.socket,
    protocol: Callable[[], P],
    tls: ssl.SSLContext | None = None,
    server_hostname: str | None = None,
) -> P:
    """Hand a connected socket to the event loop; from here on only the loop closes it.

    uvloop closes the descriptor, and receives the socket object only after connection_made(). If the connection ends
    before that, the garbage collector would close the socket object's descriptor a second time, when it may belong to
    another file.
    """
    loop = asyncio.get_running_loop()
    try:
        _, made = await loop.create_connection(protocol, sock=sock, ssl=tls, server_hostname=server_hostname)
        return made
    finally:
        if not isinstance(loop, asyncio.BaseEventLoop):  # asyncio's own closes the object.
            sock.detach()


_TCP_INFO = struct.Struct("=24x I 28x I 84x I")
"""Linux's struct tcp_info: segments in flight, milliseconds since the last acknowledgement, bytes not sent yet."""


def unacknowledged(transport: asyncio.Transport) -> tuple[bool, float]:
    """Return whether written bytes are not acknowledged by the other end's system, and the seconds since its last
    acknowledgement.

    (False, 0.0) if this is not known: only Linux reports it, and only of an open connection.
    """
    sock = _tcp_socket(transport)
    if sock is None or transport.is_closing() or not hasattr(socket, "TCP_INFO"):
        return False, 0.0
    try:
        info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO.size)
        on_way, quiet_ms, not_sent = _TCP_INFO.unpack(info)
    except (OSError, struct.error):
        return False, 0.0
    return bool(on_way or not_sent or transport.get_write_buffer_size()), quiet_ms / 1000


def descriptor_limit() -> int:
    """Return the limit of open files of this process; sys.maxsize if there is none."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return sys.maxsize if soft == resource.RLIM_INFINITY else soft


def raise_descriptor_limit(needed: int) -> int:
    """Raise the limit of open files to the system's maximum, or to `needed` if that maximum is not known.

    Returns:
        The limit in force; see descriptor_limit().
    """
    limit = descriptor_limit()
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    for wanted in (hard, needed):
        if wanted != resource.RLIM_INFINITY and wanted > limit:
            with contextlib.suppress(ValueError, OSError):  # macOS may refuse its own hard limit.
                resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
                break
    return descriptor_limit()
