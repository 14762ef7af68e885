"""The listening port over real sockets: everybody who speaks is heard."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import struct
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, cast

import pytest
import uvloop

from nodeproc.config import Limits
from nodeproc.net.entrance import RESERVED_DESCRIPTORS, Entrance, listen
from nodeproc.tls import client_tls, node_tls
from tests import TOO_LONG_S
from tests.nodeproc.certificates import Authority


class Greeter(asyncio.Protocol):
    """Answers what it hears."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._transport.write(data)  # type: ignore[attr-defined]  # uvloop's is no subclass


def at_the_door(story: Callable[[int], Awaitable[None]], **limits: float) -> None:
    """Run the story with the port of an entrance."""

    async def inside() -> None:
        sock = listen("127.0.0.1", 0)
        entrance = Entrance(Greeter, Greeter, Limits(**limits))  # type: ignore[arg-type]
        entrance.open(sock)
        try:
            async with asyncio.timeout(TOO_LONG_S):
                await story(sock.getsockname()[1])
        finally:
            entrance.close()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(inside())


async def ask(sock: socket.socket) -> bytes:
    loop = asyncio.get_running_loop()
    await loop.sock_sendall(sock, b"x")
    try:
        return await loop.sock_recv(sock, 1)
    except ConnectionError:
        return b""


def connect(port: int, source: str = "127.0.0.1") -> socket.socket:
    sock = socket.create_connection(("127.0.0.1", port), TOO_LONG_S, (source, 0))
    sock.setblocking(False)
    return sock


def test_a_crowd_that_comes_at_once_is_let_in() -> None:
    async def story(port: int) -> None:
        crowd = [connect(port) for _ in range(400)]  # The loop stands still: it sees all of them in one pass.
        assert await asyncio.gather(*map(ask, crowd)) == [b"x"] * len(crowd)
        for sock in crowd:
            sock.close()

    at_the_door(story)


@pytest.mark.parametrize("limit", ["max_silent", "max_per_address"])
def test_silent_connections_lock_nobody_out(limit: str) -> None:
    async def story(port: int) -> None:
        silent = []
        for _ in range(5):
            silent.append(connect(port))
            await asyncio.sleep(0.01)
        speaking = connect(port)
        assert await ask(speaking) == b"x"
        loop = asyncio.get_running_loop()
        for sock in silent[:2]:  # The oldest have made room.
            with pytest.raises(ConnectionResetError):
                assert await loop.sock_recv(sock, 1) == b""
                raise ConnectionResetError
        assert await ask(silent[4]) == b"x"
        for sock in (*silent, speaking):
            sock.close()

    at_the_door(story, **{limit: 3})


def test_a_connection_that_stays_silent_is_dropped() -> None:
    async def story(port: int) -> None:
        silent = connect(port)
        with pytest.raises(ConnectionResetError):
            assert await asyncio.get_running_loop().sock_recv(silent, 1) == b""
            raise ConnectionResetError
        silent.close()

    at_the_door(story, first_line_ms=10)


def test_silent_connections_of_one_address_push_out_none_of_another() -> None:
    async def story(port: int) -> None:
        stranger = connect(port, source="127.0.0.2")
        crowd = [connect(port) for _ in range(8)]
        assert await ask(crowd[-1]) == b"x"
        assert await ask(crowd[0]) == b""
        assert await ask(stranger) == b"x"
        for sock in (stranger, *crowd):
            sock.close()

    at_the_door(story, max_per_address=3)


# ---- what accept() may meet ----------------------------------------------------------------------


class Door:
    """A listening socket whose accept() does what it is given: an error, or a connection."""

    def __init__(self, *outcomes: OSError | socket.socket) -> None:
        self._outcomes = list(outcomes)
        self._looked_at = socket.socket()

    def fileno(self) -> int:
        return self._looked_at.fileno()

    def close(self) -> None:
        self._looked_at.close()

    def accept(self) -> tuple[socket.socket, tuple[str, int]]:
        outcome = self._outcomes.pop(0) if self._outcomes else BlockingIOError()
        if isinstance(outcome, OSError):
            raise outcome
        return outcome, ("192.0.2.1", 1)


def at_a_door(door: Door, **options: Any) -> tuple[Entrance, list[str]]:
    """Let an entrance accept at this door once. Returns the entrance, still in its loop's past, and its complaints."""
    complaints: list[str] = []

    async def inside() -> Entrance:
        entrance = Entrance(Greeter, Greeter, Limits(), complain=lambda reason, _: complaints.append(reason), **options)
        entrance.open(cast(socket.socket, door))
        entrance._accept(cast(socket.socket, door))
        paused = entrance.paused
        entrance.close()
        assert entrance.paused == paused
        return entrance

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(inside()), complaints


OF_ONE_CONNECTION = (
    "ECONNABORTED",
    "ECONNRESET",
    "ENOTCONN",
    "EPROTO",
    "ENETDOWN",
    "EHOSTUNREACH",
    "EPERM",
    "ETIMEDOUT",
)


@pytest.mark.parametrize("name", OF_ONE_CONNECTION)
def test_an_error_of_one_connection_pauses_nothing(name: str) -> None:
    number = getattr(errno, name)
    entrance, complaints = at_a_door(Door(*(OSError(number, os.strerror(number)) for _ in range(5))))
    assert not entrance.paused and not complaints


@pytest.mark.parametrize("name", ["EMFILE", "ENFILE", "ENOBUFS", "ENOMEM"])
def test_a_system_that_has_nothing_left_pauses_accepting(name: str) -> None:
    number = getattr(errno, name)
    entrance, complaints = at_a_door(Door(OSError(number, os.strerror(number))))
    assert entrance.paused and complaints == [f"can't accept connections: {os.strerror(number)}"]


def test_the_last_descriptors_are_kept_from_connections() -> None:
    near, far = socket.socketpair()
    entrance, complaints = at_a_door(Door(near), descriptors=near.fileno() + RESERVED_DESCRIPTORS)
    assert near.fileno() == -1 and not entrance.silent and not entrance.paused
    assert complaints and "128 of" in complaints[0]
    far.close()


@pytest.mark.parametrize("loop", [uvloop.new_event_loop, asyncio.new_event_loop])
@pytest.mark.parametrize("secured", [False, True])
def test_connections_that_are_reset_at_once_pause_nothing(
    loop: Callable[[], asyncio.AbstractEventLoop], secured: bool, tmp_path: Path
) -> None:
    """A reset connection can still be accepted, and has no peer any more."""
    complaints: list[str] = []
    papers = Authority(tmp_path).papers("node", "127.0.0.1")
    ours = client_tls(str(papers.ca)) if secured else None

    async def story() -> None:
        sock = listen("127.0.0.1", 0)
        port = sock.getsockname()[1]
        tls = node_tls(papers.of_node).accepting if secured else None
        entrance = Entrance(Greeter, Greeter, Limits(), tls, lambda reason, _: complaints.append(reason))
        entrance.open(sock)
        for _ in range(20):
            stranger = connect(port)
            stranger.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            stranger.close()
        async with asyncio.timeout(TOO_LONG_S):
            reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=ours)
            writer.write(b"x")
            assert await reader.readexactly(1) == b"x"
        writer.close()
        assert not entrance.paused
        entrance.close()

    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(story())
    assert not [each for each in complaints if "can't accept" in each]
