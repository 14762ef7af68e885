"""Section failover: unavailability when the leader dies or is paused, and how a follower catches up."""

from __future__ import annotations

from lab.bench.figures import Collected
from lab.bench.runs import Ran, Runs
from lab.plan.scenario import Load
from lab.steps import Kill, LoadSwitch, Pause, Repeat, Resume, Start, Step, Wait
from lab.steps.wait import UntilAcknowledged, UntilCaughtUp, UntilIdle, UntilNewLeader
from lab.words import Duration

RATE = 1000.0
PATIENCE = Duration(60)
ENOUGH = Wait(until=UntilAcknowledged(count=100, within=PATIENCE))
ALL_CAUGHT_UP = Wait(until=UntilCaughtUp(on="all", within=Duration(120)))
IDLE = Wait(until=UntilIdle(within=PATIENCE))


def failover(into: Collected, runs: Runs, quick: bool) -> None:
    """Measure one round: kills and pauses of the leader under load, then the catch-up of a follower."""
    times = 4 if quick else 20
    _hit_leaders(into, runs, "killed", times, (Kill(target="leader"),), (Start(target="killed"),))
    _hit_leaders(into, runs, "stopped", times, (Pause(target="leader"),), (Resume(target="paused"),))
    _catch_up(into, runs, 100_000 if quick else 1_000_000)


def _hit_leaders(
    into: Collected, runs: Runs, word: str, times: int, fault: tuple[Step, ...], heal: tuple[Step, ...]
) -> None:
    new_leader = Wait(until=UntilNewLeader(within=PATIENCE))
    repeated = Repeat(times=times, steps=(*fault, new_leader, ENOUGH, *heal, ALL_CAUGHT_UP, ENOUGH))
    steps = (LoadSwitch(switch="start"), ENOUGH, repeated, LoadSwitch(switch="stop"), IDLE)

    def use(ran: Ran) -> None:
        for failover in ran.metrics.failovers:
            for name, value in (
                ("to the first suspicion", failover.suspected_ms),
                ("to a new leader", failover.leader_ms),
                ("to the next acknowledgement", failover.acknowledged_ms),
            ):
                if value is not None:
                    into.add("failover", f"leader {word}, {name}", "ms", value)

    runs.carry_out(runs.scenario(f"bench_leader_{word}", Load(clients=6, rate=RATE), steps), use)


def _catch_up(into: Collected, runs: Runs, missed: int) -> None:
    """Stop a follower, send `missed` messages, and start it again while messages continue to come."""
    rate = 100_000.0
    steps: tuple[Step, ...] = (
        LoadSwitch(switch="start"),
        ENOUGH,
        Kill(target=1),
        Wait(until=UntilAcknowledged(count=missed, within=Duration(120))),
        Start(target=1),
        ALL_CAUGHT_UP,
        LoadSwitch(switch="stop"),
        IDLE,
    )

    def use(ran: Ran) -> None:
        waited = next(each for each in ran.meta.expectations if "caught_up" in each.text)
        restarted = next(row for row in ran.run.read_faults() if row.fault == "start")
        name = f"catch-up of {missed:,} messages while {rate:,.0f}/s go on"
        into.add("failover", name, "s", (waited.t - restarted.t_done) / 1e9)
        into.add("failover", name, "peak MiB a node", ran.rss_peak_bytes / (1 << 20))

    load = Load(clients=4, rate=rate, via=(2, 3))
    runs.carry_out(runs.scenario("bench_catch_up", load, steps), use)
