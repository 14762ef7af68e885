"""Going to an event of the debugger: the times, and the memory of the checkpoints. No test asserts a time.

SEEKS=60 SCENARIO=nemesis_mixed SEED=11 for the figures of docs/debugger.md; `pytest -s` shows them.
"""

from __future__ import annotations

import os
import random
import statistics
import time

import psutil

from lab.debug.branch import begin
from lab.places import SCENARIOS
from lab.plan import scenario as plan
from lab.plan.choosing import find

SCENARIO = os.environ.get("SCENARIO", "leader_failure")
SEED = int(os.environ.get("SEED", "7"))
SEEKS = int(os.environ.get("SEEKS", "3"))
TRIES = 3
"""The best of these times is the one that other programs disturb least."""


def test_any_event_can_be_gone_to() -> None:
    began = time.perf_counter()
    branch = begin(plan.load(find(SCENARIO, SCENARIOS)), SEED)
    took_s = time.perf_counter() - began
    assert branch.process is not None
    recorder = psutil.Process(branch.process.pid)
    copies = recorder.children(recursive=True)
    memory = sum(each.memory_full_info().pss for each in (recorder, *copies))
    rng = random.Random(1)
    best_ms = []
    for event in [rng.randint(1, branch.recorded.events) for _ in range(SEEKS)]:
        times = []
        for _ in range(TRIES):
            since = time.perf_counter()
            assert branch.go(event).event == event
            times.append(1000 * (time.perf_counter() - since))
        best_ms.append(min(times))
    used_s = sum(recorder.cpu_times()[:2])
    branch.close()
    print(
        f"\n{SCENARIO}, seed {SEED}: {branch.recorded.events:,} events recorded in {took_s:.1f} s ({used_s:.1f} s of "
        f"processor time), {len(copies)} checkpoints, {memory / 1e6:,.0f} MB in all\n{SEEKS} events, best of {TRIES}: "
        f"median {statistics.median(best_ms):.0f} ms, most {max(best_ms):.0f} ms"
    )
