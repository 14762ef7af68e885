"""Strangers at the nodes' ports: what they say, and the connections on which they say it.

`say_nonsense` is pure: it draws one stranger's bytes. A Crowd opens connections of strangers to one node, and counts
what became of them. All of it happens in the harness's own loop; the nodes see sockets like any other.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from nodeproc.client import Address
from nodeproc.core.messages import START, Join, NodeId
from nodeproc.frames import PREAMBLE, PeerHello, PeerProof, encode_frame
from nodeproc.net.handshake import NONCE_BYTES, VERSION
from nodeproc.records import PREFIX

PATIENCE_S: Final = 3.0
"""For a node to close a connection: longer than it gives a node to prove itself. Then the stranger leaves."""
LONGEST_NOISE: Final = 8192


@dataclass(frozen=True, slots=True)
class Mark:
    """Whom the strangers are after.

    node: whose port it is.
    cluster: what its links go by; the secret they don't know.
    peer: a member that they claim to be.
    members: all ids, ascending.
    """

    node: NodeId
    address: Address
    cluster: str
    peer: NodeId
    members: tuple[NodeId, ...]


# ---- what they say -------------------------------------------------------------------------------


def noise(rng: random.Random, mark: Mark) -> bytes:
    """Anything."""
    return rng.randbytes(rng.randint(1, LONGEST_NOISE))


def lines(rng: random.Random, mark: Mark) -> bytes:
    """Lines of anything."""
    return b"\n".join(rng.randbytes(rng.randint(0, 80)) for _ in range(rng.randint(1, 20))) + b"\n"


def almost_lines(rng: random.Random, mark: Mark) -> bytes:
    """JSON that is nearly the client protocol's."""
    value: object = rng.choice([None, -1, 10**30, 0.5, "x" * 300, [], {}, ["a"] * 50, True])
    line = {
        "type": rng.choice(["HELLO", "CHAT", "SUBSCRIBE", "STATUS", "WELCOME", "", 7]),
        rng.choice(["client_id", "session", "born", "first", "payloads", "from", "more"]): value,
    }
    return json.dumps(line).encode() + b"\n"


def half_a_talk(rng: random.Random, mark: Mark) -> bytes:
    """A greeting as it should be, and nonsense behind it."""
    return b'{"type":"HELLO","client_id":1}\n' + noise(rng, mark) + b"\n"


def endless_line(rng: random.Random, mark: Mark) -> bytes:
    """A first line of which no end is in sight."""
    return b'{"type":"HELLO","session":"' + b"x" * rng.randint(5000, 100_000)


def frames(rng: random.Random, mark: Mark) -> bytes:
    """What opens like a node and says anything."""
    return PREAMBLE + noise(rng, mark)


def large_frame(rng: random.Random, mark: Mark) -> bytes:
    """A frame of a length that a node must not make room for."""
    return PREAMBLE + PREFIX.pack(rng.randint(1, 2**32 - 1), rng.randint(5000, 2**32 - 1), 0) + noise(rng, mark)


def frame_out_of_turn(rng: random.Random, mark: Mark) -> bytes:
    """A frame of the protocol from one who has proven nothing."""
    return PREAMBLE + b"".join(encode_frame(Join(START)))


def torn_greeting(rng: random.Random, mark: Mark) -> bytes:
    """A node's greeting that breaks off."""
    whole = liar(rng, mark)
    return whole[: rng.randrange(1, len(whole) // 2)]


def liar(rng: random.Random, mark: Mark) -> bytes:
    """A member's greeting with a proof that is none, and a frame right behind it."""
    nonce = rng.randbytes(NONCE_BYTES).hex()
    hello = PeerHello(VERSION, mark.cluster, mark.peer, "x", False, nonce, mark.members)
    proof = PeerProof(rng.randbytes(32).hex())
    return PREAMBLE + b"".join(b"".join(encode_frame(each)) for each in (hello, proof, Join(START)))


def other_protocol(rng: random.Random, mark: Mark) -> bytes:
    """A browser, or one that wants TLS."""
    return rng.choice([b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"\x16\x03\x01\x02\x00\x01\x00" + rng.randbytes(200)])


KINDS: Final[tuple[Callable[[random.Random, Mark], bytes], ...]] = (
    noise,
    lines,
    almost_lines,
    half_a_talk,
    endless_line,
    frames,
    large_frame,
    frame_out_of_turn,
    torn_greeting,
    liar,
    other_protocol,
)


def say_nonsense(rng: random.Random, mark: Mark) -> bytes:
    """What one stranger says, of a kind drawn."""
    return rng.choice(KINDS)(rng, mark)


def say_half(rng: random.Random) -> bytes:
    """What a half-open client says: nothing, or a greeting without its end."""
    return b'{"type":"HELLO","client_id":1}'[: rng.choice([0, 0, 1, 9, 30])]


# ---- their connections ---------------------------------------------------------------------------


@dataclass(slots=True)
class Crowd:
    """The strangers at one node's port, and what became of them.

    said: bytes that they sent. closed: connections with nonsense that the node closed. left: those that it did not, in
    PATIENCE_S. refused: those that it did not take. held: half-open ones that it still held at the end.
    """

    mark: Mark
    connections: int = 0
    said: int = 0
    closed: int = 0
    left: int = 0
    refused: int = 0
    half_open: int = 0
    held: int = 0

    async def throw(self, said: bytes) -> None:
        """One stranger says this in two pieces, hears the node out, and leaves when he is not closed."""
        self.connections += 1
        try:
            reader, writer = await asyncio.open_connection(*self.mark.address)
        except OSError:
            self.refused += 1
            return
        try:
            async with asyncio.timeout(PATIENCE_S):
                await self._say(writer, said)
                while await reader.read(1 << 16):
                    pass
            self.closed += 1
        except TimeoutError:
            self.left += 1
        except OSError:  # Reset: the node had not read all of it.
            self.closed += 1
        finally:
            writer.transport.abort()

    async def _say(self, writer: asyncio.StreamWriter, said: bytes) -> None:
        half = len(said) // 2
        for piece in (said[:half], said[half:]):
            self.said += len(piece)
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0)

    async def hold(self, said: bytes, until: asyncio.Event) -> None:
        """A half-open client: says this, and then nothing until the event."""
        self.half_open += 1
        try:
            reader, writer = await asyncio.open_connection(*self.mark.address)
        except OSError:
            self.refused += 1
            return
        writer.write(said)
        self.said += len(said)
        ended = asyncio.ensure_future(_heard_out(reader))
        over = asyncio.ensure_future(until.wait())
        try:
            await asyncio.wait((ended, over), return_when=asyncio.FIRST_COMPLETED)
            self.held += not ended.done()
        finally:
            ended.cancel()
            over.cancel()
            writer.transport.abort()


async def _heard_out(reader: asyncio.StreamReader) -> None:
    try:
        while await reader.read(1 << 16):
            pass
    except OSError:
        pass


async def besiege(crowd: Crowd, connections: int, half_open: int, time_s: float, rng: random.Random) -> None:
    """So many of both kinds at one port: half-open ones at once and until the end, the others over the time.

    Done when the time is over and every connection is closed.
    """
    over = asyncio.Event()
    holding = [asyncio.ensure_future(crowd.hold(say_half(rng), over)) for _ in range(half_open)]
    throwing: list[asyncio.Future[None]] = []
    loop = asyncio.get_running_loop()
    began = loop.time()
    try:
        for number in range(connections):
            await asyncio.sleep(max(0.0, began + time_s * number / connections - loop.time()))
            throwing.append(asyncio.ensure_future(crowd.throw(say_nonsense(rng, crowd.mark))))
        await asyncio.sleep(max(0.0, began + time_s - loop.time()))
        await asyncio.gather(*throwing)
    finally:
        over.set()
        for each in throwing:
            each.cancel()
        await asyncio.gather(*holding, *throwing, return_exceptions=True)
