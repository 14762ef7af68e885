"""Find mistakes of a scenario because of which a step, an expectation or the whole run certainly fails.

The types, and each step's check(), look at single values; this module looks at the sequence of steps. Each step records
in an Outlook which states may follow it. A mistake is reported only if every run of the scenario fails because of it.
After a fault with unknown outcome (a nemesis, a trigger, a failing disk), all states are possible. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from msgspec import structs

from lab.plan.expectation import Acknowledged, Order
from lab.plan.scenario import Instead, Scenario, load
from lab.steps import Step
from lab.steps.expect import LastSeq
from lab.steps.outlook import Outlook
from lab.words import LinkEnd, Target, counted, target_parts
from nodeproc.config import Limits
from nodeproc.yamlfile import Place, parse


class Mistake(NamedTuple):
    """The reason why the scenario cannot work, and its place."""

    place: Place
    text: str


def load_checked(
    path: Path | str, *, text: str | None = None, simulated: bool = False, engine: Instead | None = None
) -> Scenario:
    """Read and check a scenario file, and refuse a scenario that cannot work.

    Args:
        text: the file's content, if the caller has read it already.
        simulated: the scenario is for virtual time; it may send no message, since elections alone can break A7.
        engine: as in scenario.load().

    Raises:
        ConfigError: as scenario.load(), or the first mistake.
    """
    scenario = load(path, text=text, engine=engine)
    for mistake in mistakes(scenario, simulated=simulated):
        raise parse(path, text=text).error(mistake.place, mistake.text)
    return scenario


def mistakes(scenario: Scenario, *, simulated: bool = False) -> Iterator[Mistake]:
    """Yield the mistakes in the order of the file; those inside a `repeat` once."""
    if not simulated and not any(step.sends(planned=1) for step in scenario.every_step()):
        yield Mistake(("steps",), "nothing is sent, so that there is little to judge; add a `send` step, or a load")
    yield from _of_the_whole(scenario)
    yield from _of_the_story(scenario)
    yield from _of_expectations(scenario)


# ---- the whole -----------------------------------------------------------------------------------


def _of_the_whole(scenario: Scenario) -> Iterator[Mistake]:
    load, limits = scenario.load, scenario.cluster.limits
    if load is None or scenario.cluster.is_foreign:
        return
    largest = limits.get("max_payload_bytes", Limits().max_payload_bytes)
    if load.size > largest:
        yield Mistake(
            ("load", "size"),
            f"found {load.size}, and the nodes take {largest} bytes at most (cluster.limits.max_payload_bytes)",
        )
    for name in ("max_clients", "max_per_address"):
        most = limits.get(name, getattr(Limits(), name)) * scenario.cluster.nodes
        if load.clients > most:
            yield Mistake(
                ("load", "clients"),
                f"found {load.clients}, and all {scenario.cluster.nodes} nodes together take {most} clients of a host "
                f"(cluster.limits.{name})",
            )


# ---- the story -----------------------------------------------------------------------------------


def _of_the_story(scenario: Scenario) -> Iterator[Mistake]:
    """Go through the steps once, in the order in which a run executes them."""
    outlook = _at_the_start(scenario)
    told: set[Place] = set()
    for place, step in _walked(scenario.steps, ("steps",)):
        for text in wrong_with(step, outlook):
            if place not in told:
                told.add(place)
                yield Mistake(place, text)
        step.foresee(outlook, place)
    if outlook.damaged is not None:
        text = "the node can't start on its damaged disk, and no step behind this one rebuilds it; add `rebuild`"
        yield Mistake(outlook.damaged, text)


def _at_the_start(scenario: Scenario) -> Outlook:
    cluster, planned = scenario.cluster, scenario.load.planned if scenario.load is not None else 0
    return Outlook(cluster.ids, cluster.started_ids, len(cluster.founder_ids), planned, _most_messages(scenario))


def outlook_of(scenario: Scenario, done: Iterable[Step]) -> Outlook:
    """Return what is known about the cluster after these steps of a run of the scenario."""
    outlook = _at_the_start(scenario)
    for step in done:
        step.foresee(outlook, ())
    return outlook


def wrong_with(step: Step, outlook: Outlook) -> Iterator[str]:
    """Yield the reasons why a step certainly fails at this point."""
    for aim in step.aims():
        for field in structs.fields(aim):
            for part in target_parts(getattr(aim, field.name)) if field.type in (Target, LinkEnd) else ():
                if why := outlook.nobody(part):
                    yield f"{part} means nobody here: {why}"
    if step.needs.majority and outlook.lacks_majority:
        yield outlook.lacks_majority
    yield from step.impossible(outlook)


def _walked(steps: tuple[Step, ...], place: Place) -> Iterator[tuple[Place, Step]]:
    """Yield the steps as a run executes them, each with the place of its word.

    Two rounds of each `repeat` are enough to find every mistake.
    """
    for index, step in enumerate(steps):
        inside = (*place, index, step.word)
        if not step.rounds:
            yield inside, step
        for _ in range(min(step.rounds, 2)):
            yield from _walked(step.inner, (*place, index, *step.inner_place))


# ---- what is expected ------------------------------------------------------------------------------


def _most_messages(scenario: Scenario) -> int | None:
    """Return how many messages the scenario sends at most; None: no limit."""
    endless = scenario.load is not None and not scenario.load.planned
    if endless and any(step.starts_load for step in scenario.every_step()):
        return None
    return scenario.planned_messages


def _of_expectations(scenario: Scenario) -> Iterator[Mistake]:
    most = _most_messages(scenario)
    texts = None if scenario.load is not None else set(_texts(scenario))
    for index, each in enumerate(scenario.expectations):
        place: Place = ("expectations", index, each.word)
        for part in target_parts(getattr(each, "on", ())):
            if isinstance(part, str) and part not in ("all", "running"):
                yield Mistake(place, f"on: {part} is a role of one moment; allowed for the whole run: all, or node ids")
        wanted = each.at_least if isinstance(each, Acknowledged | LastSeq) else None
        if isinstance(each, LastSeq) and each.seq_no is not None:
            wanted = each.seq_no
        if most is not None and wanted is not None and wanted > most:
            yield Mistake(
                place, f"never holds: {wanted} are expected, and the scenario sends {counted(most, 'message')}"
            )
        if isinstance(each, Order) and texts is not None:
            for text in each.payloads:
                if text not in texts:
                    yield Mistake(place, f"never holds: no step sends {text[:60]!r}")


def _texts(scenario: Scenario) -> Iterator[str]:
    """Yield the texts of all messages that the steps themselves send."""
    made: dict[int, int] = {}
    for step in scenario.unrolled():
        yield from step.texts(made)
