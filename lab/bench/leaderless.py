"""Measure the time that a connected majority with slow disks stays without a leader, in virtual time.

python -m lab.bench.leaderless [--draws N]

In each draw a minority of the nodes, including the leader, can send but receives nothing, and the disks of all other
nodes are slow. One client of the majority sends one message; the figure is the time until its acknowledgement.
"""

from __future__ import annotations

import argparse
import random
import statistics
from dataclasses import dataclass

from tabulate import tabulate

from lab.plan.scenario import Bounds, Cluster, Scenario
from lab.rows import Acked, Invoke
from lab.sim.simulator import Simulation
from lab.steps import Cut, Disk, Send, Sender
from lab.words import Duration

SIZES = (5, 7, 9)
WITHIN_S = 600.0
"""A longer time counts as infinite."""
QUICK = Cluster(
    heartbeat_interval=Duration(0.05),
    election_timeout=Duration(0.15),
    answer_timeout=Duration(0.03),
    coordinator_timeout=Duration(0.075),
)


@dataclass(frozen=True, slots=True)
class Setting:
    """Timeouts of the cluster, and the additional seconds of each fdatasync.

    shares: each disk takes one of these multiples of slow_s, at random.
    """

    name: str
    cluster: Cluster
    slow_s: float
    shares: tuple[float, ...] = (1.0,)


MIXED = (0.2, 0.5, 1.0, 2.0)
SETTINGS = (
    Setting("150 ms; 150 ms", QUICK, 0.15),
    Setting("150 ms; 30 to 300 ms", QUICK, 0.15, MIXED),
    Setting("500 ms; 0.5 s", Cluster(), 0.5),
    Setting("500 ms; 1 s", Cluster(), 1.0),
    Setting("500 ms; 0.2 to 2 s", Cluster(), 1.0, MIXED),
)


def drawn(setting: Setting, nodes: int, seed: int) -> Scenario:
    """Return one random scenario. Priorities and the nodes that receive nothing are random; one of them leads."""
    rng = random.Random(f"{seed} {nodes}")
    priorities = list(range(1, nodes + 1))
    rng.shuffle(priorities)
    leader = priorities.index(nodes) + 1
    others = [node for node in range(1, nodes + 1) if node != leader]
    deaf = sorted([leader, *rng.sample(others, (nodes - 1) // 2 - 1)])
    hearing = tuple(node for node in range(1, nodes + 1) if node not in deaf)
    plan = setting.cluster
    return Scenario(
        name="leaderless",
        description="a measurement",
        seed=seed,
        cluster=Cluster(
            nodes=nodes,
            priorities=dict(enumerate(priorities, 1)),
            heartbeat_interval=plan.heartbeat_interval,
            election_timeout=plan.election_timeout,
            answer_timeout=plan.answer_timeout,
            coordinator_timeout=plan.coordinator_timeout,
        ),
        subscribers=0,
        bounds=Bounds(recovery=Duration(WITHIN_S), convergence=Duration(WITHIN_S)),
        steps=(
            *(Disk(on=node, slow=Duration(setting.slow_s * rng.choice(setting.shares))) for node in hearing),
            Cut(to=tuple(deaf)),
            Send(clients=(Sender(client=9001, messages=1, via=hearing[0]),), within=Duration(WITHIN_S)),
        ),
    )


def leaderless_s(setting: Setting, nodes: int, seed: int) -> float:
    """Return the seconds from the cut to the acknowledgement; inf if there is none within WITHIN_S."""
    simulation = Simulation(drawn(setting, nodes, seed), seed)
    simulation.carry_out()
    rows = simulation.online.rows
    asked = next(row.t for row in rows if isinstance(row, Invoke))
    acked = [row.t for row in rows if isinstance(row, Acked)]
    return (acked[0] - asked) / 1e9 if acked else float("inf")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--draws", type=int, default=30, metavar="N", help="draws for each size and setting (%(default)s)"
    )
    draws = parser.parse_args().draws
    rows = []
    for setting in SETTINGS:
        for nodes in SIZES:
            took = sorted(leaderless_s(setting, nodes, seed) for seed in range(1, draws + 1))
            rows.append((setting.name, nodes, statistics.median(took), took[int(0.9 * (draws - 1))], took[-1]))
    heads = ("election_timeout; fdatasync", "nodes", "median s", "90 % s", "max s")
    print(tabulate(rows, heads, floatfmt=".1f"))


if __name__ == "__main__":
    main()
