"""Checks that only a simulation can make, because it sees the logs and disks of all nodes and every frame at once.

They notice a broken promise where it happens. Its consequence, a lost message or two leaders, may need several more
events, such as the right nodes dying in the right order. Rules: C1, R2, E4, M4, M6, G1, G2, G4.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

from nodeproc.core.messages import (
    Appended,
    HeartbeatAck,
    MemberList,
    MembersMark,
    NodeId,
    PeerMessage,
    Position,
    SeqNo,
    Term,
    Vote,
    VoteRequest,
)
from nodeproc.core.state import Leader, NodeState

Report: TypeAlias = Callable[[Literal["A4", "A7"], str], None]
"""Called with the invariant and the observation."""


def holds(state: NodeState, term: Term, seq_no: SeqNo) -> bool:
    """Return whether a node has, durably, the log of this term's leader up to seq_no, with the term's mark."""
    log = state.log
    return state.durable >= (term, seq_no) and log.has_mark(term) and log.end_of(term) >= seq_no


@dataclass(slots=True)
class Commit:
    """What a leader has committed last, and its notion of the voters.

    identities: voter -> the data directory by which the leader knew it.
    """

    term: Term
    seq_no: SeqNo
    identities: dict[NodeId, str]

    @property
    def majority(self) -> int:
        return len(self.identities) // 2 + 1


class Promises:
    """The promises of all nodes.

    Args:
        report: called with each broken promise.
    """

    def __init__(self, report: Report) -> None:
        self._report = report
        self._nodes: dict[NodeId, NodeState] = {}
        """The state of each node's latest process; that of a dead node is what its disk has."""
        self._disks: dict[NodeId, dict[str, list[NodeState]]] = {}
        """Node -> identity -> states: more than one if data was lost or replaced under the same identity."""
        self._undeclared: set[str] = set()
        """Identities of lost disks' successors that were started without --rebuild."""
        self._durable: dict[NodeId, Position] = {}
        """Node -> up to where its log was durable after its latest turn."""
        self._committed: dict[NodeId, SeqNo] = {}
        """Node -> its commit_seq after its latest turn."""
        self._latest: Commit | None = None
        """The highest commit."""
        self._led: set[Term] = set()
        """Terms whose leader has written its mark."""
        self._settled: dict[int, MemberList] = {}
        """Version -> the list of members that is committed."""
        self._joined: dict[NodeId, dict[NodeId, tuple[str, Position]]] = {}
        """Node -> NodeState.rebuilds after its latest turn, if there were any."""
        self._votes: dict[tuple[str, Term], NodeId] = {}
        """(identity, term) -> who got its vote."""
        self._acknowledged: dict[str, tuple[Term, Position]] = {}
        """Identity -> the latest acknowledged position of a log that was a prefix of its leader's."""

    # ---- what happens --------------------------------------------------------------------------------

    def started(self, node: NodeId, state: NodeState) -> None:
        """A process of the node has recovered this state."""
        disks = self._disks.setdefault(node, {})
        if disks and state.identity not in disks and not state.rebuilding:
            self._undeclared.add(state.identity)
        lives = disks.setdefault(state.identity, [])
        if lives and state.durable >= lives[-1].durable:
            lives.pop()
        lives.append(state)
        self._nodes[node] = state
        self._durable[node], self._committed[node] = state.durable, state.commit_seq
        self._joined.pop(node, None)

    def turned(self, node: NodeId) -> None:
        """The node has ended a turn."""
        state = self._nodes[node]
        if isinstance(state.role, Leader):
            if state.term not in self._led:
                self._on_mark(node, state)
            if state.commit_seq > self._committed[node]:
                self._on_commit(node, state)
            if state.role.settled and state.log.members is not None:
                self._on_settled(node, state, state.log.members)
        if state.rebuilds or node in self._joined:
            self._on_learners(node, state)
        durable = self._durable[node]
        if state.durable is not durable:
            if state.durable < durable:
                self._on_dropped(node)
            self._durable[node] = state.durable
        self._committed[node] = state.commit_seq

    def sent(self, node: NodeId, peer: NodeId, message: PeerMessage) -> None:
        """The node has sent this frame."""
        if type(message) not in _PROMISING:
            return
        identity = self._nodes[node].identity
        if identity in self._undeclared:
            self._report("A4", f"node {node} lost its disk and takes part without a rebuild (M4)")
        if type(message) is Appended or type(message) is HeartbeatAck:
            self._on_acknowledgement(node, identity, message)
        elif isinstance(message, Vote):
            self._on_vote(node, identity, message.term, peer)
        elif isinstance(message, VoteRequest):
            self._on_vote(node, identity, message.term, node)

    # ---- the promises --------------------------------------------------------------------------------

    def _on_commit(self, node: NodeId, state: NodeState) -> None:
        """A majority has the leader's log up to commit_seq, with the mark of the leader's term. Rule: C1."""
        commit = Commit(state.term, state.commit_seq, _identities(state, voters_of(state)))
        if (count := self._count(commit)) < commit.majority:
            self._report(
                "A4", f"node {node} has committed seq_no {commit.seq_no} in term {commit.term}, durable on {count} (C1)"
            )
        if self._latest is None or (commit.term, commit.seq_no) > (self._latest.term, self._latest.seq_no):
            self._latest = commit

    def _on_mark(self, node: NodeId, state: NodeState) -> None:
        """A leader has begun its term. A new list differs from the one before by one node at most. Rule: G1, G2.

        A change is begun by a leader whose own mark, in the term before, was committed by the list before.
        """
        self._led.add(state.term)
        new, marks = list_at(state, -1), state.log.marks
        if new.version == 0 and len(marks) < 2:
            return
        old = list_at(state, -2)
        if new == old:
            return
        problem = ""
        moved = {*old.voters} ^ {*new.voters}
        known = {*old.voters, *old.learners} ^ {*new.voters, *new.learners}
        if new.version != old.version + 1 or len(moved) > 1 or len(known) > 1 or not {*old.removed} <= {*new.removed}:
            problem = f"changes the members from {old} to {new} (G2)"
        elif (marks[-2].leader, marks[-2].term) != (node, state.term - 1):
            problem = f"changes the members in term {state.term}, but did not lead term {state.term - 1} (G2)"
        else:
            before = Commit(marks[-2].term, marks[-2].after, _identities(state, old.voters))
            if (count := self._count(before)) < before.majority:
                problem = f"changes the members, and the mark of term {before.term} is durable on {count} (G2)"
        if problem:
            self._report("A4", f"node {node} {problem}")

    def _on_settled(self, node: NodeId, state: NodeState, members: MemberList) -> None:
        """A list that a leader calls committed is durable on a majority of itself; there is one of each version."""
        if self._settled.get(members.version) == members:
            return
        mark = state.log.marks[-1]
        commit = Commit(mark.term, mark.after, _identities(state, members.voters))
        if (count := self._count(commit)) < commit.majority:
            self._report("A4", f"node {node} has committed members {members.version}, durable on {count} (G4)")
        other = self._settled.setdefault(members.version, members)
        if other != members:
            self._report("A4", f"two lists of members are committed as version {members.version} (G2)")

    def _on_dropped(self, node: NodeId) -> None:
        """No node drops what a majority needs to keep. Rule: R2."""
        commit = self._latest
        if commit is not None and (count := self._count(commit)) < commit.majority:
            self._report("A4", f"node {node} has dropped records: seq_no {commit.seq_no} is durable on {count} (R2)")

    def _count(self, commit: Commit) -> int:
        """Return how many members hold what was committed, on the disks by which the leader knew them."""
        return sum(
            any(holds(each, commit.term, commit.seq_no) for each in states)
            for states in self._states(commit.identities)
        )

    def _states(self, identities: dict[NodeId, str]) -> list[Sequence[NodeState]]:
        """Return for each member the states of the disk with this identity, which may be lost by now."""
        return [self._disks.get(member, {}).get(identity, ()) for member, identity in identities.items()]

    def _on_vote(self, node: NodeId, identity: str, term: Term, candidate: NodeId) -> None:
        """A data directory votes for one candidate in a term. Rule: E4."""
        other = self._votes.setdefault((identity, term), candidate)
        if other != candidate:
            self._report("A7", f"node {node} has voted for node {other} and for node {candidate} in term {term} (E4)")

    def _on_acknowledgement(self, node: NodeId, identity: str, message: Appended | HeartbeatAck) -> None:
        """In a term, a data directory never acknowledges less than before. Rule: M6."""
        term, position = message.term, message.position
        if position.term != term:
            return
        before = self._acknowledged.get(identity)
        if before is not None and before[0] == term and position < before[1]:
            self._report(
                "A4",
                f"node {node} acknowledges up to seq_no {position.seq_no} in term {term}, before it was "
                f"{before[1].seq_no} (M6)",
            )
        self._acknowledged[identity] = (term, position)

    def _on_learners(self, node: NodeId, state: NodeState) -> None:
        """A readmitted node is not needed for a record that was ordered after it had joined. Rule: M4.

        A member that has acknowledged this record counts even if it has lost its disk since: until it is readmitted, it
        votes for nobody, and before its loss it would not have voted for a candidate without the record.
        If another leader has replaced the records up to where the node joined, the term of the readmission is later.
        """
        joined = self._joined.pop(node, {})
        if state.rebuilds:
            self._joined[node] = dict(state.rebuilds)
        voters = voters_of(state)
        for peer, (identity, end) in joined.items():
            known = state.identities.get(peer)
            if peer in state.rebuilds or peer in state.learners or known is None or known.identity != identity:
                continue
            later = (known.term, 0) if known.term > end.term else end
            others = _identities(state, tuple(each for each in voters if each != peer))
            count = sum(
                any(each.durable > end and holds(each, *later) for each in states) for states in self._states(others)
            )
            if 2 * count <= len(voters):
                self._report("A4", f"node {node} has readmitted node {peer}, {count} others have a later record (M4)")


def list_at(state: NodeState, at: int) -> MemberList:
    """Return the list of members of a mark in this log, counted from its end. Rule: G1."""
    mark = state.log.marks[at] if len(state.log.marks) >= -at else None
    return mark.members if isinstance(mark, MembersMark) else MemberList(0, state.config.members)


def voters_of(state: NodeState) -> tuple[NodeId, ...]:
    """Return the voters of this node's list in force, read from its log. Rule: G1."""
    return list_at(state, -1).voters


def _identities(state: NodeState, voters: tuple[NodeId, ...]) -> dict[NodeId, str]:
    """Return voter -> the data directory by which this node knows it; "" if it has not met the voter."""
    known = {node: known.identity for node, known in state.identities.items()}
    known[state.node_id] = state.identity
    return {voter: known.get(voter, "") for voter in voters}


_PROMISING: Final = frozenset({Vote, VoteRequest, Appended, HeartbeatAck})
"""Frames that promise something."""
