"""The interface of the core (recover, step, persisted, fetched, tick, next_deadline), the term rule and the dispatch.

Nothing in the core touches a socket, a file or a clock. Every call takes `now` (monotonic seconds, never decreasing)
and returns Effects; nodeproc.core.effects says in which order the caller handles them.
"""

from __future__ import annotations

from collections import deque
from random import Random
from typing import Final, TypeAlias, cast, get_args

from nodeproc.core import catchup, changes, election, failure, membership, ordering, repair, transfer
from nodeproc.core.effects import Effects
from nodeproc.core.events import Joining, NodeReadmitted, SequenceSet, Starting, UnknownMemberRefused
from nodeproc.core.log import Log
from nodeproc.core.messages import (
    NOBODY,
    NOTHING,
    Abstain,
    AddNode,
    Append,
    Appended,
    CatchUp,
    Change,
    Commit,
    Coordinator,
    Copy,
    CopyRequest,
    Damaged,
    Election,
    Envelope,
    Heartbeat,
    HeartbeatAck,
    Join,
    JoinAck,
    Known,
    LinkDown,
    LinkUp,
    MemberList,
    Members,
    NodeId,
    Ok,
    OlderMarks,
    Position,
    Promises,
    Record,
    Refuse,
    Removed,
    RemoveNode,
    Resume,
    SeqNo,
    Submit,
    Support,
    Term,
    TermIs,
    Transfer,
    Vote,
    VoteRequest,
)
from nodeproc.core.messages import Leader as LeaderAnswer
from nodeproc.core.recovered import MAX_MEMBERS, CoreConfig, Recovered, Snapshot
from nodeproc.core.sessions import Sessions
from nodeproc.core.state import Candidate, Follower, Leader, NodeState, Seal, become_follower

BACKLOG_MAX: Final = 20_000
"""Maximum number of frames kept back while a pledge is being written; more are dropped, as if lost on the network."""

Termed: TypeAlias = (
    JoinAck
    | Heartbeat
    | HeartbeatAck
    | LeaderAnswer
    | Vote
    | Coordinator
    | TermIs
    | Removed
    | CatchUp
    | OlderMarks
    | Resume
    | Append
    | Appended
    | Commit
)
"""Frames under the term rule E6. ELECTION only proposes its term; the term of VOTE_REQUEST is handled by E4."""
_TERMED: Final = frozenset(get_args(Termed))
_PROMISING: Final = frozenset({LinkUp, Promises})


class Node:
    """One member of the cluster as a pure state machine, created by Node.recover."""

    def __init__(self, state: NodeState) -> None:
        self.state = state
        self._backlog: deque[Envelope] = deque()
        self._backlog_bytes = 0

    @classmethod
    def recover(cls, config: CoreConfig, recovered: Recovered, now: float, rng: Random, seal: Seal) -> Node:
        """Create a node, as a follower, from its recovered state. Rule: M2.

        Args:
            recovered: all of it is durable.
            rng: used by this node only, for jitter and the first request number.
            seal: encodes records (nodeproc.records.Sealer).
        """
        assert 1 <= len(config.members) <= MAX_MEMBERS, config.members
        base = _base(recovered)
        log = Log(list(recovered.marks), base, list(recovered.tail), recovered.position)
        sessions = Sessions(config.max_sessions, dict(recovered.sessions), recovered.horizon)
        sessions.rebuild(log.tail)
        state = NodeState(
            config=config,
            rng=rng,
            seal=seal,
            term=recovered.term,
            voted_for=recovered.voted_for,
            identity=recovered.identity,
            rebuilding=recovered.rebuilding,
            identities=dict(recovered.identities),
            promised=dict(recovered.promised),
            log=log,
            sessions=sessions,
            durable=recovered.position,
            delivered_seq=recovered.delivered_seq,
            commit_seq=recovered.delivered_seq,
        )
        state.role = Follower(heard_at=now)
        state.numbers = rng.getrandbits(40)
        return cls(state)

    # ---- the contract -------------------------------------------------------------------------------

    def start(self, now: float) -> Effects:
        """Start to join the cluster; the node sends JOIN over each link that opens. Rule: M1."""
        state, fx = self.state, Effects()
        last_seq = state.log.position.seq_no
        fx.emit += [Starting(state.term, last_seq), SequenceSet(last_seq, last_seq + 1), Joining()]
        state.started_at = now
        if state.peers:
            membership.await_members(state, now + state.config.join_timeout, now, fx)
        else:
            state.poll_at = now
        return fx

    def step(self, envelope: Envelope, now: float, fx: Effects | None = None) -> Effects:
        """Handle one input: a frame of a peer, a submission of one of the node's clients, a change of a link or disk.

        Args:
            fx: effects of earlier calls in the same turn, to which those of this step are appended; None if the turn
                begins with this call.
        """
        fx = fx or Effects()
        self._take(envelope, now, fx)
        if fx.persist:
            failure.expect_disk(self.state, now)
        return fx

    def persisted(self, ticket: int, now: float, fx: Effects | None = None) -> Effects:
        """Record that all operations up to this ticket are durable, and send the promises that waited for them."""
        state, fx = self.state, fx or Effects()
        failure.on_disk_answer(state, ticket, now, fx)
        ordering.on_durable(state, ticket, fx)
        if state.readmission and ticket >= state.readmission:
            state.rebuilding, state.readmission = False, 0
            fx.emit.append(NodeReadmitted(state.node_id, state.term))
        pledge = state.pledge
        if pledge is not None and ticket >= pledge.ticket:
            self._keep_pledge(now, fx)
            while self._backlog and state.pledge is None:
                self._take_out(now, fx)
        failure.expect_disk(state, now)
        return fx

    def fetched(self, peer: NodeId, token: int, records: list[Record], now: float) -> Effects:
        """Handle the result of a Fetch: consecutive records after its position; none if they cannot be read (K6)."""
        fx = Effects()
        if repair.is_copy_wanted(self.state, peer, token):
            repair.send_copy(self.state, peer, records, fx)
        elif isinstance(self.state.role, Leader):
            catchup.on_fetched(self.state, self.state.role, peer, token, records, fx)
        return fx

    def tick(self, now: float, fx: Effects | None = None) -> Effects:
        """Do everything that is due: order waiting messages, send commit_seq and heartbeats, suspect, poll."""
        state, fx = self.state, fx or Effects()
        if now >= failure.disk_deadline(state):
            failure.on_disk_stalled(state, now, fx)
            self._refuse_what_waits(fx)
        if state.pledge is not None:
            return fx
        repair.tick_copying(state, now, fx)
        self._tick_role(now, fx)
        failure.expect_disk(state, now)
        return fx

    def _tick_role(self, now: float, fx: Effects) -> None:
        state = self.state
        role = state.role
        if isinstance(role, Leader):
            if ordering.is_order_due(state, role):
                ordering.order(state, role, fx)
            if role.commit_unsent:
                ordering.send_commit(state, role, fx)
            if now >= role.heartbeat_at:
                failure.tick_leader(state, role, now, fx)
                if state.role is role:
                    membership.tick_learners(state, role, now, fx)
                if state.role is role:
                    changes.tick_members(state, role, now, fx)
        elif isinstance(role, Candidate):
            if now >= role.until:
                failure.lose_candidacy(state, role, now, fx)
        elif state.leader_id != NOBODY:
            failure.tick_follower(state, role, now, fx)
        if isinstance(state.role, Follower) and state.leader_id == NOBODY:
            election.tick_leaderless(state, now, fx)

    def stood_still(self) -> None:
        """Ignore the current pause between heartbeats, because this process did not run for a while. Rule: F2."""
        if isinstance(self.state.role, Follower):
            self.state.role.beat_at = 0.0

    def next_deadline(self) -> float:
        """Return when to call tick at the latest (monotonic seconds); 0 means at the end of the current turn."""
        state = self.state
        disk = failure.disk_deadline(state)
        if state.pledge is not None:
            return disk
        role = state.role
        if isinstance(role, Leader):
            due = 0.0 if role.commit_unsent or ordering.is_order_due(state, role) else role.heartbeat_at
        elif isinstance(role, Candidate):
            due = role.until
        elif state.leader_id != NOBODY:
            due = failure.follower_deadline(state, role)
        else:
            due = election.leaderless_deadline(state)
        if disk < due:
            due = disk
        return min(due, repair.copying_deadline(state)) if state.copying else due

    # ---- read-only access -----------------------------------------------------------------------------

    @property
    def written(self) -> int:
        """Number of persist operations issued so far: the ticket to pass to persisted() once they are durable."""
        return self.state.written

    @property
    def route(self) -> tuple[NodeId, Term, int]:
        """(leader, term, epoch). When it changes, clients must resend unacknowledged messages. Rule: S5, G1.

        While the disk is stalled the leader is NOBODY, because this node can acknowledge nothing (F4).
        """
        state = self.state
        return (NOBODY if state.stalled else state.leader_id, state.term, state.route_epoch)

    @property
    def role_name(self) -> str:
        """follower | candidate | leader."""
        return type(self.state.role).__name__.lower()

    def delivered_session(self, session: str) -> tuple[int, SeqNo] | None:
        """Return (last n delivered here, its seq_no) of a session, or None if it is not in the table."""
        return self.state.sessions.table.get(session)

    def progress(self) -> dict[NodeId, tuple[bool, Position]]:
        """Return peer -> (whether new records are sent at once, acknowledged position); {} unless this node leads."""
        role = self.state.role
        if not isinstance(role, Leader):
            return {}
        return {peer: (progress.live, progress.matched) for peer, progress in role.progress.items()}

    def transfer_refusal(self, to: NodeId) -> str:
        """Return why a transfer of the leadership to this follower can't begin now, or to any if NOBODY; "" if it can.

        Rule: E7.
        """
        return transfer.refusal(self.state, to)

    def change_refusal(self, change: Change) -> str:
        """Return why this change of the members can't begin now; "" if it can. Rule: G2."""
        return changes.refusal(self.state, change)

    @property
    def members(self) -> MemberList | None:
        """The list of members in force; None while the members are the founders. Rule: G1."""
        return self.state.log.members

    @property
    def transferring(self) -> bool:
        """True while this node leads and transfers its leadership. Rule: E7."""
        return isinstance(self.state.role, Leader) and self.state.role.successor is not None

    def identity_refusal(self, peer: NodeId, shown: Known, rebuilding: bool) -> UnknownMemberRefused | None:
        """Return why a link to or from a peer with this data directory is refused; None if it is not. Rule: M4."""
        return membership.identity_refusal(self.state, peer, shown, rebuilding)

    def snapshot(self) -> Snapshot:
        """Return the state for a checkpoint: as of delivered_seq, with every promise that was written. Rule: K4."""
        state = self.state
        promised = state.pledge or state  # A pledge under way may be in a WAL segment that this checkpoint drops.
        return Snapshot(
            term=promised.term,
            voted_for=promised.voted_for,
            rebuilding=state.rebuilding,
            identities=dict(state.identities),
            marks=tuple(mark for mark in state.log.marks if mark.position < state.log.base),
            delivered_seq=state.delivered_seq,
            sessions=dict(state.sessions.table),
            horizon=state.sessions.horizon,
            promised=state.promises(),
        )

    # ---- the term rule ------------------------------------------------------------------------------

    def _take(self, envelope: Envelope, now: float, fx: Effects) -> None:
        """Keep the input back during a pledge, or apply the term rule and dispatch it. Rule: E6, M4."""
        state = self.state
        sender, message = envelope.sender, envelope.message
        if type(message) in _PROMISING and self._has_stale_data(sender, cast(LinkUp | Promises, message), fx):
            return
        if state.pledge is not None:
            self._wait_behind_pledge(envelope, fx)
            return
        if state.unknown_members and sender in state.unknown_members and not isinstance(message, LinkUp | LinkDown):
            return  # hit: M4 a frame of an unknown member is dropped
        if type(message) in _TERMED:  # A tenth of the cost of isinstance with a union of thirteen.
            message = cast(Termed, message)
            if message.term < state.term:
                if not isinstance(message, TermIs):
                    state.send(fx, sender, TermIs(state.term))  # hit: E6 a frame of an older term is answered
                return
            if message.term > state.term:
                if state.stalled:
                    return  # hit: F4 a stalled disk is given no term to write
                # hit: E6 a frame of a higher term makes it durable first
                state.pledge_term(fx, message.term, NOBODY, envelope)
                return
        self._dispatch(sender, message, now, fx)

    def _has_stale_data(self, sender: NodeId, message: LinkUp | Promises, fx: Effects) -> bool:
        """Check the promises of this node that a peer reports (M6); set fx.halt and return True if its data is older.

        This is done at once, also during a pledge: once a higher term is durable, lost promises cannot be detected.
        """
        own = message.promised if isinstance(message, LinkUp) else message.promised.get(self.state.node_id, NOTHING)
        fx.halt = fx.halt or membership.stale_data(self.state, own, sender)
        return bool(fx.halt)

    def _wait_behind_pledge(self, envelope: Envelope, fx: Effects) -> None:
        """Keep an input back until the pledge is durable, within bounds. Rule: E6, F4.

        Of the changes of one link only the latest is kept. While the disk is stalled, messages are refused instead.
        """
        message = envelope.message
        if isinstance(message, LinkUp | LinkDown):
            news = _link_news(envelope)
            for at, older in enumerate(self._backlog):
                if _link_news(older) == news:
                    del self._backlog[at]
                    break
        elif self.state.stalled and isinstance(message, Submit):
            ordering.on_submit(self.state, envelope.sender, message, fx)
            return
        elif len(self._backlog) >= BACKLOG_MAX or self._backlog_bytes >= self.state.config.buffer_max_bytes:
            return  # hit: F4 a frame above the bound of those kept back by a pledge is lost
        self._backlog.append(envelope)  # hit: E6 a frame waits behind a pledge
        self._backlog_bytes += _bulk(message)

    def _take_out(self, now: float, fx: Effects) -> None:
        """Handle the oldest input that a pledge kept back."""
        envelope = self._backlog.popleft()
        self._backlog_bytes -= _bulk(envelope.message)
        self._take(envelope, now, fx)

    def _refuse_what_waits(self, fx: Effects) -> None:
        """Refuse the clients' messages that a pledge keeps back. Rule: F4."""
        waiting, self._backlog, self._backlog_bytes = self._backlog, deque(), 0
        for envelope in waiting:
            self._wait_behind_pledge(envelope, fx)

    def _keep_pledge(self, now: float, fx: Effects) -> None:
        """Adopt the durable term and vote, and handle the frame that caused the pledge. Rule: E3, E4, E6."""
        state = self.state
        pledge, state.pledge = state.pledge, None
        assert pledge is not None
        raised = pledge.term > state.term
        state.term, state.voted_for = pledge.term, pledge.voted_for
        if pledge.then is None:
            election.open_candidacy(state, now, fx)
            return
        if raised:
            become_follower(state, now, fx, f"term {pledge.term} began")
        self._take(pledge.then, now, fx)

    def _dispatch(self, sender: NodeId, message: object, now: float, fx: Effects) -> None:
        """Call the handler of an input. Messages under the term rule have the current term.

        The inputs of a running cluster come first, and are told apart by their type, which costs a fifth of a match.
        """
        state = self.state
        if type(message) is Submit:
            ordering.on_submit(state, sender, message, fx)
        elif type(message) is Append:
            follower = failure.hear(state, sender, message, now, fx)
            ordering.on_append(state, follower, sender, message, now, fx)
            ordering.follow_commit(state, follower, fx)
        elif type(message) is Appended or type(message) is HeartbeatAck:
            failure.on_heartbeat_ack(state, sender, message, now, fx)
        elif type(message) is Commit:
            ordering.follow_commit(state, failure.hear(state, sender, message, now, fx), fx)
        elif type(message) is Heartbeat:
            failure.on_heartbeat(state, sender, message, now, fx)
            changes.notify_removed(state, message.settled, fx)
        else:
            self._dispatch_rare(sender, message, now, fx)

    def _dispatch_rare(self, sender: NodeId, message: object, now: float, fx: Effects) -> None:
        """Call the handler of any other input; the most frequent ones come first."""
        state = self.state
        role = state.role
        match message:
            case Promises():
                membership.on_promises(state, message)
            case Members():
                membership.on_members(state, message, fx)
            case Refuse():
                fx.reply.append(message)
            case CatchUp():
                if isinstance(role, Leader) and sender in role.progress:
                    catchup.on_catch_up(state, role, sender, message, fx)
            case OlderMarks():
                if sender == state.leader_id:
                    catchup.on_older_marks(state, failure.hear(state, sender, message, now, fx), message, now, fx)
            case Resume():
                if sender == state.leader_id:
                    catchup.on_resume(state, failure.hear(state, sender, message, now, fx), message, fx)
            case LinkUp():
                membership.on_link_up(state, sender, message, now, fx)
            case LinkDown():
                membership.on_link_down(state, sender, now, fx)
            case Join():
                membership.on_join(state, sender, now, fx)
            case JoinAck():
                membership.on_join_ack(state, sender, message, now, fx)
            case Damaged():
                repair.on_damaged(state, message.after, now, fx)
            case CopyRequest():
                repair.on_copy_request(state, sender, message, fx)
            case Copy():
                repair.on_copy(state, sender, message, now, fx)
            case Election():
                election.on_election(state, sender, message, now, fx)
            case LeaderAnswer() | Ok() | Support() | Abstain():
                election.on_poll_answer(state, sender, message, now, fx)
            case VoteRequest():
                election.on_vote_request(state, sender, message, now, fx)
            case Vote():
                election.on_vote(state, sender, now, fx)
            case Coordinator():
                election.on_coordinator(state, sender, message, now, fx)
            case Transfer():
                transfer.on_transfer(state, message.to, now, fx)
            case AddNode() | RemoveNode():
                changes.on_change(state, message, now, fx)
            case Removed():
                changes.on_removed(state, sender, fx)
            case TermIs():
                pass  # The term rule has already adopted its term.
            case _:
                raise AssertionError(f"not an input of the core: {message!r}")


def _bulk(message: object) -> int:
    """Return the number of bytes of the records or payloads in an input."""
    if isinstance(message, Append):
        return sum(len(record.raw) for record in message.records)
    return sum(map(len, message.payloads)) if isinstance(message, Submit) else 0


def _link_news(envelope: Envelope) -> tuple[NodeId, bool, bool] | None:
    """Return the link that an input is about, as (peer, opened, outgoing); None if it is a frame."""
    match envelope.message:
        case LinkUp() as up:
            return (envelope.sender, True, up.outgoing)
        case LinkDown():
            return (envelope.sender, False, True)
        case _:
            return None


def _base(recovered: Recovered) -> Position:
    """Return the position of the last delivered batch. Its term is that of the last mark before it."""
    if recovered.delivered_seq == 0:
        return Position(0, 0)
    terms = [mark.term for mark in recovered.marks if mark.after < recovered.delivered_seq]
    return Position(terms[-1], recovered.delivered_seq)
