"""One node of an explored cluster: the core and a small model of its disk, as an immutable value.

A step copies the core, gives the copy one input, handles the effects in their order, and looks up the number of the
result. Nodes with the same future behaviour have the same number: they are compared by content, with tickets counted
from the durable end and times from the node's current time. The reaction to an input depends on nothing else, so each
(node, input) is computed once for all clusters in which it occurs.

The disk is a list of persist operations, a prefix of which is durable. Whenever operations are not durable, one
fdatasync is under way, which covers those written before it began.
"""

from __future__ import annotations

import dataclasses
import functools
from collections import deque
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, field
from random import Random
from typing import Any, Final, NamedTuple, get_args, get_type_hints

from nodeproc.core import changes, election, ordering
from nodeproc.core.effects import Effects, PersistOp, Promise, Truncate
from nodeproc.core.messages import (
    NOBODY,
    START,
    AddNode,
    Batch,
    Change,
    Envelope,
    Input,
    Known,
    Mark,
    Members,
    NodeId,
    Promises,
    Record,
    RemoveNode,
    Submit,
    Term,
    Vote,
    VoteRequest,
)
from nodeproc.core.node import Node
from nodeproc.core.recovered import CoreConfig, Recovered
from nodeproc.core.sessions import Sessions
from nodeproc.core.state import FOREVER, Follower, Leader, NodeState
from nodeproc.records import Sealer

SESSION: Final = "s"
NUMBERS_A_LIFE: Final = 1000
"""Maximum of request numbers drawn by one process; those of the next process start after them."""
CHANGES: Final = ("add", "give_vote", "remove")
"""Moves that change the list of members."""
UNSEEN: Final = frozenset({"config", "rng", "seal", "route_epoch", "promised"})
"""Fields of the core that never change, that it only reports, or that matter only if a disk loses synced data."""


class Violation(Exception):
    """An invariant does not hold."""


class Steady(Random):
    """A generator that returns the middle of every range, because the exploration tries all orders of timers."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self._number = number

    def random(self) -> float:
        return 0.5

    def getrandbits(self, k: int, /) -> int:
        return self._number


# ---- values -----------------------------------------------------------------------------------------


class Disk(NamedTuple):
    """The model of a disk: durable state (term, voted_for, log), pending operations, message log."""

    term: Term = 0
    voted_for: NodeId = NOBODY
    log: tuple[Record, ...] = ()
    pending: tuple[PersistOp, ...] = ()
    """Operations that are not durable yet."""
    begun: int = 0
    """Number of pending operations that the fdatasync under way covers."""
    delivered: tuple[Record, ...] = ()
    """The message log: batches only."""

    def synced(self, count: int) -> Disk:
        """Return the disk with the first `count` pending operations durable."""
        term, voted_for, log = self.term, self.voted_for, self.log
        for op in self.pending[:count]:
            if isinstance(op, Promise):
                term, voted_for = op.term, op.voted_for
            elif isinstance(op, Truncate):
                log = tuple(record for record in log if record.position <= op.keep)
            else:
                assert isinstance(op, Record), op
                log = (*log, op)
        left = self.pending[count:]
        return Disk(term, voted_for, log, left, len(left), self.delivered)

    def recovered(self, node_id: NodeId, members: tuple[NodeId, ...]) -> Recovered:
        sessions = Sessions(1000)
        for record in self.delivered:
            assert isinstance(record.header, Batch)
            sessions.delivered(record.header)
        base = self.delivered[-1].position if self.delivered else START
        return Recovered(
            identity=identity(node_id),
            term=self.term,
            voted_for=self.voted_for,
            identities={peer: Known(identity(peer)) for peer in members if peer != node_id},
            marks=[record.header for record in self.log if isinstance(record.header, Mark)],
            position=self.log[-1].position if self.log else START,
            delivered_seq=base.seq_no,
            tail=[record for record in self.log if record.position > base],
            sessions=sessions.table,
        )


@dataclass(frozen=True, slots=True)
class Local:
    """A node between two steps.

    node: None while it is down.
    lives: number of its processes so far.
    shown, votes: the highest term that it has ever been in, and the votes that it has shown, by term.
    """

    node_id: NodeId
    node: Node | None
    disk: Disk
    lives: int = 1
    shown: Term = 0
    votes: tuple[tuple[Term, NodeId], ...] = ()


class View(NamedTuple):
    """Properties of a node that lab.search.explore_cluster uses."""

    up: bool
    term: Term
    leads: bool
    may_stand: bool
    follows: bool
    hears: bool
    """True if the node would ignore a VOTE_REQUEST, unless that came after an election timeout of silence."""
    syncing: bool
    due: float
    """Seconds until its next timer fires."""
    durable: frozenset[int]
    """Numbers of the records in its durable log."""
    log: int
    """Number of its log as written."""
    delivered: int
    """Number of delivered batches."""
    settled: bool = False
    """The node leads and counts the mark of its term as committed."""
    changes: tuple[tuple[str, NodeId], ...] = ()
    """Changes that it would begin as leader, as (add, give_vote or remove, the node that is meant)."""


class Outcome(NamedTuple):
    """The result of one input to a node.

    local: number of the node afterwards.
    sends: (peer, number of the message), in order.
    delivered: numbers of the delivered batches.
    problem: the violation; "" if there is none.
    """

    local: int
    sends: tuple[tuple[NodeId, int], ...]
    delivered: tuple[int, ...]
    problem: str


class Numbers:
    """Assigns one number to all equal things."""

    def __init__(self) -> None:
        self._numbers: dict[Hashable, int] = {}
        self.things: list[Any] = []

    def of(self, key: Hashable, thing: object) -> int:
        """Return the number of the things with this key; the first thing of a key is stored."""
        number = self._numbers.get(key)
        if number is None:
            number = self._numbers[key] = len(self.things)
            self.things.append(thing)
        return number


def added(node_id: NodeId) -> Change:
    """Return the request to add this node."""
    return AddNode(node_id, f"node-{node_id}", 1)


def identity(node_id: NodeId) -> str:
    """Return the identity of the node's data directory."""
    return f"disk-{node_id}"


# ---- copies and contents ----------------------------------------------------------------------------

_FIELDS: dict[type, tuple[str, ...]] = {}
_NO_TIME: Final = {"Due": FOREVER, "Since": 0.0, "Measured": 0.0}
"""Types of clock-dependent fields in nodeproc.core.state -> the neutral value of a field that has no default."""


def _fields(kind: type) -> tuple[str, ...]:
    """Return the fields of a mutable dataclass; none for any other type."""
    if kind not in _FIELDS:
        changes = dataclasses.is_dataclass(kind) and not kind.__dataclass_params__.frozen  # type: ignore[attr-defined]
        _FIELDS[kind] = tuple(each.name for each in dataclasses.fields(kind)) if changes else ()
    return _FIELDS[kind]


def copied(value: Any) -> Any:
    """Return a copy that shares only immutable parts with the original."""
    kind = type(value)
    if kind is list or kind is deque:
        return kind(copied(each) for each in value)
    if kind is dict:
        return {key: copied(each) for key, each in value.items()}
    if kind is set:
        return value.copy()
    names = _fields(kind)
    if not names:
        return value
    copy = object.__new__(kind)
    for name in names:
        setattr(copy, name, copied(getattr(value, name)))
    return copy


def content(value: Any) -> Hashable:
    """Return a hashable value that is equal for equal contents."""
    kind = type(value)
    if kind is Record:
        return bytes(value.raw)
    if kind is list or kind is deque or kind is tuple:
        return tuple(content(each) for each in value)
    if kind is dict:
        return tuple((content(key), content(each)) for key, each in value.items())
    if kind is set:
        return frozenset(value)
    if kind is Members:
        return kind, content(value.identities)
    names = _fields(kind)
    if names:
        return (kind, *(content(getattr(value, name)) for name in names if name not in UNSEEN))
    assert isinstance(value, Hashable), value
    return value


@functools.cache
def _times(kind: type[Hashable]) -> tuple[tuple[str, str, float], ...]:
    """Return (name, type, neutral value) of each field that depends on the clock, for a class of the state."""
    return tuple(
        (each.name, str(each.type), _NO_TIME[str(each.type)] if each.default is dataclasses.MISSING else each.default)
        for each in dataclasses.fields(kind)  # type: ignore[arg-type]
        if each.type in _NO_TIME
    )


@functools.cache
def _parts(kind: type[Hashable]) -> tuple[str, ...]:
    """Return the names of the fields that hold another object of the state, or a dict of such objects."""
    hints = get_type_hints(kind)
    return tuple(name for name, hint in hints.items() if any(map(_is_part, (hint, *get_args(hint)))))


def _is_part(hint: Any) -> bool:
    return dataclasses.is_dataclass(hint) and getattr(hint, "__module__", "") == NodeState.__module__


def _timed(part: Any) -> Iterator[tuple[Any, str, str, float]]:
    """Return (owner, name, type, neutral value) of every time in a node's state."""
    for name, kind, neutral in _times(part.__class__):
        yield part, name, kind, neutral
    for name in _parts(part.__class__):
        inner = getattr(part, name)
        for each in inner.values() if type(inner) is dict else (inner,):
            if each is not None:
                yield from _timed(each)


def let_pass(state: NodeState, seconds: float) -> None:
    """Advance the node's time by this many seconds, so that the new current time is 0."""
    for owner, name, kind, _ in _timed(state):
        if kind != "Measured":
            setattr(owner, name, getattr(owner, name) - seconds)


def round_times(state: NodeState) -> None:
    """Make times equal that cannot be told apart: those long past, sums with rounding errors, and all measurements."""
    oldest = {"Due": 0.0, "Since": -state.config.election_timeout}
    for owner, name, kind, neutral in _timed(state):
        setattr(owner, name, round(max(getattr(owner, name), oldest[kind]), 6) if kind in oldest else neutral)


def forget_times(state: NodeState) -> None:
    """Reset the times and measurements that only timers and polls read, because no timer ever fires."""
    for owner, name, _, neutral in _timed(state):
        setattr(owner, name, neutral)
    state.suspected, state.starved, state.failures = NOBODY, False, 0
    state.spent.clear()
    state.join_answers.clear()
    if isinstance(state.role, Follower):
        state.role.unanswered = 0


def forget_sizes(state: NodeState) -> None:
    """Reset everything that only the limits of P1 read, which so few records never reach."""
    if isinstance(state.role, Leader):
        for progress in state.role.progress.values():
            progress.inflight.clear()
            progress.inflight_bytes = 0
            progress.caught_up = False


# ---- steps --------------------------------------------------------------------------------------------


@dataclass
class Locals:
    """All nodes seen so far, by number, with their reactions to inputs.

    Args:
        size: number of founders.
        timers: whether timers can fire; if not, times are not part of a node's content.
        newcomers: number of nodes that are no members at the start.
        changing: whether the members can be changed.
    """

    size: int
    timers: bool
    newcomers: int = 0
    changing: bool = False
    nodes: Numbers = field(default_factory=Numbers)
    views: list[View] = field(default_factory=list)
    messages: Numbers = field(default_factory=Numbers)
    records: Numbers = field(default_factory=Numbers)
    logs: Numbers = field(default_factory=Numbers)
    _done: dict[tuple[str, int, NodeId, int], Outcome] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.ids = tuple(range(1, self.size + self.newcomers + 1))
        self.members = self.ids[: self.size]
        self._configs = {each: CoreConfig(each, each, self.members) for each in self.ids}
        self._sealer = Sealer(lambda: 0.0)

    def empty(self, node_id: NodeId) -> int:
        """Return a node that was never started and knows the identities of the other members."""
        return self._number(Local(node_id, None, Disk(), lives=0))

    def message(self, message: Input) -> int:
        """Return the number of a message."""
        return self.messages.of(content(message), message)

    def step(self, do: str, local: int, peer: NodeId = NOBODY, message: int = 0) -> Outcome:
        """Return a node's reaction to an input.

        Args:
            do: take, take_late, sync, stand, fire, submit, kill, lose_power, start, add, give_vote or remove.
            peer: the sender of the frame, or the node that is added, gets a vote or is removed.
            message: the number of the message for take and take_late, the client's n for submit.
        """
        key = (do, local, peer, message)
        found = self._done.get(key)
        if found is None:
            found = self._done[key] = self._step(*key)
        return found

    def _step(self, do: str, local: int, peer: NodeId, message: int) -> Outcome:
        before: Local = self.nodes.things[local]
        try:
            if do == "kill":
                return self._down(before, before.disk.synced(len(before.disk.pending)))
            if do == "lose_power":
                return self._down(before, before.disk._replace(pending=(), begun=0, delivered=()))
            step = _Step(self, before)
            if do in ("take", "take_late"):
                step.take(Envelope(peer, self.messages.things[message]), late=do == "take_late")
            elif do == "submit":
                submit = Submit(SESSION, 101, 0, message, (f"m{message}",))
                step.take(Envelope(before.node_id, submit), late=False)
            elif do in CHANGES:
                step.change(do, peer)
            else:
                actions: dict[str, Callable[[], None]] = {
                    "sync": step.sync,
                    "stand": step.stand,
                    "fire": step.fire,
                    "start": step.start,
                }
                actions[do]()
            after = step.after()
            if step.leaves:
                after = dataclasses.replace(after, node=None, disk=after.disk.synced(len(after.disk.pending)))
            return Outcome(self._number(after), tuple(step.sends), tuple(step.delivered), "")
        except Violation as error:
            return Outcome(local, (), (), str(error))
        except AssertionError as error:
            return Outcome(local, (), (), f"an assertion of node_{before.node_id}'s core failed: {error}")

    def _down(self, before: Local, disk: Disk) -> Outcome:
        return Outcome(self._number(dataclasses.replace(before, node=None, disk=disk)), (), (), "")

    def fresh(self, local: Local) -> Node:
        """Return the core of a new process on this disk."""
        node_id = local.node_id
        rng = Steady(NUMBERS_A_LIFE * local.lives)
        recovered = local.disk.recovered(node_id, self.ids)
        return Node.recover(self._configs[node_id], recovered, 0.0, rng, self._sealer)

    def _number(self, local: Local) -> int:
        node = local.node
        core = None if node is None else (content(node.state), content(node._backlog))
        key = (local.node_id, core, content(local.disk), local.lives, local.shown, local.votes)
        number = self.nodes.of(key, local)
        if number == len(self.views):
            self.views.append(self._view(local))
        return number

    def _view(self, local: Local) -> View:
        disk, node = local.disk, local.node
        durable = frozenset(self.record(record) for record in disk.log)
        written = tuple(self.record(record) for record in disk.synced(len(disk.pending)).log)
        log, delivered = self.logs.of(written, written), len(disk.delivered)
        if node is None:
            return View(False, local.shown, False, False, False, False, False, FOREVER, durable, log, delivered)
        state = node.state
        follower = isinstance(state.role, Follower)
        leads = isinstance(state.role, Leader) and state.pledge is None
        return View(
            up=True,
            term=state.term,
            leads=isinstance(state.role, Leader),
            may_stand=follower and state.pledge is None and state.has_vote,
            follows=state.leader_id != NOBODY,
            hears=state.pledge is None and (isinstance(state.role, Leader) or (follower and state.role.heard)),  # type: ignore[union-attr]
            syncing=disk.begun > 0,
            due=node.next_deadline(),
            durable=durable,
            log=log,
            delivered=delivered,
            settled=leads and ordering.majority_position(state, state.role) is not None,  # type: ignore[arg-type]
            changes=tuple(self._changes(state)) if leads and self.changing else (),
        )

    def _changes(self, state: NodeState) -> Iterator[tuple[str, NodeId]]:
        """Yield the changes that this leader would begin while all members answer. It is not asked to remove itself."""
        answering = copied(state)
        leader = answering.role
        leader.heartbeat_at = 0.0
        for node in self.ids:
            for do, change in (("add", added(node)), ("remove", RemoveNode(node))):
                if node != state.node_id and not changes.refusal(answering, change):
                    yield do, node
        for node, progress in leader.progress.items():
            keeps_up = node in state.members.learners and progress.matched.term == state.term
            if keeps_up and not changes.not_now(answering, leader, changes.with_vote(state.members, node)):
                yield "give_vote", node

    def record(self, record: Record) -> int:
        """Return the number of a record."""
        return self.records.of(record.raw, record)


class _Step:
    """One input to a copy of a node."""

    def __init__(self, nodes: Locals, before: Local) -> None:
        self._nodes, self._before = nodes, before
        self._disk, self._votes = before.disk, dict(before.votes)
        self._lives = before.lives
        self.sends: list[tuple[NodeId, int]] = []
        self.delivered: list[int] = []
        self.leaves = False
        """The node stops cleanly, because it is a member no more (G5)."""
        if before.node is not None:
            self._node = Node(copied(before.node.state))
            self._node._backlog = before.node._backlog.copy()

    # ---- inputs ---------------------------------------------------------------------------------------

    def take(self, envelope: Envelope, *, late: bool) -> None:
        """Handle one frame; late: after an election timeout in which the node heard nothing."""
        now = self._node.state.config.election_timeout if late else 0.0
        self._turn(self._node.step(envelope, now), now)

    def sync(self) -> None:
        """End the fdatasync under way; if more is pending, the next one begins before the core is notified."""
        ticket = self._disk.begun
        self._disk = self._disk.synced(ticket)
        self._turn(self._node.persisted(ticket, 0.0), 0.0)

    def stand(self) -> None:
        """Become candidate without a poll."""
        fx = Effects()
        election.become_candidate(self._node.state, 0.0, fx)
        self._turn(fx, 0.0)

    def fire(self) -> None:
        """Advance the clock to the next deadline and call tick."""
        now = max(self._node.next_deadline(), 0.0)
        self._turn(self._node.tick(now), now)

    def change(self, do: str, node: NodeId) -> None:
        """Begin a change of the members as leader, while all members answer."""
        state, fx = self._node.state, Effects()
        state.role.heartbeat_at = 0.0  # type: ignore[union-attr]
        if do == "give_vote":
            changes.begin(state, changes.with_vote(state.members, node), do, 0.0, fx)
        else:
            fx = self._node.step(Envelope(state.node_id, added(node) if do == "add" else RemoveNode(node)), 0.0)
        self._turn(fx, 0.0)

    def start(self) -> None:
        self._lives += 1
        self._node = self._nodes.fresh(dataclasses.replace(self._before, lives=self._lives))
        self._turn(self._node.start(0.0), 0.0)

    # ---- effects --------------------------------------------------------------------------------------

    def _turn(self, fx: Effects, now: float) -> None:
        """End the turn: let a leader do the work that is due at its end, then handle the effects."""
        node = self._node
        while not fx.halt and node.state.pledge is None and node.next_deadline() == 0.0 and self._leads():
            fx.merge(node.tick(now))
        self._perform(fx, now)
        if now:
            let_pass(node.state, now)

    def _leads(self) -> bool:
        role = self._node.state.role
        return isinstance(role, Leader) and (bool(role.waiting) or role.commit_unsent)

    def _perform(self, fx: Effects, now: float) -> None:
        if fx.halt:
            raise Violation(f"node_{self._before.node_id} stops: {fx.halt}")
        self.leaves = self.leaves or bool(fx.leave)
        pending = (*self._disk.pending, *fx.persist)
        self._disk = self._disk._replace(pending=pending, begun=self._disk.begun or len(pending))
        for peer, message in fx.send:
            if isinstance(message, Promises):
                continue  # No disk loses synced data in an exploration.
            if isinstance(message, Vote | VoteRequest):
                self._show_vote(message.term, peer if isinstance(message, Vote) else self._before.node_id)
            self.sends.append((peer, self._nodes.message(message)))
        batches = tuple(record for record in fx.deliver if isinstance(record.header, Batch))
        self._disk = self._disk._replace(delivered=self._disk.delivered + batches)
        self.delivered += [self._nodes.record(record) for record in batches]
        for fetch in fx.fetch:
            written = self._disk.synced(len(pending)).log
            records = [record for record in written if record.position > fetch.after]
            self._perform(self._node.fetched(fetch.peer, fetch.token, records, now), now)

    def _show_vote(self, term: Term, candidate: NodeId) -> None:
        before = self._votes.setdefault(term, candidate)
        if before != candidate:
            raise Violation(
                f"E4: node_{self._before.node_id} votes for node_{before} and for node_{candidate} in term {term}"
            )

    def after(self) -> Local:
        """Return the node after the effects are handled."""
        state, before = self._node.state, self._before
        if state.term < before.shown:
            raise Violation(f"A7: node_{before.node_id} was in term {before.shown} and is in term {state.term}")
        if self._nodes.timers:
            round_times(state)
        else:
            forget_times(state)
        self._renumber_tickets(state)
        forget_sizes(state)
        # Votes of older terms are dropped: to vote in one the node would have to return to it, which is checked above.
        votes = tuple((term, candidate) for term, candidate in self._votes.items() if term >= state.term)
        return Local(before.node_id, self._node, self._disk, self._lives, state.term, votes)

    def _renumber_tickets(self, state: NodeState) -> None:
        """Count tickets from the durable end, so that the first pending operation has ticket 1."""
        durable = state.written - len(self._disk.pending)
        state.written -= durable
        state.synced = max(state.synced - durable, 0)
        state.unsynced = deque((ticket - durable, position) for ticket, position in state.unsynced)
        if state.pledge is not None:
            state.pledge.ticket -= durable
