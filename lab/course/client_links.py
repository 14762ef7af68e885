"""The ways of bytes through the proxy, where a scenario wants to treat them badly: between clients and one node, and
between two nodes whose frames nobody knows (`cluster.command`).

A client's connection is TCP with nothing in between: what is sent on it arrives whole and in order, or the connection
breaks. So a rule here holds bytes back, slows them, cuts them in pieces, and breaks and refuses connections; nothing is
ever lost on a connection that lives.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from dataclasses import fields
from typing import cast

from lab.course.frames import BYTES
from lab.course.links import NEVER, Link
from lab.course.tcp import HELD_BYTES, abort, no_delay
from lab.steps.rules import LinkCounts, Rule


class ClientDoor:
    """All connections of clients to one node, and the two ways on them.

    Args:
        address: the node's own.
        rng: for jitter.
        clock: monotonic seconds.
    """

    def __init__(
        self, address: tuple[str, int], rng: random.Random, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.address, self.clock = address, clock
        self.connections: list[_Connection] = []
        self.to_node = ClientWay(self, rng)
        self.from_node = ClientWay(self, rng)

    def accept(self) -> asyncio.Protocol:
        """The protocol for a connection that a client opens."""
        return _Connection(self).near

    def refuses(self) -> bool:
        """Whether a connection that opens now is turned away; if so, that counts."""
        refusing = [way for way in (self.to_node, self.from_node) if way.rule is not None and way.rule.refuse]
        for way in refusing:
            way.counts.refused += 1
        return bool(refusing)


class ClientWay:
    """One direction of all these connections: its rule, and what that did."""

    def __init__(self, door: ClientDoor, rng: random.Random) -> None:
        self._door, self._rng = door, rng
        self.rule: Rule | None = None
        self.counts = LinkCounts()

    def link(self) -> Link[bytes]:
        """For this direction of a new connection."""
        return Link(self._rng, BYTES, self.rule, self.counts)

    def treat(self, rule: Rule | None) -> None:
        self.rule = rule
        if rule is not None and rule.refuse:
            self.counts.reset += self.reset()
        for connection in self._door.connections:
            connection.obey(self)

    def reset(self) -> int:
        """Break all connections; returns how many there were."""
        connections = list(self._door.connections)
        for connection in connections:
            connection.break_off(reset=True)
        return len(connections)


class BytesPair:
    """One directed pair of nodes of which only bytes are known.

    What the sender says goes on the connection that it opened, and on the one that the receiver opened to it.

    Args:
        opened: the door for the sender's connections to the receiver.
        back: the one for the receiver's to the sender.
    """

    def __init__(self, opened: ClientDoor, back: ClientDoor) -> None:
        self._asking, self._answering = opened.to_node, back.from_node

    @property
    def counts(self) -> LinkCounts:
        """Of both added up."""
        one, other = self._asking.counts, self._answering.counts
        return LinkCounts(*(getattr(one, each.name) + getattr(other, each.name) for each in fields(LinkCounts)))

    def treat(self, rule: Rule | None) -> None:
        self._asking.treat(rule)
        # What the sender may not open, the receiver may: that is the pair in the other direction.
        self._answering.treat(None if rule is not None and rule.refuse else rule)

    def reset(self) -> int:
        """Break the connections that the sender opened; returns how many there were."""
        return self._asking.reset()


class _Connection:
    """A client's connection and its continuation to the node."""

    def __init__(self, door: ClientDoor) -> None:
        self._door, self._clock = door, door.clock
        self.near, self.far = _End(self, door.to_node, door.clock), _End(self, door.from_node, door.clock)
        self.near.other, self.far.other = self.far, self.near
        self._broken = False

    def opened(self, end: _End) -> None:
        if end is self.far:
            self.near.pump()
            self.far.pump()
        elif self._door.refuses():
            self.break_off(reset=True)
        else:
            self._door.connections.append(self)
            self._dialling = asyncio.get_running_loop().create_task(self._dial())

    async def _dial(self) -> None:
        try:
            await asyncio.get_running_loop().create_connection(lambda: self.far, *self._door.address)
        except OSError:
            self.break_off(reset=True)
            return
        if self._broken:
            self.far.break_off(reset=True)

    def obey(self, way: ClientWay) -> None:
        """The rule of this way has changed."""
        for end in (self.near, self.far):
            if end.way is way:
                end.link.set_rule(way.rule, self._clock())
                end.pump()

    def break_off(self, *, reset: bool) -> None:
        if self._broken:
            return
        self._broken = True
        if self in self._door.connections:
            self._door.connections.remove(self)
        self.near.break_off(reset=reset)
        self.far.break_off(reset=reset)


class _End(asyncio.Protocol):
    """One end of it. What comes in here leaves at the other end, by the rule of its way."""

    def __init__(self, connection: _Connection, way: ClientWay, clock: Callable[[], float]) -> None:
        self._connection, self.way, self._clock = connection, way, clock
        self.link = way.link()
        self.other: _End
        self._transport: asyncio.Transport | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._ended = self._full = False
        self._reading = True
        self._held_bytes = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is no subclass
        no_delay(self._transport)
        self._read(False)
        self._connection.opened(self)

    def data_received(self, data: bytes) -> None:
        self._held_bytes += len(data) * self.link.enter("", data, self._clock())
        self.pump()

    def eof_received(self) -> bool:
        self._ended = True
        self.pump()
        return True  # what is on its way is still delivered

    def connection_lost(self, exc: Exception | None) -> None:
        self._connection.break_off(reset=exc is not None)

    def pause_writing(self) -> None:
        self._full = True
        self.other.pump()

    def resume_writing(self) -> None:
        self._full = False
        self.other.pump()

    def pump(self) -> None:
        """Hand over what arrives now, and come back when more is due."""
        far = self.other._transport
        if self._transport is None or far is None or far.is_closing():
            return
        now = self._clock()
        pieces = self.link.leave(now)
        if pieces:
            self._held_bytes -= sum(map(len, pieces))
            far.writelines(pieces)
        due = self.link.next_due()
        if self._timer is not None:
            self._timer.cancel()
        if due != NEVER:
            self._timer = asyncio.get_running_loop().call_later(max(0.0, due - now), self.pump)
        elif self._ended:
            far.close()
        self._read(not self._ended and not self.other._full and self._held_bytes < HELD_BYTES)

    def _read(self, on: bool) -> None:
        if self._transport is None or on == self._reading or self._transport.is_closing():
            return
        self._reading = on
        if on:
            self._transport.resume_reading()
        else:
            self._transport.pause_reading()

    def break_off(self, *, reset: bool) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._transport is not None:
            abort(self._transport, reset=reset)
