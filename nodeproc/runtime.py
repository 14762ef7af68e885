"""The loop around the core: collect what came in, step, write, send, deliver.

Connections put their inputs into an inbox and ask for a turn; all inputs of one pass of the event loop share it. A turn
takes them through the core and then does, once for all of them, what the core asks for, in the order of
nodeproc.core.effects. So a busy node writes, sends and syncs per turn, not per message.

The core's clock does not count the time in which the process stood still (stopped, starved, stuck in a write): that the
others were not heard then says nothing about them. What they sent meanwhile is read before the core judges.

Nothing in a turn waits for the disk: fdatasync comes last or runs beside it (nodeproc.disk.syncing), and what the core
promised on its condition leaves in the turn that follows it.
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
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

from nodeproc.config import NodeConfig
from nodeproc.core.effects import Copied, Effects, Fetch
from nodeproc.core.events import BadInput, CheckpointPutOff, Event, Failed, Listening, Stopping
from nodeproc.core.messages import START, Envelope, Input, NodeId, PeerMessage, Position, SeqNo, Submit, Term
from nodeproc.core.node import Node
from nodeproc.disk.reading import Reading
from nodeproc.disk.scrub import FIRST_S, Scrub
from nodeproc.disk.storage import Storage
from nodeproc.disk.syncing import Syncing
from nodeproc.errors import (
    EXIT_CLEAN,
    EXIT_CORRUPTION,
    EXIT_INTERNAL,
    EXIT_WRITE_FAILED,
    CorruptionError,
    ReadFailed,
    Unreadable,
    WriteFailed,
)
from nodeproc.eventlog import EventLog
from nodeproc.frames import encode_frame
from nodeproc.lines import PeerStatus, Status
from nodeproc.net.clients import Clients
from nodeproc.net.complaints import Complaints
from nodeproc.net.entrance import Entrance
from nodeproc.net.handshake import Credentials
from nodeproc.net.silence import TIMEOUTS
from nodeproc.net.transport import Links
from nodeproc.tls import node_tls

TIMER_GRAIN_S: Final = 0.001
"""Timers of the event loop count milliseconds."""
LATE_S: Final = 0.02
"""A timer that is later than this means that the process stood still."""
TURN_MESSAGES: Final = 8192
"""Taken from clients in one turn: some 10 ms of the leader's work."""


class Runtime:
    """One running node. Made inside its event loop.

    Args:
        node: recovered, not started.
        log: gets every event.
        sock: listening.
        rng: for the jitter of dialling.
    """

    def __init__(
        self, config: NodeConfig, node: Node, storage: Storage, log: EventLog, sock: socket.socket, rng: random.Random
    ) -> None:
        self._config, self._node, self._storage, self._log, self._sock = config, node, storage, log, sock
        self._loop = asyncio.get_running_loop()
        self._inbox: list[Envelope] = []
        self._durable_ticket = 0
        self._synced_ticket = 0
        self._fetches: list[Fetch] = []
        self._reading = Reading(storage, config.node_id, self.take, self.report)
        self._turn_due = self._looking = False
        self._longest_turn_s = self._stood_still_s = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = math.inf
        self._stepped_at = -math.inf
        self._route = node.route
        self._stopped: asyncio.Future[int] = self._loop.create_future()
        self._started_at = time.monotonic()
        self._turns = 0
        self._checkpointer = ThreadPoolExecutor(1, "checkpoint")
        self._checkpointing = False
        limits = config.limits
        self._scrub = Scrub(storage, limits.scrub_bytes_per_s or 1, limits.scrub_rest_ms / 1000)
        self._scrub_timer: asyncio.TimerHandle | None = None
        self._complaints = Complaints(config.limits.complaints_per_s)
        tls = node_tls(config.tls) if config.tls is not None else None
        self.links = Links(
            self._credentials,
            {peer.id: (peer.host, peer.port) for peer in config.peers},
            self.take,
            self.report,
            rng,
            config.limits,
            tls,
            lambda who: node.identity_refusal(who.peer, who.identity, who.rebuilding),
            TIMEOUTS * config.election_timeout_ms / 1000,
        )
        self.clients = Clients(config.node_id, self, config.limits, config.client_token)
        self._entrance = Entrance(
            self.links.accept,
            self.clients.accept,
            config.limits,
            tls.accepting if tls is not None else None,
            lambda reason, address: self.report(BadInput("a connection", reason), address),
        )
        self._waits_for_disk = config.durability == "fsync"
        self._syncing = Syncing(storage.sync, self._on_durable, self._on_error)

    # ---- life ---------------------------------------------------------------------------------------

    async def run(self) -> int:
        """Serve until stop() or a failure.

        Returns:
            The exit code: see nodeproc.__main__.
        """
        self._loop.set_exception_handler(self._on_unhandled)
        await self._entrance.open(self._sock)
        host, port = self._sock.getsockname()[:2]
        self.report(Listening(host, port))
        self._perform(self._node.start(self._now()))
        self._log.flush()
        self._arm()
        self.links.start()
        if self._config.limits.scrub_bytes_per_s:
            self._scrub_after(FIRST_S)
        code = await self._stopped
        # First of all: peers that dial again because their links are gone must find a closed door.
        self._entrance.close()
        self._sock.close()
        await self.links.close()
        self.clients.close()
        return self._close_storage(code)

    def stop(self, reason: str) -> None:
        """End cleanly; returns at once."""
        if not self._stopped.done():
            self.report(Stopping(reason))
            self._stopped.set_result(EXIT_CLEAN)

    def _fail(self, code: int, reason: str) -> None:
        if not self._stopped.done():
            self.report(Failed(reason))
            self._stopped.set_result(code)

    def _close_storage(self, code: int) -> int:
        """Returns the exit code: the end is not clean either when only the last write fails. Rule: K5."""
        if self._timer is not None:
            self._timer.cancel()
        if self._scrub_timer is not None:
            self._scrub_timer.cancel()
        failure = self._syncing.close()
        self._checkpointer.shutdown()
        try:
            if isinstance(failure, WriteFailed) and code == EXIT_CLEAN:
                code = EXIT_WRITE_FAILED
                self.report(Failed(str(failure)))
            self._storage.close(self._node.snapshot() if code == EXIT_CLEAN else None)
        except WriteFailed as error:
            self.report(Failed(str(error)))
            code = code or EXIT_WRITE_FAILED
        self._log.flush()
        return code

    # ---- inputs -------------------------------------------------------------------------------------

    def take(self, sender: NodeId, message: Input) -> None:
        """Queue one input for the next turn."""
        self._inbox.append(Envelope(sender, message))
        if not self._turn_due:
            self._turn_due = True
            self._loop.call_soon(self._turn)

    def report(self, event: Event, address: str = "") -> None:
        """An event of the outside; address: the host that caused it, "" if it is not known."""
        passed = self._complaints.passed(event, time.monotonic(), address)
        if passed is not None:
            self._log.emit((passed,))
            self._ask_for_turn()

    def _ask_for_turn(self) -> None:
        if not self._turn_due:
            self._turn_due = True
            self._loop.call_soon(self._turn)

    def _on_durable(self, ticket: int) -> None:
        self._durable_ticket = ticket
        self._turn_due = True
        self._turn()

    # ---- the turn -----------------------------------------------------------------------------------

    def _turn(self) -> None:
        """All that came in, through the core; then everything it asks for."""
        if self._stopped.done() or not self._turn_due or self._looking:
            return
        # What the core was told stays so: its clock must not fall behind its last step.
        late = self._now() - max(self._timer_at, self._stepped_at)
        if late > LATE_S:
            self._stood_still_s += late
            self._node.stood_still()
            # Two rounds of the loop's queue, for the sockets are read between them.
            self._looking = True
            self._loop.call_soon(self._loop.call_soon, self._turn_after_look)
        else:
            self._run_turn()

    def _turn_after_look(self) -> None:
        self._looking = False
        if not self._stopped.done():
            self._run_turn()

    def _run_turn(self) -> None:
        began = self._now()
        self._turn_due = False
        try:
            self._step(began)
        except Exception as error:
            self._on_error(error)
        self._log.flush()
        self._longest_turn_s = max(self._longest_turn_s, self._now() - began)

    def _now(self) -> float:
        """The core's clock: time.monotonic() less the standstills."""
        return time.monotonic() - self._stood_still_s

    def _step(self, now: float) -> None:
        node, fx = self._node, Effects()
        self._stepped_at = now
        self._turns += 1
        if self._durable_ticket > self._synced_ticket:
            self._synced_ticket = self._durable_ticket
            node.persisted(self._durable_ticket, now, fx)
        for envelope in self._next_inputs():
            node.step(envelope, now, fx)
        if node.next_deadline() <= now:
            node.tick(now, fx)
        fetches, self._fetches = self._fetches, []
        self._perform(fx)
        for fetch in fetches:
            self._serve(fetch, now)
        route = node.route
        if route != self._route:
            self._route = route
            self.clients.route_changed(route[0], route[1])
        if node.next_deadline() <= now:
            self._ask_for_turn()
        self._arm()
        if self._waits_for_disk:
            self._syncing.end_turn()

    def _next_inputs(self) -> list[Envelope]:
        """The inbox, as far as one turn may go: heartbeats and the disk must not wait for a flood of messages."""
        inbox, self._inbox = self._inbox, []
        messages = 0
        for at, envelope in enumerate(inbox, 1):
            if type(envelope.message) is Submit:
                messages += len(envelope.message.payloads)
                if messages >= TURN_MESSAGES and at < len(inbox):
                    self._inbox = inbox[at:]
                    self._ask_for_turn()
                    return inbox[:at]
        return inbox

    def _serve(self, fetch: Fetch, now: float) -> None:
        """Read what a peer lacks; one read for each peer and turn, so that the others' frames are not held up."""
        records = self._reading.records(fetch)
        if records is not None:
            self._perform(self._node.fetched(fetch.peer, fetch.token, records, now))

    def _perform(self, fx: Effects) -> None:
        """The duties, in their order."""
        if fx.halt:
            self._log.emit(fx.emit)
            raise CorruptionError(fx.halt)
        if fx.persist:
            self._storage.write(fx.persist)
            if self._waits_for_disk:
                self._syncing.wrote(self._node.written)
            else:
                self._durable_ticket = self._node.written
                self._ask_for_turn()
        if fx.emit:
            self._log.emit(fx.emit)
        if fx.send:
            self._send(fx.send)
        if fx.deliver:
            self._storage.deliver(fx.deliver)
            self.clients.delivered(fx.deliver)
            self._log.delivered([record.body for record in fx.deliver])
            self._checkpoint_if_due()
        if fx.reply:
            self.clients.refused(fx.reply)
        if fx.fetch:
            self._fetches += fx.fetch
            self._ask_for_turn()
        for copied in fx.copied:
            self._take_copy(copied)

    def _take_copy(self, copied: Copied) -> None:
        """What could not be read is repaired, or is had nowhere: those that wait for it go on. Rule: K6."""
        reason, fetches = self._reading.take_copy(copied)
        self.clients.read_again(copied.after, reason)
        self._fetches += fetches
        self._ask_for_turn()

    def _send(self, messages: list[tuple[NodeId, PeerMessage]]) -> None:
        """Each peer's frames in one write; a message for several peers is encoded once."""
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

    def _arm(self) -> None:
        """See that a turn comes when the core wants one; a timer that is early enough is left as it is.

        It comes every heartbeat_interval at least: a standstill is noticed by late timers.
        """
        now = self._now()
        when = min(self._node.next_deadline(), now + self._config.heartbeat_interval_ms / 1000)
        if self._timer is not None:
            if when >= self._timer_at:
                return
            self._timer.cancel()
        self._timer_at = when
        delay = math.ceil(max(when - now, 0.0) / TIMER_GRAIN_S) * TIMER_GRAIN_S
        self._timer = self._loop.call_later(delay, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        self._turn_due = True
        self._turn()

    # ---- checkpoints --------------------------------------------------------------------------------

    def _checkpoint_if_due(self) -> None:
        if self._checkpointing or not self._storage.checkpoint_due():
            return
        self._checkpointing = True
        work = self._loop.run_in_executor(self._checkpointer, self._storage.checkpoint, self._node.snapshot())
        work.add_done_callback(self._on_checkpoint)

    def _on_checkpoint(self, work: asyncio.Future[Event]) -> None:
        self._checkpointing = False
        if work.cancelled():
            return
        error = work.exception()
        if isinstance(error, ReadFailed | Unreadable):
            self.report(CheckpointPutOff(str(error)))
        elif error is not None:
            self._on_error(error)
        else:
            self.report(work.result())

    # ---- scrub ---------------------------------------------------------------------------------------

    def _scrub_after(self, seconds: float) -> None:
        self._scrub_timer = self._loop.call_later(seconds, self._scrub_piece)

    def _scrub_piece(self) -> None:
        if not self._stopped.done():
            work = self._loop.run_in_executor(self._checkpointer, self._scrub.read)
            work.add_done_callback(self._on_scrubbed)

    def _on_scrubbed(self, work: asyncio.Future[tuple[Position, int]]) -> None:
        if work.cancelled() or self._stopped.done():
            return
        error = work.exception()
        if isinstance(error, Unreadable):
            self._reading.mend(error)
            self._scrub_after(self._scrub.failed(error))
        elif error is not None:
            self._on_error(error)
        else:
            self._scrub_after(self._scrub.succeeded(*work.result()))

    # ---- failures -----------------------------------------------------------------------------------

    def _on_error(self, error: BaseException) -> None:
        """Nothing is done after it: what the core was told and what happened may differ."""
        if isinstance(error, WriteFailed):
            self._fail(EXIT_WRITE_FAILED, str(error))
        elif isinstance(error, CorruptionError):
            self._fail(EXIT_CORRUPTION, str(error))
        else:
            traceback.print_exception(error, file=sys.stderr)
            self._fail(EXIT_INTERNAL, f"internal error: {type(error).__name__}: {error}")

    def _on_unhandled(self, loop: asyncio.AbstractEventLoop, what: dict[str, Any]) -> None:
        """What a callback of a connection raised: the world's errors end the connection, ours end the node."""
        error = what.get("exception")
        if isinstance(error, OSError):
            self.report(BadInput("a connection", str(error)))
        elif error is not None:
            self._on_error(error)
        else:
            print(what.get("message"), file=sys.stderr)

    # ---- what clients and links ask -----------------------------------------------------------------

    def submit(self, message: Submit) -> None:
        self.take(self._config.node_id, message)

    def delivered_session(self, session: str) -> tuple[int, SeqNo] | None:
        return self._node.delivered_session(session)

    def route(self) -> tuple[NodeId, Term]:
        return self._node.route[:2]

    def delivered_seq(self) -> SeqNo:
        return self._node.state.delivered_seq

    def last_seq(self) -> SeqNo:
        return self._node.state.log.position.seq_no

    def read_lines(self, start: SeqNo, max_bytes: int) -> tuple[bytes, SeqNo]:
        return self._reading.lines(start, max_bytes)

    def status(self) -> Status:
        """What this node knows now."""
        node, state = self._node, self._node.state
        progress = node.progress()
        peers = []
        for peer in state.peers:
            live, durable = progress.get(peer, (False, START))
            peers.append(PeerStatus(peer, peer in state.links, live, durable.seq_no))
        return Status(
            node=self._config.node_id,
            role=node.role_name,
            term=state.term,
            leader=state.leader_id,
            last_seq=state.log.position.seq_no,
            commit_seq=state.commit_seq,
            delivered_seq=state.delivered_seq,
            rebuilding=state.rebuilding,
            uptime_s=round(time.monotonic() - self._started_at, 3),
            pid=os.getpid(),
            peers=tuple(peers),
            counters=self._counters(),
        )

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
            "clients": len(self.clients.connections),
            "subscribers": len(self.clients.subscribers),
            "intake_bytes": self.clients.intake_bytes,
            "silent": self._entrance.silent,
            "unproven": self.links.unproven,
            "complaints": self._complaints.total,
            "scrubs": self._scrub.passes,
            "events_left_out": self._complaints.left_out,
        }

    def _credentials(self) -> Credentials:
        config, state = self._config, self._node.state
        return Credentials(
            config.node_id,
            config.members,
            config.cluster_id,
            config.secret,
            state.identity,
            state.rebuilding,
            state.promises(),
        )
