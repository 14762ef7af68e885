"""The clusters that an exploration goes through, what can happen in each, and what must hold in all.

A cluster is a tuple of numbers: its nodes, the queues between them, and the account of what may still happen and what
has happened (Account). Links are FIFO queues, one for each ordered pair of nodes, as TCP connections are.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, NamedTuple, TypeAlias

from lab.search.explore_node import Locals, Numbers, Outcome, View, Violation, identity
from nodeproc.core.messages import Batch, LinkDown, LinkUp, NodeId, Position, Record, Term, TermIs, VoteRequest
from nodeproc.core.state import FOREVER

World: TypeAlias = tuple[int, ...]
"""(number of each node, number of each queue, number of the account)."""

EMPTY: Final = 0
"""Number of the queue that holds nothing."""


class Bounds(NamedTuple):
    """How much may happen on one path.

    messages: chat messages, sent one by one in one session, again to each new leader until acknowledged.
    crashes: of processes (all that was written stays) or machines (what is not synced is lost).
    elections: how often a node that knows no leader stands for the next term.
    silences: how often a node takes a leader that lives for lost, or a leader its majority: it stands though it follows
        one, or takes a VOTE_REQUEST after an election timeout in which it heard nothing.
    losses: of single frames and of whole links with all that is on them.
    timeouts: how often a timer fires.
    slow_disks: an fdatasync takes its time always; else only while something may still crash, and then it is done at
        once, for what is durable matters to crashes alone.
    boot: begin without a leader, else behind the election of the highest node.
    """

    nodes: int = 3
    messages: int = 2
    crashes: int = 1
    elections: int = 1
    silences: int = 0
    losses: int = 0
    timeouts: int = 0
    slow_disks: bool = False
    boot: bool = False


class Account(NamedTuple):
    """What may still happen, and what has happened that no node may remember.

    client_term, client_sent: the newest leader that the client has found, and the last n that it was sent.
    agreed: the one order: (number of the batch, term of the node that delivered it first).
    leaders: who led, by term.
    """

    crashes: int
    elections: int
    silences: int
    losses: int
    timeouts: int
    client_term: Term = 0
    client_sent: int = 0
    agreed: tuple[tuple[int, Term], ...] = ()
    leaders: tuple[tuple[Term, NodeId], ...] = ()


class Move(NamedTuple):
    """Something that can happen next; `peer` is the sender of the frame where there is one."""

    do: str
    node: NodeId
    peer: NodeId = 0


class Clusters:
    """All clusters within the bounds.

    Args:
        bounds: see there.
    """

    def __init__(self, bounds: Bounds) -> None:
        self.bounds = bounds
        self.locals = Locals(bounds.nodes, timers=bounds.timeouts > 0)
        self.ids = self.locals.members
        self.pairs = [(a, b) for a in self.ids for b in self.ids if a != b]
        self._queue_at = {pair: len(self.ids) + at for at, pair in enumerate(self.pairs)}
        self._queues, self._accounts = Numbers(), Numbers()
        assert self._queues.of((), ()) == EMPTY
        self._pushed: dict[tuple[int, int], int] = {}
        self._alike: dict[tuple[int, int], bool] = {}
        self._up = {a: self.locals.message(LinkUp(identity(a), False, True)) for a in self.ids}
        self._in = {a: self.locals.message(LinkUp(identity(a), False, False)) for a in self.ids}
        self._down = self.locals.message(LinkDown())

    # ---- where it begins ------------------------------------------------------------------------------

    def first(self) -> World:
        """Connected nodes with empty logs; behind the first election, unless bounds.boot."""
        bounds = self.bounds
        account = Account(bounds.crashes, bounds.elections, bounds.silences, bounds.losses, bounds.timeouts)
        nothing = (*(self.locals.empty(a) for a in self.ids), *(EMPTY for _ in self.pairs))
        world = (*nothing, self._accounts.of(account, account))
        for a in self.ids:
            world = self.settled(self.after(world, Move("start", a)))
        if not bounds.boot:
            extra = account._replace(elections=1)
            world = (*world[:-1], self._accounts.of(extra, extra))
            world = self.settled(self.after(world, Move("stand", self.ids[-1])))
            spent = self.account(world)._replace(elections=bounds.elections)
            world = (*world[:-1], self._accounts.of(spent, spent))
        return world

    def settled(self, world: World) -> World:
        """Every frame is taken and every fdatasync done, in a fixed order, until nothing moves."""
        while True:
            moves = [move for move in self.moves(world) if move.do in ("sync", "take")]
            if not moves:
                return world
            world = self.after(world, moves[0])

    # ---- what can happen ------------------------------------------------------------------------------

    def account(self, world: World) -> Account:
        found: Account = self._accounts.things[world[-1]]
        return found

    def moves(self, world: World) -> Iterator[Move]:
        """All that can happen next, in a fixed order."""
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
            if account.crashes:
                yield Move("kill", a)
                yield Move("lose_power", a)
        for (a, b), at in self._queue_at.items():
            if world[at] == EMPTY:
                continue
            yield Move("take", b, a)
            head = self.locals.messages.things[self._queues.things[world[at]][0]]
            if isinstance(head, VoteRequest) and account.silences and self.locals.views[world[b - 1]].hears:
                yield Move("take_late", b, a)
            if account.losses:
                yield Move("lose", b, a)
                yield Move("relink", b, a)

    def next_n(self, world: World, a: NodeId) -> int:
        """Which message the client sends to this leader now; 0: none."""
        return self._next_n(self.account(world), self.locals.views[world[a - 1]].term)

    def _next_n(self, account: Account, term: Term) -> int:
        """Which message the client sends to the leader of a term now; 0: none."""
        sent = account.client_sent if term == account.client_term else 0
        n = max(sent, len(account.agreed)) + 1
        return n if n <= self.bounds.messages else 0

    # ---- what a move makes of it ----------------------------------------------------------------------

    def after(self, world: World, move: Move) -> World:
        """The cluster behind a move.

        Raises:
            Violation: there something does not hold.
        """
        return self.follow(world, move)[0]

    def follow(self, world: World, move: Move) -> tuple[World, list[tuple[NodeId, Outcome]]]:
        """The cluster behind a move, and what each node did that had a part in it.

        Raises:
            Violation: there something does not hold.
        """
        new = _Next(self, world)
        do, a, peer = move
        if do == "take_late":
            new.spend("silences")
        if do in ("take", "take_late"):
            new.step(do, a, peer, new.pop(peer, a))
        elif do in ("kill", "lose_power"):
            new.crash(do, a)
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
        new.take_what_changes_nothing()
        found = new.world()
        self.check(found)
        return found, new.outcomes

    # ---- what must hold -------------------------------------------------------------------------------

    def check(self, world: World) -> None:
        """What can be seen in one cluster alone.

        Raises:
            Violation: something does not hold.
        """
        views = [self.locals.views[world[a - 1]] for a in self.ids]
        for at, one in enumerate(views):
            for other in views[at + 1 :]:
                if one.log != other.log and not self._logs_agree(one.log, other.log):
                    raise Violation("R4: two logs differ below a position that both have")
        for record, term in self.account(world).agreed:
            have = sum(record in view.durable for view in views)
            if 2 * have <= len(views):
                raise Violation(f"A4: {self.batch(record)}, was acknowledged and is durable on {have} disks")
            for a, view in zip(self.ids, views, strict=True):
                if view.leads and view.term >= term and record not in self.locals.logs.things[view.log]:
                    raise Violation(
                        f"A4: node_{a} leads term {view.term} without {self.batch(record)}, which was acknowledged"
                    )

    def _logs_agree(self, one: int, other: int) -> bool:
        """Wherever both have a position, they are the same up to there. Rule: R4."""
        key = (min(one, other), max(one, other))
        found = self._alike.get(key)
        if found is None:
            places = [self._places(self.locals.logs.things[each]) for each in key]
            common = max(places[0].keys() & places[1].keys(), default=None)
            found = common is None or places[0][common] == places[1][common]
            self._alike[key] = found
        return found

    def _places(self, log: tuple[int, ...]) -> dict[Position, tuple[int, ...]]:
        """Position -> the records up to there."""
        return {self.locals.records.things[each].position: log[: at + 1] for at, each in enumerate(log)}

    def batch(self, record: int) -> str:
        """For people."""
        found: Record = self.locals.records.things[record]
        header = found.header
        assert isinstance(header, Batch), header
        return f"message {header.sessions[0].last_n}, seq_no {header.first} of term {header.term}"

    # ---- queues ---------------------------------------------------------------------------------------

    def queue(self, world: World, a: NodeId, b: NodeId) -> tuple[int, ...]:
        """Numbers of the messages on their way from a to b, the oldest first."""
        found: tuple[int, ...] = self._queues.things[world[self._queue_at[a, b]]]
        return found

    def queue_of(self, messages: tuple[int, ...]) -> int:
        return self._queues.of(messages, messages)

    def popped(self, queue: int) -> int:
        """The queue without its oldest message."""
        return self.queue_of(self._queues.things[queue][1:])

    def pushed(self, queue: int, message: int) -> int:
        """The queue with one more message."""
        key = (queue, message)
        found = self._pushed.get(key)
        if found is None:
            found = self._pushed[key] = self.queue_of((*self._queues.things[queue], message))
        return found


class _Next:
    """A cluster in the making: the one before it, while a move changes it."""

    def __init__(self, clusters: Clusters, world: World) -> None:
        self._of, self._parts = clusters, list(world)
        self._account = clusters.account(world)
        self.outcomes: list[tuple[NodeId, Outcome]] = []

    def world(self) -> World:
        self._parts[-1] = self._of._accounts.of(self._account, self._account)
        return tuple(self._parts)

    def take_what_changes_nothing(self) -> None:
        """Frames that are next on their link and leave their receiver as it is, without an answer, are gone."""
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
        """Take the oldest frame off a link."""
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

    def crash(self, do: str, a: NodeId) -> None:
        """A process or machine ends; the others notice, and what was on its way is lost."""
        self.spend("crashes")
        self.step(do, a)
        others = [b for b in self._of.ids if b != a]
        for b in others:
            self._parts[self._of._queue_at[a, b]] = self._parts[self._of._queue_at[b, a]] = EMPTY
        for b in others:
            if self._view(b).up:
                self.step("take", b, a, self._of._down)
            # The last crash: see slow_disks.
            if self._view(b).syncing and not self._account.crashes and not self._of.bounds.slow_disks:
                self.step("sync", b)

    def start(self, a: NodeId) -> None:
        """A new process on the old disk, and links both ways to all that run."""
        self.step("start", a)
        for b in self._of.ids:
            if b != a and self._view(b).up:
                self.link(a, b)
                self.link(b, a)

    def link(self, a: NodeId, b: NodeId) -> None:
        """A new connection from a to b; what was on its way over the old one is lost."""
        self._parts[self._of._queue_at[a, b]] = EMPTY
        self.step("take", a, b, self._of._up[b])
        self.step("take", b, a, self._of._in[a])

    def step(self, do: str, a: NodeId, peer: NodeId = 0, message: int = 0) -> None:
        """Let one node take an input, and carry out what comes of it.

        Raises:
            Violation: something does not hold.
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
        if view.leads and not (before.leads and before.term == view.term):
            self._lead(a, view.term)
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
        """Nothing will ever come of taking it: it tells a term that the receiver has reached."""
        told = self._of.locals.messages.things[message]
        return isinstance(told, TermIs) and told.term <= term

    def _forget_terms(self, a: NodeId, term: Term) -> None:
        for b in self._of.ids:
            at = self._of._queue_at.get((b, a))
            if at is not None and self._parts[at] != EMPTY:
                left = tuple(each for each in self._of._queues.things[self._parts[at]] if not self._idle(each, term))
                self._parts[at] = self._of.queue_of(left)

    def _lead(self, a: NodeId, term: Term) -> None:
        for before, leader in self._account.leaders:
            if before == term and leader != a:
                raise Violation(f"A7: node_{leader} and node_{a} lead term {term}")
        leaders = tuple(sorted({*self._account.leaders, (term, a)}))
        self._account = self._account._replace(leaders=leaders)

    def _deliver(self, a: NodeId, at: int, record: int, term: Term) -> None:
        """What is delivered first is agreed from then on."""
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
