"""The states of a cluster in an exploration, the moves that are possible in each, and the invariants.

A state is a tuple of numbers: those of its nodes, of the queues between them, and of its Account (the moves that are
left, and facts about the past). Links are FIFO queues like TCP connections, one for each ordered pair of nodes.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Final, NamedTuple, TypeAlias

from lab.search.explore_node import CHANGES, Locals, Numbers, Outcome, View, Violation, identity
from nodeproc.core.messages import (
    Batch,
    Known,
    LinkDown,
    LinkUp,
    Mark,
    MemberList,
    MembersMark,
    NodeId,
    Position,
    Record,
    Term,
    TermIs,
    VoteRequest,
)
from nodeproc.core.state import FOREVER

World: TypeAlias = tuple[int, ...]
"""A state: (number of each node, number of each queue, number of the account)."""

EMPTY: Final = 0
"""Number of the empty queue."""


class Bounds(NamedTuple):
    """Limits of the events on one path.

    messages: chat messages of one session, sent one by one, and again to each new leader until acknowledged.
    crashes: of processes (written data stays) or machines (unsynced data is lost).
    elections: how often a node that knows no leader becomes candidate for the next term.
    silences: how often a node wrongly suspects a live leader, or a leader wrongly misses its majority: the node becomes
        candidate although it follows a leader, or handles a VOTE_REQUEST after an election timeout of silence.
    losses: of single frames, or of links with all frames on them.
    timeouts: how often a timer fires.
    changes: how often a leader begins a change of the members: it adds a node, gives it a vote, or removes one.
    newcomers: nodes that are no members at the start; their ids follow those of the founders.
    exchanges: a move delivers all frames between two nodes, and the answers to them, until none is left, instead of a
        single frame.
    slow_disks: the end of an fdatasync is a move of its own always. Otherwise it is only as long as crashes are left,
        and immediate after that, because durability matters to crashes alone.
    boot: start without a leader, instead of after the election of the highest node.
    """

    nodes: int = 3
    messages: int = 2
    crashes: int = 1
    elections: int = 1
    silences: int = 0
    losses: int = 0
    timeouts: int = 0
    changes: int = 0
    newcomers: int = 0
    exchanges: bool = False
    slow_disks: bool = False
    boot: bool = False


BUDGETS: Final = ("crashes", "elections", "silences", "losses", "timeouts", "changes")
"""The bounds that moves use up: the first fields of an Account."""


class Account(NamedTuple):
    """The moves that are left, and facts that must hold for the rest of the path.

    client_term, client_sent: the term of the newest leader that the client has found, and the last n sent to it.
    agreed: the total order so far: (number of the batch, term of the node that delivered it first).
    leaders: (term, leader) of all leaders.
    settled: number of the mark that has the newest committed list of members; -1 while none is.
    """

    crashes: int
    elections: int
    silences: int
    losses: int
    timeouts: int
    changes: int
    client_term: Term = 0
    client_sent: int = 0
    agreed: tuple[tuple[int, Term], ...] = ()
    leaders: tuple[tuple[Term, NodeId], ...] = ()
    settled: int = -1


class Move(NamedTuple):
    """One possible event. peer: the sender of the frame, or the node that is added, gets a vote or is removed."""

    do: str
    node: NodeId
    peer: NodeId = 0


class Clusters:
    """The states within the bounds, and the moves between them."""

    def __init__(self, bounds: Bounds) -> None:
        self.bounds = bounds
        self.locals = Locals(bounds.nodes, bounds.timeouts > 0, bounds.newcomers, bounds.changes > 0)
        self.ids = self.locals.ids
        self._founders = MemberList(0, self.locals.members)
        self.pairs = [(a, b) for a in self.ids for b in self.ids if a != b]
        self._queue_at = {pair: len(self.ids) + at for at, pair in enumerate(self.pairs)}
        self._queues, self._accounts = Numbers(), Numbers()
        assert self._queues.of((), ()) == EMPTY
        self._pushed: dict[tuple[int, int], int] = {}
        self._alike: dict[tuple[int, int], bool] = {}
        self._up = {a: self.locals.message(LinkUp(Known(identity(a)), False, True)) for a in self.ids}
        self._in = {a: self.locals.message(LinkUp(Known(identity(a)), False, False)) for a in self.ids}
        self._down = self.locals.message(LinkDown())

    # ---- the initial state ----------------------------------------------------------------------------

    def first(self) -> World:
        """Return the initial state: connected nodes with empty logs, after the first election unless bounds.boot."""
        bounds = self.bounds
        account = Account(*(getattr(bounds, name) for name in BUDGETS))
        nothing = (*(self.locals.empty(a) for a in self.ids), *(EMPTY for _ in self.pairs))
        world = (*nothing, self._accounts.of(account, account))
        for a in self.ids:
            world = self.settled(self.after(world, Move("start", a)))
        if not bounds.boot:
            extra = account._replace(elections=1)
            world = (*world[:-1], self._accounts.of(extra, extra))
            world = self.settled(self.after(world, Move("stand", self.locals.members[-1])))
            spent = self.account(world)._replace(elections=bounds.elections)
            world = (*world[:-1], self._accounts.of(spent, spent))
        return world

    def settled(self, world: World) -> World:
        """Deliver all frames and end all fdatasyncs, in a fixed order, until none is left."""
        while True:
            syncs = [Move("sync", a) for a in self.ids if self.locals.views[world[a - 1]].syncing]
            takes = [Move("take", b, a) for (a, b), at in self._queue_at.items() if world[at] != EMPTY]
            if not syncs and not takes:
                return world
            world = self.after(world, (syncs or takes)[0])

    # ---- moves ----------------------------------------------------------------------------------------

    def account(self, world: World) -> Account:
        found: Account = self._accounts.things[world[-1]]
        return found

    def moves(self, world: World) -> Iterator[Move]:
        """Yield all possible moves, in a fixed order."""
        account = self.account(world)
        for a in self.ids:
            view = self.locals.views[world[a - 1]]
            if not view.up:
                yield Move("start", a)
                continue
            if view.syncing:
                yield Move("sync", a)
            if view.leads and view.term >= account.client_term and self._next_n(account, view.term):
                yield Move("submit", a)
            if account.elections and view.may_stand and (account.silences or not view.follows):
                yield Move("stand", a)
            if account.timeouts and view.due < FOREVER:
                yield Move("fire", a)
            if account.changes:
                for do, node in view.changes:
                    yield Move(do, a, node)
            if account.crashes:
                yield Move("kill", a)
                yield Move("lose_power", a)
        for (a, b), at in self._queue_at.items():
            if world[at] == EMPTY:
                continue
            yield Move("exchange" if self.bounds.exchanges else "take", b, a)
            head = self.locals.messages.things[self._queues.things[world[at]][0]]
            if isinstance(head, VoteRequest) and account.silences and self.locals.views[world[b - 1]].hears:
                yield Move("take_late", b, a)
            if account.losses:
                yield Move("lose", b, a)
                yield Move("relink", b, a)

    def next_n(self, world: World, a: NodeId) -> int:
        """Return the n of the message that the client sends to this leader next; 0 if there is none."""
        return self._next_n(self.account(world), self.locals.views[world[a - 1]].term)

    def _next_n(self, account: Account, term: Term) -> int:
        """Return the n of the message that the client sends to the leader of a term next; 0 if there is none."""
        sent = account.client_sent if term == account.client_term else 0
        n = max(sent, len(account.agreed)) + 1
        return n if n <= self.bounds.messages else 0

    # ---- the effect of a move -------------------------------------------------------------------------

    def after(self, world: World, move: Move) -> World:
        """Return the state after a move.

        Raises:
            Violation: an invariant does not hold in it.
        """
        return self.follow(world, move)[0]

    def follow(self, world: World, move: Move) -> tuple[World, list[tuple[NodeId, Outcome]]]:
        """Return the state after a move, and the outcome of each node that took part in it.

        Raises:
            Violation: an invariant does not hold in it.
        """
        new = _Next(self, world)
        do, a, peer = move
        if do == "take_late":
            new.spend("silences")
        if do in ("take", "take_late"):
            new.step(do, a, peer, new.pop(peer, a))
        elif do == "exchange":
            new.exchange(peer, a)
        elif do in CHANGES:
            new.spend("changes")
            new.step(do, a, peer)
        elif do in ("kill", "lose_power"):
            new.spend("crashes")
            new.step(do, a)
        elif do == "start":
            new.start(a)
        elif do == "submit":
            new.submit(a)
        elif do == "lose":
            new.spend("losses")
            new.pop(peer, a)
        elif do == "relink":
            new.spend("losses")
            new.link(peer, a)
        else:
            if do == "stand":
                new.spend("elections")
                if self.locals.views[world[a - 1]].follows:
                    new.spend("silences")
            elif do == "fire":
                new.spend("timeouts")
            new.step(do, a)
        new.drop_ineffective_frames()
        found = new.world()
        self.check(found)
        return found, new.outcomes

    # ---- invariants -----------------------------------------------------------------------------------

    def check(self, world: World) -> None:
        """Check the invariants of a single state.

        Raises:
            Violation: one of them does not hold.
        """
        views = [self.locals.views[world[a - 1]] for a in self.ids]
        for at, one in enumerate(views):
            for other in views[at + 1 :]:
                if one.log != other.log and not self._logs_agree(one.log, other.log):
                    raise Violation("R4: two logs differ below a position that both have")
        account = self.account(world)
        members = self.list_of(account.settled)
        for record, term in account.agreed:
            have = sum(record in views[voter - 1].durable for voter in members.voters)
            if have < majority(members):
                raise Violation(f"A4: {self.batch(record)}, was acknowledged but is durable on {have} disks only")
            self._check_leaders(views, record, term, "acknowledged")
        if account.settled >= 0:
            self._check_leaders(views, account.settled, self.term_of(account.settled), "committed")

    def _check_leaders(self, views: list[View], record: int, term: Term, done: str) -> None:
        """Check that every leader of this term and later ones has a record."""
        for a, view in zip(self.ids, views, strict=True):
            if view.leads and view.term >= term and record not in self.locals.logs.things[view.log]:
                raise Violation(f"A4: node_{a} leads term {view.term} without {self.batch(record)}, which was {done}")

    def marks(self, log: int) -> list[int]:
        """Return the numbers of the marks in a log, in order."""
        return [each for each in self.locals.logs.things[log] if isinstance(self._header(each), Mark)]

    def list_of(self, mark: int) -> MemberList:
        """Return the list of members in force after a mark; that of the founders for -1. Rule: G1."""
        header = None if mark < 0 else self._header(mark)
        return header.members if isinstance(header, MembersMark) else self._founders

    def term_of(self, mark: int) -> Term:
        """Return the term of a mark; 0 for -1."""
        return 0 if mark < 0 else self._header(mark).term

    def _header(self, record: int) -> Batch | Mark:
        found: Record = self.locals.records.things[record]
        return found.header

    def _logs_agree(self, one: int, other: int) -> bool:
        """Return whether the logs are the same up to the last position that both have. Rule: R4."""
        key = (min(one, other), max(one, other))
        found = self._alike.get(key)
        if found is None:
            places = [self._places(self.locals.logs.things[each]) for each in key]
            common = max(places[0].keys() & places[1].keys(), default=None)
            found = common is None or places[0][common] == places[1][common]
            self._alike[key] = found
        return found

    def _places(self, log: tuple[int, ...]) -> dict[Position, tuple[int, ...]]:
        """Return position -> the records up to it."""
        return {self.locals.records.things[each].position: log[: at + 1] for at, each in enumerate(log)}

    def batch(self, record: int) -> str:
        """Return a human-readable name of a batch or a mark."""
        header = self._header(record)
        if isinstance(header, Mark):
            return f"the mark of term {header.term} with {list_text(self.list_of(record))}"
        return f"message {header.sessions[0].last_n}, seq_no {header.first} of term {header.term}"

    # ---- queues ---------------------------------------------------------------------------------------

    def queue(self, world: World, a: NodeId, b: NodeId) -> tuple[int, ...]:
        """Return the numbers of the messages under way from a to b, the oldest first."""
        found: tuple[int, ...] = self._queues.things[world[self._queue_at[a, b]]]
        return found

    def queue_of(self, messages: tuple[int, ...]) -> int:
        return self._queues.of(messages, messages)

    def popped(self, queue: int) -> int:
        """Return the queue without its oldest message."""
        return self.queue_of(self._queues.things[queue][1:])

    def pushed(self, queue: int, message: int) -> int:
        """Return the queue with one more message."""
        key = (queue, message)
        found = self._pushed.get(key)
        if found is None:
            found = self._pushed[key] = self.queue_of((*self._queues.things[queue], message))
        return found


def list_text(members: MemberList) -> str:
    """Return a list of members on one line."""
    text = f"list {members.version}: {', '.join(f'node_{voter}' for voter in members.voters)}"
    return f"{text}, learner node_{members.learners[0]}" if members.learners else text


def majority(members: MemberList) -> int:
    """Return the least number of voters that are a majority."""
    return len(members.voters) // 2 + 1


class _Next:
    """The state after a move, while the move is being carried out."""

    def __init__(self, clusters: Clusters, world: World) -> None:
        self._of, self._parts = clusters, list(world)
        self._account = clusters.account(world)
        self.outcomes: list[tuple[NodeId, Outcome]] = []

    def world(self) -> World:
        self._parts[-1] = self._of._accounts.of(self._account, self._account)
        return tuple(self._parts)

    def drop_ineffective_frames(self) -> None:
        """Remove frames at the head of a link that neither change their receiver nor cause an answer."""
        clusters, parts = self._of, self._parts
        for (a, b), at in clusters._queue_at.items():
            while parts[at] != EMPTY:
                head = clusters._queues.things[parts[at]][0]
                outcome = clusters.locals.step("take", parts[b - 1], a, head)
                if (
                    isinstance(clusters.locals.messages.things[head], VoteRequest)
                    or outcome.problem
                    or outcome.local != parts[b - 1]
                    or outcome.sends
                    or outcome.delivered
                ):
                    break
                parts[at] = clusters.popped(parts[at])

    def _view(self, a: NodeId) -> View:
        return self._of.locals.views[self._parts[a - 1]]

    def spend(self, what: str) -> None:
        self._account = self._account._replace(**{what: getattr(self._account, what) - 1})

    def pop(self, a: NodeId, b: NodeId) -> int:
        """Remove the oldest frame from a link; return its number."""
        at = self._of._queue_at[a, b]
        message: int = self._of._queues.things[self._parts[at]][0]
        self._parts[at] = self._of.popped(self._parts[at])
        return message

    def submit(self, a: NodeId) -> None:
        """The client sends its next message to a leader."""
        term = self._view(a).term
        n = self._of._next_n(self._account, term)
        self._account = self._account._replace(client_term=term, client_sent=n)
        self.step("submit", a, message=n)

    def exchange(self, a: NodeId, b: NodeId) -> None:
        """Deliver the frames from a to b, then those from b to a, and so on until there are none between the two.

        Raises:
            Violation: an invariant does not hold in one of the states on the way.
        """
        there, back = self._of._queue_at[a, b], self._of._queue_at[b, a]
        while self._parts[there] != EMPTY or self._parts[back] != EMPTY:
            for _ in self._of._queues.things[self._parts[there]]:
                if self._parts[there] == EMPTY:
                    break  # Frames that can have no effect any more were dropped, or the node has stopped.
                self.step("take", b, a, self.pop(a, b))
                self._of.check(self.world())
            a, b, there, back = b, a, back, there

    def disconnect(self, a: NodeId) -> None:
        """A process or machine has ended: the peers see their links fail, and frames under way are lost."""
        others = [b for b in self._of.ids if b != a]
        for b in others:
            self._parts[self._of._queue_at[a, b]] = self._parts[self._of._queue_at[b, a]] = EMPTY
        for b in others:
            if self._view(b).up:
                self.step("take", b, a, self._of._down)
            # After the last crash an fdatasync ends at once: see Bounds.slow_disks.
            if self._view(b).syncing and not self._account.crashes and not self._of.bounds.slow_disks:
                self.step("sync", b)

    def start(self, a: NodeId) -> None:
        """Start a process on the existing disk, with links in both directions to all running nodes."""
        self.step("start", a)
        for b in self._of.ids:
            if b != a and self._view(b).up:
                self.link(a, b)
                self.link(b, a)

    def link(self, a: NodeId, b: NodeId) -> None:
        """Open a new connection from a to b; frames under way on the old one are lost."""
        self._parts[self._of._queue_at[a, b]] = EMPTY
        self.step("take", a, b, self._of._up[b])
        self.step("take", b, a, self._of._in[a])

    def step(self, do: str, a: NodeId, peer: NodeId = 0, message: int = 0) -> None:
        """Give one node an input and apply the outcome to the state.

        Raises:
            Violation: an invariant does not hold.
        """
        outcome = self._of.locals.step(do, self._parts[a - 1], peer, message)
        self.outcomes.append((a, outcome))
        if outcome.problem:
            raise Violation(outcome.problem)
        before = self._view(a)
        self._parts[a - 1] = outcome.local
        view = self._view(a)
        for receiver, sent in outcome.sends:
            self._send(a, receiver, sent)
        if before.up and not view.up:
            self.disconnect(a)
        if view.leads and not (before.leads and before.term == view.term):
            self._lead(a, view)
        if view.settled and not (before.settled and before.term == view.term) and self._of.bounds.changes:
            self._settle(a, view)
        if view.term > before.term:
            self._forget_terms(a, view.term)
        for at, record in enumerate(outcome.delivered, view.delivered - len(outcome.delivered)):
            self._deliver(a, at, record, view.term)
        if view.syncing and not self._account.crashes and not self._of.bounds.slow_disks:
            self.step("sync", a)

    def _send(self, a: NodeId, b: NodeId, message: int) -> None:
        if not self._view(b).up or self._idle(message, self._view(b).term):
            return
        at = self._of._queue_at[a, b]
        self._parts[at] = self._of.pushed(self._parts[at], message)

    def _idle(self, message: int, term: Term) -> bool:
        """Return whether the message can never have an effect: a TERM that the receiver has reached already."""
        found = self._of.locals.messages.things[message]
        return isinstance(found, TermIs) and found.term <= term

    def _forget_terms(self, a: NodeId, term: Term) -> None:
        for b in self._of.ids:
            at = self._of._queue_at.get((b, a))
            if at is not None and self._parts[at] != EMPTY:
                left = tuple(each for each in self._of._queues.things[self._parts[at]] if not self._idle(each, term))
                self._parts[at] = self._of.queue_of(left)

    def _lead(self, a: NodeId, view: View) -> None:
        term = view.term
        for before, leader in self._account.leaders:
            if before == term and leader != a:
                raise Violation(f"A7: node_{leader} and node_{a} lead term {term}")
        leaders = tuple(sorted({*self._account.leaders, (term, a)}))
        self._account = self._account._replace(leaders=leaders)
        if self._of.bounds.changes:
            self._check_lists(a, view)

    def _check_lists(self, a: NodeId, view: View) -> None:
        """Compare the lists of members that follow each other in a new leader's log. Rule: G2."""
        lists = [self._of.list_of(mark) for mark in (-1, *self._of.marks(view.log))]
        for old, new in pairwise(lists):
            if new.version not in (old.version, old.version + 1):
                raise Violation(f"G2: node_{a}'s log has {list_text(new)} after {list_text(old)}")
            if majority(old) + majority(new) <= len({*old.voters, *new.voters}):
                raise Violation(f"G2: majorities of {list_text(old)} and of {list_text(new)} need not share a node")

    def _settle(self, a: NodeId, view: View) -> None:
        """A leader counts its mark, and with it its list, as committed. Rule: G2, G4.

        A majority of the list has the mark. Versions of committed lists ascend, and each version has one list.
        """
        clusters, settled = self._of, self._account.settled
        mark = clusters.marks(view.log)[-1]
        new, old = clusters.list_of(mark), clusters.list_of(settled)
        have = sum(mark in self._view(voter).durable for voter in new.voters)
        if have < majority(new):
            raise Violation(f"G4: node_{a} commits {clusters.batch(mark)}; it is durable on {have} of its voters only")
        falls = view.term > clusters.term_of(settled) and new.version < old.version
        if falls or (new.version == old.version and new != old):
            raise Violation(f"G2: node_{a} has committed {list_text(new)}, but {list_text(old)} was committed before")
        if new.version > old.version:
            self._account = self._account._replace(settled=mark)

    def _deliver(self, a: NodeId, at: int, record: int, term: Term) -> None:
        """Compare a delivery with the total order, which the first delivery of each place determines."""
        agreed = self._account.agreed
        if at < len(agreed):
            if agreed[at][0] != record:
                there = self._of.batch(agreed[at][0])
                raise Violation(f"A1: node_{a} delivers {self._of.batch(record)}, where {there} was delivered before")
            return
        header = self._of.locals.records.things[record].header
        if header.sessions[0].last_n != at + 1:
            raise Violation(f"A3, A5: node_{a} delivers {self._of.batch(record)}, as number {at + 1}")
        self._account = self._account._replace(agreed=(*agreed, (record, term)))
