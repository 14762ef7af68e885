"""The asyncio process around a node's turns (nodeproc.turn): sockets, timers, threads, standstills, exit codes.

Connections put their inputs into the turn's inbox; all inputs of one pass of the event loop share a turn. fdatasync
runs at the end of a turn or in a thread (nodeproc.disk.syncing).

The core's clock leaves out the time in which the process stood still (stopped, starved of CPU, blocked in a write),
because silence of the other nodes during that time means nothing. After a standstill, the sockets are read before the
core judges who is silent.
"""

from __future__ import annotations

import asyncio
import math
import os
import random
import socket
import sys
import time
import traceback
from collections.abc import Sequence
from typing import Any, Final

from nodeproc.config import NodeConfig
from nodeproc.core.events import BadInput, DiskAnswered, DiskStalled, Event, Failed, Listening, Stopping, TransferFailed
from nodeproc.core.messages import NOBODY, NodeId, PeerMessage, Record
from nodeproc.core.node import Node
from nodeproc.disk.storage import Storage
from nodeproc.disk.syncing import Syncing
from nodeproc.errors import (
    EXIT_CLEAN,
    EXIT_CORRUPTION,
    EXIT_DISK_FAILED,
    EXIT_INTERNAL,
    CorruptionError,
    WriteFailed,
)
from nodeproc.eventlog import EventLog
from nodeproc.frames import encode_frame
from nodeproc.net.complaints import Complaints
from nodeproc.net.entrance import Entrance
from nodeproc.net.handshake import Credentials
from nodeproc.net.silence import TIMEOUTS
from nodeproc.net.transport import Address, Links
from nodeproc.tls import node_tls
from nodeproc.turn import Turn
from nodeproc.upkeep import Upkeep

TIMER_GRAIN_S: Final = 0.001
"""The resolution of the event loop's timers."""
LATE_S: Final = 0.02
"""A timer that fires later than this means that the process stood still."""


class Runtime:
    """One running node. Made inside its event loop.

    Args:
        node: recovered, not started.
        log: gets all events.
        sock: listening.
        rng: for the jitter of dialling.
    """

    def __init__(
        self, config: NodeConfig, node: Node, storage: Storage, log: EventLog, sock: socket.socket, rng: random.Random
    ) -> None:
        self._config, self._node, self._storage, self._log, self._sock = config, node, storage, log, sock
        self._loop = asyncio.get_running_loop()
        self.turn = Turn(node, storage, config.limits, self, config.client_token, config.admin_token)
        self._looking = False
        self._longest_turn_s = self._stood_still_s = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = math.inf
        self._longest_timer_s = config.heartbeat_interval_ms / 1000
        self._stepped_at = -math.inf
        self._stopped: asyncio.Future[None] = self._loop.create_future()
        self._leaving = False
        """The node stops as soon as it transfers its leadership no more."""
        self._code = EXIT_CLEAN
        self._started_at = time.monotonic()
        self._turns = 0
        self._complaints = Complaints(config.limits.complaints_per_s)
        tls = node_tls(config.tls) if config.tls is not None else None
        self._members = node.members
        """The list in force whose members are dialled."""
        self.links = Links(
            self._credentials,
            {},
            self.turn.take,
            self.report,
            rng,
            config.limits,
            tls,
            lambda who: node.identity_refusal(who.peer, who.shown, who.rebuilding),
            TIMEOUTS * config.election_timeout_ms / 1000,
        )
        self._entrance = Entrance(
            self.links.accept,
            self.turn.clients.accept,
            config.limits,
            tls.accepting if tls is not None else None,
            lambda reason, address: self.report(BadInput("a connection", reason), address),
        )
        self._waits_for_disk = config.durability == "fsync"
        patience_s = config.election_timeout_ms / 1000
        self._syncing = Syncing(
            storage.sync, self._on_durable, self._on_error, self._on_held_up, self._on_stalled, patience_s
        )
        self._upkeep = Upkeep(
            storage, config.limits, node.snapshot, self.report, self.turn.reading.repair, self._on_error
        )
        self.checkpoint_soon = self._upkeep.checkpoint_soon

    # ---- life ---------------------------------------------------------------------------------------

    async def run(self) -> int:
        """Serve until stop() or a failure; return the exit code: see nodeproc.__main__."""
        self._loop.set_exception_handler(self._on_unhandled)
        self._entrance.open(self._sock)
        host, port = self._sock.getsockname()[:2]
        self.report(Listening(host, port))
        self._arm(self.turn.begin(self._now()))
        self._log.flush()
        self._dial_members()
        self.links.start()
        self._upkeep.start()
        await self._stopped
        # The port is closed first: peers that notice the loss of their links must find it closed.
        self._entrance.close()
        self._sock.close()
        await self.links.close()
        self.turn.clients.close()
        if self._timer is not None:
            self._timer.cancel()
        await self._upkeep.close()
        self._close_storage()
        self._log.flush()
        return self._code

    def stop(self, reason: str, *, transfer: bool = False) -> None:
        """End the node cleanly; returns at once.

        Args:
            transfer: a leader first transfers its leadership, which takes election_timeout and heartbeat_interval at
                most; a second call ends the node at once. Rule: E7.
        """
        if self._stopped.done():
            return
        self.report(Stopping(reason))
        if transfer and not self._leaving and not self.turn.transfer():
            self._leaving = True
        else:
            self._stopped.set_result(None)

    def transfer(self) -> None:
        """Transfer the leadership to a follower and go on; report why, if this is not possible now. Rule: E7."""
        if refusal := self.turn.transfer():
            self.report(TransferFailed(self._node.state.term, NOBODY, refusal))

    def _fail(self, code: int, reason: str) -> None:
        """End the node with this exit code. A failure while it stops counts as well. Rule: K5."""
        if self._code == EXIT_CLEAN:
            self._code = code
            self.report(Failed(reason))
        if not self._stopped.done():
            self._stopped.set_result(None)

    def _close_storage(self) -> None:
        failure = self._syncing.close()
        if failure is not None:
            self._on_error(failure)
        try:
            self._storage.close(self._node.snapshot() if self._code == EXIT_CLEAN else None)
        except WriteFailed as error:
            self._on_error(error)

    # ---- turns --------------------------------------------------------------------------------------

    def _run_due_turn(self) -> None:
        """Run the turn that was asked for. If the process stood still, the sockets are read first."""
        if self._stopped.done() or not self.turn.due or self._looking:
            return
        # The core's clock must not fall behind the time of its last step.
        now = self._now()
        late = now - max(self._timer_at, self._stepped_at)
        if late > LATE_S:
            self._stood_still_s += late
            self._node.stood_still()
            # Two passes of the event loop: it reads the sockets between them.
            self._looking = True
            self._loop.call_soon(self._loop.call_soon, self._turn_after_look)
        else:
            self._run_turn(now)

    def _turn_after_look(self) -> None:
        self._looking = False
        if not self._stopped.done():
            self._run_turn(self._now())

    def _run_turn(self, began: float) -> None:
        self._stepped_at = began
        self._turns += 1
        try:
            self._arm(self.turn.run(began))
            if self._waits_for_disk:
                self._syncing.end_turn()
        except Exception as error:
            self._on_error(error)
        if self._leaving and not self._node.transferring and not self._stopped.done():
            self._stopped.set_result(None)
        self._log.flush()
        took = self._now() - began
        if took > self._longest_turn_s:
            self._longest_turn_s = took

    def _now(self) -> float:
        """Return the core's time: time.monotonic() minus all standstills."""
        return time.monotonic() - self._stood_still_s

    def _arm(self, deadline: float) -> None:
        """Run a turn at the core's deadline, or after heartbeat_interval: a late timer shows a standstill.

        A timer that fires early enough is not replaced.
        """
        now = self._now()
        when = now + self._longest_timer_s
        if deadline < when:
            when = deadline
        if self._timer is not None:
            if when >= self._timer_at:
                return
            self._timer.cancel()
        self._timer_at = when
        delay = math.ceil(max(when - now, 0.0) / TIMER_GRAIN_S) * TIMER_GRAIN_S
        self._timer = self._loop.call_later(delay, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        self.turn.due = True
        self._run_due_turn()

    # ---- nodeproc.turn.Host -------------------------------------------------------------------------

    def turn_soon(self) -> None:
        self._loop.call_soon(self._run_due_turn)

    def sync_soon(self, ticket: int) -> None:
        if self._waits_for_disk:
            self._syncing.wrote(ticket)
        else:
            self.turn.durable = ticket
            self.turn.ask()

    def _on_durable(self, ticket: int) -> None:
        self.turn.durable = ticket
        self.turn.due = True
        self._run_due_turn()

    def _on_stalled(self, seconds: float) -> None:
        """Report from the sync's thread that a sync blocks the loop: the loop itself can report nothing. Rule: F4."""
        self._log.emit((DiskStalled(round(seconds * 1000)),))
        self._log.flush()

    def _on_held_up(self, seconds: float) -> None:
        """Report the end of a long sync in the loop. Rule: F4."""
        if seconds * 1000 > self._config.election_timeout_ms:
            self.report(DiskAnswered(round(seconds * 1000)))

    def emit(self, events: Sequence[Event]) -> None:
        self._log.emit(events)

    def send(self, messages: Sequence[tuple[NodeId, PeerMessage]]) -> None:
        """Write the frames of each peer in one call. A message for several peers is encoded once."""
        buffers: dict[NodeId, list[bytes]] = {}
        last: PeerMessage | None = None
        frame: list[bytes] = []
        for peer, message in messages:
            if message is not last:
                last, frame = message, encode_frame(message)
            queued = buffers.get(peer)
            if queued is None:
                buffers[peer] = list(frame)
            else:
                queued += frame
        for peer, queued in buffers.items():
            self.links.send(peer, queued)

    def deliver(self, records: Sequence[Record]) -> None:
        self._storage.deliver(records)
        self._log.delivered([record.body for record in records])

    def report(self, event: Event, address: str = "") -> None:
        passed = self._complaints.passed(event, time.monotonic(), address)
        if passed is not None:
            self._log.emit((passed,))
            self.turn.ask()

    def route_changed(self) -> None:
        if self._node.members is not self._members:
            self._members = self._node.members
            self._dial_members()

    def vitals(self) -> tuple[float, int, dict[str, int]]:
        return round(time.monotonic() - self._started_at, 3), os.getpid(), self._counters()

    # ---- failures -----------------------------------------------------------------------------------

    def _on_error(self, error: BaseException) -> None:
        """End the node: the core's state and the state of disk and links may differ."""
        if isinstance(error, WriteFailed):
            self._fail(EXIT_DISK_FAILED, str(error))
        elif isinstance(error, CorruptionError):
            self._fail(EXIT_CORRUPTION, str(error))
        else:
            traceback.print_exception(error, file=sys.stderr)
            self._fail(EXIT_INTERNAL, f"internal error: {type(error).__name__}: {error}")

    def _on_unhandled(self, loop: asyncio.AbstractEventLoop, what: dict[str, Any]) -> None:
        """Handle an exception of a callback: an OSError ends its connection only, any other error the node."""
        error = what.get("exception")
        if isinstance(error, OSError):
            self.report(BadInput("a connection", str(error)))
        elif error is not None:
            self._on_error(error)
        else:
            print(what.get("message"), file=sys.stderr)

    # ---- for clients and links -----------------------------------------------------------------------

    def _counters(self) -> dict[str, int]:
        return {
            "turns": self._turns,
            "longest_turn_us": round(self._longest_turn_s * 1e6),
            "stood_still_us": round(self._stood_still_s * 1e6),
            "syncs": self._syncing.count,
            "syncs_in_loop": self._syncing.in_loop,
            "frames_in": self.links.frames_in,
            "peer_bytes_in": self.links.bytes_in,
            "peer_bytes_out": self.links.bytes_out,
            "clients": len(self.turn.clients.connections),
            "subscribers": len(self.turn.clients.subscribers),
            "intake_bytes": self.turn.clients.intake_bytes,
            "silent": self._entrance.silent,
            "unproven": self.links.unproven,
            "complaints": self._complaints.total,
            "scrubs": self._upkeep.scrub.passes,
            "events_left_out": self._complaints.left_out,
        }

    def _credentials(self) -> Credentials:
        config, state = self._config, self._node.state
        return Credentials(
            config.node_id,
            config.members,
            config.cluster_id,
            config.secret,
            state.shown,
            state.rebuilding,
            state.promises(),
            self._own_address(),
        )

    def _own_address(self) -> Address:
        return self._config.host, self._sock.getsockname()[1]

    def addresses(self) -> dict[NodeId, Address]:
        """Return the known addresses of nodes: those of the configuration, then those of the list in force."""
        listed = () if self._members is None else self._members.addresses
        known = {each.node: (each.host, each.port) for each in listed}
        known |= {peer.id: (peer.host, peer.port) for peer in self._config.peers}
        return known | {self._config.node_id: self._own_address()}

    def _dial_members(self) -> None:
        """Dial all other members: those of the list in force, else the founders, or a newcomer's `peers`. Rule: G1."""
        config, members, addresses = self._config, self._members, self.addresses()
        if members is not None:
            present = members.present
        else:
            present = config.members if config.node_id in config.members else tuple(addresses)
        self.links.dial([node for node in present if node != config.node_id], addresses)
