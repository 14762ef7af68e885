"""Links of which only the bytes are known: between clients and one node, and between nodes of `cluster.command`.

Such a connection is plain TCP: bytes arrive complete and in order, or the connection breaks. So a rule can delay bytes,
slow them down, cut them in pieces, and break and refuse connections; it never loses bytes on a connection that lives.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from dataclasses import fields

from lab.course.forwarding import Connection, End
from lab.course.frames import BYTES
from lab.course.links import Link
from lab.steps.rules import LinkCounts, Rule
from nodeproc.client import Address


class ClientPort:
    """The proxy's port for the clients of one node: all their connections, and a link for each direction.

    Args:
        address: the node's own.
        rng: for jitter.
        clock: returns monotonic seconds.
    """

    def __init__(self, address: Address, rng: random.Random, clock: Callable[[], float] = time.monotonic) -> None:
        self.address, self.clock = address, clock
        self.connections: list[Connection] = []
        self.to_node = ClientLink(self, rng)
        self.from_node = ClientLink(self, rng)

    def accept(self) -> asyncio.Protocol:
        """Return the protocol for a connection that a client opens."""
        near, far = self.to_node.end(), self.from_node.end()
        return Connection(self, near, far).near

    def refuses(self) -> bool:
        """See Gate."""
        refusing = [link for link in (self.to_node, self.from_node) if link.rule is not None and link.rule.refuse]
        for link in refusing:
            link.counts.refused += 1
        return bool(refusing)

    def opened(self, connection: Connection) -> None:
        """See Gate."""
        self.connections.append(connection)

    def closed(self, connection: Connection) -> None:
        """See Gate."""
        if connection in self.connections:
            self.connections.remove(connection)


class ClientLink:
    """One direction of all connections of a port: its rule, and the evidence of the rule."""

    def __init__(self, port: ClientPort, rng: random.Random) -> None:
        self._port, self._rng = port, rng
        self.rule: Rule | None = None
        self.counts = LinkCounts()

    def end(self) -> End:
        """Return the end of a new connection at which the bytes of this direction arrive."""
        return End(Link(self._rng, BYTES, self.rule, self.counts), self._port.clock)

    def set_rule(self, rule: Rule | None) -> None:
        """Obey this rule from now on; None: no rule."""
        self.rule = rule
        if rule is not None and rule.refuse:
            self.counts.reset += self.reset()
        for connection in self._port.connections:
            end = connection.near if self is self._port.to_node else connection.far
            end.link.set_rule(rule, self._port.clock())
            end.pump()

    def reset(self) -> int:
        """Break all connections; return how many there were."""
        connections = list(self._port.connections)
        for connection in connections:
            connection.break_off(reset=True)
        return len(connections)


class BytesPair:
    """The directed link between two nodes of which only bytes are known.

    The sender's bytes travel on the connections that the sender opened, and on those that the receiver opened to it.

    Args:
        opened: the port for the sender's connections to the receiver.
        back: the port for the receiver's connections to the sender.
    """

    def __init__(self, opened: ClientPort, back: ClientPort) -> None:
        self._opened, self._back = opened.to_node, back.from_node

    @property
    def counts(self) -> LinkCounts:
        """The sum of both."""
        one, other = self._opened.counts, self._back.counts
        return LinkCounts(*(getattr(one, each.name) + getattr(other, each.name) for each in fields(LinkCounts)))

    def set_rule(self, rule: Rule | None) -> None:
        """Obey this rule from now on; None: no rule."""
        self._opened.set_rule(rule)
        # `refuse` applies to the connections that the sender opens, not to those of the receiver.
        self._back.set_rule(None if rule is not None and rule.refuse else rule)

    def reset(self) -> int:
        """Break the connections that the sender opened; return how many there were."""
        return self._opened.reset()
