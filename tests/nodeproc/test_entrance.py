"""The listening port over real sockets: everybody who speaks is heard."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable

import pytest
import uvloop

from nodeproc.config import Limits
from nodeproc.entrance import Entrance, listen

TIMEOUT_S = 10.0


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
        await entrance.open(sock)
        try:
            async with asyncio.timeout(TIMEOUT_S):
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
    sock = socket.create_connection(("127.0.0.1", port), TIMEOUT_S, (source, 0))
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
