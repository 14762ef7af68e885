"""Several real cores in one process: messages are delivered by hand, disks sync when told, time is a number.

The disk is a list of persist operations of which a prefix is durable; a crash keeps that prefix and as much of the rest
as the test says. Links are FIFO queues; a frame crosses as its real bytes where `through_wire` is set.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from random import Random

from nodeproc.core.effects import Effects, Met, PersistOp, Promise, Readmitted, Truncate
from nodeproc.core.events import Event
from nodeproc.core.messages import (
    NOTHING,
    START,
    Batch,
    Change,
    Envelope,
    Input,
    Known,
    Line,
    LinkDown,
    LinkUp,
    Mark,
    MemberList,
    NodeId,
    PeerMessage,
    Position,
    Record,
    Refuse,
    SeqNo,
    Submit,
)
from nodeproc.core.node import Node
from nodeproc.core.recovered import CoreConfig, Recovered
from nodeproc.core.sessions import Sessions
from nodeproc.frames import FrameDecoder, encode_frame
from nodeproc.lines import decode_node_line
from nodeproc.records import Sealer


@dataclass
class Disk:
    """Persist operations in order; the first `durable` of them survive a crash."""

    identity: str
    ops: list[PersistOp] = field(default_factory=list)
    durable: int = 0
    delivered: list[Record] = field(default_factory=list)
    rebuilding: bool = False

    def log(self) -> list[Record]:
        """The records that the operations amount to."""
        records: list[Record] = []
        for op in self.ops:
            if isinstance(op, Record):
                records.append(op)
            elif isinstance(op, Truncate):
                records = [record for record in records if record.position <= op.keep]
        return records

    def holds(self, record: Record) -> bool:
        """Whether the record is durable here, and not dropped again."""
        for op in reversed(self.ops[: self.durable]):
            if isinstance(op, Record) and op.raw == record.raw:
                return True
            if isinstance(op, Truncate) and op.keep < record.position:
                return False
        return False

    def crash(self, keep_unsynced: int) -> None:
        self.ops = self.ops[: self.durable + keep_unsynced]
        self.durable = len(self.ops)

    def recovered(self, max_sessions: int) -> Recovered:
        out = Recovered(self.identity, self.rebuilding)
        for op in self.ops:
            if isinstance(op, Promise):
                out.term, out.voted_for = op.term, op.voted_for
            elif isinstance(op, Met):
                out.identities[op.peer] = op.known
            elif isinstance(op, Readmitted):
                out.rebuilding = False
        records = self.log()
        out.marks = [record.header for record in records if isinstance(record.header, Mark)]
        out.position = records[-1].position if records else START
        sessions = Sessions(max_sessions)
        for record in self.delivered:
            if isinstance(record.header, Batch):
                out.delivered_seq = record.header.last
                sessions.delivered(record.header)
        out.sessions, out.horizon = sessions.table, sessions.horizon
        base = next((r.position for r in reversed(self.delivered) if isinstance(r.header, Batch)), START)
        out.tail = [record for record in records if record.position > base]
        return out


@dataclass
class Member:
    """One node of the test cluster: its core while it runs, and its disk."""

    disk: Disk
    node: Node | None = None
    events: list[Event] = field(default_factory=list)
    refused: list[Refuse] = field(default_factory=list)
    halted: str = ""
    left: str = ""
    """Why the node has stopped cleanly by itself."""


class Cluster:
    """Cores 1..size with queues between them.

    Args:
        size: 1 to 9.
        seed: of everything random.
        priorities: node id -> priority, the id unless given.
        limits: other settings of CoreConfig, by field name, for all nodes.
        through_wire: encode and decode every frame.
    """

    def __init__(
        self,
        size: int,
        seed: int = 1,
        *,
        priorities: dict[NodeId, int] | None = None,
        max_sessions: int = 1000,
        limits: dict[str, int] | None = None,
        through_wire: bool = False,
        start: bool = True,
    ) -> None:
        self.now = 100.0
        self.rng = Random(seed)
        self.ids = self.founders = tuple(range(1, size + 1))
        self.priorities = priorities or {}
        self.max_sessions = max_sessions
        self.limits = limits or {}
        self.through_wire = through_wire
        self.members = {i: Member(Disk(f"disk-{i}")) for i in self.ids}
        self.queues: dict[tuple[NodeId, NodeId], deque[PeerMessage]] = {
            (a, b): deque() for a in self.ids for b in self.ids if a != b
        }
        self.up: set[tuple[NodeId, NodeId]] = set()
        """Directed links that are open."""
        self.cut: set[tuple[NodeId, NodeId]] = set()
        """Directed links whose frames vanish."""
        self.hung: set[NodeId] = set()
        """Nodes whose fdatasync does not return."""
        self.paused: set[NodeId] = set()
        """Paused processes: they handle nothing, and frames sent to them wait."""
        self.sealer = Sealer(lambda: 1_700_000_000.0 + self.now)
        self.on_perform: Callable[[NodeId, Effects], None] = lambda node_id, fx: None
        if start:
            for i in self.ids:
                self.start(i)

    # ---- processes ----------------------------------------------------------------------------------

    def newcomer(self, node_id: NodeId, *, start: bool = True) -> None:
        """Add a machine for a node that is not among the founders; start the node."""
        self.members[node_id] = Member(Disk(f"disk-{node_id}"))
        self.queues |= {pair: deque() for each in self.ids for pair in ((each, node_id), (node_id, each))}
        self.ids = (*self.ids, node_id)
        if start:
            self.start(node_id)

    def change(self, change: Change, seconds: float = 1.0) -> None:
        """Ask the leader for a change of the members, which it must accept, and let the cluster run."""
        leader = self.leader()
        assert self.node(leader).change_refusal(change) == ""
        self.step(leader, leader, change)
        self.run(seconds)

    def list_of(self, node_id: NodeId) -> MemberList:
        """The node's list in force, which is not that of the founders."""
        found = self.node(node_id).members
        assert found is not None, node_id
        return found

    def config(self, node_id: NodeId) -> CoreConfig:
        priority = self.priorities.get(node_id, node_id)
        config = CoreConfig(node_id, priority, self.founders, max_sessions=self.max_sessions)
        return replace(config, **self.limits)  # type: ignore[arg-type]

    def start(self, node_id: NodeId, *, link: bool = True) -> None:
        member = self.members[node_id]
        assert member.node is None
        recovered = member.disk.recovered(self.max_sessions)
        rng = Random(self.rng.getrandbits(32))
        member.node = Node.recover(self.config(node_id), recovered, self.now, rng, self.sealer)
        self.perform(node_id, member.node.start(self.now))
        for other in self.ids:
            if link and other != node_id and self.members[other].node is not None:
                self.link(node_id, other)
                self.link(other, node_id)

    def kill(self, node_id: NodeId, keep_unsynced: int = 0, *, noticed: bool = True) -> None:
        """Kill a node and lose its unsynced operations except for the first keep_unsynced."""
        member = self.members[node_id]
        member.node = None
        member.disk.crash(keep_unsynced)
        for (a, b), queue in self.queues.items():
            if node_id in (a, b):
                queue.clear()
        self.up = {pair for pair in self.up if node_id not in pair}
        if noticed:
            for other in self.running():
                self.step(other, node_id, LinkDown())

    def wipe(self, node_id: NodeId, *, rebuild: bool) -> None:
        """Give a killed node a new, empty data directory."""
        self.members[node_id].disk = Disk(f"disk-{node_id}-{self.rng.getrandbits(16)}", rebuilding=rebuild)

    def link(self, a: NodeId, b: NodeId) -> None:
        """Open the directed link a -> b; frames under way on the old one are lost."""
        self.queues[a, b].clear()
        self.up.add((a, b))
        self._open(a, b, True)
        self._open(b, a, False)

    def _open(self, near: NodeId, far: NodeId, outgoing: bool) -> None:
        """Return the LinkUp that a node's transport reports for a peer whose link was opened."""
        node = self.members[far].node
        shown = node.state.shown if node else Known(self.members[far].disk.identity)
        promised = node.state.promises().get(near, NOTHING) if node else NOTHING
        self.step(near, far, LinkUp(shown, self._rebuilding(far), outgoing, promised))

    def put_back(self, node_id: NodeId, copy: Disk) -> None:
        """Give a killed node an older copy of its data directory: the disk's `ops` and `delivered` of that time."""
        self.members[node_id].disk = replace(copy, ops=list(copy.ops), delivered=list(copy.delivered))

    def unlink(self, a: NodeId, b: NodeId) -> None:
        """Close the directed link a -> b until it is opened again; frames under way on it are lost."""
        self.queues[a, b].clear()
        self.up.discard((a, b))
        self.step(a, b, LinkDown())

    def _rebuilding(self, node_id: NodeId) -> bool:
        node = self.members[node_id].node
        return node.state.rebuilding if node else self.members[node_id].disk.rebuilding

    def running(self) -> list[NodeId]:
        return [i for i in self.ids if self.members[i].node is not None]

    def awake(self) -> list[NodeId]:
        return [i for i in self.running() if i not in self.paused]

    def node(self, node_id: NodeId) -> Node:
        node = self.members[node_id].node
        assert node is not None, node_id
        return node

    # ---- inputs -------------------------------------------------------------------------------------

    def step(self, node_id: NodeId, sender: NodeId, message: Input) -> None:
        node = self.members[node_id].node
        if node is not None:
            self.perform(node_id, node.step(Envelope(sender, message), self.now))

    def submit(self, node_id: NodeId, session: str, first: int, *payloads: str, born: SeqNo = 0) -> None:
        self.step(node_id, node_id, Submit(session, 101, born, first, payloads))

    def tick(self, node_id: NodeId) -> None:
        node = self.members[node_id].node
        if node is not None and node_id not in self.paused:
            self.perform(node_id, node.tick(self.now))

    def sync(self, node_id: NodeId) -> None:
        """One fdatasync of all that was written."""
        member = self.members[node_id]
        if member.node is not None and node_id not in self.hung:
            member.disk.durable = len(member.disk.ops)
            self.perform(node_id, member.node.persisted(member.node.written, self.now))

    def perform(self, node_id: NodeId, fx: Effects) -> None:
        """Handle the effects, in their order."""
        member = self.members[node_id]
        self.on_perform(node_id, fx)
        if fx.halt:
            member.halted, member.node = fx.halt, None
            return
        member.disk.ops += fx.persist
        member.events += fx.emit
        for peer, message in fx.send:
            if (node_id, peer) in self.up and (node_id, peer) not in self.cut:
                self.queues[node_id, peer].append(self._cross(message))
        member.disk.delivered += fx.deliver
        member.refused += fx.reply
        for fetch in fx.fetch:
            assert member.node is not None
            records = [r for r in member.disk.log() if r.position > fetch.after][:3]
            self.perform(node_id, member.node.fetched(fetch.peer, fetch.token, records, self.now))
        if fx.leave:
            member.left = fx.leave
            self.kill(node_id, len(member.disk.ops))

    def _cross(self, message: PeerMessage) -> PeerMessage:
        if not self.through_wire:
            return message
        (decoded,) = FrameDecoder().feed(b"".join(encode_frame(message)))
        return decoded  # type: ignore[return-value]

    def deliver(self, sender: NodeId, receiver: NodeId) -> PeerMessage | None:
        """Hand the oldest frame of a link over; None when there is none or the receiver does not take it."""
        queue = self.queues[sender, receiver]
        if not queue or receiver in self.paused:
            return None
        message = queue.popleft()
        self.step(receiver, sender, message)
        return message

    # ---- letting it run -----------------------------------------------------------------------------

    def settle(self, limit: int = 10_000) -> None:
        """Deliver, sync and tick everything that is due, without advancing the time, until nothing is left."""
        for _ in range(limit):
            moved = False
            for pair in self.queues:
                moved = self.deliver(*pair) is not None or moved
            for i in self.awake():
                member = self.members[i]
                if member.disk.durable < len(member.disk.ops) and i not in self.hung:
                    self.sync(i)
                    moved = True
                if member.node is not None and member.node.next_deadline() <= self.now:
                    self.tick(i)
                    moved = True
            if not moved:
                return
        raise AssertionError("the cluster does not come to rest")

    def run(self, seconds: float) -> None:
        """Settle, and move on to each next deadline, for so long."""
        end = self.now + seconds
        self.settle()
        while True:
            due = min((self.node(i).next_deadline() for i in self.awake()), default=end)
            if due > end:
                break
            self.now = max(self.now, due)
            self.settle()
        self.now = end

    def leader(self) -> NodeId:
        """The one leader of the highest term."""
        leaders = [(self.node(i).state.term, i) for i in self.running() if self.node(i).role_name == "leader"]
        assert leaders, {i: self.node(i).role_name for i in self.running()}
        return max(leaders)[1]

    def lines(self, node_id: NodeId) -> list[Line]:
        """The node's message log."""
        body = b"".join(bytes(record.body) for record in self.members[node_id].disk.delivered)
        lines = [decode_node_line(line) for line in body.splitlines()]
        assert all(isinstance(line, Line) for line in lines)
        return lines  # type: ignore[return-value]

    def payloads(self, node_id: NodeId) -> list[str]:
        return [line.payload for line in self.lines(node_id)]

    def positions(self) -> dict[NodeId, Position]:
        return {i: self.node(i).state.log.position for i in self.running()}
