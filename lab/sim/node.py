"""A simulated node: the product's turn, core, storage and client connections in virtual time.

The node is the host of nodeproc.turn, as nodeproc.runtime is in a real process: it decides when a turn runs and how
long the disk takes. One fdatasync at a time runs; it covers what was written before it began.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final

from lab.course.simfiles import PowerLost
from lab.sim.hardware import Syncing
from lab.sim.network import HIGH_BYTES, SimTransport, join
from nodeproc.config import Limits
from nodeproc.core.events import CheckpointPutOff, Event, Failed, Listening, Stopping, TransferFailed
from nodeproc.core.messages import NOBODY, NOTHING, LinkUp, NodeId, PeerMessage, Record, SeqNo
from nodeproc.core.node import Node
from nodeproc.core.recovered import Recovered
from nodeproc.core.state import Leader
from nodeproc.disk.scrub import FIRST_S, Scrub
from nodeproc.disk.storage import Storage
from nodeproc.errors import (
    EXIT_CLEAN,
    EXIT_CORRUPTION,
    EXIT_DISK_FAILED,
    CorruptionError,
    ReadFailed,
    Unreadable,
    WriteFailed,
)
from nodeproc.records import Sealer
from nodeproc.turn import Turn

if TYPE_CHECKING:
    from lab.sim.machine import SimMachine

TURN_S: Final = 0.00002
"""From an input to the turn that takes the input."""
KILLED: Final = -9
ENDINGS: Final = (PowerLost, WriteFailed, CorruptionError)
"""The errors of a node's code that end its process; any other error is a bug and ends the simulation."""
NEVER: Final = float("inf")


class SimNode:
    """One process of a node, from its start to its end. Every start of the node makes a new one.

    Args:
        machine: provides the disk and the clock, and is notified of events, deliveries and the end.
        storage, recovered: what Storage.open found on that disk.
    """

    def __init__(self, machine: SimMachine, storage: Storage, recovered: Recovered) -> None:
        self._machine, self._clock, self._loop, self._network = machine, machine.clock, machine.loop, machine.network
        self.node, self.config, self._rng = machine.node, machine.config, machine.rng
        self.storage, self.identity = storage, recovered.identity
        self.running, self.paused = True, False
        self._links = {to: link for (source, to), link in self._network.links.items() if source == self.node}
        self.syncing = Syncing(machine.disk, storage, self._post, self._synced)
        self._timer_at = NEVER
        self._leaving = False
        """The process ends as soon as it transfers its leadership no more."""
        self.has_left = False
        """The node stops because it is a member no more."""
        self._connections: dict[SimTransport, None] = {}
        self._refused: dict[NodeId, Event] = {}
        limits, now = self.config.limits, self._clock.now()
        core_rng = random.Random(self._rng.getrandbits(64))
        self.core = Node.recover(self.config.core(), recovered, now, core_rng, Sealer(machine.clock.wall))
        self._promises = machine.promises
        self._promises.started(self.node, self.core.state)
        self.turn = _Turn(self.core, storage, limits, self)
        self._scrub = Scrub(storage, limits.scrub_bytes_per_s or 1, limits.scrub_rest_ms / 1000)
        if limits.scrub_bytes_per_s:
            self._post(FIRST_S, self._scrub_piece)

    # ---- life --------------------------------------------------------------------------------------

    def run(self, action: Callable[..., None], *args: Any) -> None:
        """Run code of the node, if the process still runs; an error that ends a real process ends this one."""
        if self.running:
            try:
                action(*args)
            except ENDINGS as error:
                self.ended_by(error)

    def ended_by(self, error: BaseException) -> None:
        """The node's code raised one of ENDINGS."""
        if isinstance(error, PowerLost):
            self._machine.disk.lose_power(torn=False)
            self.end(KILLED, asked=True)
        else:
            self._machine.disk.count_full(error)
            self.emit([Failed(str(error))])
            self.end(EXIT_DISK_FAILED if isinstance(error, WriteFailed) else EXIT_CORRUPTION, asked=False)

    def begin(self, events: Sequence[Event]) -> None:
        """Report how recovery went, and start the node."""
        self.emit([*events, Listening(self.config.host, self.node)])
        now = self._clock.now()
        self._arm(self.turn.begin(now), now)

    def terminate(self, *, transfer: bool) -> None:
        """SIGTERM. transfer: as of nodeproc.runtime.Runtime.stop. Rule: E7."""
        self.emit([Stopping("SIGTERM")])
        if transfer and not self._leaving and not self.turn.transfer():
            self._leaving = True
        else:
            self._leave()

    def transfer(self) -> None:
        """SIGUSR1: as nodeproc.runtime.Runtime.transfer. Rule: E7."""
        if refusal := self.turn.transfer():
            self.emit([TransferFailed(self.core.state.term, NOBODY, refusal)])

    def _leave(self) -> None:
        self.syncing.finish()
        self.storage.close(self.core.snapshot())
        self.end(EXIT_CLEAN, asked=True)

    def pause(self) -> None:
        """SIGSTOP."""
        self._clock.stop()
        self.paused = True

    def resume(self) -> None:
        """SIGCONT."""
        self.paused = False
        self._clock.go_on()
        self.core.stood_still()
        self._timer_at = NEVER
        for transport in self._rng.sample(list(self._connections), len(self._connections)):
            transport.pump()  # In any order: a client's new connection may be served before the end of its old one.
        self.turn.ask()

    def end(self, code: int, *, asked: bool) -> None:
        """End the process; what it wrote stays in the system's cache. asked: by a signal or a power loss."""
        if not self.running:
            return
        self.running = self.paused = False
        self._network.ended(self.node)
        for transport in list(self._connections):
            transport.abort()
        self._machine.on_end(self.node, code, asked)

    # ---- links and clients -------------------------------------------------------------------------

    def refuses(self, peer: SimNode) -> bool:
        """Return whether this node's handshake refuses the peer's data directory; report a refusal once. Rule: M4."""
        refused = self.core.identity_refusal(peer.node, peer.core.state.shown, peer.core.state.rebuilding)
        if refused is not None and self._refused.get(peer.node) != refused:
            self._refused[peer.node] = refused
            self.emit([refused])
        return refused is not None

    def link_up(self, peer: NodeId, *, dialled: bool) -> LinkUp:
        """Return what the peer learns from this node's handshake. dialled: the peer opened the link. Rule: M6."""
        promised = self.core.state.promises().get(peer, NOTHING)
        return LinkUp(self.core.state.shown, self.core.state.rebuilding, dialled, promised)

    def connect(self, protocol: asyncio.BaseProtocol) -> tuple[SimTransport, asyncio.BaseProtocol]:
        """Accept a client's connection; return the client's end."""
        near, far = join(
            self._loop,
            random.Random(self._rng.getrandbits(64)),
            protocol,
            self.turn.clients.accept(),
            lambda: self.running and not self.paused,
        )
        self._connections = {each: None for each in self._connections if not each.closed}
        self._connections[far] = None
        return near

    # ---- turns -------------------------------------------------------------------------------------

    def _run_turn(self) -> None:
        if not self.running:
            return
        if self.paused:
            self.turn.due = False
            return
        now = self._clock.now()
        try:
            self._arm(self.turn.run(now), now)
        except ENDINGS as error:
            self.ended_by(error)
        else:
            self._promises.turned(self.node)
            if self._leaving and not self.core.transferring:
                self.run(self._leave)

    def _arm(self, deadline: float, now: float) -> None:
        """Run a turn no later than the core's deadline."""
        wait = self._clock.lasts(deadline - now) if deadline > now else 0.0
        when = self._loop.now + wait + TURN_S
        if when < self._timer_at:
            self._timer_at = when
            self._loop.post(when, self._on_timer, when)

    def awaits(self, when: float) -> bool:
        """Return whether the timer that was set to this time is still the one that counts."""
        return self.running and when == self._timer_at

    def _on_timer(self, when: float) -> None:
        if not self.awaits(when):
            return
        self._timer_at = NEVER
        now, deadline = self._clock.now(), self.core.next_deadline()
        if deadline > now:  # It has moved since; a process that is stopped arms its timer anew when it goes on.
            self._arm(deadline, now)
        else:
            self._run_turn()

    # ---- what the turn needs (nodeproc.turn.Host) ----------------------------------------------------

    def turn_soon(self) -> None:
        if self.running:
            self._loop.post(self._loop.now + TURN_S, self._run_turn)

    def emit(self, events: Sequence[Event]) -> None:
        for event in events:
            self._machine.on_event(self.node, event)

    def send(self, messages: Sequence[tuple[NodeId, PeerMessage]]) -> None:
        for peer, message in messages:
            self._links[peer].send(message)
            self._promises.sent(self.node, peer, message)

    def deliver(self, records: Sequence[Record]) -> None:
        self._machine.on_delivered(self.node, records)  # First: a write that is cut short may leave all of them.
        self.storage.deliver(records)

    def report(self, event: Event, address: str = "") -> None:
        if self.running:
            self.emit([event])

    def route_changed(self) -> None:
        pass

    def stop(self, reason: str) -> None:
        self.emit([Stopping(reason)])
        self._leaving = self.has_left = True

    def vitals(self) -> tuple[float, int, dict[str, int]]:
        return round(self._loop.now, 3), self.node, {}

    def addresses(self) -> dict[NodeId, tuple[str, int]]:
        return {}

    def sync_soon(self, ticket: int) -> None:
        self.syncing.begin(ticket)

    def checkpoint_soon(self) -> None:
        """Make the checkpoint now. The product does so in a thread, after the sync under way."""
        self.syncing.finish()
        try:
            self.emit([self.storage.checkpoint(self.core.snapshot())])
        except (ReadFailed, Unreadable) as error:
            self.emit([CheckpointPutOff(str(error))])

    # ---- the disk ----------------------------------------------------------------------------------

    def _post(self, wait_s: float, action: Callable[..., None], *args: Any) -> None:
        """Run an action of the node later, unless the process has ended by then."""
        self._loop.post(self._loop.now + wait_s, self.run, action, *args)

    def _synced(self, ticket: int) -> None:
        self.turn.durable = ticket
        if self.core.written > ticket:
            self.sync_soon(self.core.written)
        self.turn.ask()

    def _scrub_piece(self) -> None:
        wait = FIRST_S
        if not self.paused:
            try:
                wait = self._scrub.succeeded(*self._scrub.read())
            except Unreadable as error:
                self.turn.reading.repair(error)
                wait = self._scrub.failed(error)
        self._post(wait, self._scrub_piece)


class _Turn(Turn):
    """The turn of a simulated node."""

    def __init__(self, node: Node, storage: Storage, limits: Limits, host: SimNode) -> None:
        super().__init__(node, storage, limits, host)
        self._process = host

    def read_lines(self, start: SeqNo, max_bytes: int) -> tuple[bytes, SeqNo]:
        try:
            return super().read_lines(start, max_bytes)
        except PowerLost as error:  # A subscriber reads outside of SimNode.run, which would end the process.
            self._process.ended_by(error)
            return b"", start - 1


def excess(node: SimNode) -> str:
    """Return which of its memory limits the node exceeds at this moment, or "". Rule: P1, S7."""
    role, limits, clients = node.core.state.role, node.config.limits, node.turn.clients
    if isinstance(role, Leader):
        for peer, progress in role.progress.items():
            before = progress.inflight_bytes - (progress.inflight[-1][1] if progress.inflight else 0)
            if before >= (allowed := limits.inflight_max_bytes):
                return f"{before} bytes were under way to node {peer} and more was sent, P1 allows {allowed}"
    allowed = limits.intake_window_bytes + HIGH_BYTES * len(clients.connections)
    if clients.intake_bytes > allowed:
        return f"{clients.intake_bytes} bytes are taken in from clients, S7 allows {allowed} here"
    return ""
