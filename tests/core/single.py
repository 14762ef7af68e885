"""One real core whose peers are played by the test, for tests of its reaction to single frames."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import Any, TypeVar

from nodeproc.core.effects import Effects, Promise
from nodeproc.core.messages import (
    START,
    Append,
    Appended,
    Batch,
    CatchUp,
    Envelope,
    Heartbeat,
    Input,
    Known,
    LinkDown,
    LinkUp,
    Mark,
    NodeId,
    Position,
    Record,
    Resume,
    SeqNo,
    SessionUse,
    Submit,
    Support,
    Term,
    Vote,
)
from nodeproc.core.node import Node
from nodeproc.core.recovered import CoreConfig
from nodeproc.core.state import Follower, Leader
from nodeproc.records import Sealer
from tests.core.cluster import Disk

T = TypeVar("T")
SEALER = Sealer(lambda: 1_700_000_000.0)


def stretch(term: Term, after: SeqNo, *sizes: int, leader: NodeId = 1, session: str = "h") -> list[Record]:
    """A term's mark behind seq_no `after` and its batches of so many messages; message n of `session` has seq_no n."""
    records = [SEALER.mark(Mark(term, leader, after))]
    for size in sizes:
        first, after = after + 1, after + size
        payloads = tuple(f"m{n}" for n in range(first, after + 1))
        header = Batch(term, first, after, (SessionUse(session, after, after),))
        records.append(SEALER.batch(header, [Submit(session, 101, 0, first, payloads)]))
    return records


def appends(term: Term, previous: Position, records: Sequence[Record], commit_seq: SeqNo = 0) -> list[Append]:
    """One APPEND for each record, as a leader sends them."""
    out = []
    for record in records:
        out.append(Append(term, previous, commit_seq, (record,)))
        previous = record.position
    return out


class Single:
    """Node `node_id` of `members`, recovered from `log`; its links are open unless told otherwise.

    Args:
        delivered: so many messages of the log were delivered before the restart.
        sync: every write from now on is durable at once; else `sync()` makes it so.
        settings: fields of CoreConfig.
    """

    def __init__(
        self,
        node_id: NodeId = 2,
        members: tuple[NodeId, ...] = (1, 2, 3),
        *,
        log: Sequence[Record] = (),
        term: Term = 0,
        voted_for: NodeId = 0,
        delivered: SeqNo = 0,
        rebuilding: bool = False,
        sync: bool = True,
        links: bool = True,
        seed: int = 1,
        **settings: Any,
    ) -> None:
        disk = Disk(f"disk-{node_id}", rebuilding=rebuilding)
        disk.ops = [*log, Promise(max(term, log[-1].position.term if log else 0), voted_for)]
        disk.delivered = [record for record in log if record.position.seq_no <= delivered and record.body]
        config = CoreConfig(node_id, settings.pop("priority", node_id), members, **settings)
        self.now = 100.0
        self.auto_sync = sync
        recovered = disk.recovered(config.max_sessions)
        self.node = Node.recover(config, recovered, self.now, Random(seed), SEALER)
        self.state = self.node.state
        self.all = self.node.start(self.now)
        """The effects of everything so far."""
        if links:
            for peer in self.state.peers:
                self.link(peer)
        self.sync()

    # ---- inputs -------------------------------------------------------------------------------------

    def _done(self, fx: Effects) -> Effects:
        told = 0
        while self.auto_sync and told < self.node.written:
            told = self.node.written
            fx.merge(self.node.persisted(told, self.now))
        self.all.merge(fx)
        return fx

    def give(self, sender: NodeId, message: Input) -> Effects:
        """Hand over one input; returns all that it leads to in this turn."""
        fx = self.node.step(Envelope(sender, message), self.now)
        if self.node.next_deadline() <= self.now:
            fx.merge(self.node.tick(self.now))
        return self._done(fx)

    def link(self, peer: NodeId, identity: str = "", *, rebuilding: bool = False) -> Effects:
        """Open both directions."""
        name = identity or f"disk-{peer}"
        fx = self.give(peer, LinkUp(Known(name), rebuilding, True))
        fx.merge(self.give(peer, LinkUp(Known(name), rebuilding, False)))
        return fx

    def unlink(self, peer: NodeId) -> Effects:
        return self.give(peer, LinkDown())

    def submit(self, session: str, first: int, *payloads: str, sender: NodeId = 0, born: SeqNo = 0) -> Effects:
        return self.give(sender or self.state.node_id, Submit(session, 101, born, first, payloads))

    def sync(self) -> Effects:
        """All that was written so far is durable now."""
        fx = self.node.persisted(self.node.written, self.now)
        self.all.merge(fx)
        return fx

    def wait(self, seconds: float) -> Effects:
        """Advance the time, with a tick whenever one is due, and without any frames."""
        end, fx = self.now + seconds, Effects()
        while (due := self.node.next_deadline()) <= end:
            self.now = max(self.now, due)
            fx.merge(self._done(self.node.tick(self.now)))
        self.now = end
        return fx

    # ---- ways into a role ---------------------------------------------------------------------------

    def lead(self) -> Effects:
        """Win an election with everybody's support and vote; returns the effects of winning."""
        poll = self.poll()
        for peer in self.state.peers:
            self.give(peer, Support(poll))
        fx = self.sync()
        for peer in self.state.peers:
            fx.merge(self.give(peer, Vote(self.state.term)))
        assert self.node.role_name == "leader"
        return fx

    def poll(self) -> int:
        """Wait until the node polls; returns the poll's number."""
        for _ in range(100):
            if self.state.poll is not None:
                return self.state.poll.number
            self.wait(max(0.0, self.node.next_deadline() - self.now))
        raise AssertionError("it does not poll")

    def caught_up(self, peer: NodeId) -> Effects:
        """The peer, with a log equal to ours, asks to catch up and holds everything durably."""
        marks = tuple((mark.term, mark.after) for mark in self.state.log.marks)
        position = self.state.log.position
        fx = self.give(peer, CatchUp(self.state.term, marks, position.seq_no, 1))
        fx.merge(self.give(peer, Appended(self.state.term, position)))
        return fx

    def follow(self, leader: NodeId, term: Term, fork: Position | None = None) -> Effects:
        """Hear a leader of this term and get its RESUME; the fork is our own position unless given."""
        fx = self.give(leader, Heartbeat(term, 0, START))
        request = self.request()
        fx.merge(self.give(leader, Resume(term, self.state.log.position if fork is None else fork, request)))
        return fx

    def request(self) -> int:
        """Number of the CATCH_UP that waits for its answer."""
        assert self.following.request, self.following
        return self.following.request

    @property
    def following(self) -> Follower:
        """The data of its role as follower."""
        assert isinstance(self.state.role, Follower), self.node.role_name
        return self.state.role

    @property
    def leading(self) -> Leader:
        """The data of its role as leader."""
        assert isinstance(self.state.role, Leader), self.node.role_name
        return self.state.role


def sent(fx: Effects, kind: type[T], to: NodeId = 0) -> list[T]:
    """The frames of a kind in the effects, to one peer or to all."""
    return [message for peer, message in fx.send if isinstance(message, kind) and to in (0, peer)]


def peers_sent(fx: Effects, kind: type[Any]) -> list[NodeId]:
    """To whom frames of a kind went."""
    return [peer for peer, message in fx.send if isinstance(message, kind)]


def written(fx: Effects, kind: type[T]) -> list[T]:
    """The persist operations of a kind."""
    return [op for op in fx.persist if isinstance(op, kind)]


def events(fx: Effects, kind: type[T]) -> list[T]:
    return [event for event in fx.emit if isinstance(event, kind)]
