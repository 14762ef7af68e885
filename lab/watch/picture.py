"""What a page shows of a run at one moment, as a pure function of the rows so far. Times on the page are seconds since
the first row.
"""

from __future__ import annotations

from collections import deque
from dataclasses import asdict, dataclass, field
from typing import Any, Final

from lab.rows import (
    Acked,
    End,
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
    | {"starting", "node_readmitted", "stranger_refused", "disk_stalled", "failed", "damage_found", "damage_repaired"}
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
            case Found() | Phase() | NodeSample() | Members():
                pass

    def take_event(self, event: NodeEvent) -> None:
        """Take an event of a node."""
        if event.kind in SHOWN_EVENTS:
            self._tell(event.t, event.node, event.kind, event.text)

    def _on_process(self, row: ProcessChange) -> None:
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
SAMPLES: Final = 500
"""Latencies that a bucket keeps for its percentiles; of more, every second one is dropped."""


@dataclass(slots=True)
class Bucket:
    """A tenth of a second: acknowledged messages, and a sample of their latencies, ms."""

    acked: int = 0
    latencies: list[float] = field(default_factory=list)


class Figures:
    """Throughput and latency over time, from the rows of the clients."""

    def __init__(self) -> None:
        self._start = 0
        self._buckets: deque[Bucket] = deque(maxlen=MOST_BUCKETS)
        self._first = 0
        """Number of the oldest bucket."""
        self._sent: dict[str, deque[Invoke]] = {}
        """Session -> what has no outcome yet."""
        self._done: dict[str, int] = {}
        self.acked = self.sent = 0

    def take(self, row: HistoryRow) -> None:
        if not self._start:
            self._start = row.t
        if isinstance(row, Invoke):
            self.sent += row.count
            self._sent.setdefault(row.session, deque()).append(row)
        elif isinstance(row, Acked):
            self._on_acked(row)

    def _on_acked(self, row: Acked) -> None:
        waiting, done = self._sent.get(row.session, deque()), self._done.get(row.session, 0)
        count = max(0, row.n - done)
        self._done[row.session] = max(done, row.n)
        self.acked += count
        bucket = self._bucket(row.t)
        bucket.acked += count
        while waiting and waiting[0].n <= row.n:
            invoke = waiting[0]
            bucket.latencies.append((row.t - invoke.intended) / 1e6)
            if invoke.n + invoke.count - 1 > row.n:
                break
            waiting.popleft()
        if len(bucket.latencies) > SAMPLES:
            del bucket.latencies[::2]

    def _bucket(self, t: int) -> Bucket:
        number = int((t - self._start) / (BUCKET_S * NS_PER_S))
        while number >= self._first + len(self._buckets):
            self._first += len(self._buckets) == MOST_BUCKETS
            self._buckets.append(Bucket())
        return self._buckets[max(0, number - self._first)]

    def plain(self, offset_s: float) -> dict[str, Any]:
        """Return the series as a JSON object.

        Args:
            offset_s: the time of the first row of the clients on the page.
        """
        ordered = [sorted(each.latencies) for each in self._buckets]
        return {
            "acked": self.acked,
            "waiting": self.sent - self.acked,
            "bucket_s": BUCKET_S,
            "from_s": round(offset_s + self._first * BUCKET_S, 3),
            "rate": [round(each.acked / BUCKET_S) for each in self._buckets],
            "p50": [_share(each, 0.5) for each in ordered],
            "p99": [_share(each, 0.99) for each in ordered],
        }

    @property
    def start(self) -> int:
        """The time of the first row of the clients; 0 before it."""
        return self._start


def _share(ordered: list[float], share: float) -> float | None:
    return round(ordered[min(len(ordered) - 1, int(share * len(ordered)))], 3) if ordered else None
