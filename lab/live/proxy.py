"""The proxy between nodes, and between clients and nodes: `python -m lab.live.proxy`, a process of its own.

The proxy listens on one port for each directed pair of nodes. Frames from node 3 to node 1 pass the link (3, 1): the
proxy cuts the stream into whole frames, puts them on that pair's lab.course.links.Link, and writes them to node 1 when
they leave the link. Of a frame it reads only the lengths and the type. The receiver's bytes on the same connection (its
half of the handshake) pass unchanged, unless a rule drops everything in that direction. If a scenario has rules for
client links, the proxy also listens on one port for the clients of each node: lab.course.client_links.

Control uses JSON lines: orders on standard input, one answer to each on standard output. The process ends when its
input ends, so that it never outlives the harness.
"""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import random
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeAlias, cast

import msgspec
from msgspec import Struct, structs

from lab.course.client_links import BytesPair, ClientLink, ClientPort
from lab.course.forwarding import Connection, End
from lab.course.frames import BYTES, Chosen, FrameCutter, frame_text
from lab.course.links import Link
from lab.live.children import orders, run_child, say
from lab.rows import FrameRow, encode_row
from lab.steps.rules import CLIENTS, LinkCounts, Pair, Rule
from lab.words import FRAME_TYPES
from nodeproc.client import Address
from nodeproc.core.messages import NodeId, PeerMessage
from nodeproc.errors import FrameError
from nodeproc.frames import FrameDecoder

# ---- control -------------------------------------------------------------------------------------


class Open(Struct, frozen=True, forbid_unknown_fields=True, tag_field="do", tag="open"):
    """First order: the nodes' own ports.

    clients: listen for clients too.
    frames: the nodes send this project's frames to each other; False: only the bytes are known.
    record: path of frames.jsonl, in which the frames chosen by lab.course.frames.Chosen are recorded; "": none.
    """

    host: str
    ports: dict[NodeId, int]
    seed: int
    clients: bool = False
    frames: bool = True
    record: str = ""


class SetRule(Struct, frozen=True, forbid_unknown_fields=True, tag_field="do", tag="set_rule"):
    """Replace the rules of some links by this one; None: no rule."""

    pairs: tuple[Pair, ...]
    rule: Rule | None


class Break(Struct, frozen=True, forbid_unknown_fields=True, tag_field="do", tag="break"):
    """Reset the connections of these links, once."""

    pairs: tuple[Pair, ...]


class Count(Struct, frozen=True, forbid_unknown_fields=True, tag_field="do", tag="count"):
    """Ask for the evidence."""


Order: TypeAlias = Open | SetRule | Break | Count


class Opened(Struct, frozen=True):
    """Answer to Open: (sender, receiver, port) of every pair, clients included."""

    ports: tuple[tuple[NodeId, NodeId, int], ...]


class LinkEvidence(Struct, frozen=True):
    """What happened to one link's frames so far."""

    sender: NodeId
    receiver: NodeId
    counts: LinkCounts


class Evidence(Struct, frozen=True):
    """Answer to Count, and to SetRule (before the change)."""

    links: tuple[LinkEvidence, ...]


class Broken(Struct, frozen=True):
    """Answer to Break: how many connections were reset."""

    connections: int


# ---- the record of frames --------------------------------------------------------------------------


_RECORDED = frozenset(FRAME_TYPES)


class Record:
    """Writes rows of frames.jsonl, each as soon as it is known what became of its frame.

    Args:
        path: the file; it may not exist yet.
    """

    def __init__(self, path: Path) -> None:
        self._file = path.open("ab", buffering=0)
        self._chosen = Chosen()
        self._under_way: dict[int, tuple[bytes, FrameRow]] = {}
        """id() of a frame, which stays alive here -> the frame and its row, as if it were lost."""

    def entered(self, source: NodeId, to: NodeId, kind: str, frame: bytes, now: float) -> None:
        """A frame was put on a link. Handshakes are left out: they are about secrets."""
        if kind in _RECORDED and self._chosen.takes(source, to, kind):
            try:
                message = next(iter(FrameDecoder().feed(frame)))
            except FrameError:
                return
            row = FrameRow(int(now * 1e9), source, to, kind, frame_text(cast(PeerMessage, message)), ())
            self._under_way[id(frame)] = frame, row

    def left(self, pieces: Sequence[bytes], now: float) -> None:
        """These bytes left a link. A frame that was corrupted or cut in pieces is among them as other bytes."""
        arrivals = [id(piece) for piece in pieces if id(piece) in self._under_way] if self._under_way else []
        for number in dict.fromkeys(arrivals):
            _, row = self._under_way.pop(number)
            self._write(structs.replace(row, arrived=(int(now * 1e9),) * arrivals.count(number)))

    def lost(self, source: NodeId, to: NodeId) -> None:
        """Nothing that is on this link will arrive."""
        gone = [at for at, (_, row) in self._under_way.items() if (row.source, row.to) == (source, to)]
        for number in gone:
            self._write(self._under_way.pop(number)[1])

    def close(self) -> None:
        for _, row in self._under_way.values():
            self._write(row)
        self._file.close()

    def _write(self, row: FrameRow) -> None:
        self._file.write(encode_row(row))


# ---- links of frames -----------------------------------------------------------------------------


class FrameLink:
    """One directed pair of nodes: its link, which outlives connections, and the sender's newest connection.

    Args:
        address: the receiver's own.
    """

    back: FrameLink
    """The pair in the other direction."""

    def __init__(self, address: Address, rng: random.Random, pair: Pair = (0, 0), record: Record | None = None) -> None:
        self.address, self.pair, self.record = address, pair, record
        self.link: Link[bytes] = Link(rng, BYTES)
        self._connection: Connection | None = None
        """The connection in use: bytes were sent on it. A mere look at whether the port listens sends none."""

    @property
    def counts(self) -> LinkCounts:
        return self.link.counts

    def accept(self) -> asyncio.Protocol:
        """Return the protocol for a connection that the sender opens."""
        return Connection(self, _SenderEnd(self), _ReceiverEnd(self)).near

    def refuses(self) -> bool:
        """See Gate."""
        rule = self.link.rule
        refused = rule is not None and rule.refuse
        self.counts.refused += refused
        return refused

    def opened(self, connection: Connection) -> None:
        """See Gate."""

    def closed(self, connection: Connection) -> None:
        """See Gate. The frames under way are lost."""
        if self._connection is connection:
            self._connection = None
            self.link.clear()
            if self.record is not None:
                self.record.lost(*self.pair)

    def uses(self, connection: Connection) -> None:
        """The sender uses a new connection: break off the older one."""
        if self._connection is not None:
            self._connection.break_off(reset=False)
        self._connection = connection

    def answers_vanish(self) -> bool:
        """Return whether the receiver's bytes on the sender's connection are lost now; if so, count it."""
        rule = self.back.link.rule
        silent = rule is not None and rule.silent
        self.back.counts.lost += silent
        return silent

    def set_rule(self, rule: Rule | None) -> None:
        """Obey this rule from now on; None: no rule."""
        self.link.set_rule(rule, time.monotonic())
        if rule is not None and rule.refuse:
            self.counts.reset += self.reset()
        if self._connection is not None:
            self._connection.near.pump()

    def reset(self) -> int:
        """Break the connection in use; return how many there were, 0 or 1."""
        if self._connection is None:
            return 0
        self._connection.break_off(reset=True)
        return 1


class _SenderEnd(End):
    """The sender's end: its bytes are cut into frames, which pass the pair's link."""

    def __init__(self, pair: FrameLink) -> None:
        super().__init__(pair.link)
        self._pair, self._cutter = pair, FrameCutter()
        self._used = False

    def data_received(self, data: bytes) -> None:
        if not self._used:
            self._used = True
            if self._pair.refuses():
                self.connection.break_off(reset=True)
                return
            self._pair.uses(self.connection)
        now = self.clock()
        record = self._pair.record
        for kind, frame in self._cutter.feed(data):
            if record is not None:
                record.entered(*self._pair.pair, kind, frame, now)
            self.held_bytes += len(frame) * self.link.enter(kind, frame, now)
        self.pump()

    def left(self, pieces: Sequence[bytes], now: float) -> None:
        if self._pair.record is not None:
            self._pair.record.left(pieces, now)

    def connection_lost(self, exc: Exception | None) -> None:
        self.ended = True  # The frames under way still arrive.
        self.pump()

    def pump(self) -> None:
        if self._used:
            super().pump()
        elif self.other.transport is not None:
            self.read(not self.ended)
            if self.ended:
                self.connection.break_off(reset=False)

    def finish(self, far: asyncio.Transport) -> None:
        super().finish(far)
        if self.transport is not None:
            self.transport.close()


class _ReceiverEnd(End):
    """The receiver's end: its half of the handshake passes unchanged."""

    def __init__(self, pair: FrameLink) -> None:
        super().__init__(Link(random.Random(0), BYTES))
        self._pair = pair

    def data_received(self, data: bytes) -> None:
        if not self._pair.answers_vanish():
            super().data_received(data)

    def eof_received(self) -> bool:
        return False  # A receiver that closes ends the connection.


# ---- the process ---------------------------------------------------------------------------------


class Proxy:
    """All links of one cluster."""

    def __init__(self) -> None:
        self.links: dict[Pair, FrameLink | BytesPair | ClientLink] = {}
        self.record: Record | None = None

    async def obey(self, order: Order) -> Opened | Evidence | Broken:
        """Carry out an order; return the answer to it."""
        match order:
            case Open():
                return await self._open(order)
            case SetRule():
                evidence = self._evidence()
                for pair in order.pairs:
                    self.links[pair].set_rule(order.rule)
                return evidence
            case Break():
                return Broken(sum(self.links[pair].reset() for pair in order.pairs))
            case Count():
                return self._evidence()

    async def _open(self, order: Open) -> Opened:
        """Listen on a free port for every pair."""
        addresses = {node: (order.host, port) for node, port in sorted(order.ports.items())}
        rngs = {
            pair: random.Random(f"link {order.seed} {pair[0]} {pair[1]}")
            for pair in itertools.permutations(addresses, 2)
        }
        gates: dict[Pair, FrameLink | ClientPort] = {}
        if order.frames:
            self.record = Record(Path(order.record)) if order.record else None
            frames = {pair: FrameLink(addresses[pair[1]], rng, pair, self.record) for pair, rng in rngs.items()}
            for (sender, receiver), link in frames.items():
                link.back = frames[receiver, sender]
            gates |= frames
            self.links |= frames
        else:
            ports = {pair: ClientPort(addresses[pair[1]], rng) for pair, rng in rngs.items()}
            gates |= ports
            self.links |= {(one, other): BytesPair(ports[one, other], ports[other, one]) for one, other in ports}
        for node, address in addresses.items() if order.clients else ():
            port = gates[CLIENTS, node] = ClientPort(address, random.Random(f"clients {order.seed} {node}"))
            self.links[CLIENTS, node], self.links[node, CLIENTS] = port.to_node, port.from_node
        return Opened(tuple([(*pair, await _listen(order.host, gate.accept)) for pair, gate in gates.items()]))

    def _evidence(self) -> Evidence:
        return Evidence(
            tuple(LinkEvidence(*pair, dataclasses.replace(link.counts)) for pair, link in self.links.items())
        )


async def _listen(host: str, accept: Callable[[], asyncio.Protocol]) -> int:
    server = await asyncio.get_running_loop().create_server(accept, host, 0)
    return int(server.sockets[0].getsockname()[1])


async def main() -> None:
    """Obey standard input until it ends."""
    proxy = Proxy()
    decode = msgspec.json.Decoder(Order).decode
    async for line in orders():
        say(msgspec.json.encode(await proxy.obey(decode(line))))
    if proxy.record is not None:
        proxy.record.close()


if __name__ == "__main__":
    run_child(main())
