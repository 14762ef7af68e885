"""How many seeds a second one core simulates. SIM_SEEDS=200 for the figures of docs/performance.md.

The standard seed: 3, 4 or 5 nodes with the default timings, 30 virtual seconds, 200 messages of two clients that one
subscriber is shown, and 10 faults of the kinds that a search draws most.
"""

from __future__ import annotations

import os
from typing import Any

from lab.plan import scenario as plan
from lab.plan.scenario import Scenario
from lab.sim.simulator import Outcome, simulate

SEEDS = int(os.environ.get("SIM_SEEDS", "6"))
STANDARD = """
name: standard_seed
description: What a search plays, in its usual size.
cluster: {nodes: %d}
load: {clients: 2, rate: 8, count: 200}
subscribers: 1
steps:
  - load: start
  - sleep: 2s
  - kill: leader
  - sleep: 3s
  - start: killed
  - sleep: 2s
  - pause: leader
  - sleep: 3s
  - resume: paused
  - sleep: 2s
  - partition: {kind: isolate, node: leader}
  - sleep: 3s
  - heal: links
  - sleep: 2s
  - power_loss: {target: leader, mid_write: true}
  - sleep: 3s
  - heal: all
  - sleep: 2s
  - link: {loss: 0.1, duplicate: 0.1}
  - sleep: 3s
  - heal: links
  - restart: {target: follower, how: kill, down_for: 500ms}
  - sleep: 1500ms
  - reset: {from: leader, to: all}
  - wait: load_done
"""


def standard(seed: int) -> Scenario:
    return plan.load("standard_seed.yml", text=STANDARD % (3 + seed % 3))


def test_simulate_standard_seeds(benchmark: Any) -> None:
    scenarios = [(standard(seed), seed) for seed in range(1, SEEDS + 1)]

    def play() -> list[Outcome]:
        return [simulate(scenario, seed) for scenario, seed in scenarios]

    outcomes: list[Outcome] = benchmark.pedantic(play, rounds=1)
    for outcome in outcomes:
        assert (outcome.invariant, outcome.text, outcome.missed) == ("", "", [])
        assert outcome.messages == 200
    benchmark.extra_info["virtual_s"] = sum(each.virtual_s for each in outcomes) / SEEDS
