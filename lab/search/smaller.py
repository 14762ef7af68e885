"""Ways to make a scenario smaller, or plainer: each gives candidates, the boldest first. Pure.

Whether a candidate still shows the failure is for lab.search.shrink to find out.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any, Final

from msgspec import structs

from lab.plan.scenario import Cluster, Load, Scenario
from lab.steps import Expect, Heal, Link, LoadSwitch, Repeat, Send, Sender, Sleep, Step, Wait
from lab.words import Duration, Target
from nodeproc.core.messages import NodeId

TARGETS: Final = ("target", "source", "to", "node", "on")
"""Fields of steps and waits that mean nodes."""
LONGEST_SLICE: Final = 8
"""Steps that belong together, such as those around a rebuild, are no more."""
COUNTS: Final = (1, 2, 3, 5, 10, 20, 50, 100, 200)
NICE: Final = (1, 2, 3, 5, 10)

Steps = tuple[Step, ...]


# ---- steps taken out ------------------------------------------------------------------------------------


def with_steps(scenario: Scenario, steps: Sequence[Step]) -> Scenario:
    """The scenario with these steps; without a load if none of them starts it."""
    started = any(isinstance(step, LoadSwitch) and step.do == "start" for step in steps)
    return structs.replace(scenario, steps=tuple(steps), load=scenario.load if started else None)


def chunks_left_out(steps: Steps, size: int) -> Iterator[Steps]:
    """The steps without so many in a row, at each multiple of so many, the last first."""
    for start in reversed(range(0, len(steps), size)):
        yield steps[:start] + steps[start + size :]


def slices_left_out(steps: Steps) -> Iterator[Steps]:
    """The steps without any few in a row: what stands in two chunks and can only go together."""
    for length in range(min(LONGEST_SLICE, len(steps) - 1), 0, -1):
        for start in reversed(range(len(steps) - length + 1)):
            yield steps[:start] + steps[start + length :]


def sleeps_joined(steps: Steps) -> Iterator[Steps]:
    """Two rests in a row as one."""
    for at, (first, second) in enumerate(pairwise(steps)):
        if isinstance(first, Sleep) and isinstance(second, Sleep):
            yield (*steps[:at], Sleep(time=rounded(first.time + second.time)), *steps[at + 2 :])


# ---- steps made plainer -----------------------------------------------------------------------------------


def rounded(seconds: float) -> Duration:
    """To the millisecond, as it is written in a file."""
    return Duration(round(seconds, 3))


def nice(seconds: float) -> Duration:
    """The nearest 1, 2, 3 or 5 times a power of ten: 347 ms is 300 ms."""
    if seconds < 0.001:
        return Duration(0)
    power = 10.0 ** math.floor(math.log10(seconds))
    return rounded(min((factor * power for factor in NICE), key=lambda each: abs(each - seconds)))


def shorter(time: Duration) -> Iterator[Duration]:
    """Much less, half, and a rounder number."""
    for factor in (0.1, 0.5, 1.0):
        if (less := nice(time * factor)) < time or factor == 1.0:
            yield less


def plainer_steps(steps: Steps) -> Iterator[Steps]:
    """One step made plainer."""
    for at, step in enumerate(steps):
        for plainer in plainer_step(step):
            if plainer != step:
                yield (*steps[:at], plainer, *steps[at + 1 :])


def plainer_step(step: Step) -> Iterator[Step]:
    """Each way to say less in one step."""
    for field in structs.fields(step):
        value = getattr(step, field.name)
        if isinstance(value, Duration) and field.name in ("time", "down", "delay", "jitter", "slow"):
            least = () if field.name in ("time", "slow") else (Duration(0),)
            yield from (structs.replace(step, **{field.name: less}) for less in (*least, *shorter(value)))
        elif field.name in ("target", "source", "to") and isinstance(value, tuple):
            yield from (structs.replace(step, **{field.name: each}) for each in value)
        elif field.name in ("mid_write", "both") and value:
            yield structs.replace(step, **{field.name: False})
    match step:
        case Heal():
            yield structs.replace(step, on="all")
        case Link():
            yield from plainer_link(step)
        case Send():
            yield from plainer_send(step)
        case _:
            pass


def plainer_link(step: Link) -> Iterator[Step]:
    """All frames or none, one direction."""
    for name in ("loss", "duplicate"):
        if getattr(step, name):
            yield structs.replace(step, **{name: 1.0})
    if step.frames and len(step.frames) > 1:
        yield from (structs.replace(step, frames=(each,)) for each in step.frames)


def plainer_send(step: Send) -> Iterator[Step]:
    """One client, one message."""
    if len(step.clients) > 1:
        yield from (structs.replace(step, clients=(each,)) for each in step.clients)
        return
    (sender,) = step.clients
    total = sender.messages if isinstance(sender.messages, int) else len(sender.messages)
    for count in (each for each in COUNTS if each < total):
        yield structs.replace(step, clients=(structs.replace(sender, messages=count),))
    if sender.fresh:
        yield structs.replace(step, clients=(structs.replace(sender, fresh=False),))


# ---- the load and the cluster -----------------------------------------------------------------------------


def plainer_load(scenario: Scenario) -> Iterator[Scenario]:
    """No load, fewer clients, fewer and smaller messages, one after the other."""
    load = scenario.load
    if load is None:
        return
    yield with_steps(scenario, [step for step in scenario.steps if not isinstance(step, LoadSwitch)])
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


def plainer_cluster(scenario: Scenario) -> Iterator[Scenario]:
    """No subscribers, no tight limits, nothing configured that has a default."""
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


# ---- a node less ------------------------------------------------------------------------------------------


def a_node_less(scenario: Scenario) -> Iterator[Scenario]:
    """Each node taken out, the highest first; those above it get the next lower ids."""
    cluster = scenario.cluster
    if cluster.nodes == 1:
        return
    for gone in reversed(cluster.ids):
        priorities = {_shifted(node, gone): rank for node, rank in cluster.priorities.items() if node != gone}
        start = _without(cluster.start, gone) if isinstance(cluster.start, tuple) else cluster.start
        steps = [less for step in scenario.steps if (less := step_without(step, gone)) is not None]
        via = None if scenario.load is None else _without(scenario.load.via, gone)
        if start is None or (scenario.load is not None and via is None):
            continue
        fewer = structs.replace(cluster, nodes=cluster.nodes - 1, priorities=priorities, start=start)
        load = None if scenario.load is None else structs.replace(scenario.load, via=via)
        yield with_steps(structs.replace(scenario, cluster=fewer, load=load), steps)


def step_without(step: Step, gone: NodeId) -> Step | None:
    """The step where that node is not there; None where it was about that node alone."""
    match step:
        case Expect():
            return None  # What it says of the cluster would be wrong.
        case Repeat():
            inside = tuple(less for each in step.steps if (less := step_without(each, gone)) is not None)
            return structs.replace(step, steps=inside) if inside else None
        case Send():
            return structs.replace(step, clients=tuple(_sender_without(each, gone) for each in step.clients))
        case Wait():
            changed = _fields_without(step.until, gone)
            return None if changed is None else structs.replace(step, until=structs.replace(step.until, **changed))
        case _:
            changed = _fields_without(step, gone)
            return None if changed is None else structs.replace(step, **changed)


def _fields_without(value: Any, gone: NodeId) -> dict[str, Any] | None:
    changed = {name: _without(getattr(value, name), gone) for name in TARGETS if hasattr(value, name)}
    return None if None in changed.values() else changed


def _sender_without(sender: Sender, gone: NodeId) -> Sender:
    via = None if sender.via in (None, gone) else _shifted(sender.via or gone, gone)
    return structs.replace(sender, via=via)


def _without(target: Target, gone: NodeId) -> Any:
    """The target without that node; None: nobody is left."""
    if isinstance(target, int):
        return None if target == gone else _shifted(target, gone)
    if isinstance(target, tuple):
        left = tuple(less for each in target if (less := _without(each, gone)) is not None)
        return left or None
    return target


def _shifted(node: NodeId, gone: NodeId) -> NodeId:
    return node - (node > gone)
