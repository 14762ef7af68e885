"""The network between nodes, where a scenario wants to treat it badly: `python -m lab.run.proxy`, a process of its own.

It listens on one port for each directed pair of nodes. What node 3 sends to node 1 goes through the pair (3, 1): cut
into whole frames, put on that pair's lab.run.links.Link, and written to node 1 when it leaves the link. Of a
frame only the lengths and the type in its header are looked at. What a node answers on the connection that the other
one opened (its half of the handshake) passes straight, unless nothing at all gets through in its direction.

Control, JSON lines: orders on standard input, one answer each on standard output. End of input ends the process, so
it never outlives the harness.
"""

from __future__ import annotations

import asyncio
import dataclasses
import random
import socket
import struct
import time
from typing import TypeAlias, cast

import msgspec
from msgspec import Struct

from lab.run.children import orders, run_child, say
from lab.run.links import NEVER, Handling, Link, LinkCounts, Rule
from nodeproc.core.messages import NodeId
from nodeproc.wire import MAX_BODY, MAX_HEADER, PREAMBLE, PREFIX

Pair: TypeAlias = tuple[NodeId, NodeId]
"""(sender, receiver)"""

HELD_BYTES = 32 << 20
"""On their way over one link; past it the sender is not read any more."""

# ---- control -------------------------------------------------------------------------------------


class Open(Struct, frozen=True, forbid_unknown_fields=True, tag_field="do", tag="open"):
    """First order: the nodes' own ports."""

    host: str
    ports: dict[NodeId, int]
    seed: int


class Treat(Struct, frozen=True, forbid_unknown_fields=True, tag_field="do", tag="treat"):
    """Put a rule on some links in place of the ones they have; None: straight again."""

    pairs: tuple[Pair, ...]
    rule: Rule | None


class Break(Struct, frozen=True, forbid_unknown_fields=True, tag_field="do", tag="break"):
    """Reset the connections of these links, once."""

    pairs: tuple[Pair, ...]


class Count(Struct, frozen=True, forbid_unknown_fields=True, tag_field="do", tag="count"):
    """Ask for the evidence."""


Order: TypeAlias = Open | Treat | Break | Count


class Opened(Struct, frozen=True):
    """Answer to Open: (sender, receiver, port) of every pair."""

    ports: tuple[tuple[NodeId, NodeId, int], ...]


class LinkEvidence(Struct, frozen=True):
    """What became of one link's frames so far."""

    sender: NodeId
    receiver: NodeId
    counts: LinkCounts


class Evidence(Struct, frozen=True):
    """Answer to Treat (as it was before) and to Count."""

    links: tuple[LinkEvidence, ...]


class Broken(Struct, frozen=True):
    """Answer to Break: the links that had a connection."""

    pairs: tuple[Pair, ...]


# ---- frames --------------------------------------------------------------------------------------

_TYPE_START = b'{"type":"'
_PREAMBLE_TYPE = "PREAMBLE"


class _Typed(Struct):
    type: str


_decode_typed = msgspec.json.Decoder(_Typed).decode


def frame_type(head: bytes) -> str:
    """The type that a frame's JSON header names; "" where it names none."""
    if head.startswith(_TYPE_START):
        return head[len(_TYPE_START) : head.index(b'"', len(_TYPE_START))].decode()
    try:
        return _decode_typed(head).type
    except msgspec.MsgspecError:
        return ""


class FrameCutter:
    """Cuts what one node sends into whole frames, which stay bytes. One per connection.

    Bytes that can't be frames are passed on as they come, as one frame without type each: to refuse them is the
    receiver's affair.
    """

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._opened = False
        self._strange = False

    def feed(self, data: bytes) -> list[tuple[str, bytes]]:
        """The frames that are complete now, as (type, bytes)."""
        buffer = self._buffer
        buffer += data
        frames: list[tuple[str, bytes]] = []
        at = 0
        if not self._opened and len(buffer) >= len(PREAMBLE):
            self._opened, self._strange = True, not buffer.startswith(PREAMBLE)
            at = 0 if self._strange else len(PREAMBLE)
            frames += [] if self._strange else [(_PREAMBLE_TYPE, PREAMBLE)]
        while self._opened and not self._strange and len(buffer) >= at + PREFIX.size:
            head_len, body_len, _ = PREFIX.unpack_from(buffer, at)
            if not 0 < head_len <= MAX_HEADER or body_len > MAX_BODY:
                self._strange = True
                break
            head_at = at + PREFIX.size
            end = head_at + head_len + body_len
            if len(buffer) < end:
                break
            with memoryview(buffer) as view:
                frames.append((frame_type(bytes(view[head_at : head_at + head_len])), bytes(view[at:end])))
            at = end
        if self._strange and len(buffer) > at:
            frames.append(("", bytes(buffer[at:])))
            at = len(buffer)
        del buffer[:at]
        return frames


LENGTHS_BYTES = PREFIX.size - 4
"""A frame's first bytes, before the CRC."""


def spoil(frame: bytes, rng: random.Random) -> bytes:
    """A frame with one byte changed. Its lengths stay: a receiver told of a longer frame only waits for the rest."""
    at = rng.randrange(LENGTHS_BYTES if len(frame) > PREFIX.size else 0, len(frame))
    return frame[:at] + bytes([frame[at] ^ rng.randrange(1, 256)]) + frame[at + 1 :]


def pieces(frame: bytes, size: int) -> list[bytes]:
    """A frame cut in pieces of so many bytes."""
    return [frame[at : at + size] for at in range(0, len(frame), size)]


BYTES: Handling[bytes] = Handling(len, spoil, pieces)

# ---- connections ---------------------------------------------------------------------------------


class _Far(asyncio.Protocol):
    """The connection to the receiver."""

    def __init__(self, near: _Near) -> None:
        self._near = near

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        _no_delay(cast(asyncio.Transport, transport))

    def data_received(self, data: bytes) -> None:
        self._near.answer(data)

    def pause_writing(self) -> None:
        self._near.far_is_full = True
        self._near.pump()

    def resume_writing(self) -> None:
        self._near.far_is_full = False
        self._near.pump()

    def connection_lost(self, exc: Exception | None) -> None:
        self._near.break_off()


class _Near(asyncio.Protocol):
    """A connection that the sender opened, and the way of its frames to the receiver."""

    def __init__(self, pair: ProxiedPair) -> None:
        self._pair = pair
        self._cutter = FrameCutter()
        self._far: asyncio.Transport | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._ended = False
        self._broken = False
        self._used = False
        """Something was sent on it: it is the pair's connection, and no mere look at whether somebody listens."""
        self._reading = False
        self._held_bytes = 0
        self.far_is_full = False
        self.transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's is no subclass
        _no_delay(self.transport)
        if self._pair.refuses():
            self.break_off(reset=True)
            return
        self.transport.pause_reading()
        self._dialling = asyncio.get_running_loop().create_task(self._dial())

    async def _dial(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            transport, _ = await loop.create_connection(lambda: _Far(self), *self._pair.address)
        except OSError:
            self.break_off()
            return
        if self._broken:
            transport.abort()
            return
        self._far = transport
        self.pump()

    def data_received(self, data: bytes) -> None:
        if not self._used:
            self._used = True
            if self._pair.refuses():
                self.break_off(reset=True)
                return
            self._pair.replace(self)
        now = time.monotonic()
        for kind, frame in self._cutter.feed(data):
            self._held_bytes += len(frame) * self._pair.link.enter(kind, frame, now)
        self.pump()

    def eof_received(self) -> bool:
        self._ended = True
        self.pump()
        return True  # what is on its way is still delivered

    def connection_lost(self, exc: Exception | None) -> None:
        self._ended = True
        self.pump()

    def answer(self, data: bytes) -> None:
        """The receiver's half of the handshake."""
        if not self._pair.answers_vanish():
            self.transport.write(data)

    def break_off(self, *, reset: bool = False) -> None:
        """The receiver is gone, or was never there: so is everything on its way to it. reset: both ends get a RST."""
        if self._broken:
            return
        self._broken = True
        self._pair.forget(self)
        if self._timer is not None:
            self._timer.cancel()
        for transport in (self.transport, self._far):
            if transport is not None:
                if reset:
                    _no_linger(transport)
                transport.abort()

    def pump(self) -> None:
        """Hand over what arrives now, and come back when the next frame is due."""
        if self._broken or self._far is None:
            return
        if not self._used:
            self._read(not self._ended)
            if self._ended:
                self.break_off()
            return
        now, link = time.monotonic(), self._pair.link
        frames = link.leave(now)
        if frames:
            self._far.writelines(frames)
        due = link.next_due()
        if due == NEVER:
            self._held_bytes = 0
            if self._ended:
                self._far.close()
                self.transport.close()
        else:
            self._held_bytes -= sum(map(len, frames))
            self._arm(due, now)
        self._read(not self._ended and not self.far_is_full and self._held_bytes < HELD_BYTES)

    def _arm(self, due: float, now: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_later(max(0.0, due - now), self.pump)

    def _read(self, on: bool) -> None:
        if on == self._reading or self.transport.is_closing():
            return
        self._reading = on
        if on:
            self.transport.resume_reading()
        else:
            self.transport.pause_reading()


class ProxiedPair:
    """One directed pair of nodes: its link, which outlives connections, and its newest connection.

    Args:
        pairs: all of them; the one in the other direction is needed.
    """

    def __init__(self, pair: Pair, address: tuple[str, int], rng: random.Random, pairs: Pairs) -> None:
        self.sender, self.receiver = pair
        self.address, self._pairs = address, pairs
        self.link: Link[bytes] = Link(rng, BYTES)
        self._near: _Near | None = None

    def refuses(self) -> bool:
        """Whether a connection that opens now is turned away; if so, that counts."""
        rule = self.link.rule
        refused = rule is not None and rule.refuse
        self.link.counts.refused += refused
        return refused

    def answers_vanish(self) -> bool:
        """Whether what the receiver says on the sender's connection is lost now; if so, that counts."""
        back = self._pairs[self.receiver, self.sender].link
        silent = back.rule is not None and back.rule.silent
        back.counts.lost += silent
        return silent

    def reset(self) -> bool:
        """Break the connection; False: there was none."""
        if self._near is None:
            return False
        self._near.break_off(reset=True)
        return True

    def replace(self, near: _Near) -> None:
        """The sender opened a new connection: the older one is broken off."""
        if self._near is not None:
            self._near.break_off()
        self._near = near

    def forget(self, near: _Near) -> None:
        """This connection is gone, and all that was on its way with it."""
        if self._near is near:
            self._near = None
            self.link.clear()

    def treat(self, rule: Rule | None) -> None:
        self.link.set_rule(rule, time.monotonic())
        if rule is not None and rule.refuse:
            self.link.counts.reset += self.reset()
        if self._near is not None:
            self._near.pump()

    def evidence(self) -> LinkEvidence:
        return LinkEvidence(self.sender, self.receiver, dataclasses.replace(self.link.counts))


Pairs: TypeAlias = dict[Pair, ProxiedPair]


def _no_linger(transport: asyncio.Transport) -> None:
    """Closing sends a RST, and nothing that was still to be sent."""
    sock = transport.get_extra_info("socket")
    if sock is not None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def _no_delay(transport: asyncio.Transport) -> None:
    sock = transport.get_extra_info("socket")
    if sock is not None:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


# ---- the process ---------------------------------------------------------------------------------


class Proxy:
    """All pairs of one cluster."""

    def __init__(self) -> None:
        self.pairs: Pairs = {}

    async def obey(self, order: Order) -> Opened | Evidence | Broken:
        match order:
            case Open():
                return await self._open(order)
            case Treat():
                evidence = self._evidence()
                for pair in order.pairs:
                    self.pairs[pair].treat(order.rule)
                return evidence
            case Break():
                return Broken(tuple(pair for pair in order.pairs if self.pairs[pair].reset()))
            case Count():
                return self._evidence()

    async def _open(self, order: Open) -> Opened:
        """Listen on a free port for every pair."""
        opened = []
        for sender in sorted(order.ports):
            for receiver in sorted(order.ports):
                if sender != receiver:
                    rng = random.Random(f"link {order.seed} {sender} {receiver}")
                    pair = ProxiedPair((sender, receiver), (order.host, order.ports[receiver]), rng, self.pairs)
                    self.pairs[sender, receiver] = pair
                    opened.append((sender, receiver, await _listen(order.host, pair)))
        return Opened(tuple(opened))

    def _evidence(self) -> Evidence:
        return Evidence(tuple(pair.evidence() for pair in self.pairs.values()))


async def _listen(host: str, pair: ProxiedPair) -> int:
    server = await asyncio.get_running_loop().create_server(lambda: _Near(pair), host, 0)
    return int(server.sockets[0].getsockname()[1])


async def main() -> None:
    """Obey standard input until it ends."""
    proxy = Proxy()
    decode = msgspec.json.Decoder(Order).decode
    async for line in orders():
        say(msgspec.json.encode(await proxy.obey(decode(line))))


if __name__ == "__main__":
    run_child(main())
