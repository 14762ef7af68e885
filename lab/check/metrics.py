"""Throughput, latency, gaps, failover phases and the cost per node, from a run directory alone.

All times come from one CLOCK_MONOTONIC. Memory does not grow with the number of messages: latencies are counted in
buckets whose width is below 0.1 % of their value, the largest is kept exactly.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import msgspec
from msgspec import Struct

from lab.check.availability import (
    FaultKind,
    Silence,
    TermCount,
    Terms,
    add_elections,
    explains,
    fault_kinds,
    windows_of,
)
from lab.check.history import EventLine, read_events, read_fault_rows, read_history, read_meta, read_pieces
from lab.rows import Acked, Failed, FaultRow, Invoke, Meta, Sample, Supervision, Unknown
from lab.rundir import RunDir
from lab.steps import effect_of
from lab.steps.step import Effect

NS_PER_S = 1_000_000_000
NEMESIS_PART = "during the nemesis"
CPU_MESSAGES_MIN = 10_000
"""Below it the nodes' heartbeats and status answers would outweigh the messages."""
_BUCKET_BITS = 11
"""Significant bits of a bucketed latency: 2**-10 is the largest relative width of a bucket."""
_COARSE_BITS = 7
"""The same in metrics.json: 64 entries for each doubling."""
SERIES_MOST = 600
"""Maximum length of a series; a plot has no more pixels."""
_SERIES_LEAST_NS = 20_000_000


class Latency(Struct, frozen=True):
    """Milliseconds from the time when a message was due to its acknowledgement."""

    count: int
    p50_ms: float
    p90_ms: float
    p99_ms: float
    p999_ms: float
    max_ms: float


class Load(Struct, frozen=True):
    """Figures of the clients."""

    sent: int
    acknowledged: int
    rejected: int
    unknown: int
    duration_s: float
    """From the first send to the last send or acknowledgement; if the scenario has a load, of the load alone."""
    throughput_per_s: float
    """Acknowledged messages of that time."""
    payload_bytes: int
    """Bytes of acknowledged payloads, if the history has their size."""
    longest_gap_s: float
    """Longest time without any acknowledgement, from the first send to the last outcome that was not a rejection."""
    longest_gap_at_s: float
    """When it began, seconds after the run's start."""
    latency: Latency | None
    """None: nothing was acknowledged."""


class Failover(Struct, frozen=True):
    """Events after a fault that hit the leader, in milliseconds after it. None: it did not happen."""

    node: int
    fault: str
    at_s: float
    """Seconds after the run's start."""
    suspected_ms: float | None
    """The first node reported a leader timeout."""
    leader_ms: float | None
    """A node became leader of a higher term."""
    leader: int
    acknowledged_ms: float | None
    """The first acknowledgement after that."""


class Segment(Struct, frozen=True):
    """One part of the run: before the first fault, during one, or after it until the next."""

    name: str
    start_s: float
    """Seconds after the run's start."""
    duration_s: float
    acknowledged: int
    throughput_per_s: float
    latency: Latency | None


class NodeCost(Struct, frozen=True):
    """Resources that one node used, all its processes added."""

    node: int
    starts: int
    cpu_s: float
    """From the start of its processes to their end, the run's preparation included."""
    cpu_percent: float | None
    """Of one core, between the samples; None: fewer than two were taken."""
    rss_peak_bytes: int


class Series(Struct, frozen=True):
    """Figures over time: entry i is of acknowledgements from i to i + 1 times bucket_ms after the run's start."""

    bucket_ms: float
    acked: tuple[int, ...]
    """Acknowledged messages of load and `send` steps."""
    p50: tuple[float | None, ...]
    """Of their latencies, ms; None: nothing was acknowledged."""
    p99: tuple[float | None, ...]
    max: tuple[float | None, ...]


class Metrics(Struct, frozen=True):
    """metrics.json."""

    scenario: str
    links: str
    """direct | proxied | kernel."""
    durability: str
    node_count: int
    duration_s: float
    load: Load
    failovers: tuple[Failover, ...]
    segments: tuple[Segment, ...]
    nodes: tuple[NodeCost, ...]
    cpu_us_per_message: float | None
    """CPU of all nodes between the samples around the load, over its acknowledged messages, microseconds.

    None: fewer than CPU_MESSAGES_MIN messages, or no samples."""
    converged_s: float | None
    """After the heal; None: it did not."""
    availability: tuple[FaultKind, ...] = ()
    """Of each kind of fault; empty if the scenario has no faults."""
    terms: Terms = Terms(0, 0, 0)
    disks: str = "direct"
    """direct | layered: file access of the nodes passed through the lab's layer | supervised: through supervisors."""
    supervision: Supervision | None = None
    """The cost of the supervisors."""
    series: Series = Series(0.0, (), (), (), ())
    histogram: tuple[tuple[float, int], ...] = ()
    """(ms, number of messages with at most this latency, and more than the entry before), ascending; the latencies are
    rounded up by at most 1.6 %."""


_NUMBERS = re.compile(rb"\[[\s\d.,null\[\]eE+-]*\]")


def encode_metrics(metrics: Metrics) -> bytes:
    """metrics.json, indented; a list of numbers stands on one line."""
    indented = msgspec.json.format(msgspec.json.encode(metrics), indent=1)
    return _NUMBERS.sub(lambda found: b"".join(found[0].split()), indented) + b"\n"


decode_metrics = msgspec.json.Decoder(Metrics).decode


class Histogram:
    """Counts latencies in buckets; the number of buckets is bounded whatever is added."""

    __slots__ = ("_counts", "count", "largest")

    def __init__(self) -> None:
        self._counts: dict[int, int] = {}
        self.count = 0
        self.largest = 0

    def add(self, value_ns: int, weight: int = 1) -> None:
        """Count `weight` messages with this latency; a negative one counts as 0."""
        value_ns = max(value_ns, 0)
        shift = max(value_ns.bit_length() - _BUCKET_BITS, 0)
        bucket = value_ns >> shift << shift
        self._counts[bucket] = self._counts.get(bucket, 0) + weight
        self.count += weight
        if value_ns > self.largest:
            self.largest = value_ns

    def coarse(self) -> tuple[tuple[float, int], ...]:
        """Return Metrics.histogram."""
        counts: dict[int, int] = {}
        for value, weight in self._counts.items():
            shift = max(value.bit_length() - _COARSE_BITS, 0)
            upper = (value >> shift) + 1 << shift
            counts[upper] = counts.get(upper, 0) + weight
        return tuple((value / 1e6, weight) for value, weight in sorted(counts.items()))

    def merge(self, other: Histogram) -> None:
        for bucket, weight in other._counts.items():
            self._counts[bucket] = self._counts.get(bucket, 0) + weight
        self.count += other.count
        self.largest = max(self.largest, other.largest)

    def percentiles(self, shares: Sequence[float]) -> list[int]:
        """Return the smallest bucket with at least that share of all samples at or below it, for ascending shares in
        0..1.
        """
        found: list[int] = []
        below = 0
        buckets = iter(sorted(self._counts.items()))
        bucket = 0
        for share in shares:
            while below < share * self.count:
                bucket, weight = next(buckets)
                below += weight
            found.append(bucket)
        return found

    def latency(self) -> Latency | None:
        """Return the usual percentiles; None without samples."""
        if not self.count:
            return None
        p50, p90, p99, p999 = (value / 1e6 for value in self.percentiles((0.5, 0.9, 0.99, 0.999)))
        return Latency(self.count, p50, p90, p99, p999, self.largest / 1e6)


# ---- faults and failovers ------------------------------------------------------------------------


@dataclass(slots=True)
class _Hit:
    """The faults of one step, and their consequences."""

    name: str
    t: int
    t_done: int
    leader_fault: FaultRow | None = None
    round: int = 0
    """Of a nemesis."""
    suspected: int = 0
    led: int = 0
    leader: int = 0
    acked: int = 0

    @property
    def over_from(self) -> int:
        """An acknowledgement from this time on shows that the cluster serves clients again; 0: there was no
        such time.
        """
        return self.led if self.leader_fault is not None else self.t_done


def _hits(faults: list[FaultRow]) -> list[_Hit]:
    """The scenario's faults with effect by ascending time, those of one step or one moment as one."""
    hits: list[_Hit] = []
    cause = (-1, 0)
    for row in sorted(faults, key=lambda row: row.t):
        if row.step < 0 or not row.effect:
            continue
        leader_fault = row if row.role == "leader" and effect_of(row.fault) is Effect.DOWN else None
        name = f"{row.fault} node {row.target}" if row.target else row.fault
        if hits and ((row.step, row.round) == cause or row.t < hits[-1].t_done) and leader_fault is None:
            hits[-1].name += f", {name}"
            hits[-1].t_done = max(hits[-1].t_done, row.t_done)
        else:
            hits.append(_Hit(name, row.t, row.t_done, leader_fault, row.round))
        cause = (row.step, row.round)
    return hits


def _election_events(run: RunDir, terms: TermCount) -> list[EventLine]:
    """Leader timeouts, new leaders and failed disks of all nodes by ascending time; terms are counted on the way."""
    events = []
    for node in run.node_ids():
        if run.events(node).is_file():
            for _, event in read_events(run.events(node), node):
                terms.on_event(event)
                if event.event in ("leader_timeout", "became_leader", "failed"):
                    events.append(event)
    return sorted(events, key=lambda event: event.t_ns)


def _add_elections(events: list[EventLine], hits: list[_Hit]) -> None:
    """Fill in when a hit leader was suspected and replaced.

    The lab sees a node's own exit only afterwards, when another node may lead already: such a hit begins when the node
    reported that its disk had failed.
    """
    since = 0
    for hit in hits:
        if hit.leader_fault is not None and hit.leader_fault.fault == "exit":
            own = (event.t_ns for event in events if (event.event, event.node) == ("failed", hit.leader_fault.target))
            hit.t = max((t for t in own if since <= t <= hit.t), default=hit.t)
        since = hit.t
        if hit.leader_fault is None:
            continue
        later = [event for event in events if event.t_ns >= hit.t]
        timeouts = (event for event in later if event.event == "leader_timeout" and explains(hit.leader_fault, event))
        hit.suspected = next((event.t_ns for event in timeouts), 0)
        led = next((event for event in later if event.event == "became_leader"), None)
        if led is not None:
            hit.led, hit.leader = led.t_ns, led.node
            hit.suspected = hit.suspected if hit.suspected <= hit.led else 0


# ---- figures over time ------------------------------------------------------------------------------


class _Curves:
    """Fills a Series while time goes on: only the latencies of the present bucket are kept.

    Args:
        start, end: of the run, ns.
    """

    def __init__(self, start: int, end: int) -> None:
        self._end = end
        self._width = max(-(-(end - start) // SERIES_MOST), _SERIES_LEAST_NS)
        self.ends = start + self._width
        """End of the present bucket, ns."""
        self._present = Histogram()
        self._points: list[tuple[int, float | None, float | None, float | None]] = []

    def take(self, histogram: Histogram) -> None:
        """Add latencies of the present bucket; the histogram may be kept."""
        if self._present.count:
            self._present.merge(histogram)
        else:
            self._present = histogram

    def go_to(self, t: int) -> None:
        """Complete all buckets that end at t or before."""
        while self.ends <= t and len(self._points) < SERIES_MOST - 1:
            self._add()

    def _add(self) -> None:
        present = self._present
        p50 = p99 = top = None
        if present.count:
            p50, p99 = (value / 1e6 for value in present.percentiles((0.5, 0.99)))
            top = present.largest / 1e6
            self._present = Histogram()
        self._points.append((present.count, p50, p99, top))
        self.ends += self._width

    def series(self) -> Series:
        """Complete all buckets of the run; return them."""
        self.go_to(self._end - 1)
        self._add()
        acked, p50, p99, top = zip(*self._points, strict=True)
        return Series(self._width / 1e6, acked, p50, p99, top)


# ---- the walk over the history --------------------------------------------------------------------


@dataclass(slots=True)
class Session:
    """A session's messages without an outcome, and the last n that is acknowledged."""

    waiting: deque[Invoke] = field(default_factory=deque)
    acked: int = 0
    is_load: bool = False


@dataclass(slots=True)
class _Part:
    """A segment that is still being filled."""

    name: str
    start: int
    end: int = 0
    histogram: Histogram = field(default_factory=Histogram)


class _Walk:
    """Computes the figures in one pass over the history."""

    def __init__(self, hits: list[_Hit], has_load: bool, silence: Silence, curves: _Curves) -> None:
        self.hits, self._has_load, self._silence, self.curves = hits, has_load, silence, curves
        self._fresh = Histogram()
        """Latencies since the present segment and the present bucket of the curves began."""
        self._next_hit = 0
        self._sessions: dict[str, Session] = {}
        self.sent = self.acked = self.rejected = self.unknown = 0
        self.load_acked = self.payload_bytes = 0
        self.first_sent = self.last_sent = self.last_acked = 0
        self.gap = self.gap_at = 0
        self.parts = [_Part("start", 0)]

    def on_invoke(self, row: Invoke) -> None:
        session = self._sessions.get(row.session)
        if session is None:
            is_load = row.gen is not None or not self._has_load
            session = self._sessions[row.session] = Session(is_load=is_load)
        session.waiting.append(row)
        self.sent += row.count
        if session.is_load:
            self.first_sent, self.last_sent = self.first_sent or row.t, row.t
        if not self.parts[0].start:
            self.parts[0].start = row.t

    def on_acked(self, row: Acked) -> None:
        session = self._sessions.get(row.session)
        if session is None or row.n <= session.acked:
            return
        self.go_to(row.t)
        if row.t >= self.curves.ends:
            self._settle_fresh()
            self.curves.go_to(row.t)
        count = row.n - session.acked
        self.acked += count
        histogram = self._fresh
        if session.is_load:
            self.load_acked += count
            self.payload_bytes += settle(session, row, histogram)
            self._end_silence(row.t, by_ack=True)
        else:
            settle(session, row, histogram)
        session.acked = row.n
        self._after_hit(row.t)

    def on_unknown(self, row: Unknown) -> None:
        self.unknown += row.count
        session = self._sessions.get(row.session)
        if session is not None and session.is_load:
            self._end_silence(row.t, by_ack=False)

    def _end_silence(self, t: int, *, by_ack: bool) -> None:
        """Take an acknowledgement of the load, or the end of a client's wait for one."""
        before = self.last_acked or self.first_sent
        if t - before > self.gap:
            self.gap, self.gap_at = t - before, before
        self._silence.end(before, t, by_ack=by_ack)
        if by_ack:
            self.last_acked = t

    def go_to(self, t: int) -> None:
        """Begin the segments of all faults before t."""
        while self._next_hit < len(self.hits) and self.hits[self._next_hit].t <= t:
            hit = self.hits[self._next_hit]
            if not hit.round:
                self._begin(f"during {hit.name}", hit.t)
            elif self.parts[-1].name != NEMESIS_PART:  # its faults are too many for parts of their own
                self._begin(NEMESIS_PART, hit.t)
            self._next_hit += 1

    def _after_hit(self, t: int) -> None:
        """The first acknowledgement after a fault ends its `during` and begins its `after`."""
        if not self._next_hit:
            return
        hit = self.hits[self._next_hit - 1]
        if not hit.acked and hit.over_from and t >= hit.over_from:
            hit.acked = t
            if not hit.round:
                self._begin(f"after {hit.name}", t)

    def _settle_fresh(self) -> None:
        self.parts[-1].histogram.merge(self._fresh)
        self.curves.take(self._fresh)
        self._fresh = Histogram()

    def end(self, t: int) -> None:
        """Complete everything; t: of the last row."""
        self.go_to(t)
        self._settle_fresh()

    def _begin(self, name: str, t: int) -> None:
        self._settle_fresh()
        self.parts[-1].end = t
        self.parts.append(_Part(name, t))


def settle(session: Session, row: Acked, histogram: Histogram) -> int:
    """Count the latency of all messages that the row acknowledges; return their bytes of payload, as far as known."""
    size = 0
    waiting = session.waiting
    first = session.acked + 1
    while waiting and waiting[0].n <= row.n:
        sent = waiting[0]
        last = min(sent.n + sent.count - 1, row.n)
        start = max(sent.n, first)
        count = last - start + 1
        if count > 0:
            if sent.every:
                for offset in range(start - sent.n, last - sent.n + 1):
                    histogram.add(row.t - sent.intended - offset * sent.every)
            else:
                histogram.add(row.t - sent.intended, count)
            if sent.gen is not None:
                size += count * sent.gen.size
            else:
                size += sum(len(text.encode()) for text in sent.payloads[start - sent.n : last - sent.n + 1])
        if last < sent.n + sent.count - 1:
            break
        waiting.popleft()
    return size


class _Window(Histogram):
    """Counts only messages that were due in a part of the run; `t` is the time of the acknowledgement."""

    __slots__ = ("end", "start", "t")

    def __init__(self, start: float, end: float) -> None:
        super().__init__()
        self.start, self.end, self.t = start, end, 0

    def add(self, value_ns: int, weight: int = 1) -> None:
        if self.start <= self.t - value_ns < self.end:
            super().add(value_ns, weight)


def latencies_between(run: RunDir, start: float, end: float) -> tuple[Histogram, int]:
    """Return the latencies, in ns, of the messages that should have been sent from start to before end, and their
    number.

    If the scenario has a load, only its messages count, as for the other figures.

    Raises:
        RunFileError: history.jsonl cannot be read.
    """
    window, sent = _Window(start, end), 0
    if not run.history.is_file():
        return window, sent
    has_load, sessions = _has_load(run), dict[str, Session]()
    for _, row in read_history(run.history):
        if isinstance(row, Invoke) and (row.gen is not None or not has_load):
            sessions.setdefault(row.session, Session()).waiting.append(row)
            sent += sum(start <= row.intended + i * row.every < end for i in range(row.count))
        elif isinstance(row, Acked) and (session := sessions.get(row.session)) and row.n > session.acked:
            window.t = row.t
            settle(session, row, window)
            session.acked = row.n
    return window, sent


def measure(run: RunDir) -> Metrics:
    """All figures of a run.

    Raises:
        RunFileError: meta.json, history.jsonl, faults.jsonl or a node's events are not readable.
    """
    meta = read_meta(run.meta)
    faults, terms = read_fault_rows(run.faults), TermCount()
    hits, windows = _hits(faults), windows_of(faults)
    events = _election_events(run, terms)
    _add_elections(events, hits)
    add_elections(windows, events)
    curves = _Curves(meta.t_start, meta.t_end)
    walk = _Walk(hits, run.history.is_file() and _has_load(run), Silence(windows), curves)
    if run.history.is_file():
        _follow(run, walk)
    whole = Histogram()
    for part in walk.parts:
        whole.merge(part.histogram)
    return Metrics(
        scenario=meta.scenario,
        links=meta.links,
        disks=meta.disks,
        supervision=meta.supervision,
        durability=str(meta.cluster.get("durability", "unknown")),
        node_count=len(meta.nodes),
        duration_s=(meta.t_end - meta.t_start) / NS_PER_S,
        load=_load(walk, meta, whole.latency()),
        failovers=tuple(_failover(hit, meta) for hit in hits if hit.leader_fault is not None),
        segments=_segments(walk, meta) if hits else (),
        nodes=_costs(meta),
        cpu_us_per_message=_cpu_per_message(walk, meta),
        converged_s=meta.convergence.took_s if meta.convergence is not None and meta.convergence.reached else None,
        availability=fault_kinds(windows),
        terms=terms.terms(),
        series=curves.series(),
        histogram=whole.coarse(),
    )


def _has_load(run: RunDir) -> bool:
    """Whether the history has messages of a load, whose payloads are made by a rule."""
    return any(b'"gen":' in piece.data for piece in read_pieces(run.history))


def _follow(run: RunDir, walk: _Walk) -> None:
    t = 0
    for _, row in read_history(run.history):
        t = row.t
        match row:
            case Invoke():
                walk.on_invoke(row)
            case Acked():
                walk.on_acked(row)
            case Failed():
                walk.rejected += row.count
            case Unknown():
                walk.on_unknown(row)
            case _:
                pass
    walk.end(t)


def _load(walk: _Walk, meta: Meta, latency: Latency | None) -> Load:
    duration = (max(walk.last_sent, walk.last_acked) - walk.first_sent) / NS_PER_S if walk.last_acked else 0.0
    return Load(
        sent=walk.sent,
        acknowledged=walk.acked,
        rejected=walk.rejected,
        unknown=walk.unknown,
        duration_s=duration,
        throughput_per_s=walk.load_acked / duration if duration else 0.0,
        payload_bytes=walk.payload_bytes,
        longest_gap_s=walk.gap / NS_PER_S,
        longest_gap_at_s=max(walk.gap_at - meta.t_start, 0) / NS_PER_S,
        latency=latency,
    )


def _failover(hit: _Hit, meta: Meta) -> Failover:
    def after_ms(t: int) -> float | None:
        return (t - hit.t) / 1e6 if t else None

    assert hit.leader_fault is not None
    return Failover(
        node=hit.leader_fault.target,
        fault=hit.leader_fault.fault,
        at_s=(hit.t - meta.t_start) / NS_PER_S,
        suspected_ms=after_ms(hit.suspected),
        leader_ms=after_ms(hit.led),
        leader=hit.leader,
        acknowledged_ms=after_ms(hit.acked),
    )


def _segments(walk: _Walk, meta: Meta) -> tuple[Segment, ...]:
    walk.parts[0].start = walk.parts[0].start or meta.t_start  # Nothing may have been sent.
    walk.parts[-1].end = max(walk.last_acked, walk.parts[-1].start)
    walk.parts[0].name = f"before {walk.hits[0].name if not walk.hits[0].round else 'the nemesis'}"
    return tuple(_segment(part, meta) for part in walk.parts)


def _segment(part: _Part, meta: Meta) -> Segment:
    duration = max(part.end - part.start, 0) / NS_PER_S
    count = part.histogram.count
    return Segment(
        name=part.name,
        start_s=max(part.start - meta.t_start, 0) / NS_PER_S,
        duration_s=duration,
        acknowledged=count,
        throughput_per_s=count / duration if duration else 0.0,
        latency=part.histogram.latency(),
    )


def _sampled_cpu(meta: Meta, since: int, until: int) -> dict[int, tuple[float, float]]:
    """Node -> (CPU seconds, seconds) between the samples that enclose since..until; nodes without two are missing."""
    used: dict[int, tuple[float, float]] = {}
    before: dict[int, Sample] = {}
    for sample in sorted(meta.samples, key=lambda sample: sample.t):
        last = before.get(sample.node)
        before[sample.node] = sample
        if last is None or sample.t < since or last.t > until:
            continue
        # A value that fell is a new process: all of it came since the last sample.
        cpu_s = sample.cpu_s - last.cpu_s if sample.cpu_s >= last.cpu_s else sample.cpu_s
        total, span = used.get(sample.node, (0.0, 0.0))
        used[sample.node] = (total + cpu_s, span + (sample.t - last.t) / NS_PER_S)
    return used


def _cpu_per_message(walk: _Walk, meta: Meta) -> float | None:
    if walk.load_acked < CPU_MESSAGES_MIN:
        return None
    used = _sampled_cpu(meta, walk.first_sent, walk.last_acked)
    if not used:
        return None
    return sum(cpu_s for cpu_s, _ in used.values()) * 1e6 / walk.load_acked


def _costs(meta: Meta) -> tuple[NodeCost, ...]:
    used = _sampled_cpu(meta, meta.t_start, meta.t_end)
    costs = []
    for node, use in sorted(meta.nodes.items()):
        cpu_s, span = used.get(node, (0.0, 0.0))
        percent = 100 * cpu_s / span if span else None
        costs.append(NodeCost(node, use.starts, use.cpu_s, percent, use.rss_peak_bytes))
    return tuple(costs)
