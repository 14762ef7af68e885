"""Garbage at a node's port: every kind is drawn and refused, and the ends of the connections are counted."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Callable

import pytest

from lab.live.garbage import (
    KINDS,
    GarbageClients,
    Target,
    draw_garbage,
    draw_half_open,
    frame_without_handshake,
    hello_then_noise,
    large_frame,
    share_of,
    wrong_proof,
)
from nodeproc.config import Limits
from nodeproc.core.messages import Known
from nodeproc.errors import FrameError, LinkRefused
from nodeproc.frames import PREAMBLE, FrameDecoder, PeerHello, PeerProof
from nodeproc.lines import LineDecoder, decode_client_line
from nodeproc.net.handshake import Accepting, Credentials
from tests import TOO_LONG_S

TARGET = Target(("127.0.0.1", 0), "chat", 2, (1, 2))


def is_refused(said: bytes) -> bool:
    """Whether a node's own decoders find something wrong with it, or wait for more."""
    try:
        if said.startswith(PREAMBLE[:1]):
            accepting = Accepting(Credentials(1, (1, 2), "chat", "secret", Known("x"), False), "0" * 32)
            for message in FrameDecoder(4096, 0).feed(said[len(PREAMBLE) :]):
                if isinstance(message, PeerHello):
                    accepting.on_hello(message)
                elif isinstance(message, PeerProof):
                    accepting.on_proof(message)
                else:
                    return True
        else:
            for line in LineDecoder(Limits().max_line_bytes).feed(said):
                decode_client_line(line)
    except (FrameError, LinkRefused):
        return True
    return False


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: str(kind.__name__))
def test_garbage_of_every_kind_gets_nobody_in(kind: Callable[[random.Random, Target], bytes]) -> None:
    said = [kind(random.Random(seed), TARGET) for seed in range(50)]
    if kind in (wrong_proof, frame_without_handshake, large_frame, hello_then_noise):
        assert all(map(is_refused, said))
    assert kind(random.Random(7), TARGET) == kind(random.Random(7), TARGET)


def test_all_kinds_of_garbage_are_drawn() -> None:
    rng = random.Random(1)
    said = [draw_garbage(rng, TARGET) for _ in range(300)]
    assert sum(each.startswith(PREAMBLE) for each in said) > 50
    assert sum(each.startswith(b'{"type":') for each in said) > 50
    assert sum(each.startswith(b"\x16") for each in said) > 2


def test_a_half_open_client_never_sends_a_complete_line() -> None:
    assert not any(b"\n" in draw_half_open(random.Random(seed)) for seed in range(50))


def test_a_whole_is_dealt_out_in_turn() -> None:
    assert [share_of(8, at, 3) for at in range(3)] == [3, 3, 2]
    assert [share_of(1, at, 3) for at in range(3)] == [1, 0, 0]


class FakeNode(asyncio.Protocol):
    """Closes a connection at its first bytes, or never."""

    def __init__(self, closes: bool) -> None:
        self._closes = closes
        self._transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        if self._closes:
            self._transport.abort()


@contextlib.asynccontextmanager
async def garbage_for_node(closes: bool) -> AsyncIterator[GarbageClients]:
    server = await asyncio.get_running_loop().create_server(lambda: FakeNode(closes), "127.0.0.1", 0)
    try:
        yield GarbageClients(Target(server.sockets[0].getsockname()[:2], "chat", 2, (1, 2)))
    finally:
        server.close()


def test_the_ends_of_the_connections_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    async def story() -> None:
        monkeypatch.setattr("lab.live.garbage.PATIENCE_S", TOO_LONG_S)
        async with garbage_for_node(closes=True) as strict:
            await strict.run(20, 3, 0.05, random.Random(1))
        assert (strict.connections, strict.closed, strict.left, strict.refused) == (20, 20, 0, 0)
        assert strict.said > 100 and strict.half_open == 3
        monkeypatch.setattr("lab.live.garbage.PATIENCE_S", 0.05)
        async with garbage_for_node(closes=False) as patient:
            await patient.run(5, 3, 0.05, random.Random(2))
        assert (patient.closed, patient.left, patient.held) == (0, 5, 3)
        gone = GarbageClients(strict.target)
        await gone.run(5, 3, 0.05, random.Random(3))
        assert (gone.refused, gone.closed, gone.held) == (8, 0, 0)

    asyncio.run(story())
