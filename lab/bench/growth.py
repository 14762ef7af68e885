"""Sections growth and memory: the cost of a message after long histories, and the memory that slow readers cost."""

from __future__ import annotations

from lab.bench.figures import Collected
from lab.bench.prepared import fill
from lab.bench.runs import Ran, Runs
from lab.plan.scenario import Cluster, Load
from lab.rundir import RunDir
from lab.steps import LoadSwitch, Pause, Resume, Sleep, Step, Wait
from lab.steps.wait import UntilCaughtUp, UntilIdle
from lab.words import Duration

NODES = (1, 2, 3)
LOAD_MESSAGES = 200_000
PATIENCE = Duration(120)


# ---- growth -----------------------------------------------------------------------------------------


def growth(into: Collected, runs: Runs, quick: bool) -> None:
    """Measure the same load after histories, and with session tables, of sizes up to a factor of 100 apart."""
    for messages in (10_000, 1_000_000) if quick else (10_000, 100_000, 1_000_000):
        _behind(into, runs, f"{messages:,} messages before", messages, 1)
    for sessions in (1_000, 100_000) if quick else (1_000, 10_000, 100_000):
        _behind(into, runs, f"{sessions:,} sessions before", 100_000, sessions)


def _behind(into: Collected, runs: Runs, name: str, messages: int, sessions: int) -> None:
    """Measure one load on three nodes that have delivered `messages` messages of `sessions` sessions before."""

    def prepare(run: RunDir) -> None:
        for node in NODES:
            fill(run.node_dir(node), node, messages, sessions=sessions)

    def use(ran: Ran) -> None:
        cost = ran.metrics.cpu_us_per_message
        assert cost is not None
        into.add("growth", name, "CPU µs/message", cost)
        into.add("growth", name, "messages/s", ran.metrics.load.throughput_per_s, "more")
        into.add("growth", name, "peak MiB a node", ran.rss_peak_bytes / (1 << 20))

    # At a steady rate: at full speed the cost a message depends on how much comes at once.
    load = Load(clients=4, rate=50_000.0, count=LOAD_MESSAGES, via="all")
    runs.carry_out(runs.scenario("bench_growth", load, subscribers=0), use, prepare)


# ---- memory -----------------------------------------------------------------------------------------


def memory(into: Collected, runs: Runs, quick: bool) -> None:
    """Measure memory under load: healthy, with a paused follower, and with a thousand mostly idle clients."""
    seconds = Duration(10) if quick else Duration(40)
    paused: tuple[Step, ...] = (
        LoadSwitch(switch="start"),
        Sleep(time=Duration(1)),
        Pause(target=1),
        Sleep(time=seconds),
        Resume(target=1),
        Wait(until=UntilCaughtUp(on="all", within=PATIENCE)),
        LoadSwitch(switch="stop"),
        Wait(until=UntilIdle(within=PATIENCE)),
    )
    steady: tuple[Step, ...] = (LoadSwitch(switch="start"), Sleep(time=seconds), LoadSwitch(switch="stop"), IDLE)
    flood = Load(clients=4, rate=50_000.0, via=(2, 3))
    _peaks(into, runs, "50,000/s", flood, steady)
    _peaks(into, runs, "50,000/s, a follower stands still", flood, paused)
    _peaks(into, runs, "1,000 clients, 2 messages/s each", Load(clients=1000, rate=2000.0, via="all"), steady)


IDLE = Wait(until=UntilIdle(within=PATIENCE))


def _peaks(into: Collected, runs: Runs, name: str, load: Load, steps: tuple[Step, ...]) -> None:
    """Measure the memory of the largest node in the first half and at its peak; it is flat if the two are close."""

    def use(ran: Ran) -> None:
        samples = sorted(ran.meta.samples, key=lambda sample: sample.t)
        middle = (samples[0].t + samples[-1].t) // 2
        halfway = max(sample.rss_bytes for sample in samples if sample.t <= middle)
        into.add("memory", name, "MiB a node, first half", halfway / (1 << 20))
        into.add("memory", name, "MiB a node, peak", ran.rss_peak_bytes / (1 << 20))

    runs.carry_out(runs.scenario("bench_memory", load, steps, Cluster()), use)
