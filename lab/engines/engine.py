"""The interface of a driver: the part of the adapter (lab.engines.adapter) that knows one engine.

A driver stores records. A record holds consecutive messages of one session, and the engine stores it only if it has the
session's messages before it: so a record that is sent again is stored once. docs/engines.md explains how to write one.
"""

from __future__ import annotations

import asyncio
import importlib
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import ClassVar, NamedTuple

from lab.engines.catalogue import Spec
from nodeproc.client import Address
from nodeproc.core.messages import NodeId, Term

POLL_S = 0.05
"""From one look at an engine to the next."""
SETTLED_S = 0.3


class Refused(Exception):
    """The engine has certainly not stored the record, and will not."""


class Unknown(Exception):
    """The engine may have stored the record, or may still store it."""


class Entry(NamedTuple):
    """A record in the store of one node: messages of a session up to `last`; `value` is the text given to append()."""

    session: str
    last: int
    value: str


class EngineStatus(NamedTuple):
    """The leader and its term, as the node's own engine reports them. leader: 0 if the engine knows none.

    Both are of the same moment: the new leader beside the old term, or the other way round, would be a second leader of
    that term to A7.
    """

    leader: NodeId
    term: Term


class Settled:
    """Keeps back the leader that a follower reports, until it has reported the same leader and term for SETTLED_S.

    A follower that has voted in a new term shows that term beside the leader of the old one, until the new leader has
    written to it. node: the local one, which knows for sure whether it leads.
    """

    def __init__(self, node: NodeId) -> None:
        self._node = node
        self._found, self._since = EngineStatus(0, 0), 0.0

    def is_sure(self, found: EngineStatus) -> bool:
        """Return whether to believe the latest report."""
        now = time.monotonic()
        if found != self._found:
            self._found, self._since = found, now
        return found.leader in (0, self._node) or now - self._since >= SETTLED_S


class Place(NamedTuple):
    """The surroundings of one node's engine.

    ids: all nodes, ascending. hosts: node -> the address at which its engine listens, on the engine's usual ports.
    data_dir: the engine's data; everything below it is lost when the node loses its disk.
    conf_dir: for configuration files.
    reach: returns the address at which this node reaches a port of a node's engine, through the lab's links.
    """

    node: NodeId
    ids: tuple[NodeId, ...]
    hosts: Mapping[NodeId, str]
    data_dir: Path
    conf_dir: Path
    heartbeat_ms: int
    election_ms: int
    reach: Callable[[NodeId, int], Address]

    @property
    def host(self) -> str:
        """The address of this node's engine."""
        return self.hosts[self.node]

    @property
    def others(self) -> tuple[NodeId, ...]:
        """The other nodes, ascending."""
        return tuple(node for node in self.ids if node != self.node)


class Engine(ABC):
    """One node's engine, seen by the adapter of the same node.

    Args:
        program: path of the server's program.
        options: `cluster.engine_options` of the scenario; lab.engines.catalogue lists the allowed ones.
    """

    resends: ClassVar[bool] = True
    """The engine stores a record that is sent again only once. False: after Unknown, the session has to end."""
    read_when_stopped: ClassVar[bool] = False
    """tail() reads files, which are complete only once the engine has stopped."""

    def __init__(self, place: Place, program: str, options: Mapping[str, str]) -> None:
        self.place, self.program, self.options = place, program, options

    # ---- its process -----------------------------------------------------------------------------

    def files(self) -> Mapping[str, str]:
        """Return the configuration files to write into conf_dir before the first start: name -> content."""
        return {}

    def prepared(self) -> Sequence[str]:
        """Make the directories and the configuration files that are missing; return the arguments of the server."""
        place = self.place
        place.data_dir.mkdir(exist_ok=True)
        place.conf_dir.mkdir(exist_ok=True)
        for name, content in self.files().items():
            if not (place.conf_dir / name).exists():  # Some servers keep state in their configuration.
                (place.conf_dir / name).write_text(content)
        return self.command()

    @abstractmethod
    def command(self) -> Sequence[str]:
        """Return the arguments that start the server in the foreground."""

    def environment(self) -> Mapping[str, str]:
        """Return variables to add to the environment."""
        return {}

    # ---- the cluster -----------------------------------------------------------------------------

    @abstractmethod
    async def ready(self) -> bool:
        """Return whether the local server answers. A leader need not exist."""

    async def setup(self) -> None:  # noqa: B027 (most engines need none)
        """Create what records need (a stream, a path, …) unless it exists.

        Each node calls this after each start, again and again until it raises nothing.
        """

    async def lead(self) -> None:  # noqa: B027 (few engines can)
        """Ask the engine to make this node the leader, where it offers that.

        The node with the highest id calls this again and again at its first start, until it leads: the lab's own nodes
        begin with that leader too.
        """

    @abstractmethod
    async def status(self) -> EngineStatus:
        """Return what the local server says. Raises: any Exception if it does not answer."""

    # ---- records ---------------------------------------------------------------------------------

    @abstractmethod
    async def append(self, session: str, first: int, last: int, value: str) -> int:
        """Store a record with messages first..last of a session, if the session's last message is first - 1.

        Returns:
            The session's last message now. `last`: the record is stored, as durably as the engine promises. Less than
            first - 1: a gap.

        Raises:
            Refused, Unknown.
        """

    @abstractmethod
    def tail(self) -> AsyncGenerator[Sequence[Entry], None]:
        """Yield the records that this node's own store holds, in its order: first all that are there, then new ones.

        The iterator ends when records that it has yielded are gone from the store. Raises: any Exception if the store
        cannot be read now.
        """

    async def close(self) -> None:  # noqa: B027 (most engines need none)
        """Close connections; called once, at the end."""


def driver_of(spec: Spec) -> type[Engine]:
    """Return the driver of an engine. Raises: ImportError: the library of its client is missing."""
    module, _, name = spec.kind.driver.partition(":")
    driver: type[Engine] = getattr(importlib.import_module(module), name)
    return driver


async def until(attempt: Callable[[], Awaitable[bool]]) -> None:
    """Call this again and again until it returns true; an error counts as false."""
    while True:
        with suppress(Exception):  # Each library has its own errors for a server that does not answer.
            if await attempt():
                return
        await asyncio.sleep(POLL_S)
