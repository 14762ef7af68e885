"""A7: one leader a term, and the term that a node shows never falls, across restarts too. From events.jsonl.

A node that is rebuilt has forgotten its term with its disk (M4): what it shows from then on is compared with itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from lab.check.history import EventLine, RunFileError, line_at, read_events
from lab.check.verdict import Check, Findings, Quote, quote
from lab.plan.reading import EVENTS
from lab.rows import Meta
from lab.rundir import RunDir

NEVER = 1 << 63
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
"""Events whose term is the node's own; a poll's is only proposed (E1), a refused candidate's may be an old one (E4)."""


class _Claim(NamedTuple):
    leader: int
    node: int
    line: int


class LogTerms(NamedTuple):
    """The terms of a message log: (term, seq_no of its first message), ascending; empty where it was not read."""

    name: str
    starts: Sequence[tuple[int, int]]


class Elections:
    """Collects what all nodes' events say about terms and leaders.

    Args:
        rebuilt: node -> when it lost its disk, ascending.
    """

    def __init__(self, run: RunDir, rebuilt: Mapping[int, Sequence[int]]) -> None:
        self._run, self._rebuilt = run, rebuilt
        self._findings = Findings("A7", "one leader a term")
        self._leaders: dict[int, _Claim] = {}
        self._began: dict[int, tuple[int, _Claim]] = {}
        """Term -> last seq_no of its leader when it became that, and where it says so."""
        self._silent: list[int] = []
        """Nodes whose file has no event."""
        self.events = 0

    def check(self, nodes: list[int], *, log: LogTerms, meta: Meta | None, wanted: bool = True) -> Check:
        """Judge A7 over the events of these nodes, and what their STATUS said while the run was on.

        Args:
            log: the terms that the message log has.
            meta: None: it could not be read.
            wanted: they must have events. Nodes of another make need not; but if one has, all must.
        """
        if meta is not None:
            self._judge_statuses(meta, log)
        if not wanted and not any(self._run.events(node).is_file() for node in nodes):
            return self._findings.unknown("these nodes write no events", decisive=False)
        missing = [node for node in nodes if not self._run.events(node).is_file()]
        try:
            for node in nodes:
                if node not in missing:
                    self._read(node, NEVER if meta is None else meta.t_end, wanted)
        except RunFileError as error:
            return self._findings.unknown(str(error))
        if missing := [*missing, *self._silent]:
            return self._findings.unknown("no events of " + ", ".join(f"node {node}" for node in missing))
        if not self._leaders:
            return self._findings.unknown("no event names a leader")
        self._judge_log(log)
        terms = len(self._leaders)
        return self._findings.passed(f"{terms} term{'s' if terms > 1 else ''} with a leader, {self.events} events")

    def _judge_statuses(self, meta: Meta, log: LogTerms) -> None:
        """One leader a term, as STATUS named them; the log has no term above the highest that a node showed."""
        leaders: dict[int, int] = {}
        for seen in meta.led:
            known = leaders.setdefault(seen.term, seen.node)
            if known != seen.node:
                self._findings.add(
                    "meta.json:1",
                    f"STATUS of node {known} and of node {seen.node} said that they lead term {seen.term}",
                )
        highest = 0 if meta.convergence is None else meta.convergence.term
        if highest and log.starts and log.starts[-1][0] > highest:
            term, seq_no = log.starts[-1]
            self._findings.add(
                f"{log.name}:{seq_no}", f"a message of term {term}; no node's STATUS showed more than term {highest}"
            )

    def _judge_log(self, log: LogTerms) -> None:
        """Each term of the log was led, and its messages begin where its leader's log ended."""
        for term, seq_no in log.starts:
            place = f"{log.name}:{seq_no}"
            if term not in self._leaders:
                self._findings.add(place, f"a message of term {term}, which no event says anybody led")
            elif term in self._began and self._began[term][0] + 1 != seq_no:
                last_seq, claim = self._began[term]
                self._findings.add(
                    place,
                    f"the messages of term {term} begin at seq_no {seq_no}; the log of its leader, node "
                    f"{claim.leader}, ended at {last_seq}",
                    self._quote(claim.node, claim.line),
                )

    def _read(self, node: int, until: int, wanted: bool) -> None:
        shown, shown_line = 0, 0
        before, lost = self.events, list(self._rebuilt.get(node, ()))
        for line, event in read_events(self._run.events(node), node):
            self.events += 1
            if event.t_ns > until or (wanted and event.event not in EVENTS):
                what = (
                    f"t_ns={event.t_ns} is after the run" if event.t_ns > until else f"no event {event.event!r} exists"
                )
                raise RunFileError(f"{self._place(node, line)}: {what}")
            if event.event in LEADS:
                self._claim(_Claim(node, node, line), event)
                if event.last_seq >= 0:
                    self._began.setdefault(event.term, (event.last_seq, _Claim(node, node, line)))
            elif event.event in FOLLOWS and event.leader:
                self._claim(_Claim(event.leader, node, line), event)
            if event.event in SHOWS_TERM:
                if lost and lost[0] <= event.t_ns:
                    shown = 0
                    lost = [t for t in lost if t > event.t_ns]
                if event.term < shown:
                    self._fell(node, line, event, shown, shown_line)
                shown, shown_line = event.term, line
        if self.events == before:
            self._silent.append(node)

    def _claim(self, claim: _Claim, event: EventLine) -> None:
        known = self._leaders.setdefault(event.term, claim)
        if known.leader != claim.leader:
            self._findings.add(
                self._place(claim.node, claim.line),
                f"term {event.term} has two leaders, node {known.leader} and node {claim.leader}",
                self._quote(known.node, known.line),
                self._quote(claim.node, claim.line),
            )

    def _fell(self, node: int, line: int, event: EventLine, shown: int, shown_line: int) -> None:
        self._findings.add(
            self._place(node, line),
            f"node {node} shows term {event.term} after term {shown}",
            self._quote(node, shown_line),
            self._quote(node, line),
        )

    def _place(self, node: int, line: int) -> str:
        return f"{self._run.events(node).relative_to(self._run.path)}:{line}"

    def _quote(self, node: int, line: int) -> Quote:
        return quote(self._place(node, line), line_at(self._run.events(node), line))
