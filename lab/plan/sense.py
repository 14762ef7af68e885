"""Whether a scenario can show anything: mistakes that make a step, an expectation or the whole run fail for certain.

The types and lab.plan.reading look at each value; this module looks at the story. It walks through the steps and keeps,
for each node, the states that it may be in. It is careful: it complains only where no run of the scenario can go
otherwise. Where a fault may have any outcome (a nemesis, a trigger, a disk that fails), all states are possible from
there on. Pure.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final, Literal, NamedTuple, TypeAlias

from msgspec import Struct, structs

from lab.payloads import numbered_message
from lab.plan.expectation import Acknowledged, Order
from lab.plan.scenario import Scenario, load
from lab.steps import (
    Chaos,
    Disk,
    Expect,
    FullRestart,
    Heal,
    Kill,
    LoadSwitch,
    Nemesis,
    Partition,
    Pause,
    PowerLoss,
    Rebuild,
    Repeat,
    Restart,
    Resume,
    Send,
    Start,
    Step,
    Stop,
    UntilAcknowledged,
    UntilDelivered,
    UntilLeader,
    UntilLoadDone,
    UntilNewLeader,
    Wait,
    When,
)
from lab.steps.expect import LastSeq, LeaderIs
from lab.words import LinkEnd, Target, target_parts
from nodeproc.config import Limits
from nodeproc.core.messages import NodeId
from nodeproc.yamlfile import Place, parse

State: TypeAlias = Literal["up", "paused", "down"]
ANY: Final[frozenset[State]] = frozenset(("up", "paused", "down"))
UP: Final[frozenset[State]] = frozenset(("up",))
DOWN: Final[frozenset[State]] = frozenset(("down",))
PAUSED: Final[frozenset[State]] = frozenset(("paused",))


class Mistake(NamedTuple):
    """Why the scenario can't work, and where."""

    place: Place
    text: str


def load_checked(path: Path | str, *, text: str | None = None) -> Scenario:
    """Read and check a scenario file, and refuse one that can't work.

    Args:
        text: the file's content where the caller has it already.

    Raises:
        ConfigError: as scenario.load(), or the first mistake.
    """
    scenario = load(path, text=text)
    for mistake in mistakes(scenario):
        raise parse(path, text=text).error(mistake.place, mistake.text)
    return scenario


def mistakes(scenario: Scenario) -> Iterator[Mistake]:
    """What can't work, in the order of the file, of steps inside a `repeat` the first time alone."""
    yield from _of_the_whole(scenario)
    yield from _Walk(scenario).mistakes()
    yield from _of_expectations(scenario)


# ---- the whole -----------------------------------------------------------------------------------


def _of_the_whole(scenario: Scenario) -> Iterator[Mistake]:
    if not any(step.sends(planned=1) for step in scenario.every_step()):
        yield Mistake(("steps",), "nothing is sent, so that there is nothing to judge; add a `send` step, or a load")
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


class _Walk:
    """Goes through the steps once, as they are done."""

    def __init__(self, scenario: Scenario) -> None:
        self._scenario = scenario
        self._ids = scenario.cluster.ids
        started = scenario.cluster.started_ids
        self._states = {node: UP if node in started else DOWN for node in self._ids}
        self._anything = False
        """A trigger or a nemesis may do its faults at any time from here on."""
        self._downed = False
        """Some step may have put a node down."""
        self._damaged: Place | None = None
        """The step that damaged a disk so that its node can't start, while none was rebuilt."""
        self._load: Literal["never", "runs", "ends", "stopped"] = "never"
        self._acknowledged = 0

    def mistakes(self) -> Iterator[Mistake]:
        told: set[Place] = set()
        for place, step in _walked(self._scenario.steps, ("steps",)):
            for text in self._wrong_with(step):
                if place not in told:
                    told.add(place)
                    yield Mistake((*place, step.word), text)
            self._do(step, place)
        if self._damaged is not None:
            text = "the node can't start on its damaged disk, and no step behind this one rebuilds it; add `rebuild`"
            yield Mistake(self._damaged, text)

    def _wrong_with(self, step: Step) -> Iterator[str]:
        for part in _parts_of(step):
            if why := self._nobody(part):
                yield f"{part} means nobody here: {why}"
        most_up = sum("up" in self._may_be(node) for node in self._ids)
        until = step.until if isinstance(step, Wait) else None
        needs_majority = isinstance(until, UntilLeader | UntilNewLeader | UntilAcknowledged) or (
            isinstance(step, Send) and step.wait and not step.refused
        )
        if needs_majority and 2 * most_up <= len(self._ids):
            yield f"never comes true: at most {most_up} of {len(self._ids)} nodes run here, and a majority is needed"
        yield from self._wrong_with_load(step)
        if isinstance(step, Start) and step.refuses and self._damaged is None and not self._anything:
            yield "nothing has damaged a disk before, so that no node refuses to start"
        if isinstance(step, Expect):
            for each in step.that:
                if isinstance(each, LeaderIs) and "up" not in self._may_be(each.node):
                    yield f"never holds: node {each.node} does not run here"

    def _wrong_with_load(self, step: Step) -> Iterator[str]:
        until = step.until if isinstance(step, Wait) else None
        if isinstance(step, LoadSwitch):
            if step.do == "start" and self._load == "runs":
                yield "the load runs already; stop it before, or wait for load_done"
            if step.do == "stop" and self._load == "never":
                yield "the load was not started before"
        elif isinstance(until, UntilAcknowledged | UntilLoadDone) and self._load == "never":
            yield "never comes true: the load is not started before"
        elif isinstance(until, UntilAcknowledged):
            if self._load == "stopped":
                yield "never comes true: the load is stopped, and all its messages have their outcome"
            planned = self._scenario.load.planned if self._scenario.load is not None else 0
            if planned and until.count > planned:
                yield f"never comes true: the load sends {planned} messages"
        elif isinstance(until, UntilDelivered):
            most = _most_messages(self._scenario)
            if most is not None and until.count > most:
                yield f"never comes true: the scenario sends {most} messages"

    def _may_be(self, node: NodeId) -> frozenset[State]:
        return ANY if self._anything else self._states[node]

    def _nobody(self, part: object) -> str:
        """Why no node can be meant, "" where one may be."""
        if self._anything:
            return ""
        seen = frozenset[State]().union(*self._states.values())
        if part == "paused" and "paused" not in seen:
            return "no step before pauses a node, or all are resumed"
        if part == "down" and "down" not in seen:
            return "no step before takes a node down, or all are started"
        if part == "killed" and not (self._downed and "down" in seen):
            return "no step before kills or stops a node, or all are started"
        if part in ("leader", "follower", "followers", "running") and "up" not in seen:
            return "no node runs"
        return ""

    # ---- what a step does ------------------------------------------------------------------------

    def _do(self, step: Step, place: Place) -> None:
        match step:
            case Kill() | Stop():
                self._set(step.target, DOWN)
                self._downed = True
            case PowerLoss():
                self._set(step.target, DOWN if not step.mid_write else DOWN | UP)
                self._downed = True
            case Pause():
                self._set(step.target, PAUSED)
            case Resume():
                self._set(step.target, UP)
            case Start() if not step.refuses:
                self._set(step.target, UP)
            case Restart() | Rebuild():
                self._set(step.target, UP)
                self._downed = True
                if isinstance(step, Rebuild):
                    self._damaged = None
            case FullRestart():
                self._set("all", UP)
                self._downed = True
            case Heal() if step.what == "all":
                self._set(step.on, UP)
            case Disk():
                self._downed = True
                if step.rot or step.lose:
                    self._set(step.on, DOWN)
                if step.rot in ("wal", "checkpoint"):
                    self._damaged = (*place, "disk")
                elif not step.slow:
                    self._anything = True  # When the node ends, and whether it starts again, is not known.
            case Chaos():
                self._set(step.on, ANY)
            case When() | Nemesis():
                self._anything = True
            case LoadSwitch(do="start"):
                self._load = "runs"
            case LoadSwitch():
                self._load = "stopped"
            case Wait() if isinstance(step.until, UntilLoadDone):
                self._load = "stopped"
            case _:
                pass

    def _set(self, target: Target, states: frozenset[State]) -> None:
        """These nodes are so now; of a word that may mean them or others they may be as they were."""
        parts = target_parts(target)
        if self._damaged is not None and states == UP:
            states = UP | DOWN
        for node in self._ids:
            if node in parts or "all" in parts:
                self._states[node] = states
            elif any(isinstance(part, str) and self._may_mean(part, node) for part in parts):
                sure = any(_ALL_OF.get(str(part)) == self._states[node] for part in parts)
                self._states[node] = states if sure else self._states[node] | states

    def _may_mean(self, word: str, node: NodeId) -> bool:
        state = self._states[node]
        if word == "paused":
            return "paused" in state
        return "down" in state if word in ("down", "killed") else "up" in state


_ALL_OF: Final[dict[str, frozenset[State]]] = {"running": UP, "paused": PAUSED, "down": DOWN}
"""Word -> it means every node that is certainly so."""


def _walked(steps: tuple[Step, ...], place: Place) -> Iterator[tuple[Place, Step]]:
    """The steps as they are done, each with its place; of a `repeat` two rounds show all that can go wrong."""
    for index, step in enumerate(steps):
        if isinstance(step, Repeat):
            for _ in range(min(step.times, 2)):
                yield from _walked(step.steps, (*place, index, "repeat", "steps"))
        else:
            yield (*place, index), step


def _parts_of(step: Step) -> Iterator[object]:
    """The words and ids of all targets of a step; a trigger or a nemesis acts when nobody knows who is up."""
    values: list[Struct] = [step]
    if isinstance(step, Wait):
        values = [step.until]
    elif isinstance(step, Expect):
        values = list(step.that)
    elif isinstance(step, When | Nemesis):
        values = []
    elif isinstance(step, Partition) and step.kind in ("halves", "ring", "random"):
        values = []  # Its node means nothing.
    for value in values:
        for field in structs.fields(value):
            if field.type in (Target, LinkEnd):
                yield from target_parts(getattr(value, field.name))


# ---- what is expected ------------------------------------------------------------------------------


def _most_messages(scenario: Scenario) -> int | None:
    """How many messages the scenario sends at most; None: without a limit."""
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
            yield Mistake(place, f"never holds: {wanted} are expected, and the scenario sends {most} messages")
        if isinstance(each, Order) and texts is not None:
            for text in each.payloads:
                if text not in texts:
                    yield Mistake(place, f"never holds: no step sends {text[:60]!r}")


def _texts(scenario: Scenario) -> Iterator[str]:
    """All messages of `send` steps."""
    made: dict[int, int] = {}
    for step in scenario.unrolled():
        for each in step.clients if isinstance(step, Send) else ():
            if isinstance(each.messages, int):
                first = made.get(each.client, 0) + 1
                made[each.client] = first + each.messages - 1
                yield from (numbered_message(each.client, n) for n in range(first, first + each.messages))
            else:
                yield from each.messages
