"""A simulated node process: the product's turn, core, storage and client connections in virtual time.

It is the host of nodeproc.turn, as nodeproc.runtime is in a real process: it decides when a turn runs and how long the
disk takes. One fdatasync at a time covers what was written before it began.
"""

from __future__ import annotations

import asyncio
import errno
import random
from collections.abc import Callable, Sequence
from typing import Any

from lab.course.damage import draw_tear, loss_of
from lab.course.simfiles import PowerLost, SimFiles
from lab.sim.loop import VirtualLoop
from lab.sim.network import HIGH_BYTES, Network, SimTransport, join
from lab.steps.damage import Loss
from lab.steps.orders import NEVER, Counts, Orders
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

EPOCH = 1_700_000_000.0
"""The wall clock at virtual time 0, seconds."""
TURN_S = 0.00002
"""From an input to the turn that takes it."""
SYNC_LEAST_S, SYNC_MOST_S = 0.0002, 0.002
HANGS_S = 1e6
"""What a sync takes on a disk that does not answer."""
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
        self.files = SimFiles(random.Random(f"{seed} disk {self.node_id}"))
        self.running = self.paused = False
        self.starts = 0
        self._life = 0
        """Counts processes; what was posted for an older one is void."""
        self._ways = {to: way for (source, to), way in network.ways.items() if source == self.node_id}
        self._orders, self._drift = Orders(), 0.0
        self._clock_base = self._clock_at = loop.now
        self._slowed = self._refused_writes = self._failed = self._misread = 0
        """See Counts."""
        self.loss: Loss | None = None
        """What the latest power loss took."""
        self.core: Node
        self.storage: Storage
        self.turn: Turn

    @property
    def node(self) -> NodeId:
        return self.node_id

    # ---- clocks ------------------------------------------------------------------------------------

    def clock(self) -> float:
        """The core's clock: it runs too fast or slow by `drift`, and stands while the process is stopped."""
        self._misread += self._orders.drift != 0.0
        return self._clock()

    def _clock(self) -> float:
        if self.paused:
            return self._clock_base
        return self._clock_base + (self._loop.now - self._clock_at) * (1.0 + self._drift)

    def set_drift(self, drift: float) -> None:
        self._clock_base, self._clock_at = self._clock(), self._loop.now
        self._drift = drift

    def _wall(self) -> float:
        self._misread += self._orders.wall_s != 0.0
        return EPOCH + self._loop.now + self._orders.wall_s

    # ---- life --------------------------------------------------------------------------------------

    def start(self, rebuild: bool = False) -> bool:
        """A new process on the same disk. False: it refused to start (its event says why)."""
        assert not self.running
        self._life += 1
        self.starts += 1
        self.loss = None
        limits = self.config.limits
        try:
            self.storage, recovered, events = Storage.open(
                self.files,
                self.node_id,
                durability="fsync",
                segment_bytes=limits.segment_bytes,
                max_sessions=limits.max_sessions,
                rebuild=rebuild,
                new_identity=lambda: f"{self._rng.getrandbits(128):032x}",
                members=self.config.members,
            )
        except PowerLost:
            self.files = self.files.crash(self._rng)
            return False
        except ChatError as error:
            self._count_full(error)
            self.emit([Failed(str(error))])
            self._on_end(self.node_id, EXIT_CORRUPTION if isinstance(error, CorruptionError) else 4, False)
            return False
        self.identity = recovered.identity
        self._clock_base, self._clock_at = self._clock(), self._loop.now
        self.running, self.paused = True, False
        self._syncing = False
        self._begun: tuple[Any, Any] | None = None
        """What the sync under way covers: of the storage's segments, of the files."""
        self._timer_at = float("inf")
        self._connections: dict[SimTransport, None] = {}
        self._refused: dict[NodeId, Event] = {}
        core_rng = random.Random(self._rng.getrandbits(64))
        self.core = Node.recover(self.config.core(), recovered, self.clock(), core_rng, Sealer(self._wall))
        self.turn = _Turn(self.core, self.storage, limits, self)
        self._scrub = Scrub(self.storage, limits.scrub_bytes_per_s or 1, limits.scrub_rest_ms / 1000)
        if limits.scrub_bytes_per_s:
            self._loop.post(self._loop.now + FIRST_S, self._scrub_piece, self._life)
        self._guarded(self._begin, [*events, Listening(self.config.host, self.node_id)])
        if self.running:
            self._network.started(self.node_id)
        return self.running

    def _begin(self, events: Sequence[Event]) -> None:
        self.emit(events)
        now = self.clock()
        self._arm(self.turn.begin(now), now)

    def kill(self) -> None:
        """SIGKILL: what was written stays in the system's cache."""
        self._end(KILLED, asked=True)

    def lose_power(self, torn: bool = False) -> Loss:
        """The machine stops: what was not synced is lost, in part or whole.

        torn: the WAL ends in the middle of an entry, where one is not synced.
        """
        if self.loss is not None:
            return self.loss  # In the middle of a write.
        before = self.files
        before.crash_at = None
        contents, synced = before.contents(), before.synced()
        tear = draw_tear(contents, synced, self._rng) if torn else None
        self.files = before.crash(self._rng)
        self.files.on_operation = before.on_operation  # What is in force outlasts the power.
        if tear is not None:
            self.files.put(tear.name, contents[tear.name][: tear.end])
        self.loss = loss_of(contents, synced, self.files.contents(), tear)
        self._end(KILLED, asked=True)
        return self.loss

    def tearable(self) -> bool:
        """An entry of the WAL waits for its sync."""
        return draw_tear(self.files.contents(), self.files.synced(), random.Random(0)) is not None

    def lose_disk(self) -> None:
        """An empty data directory takes the place of this one."""
        self.files = SimFiles(random.Random(self._rng.getrandbits(64)))

    def obey(self, orders: Orders) -> None:
        """From now on its disk and its clock do this."""
        self._orders, files = orders, self.files
        files.capacity = None if orders.room == NEVER else orders.room
        files.crash_at = None if orders.die_at == NEVER else orders.die_at
        files.on_operation = self._fail if orders.fail_sync or orders.fail_append else None

    def quicken_sync(self) -> None:
        """The sync under way returns at once."""
        if self.running and self._syncing:
            self._loop.post(self._loop.now + SYNC_LEAST_S, self._synced, self._life, self._sync_ticket)

    def _fail(self, operation: str, name: str) -> None:
        if (operation == "sync" and self._orders.fail_sync) or (operation == "append" and self._orders.fail_append):
            self._failed += 1
            raise OSError(errno.EIO, "Input/output error", name)

    def counts(self) -> Counts:
        """What came of the orders so far."""
        return Counts(
            operations=self.files.operations,
            appended=self.files.used(),
            refused=self._refused_writes,
            failed=self._failed,
            slowed=self._slowed,
            misread=self._misread,
        )

    def stop(self) -> None:
        """SIGTERM."""
        if self.paused:
            self.resume()
        self._guarded(self._stop)

    def _stop(self) -> None:
        self.emit([Stopping("SIGTERM")])
        self._end_sync()
        self.storage.close(self.core.snapshot())
        self._end(EXIT_CLEAN, asked=True)

    def pause(self) -> None:
        self._clock_base, self._clock_at = self._clock(), self._loop.now
        self.paused = True

    def resume(self) -> None:
        self.paused = False
        self._clock_at = self._loop.now
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
            self._count_full(error)
            self.emit([Failed(str(error))])
            self._end(EXIT_WRITE_FAILED if isinstance(error, WriteFailed) else EXIT_CORRUPTION, asked=False)

    def _count_full(self, error: BaseException) -> None:
        """A write that failed on a full disk found no room: nothing else fails there."""
        self._refused_writes += isinstance(error, WriteFailed) and self.files.capacity is not None

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
        now = self.clock()
        try:
            self._arm(self.turn.run(now), now)
        except ENDINGS as error:
            self._ended_by(error)

    def _arm(self, deadline: float, now: float) -> None:
        """A turn no later than the core's deadline."""
        wait = (deadline - now) / (1.0 + self._drift) if deadline > now else 0.0
        when = self._loop.now + wait + TURN_S
        if when < self._timer_at:
            self._timer_at = when
            self._loop.post(when, self._on_timer, self._life, when)

    def _on_timer(self, life: int, when: float) -> None:
        if life != self._life or when != self._timer_at:
            return
        self._timer_at = float("inf")
        now, deadline = self.clock(), self.core.next_deadline()
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
        if self._syncing:
            return
        self._syncing = True
        self._begun = self.storage.written(), self.files.sizes()
        slower = HANGS_S if self._orders.hang else self._orders.slow_s
        took = SYNC_LEAST_S + self._rng.random() * (SYNC_MOST_S - SYNC_LEAST_S) + slower
        self._slowed += self._orders.slow_s > 0
        self._sync_ticket = ticket
        self._loop.post(self._loop.now + took, self._synced, self._life, self._sync_ticket)

    def _synced(self, life: int, ticket: int) -> None:
        if life == self._life and self._syncing and ticket == self._sync_ticket:
            self._guarded(self._after_sync, ticket)

    def _after_sync(self, ticket: int) -> None:
        self._end_sync()
        self._syncing = False
        self.turn.durable = ticket
        if self.core.written > ticket:
            self.sync_soon(self.core.written)
        self.turn.ask()

    def _end_sync(self) -> None:
        """The sync under way returns, or fails."""
        if self._begun is not None:
            (written, self.files.began), self._begun = self._begun, None
            try:
                self.storage.sync(written)
            finally:
                self.files.began = None

    def checkpoint_soon(self) -> None:
        """At once, where the product has a thread for it; that waits for a sync under way and then syncs for itself."""
        self._end_sync()
        try:
            self.emit([self.storage.checkpoint(self.core.snapshot())])
        except (ReadFailed, Unreadable) as error:
            self.emit([CheckpointPutOff(str(error))])

    def _scrub_piece(self, life: int) -> None:
        if life == self._life:
            self._guarded(self._scrub_now)

    def _scrub_now(self) -> None:
        wait = FIRST_S
        if not self.paused:
            try:
                wait = self._scrub.succeeded(*self._scrub.read())
            except Unreadable as error:
                self.turn.reading.mend(error)
                wait = self._scrub.failed(error)
        self._loop.post(self._loop.now + wait, self._scrub_piece, self._life)

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
