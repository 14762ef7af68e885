"""Online checks: the judges of lab.check.judges, fed by a simulation while it runs. The first violation stops it.

So a seed without a violation leaves no files. A seed with one is simulated again into a run directory, where the same
judges read the files.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from lab.check.history import Chunk, EventLine, LogLine, MessageLog, NodeFile, decode_chunk, encode_line
from lab.check.judge import Case, Judge
from lab.check.judges import JUDGES
from lab.check.verdict import Check, Findings, Quote
from lab.plan.scenario import Scenario
from lab.rows import FaultRow, HistoryRow, Invoke, Meta, NodeExit
from lab.rundir import RunDir
from lab.words import EVENTS
from nodeproc.core.events import Event
from nodeproc.core.messages import NodeId, Record, SeqNo


class Broken(Exception):
    """An invariant does not hold. args: (invariant, the observation)."""

    @property
    def invariant(self) -> str:
        return str(self.args[0])

    @property
    def text(self) -> str:
        return str(self.args[1])


class StopAtFirst(Findings):
    """Findings of which the first raises Broken."""

    def add(self, place: str, message: str, *lines: Quote) -> None:
        raise Broken(self.name, message)


class OnlineChecks:
    """Passes everything that happens in a simulation to the judges.

    Args:
        clock: the time, ns.
        secrets: the tokens of the clients' sessions; more may come.
        findings: StopAtFirst, or Findings to go on and have every violation in the Checks of finish().
    """

    def __init__(
        self,
        scenario: Scenario,
        clock: Callable[[], int],
        secrets: Set[str],
        findings: type[Findings] = StopAtFirst,
    ) -> None:
        order: list[Record] = []
        self.rows: list[HistoryRow] = []
        self._clock = clock
        self._case = _Simulation(
            RunDir(Path()),
            scenario.cluster.ids,
            _Delivered(order),
            findings,
            scenario=scenario,
            order=order,
            bound_s=float(scenario.bounds.recovery),
            secrets=secrets,
            rows=self.rows,
        )
        self._judges = {judge: judge(self._case) for judge in JUDGES if not judge.needs_faults_first}
        self._on_row = self._takers("on_row")
        self._on_delivered = self._takers("on_delivered")
        self._kept: list[EventLine] = []
        """Events for the judges that need all faults first."""
        self._latest: dict[NodeId, Event] = {}
        """Node -> the latest of its events that a judge wants."""

    def _takers(self, name: str) -> list[Callable[..., None]]:
        """Return the methods of this name that judges override."""
        base = getattr(Judge, name)
        return [getattr(each, name) for judge, each in self._judges.items() if getattr(judge, name) is not base]

    def on_row(self, row: HistoryRow) -> None:
        self.rows.append(row)
        place = len(self.rows)
        for take in self._on_row:
            take(place, row)

    def on_event(self, node: NodeId, event: Event) -> None:
        """Take an event of any log level. Repetitions of a node's latest event, such as heartbeats, are ignored."""
        name = _WANTED.get(type(event))
        if name is not None and self._latest.get(node) != event:
            self._latest[node] = event
            fields = {name: getattr(event, name) for name in _JUDGED_FIELDS if hasattr(event, name)}
            line = EventLine(self._clock(), node, name, **fields)
            for judge in self._judges.values():
                judge.on_event(0, line)
            if name in _KEPT:
                self._kept.append(line)

    def on_fault(self, row: FaultRow) -> None:
        for judge in self._judges.values():
            judge.on_fault(row)

    def on_delivered(self, node: NodeId, records: Sequence[Record]) -> None:
        for take in self._on_delivered:
            take(node, records)

    def on_started(self, node: NodeId, delivered_seq: SeqNo) -> None:
        for judge in self._judges.values():
            judge.on_started(node, delivered_seq)

    def on_exit(self, node: NodeId, end: NodeExit, reason: str) -> None:
        for judge in self._judges.values():
            judge.on_exit(node, end, reason)

    def on_excess(self, node: NodeId, excess: str) -> None:
        for judge in self._judges.values():
            judge.on_excess(node, excess)

    def on_broken_promise(self, invariant: str, text: str) -> None:
        for judge in self._judges.values():
            judge.on_broken_promise(invariant, text)

    @property
    def sent(self) -> int:
        """Messages that clients handed to the client library so far."""
        return sum(row.count for row in self.rows if isinstance(row, Invoke))

    def finish(self, meta: Meta, faults: Sequence[FaultRow], logs: dict[NodeId, bytes]) -> list[Check]:
        """Decide about the whole run.

        Args:
            faults: by ascending time, each with its evidence and end. logs: node -> its message log.

        Raises:
            Broken: with StopAtFirst.
        """
        case = self._case
        case.meta, case.faults = meta, faults
        for node, data in sorted(logs.items()):
            path = case.run.message_log(node)
            case.files = [*case.files, NodeFile(node, path, str(path), len(data), data)]
        return [check for judge in JUDGES for check in (self._judges.get(judge) or self._late(judge)).checks()]

    def release(self) -> None:
        """Drop all inputs: the reference cycles of a simulation would keep them until the next garbage collection."""
        self._judges.clear()
        self.rows.clear()
        self._case.order.clear()
        self._on_row, self._on_delivered = [], []

    def _late(self, judge: type[Judge]) -> Judge:
        """Feed events and history to a judge that needed all faults first."""
        late = judge(self._case)
        for event in self._kept:
            late.on_event(0, event)
        for place, row in self._case.history():
            late.on_row(place, row)
        return late


_WANTED: Final[dict[type[Event], str]] = {EVENTS[name]: name for judge in JUDGES for name in judge.events}
"""Kinds of event that a judge decides by, with their names."""
_KEPT: Final = {name for judge in JUDGES if judge.needs_faults_first for name in judge.events}
_JUDGED_FIELDS: Final = EventLine.__struct_fields__[3:]


@dataclass(slots=True)
class _Simulation(Case):
    """A run whose files are not written."""

    rows: Sequence[HistoryRow] = field(kw_only=True)

    def history(self) -> Iterator[tuple[int, HistoryRow]]:
        return enumerate(self.rows, 1)

    def has_events(self, node: NodeId) -> bool:
        return True

    def event_quote(self, node: NodeId, line: int) -> Quote:
        return Quote(self.event_place(node, line), "")

    def node_log(self, node: NodeId) -> None:
        return None


class _Delivered(MessageLog):
    """The log of a simulation that is under way: the lines of all batches that any node has delivered so far.

    Args:
        order: as Case.order.
    """

    def __init__(self, order: Sequence[Record]) -> None:
        super().__init__(Path("delivered"), "delivered")
        self._order = order
        self._handed_out = 0
        """Batches of the order."""
        self._lines: list[LogLine] = []
        """The lines of these batches."""
        self._data, self._joined = bytearray(), 0
        """Bytes of the log as far as any were read: those of so many batches."""

    def next_chunk(self) -> Chunk | None:
        batches = self._order[self._handed_out :]
        if not batches:
            return None
        self._handed_out += len(batches)
        chunk = decode_chunk(self.line_count + 1, b"".join([record.raw[record.body_at :] for record in batches]))
        self._lines += chunk.lines
        self.line_count = len(self._lines)
        return chunk

    def find(self, seq_no: SeqNo) -> LogLine | None:
        return self._lines[seq_no - 1] if 0 < seq_no <= self.line_count else None

    def lines_of(self, msg_ids: Set[str]) -> dict[str, int]:
        return {line.msg_id: line.seq_no for line in reversed(self._lines) if line.msg_id in msg_ids}

    def read(self, offset: int, size: int) -> bytes:
        for record in self._order[self._joined :]:
            self._data += record.body
        self._joined = len(self._order)
        return bytes(self._data[offset : offset + size])

    @property
    def length(self) -> int:
        return self._order[-1].position.seq_no if self._order else 0

    def text(self, line: int) -> bytes:
        return encode_line(self._lines[line - 1])
