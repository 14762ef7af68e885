"""A7: one leader a term, and the term that a node shows never falls, across restarts too. From events.jsonl.

A node that is rebuilt has forgotten its term with its disk (M4): what it shows from then on is compared with itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from lab.check.history import EventLine, line_at, read_events
from lab.check.verdict import Check, Findings, Quote, quote
from lab.rundir import RunDir

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


class Elections:
    """Collects what all nodes' events say about terms and leaders.

    Args:
        rebuilt: node -> when it lost its disk, ascending.
    """

    def __init__(self, run: RunDir, rebuilt: Mapping[int, Sequence[int]]) -> None:
        self._run, self._rebuilt = run, rebuilt
        self._findings = Findings("A7", "one leader a term")
        self._leaders: dict[int, _Claim] = {}
        self._silent: list[int] = []
        """Nodes whose file has no line that can be read."""
        self.events = 0

    def check(self, nodes: list[int], *, wanted: bool = True) -> Check:
        """Judge A7 over the events of these nodes.

        Args:
            wanted: they must have some. Nodes of another make need not; but if one has, all must.
        """
        if not wanted and not any(self._run.events(node).is_file() for node in nodes):
            return self._findings.unknown("these nodes write no events", decisive=False)
        missing = [node for node in nodes if not self._run.events(node).is_file()]
        for node in nodes:
            if node not in missing:
                self._read(node)
        if missing := [*missing, *self._silent]:
            return self._findings.unknown("no events of " + ", ".join(f"node {node}" for node in missing))
        if not self._leaders:
            return self._findings.unknown("no event names a leader")
        terms = len(self._leaders)
        return self._findings.passed(f"{terms} term{'s' if terms > 1 else ''} with a leader, {self.events} events")

    def _read(self, node: int) -> None:
        shown, shown_line = 0, 0
        before, lost = self.events, list(self._rebuilt.get(node, ()))
        for line, event in read_events(self._run.events(node)):
            self.events += 1
            if event.event in LEADS:
                self._claim(_Claim(node, node, line), event)
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
