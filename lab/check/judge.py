"""The base class of judges, and the facts about a run that judges share.

A judge decides one invariant, or several in one pass. Its inputs are rows of the history, fault rows, events of nodes,
and in a simulation the records that nodes deliver. It ends with a Check for each of its invariants. There are two
sources of inputs: lab.check.invariants reads the files of a finished run; lab.check.online observes a simulation while
it runs, and stops it at the first violation.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from lab.check.history import EventLine, MessageLog, NodeFile, find_line, read_history
from lab.check.numbering import ANY_TIME
from lab.check.verdict import Check, Findings, Outcomes, Quote, quote
from lab.plan.scenario import Scenario
from lab.rows import FaultRow, HistoryRow, Meta, NodeExit
from lab.rundir import RunDir
from nodeproc.core.messages import NodeId, Record, SeqNo


def loses_disk(row: FaultRow) -> bool:
    """Whether the node forgot what it had written: its disk was lost, or an older copy took its place. Rule: M4."""
    return row.fault == "rebuild" or (row.fault == "disk" and not {"restored", "emptied"}.isdisjoint(row.evidence))


@dataclass(slots=True)
class Case:
    """The facts about a run. In a simulation most of them are known only at the end.

    nodes: ids of the whole cluster, ascending. log: the order that all nodes are held to.
    times: between which the timestamps of messages must lie, seconds since the epoch.
    """

    run: RunDir
    nodes: Sequence[NodeId]
    log: MessageLog
    findings: Callable[[str, str], Findings] = Findings
    """Makes the Findings of one invariant, from its name and title."""
    scenario: Scenario | None = None
    meta: Meta | None = None
    faults: Sequence[FaultRow] | None = None
    reasons: tuple[str, ...] = ()
    """Why one of these three is None."""
    unread_events: str = ""
    """Why the events of some node are not known completely; "" if all were read."""
    files: Sequence[NodeFile] = ()
    """Message logs at the end of the run, by ascending node."""
    missing: Sequence[NodeId] = ()
    """Nodes that have none."""
    order: list[Record] = field(default_factory=list)
    """Batches that any node delivered, each once, in the order of their first delivery. Only in simulations."""
    times: tuple[float, float] = ANY_TIME
    bound_s: float = math.inf
    """Within which a client must be served in healthy times. Rule: A9."""
    secrets: Set[str] = frozenset()
    """Tokens of sessions, if they are known: no message may show one."""

    # ---- results of judges, for later judges
    agreement: Check | None = None
    deviating: Sequence[NodeFile] = ()
    """Message logs that are no prefix of `log`."""
    contiguity: Findings | None = None
    """Violations of A2 in the log so far. If there are any, a seq_no says nothing about a place in the log."""
    contiguous: bool = False
    """A2 holds."""
    term_starts: Sequence[tuple[int, SeqNo]] | None = None
    """(term, seq_no of its first message) as the log has them; None if the history could not be used."""
    messages: Outcomes = field(default_factory=Outcomes)

    @property
    def is_foreign(self) -> bool:
        """True if `cluster.command` starts the nodes."""
        return self.scenario is not None and self.scenario.cluster.is_foreign

    @property
    def manifest(self) -> tuple[Meta, Sequence[FaultRow]]:
        """meta.json and faults.jsonl, for judges that need both."""
        assert self.meta is not None and self.faults is not None
        return self.meta, self.faults

    def history(self) -> Iterator[tuple[int, HistoryRow]]:
        """Yield all rows again, with their line numbers."""
        return read_history(self.run.history)

    def has_events(self, node: NodeId) -> bool:
        return self.run.events(node).is_file()

    def event_place(self, node: NodeId, line: int) -> str:
        return f"{self.run.events(node).relative_to(self.run.path)}:{line}"

    def event_quote(self, node: NodeId, line: int) -> Quote:
        return quote(self.event_place(node, line), find_line(self.run.events(node), line) or b"")

    def node_log(self, node: NodeId) -> Path | None:
        """Standard error of the node's processes; None in a simulation."""
        return self.run.node_log(node)


class Judge:
    """One judge. It overrides the on_ methods of the inputs that it needs."""

    invariants: ClassVar[dict[str, str]]
    """Name -> title of each invariant that it decides, in the order of its checks."""
    needs_history: ClassVar[bool] = False
    """Its checks are UNKNOWN if history.jsonl cannot be read to its end."""
    needs_manifest: ClassVar[bool] = False
    """Its checks are UNKNOWN without meta.json and faults.jsonl."""
    events: ClassVar[Set[str]] = frozenset()
    """Names of the events that it needs. It may receive other events too."""
    reads_events: ClassVar[bool] = False
    """Its checks do not PASS unless all events of all nodes were read."""
    needs_faults_first: ClassVar[bool] = False
    """It can take rows only once all faults of the run are known."""

    def __init__(self, case: Case) -> None:
        self.case = case

    def found(self, name: str = "") -> Findings:
        """Return an empty collection for violations of this invariant; by default of the judge's only one."""
        name = name or next(iter(self.invariants))
        return self.case.findings(name, self.invariants[name])

    def on_fault(self, row: FaultRow) -> None:
        """A fault was injected; a fault with a duration has ended now."""

    def on_row(self, place: int, row: HistoryRow) -> None:
        """The next row of the history; `place` is its line number."""

    def on_event(self, line: int, event: EventLine) -> None:
        """The next event of its node; `line` is its line number there."""

    def on_delivered(self, node: NodeId, records: Sequence[Record]) -> None:
        """A node delivered these records. Only in simulations."""

    def on_started(self, node: NodeId, delivered_seq: SeqNo) -> None:
        """A process of this node started; it has delivered up to this seq_no. Only in simulations."""

    def on_exit(self, node: NodeId, end: NodeExit, reason: str) -> None:
        """A process of this node exited; `reason` is the last failure that the node reported, or ""."""

    def on_excess(self, node: NodeId, excess: str) -> None:
        """A node exceeds one of its limits (P1, S7). Only in simulations."""

    def on_broken_promise(self, invariant: str, text: str) -> None:
        """A promise was broken from which a violation of this invariant can follow. Only in simulations."""

    def checks(self) -> list[Check]:
        """Return the checks; called once, after all inputs."""
        return [self.check()]

    def check(self) -> Check:
        """Decide the judge's only invariant."""
        raise NotImplementedError

    def unknown(self, reason: str) -> list[Check]:
        """The checks, all UNKNOWN, if nothing can be decided."""
        return [Findings(name, title).unknown(reason) for name, title in self.invariants.items()]
