"""Random walks over the real core: frames reordered, lost, duplicated; links reset; crashes that lose unsynced tails.

A walk checks with every step of every node what must always hold (docs/protocol.md, A1 to A7) and what the rules hold
it by: one vote a term (E4), the same record and the same one before it wherever a position is the same (R4), nothing
delivered that a majority's disks don't have (C1), nothing dropped that was acknowledged and committed (R2). At its end
it heals everything and checks that the cluster works again (A9). A violation raises AssertionError; the seed brings it
back.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from random import Random

from nodeproc.core.effects import Effects, Met, Truncate
from nodeproc.core.election import become_candidate
from nodeproc.core.events import BecameLeader
from nodeproc.core.messages import (
    NOBODY,
    START,
    AddNode,
    Appended,
    Batch,
    HeartbeatAck,
    Line,
    NodeId,
    Position,
    Record,
    RemoveNode,
    Transfer,
    Vote,
    VoteRequest,
)
from nodeproc.core.state import Follower, Leader, NodeState
from nodeproc.lines import decode_node_line
from tests.core.cluster import Cluster, Disk

TIGHT = {"inflight_max_bytes": 900, "fetch_max_bytes": 300, "buffer_max_bytes": 700, "batch_max_messages": 4}
"""Limits at which a few messages are much: followers are served from disk, buffers run full."""


@dataclass
class WalkClient:
    """Sends one message at a time in its session until it is acknowledged, through whatever node."""

    session: str
    born: int = 0
    acknowledged: int = 0
    acked_at: list[int] = field(default_factory=list)


class Walk:
    """One seeded walk of a cluster of 1 to 5 nodes."""

    def __init__(self, seed: int, moves: int = 600) -> None:
        self.rng = Random(seed)
        self.moves = moves
        size = self.rng.choice([1, 2, 3, 3, 3, 3, 3, 3, 4, 5])
        limit = self.rng.choice([2, 1000])
        limits = self.rng.choice([{}, {}, TIGHT])
        through_wire = self.rng.random() < 0.2
        self.cluster = Cluster(size, seed, max_sessions=limit, limits=limits, through_wire=through_wire)
        self.cluster.on_perform = self.observe
        self.leaders: dict[int, NodeId] = {}
        self.log: list[bytes] = []
        """The one agreed order: bytes of each delivered batch."""
        self.delivered: dict[NodeId, int] = dict.fromkeys(self.cluster.ids, 0)
        self.terms: dict[NodeId, int] = dict.fromkeys(self.cluster.ids, 0)
        self.votes: dict[tuple[str, int], NodeId] = {}
        """(identity, term) -> for whom a vote was shown."""
        self.records: dict[Position, tuple[Position, bytes]] = {}
        """Position -> the one before it and the record's bytes, in every log that ever was."""
        self.ends: dict[NodeId, Position] = {}
        """Where each running node's log ends, as written."""
        self.counted: dict[NodeId, Position] = dict.fromkeys(self.cluster.ids, START)
        """Up to where each node's log was acknowledged so that its leader may count it (C1)."""
        self.committed_in: dict[bytes, int] = {}
        """Batch -> the term in which it was delivered first."""
        self.wiped = False
        self.clients = [WalkClient(f"s{k}") for k in range(3)]
        self.burst = self.rng.choice([3, 10, 30])
        self.weights = {
            "deliver": 40,
            "sync": self.rng.choice([15, 40]),
            "time": self.rng.choice([2, 10]),
            "submit": self.rng.choice([10, 25]),
            "drop": self.rng.choice([0, 1, 3]),
            "duplicate": self.rng.choice([0, 1, 3]),
            "swap": self.rng.choice([0, 1, 3]),
            "relink": self.rng.choice([0, 1]),
            "down": self.rng.choice([0, 1]),
            "crash": self.rng.choice([0, 1, 3]),
            "cut": self.rng.choice([0, 1]),
            "partition": self.rng.choice([0, 1, 2]),
            "candidate": self.rng.choice([0, 1, 3, 6]),
            "transfer": self.rng.choice([0, 0, 1, 3]),
            "wipe": self.rng.choice([0, 0, 0.3]),
        }
        changes = Random(f"changes {seed}")  # Of its own, so that the walks without changes stay as they are.
        if not self.weights["wipe"] and changes.random() < 0.5:
            self.weights["change"] = changes.choice([1, 3, 6])

    # ---- what must always hold ------------------------------------------------------------------

    def observe(self, node_id: NodeId, fx: Effects) -> None:
        """Called with the effects of every step, before they are performed."""
        assert not fx.halt, fx.halt
        state = self.cluster.node(node_id).state
        assert not [peer for peer, _ in fx.send if peer in state.unknown_members], "M4: a stranger is sent something"
        assert state.term >= self.terms[node_id], "A7: a term fell"
        self.terms[node_id] = state.term
        self.check_votes(node_id, fx)
        self.check_writes(node_id, fx)
        self.check_accounts(state)
        for event in fx.emit:
            if isinstance(event, BecameLeader):
                assert self.leaders.setdefault(event.term, node_id) == node_id, f"A7: two leaders in {event.term}"
        for record in fx.deliver:
            if not isinstance(record.header, Batch):
                continue
            at = self.delivered[node_id]
            if at == len(self.log):
                self.log.append(record.raw)
                self.committed_in[record.raw] = state.term
                self.check_majority(record, state)
                self.acknowledge(record)
            assert self.log[at] == record.raw, f"A1: node {node_id} delivers something else at batch {at}"
            self.delivered[node_id] = at + 1
        assert state.delivered_seq <= state.durable.seq_no or not fx.deliver, "delivered before durable"

    def check_votes(self, node_id: NodeId, fx: Effects) -> None:
        """A vote that anybody sees is the only one of its node in that term. Rule: E4."""
        identity = self.cluster.members[node_id].disk.identity
        for receiver, message in fx.send:
            if isinstance(message, Vote | VoteRequest):
                candidate = receiver if isinstance(message, Vote) else node_id
                before = self.votes.setdefault((identity, message.term), candidate)
                assert before == candidate, f"E4: node {node_id} votes for {before} and {candidate} in {message.term}"

    def check_writes(self, node_id: NodeId, fx: Effects) -> None:
        """Equal positions mean equal logs up to there, and nothing committed is dropped. Rule: R4, R2."""
        disk = self.cluster.members[node_id].disk
        for at, op in enumerate(fx.persist):
            if isinstance(op, Truncate):
                log = Disk("", disk.ops + fx.persist[:at]).log()
                for record in log:
                    term = self.committed_in.get(record.raw)
                    if op.keep < record.position <= self.counted[node_id] and term is not None:
                        assert term > self.terms[node_id], f"R2: node {node_id} drops {record.position}, committed"
                self.ends[node_id] = max((r.position for r in log if r.position <= op.keep), default=START)
                self.counted[node_id] = min(self.counted[node_id], self.ends[node_id])
            elif isinstance(op, Record):
                if node_id not in self.ends:
                    self.ends[node_id] = max((r.position for r in disk.log()), default=START)
                now = (self.ends[node_id], op.raw)
                assert self.records.setdefault(op.position, now) == now, f"R4: two logs differ below {op.position}"
                self.ends[node_id] = op.position
        for _, message in fx.send:
            if isinstance(message, Appended | HeartbeatAck) and message.position.term == message.term:
                self.counted[node_id] = max(self.counted[node_id], message.position)

    def check_accounts(self, state: NodeState) -> None:
        """Check that running totals agree with the things that they count. Rule: P1, R4."""
        role = state.role
        if isinstance(role, Leader):
            for peer, progress in role.progress.items():
                assert progress.inflight_bytes == sum(size for _, size in progress.inflight), (peer, progress)
                assert not progress.live or progress.sent == state.log.position, (peer, progress)
        elif isinstance(role, Follower):
            assert role.buffered_bytes == sum(len(record.raw) for record in role.buffer.values()), role

    def check_majority(self, record: Record, state: NodeState) -> None:
        """Check that delivered records are on the disks of a majority; a wiped disk does not count. Rule: C1, G4."""
        if self.wiped:
            return
        voters = state.voters
        have = sum(self.cluster.members[voter].disk.holds(record) for voter in voters)
        assert have > len(voters) // 2, f"C1: {record.position} is delivered, and durable on {have} of {voters}"

    def acknowledge(self, record: Record) -> None:
        """The first delivery anywhere: from now on these messages must never be lost, doubled or moved."""
        clients = {client.session: client for client in self.clients}
        for text in bytes(record.body).splitlines():
            line = decode_node_line(text)
            assert isinstance(line, Line)
            session, n = line.msg_id.rsplit("-", 1)
            assert line.payload in (line.msg_id, "alive"), "A3: nobody sent that"
            assert int(n) == clients[session].acknowledged + 1, f"A3, A5: {line.msg_id} is twice or out of order"
            clients[session].acknowledged += 1

    # ---- moves ----------------------------------------------------------------------------------

    def run(self) -> None:
        kinds, weights = list(self.weights), list(self.weights.values())
        for _ in range(self.moves):
            getattr(self, "do_" + self.rng.choices(kinds, weights)[0])()
        self.heal_and_check()

    def _queue(self) -> tuple[NodeId, NodeId] | None:
        full = [pair for pair, queue in self.cluster.queues.items() if queue]
        return self.rng.choice(full) if full else None

    def do_deliver(self) -> None:
        for _ in range(self.rng.randint(1, self.burst)):
            if pair := self._queue():
                self.cluster.deliver(*pair)
        self._ticks()

    def _ticks(self) -> None:
        for i in self.cluster.running():
            if self.cluster.node(i).next_deadline() <= self.cluster.now:
                self.cluster.tick(i)

    def do_sync(self) -> None:
        """Sync a node, or only a part of its operations, as an fdatasync that began earlier does."""
        cluster = self.cluster
        if not cluster.running():
            return
        i = self.rng.choice(cluster.running())
        member = cluster.members[i]
        lag = len(member.disk.ops) - member.disk.durable
        if lag and self.rng.random() < 0.4:
            covered = self.rng.randint(1, lag)
            member.disk.durable += covered
            node = cluster.node(i)
            cluster.perform(i, node.persisted(node.written - lag + covered, cluster.now))
        else:
            cluster.sync(i)

    def do_time(self) -> None:
        cluster = self.cluster
        if self.rng.random() < 0.5:
            cluster.now += self.rng.random() * 0.05
        else:
            due = min((cluster.node(i).next_deadline() for i in cluster.running()), default=cluster.now)
            if due < cluster.now + 10:
                cluster.now = max(cluster.now, due)
        self._ticks()

    def do_submit(self) -> None:
        if not self.cluster.running():
            return
        running = self.cluster.running()
        leaders = [i for i in running if self.cluster.node(i).role_name == "leader"]
        i = self.rng.choice(leaders if leaders and self.rng.random() < 0.7 else running)
        client = self.rng.choice(self.clients)
        # A duplicate, the next, or one too far ahead; several at a time.
        first = max(1, client.acknowledged + self.rng.choice([1, 1, 1, 0, 2]))
        count = self.rng.randint(1, 3)
        payloads = [f"{client.session}-{n}" for n in range(first, first + count)]
        self.cluster.submit(i, client.session, first, *payloads, born=client.born)
        self._ticks()

    def do_drop(self) -> None:
        if pair := self._queue():
            self.cluster.queues[pair].popleft()

    def do_duplicate(self) -> None:
        if pair := self._queue():
            self.cluster.queues[pair].append(self.cluster.queues[pair][0])

    def do_swap(self) -> None:
        if pair := self._queue():
            self.cluster.queues[pair].rotate(self.rng.randint(-2, 2))

    def _pair(self) -> tuple[NodeId, NodeId] | None:
        running = self.cluster.running()
        return tuple(self.rng.sample(running, 2)) if len(running) > 1 else None  # type: ignore[return-value]

    def do_relink(self) -> None:
        if pair := self._pair():
            self.cluster.link(*pair)

    def do_down(self) -> None:
        if pair := self._pair():
            self.cluster.unlink(*pair)

    def do_cut(self) -> None:
        if pair := self._pair():
            self.cluster.cut ^= {pair}

    def do_partition(self) -> None:
        """Cut the cluster in two, links silent and not lost; or heal all cuts."""
        cluster = self.cluster
        if cluster.cut:
            cluster.cut.clear()
            return
        leaders = [i for i in cluster.running() if cluster.node(i).role_name == "leader"]
        side = set(self.rng.sample(cluster.ids, self.rng.randint(0, len(cluster.ids))))
        if leaders and self.rng.random() < 0.6:
            side = {self.rng.choice(leaders)}
        cluster.cut |= {(a, b) for a, b in cluster.queues if (a in side) != (b in side)}

    def do_candidate(self) -> None:
        """Safety must not rest on polls and timeouts: any member may stand at any time."""
        cluster = self.cluster
        if not cluster.running():
            return
        i = self.rng.choice(cluster.running())
        state = cluster.node(i).state
        if state.pledge is None and not state.rebuilding:
            state.failures = min(state.failures, 2)  # Nobody asked first: what it loses tells nothing of slow disks.
            fx = Effects()
            become_candidate(state, cluster.now, fx)
            cluster.perform(i, fx)

    def do_transfer(self) -> None:
        """Ask the leader, or a node that does not lead, to transfer its leadership. Rule: E7."""
        if running := self.cluster.running():
            leaders = [i for i in running if self.cluster.node(i).role_name == "leader"]
            node_id = self.rng.choice(leaders or running)
            self.cluster.step(node_id, node_id, Transfer(self.rng.choice((NOBODY, *self.cluster.ids))))
            self._ticks()

    def do_change(self) -> None:
        """Ask the leader, or a node that does not lead, to add or remove a node. Rule: G2."""
        cluster = self.cluster
        running = cluster.running()
        if not running:
            return
        new = max(cluster.ids) + 1
        if new <= 7 and self.rng.random() < 0.2:
            self.delivered[new] = self.terms[new] = 0
            self.counted[new] = START
            cluster.newcomer(new)
        leaders = [i for i in running if cluster.node(i).role_name == "leader"]
        node_id, target = self.rng.choice(leaders or running), self.rng.choice(cluster.ids)
        change = RemoveNode(target) if self.rng.random() < 0.4 else AddNode(target, "h", target)
        cluster.step(node_id, node_id, change)
        self._ticks()

    def kill(self, node_id: NodeId, keep_unsynced: int = 0, *, noticed: bool = True) -> None:
        self.cluster.kill(node_id, keep_unsynced, noticed=noticed)
        self.ends.pop(node_id, None)

    def do_crash(self) -> None:
        cluster = self.cluster
        down = [i for i in cluster.ids if i not in cluster.running()]
        if down and self.rng.random() < 0.7:
            cluster.start(self.rng.choice(down))
        elif cluster.running():
            i = self.rng.choice(cluster.running())
            lag = len(cluster.members[i].disk.ops) - cluster.members[i].disk.durable
            self.kill(i, self.rng.randint(0, lag), noticed=self.rng.random() < 0.8)

    def do_wipe(self) -> None:
        """Lose a whole disk; only if a majority of complete disks remains.

        That a node has become a member again must be known to all before the next disk is lost: else those who know
        of it may be the very ones that go (a known weakness of M4).
        """
        cluster = self.cluster
        if len(cluster.ids) < 3 or len(cluster.running()) < len(cluster.ids):
            return
        if any(cluster._rebuilding(i) for i in cluster.ids) or not self.all_know_each_other():
            return
        i = self.rng.choice(cluster.ids)
        self.kill(i)
        self.wiped = True
        self.counted[i] = START
        cluster.wipe(i, rebuild=True)
        self.delivered[i] = self.terms[i] = 0
        cluster.start(i)

    def all_know_each_other(self) -> bool:
        """Every disk remembers, durably, the present identity of every member."""
        for i, member in self.cluster.members.items():
            known = {op.peer: op.known.identity for op in member.disk.ops[: member.disk.durable] if isinstance(op, Met)}
            for peer in self.cluster.ids:
                if peer != i and known.get(peer) != self.cluster.members[peer].disk.identity:
                    return False
        return True

    # ---- liveness -------------------------------------------------------------------------------

    def heal_and_check(self) -> None:
        """With everything up and connected, messages are acknowledged again and all logs become equal (A9)."""
        cluster = self.cluster
        cluster.cut.clear()
        for i in cluster.ids:
            if i not in cluster.running():
                cluster.start(i)
        for a, b in cluster.queues:
            cluster.link(a, b)
        cluster.run(15)
        leader = cluster.node(cluster.leader()).state
        client = WalkClient("after", born=leader.delivered_seq)
        self.clients.append(client)
        members = sorted((leader.node_id, *leader.peers))
        cluster.submit(self.rng.choice(members), "after", 1, "alive", born=client.born)
        cluster.run(5)
        assert client.acknowledged == 1, "A9: not acknowledged after healing"
        assert {self.delivered[i] for i in members} == {len(self.log)}, f"A9: not equal, {self.delivered}"
        if leader.log.members:
            assert cluster.running() == sorted({*cluster.ids} - {*leader.log.members.removed}), "G5: not told"
        seq_nos = [line.seq_no for line in cluster.lines(leader.node_id)]
        assert seq_nos == list(range(1, len(seq_nos) + 1)), "A2"
        assert not any(cluster.node(i).state.rebuilding for i in members), "M4: still rebuilding"
