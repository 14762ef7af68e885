"""Sections throughput, closed and open: rates of messages and their latencies."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from lab.bench import floor
from lab.bench.figures import Collected
from lab.bench.runs import LEADER_OF_THREE, Ran, Runs
from lab.plan.scenario import Cluster, Load
from lab.words import Duration, Target, counted

WINDOW = 20_000
"""Messages in flight of one client, for a pipelined load."""
WINDOW_BYTES = 16 << 20
"""Limit of the bytes in flight of all clients together."""
SHARES = (25, 50, 75, 90)
"""Rates of the open loop, in per cent of the measured maximum."""
FOLLOWERS: Target = (1, 2)
MEASURED_MAXIMUM = "100 B, 1 client on the leader"


@dataclass(frozen=True, slots=True)
class Pipelined:
    """One case of the throughput section."""

    size: int = 100
    clients: int = 1
    via: Target = LEADER_OF_THREE
    where: str = "on the leader"
    nodes: int = 3
    durability: Literal["fsync", "os"] = "fsync"

    @property
    def name(self) -> str:
        size = f"{self.size} B" if self.size < 1024 else f"{self.size >> 10} KiB"
        people = counted(self.clients, "client")
        nodes = "" if self.nodes == 3 else f", {self.nodes} nodes"
        durability = "" if self.durability == "fsync" else ", durability os"
        return f"{size}, {people} {self.where}{nodes}{durability}"

    def load(self, count: int) -> Load:
        in_flight = max(min(WINDOW, WINDOW_BYTES // self.size // self.clients), 64)
        return Load(clients=self.clients, in_flight=in_flight, count=count, size=self.size, via=self.via)


CASES: tuple[Pipelined, ...] = (
    Pipelined(),
    Pipelined(size=16),
    Pipelined(size=1024),
    Pipelined(size=16 << 10),
    Pipelined(clients=4),
    Pipelined(via=FOLLOWERS, where="on a follower"),
    Pipelined(clients=4, via=FOLLOWERS, where="on followers"),
    Pipelined(clients=4, via="all", where="spread"),
    Pipelined(nodes=5, via=5),
    Pipelined(nodes=7, via=7),
    Pipelined(durability="os"),
)
QUICK_CASES = (CASES[0], CASES[2], CASES[7])


def count_of(case: Pipelined, quick: bool) -> int:
    """Return the number of messages of one run, which take one or two seconds."""
    most = 100_000 if quick else 400_000
    return max(most * 100 // max(case.size, 100), 4000)


def throughput(into: Collected, runs: Runs, quick: bool) -> None:
    """Measure every case once: rate, CPU, bytes written, memory."""
    for case in QUICK_CASES if quick else CASES:
        cluster = Cluster(nodes=case.nodes, durability=case.durability)
        ran = runs.load("bench_throughput", case.load(count_of(case, quick)), cluster)
        load = ran.metrics.load
        comparable = case.size == 100 and case.nodes == 3 and case.durability == "fsync"
        into.add(
            "throughput",
            case.name,
            "messages/s",
            load.throughput_per_s,
            "more",
            floor.PIPELINED if comparable else "",
        )
        _add_costs(into, "throughput", case.name, ran, floor.PIPELINED_COST if comparable else "")
        into.add("throughput", case.name, "bytes written a node/byte", _amplification(ran))
        into.add("throughput", case.name, "peak MiB a node", ran.rss_peak_bytes / (1 << 20))


def _add_costs(into: Collected, section: str, name: str, ran: Ran, floor_name: str = "") -> None:
    cost = ran.metrics.cpu_us_per_message
    if cost is not None:
        into.add(section, name, "CPU µs/message", cost, floor=floor_name)


def _amplification(ran: Ran) -> float:
    """Return the average bytes that one node writes for a byte of payload."""
    return ran.written_bytes / ran.metrics.node_count / ran.metrics.load.payload_bytes


def closed(into: Collected, runs: Runs, quick: bool) -> None:
    """Measure clients with one message in flight each: one on the leader, or many on all nodes."""
    for clients in (1, 64) if quick else (1, 16, 64, 1000):
        name = counted(clients, "client")
        via: Target = LEADER_OF_THREE if clients == 1 else "all"
        duration = Duration(2 if quick else 4)
        ran = runs.load("bench_closed", Load(clients=clients, in_flight=1, duration=duration, via=via))
        against = {64: floor.SIXTY_FOUR}.get(clients, "")
        into.add("closed", name, "messages/s", ran.metrics.load.throughput_per_s, "more", against)
        _add_costs(into, "closed", name, ran)
        _add_latency(into, "closed", name, ran, floor.ONE if clients == 1 else "")


def _add_latency(into: Collected, section: str, name: str, ran: Ran, floor_name: str = "") -> None:
    """Add the percentiles; the median is compared with the figure floor_name."""
    latency = ran.metrics.load.latency
    assert latency is not None
    into.add(section, name, "p50 ms", latency.p50_ms, floor=floor_name)
    into.add(section, name, "p99 ms", latency.p99_ms)
    into.add(section, name, "p99.9 ms", latency.p999_ms)


def open_loop(into: Collected, runs: Runs, quick: bool) -> None:
    """Measure messages at fixed times, at shares of the maximum rate, independent of the acknowledgements."""
    most = _maximum(into, runs, quick)
    for share in (50,) if quick else SHARES:
        rate = most * share / 100
        duration = Duration(2 if quick else 4)
        load = Load(clients=4, rate=rate, duration=duration, via=LEADER_OF_THREE)
        _add_latency(into, "open", f"{share} % of the maximum", runs.load("bench_open", load))


def _maximum(into: Collected, runs: Runs, quick: bool) -> float:
    """Return the maximum rate from the throughput section; measure it if that section was left out."""
    for figure in into.figures():
        if figure.key == ("throughput", MEASURED_MAXIMUM, "messages/s"):
            return figure.median
    ran = runs.load("bench_throughput", CASES[0].load(count_of(CASES[0], quick)))
    return ran.metrics.load.throughput_per_s
