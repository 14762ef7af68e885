"""What a page shows of a run at one moment, as a pure function of the rows so far. Times on the page are seconds since
the first row.
"""

from __future__ import annotations

from collections import deque
from dataclasses import asdict, dataclass, field
from typing import Any, Final

from lab.check.metrics import Histogram, Session, settle
from lab.rows import (
    Acked,
    End,
    Failed,
    FaultChange,
    FaultRow,
    Found,
    HistoryRow,
    Invoke,
    Judged,
    LiveRow,
    Members,
    NodeSample,
    NodeStatus,
    Phase,
    ProcessChange,
    StepStart,
    Unknown,
)
from lab.steps import effect_of
from lab.steps.step import Effect
from lab.watch.sources import NodeEvent
from nodeproc.core.messages import NodeId

NS_PER_S: Final = 1_000_000_000
MOST_NEWS: Final = 2000
"""The latest of the things that happened; older ones are dropped."""
SHOWN_EVENTS: Final = frozenset(
    {"leader_timeout", "election_started", "became_candidate", "vote_granted", "became_leader", "became_follower"}
    | {"starting", "node_readmitted", "unknown_member_refused"}
    | {"disk_stalled", "failed", "damage_found", "damage_repaired"}
)
"""Events of nodes that are news to an audience."""


@dataclass(slots=True)
class NodePicture:
    """A node: the state of its process, and its last answer to STATUS."""

    state: str = "down"
    role: str = ""
    term: int = 0
    leader: int = 0
    last: int = 0
    commit: int = 0
    delivered: int = 0
    address: str = ""


@dataclass(slots=True)
class Window:
    """A fault in force, since and until (None: it still is), in the words of the scenario.

    down: the node that it took down; 0: none.
    """

    since: float
    until: float | None
    text: str
    down: int = 0


class Picture:
    """See the module's docstring."""

    def __init__(self) -> None:
        self.nodes: dict[NodeId, NodePicture] = {}
        self.about: dict[str, Any] = {}
        self.step: dict[str, Any] = {}
        self.windows: dict[int, Window] = {}
        """Number of a fault -> when it was in force."""
        self.outcome = self.problem = ""
        self.ended = False
        self.now = 0.0
        self.news: deque[dict[str, Any]] = deque(maxlen=MOST_NEWS)
        self.told = 0
        """Number of news so far."""
        self._start = 0
        self._is_last = False
        self._rules: dict[tuple[int, int], tuple[int, str]] = {}
        """Link -> (number of the fault, its words): the newest rule."""

    def seconds(self, t: int) -> float:
        return round((t - self._start) / NS_PER_S, 4)

    def take(self, t: int, row: LiveRow) -> None:
        """Take one row of live.jsonl. t: its time."""
        if isinstance(row, Members):
            self._start = row.t
            self.about = {"scenario": row.scenario, "kind": row.kind, "seed": row.seed}
            self.nodes = {node: NodePicture(address=address) for node, address in row.nodes.items()}
        self.now = max(self.now, self.seconds(t)) if t else self.now
        match row:
            case ProcessChange():
                self._on_process(row)
            case NodeStatus():
                node = self.nodes[row.node]
                node.role, node.term, node.leader = row.role, row.term, row.leader
                node.last, node.commit, node.delivered = row.last_seq, row.commit_seq, row.delivered_seq
            case FaultChange():
                self._on_fault(row.number, row.begins, row.row)
            case StepStart():
                self.step = {"index": row.index, "of": row.of, "text": row.text, "say": row.say or row.name}
                self._tell(t, 0, "step", row.text)
            case Found() if not row.met:
                self._tell(t, 0, "missed", f"{row.text}: {row.found}")
            case End():
                self.ended, self.problem = True, row.problem
                self._tell(t, 0, "end", row.problem or "the run has ended")
            case Judged():
                self.outcome = row.outcome
            case Phase(phase="converged" | "diverged"):
                self._on_last_picture(row.phase)
            case Found() | Phase() | NodeSample() | Members():
                pass

    def take_event(self, event: NodeEvent) -> None:
        """Take an event of a node."""
        if event.kind in SHOWN_EVENTS:
            self._tell(event.t, event.node, event.kind, event.text)

    def _on_last_picture(self, phase: str) -> None:
        """The lab ends the nodes: what they show now stays. Converged nodes have delivered the same messages."""
        self._is_last = True
        up = [node for node in self.nodes.values() if node.state == "up"]
        for node in up if phase == "converged" else ():
            node.delivered = max(each.delivered for each in up)

    def _on_process(self, row: ProcessChange) -> None:
        if self._is_last and not row.because:
            return
        node = self.nodes[row.node]
        node.state = row.state
        if row.state != "up":
            node.role = ""
        if row.because:
            self._tell(row.t, row.node, "exit", f"exits with code {row.code}: {row.because}")

    def _on_fault(self, number: int, begins: bool, row: FaultRow) -> None:
        text = row.asked or row.fault
        if begins or number not in self.windows:
            self._tell(row.t, row.target, row.fault, text)
        effect = effect_of(row.fault)
        if effect in (Effect.LINKS, Effect.SLOW, Effect.DOWN) and number not in self.windows:
            down = row.target if effect is Effect.DOWN else 0
            self.windows[number] = Window(self.seconds(row.t), None, text, down)
        if effect in (Effect.LINKS, Effect.SLOW) and not begins:
            self.windows[number].until = self.seconds(row.t_healed or row.t_done)
        if effect is Effect.UP and row.moved:
            for window in self.windows.values():
                if window.down == row.target and window.until is None:
                    window.until = self.seconds(row.t_done)
        if effect is Effect.LINKS and begins:
            self._rules |= dict.fromkeys([(a, b) for a, b in row.evidence.get("pairs", ())], (number, text))
        elif effect is Effect.LINKS:
            self._rules = {pair: rule for pair, rule in self._rules.items() if rule[0] != number}

    def _tell(self, t: int, node: NodeId, kind: str, text: str) -> None:
        self.told += 1
        self.news.append({"id": self.told, "s": self.seconds(t), "node": node, "kind": kind, "text": text})

    def plain(self) -> dict[str, Any]:
        """Return the picture as a JSON object, without the news."""
        return {
            **self.about,
            "now": self.now,
            "nodes": [{"id": node, **asdict(each)} for node, each in self.nodes.items()],
            "rules": [{"from": a, "to": b, "text": text} for (a, b), (_, text) in sorted(self._rules.items())],
            "windows": [asdict(each) for each in self.windows.values()],
            "step": self.step,
            "ended": self.ended,
            "problem": self.problem,
            "outcome": self.outcome,
        }


BUCKET_S: Final = 0.1
MOST_BUCKETS: Final = 600


@dataclass(slots=True)
class Bucket:
    """The latencies of the messages acknowledged in a tenth of a second. shown: (p50, p99) in ms, if computed."""

    histogram: Histogram = field(default_factory=Histogram)
    shown: tuple[float | None, float | None] | None = None

    def percentiles(self) -> tuple[float | None, float | None]:
        if self.shown is None:
            p50, p99 = self.histogram.percentiles((0.5, 0.99)) if self.histogram.count else (None, None)
            self.shown = (_ms(p50), _ms(p99))
        return self.shown


def _ms(ns: int | None) -> float | None:
    """Return milliseconds with the three digits that the histogram is good for."""
    return None if ns is None else float(f"{ns / 1e6:.3g}")


class Figures:
    """Throughput and latency over time, from the rows of the clients, as the judges compute them."""

    def __init__(self) -> None:
        self.start = 0
        """The time of the first row, ns; 0 before it."""
        self.acked = self.waiting = 0
        self._buckets: deque[Bucket] = deque(maxlen=MOST_BUCKETS)
        self._first = 0
        """Number of the oldest bucket."""
        self._sessions: dict[str, Session] = {}

    def take(self, row: HistoryRow) -> None:
        self.start = self.start or row.t
        match row:
            case Invoke():
                self.waiting += row.count
                self._sessions.setdefault(row.session, Session()).waiting.append(row)
            case Failed() | Unknown():
                self.waiting -= row.count
            case Acked() if (session := self._sessions.get(row.session)) and row.n > session.acked:
                count = row.n - session.acked
                self.acked += count
                self.waiting -= count
                bucket = self._bucket(row.t)
                settle(session, row, bucket.histogram)
                session.acked, bucket.shown = row.n, None

    def _bucket(self, t: int) -> Bucket:
        number = int((t - self.start) / (BUCKET_S * NS_PER_S))
        while number >= self._first + len(self._buckets):
            self._first += len(self._buckets) == MOST_BUCKETS
            self._buckets.append(Bucket())
        return self._buckets[max(0, number - self._first)]

    def plain(self, offset_s: float) -> dict[str, Any]:
        """Return the series as a JSON object.

        Args:
            offset_s: the time of the first row of the clients on the page.
        """
        shown = [each.percentiles() for each in self._buckets]
        return {
            "acked": self.acked,
            "waiting": self.waiting,
            "bucket_s": BUCKET_S,
            "from_s": round(offset_s + self._first * BUCKET_S, 3),
            "rate": [round(each.histogram.count / BUCKET_S) for each in self._buckets],
            "p50": [p50 for p50, _ in shown],
            "p99": [p99 for _, p99 in shown],
        }
