"""Reductions of a scenario: each function yields candidates, those with the largest change first. Pure.

lab.search.shrink tests whether a candidate still fails.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any, Final

from msgspec import structs

from lab.plan.scenario import Cluster, Load, Scenario
from lab.steps import Sleep, Step
from lab.steps.reducing import COUNTS, rounded, shifted, target_without

LONGEST_SLICE: Final = 8
"""Maximum number of steps that only work together, such as those around a rebuild."""
Steps = tuple[Step, ...]


# ---- fewer steps ----------------------------------------------------------------------------------------


def with_steps(scenario: Scenario, steps: Sequence[Step]) -> Scenario:
    """Return the scenario with these steps; if none of them starts the load, without the load and steps about it."""
    if any(step.starts_load for step in steps):
        return structs.replace(scenario, steps=tuple(steps))
    return structs.replace(scenario, steps=tuple(step for step in steps if not step.needs.load), load=None)


def without_chunks(steps: Steps, size: int) -> Iterator[Steps]:
    """Remove `size` steps in a row, at each multiple of `size`, from the end to the start."""
    for start in reversed(range(0, len(steps), size)):
        yield steps[:start] + steps[start + size :]


def without_slices(steps: Steps) -> Iterator[Steps]:
    """Remove any few steps in a row: those that only work together may be in two chunks."""
    for length in range(min(LONGEST_SLICE, len(steps) - 1), 0, -1):
        for start in reversed(range(len(steps) - length + 1)):
            yield steps[:start] + steps[start + length :]


def joined_sleeps(steps: Steps) -> Iterator[Steps]:
    """Join two sleeps in a row."""
    for at, (first, second) in enumerate(pairwise(steps)):
        if isinstance(first, Sleep) and isinstance(second, Sleep):
            yield (*steps[:at], Sleep(time=rounded(first.time + second.time)), *steps[at + 2 :])


# ---- simpler steps ----------------------------------------------------------------------------------------


def reduced_steps(steps: Steps) -> Iterator[Steps]:
    """Reduce one of the steps."""
    for at, step in enumerate(steps):
        for reduced in step.reduce():
            if reduced != step:
                yield (*steps[:at], reduced, *steps[at + 1 :])


# ---- the load and the cluster -----------------------------------------------------------------------------


def reduced_load(scenario: Scenario) -> Iterator[Scenario]:
    """Remove the load, or reduce its clients, messages or sizes."""
    load = scenario.load
    if load is None:
        return
    yield with_steps(scenario, [step for step in scenario.steps if not step.starts_load])
    for changes in _load_changes(load):
        yield structs.replace(scenario, load=structs.replace(load, **changes))


def _load_changes(load: Load) -> Iterator[dict[str, Any]]:
    yield from ({"clients": clients} for clients in COUNTS if clients < load.clients)
    if load.count is not None:
        yield from ({"count": count} for count in COUNTS if count < load.count)
    if load.in_flight is not None:
        yield from ({"in_flight": many} for many in COUNTS if many < load.in_flight)
    yield from ({"size": size} for size in (10, 100) if size < load.size)
    if load.deadline != (default := Load().deadline):
        yield {"deadline": default}


def reduced_cluster(scenario: Scenario) -> Iterator[Scenario]:
    """Remove subscribers, limits, priorities and timeouts that differ from the defaults."""
    cluster, plain = scenario.cluster, Cluster()
    if scenario.subscribers:
        yield structs.replace(scenario, subscribers=0)
    changes: list[dict[str, Any]] = []
    if cluster.limits:
        changes.append({"limits": {}})
        changes += ({"limits": _without_key(cluster.limits, name)} for name in cluster.limits)
    if cluster.priorities:
        changes.append({"priorities": {}})
        changes += ({"priorities": _without_key(cluster.priorities, node)} for node in cluster.priorities)
    pace = ("heartbeat_interval", "election_timeout")
    waits = ("answer_timeout", "coordinator_timeout", "join_timeout")
    changes.append({name: getattr(plain, name) for name in (*pace, *waits)})
    changes += ({name: None} for name in waits if getattr(cluster, name) is not None)
    changes.append({name: getattr(plain, name) for name in pace})
    for change in changes:
        yield structs.replace(scenario, cluster=structs.replace(cluster, **change))


def _without_key(values: dict[Any, Any], key: object) -> dict[Any, Any]:
    return {each: value for each, value in values.items() if each != key}


# ---- fewer nodes ------------------------------------------------------------------------------------------


def without_a_node(scenario: Scenario) -> Iterator[Scenario]:
    """Remove each node, the highest id first; nodes with higher ids get the next lower one."""
    cluster = scenario.cluster
    if cluster.nodes == 1:
        return
    for gone in reversed(cluster.ids):
        priorities = {shifted(node, gone): rank for node, rank in cluster.priorities.items() if node != gone}
        start = target_without(cluster.start, gone) if isinstance(cluster.start, tuple) else cluster.start
        steps = [less for step in scenario.steps if (less := step.without(gone)) is not None]
        founders = cluster.founders and cluster.founders - (gone <= cluster.founders)
        via = None if scenario.load is None else target_without(scenario.load.via, gone)
        if start is None or founders == 0 or (scenario.load is not None and via is None):
            continue
        fewer = structs.replace(cluster, nodes=cluster.nodes - 1, founders=founders, priorities=priorities, start=start)
        load = None if scenario.load is None else structs.replace(scenario.load, via=via)
        yield with_steps(structs.replace(scenario, cluster=fewer, load=load), steps)
