"""Unauthenticated clients that send garbage to the nodes: the bytes, and the connections.

`draw_garbage` is pure: it draws the bytes of one connection. GarbageClients opens connections to one node and counts
how they end. They belong to the harness's process; to a node they are connections like any other.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Final

from nodeproc.client import Address
from nodeproc.core.messages import START, Join, NodeId
from nodeproc.frames import PREAMBLE, PeerHello, PeerProof, encode_frame
from nodeproc.net.handshake import NONCE_BYTES, VERSION
from nodeproc.records import PREFIX

PATIENCE_S: Final = 3.0
"""A connection that the node has not closed after this time is aborted. A node's handshake has less time than that."""
LONGEST_NOISE: Final = 8192


@dataclass(frozen=True, slots=True)
class Target:
    """The node that gets garbage, and what an outsider can know of its cluster.

    cluster: the cluster id that is part of a node's handshake; the secret stays unknown.
    peer: a member that the clients claim to be.
    members: all ids, ascending.
    """

    address: Address
    cluster: str
    peer: NodeId
    members: tuple[NodeId, ...]


# ---- the bytes -----------------------------------------------------------------------------------


def noise(rng: random.Random, target: Target) -> bytes:
    """Random bytes."""
    return rng.randbytes(rng.randint(1, LONGEST_NOISE))


def lines(rng: random.Random, target: Target) -> bytes:
    """Lines of random bytes."""
    return b"\n".join(rng.randbytes(rng.randint(0, 80)) for _ in range(rng.randint(1, 20))) + b"\n"


def almost_lines(rng: random.Random, target: Target) -> bytes:
    """JSON that almost belongs to the client protocol."""
    value: object = rng.choice([None, -1, 10**30, 0.5, "x" * 300, [], {}, ["a"] * 50, True])
    line = {
        "type": rng.choice(["HELLO", "CHAT", "SUBSCRIBE", "STATUS", "WELCOME", "", 7]),
        rng.choice(["client_id", "session", "born", "first", "payloads", "from", "more"]): value,
    }
    return json.dumps(line).encode() + b"\n"


def hello_then_noise(rng: random.Random, target: Target) -> bytes:
    """A correct HELLO, and random bytes behind it."""
    return b'{"type":"HELLO","client_id":1}\n' + noise(rng, target) + b"\n"


def endless_line(rng: random.Random, target: Target) -> bytes:
    """A first line without an end."""
    return b'{"type":"HELLO","session":"' + b"x" * rng.randint(5000, 100_000)


def frames(rng: random.Random, target: Target) -> bytes:
    """The preamble of a node's connection, and random bytes behind it."""
    return PREAMBLE + noise(rng, target)


def large_frame(rng: random.Random, target: Target) -> bytes:
    """A frame whose length a node must not allocate."""
    return PREAMBLE + PREFIX.pack(rng.randint(1, 2**32 - 1), rng.randint(5000, 2**32 - 1), 0) + noise(rng, target)


def frame_without_handshake(rng: random.Random, target: Target) -> bytes:
    """A correct frame, without a handshake before it."""
    return PREAMBLE + b"".join(encode_frame(Join(START)))


def torn_hello(rng: random.Random, target: Target) -> bytes:
    """The beginning of a node's handshake."""
    whole = wrong_proof(rng, target)
    return whole[: rng.randrange(1, len(whole) // 2)]


def wrong_proof(rng: random.Random, target: Target) -> bytes:
    """A member's handshake with a wrong proof, and a frame right behind it."""
    nonce = rng.randbytes(NONCE_BYTES).hex()
    hello = PeerHello(VERSION, target.cluster, target.peer, "x", False, nonce, target.members)
    proof = PeerProof(rng.randbytes(32).hex())
    return PREAMBLE + b"".join(b"".join(encode_frame(each)) for each in (hello, proof, Join(START)))


def other_protocol(rng: random.Random, target: Target) -> bytes:
    """The first bytes of an HTTP or TLS client."""
    return rng.choice([b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"\x16\x03\x01\x02\x00\x01\x00" + rng.randbytes(200)])


KINDS: Final[tuple[Callable[[random.Random, Target], bytes], ...]] = (
    noise,
    lines,
    almost_lines,
    hello_then_noise,
    endless_line,
    frames,
    large_frame,
    frame_without_handshake,
    torn_hello,
    wrong_proof,
    other_protocol,
)


def draw_garbage(rng: random.Random, target: Target) -> bytes:
    """Draw a kind of garbage, and the bytes of one connection."""
    return rng.choice(KINDS)(rng, target)


def draw_half_open(rng: random.Random) -> bytes:
    """Draw what a half-open client sends: nothing, or the beginning of a HELLO."""
    return b'{"type":"HELLO","client_id":1}'[: rng.choice([0, 0, 1, 9, 30])]


# ---- the connections -----------------------------------------------------------------------------


@dataclass(slots=True)
class GarbageClients:
    """The clients that send garbage to one node, and how their connections ended.

    said: bytes that they sent. closed: connections with garbage that the node closed. left: connections that the node
    had not closed after PATIENCE_S. refused: connections that the node refused. held: half-open connections that were
    still open at the end.
    """

    target: Target
    connections: int = 0
    said: int = 0
    closed: int = 0
    left: int = 0
    refused: int = 0
    half_open: int = 0
    held: int = 0

    def evidence(self) -> dict[str, Any]:
        """Return the counts."""
        return {name: value for name, value in asdict(self).items() if name != "target"}

    async def run(self, connections: int, half_open: int, time_s: float, rng: random.Random) -> None:
        """Open the half-open connections at once, and spread the others over the time.

        Returns when the time is over and every connection is closed.
        """
        over, loop = asyncio.Event(), asyncio.get_running_loop()
        holding = [asyncio.ensure_future(self._hold_open(draw_half_open(rng), over)) for _ in range(half_open)]
        sending: list[asyncio.Future[None]] = []
        began = loop.time()
        try:
            for number in range(connections):
                await asyncio.sleep(max(0.0, began + time_s * number / connections - loop.time()))
                sending.append(asyncio.ensure_future(self._send(draw_garbage(rng, self.target))))
            await asyncio.sleep(max(0.0, began + time_s - loop.time()))
            await asyncio.gather(*sending)
        finally:
            over.set()
            for each in sending:
                each.cancel()
            await asyncio.gather(*holding, *sending, return_exceptions=True)

    async def _send(self, said: bytes) -> None:
        """Send this in two pieces, and wait for the node to close the connection."""
        self.connections += 1
        try:
            reader, writer = await asyncio.open_connection(*self.target.address)
        except OSError:
            self.refused += 1
            return
        half = len(said) // 2
        try:
            async with asyncio.timeout(PATIENCE_S):
                for piece in (said[:half], said[half:]):
                    self.said += len(piece)
                    writer.write(piece)
                    await writer.drain()
                    await asyncio.sleep(0)
                await _read_to_end(reader)
            self.closed += 1
        except TimeoutError:
            self.left += 1
        except OSError:  # A reset: the node has closed the connection without reading all of it.
            self.closed += 1
        finally:
            writer.transport.abort()

    async def _hold_open(self, said: bytes, until: asyncio.Event) -> None:
        """Send this, and then nothing until the event."""
        self.half_open += 1
        try:
            reader, writer = await asyncio.open_connection(*self.target.address)
        except OSError:
            self.refused += 1
            return
        writer.write(said)
        self.said += len(said)
        ended = asyncio.ensure_future(_read_to_end(reader))
        over = asyncio.ensure_future(until.wait())
        try:
            await asyncio.wait((ended, over), return_when=asyncio.FIRST_COMPLETED)
            self.held += not ended.done()
        finally:
            ended.cancel()
            over.cancel()
            writer.transport.abort()
            await asyncio.gather(ended, over, return_exceptions=True)


async def _read_to_end(reader: asyncio.StreamReader) -> None:
    while await reader.read(1 << 16):
        pass


def share_of(whole: int, at: int, parts: int) -> int:
    """Return the share of part `at` (from 0) if a whole is distributed over the parts in turn."""
    return whole // parts + (at < whole % parts)
