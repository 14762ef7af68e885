"""One node's turn: pass the waiting inputs to the core, then perform the effects that it returns. No asyncio.

Inputs wait in an inbox until the turn, which handles all of them and then performs the joined effects once, in the
order of nodeproc.core.effects. So a busy node writes, sends and syncs once a turn, not once a message. A turn never
waits for the disk: the host syncs in parallel or afterwards. When the data is durable, the next turn sends what had to
wait for that.

The host is the process around the turn: nodeproc.runtime in a real node, lab.sim.node in a simulation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, Protocol

from nodeproc.config import Limits
from nodeproc.core.effects import Copied, Effects, Fetch
from nodeproc.core.events import Event
from nodeproc.core.messages import (
    NOBODY,
    START,
    AddNode,
    Change,
    Envelope,
    Input,
    MemberAddress,
    NodeId,
    PeerMessage,
    Record,
    RemoveNode,
    SeqNo,
    Submit,
    Term,
    Transfer,
)
from nodeproc.core.node import Node
from nodeproc.core.state import Leader
from nodeproc.disk.reading import Reading
from nodeproc.disk.storage import Storage
from nodeproc.errors import CorruptionError
from nodeproc.lines import AddRequest, AdminRequest, ChangeIs, MembersStatus, PeerStatus, Status, TransferRequest
from nodeproc.net.clients import Clients

TURN_MESSAGES: Final = 8192
"""Maximum number of messages from clients in one turn: some 10 ms of the leader's work."""


class Host(Protocol):
    """The functions that a turn needs from the process around it."""

    def turn_soon(self) -> None:
        """Call Turn.run soon. It is not called again before that."""

    def sync_soon(self, ticket: int) -> None:
        """Make durable all operations up to this ticket, then set Turn.durable and ask for a turn."""

    def emit(self, events: Sequence[Event]) -> None:
        """Write events of the core to the event log."""

    def send(self, messages: Sequence[tuple[NodeId, PeerMessage]]) -> None:
        """Send frames, those for one peer in order; without a link they are lost."""

    def deliver(self, records: Sequence[Record]) -> None:
        """Append the records' lines to the message log (Storage.deliver) and send them to subscribers."""

    def checkpoint_soon(self) -> None:
        """Write a checkpoint soon; if one is being written, that is enough."""

    def report(self, event: Event, address: str = "") -> None:
        """Log an event that does not come from the core. address: the host that caused it, or ""."""

    def route_changed(self) -> None:
        """The leader is another one, or the list of members: see Node.route."""

    def stop(self, reason: str) -> None:
        """End the node cleanly, after the turn."""

    def vitals(self) -> tuple[float, int, dict[str, int]]:
        """Return uptime in seconds, process id and counters, for STATUS."""

    def addresses(self) -> Mapping[NodeId, tuple[str, int]]:
        """Return the known addresses of nodes, this one included, for STATUS."""


class Turn:
    """The inbox and the turn of one node, and the node as its client connections see it (nodeproc.net.clients.Backend).

    Args:
        node: recovered, not started.
        client_token: required in the first line of every client; "" if none is.
        admin_token: see nodeproc.net.clients.Clients.
    """

    def __init__(
        self,
        node: Node,
        storage: Storage,
        limits: Limits,
        host: Host,
        client_token: str = "",
        admin_token: str = "",
    ) -> None:
        self.node, self.storage, self._host = node, storage, host
        self._node_id = node.state.node_id
        self.reading = Reading(storage, self._node_id, self.take, host.report)
        self.clients = Clients(self._node_id, self, limits, client_token, admin_token)
        self.due = False
        """The host was asked for a turn that has not run yet."""
        self.durable = 0
        """Ticket up to which all operations are durable; the next turn passes it to the core."""
        self._told_durable = 0
        self._inbox: list[Envelope] = []
        self._fetches: list[Fetch] = []
        self._route = node.route

    def take(self, sender: NodeId, message: Input) -> None:
        """Queue one input for the next turn."""
        self._inbox.append(Envelope(sender, message))
        if not self.due:
            self.ask()

    def ask(self) -> None:
        """Ask the host for a turn."""
        if not self.due:
            self.due = True
            self._host.turn_soon()

    def transfer(self, to: NodeId = NOBODY) -> str:
        """Begin a transfer of the leadership, if this node leads; return why it can't begin now, or "". Rule: E7.

        `node.transferring` is true from the next turn on until the transfer ends.

        Args:
            to: the follower that is to lead; NOBODY: the leader chooses one.
        """
        refusal = self.node.transfer_refusal(to)
        if not refusal:
            self.take(self._node_id, Transfer(to))
        return refusal

    def change_members(self, change: Change) -> str:
        """Begin a change of the members, if this node leads; return why it can't begin now, or "". Rule: G2.

        The change is done when `node.members`, which STATUS reports, is the new list on the next leader. If the leader
        itself is to be removed, it transfers its leadership instead, and the next leader must be asked again (G5).
        """
        refusal = self.node.change_refusal(change)
        if not refusal:
            self.take(self._node_id, change)
        return refusal

    def administer(self, request: AdminRequest) -> ChangeIs:
        """Carry out an operator's request as far as that is possible now. Rule: G2, E7."""
        state = self.node.state
        if isinstance(request, TransferRequest):
            done = request.to == self._node_id == state.leader_id
            reason = "" if done else self.transfer(request.to)
            stage = "done" if done else ""
        else:
            change: Change = RemoveNode(request.node)
            if isinstance(request, AddRequest):
                change = AddNode(request.node, request.host, request.port)
            stage = self._stage(change)
            reason = "" if stage else self.change_members(change)
        if not reason:
            return ChangeIs("done" if stage == "done" else "begun", leader=state.leader_id)
        role = state.role
        is_changing = not isinstance(role, Leader) or role.successor is not None or state.pledge is not None
        passes = is_changing or reason.endswith("ask again")
        return ChangeIs("refused", reason, passes, state.leader_id)

    def _stage(self, change: Change) -> str:
        """Return "done" if the leader's committed list has this change, "begun" if it is under way, else ""."""
        role, members = self.node.state.role, self.node.state.members
        if not isinstance(role, Leader):
            return ""
        if isinstance(change, AddNode):
            if MemberAddress(change.node, change.host, change.port) not in members.addresses:
                return ""
            has_change = change.node in members.voters
            if not has_change:
                return "begun" if change.node in members.learners else ""
        elif change.node not in members.removed:
            return ""
        return "done" if role.settled else "begun"

    def begin(self, now: float) -> float:
        """Start the node. Return the core's next deadline."""
        self._perform(self.node.start(now))
        return self.node.next_deadline()

    def run(self, now: float) -> float:
        """Pass the inbox to the core and perform the effects. Return the core's next deadline.

        Args:
            now: time of the core's clock.

        Raises:
            WriteFailed, CorruptionError: the node must end, because some effects may not have been performed.
        """
        node, fx = self.node, Effects()
        self.due = False
        if self.durable > self._told_durable:
            self._told_durable = self.durable
            node.persisted(self.durable, now, fx)
        inbox, self._inbox = self._inbox, []
        for envelope in inbox if len(inbox) < 2 else self._first_of(inbox):
            node.step(envelope, now, fx)
        deadline = node.next_deadline()
        if deadline <= now:
            node.tick(now, fx)
            deadline = node.next_deadline()
        fetches, self._fetches = self._fetches, []
        self._perform(fx)
        if fetches:
            for fetch in fetches:
                self._serve(fetch, now)
            deadline = node.next_deadline()
        route = node.route
        if route != self._route:
            self._route = route
            self.clients.route_changed(route[0], route[1])
            self._host.route_changed()
        if deadline <= now:
            self.ask()
        return deadline

    def _first_of(self, inbox: list[Envelope]) -> list[Envelope]:
        """Return the inputs for one turn, so that heartbeats and the disk do not wait for a flood of messages."""
        messages = 0
        for at, envelope in enumerate(inbox, 1):
            if type(envelope.message) is Submit:
                messages += len(envelope.message.payloads)
                if messages >= TURN_MESSAGES and at < len(inbox):
                    self._inbox = inbox[at:]
                    self.ask()
                    return inbox[:at]
        return inbox

    def _serve(self, fetch: Fetch, now: float) -> None:
        """Read the records that a peer lacks. One read for each peer and turn, so that frames to others are not
        delayed.
        """
        records = self.reading.records(fetch)
        if records is not None:
            self._perform(self.node.fetched(fetch.peer, fetch.token, records, now))

    def _perform(self, fx: Effects) -> None:
        """Perform the effects, in their order."""
        host = self._host
        if fx.halt:
            host.emit(fx.emit)
            raise CorruptionError(fx.halt)
        if fx.persist:
            self.storage.write(fx.persist)
            host.sync_soon(self.node.written)
        if fx.emit:
            host.emit(fx.emit)
        if fx.send:
            host.send(fx.send)
        if fx.deliver:
            host.deliver(fx.deliver)
            self.clients.delivered(fx.deliver)
            if self.storage.checkpoint_due():
                host.checkpoint_soon()
        if fx.reply:
            self.clients.refused(fx.reply)
        if fx.fetch:
            self._fetches += fx.fetch
            self.ask()
        for copied in fx.copied:
            self._take_copy(copied)
        if fx.leave:
            host.stop(fx.leave)

    def _take_copy(self, copied: Copied) -> None:
        """Repair records with a copy from a peer, or note that no peer has one; then wake the waiting readers. Rule:
        K6.
        """
        reason, fetches = self.reading.take_copy(copied)
        self.clients.read_again(copied.after, reason)
        self._fetches += fetches
        self.ask()

    # ---- nodeproc.net.clients.Backend ---------------------------------------------------------------

    def submit(self, message: Submit) -> None:
        self._inbox.append(Envelope(self._node_id, message))
        if not self.due:
            self.ask()

    def delivered_session(self, session: str) -> tuple[int, SeqNo] | None:
        return self.node.delivered_session(session)

    def route(self) -> tuple[NodeId, Term]:
        return self.node.route[:2]

    def is_member(self) -> bool:
        return self._node_id in self.node.state.members.present

    def new_addresses(self) -> tuple[MemberAddress, ...] | None:
        members = self.node.members
        return None if members is None else members.addresses

    def delivered_seq(self) -> SeqNo:
        return self.node.state.delivered_seq

    def last_seq(self) -> SeqNo:
        return self.node.state.log.position.seq_no

    def read_lines(self, start: SeqNo, max_bytes: int) -> tuple[bytes, SeqNo]:
        return self.reading.lines(start, max_bytes)

    def report(self, event: Event, address: str = "") -> None:
        self._host.report(event, address)

    def status(self) -> Status:
        """Return this node's answer to STATUS."""
        node, state = self.node, self.node.state
        progress = node.progress()
        peers = []
        for peer in state.peers:
            live, durable = progress.get(peer, (False, START))
            peers.append(PeerStatus(peer, peer in state.links, live, durable.seq_no))
        uptime_s, pid, counters = self._host.vitals()
        return Status(
            node=self._node_id,
            role=node.role_name,
            term=state.term,
            leader=state.leader_id,
            last_seq=state.log.position.seq_no,
            commit_seq=state.commit_seq,
            delivered_seq=state.delivered_seq,
            rebuilding=state.rebuilding,
            uptime_s=uptime_s,
            pid=pid,
            peers=tuple(peers),
            counters=counters,
            members=self._members_status(),
        )

    def _members_status(self) -> MembersStatus:
        state, known = self.node.state, self._host.addresses()
        members = state.members
        return MembersStatus(
            members.version,
            isinstance(state.role, Leader) and state.role.settled,
            state.config.members,
            members.voters,
            members.learners,
            members.removed,
            tuple(MemberAddress(node, *known[node]) for node in members.present if node in known),
        )
