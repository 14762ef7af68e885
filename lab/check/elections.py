"""A7: each term has at most one leader, and the term that a node shows never decreases, also across restarts.

If the members change, the mark of a term has one list, and the committed lists follow each other: a later term has no
older list, and two versions in succession differ by one voter at most, so that their majorities share a node (G2). A
node that was notified of its removal (G5) is removed in all lists that were committed from that term on.

A node that lost its disk has forgotten its term (M4): the terms that it shows afterwards are compared with each other.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from itertools import pairwise
from typing import ClassVar, NamedTuple, TypeAlias

from lab.check.history import EventLine
from lab.check.judge import Case, Judge, loses_disk
from lab.check.verdict import Check, Findings
from lab.rows import FaultRow, Meta
from lab.words import counted
from nodeproc.core.messages import NodeId, SeqNo

LEADS = {"became_leader"}
"""Events whose node leads their term."""
FOLLOWS = {"new_coordinator", "coordinator_received", "heartbeat_received"}
"""Events that name the leader of their term."""
SHOWS_TERM = LEADS | {
    "starting",
    "became_follower",
    "became_candidate",
    "new_coordinator",
    "vote_granted",
    "heartbeat_sent",
    "heartbeat_received",
}
"""Events that show the node's own term. Not polls, whose term is only proposed (E1), nor refused votes (E4)."""
COMMITS_LIST = "members_committed"
LISTS = {"members_changed", COMMITS_LIST}
"""Events with the list of members of a mark; `term` is that of the mark (G1)."""
LEAVES = "node_removed"


_Starts: TypeAlias = Sequence[tuple[int, SeqNo]]
"""(term, seq_no of its first message) as the log has them."""


class _Claim(NamedTuple):
    leader: int
    node: int
    line: int


class _List(NamedTuple):
    """A list of members, and the event that shows it."""

    version: int
    voters: tuple[int, ...]
    others: tuple[tuple[int, ...], ...]
    """Learners, removed nodes."""
    node: int
    line: int


class Elections(Judge):
    """Follows the terms and leaders in the events of each node."""

    invariants: ClassVar = {"A7": "one leader a term"}
    events: ClassVar = SHOWS_TERM | FOLLOWS | LISTS | {LEAVES}
    reads_events: ClassVar = True

    def __init__(self, case: Case) -> None:
        super().__init__(case)
        self._findings = self.found()
        self._lost: dict[NodeId, list[int]] = {}
        """Node -> when its data directory had been lost or replaced; only times after the term that it showed last."""
        self._leaders: dict[int, _Claim] = {}
        self._began: dict[int, tuple[int, _Claim]] = {}
        """Term -> last seq_no of its leader at the start of the term, and the event that shows it."""
        self._shown: dict[NodeId, tuple[int, int]] = {}
        """Node -> the term that it showed last, and the line of that event."""
        self.event_count = 0
        self._lists: dict[int, _List] = {}
        """Term -> the list of members of its mark."""
        self._committed: list[tuple[int, _List]] = []
        """(term, committed list), by term."""
        self._versions: dict[int, _List] = {}
        """Version -> the committed list. Version 0 is that of the founders, which no event shows."""
        if case.scenario is not None:
            self._versions[0] = _List(0, case.scenario.cluster.founder_ids, ((), ()), 0, 0)
        self._left: list[tuple[int, NodeId, int]] = []
        """(term, node, line of the event) of nodes that were notified of their removal."""

    def on_fault(self, row: FaultRow) -> None:
        if loses_disk(row):
            self._lost.setdefault(row.target, []).append(row.t_done)

    def on_event(self, line: int, event: EventLine) -> None:
        self.event_count += 1
        kind, node, term = event.event, event.node, event.term
        if kind in LEADS:
            self._claim(_Claim(node, node, line), term)
            if event.last_seq >= 0:
                self._began.setdefault(term, (event.last_seq, _Claim(node, node, line)))
        elif kind in FOLLOWS and event.leader:
            self._claim(_Claim(event.leader, node, line), term)
        if kind in LISTS:
            self._on_list(line, event)
        elif kind == LEAVES:
            self._left.append((term, node, line))
        if kind in SHOWS_TERM:
            lost = self._lost.get(node)
            if lost and lost[0] <= event.t_ns:
                self._shown.pop(node, None)
                lost[:] = [t for t in lost if t > event.t_ns]
            shown, shown_line = self._shown.get(node, (0, 0))
            if term < shown:
                self._fell(node, line, event, shown, shown_line)
            self._shown[node] = (term, line)

    def on_broken_promise(self, invariant: str, text: str) -> None:
        if invariant in self.invariants:
            self._findings.add("meta.json:1", text)

    def check(self) -> Check:
        case = self.case
        findings = self.found()
        # If A2 is broken, A2 reports it; where a term begins is then not known.
        starts = case.term_starts or () if case.contiguous else ()
        if case.meta is not None:
            self._judge_statuses(findings, case.meta, starts)
        findings.take(self._findings)
        self._judge_removals(findings)
        if case.is_foreign and not any(map(case.has_events, case.nodes)):
            return findings.unknown("these nodes write no events", decisive=False)
        if case.unread_events:
            return findings.unknown(case.unread_events)
        if not self._leaders:
            return findings.unknown("no event names a leader")
        self._judge_log(findings, starts)
        for seen in case.meta.led if case.meta is not None and not case.is_foreign else ():
            if seen.term not in self._began:
                return findings.unknown(f"node {seen.node} led term {seen.term} by its STATUS; no event says so")
        terms = len(self._leaders)
        return findings.passed(f"{counted(terms, 'term')} with a leader, {counted(self.event_count, 'event')}")

    def _judge_statuses(self, findings: Findings, meta: Meta, starts: _Starts) -> None:
        """Judge what STATUS showed: the same leader of each term as events, and no higher term in the log."""
        leaders: dict[int, int] = {}
        for seen in meta.led:
            known, claim = leaders.setdefault(seen.term, seen.node), self._leaders.get(seen.term)
            if known != seen.node:
                findings.add(
                    "meta.json:1",
                    f"STATUS of node {known} and of node {seen.node} said that they lead term {seen.term}",
                )
            elif claim is not None and claim.leader != seen.node:
                findings.add(
                    "meta.json:1",
                    f"STATUS of node {seen.node} said that it leads term {seen.term}; an event names node "
                    f"{claim.leader} as the leader",
                    self.case.event_quote(claim.node, claim.line),
                )
        highest = 0 if meta.convergence is None else meta.convergence.term
        if highest and starts and starts[-1][0] > highest:
            term, seq_no = starts[-1]
            findings.add(
                self.case.log.place(seq_no),
                f"a message of term {term}; no node's STATUS showed more than term {highest}",
            )

    def _judge_removals(self, findings: Findings) -> None:
        for notified, node, line in self._left:
            for term, found in self._committed:
                if term >= notified and node not in found.others[1]:
                    findings.add(
                        self.case.event_place(node, line),
                        f"node {node} was notified of its removal in term {notified}; the list of term {term} has it",
                        self.case.event_quote(node, line),
                        self.case.event_quote(found.node, found.line),
                    )
                    break

    def _judge_log(self, findings: Findings, starts: _Starts) -> None:
        """Judge that each term in the log had a leader, and that its messages begin where its leader's log ended."""
        for term, seq_no in starts:
            place = self.case.log.place(seq_no)
            if term not in self._leaders:
                findings.add(place, f"a message of term {term}, but no event names a leader of that term")
            elif term in self._began and self._began[term][0] + 1 != seq_no:
                last_seq, claim = self._began[term]
                findings.add(
                    place,
                    f"the messages of term {term} begin at seq_no {seq_no}; the log of its leader, node "
                    f"{claim.leader}, ended at {last_seq}",
                    self.case.event_quote(claim.node, claim.line),
                )

    def _claim(self, claim: _Claim, term: int) -> None:
        known = self._leaders.setdefault(term, claim)
        if known.leader != claim.leader:
            self._findings.add(
                self.case.event_place(claim.node, claim.line),
                f"term {term} has two leaders, node {known.leader} and node {claim.leader}",
                self.case.event_quote(known.node, known.line),
                self.case.event_quote(claim.node, claim.line),
            )

    def _on_list(self, line: int, event: EventLine) -> None:
        """Judge the list of a mark, and its place among the committed ones. Rule: G1, G2."""
        term, rest = event.term, (event.learners, event.removed)
        found = _List(event.version, event.voters, rest, event.node, line)
        known = self._lists.setdefault(term, found)
        if known[:3] != found[:3]:
            self._differ(f"the mark of term {term} has two lists of members", known, found)
        if event.event != COMMITS_LIST:
            return
        at = bisect_left(self._committed, term, key=lambda each: each[0])
        self._committed.insert(at, (term, found))
        for (_, earlier), (later_term, later) in pairwise(self._committed[max(at - 1, 0) : at + 2]):
            if earlier.version > later.version:
                self._differ(f"term {later_term} has an older list of members than a term before it", earlier, later)
        for version in (found.version - 1, found.version, found.version + 1):
            other = self._versions.get(version, found)
            moved = {*other.voters} ^ {*found.voters}
            if len(moved) > 1 or (other.version == found.version and other[:3] != found[:3]):
                self._differ("committed lists of members do not follow each other", other, found)
        self._versions.setdefault(found.version, found)

    def _differ(self, text: str, *lists: _List) -> None:
        shown = " and ".join(f"version {each.version}, voters {', '.join(map(str, each.voters))}" for each in lists)
        quotes = (self.case.event_quote(each.node, each.line) for each in lists if each.line)
        self._findings.add(self.case.event_place(lists[-1].node, lists[-1].line), f"{text}: {shown}", *quotes)

    def _fell(self, node: int, line: int, event: EventLine, shown: int, shown_line: int) -> None:
        self._findings.add(
            self.case.event_place(node, line),
            f"node {node} shows term {event.term} after term {shown}",
            self.case.event_quote(node, shown_line),
            self.case.event_quote(node, line),
        )
