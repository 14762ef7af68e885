"""Strangers at a port: what they say is nonsense of every kind, and what becomes of them is counted."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Callable

import pytest

from lab.live.cluster import share_of
from lab.live.garbage import (
    KINDS,
    Crowd,
    Mark,
    besiege,
    frame_out_of_turn,
    half_a_talk,
    large_frame,
    liar,
    say_half,
    say_nonsense,
)
from nodeproc.config import Limits
from nodeproc.errors import FrameError, LinkRefused
from nodeproc.frames import PREAMBLE, FrameDecoder, PeerHello, PeerProof
from nodeproc.lines import LineDecoder, decode_client_line
from nodeproc.net.handshake import Accepting, Credentials
from tests import TOO_LONG_S

MARK = Mark(1, ("127.0.0.1", 0), "chat", 2, (1, 2))


def is_refused(said: bytes) -> bool:
    """Whether a node's own decoders find something wrong with it, or wait for more."""
    try:
        if said.startswith(PREAMBLE[:1]):
            accepting = Accepting(Credentials(1, (1, 2), "chat", "secret", "x", False), "0" * 32)
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
def test_nonsense_of_every_kind_gets_nobody_in(kind: Callable[[random.Random, Mark], bytes]) -> None:
    said = [kind(random.Random(seed), MARK) for seed in range(50)]
    if kind in (liar, frame_out_of_turn, large_frame, half_a_talk):
        assert all(map(is_refused, said))
    assert kind(random.Random(7), MARK) == kind(random.Random(7), MARK)


def test_strangers_say_all_kinds_of_nonsense() -> None:
    rng = random.Random(1)
    said = [say_nonsense(rng, MARK) for _ in range(300)]
    assert sum(each.startswith(PREAMBLE) for each in said) > 50
    assert sum(each.startswith(b'{"type":') for each in said) > 50
    assert sum(each.startswith(b"\x16") for each in said) > 2


def test_a_half_open_client_never_says_a_whole_line() -> None:
    assert not any(b"\n" in say_half(random.Random(seed)) for seed in range(50))


def test_a_whole_is_dealt_out_in_turn() -> None:
    assert [share_of(8, at, 3) for at in range(3)] == [3, 3, 2]
    assert [share_of(1, at, 3) for at in range(3)] == [1, 0, 0]


class Door(asyncio.Protocol):
    """Closes a connection at a word, or never."""

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
async def door(closes: bool) -> AsyncIterator[Crowd]:
    server = await asyncio.get_running_loop().create_server(lambda: Door(closes), "127.0.0.1", 0)
    try:
        yield Crowd(Mark(1, server.sockets[0].getsockname()[:2], "chat", 2, (1, 2)))
    finally:
        server.close()


def test_what_becomes_of_the_strangers_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    async def story() -> None:
        monkeypatch.setattr("lab.live.garbage.PATIENCE_S", TOO_LONG_S)
        async with door(closes=True) as strict:
            await besiege(strict, 20, 3, 0.05, random.Random(1))
        assert (strict.connections, strict.closed, strict.left, strict.refused) == (20, 20, 0, 0)
        assert strict.said > 100 and strict.half_open == 3
        monkeypatch.setattr("lab.live.garbage.PATIENCE_S", 0.05)
        async with door(closes=False) as patient:
            await besiege(patient, 5, 3, 0.05, random.Random(2))
        assert (patient.closed, patient.left, patient.held) == (0, 5, 3)
        gone = Crowd(strict.mark)
        await besiege(gone, 5, 3, 0.05, random.Random(3))
        assert (gone.refused, gone.closed, gone.held) == (8, 0, 0)

    asyncio.run(story())
