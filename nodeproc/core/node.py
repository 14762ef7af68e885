"""The core's door: recover, step, persisted, fetched, tick, next_deadline; the term rule and dispatch.

Nothing here or below touches a socket, a file or a clock. Every call takes `now` (monotonic seconds, never
falling) and returns Effects; their order of duty is told in nodeproc.core.effects.
"""

from __future__ import annotations

from collections import deque
from random import Random
from typing import TypeAlias, cast, get_args

from nodeproc.core import catchup, election, failure, membership, ordering, repair
from nodeproc.core.effects import Effects
from nodeproc.core.events import Joining, NodeReadmitted, SequenceSet, Starting, StrangerRefused
from nodeproc.core.log import Log
from nodeproc.core.messages import (
    NOBODY,
    NOTHING,
    Abstain,
    Append,
    Appended,
    CatchUp,
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
    LinkDown,
    LinkUp,
    Members,
    NodeId,
    Ok,
    OlderMarks,
    Position,
    Promises,
    Record,
    Refuse,
    Resume,
    SeqNo,
    Submit,
    Support,
    Term,
    TermIs,
    Vote,
    VoteRequest,
)
from nodeproc.core.messages import Leader as LeaderAnswer
from nodeproc.core.recovered import CoreConfig, Recovered, Snapshot
from nodeproc.core.sessions import Sessions
from nodeproc.core.state import Candidate, Follower, Leader, NodeState, Seal, become_follower

BACKLOG_MAX = 20_000
"""Frames kept while a pledge is on its way to the disk; more are lost, as frames can be."""

Termed: TypeAlias = (
    JoinAck
    | Heartbeat
    | HeartbeatAck
    | LeaderAnswer
    | Vote
    | Coordinator
    | TermIs
    | CatchUp
    | OlderMarks
    | Resume
    | Append
    | Appended
    | Commit
)
"""Frames under the term rule E6. Nobody takes over the term that ELECTION proposes; VOTE_REQUEST has rule E4."""
_TERMED = frozenset(get_args(Termed))


class Node:
    """One member of the cluster, as a pure state machine. Made by Node.recover."""

    def __init__(self, state: NodeState) -> None:
        self.state = state
        self._backlog: deque[Envelope] = deque()
        self._backlog_bytes = 0

    @classmethod
    def recover(cls, config: CoreConfig, recovered: Recovered, now: float, rng: Random, seal: Seal) -> Node:
        """A node that goes on from what its disk remembers, as a follower. Rule: M2.

        Args:
            config: members include node_id.
            recovered: all of it durable.
            rng: the node's own; draws jitter and the first request number.
            seal: makes the bytes of records (nodeproc.records.Sealer).
        """
        assert config.node_id in config.members and 1 <= len(config.members) <= 9, config.members
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
        """Begin to look for the others; JOINs go out as links open. Rule: M1."""
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
        """Take one frame from a peer, one submission of a client of ours, or news of a link.

        Args:
            fx: of the same turn; what this step asks for is put behind it. None: the turn begins here.
        """
        fx = fx or Effects()
        self._take(envelope, now, fx)
        failure.expect_disk(self.state, now)
        return fx

    def persisted(self, ticket: int, now: float, fx: Effects | None = None) -> Effects:
        """All operations up to this ticket are durable: keep what was promised on that condition."""
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
        """What the disk had for a Fetch: consecutive records behind its position; none where they can't be had (K6)."""
        fx = Effects()
        if repair.is_copy_wanted(self.state, peer, token):
            repair.send_copy(self.state, peer, records, fx)
        elif isinstance(self.state.role, Leader):
            catchup.on_fetched(self.state, self.state.role, peer, token, records, fx)
        return fx

    def tick(self, now: float, fx: Effects | None = None) -> Effects:
        """Do what is due: order what waits, tell commits, heartbeats, suspicions, polls."""
        state, fx = self.state, fx or Effects()
        if now >= failure.disk_deadline(state):
            failure.on_disk_silent(state, now, fx)
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
            if role.commit_untold:
                ordering.tell_commit(state, role, fx)
            if now >= role.heartbeat_at:
                failure.tick_leader(state, role, now, fx)
                if state.role is role:
                    membership.tend_learners(state, role, now, fx)
        elif isinstance(role, Candidate):
            if now >= role.until:
                failure.lose_candidacy(state, role, now, fx)
        elif state.leader_id != NOBODY:
            failure.tick_follower(state, role, now, fx)
        if isinstance(state.role, Follower) and state.leader_id == NOBODY:
            election.tick_leaderless(state, now, fx)

    def stood_still(self) -> None:
        """This process did not run for a while: the pause between heartbeats says nothing. Rule: F2."""
        if isinstance(self.state.role, Follower):
            self.state.role.beat_at = 0.0

    def next_deadline(self) -> float:
        """Call tick no later than this (monotonic seconds); 0 when something waits for the end of the turn."""
        state = self.state
        disk = failure.disk_deadline(state)
        if state.pledge is not None:
            return disk
        due = min(self._role_deadline(), disk)
        return min(due, repair.copying_deadline(state)) if state.copying else due

    def _role_deadline(self) -> float:
        state, role = self.state, self.state.role
        if isinstance(role, Leader):
            return 0.0 if role.commit_untold or ordering.is_order_due(state, role) else role.heartbeat_at
        if isinstance(role, Candidate):
            return role.until
        if state.leader_id != NOBODY:
            return failure.follower_deadline(state, role)
        return election.leaderless_deadline(state)

    # ---- what the outside may look at -----------------------------------------------------------------

    @property
    def written(self) -> int:
        """Persist operations issued so far: the ticket to hand to persisted() when they are durable."""
        return self.state.written

    @property
    def route(self) -> tuple[NodeId, Term, int]:
        """(leader, term, epoch): when it changes, clients must send what is not acknowledged again. Rule: S5.

        leader: NOBODY too while the disk is stalled: nothing could be acknowledged here (F4).
        """
        state = self.state
        return (NOBODY if state.stalled else state.leader_id, state.term, state.route_epoch)

    @property
    def role_name(self) -> str:
        """follower | candidate | leader."""
        return type(self.state.role).__name__.lower()

    def delivered_session(self, session: str) -> tuple[int, SeqNo] | None:
        """(last n delivered here, its seq_no) of a session; None: none, or dropped from the table."""
        return self.state.sessions.table.get(session)

    def progress(self) -> dict[NodeId, tuple[bool, Position]]:
        """For the leader: peer -> (is sent new records at once, durable there); empty elsewhere."""
        role = self.state.role
        if not isinstance(role, Leader):
            return {}
        return {peer: (progress.live, progress.matched) for peer, progress in role.progress.items()}

    def stranger(self, peer: NodeId, identity: str, rebuilding: bool) -> StrangerRefused | None:
        """Why a link to or from a peer with this data directory must not be opened; None: it may. Rule: M4."""
        return membership.stranger(self.state, peer, identity, rebuilding)

    def snapshot(self) -> Snapshot:
        """What a checkpoint keeps: the state as of delivered_seq, and every promise that was written. Rule: K4."""
        state = self.state
        promised = state.pledge or state  # A pledge under way may stand in a segment that this checkpoint drops.
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
        """Put it behind a pledge, or apply the term rule and dispatch. Rule: E6, M4."""
        state = self.state
        sender, message = envelope
        if isinstance(message, LinkUp | Promises) and self._has_forgotten(sender, message, fx):
            return
        if state.pledge is not None:
            self._wait_behind_pledge(envelope, fx)
            return
        if sender in state.strangers and not isinstance(message, LinkUp | LinkDown):
            return  # hit: M4 a frame of a stranger is dropped
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

    def _has_forgotten(self, sender: NodeId, message: LinkUp | Promises, fx: Effects) -> bool:
        """Judged at once, also while a higher term is on its way to the disk: behind that nothing could be seen."""
        own = message.promised if isinstance(message, LinkUp) else message.promised.get(self.state.node_id, NOTHING)
        fx.halt = fx.halt or membership.forgotten(self.state, own, sender)
        return bool(fx.halt)

    def _wait_behind_pledge(self, envelope: Envelope, fx: Effects) -> None:
        """Keep a frame for later, within bounds; of the news of one link the latest is enough. Rule: E6, F4."""
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
            return  # hit: F4 what is too much to wait behind a pledge is lost
        self._backlog.append(envelope)  # hit: E6 a frame waits behind a pledge
        self._backlog_bytes += _bulk(message)

    def _take_out(self, now: float, fx: Effects) -> None:
        """Take the oldest frame that waited behind a pledge."""
        envelope = self._backlog.popleft()
        self._backlog_bytes -= _bulk(envelope.message)
        self._take(envelope, now, fx)

    def _refuse_what_waits(self, fx: Effects) -> None:
        """Clients' messages that wait behind a pledge are the clients' again. Rule: F4."""
        waiting, self._backlog, self._backlog_bytes = self._backlog, deque(), 0
        for envelope in waiting:
            self._wait_behind_pledge(envelope, fx)

    def _keep_pledge(self, now: float, fx: Effects) -> None:
        """Term and vote are durable: show them, and take the frame that brought them. Rule: E3, E4, E6."""
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
        """One case a message; those with a term are of the present one."""
        state = self.state
        role = state.role
        match message:
            case Submit():
                ordering.on_submit(state, sender, message, fx)
            case Append():
                follower = failure.hear(state, sender, message, now, fx)
                ordering.on_append(state, follower, sender, message, now, fx)
                ordering.follow_commit(state, follower, fx)
            case Appended() | HeartbeatAck():
                failure.on_heartbeat_ack(state, sender, message, now, fx)
            case Commit():
                ordering.follow_commit(state, failure.hear(state, sender, message, now, fx), fx)
            case Heartbeat():
                failure.on_heartbeat(state, sender, message, now, fx)
            case Refuse():
                fx.reply.append(message)
            case CatchUp():
                if isinstance(role, Leader):
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
            case Members():
                membership.on_members(state, message, fx)
            case Promises():
                membership.on_promises(state, message)
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
                election.on_coordinator(state, sender, now, fx)
            case TermIs():
                pass  # The term rule has taken what it says.
            case _:
                raise AssertionError(f"not an input of the core: {message!r}")


def _bulk(message: object) -> int:
    """Bytes of the records or messages in an input."""
    if isinstance(message, Append):
        return sum(len(record.raw) for record in message.records)
    return sum(map(len, message.payloads)) if isinstance(message, Submit) else 0


def _link_news(envelope: Envelope) -> tuple[NodeId, bool, bool] | None:
    """Which link an input is about, and whether it opened; None: it is a frame."""
    match envelope.message:
        case LinkUp() as up:
            return (envelope.sender, True, up.outgoing)
        case LinkDown():
            return (envelope.sender, False, True)
        case _:
            return None


def _base(recovered: Recovered) -> Position:
    """Position of the last delivered batch: its term is that of the last mark behind which it stands."""
    if recovered.delivered_seq == 0:
        return Position(0, 0)
    terms = [mark.term for mark in recovered.marks if mark.after < recovered.delivered_seq]
    return Position(terms[-1], recovered.delivered_seq)
