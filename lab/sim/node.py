"""A simulated node process: the product's turn, core, storage and client connections in virtual time.

It is the host of nodeproc.turn, as nodeproc.runtime is in a real process: it decides when a turn runs and how long the
disk takes. One fdatasync at a time covers what was written before it began.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence
from typing import Any

from lab.course.simfiles import PowerLost
from lab.sim.hardware import SimClock, SimDisk, Syncing
from lab.sim.loop import VirtualLoop
from lab.sim.network import HIGH_BYTES, Network, SimTransport, join
from lab.steps.damage import Loss
from nodeproc.config import Limits, NodeConfig
from nodeproc.core.events import CheckpointPutOff, Event, Failed, Listening, Stopping
from nodeproc.core.messages import NOTHING, NodeId, PeerMessage, Promised, Record, SeqNo
from nodeproc.core.node import Node
from nodeproc.core.state import Leader
from nodeproc.disk.scrub import FIRST_S, Scrub
from nodeproc.disk.storage import Storage
from nodeproc.errors import (
    EXIT_CLEAN,
    EXIT_CORRUPTION,
    EXIT_WRITE_FAILED,
    ChatError,
    CorruptionError,
    ReadFailed,
    Unreadable,
    WriteFailed,
)
from nodeproc.records import Sealer
from nodeproc.turn import Turn

TURN_S = 0.00002
"""From an input to the turn that takes it."""
KILLED = -9
ENDINGS = (PowerLost, WriteFailed, CorruptionError)
"""What ends a node's process, of all that its code may raise."""


class SimNode:
    """One node of the cluster over all its lives.

    Args:
        on_event: called with every event: (node, event).
        on_delivered: called with every delivered record: (node, records).
        on_end: called when the process ends: (node, exit code, asked for).
    """

    def __init__(
        self,
        loop: VirtualLoop,
        network: Network,
        config: NodeConfig,
        seed: int,
        on_event: Callable[[NodeId, Event], None],
        on_delivered: Callable[[NodeId, Sequence[Record]], None],
        on_end: Callable[[NodeId, int, bool], None],
    ) -> None:
        self._loop, self._network, self.config = loop, network, config
        self.node_id = config.node_id
        self._rng = random.Random(f"{seed} node {self.node_id}")
        self._on_event, self._on_delivered, self._on_end = on_event, on_delivered, on_end
        self.disk = SimDisk(self._rng, f"{seed} disk {self.node_id}")
        self.clock = SimClock(loop)
        self.running = self.paused = False
        self.starts = 0
        self._life = 0
        """Counts processes; what was posted for an older one is void."""
        self._ways = {to: way for (source, to), way in network.ways.items() if source == self.node_id}
        self.core: Node
        self.storage: Storage
        self.turn: Turn

    # ---- life --------------------------------------------------------------------------------------

    def start(self, rebuild: bool = False) -> bool:
        """A new process on the same disk. False: it refused to start (its event says why)."""
        assert not self.running
        self._life += 1
        self.starts += 1
        self.disk.loss = None
        limits = self.config.limits
        try:
            self.storage, recovered, events = Storage.open(
                self.disk.files,
                self.node_id,
                durability="fsync",
                segment_bytes=limits.segment_bytes,
                max_sessions=limits.max_sessions,
                rebuild=rebuild,
                new_identity=lambda: f"{self._rng.getrandbits(128):032x}",
                members=self.config.members,
            )
        except PowerLost:
            self.disk.lose_power(torn=False)
            return False
        except ChatError as error:
            self.disk.count_full(error)
            self.emit([Failed(str(error))])
            self._on_end(self.node_id, EXIT_CORRUPTION if isinstance(error, CorruptionError) else 4, False)
            return False
        self.identity = recovered.identity
        self.clock.go_on()
        self.running, self.paused = True, False
        self._syncing = Syncing(self.disk, self.storage, self._post, self._synced)
        self._timer_at = float("inf")
        self._connections: dict[SimTransport, None] = {}
        self._refused: dict[NodeId, Event] = {}
        core_rng = random.Random(self._rng.getrandbits(64))
        self.core = Node.recover(self.config.core(), recovered, self.clock.now(), core_rng, Sealer(self.clock.wall))
        self.turn = _Turn(self.core, self.storage, limits, self)
        self._scrub = Scrub(self.storage, limits.scrub_bytes_per_s or 1, limits.scrub_rest_ms / 1000)
        if limits.scrub_bytes_per_s:
            self._post(FIRST_S, self._scrub_piece)
        self._guarded(self._begin, [*events, Listening(self.config.host, self.node_id)])
        if self.running:
            self._network.started(self.node_id)
        return self.running

    def _begin(self, events: Sequence[Event]) -> None:
        self.emit(events)
        now = self.clock.now()
        self._arm(self.turn.begin(now), now)

    def kill(self) -> None:
        """SIGKILL: what was written stays in the system's cache."""
        self._end(KILLED, asked=True)

    def lose_power(self, torn: bool = False) -> Loss:
        """The machine stops. See SimDisk.lose_power."""
        loss = self.disk.loss or self.disk.lose_power(torn)  # It may have died in the middle of a write.
        self._end(KILLED, asked=True)
        return loss

    def quicken_sync(self) -> None:
        """The sync under way returns at once."""
        if self.running:
            self._syncing.quicken()

    def stop(self) -> None:
        """SIGTERM."""
        if self.paused:
            self.resume()
        self._guarded(self._stop)

    def _stop(self) -> None:
        self.emit([Stopping("SIGTERM")])
        self._syncing.finish()
        self.storage.close(self.core.snapshot())
        self._end(EXIT_CLEAN, asked=True)

    def pause(self) -> None:
        """SIGSTOP."""
        self.clock.stop()
        self.paused = True

    def resume(self) -> None:
        """SIGCONT."""
        self.paused = False
        self.clock.go_on()
        self.core.stood_still()
        self._timer_at = float("inf")
        for transport in self._rng.sample(list(self._connections), len(self._connections)):
            transport.pump()  # In any order: a client's new connection may be served before the end of its old one.
        self.turn.ask()

    def _end(self, code: int, asked: bool) -> None:
        if not self.running:
            return
        self.running = self.paused = False
        self._life += 1
        self._network.ended(self.node_id)
        for transport in list(self._connections):
            transport.abort()
        self._on_end(self.node_id, code, asked)

    def _guarded(self, action: Callable[..., None], *args: Any) -> None:
        """Run code of the node; what ends a process ends it here."""
        try:
            action(*args)
        except ENDINGS as error:
            self._ended_by(error)

    def _ended_by(self, error: BaseException) -> None:
        if isinstance(error, PowerLost):
            self.lose_power()
        else:
            self.disk.count_full(error)
            self.emit([Failed(str(error))])
            self._end(EXIT_WRITE_FAILED if isinstance(error, WriteFailed) else EXIT_CORRUPTION, asked=False)

    def excess(self) -> str:
        """Which of its limits on memory this node exceeds at this moment; "": none. Rule: P1, S7."""
        role, limits = self.core.state.role, self.config.limits
        if isinstance(role, Leader):
            for peer, progress in role.progress.items():
                before = progress.inflight_bytes - (progress.inflight[-1][1] if progress.inflight else 0)
                if before >= limits.inflight_max_bytes:
                    allowed = limits.inflight_max_bytes
                    return f"{before} bytes were under way to node {peer} and more was sent, P1 allows {allowed}"
        allowed = limits.intake_window_bytes + HIGH_BYTES * len(self.turn.clients.connections)
        if self.turn.clients.intake_bytes > allowed:
            return f"{self.turn.clients.intake_bytes} bytes are taken in from clients, S7 allows {allowed} here"
        return ""

    # ---- links -------------------------------------------------------------------------------------

    def refuses(self, peer: SimNode) -> bool:
        """Whether this node's handshake refuses the peer's data directory, which it reports once. Rule: M4."""
        refused = self.core.identity_refusal(peer.node_id, peer.identity, peer.rebuilding)
        if refused is not None and self._refused.get(peer.node_id) != refused:
            self._refused[peer.node_id] = refused
            self.emit([refused])
        return refused is not None

    def promised(self, peer: NodeId) -> Promised:
        """What this node's handshake says that the peer has promised. Rule: M6."""
        return self.core.state.promises().get(peer, NOTHING)

    # ---- clients -----------------------------------------------------------------------------------

    def connect(self, protocol: asyncio.BaseProtocol) -> tuple[SimTransport, asyncio.BaseProtocol]:
        """A client's connection; returns the client's end."""
        life = self._life
        near, far = join(
            self._loop,
            random.Random(self._rng.getrandbits(64)),
            protocol,
            self.turn.clients.accept(),
            lambda: self.running and not self.paused and self._life == life,
        )
        self._connections = {each: None for each in self._connections if not each._lost}
        self._connections[far] = None
        return near

    # ---- turns -------------------------------------------------------------------------------------

    def _run_turn(self, life: int) -> None:
        if life != self._life:
            return
        if self.paused:
            self.turn.due = False
            return
        now = self.clock.now()
        try:
            self._arm(self.turn.run(now), now)
        except ENDINGS as error:
            self._ended_by(error)

    def _arm(self, deadline: float, now: float) -> None:
        """A turn no later than the core's deadline."""
        wait = self.clock.lasts(deadline - now) if deadline > now else 0.0
        when = self._loop.now + wait + TURN_S
        if when < self._timer_at:
            self._timer_at = when
            self._loop.post(when, self._on_timer, self._life, when)

    def _on_timer(self, life: int, when: float) -> None:
        if life != self._life or when != self._timer_at:
            return
        self._timer_at = float("inf")
        now, deadline = self.clock.now(), self.core.next_deadline()
        if deadline > now:  # It has moved since; a process that is stopped arms its timer anew when it goes on.
            self._arm(deadline, now)
        else:
            self._run_turn(life)

    # ---- what the turn needs (nodeproc.turn.Host) ----------------------------------------------------

    def turn_soon(self) -> None:
        if self.running:
            self._loop.post(self._loop.now + TURN_S, self._run_turn, self._life)

    def emit(self, events: Sequence[Event]) -> None:
        for event in events:
            self._on_event(self.node_id, event)

    def send(self, messages: Sequence[tuple[NodeId, PeerMessage]]) -> None:
        for peer, message in messages:
            self._ways[peer].send(message)

    def deliver(self, records: Sequence[Record]) -> None:
        self._on_delivered(self.node_id, records)  # First: all may be left of a write that is cut short.
        self.storage.deliver(records)

    def report(self, event: Event, address: str = "") -> None:
        if self.running:
            self.emit([event])

    def vitals(self) -> tuple[float, int, dict[str, int]]:
        return round(self._loop.now, 3), self.node_id, {}

    # ---- the disk ----------------------------------------------------------------------------------

    def sync_soon(self, ticket: int) -> None:
        self._syncing.begin(ticket)

    def _post(self, wait_s: float, action: Callable[..., None], *args: Any) -> None:
        """Do this so much later, unless the process has ended by then."""
        self._loop.post(self._loop.now + wait_s, self._act, self._life, action, args)

    def _act(self, life: int, action: Callable[..., None], args: tuple[Any, ...]) -> None:
        if life == self._life:
            self._guarded(action, *args)

    def _synced(self, ticket: int) -> None:
        self.turn.durable = ticket
        if self.core.written > ticket:
            self.sync_soon(self.core.written)
        self.turn.ask()

    def checkpoint_soon(self) -> None:
        """At once, where the product has a thread for it; that waits for a sync under way and then syncs for itself."""
        self._syncing.finish()
        try:
            self.emit([self.storage.checkpoint(self.core.snapshot())])
        except (ReadFailed, Unreadable) as error:
            self.emit([CheckpointPutOff(str(error))])

    def _scrub_piece(self) -> None:
        wait = FIRST_S
        if not self.paused:
            try:
                wait = self._scrub.succeeded(*self._scrub.read())
            except Unreadable as error:
                self.turn.reading.mend(error)
                wait = self._scrub.failed(error)
        self._post(wait, self._scrub_piece)

    @property
    def rebuilding(self) -> bool:
        return self.core.state.rebuilding


class _Turn(Turn):
    """The turn of a simulated node."""

    def __init__(self, node: Node, storage: Storage, limits: Limits, host: SimNode) -> None:
        super().__init__(node, storage, limits, host)
        self._power = host

    def read_lines(self, start: SeqNo, max_bytes: int) -> tuple[bytes, SeqNo]:
        try:
            return super().read_lines(start, max_bytes)
        except PowerLost:  # A subscriber's own turn: nothing of the node is above it that could end the process.
            self._power.lose_power()
            return b"", start - 1
