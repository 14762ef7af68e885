"""The network between nodes, where a scenario treats it badly: `python -m lab.live.proxy`, a process of its own.

It listens on one port for each directed pair of nodes. What node 3 sends to node 1 goes through the pair (3, 1): cut
into whole frames, put on that pair's lab.course.links.Link, and written to node 1 when it leaves the link. Of a
frame only the lengths and the type in its header are looked at. What a node answers on the connection that the other
one opened (its half of the handshake) passes straight, unless nothing at all gets through in its direction. Clients get
one port for each node where a scenario treats their links too: lab.course.client_links.

Control, JSON lines: orders on standard input, one answer each on standard output. End of input ends the process, so
it never outlives the harness.
"""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import itertools
import random
import time
from collections.abc import Callable
from typing import TypeAlias, cast

import msgspec
from msgspec import Struct

from lab.course.client_links import BytesPair, ClientDoor, ClientWay
from lab.course.frames import BYTES, FrameCutter
from lab.course.links import NEVER, Link
from lab.course.tcp import HELD_BYTES, abort, no_delay
from lab.live.children import orders, run_child, say
from lab.steps.rules import CLIENTS, LinkCounts, Pair, Rule
from nodeproc.core.messages import NodeId

# ---- control -------------------------------------------------------------------------------------


class Open(Struct, frozen=True, forbid_unknown_fields=True, tag_field="do", tag="open"):
    """First order: the nodes' own ports.

    clients: links of clients are treated too.
    frames: what nodes send each other are this project's frames; else it is bytes.
    """

    host: str
    ports: dict[NodeId, int]
    seed: int
    clients: bool = False
    frames: bool = True


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
    """Answer to Open: (sender, receiver, port) of every pair, that of clients to a node included."""

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
    """Answer to Break: how many connections there were."""

    connections: int


# ---- connections ---------------------------------------------------------------------------------


class _Far(asyncio.Protocol):
    """The connection to the receiver."""

    def __init__(self, near: _Near) -> None:
        self._near = near

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        no_delay(cast(asyncio.Transport, transport))

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
        no_delay(self.transport)
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
        abort(self.transport, reset=reset)
        if self._far is not None:
            abort(self._far, reset=reset)

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
        address: the receiver's own.
    """

    back: ProxiedPair
    """The pair in the other direction."""

    def __init__(self, address: tuple[str, int], rng: random.Random) -> None:
        self.address = address
        self.link: Link[bytes] = Link(rng, BYTES)
        self._near: _Near | None = None

    @property
    def counts(self) -> LinkCounts:
        return self.link.counts

    def refuses(self) -> bool:
        """Whether a connection that opens now is turned away; if so, that counts."""
        rule = self.link.rule
        refused = rule is not None and rule.refuse
        self.counts.refused += refused
        return refused

    def answers_vanish(self) -> bool:
        """Whether what the receiver says on the sender's connection is lost now; if so, that counts."""
        rule = self.back.link.rule
        silent = rule is not None and rule.silent
        self.back.counts.lost += silent
        return silent

    def reset(self) -> int:
        """Break the connection; returns how many there were, 0 or 1."""
        if self._near is None:
            return 0
        self._near.break_off(reset=True)
        return 1

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
            self.counts.reset += self.reset()
        if self._near is not None:
            self._near.pump()


# ---- the process ---------------------------------------------------------------------------------


class Proxy:
    """All pairs of one cluster."""

    def __init__(self) -> None:
        self.pairs: dict[Pair, ProxiedPair | BytesPair | ClientWay] = {}

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
                return Broken(sum(self.pairs[pair].reset() for pair in order.pairs))
            case Count():
                return self._evidence()

    async def _open(self, order: Open) -> Opened:
        """Listen on a free port for every pair."""
        host, ports = order.host, order.ports
        opened = await (self._open_frames(order) if order.frames else self._open_bytes(order))
        for node in sorted(ports) if order.clients else ():
            door = ClientDoor((host, ports[node]), random.Random(f"clients {order.seed} {node}"))
            self.pairs[CLIENTS, node], self.pairs[node, CLIENTS] = door.to_node, door.from_node
            opened.append((CLIENTS, node, await _listen(host, door.accept)))
        return Opened(tuple(opened))

    async def _open_frames(self, order: Open) -> list[tuple[NodeId, NodeId, int]]:
        host, ports = order.host, order.ports
        pairs: dict[Pair, ProxiedPair] = {}
        for sender, receiver in itertools.permutations(sorted(ports), 2):
            rng = random.Random(f"link {order.seed} {sender} {receiver}")
            pairs[sender, receiver] = ProxiedPair((host, ports[receiver]), rng)
        opened = []
        for (sender, receiver), pair in pairs.items():
            pair.back = pairs[receiver, sender]
            opened.append((sender, receiver, await _listen(host, functools.partial(_Near, pair))))
        self.pairs |= pairs
        return opened

    async def _open_bytes(self, order: Open) -> list[tuple[NodeId, NodeId, int]]:
        host, ports = order.host, order.ports
        doors: dict[Pair, ClientDoor] = {}
        for sender, receiver in itertools.permutations(sorted(ports), 2):
            rng = random.Random(f"link {order.seed} {sender} {receiver}")
            doors[sender, receiver] = ClientDoor((host, ports[receiver]), rng)
        for sender, receiver in doors:
            self.pairs[sender, receiver] = BytesPair(doors[sender, receiver], doors[receiver, sender])
        return [(sender, receiver, await _listen(host, door.accept)) for (sender, receiver), door in doors.items()]

    def _evidence(self) -> Evidence:
        return Evidence(tuple(LinkEvidence(*pair, dataclasses.replace(way.counts)) for pair, way in self.pairs.items()))


async def _listen(host: str, accept: Callable[[], asyncio.Protocol]) -> int:
    server = await asyncio.get_running_loop().create_server(accept, host, 0)
    return int(server.sockets[0].getsockname()[1])


async def main() -> None:
    """Obey standard input until it ends."""
    proxy = Proxy()
    decode = msgspec.json.Decoder(Order).decode
    async for line in orders():
        say(msgspec.json.encode(await proxy.obey(decode(line))))


if __name__ == "__main__":
    run_child(main())
