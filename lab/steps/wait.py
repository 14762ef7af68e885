"""`wait`: continue when a condition is true; and all conditions."""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from collections.abc import Iterator
from typing import Annotated, Any, ClassVar

from msgspec import Meta, Struct

from lab.steps.entry import Entry
from lab.steps.machine import Condition, Run, StepMissed
from lab.steps.outlook import Outlook
from lab.steps.step import Needs, Step
from lab.steps.targets import NoSuchTarget, choose
from lab.steps.writing import brief, fields_of, plain
from lab.words import Count, Duration, Period, Target, counted
from nodeproc.core.messages import NodeId, SeqNo, Term
from nodeproc.yamlfile import Place

NO_LOAD = "never comes true: the load is not started before"
LOOK_EVERY_S = 0.02
"""From one look at the nodes' STATUS to the next."""
QUICK_LOOK_S = 0.005
"""The same for a condition that needs no STATUS."""


class Until(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, tag_field="for"):
    """Base of the conditions; `for` names one in YAML."""

    look_every_s: ClassVar[float] = LOOK_EVERY_S

    within: Period = Duration(10)

    @property
    def needs(self) -> Needs:
        """What the run must offer."""
        return Needs()

    @staticmethod
    def read_field(entry: Entry) -> Until:
        """Read a condition: a word, or a mapping that names it. Raises ConfigError."""
        value = entry.value
        word = value.get("for") if isinstance(value, dict) else value
        if isinstance(value, dict) and "for" not in value:
            entry.fail(f"the key for is missing; allowed: {', '.join(UNTILS)}")
        if not isinstance(word, str) or word not in UNTILS:
            entry.of("for").wrong(", ".join(UNTILS), tuple(UNTILS))
        kind = UNTILS[word]
        if not isinstance(value, dict):
            entry.check_complete(kind, "", f"for: {word}")
            return kind()
        until = kind(**entry.fields(fields_of(kind), beside=("for",)))
        until.check(entry)
        return until

    def check(self, entry: Entry) -> None:
        """Refuse values that the types of the fields allow. Raises ConfigError."""

    def impossible(self, outlook: Outlook) -> Iterator[str]:
        """The reasons why the condition certainly never comes true at this point of the scenario."""
        yield from ()

    def foresee(self, outlook: Outlook) -> None:
        """Record the changes that have happened once the condition is true."""

    def as_yaml(self, *, in_brief: bool) -> Any:
        """Return the condition in YAML: a mapping, or its word if that is enough."""
        word = {"for": self.__struct_config__.tag}
        if not in_brief:
            return word | plain(self)
        return word | left if (left := brief(self)) else word["for"]

    @abstractmethod
    async def condition(self, run: Run, *, from_now: bool = False) -> Condition:
        """Return a function that checks the condition, compared with the present state.

        Args:
            from_now: count only events that are still to come, not those since the latest fault.
        """
        raise NotImplementedError


class UntilLeader(Until, frozen=True, tag="leader"):
    """All running nodes name the same leader of the same term, and that node agrees."""

    needs = Needs(majority=True)

    async def condition(self, run: Run, *, from_now: bool = False) -> Condition:
        return lambda: _agreed(run, above=0)


class UntilNewLeader(Until, frozen=True, tag="new_leader"):
    """As `leader`, but of a term above the highest that any node showed before the latest fault step. Of another
    program's nodes a majority is enough, because a node that is cut off may go on naming the old leader.
    """

    needs = Needs(majority=True)

    async def condition(self, run: Run, *, from_now: bool = False) -> Condition:
        before = run.term_before
        return lambda: _agreed(run, above=before, by_majority=run.is_foreign)


class UntilTermChange(Until, frozen=True, tag="term_change"):
    """Some node shows a higher term than any did when the wait began."""

    async def condition(self, run: Run, *, from_now: bool = False) -> Condition:
        before = (await run.look()).highest_term

        async def condition() -> bool:
            return (await run.look()).highest_term > before

        return condition


class UntilCaughtUp(Until, frozen=True, tag="caught_up"):
    """These nodes have delivered all that was committed when the wait began, and none of them is still being rebuilt.
    `share: 0.5`: each has delivered half of the messages that it lacked.
    """

    on: Target = "running"
    share: Annotated[float, Meta(gt=0, le=1)] = 1.0

    async def condition(self, run: Run, *, from_now: bool = False) -> Condition:
        wanted = (await run.look()).committed
        return self._in_part(run, wanted) if self.share < 1 else self._in_full(run, wanted)

    def _in_full(self, run: Run, wanted: SeqNo) -> Condition:
        async def condition() -> bool:
            if not await _have_delivered(run, self.on, wanted):
                return False
            nodes, answers = choose(self.on, await run.view_now(), run.rng), run.world.statuses
            return not any(answers[node].rebuilding for node in nodes if node in answers)

        return condition

    def _in_part(self, run: Run, wanted: SeqNo) -> Condition:
        before = dict(run.delivered)

        async def condition() -> bool:
            view = await run.look()
            try:
                nodes = choose(self.on, view, run.rng)
            except NoSuchTarget:
                return False
            answered = [node for node in nodes if node in run.world.statuses]
            for node in answered:  # A node that lost its disk may have less than before.
                before[node] = min(before.get(node, 0), view.nodes[node].delivered_seq)
            return len(answered) == len(nodes) and all(
                view.nodes[node].delivered_seq >= before[node] + self.share * (wanted - before[node]) for node in nodes
            )

        return condition


class UntilDelivered(Until, frozen=True, tag="delivered"):
    """Each of these nodes has delivered at least this many messages."""

    count: Count
    on: Target = "running"

    def impossible(self, outlook: Outlook) -> Iterator[str]:
        if outlook.most is not None and self.count > outlook.most:
            yield f"never comes true: the scenario sends {counted(outlook.most, 'message')}"

    async def condition(self, run: Run, *, from_now: bool = False) -> Condition:
        return lambda: _have_delivered(run, self.on, self.count)


class UntilAcknowledged(Until, frozen=True, tag="acknowledged"):
    """This many more of the load's messages are acknowledged than when the wait began."""

    look_every_s = QUICK_LOOK_S

    count: Count

    needs = Needs(load=True, majority=True)

    def impossible(self, outlook: Outlook) -> Iterator[str]:
        if outlook.load == "never":
            yield NO_LOAD
        elif outlook.load == "stopped":
            yield "never comes true: the load is stopped, and all its messages have their outcome"
        if outlook.planned and self.count > outlook.planned:
            yield f"never comes true: the load sends {counted(outlook.planned, 'message')}"

    async def condition(self, run: Run, *, from_now: bool = False) -> Condition:
        load = run.load
        assert load is not None, "a scenario without load waits for none of its messages"
        wanted = load.total.acknowledged + self.count

        async def condition() -> bool:
            return load.total.acknowledged >= wanted

        return condition


class UntilLoadDone(Until, frozen=True, tag="load_done"):
    """A load with count or duration has an outcome for every message."""

    needs = Needs(load=True, load_end=True)

    def impossible(self, outlook: Outlook) -> Iterator[str]:
        if outlook.load == "never":
            yield NO_LOAD

    def foresee(self, outlook: Outlook) -> None:
        outlook.load = "stopped"

    async def condition(self, run: Run, *, from_now: bool = False) -> Condition:
        load = run.load
        assert load is not None, "a scenario without load waits for none"

        async def condition() -> bool:
            return load.finished

        return condition


class UntilIdle(Until, frozen=True, tag="idle"):
    """No client waits for an outcome, and all running nodes have delivered all that is committed."""

    async def condition(self, run: Run, *, from_now: bool = False) -> Condition:
        async def condition() -> bool:
            if run.named.waiting or (run.load is not None and run.load.total.pending):
                return False
            view = await run.view_now()
            delivered = {view.nodes[node].delivered_seq for node in view.up}
            answered = all(node in run.world.statuses for node in view.up)
            return answered and len(delivered) == 1 and delivered == {view.committed}

        return condition


class UntilEnded(Until, frozen=True, tag="ended"):
    """The processes of these nodes are gone, by themselves or taken down."""

    on: Target

    async def condition(self, run: Run, *, from_now: bool = False) -> Condition:
        machines = [run.world.machines[node] for node in choose(self.on, await run.view_now(), run.rng)]

        async def condition() -> bool:
            return not any(each.running for each in machines)

        return condition


class UntilEvent(Until, frozen=True, tag="event", rename={"event": "is"}):
    """These nodes have reported the event this many times since the latest fault step began.

    where: as in the `event` expectation.
    """

    look_every_s = QUICK_LOOK_S

    event: str
    on: Target = "all"
    where: dict[str, str | int | bool] = {}
    count: Count = 1

    def check(self, entry: Entry) -> None:
        entry.check_event(self.event, self.where)

    async def condition(self, run: Run, *, from_now: bool = False) -> Condition:
        nodes = choose(self.on, await run.view_now(), run.rng)
        counted = run.world.count_events(nodes, self.event, self.where)
        wanted = self.count + (counted() if from_now else 0)

        async def condition() -> bool:
            return counted() >= wanted

        return condition


UNTILS: dict[str, type[Until]] = {
    str(each.__struct_config__.tag): each
    for each in (
        UntilLeader,
        UntilNewLeader,
        UntilTermChange,
        UntilCaughtUp,
        UntilDelivered,
        UntilAcknowledged,
        UntilLoadDone,
        UntilIdle,
        UntilEnded,
        UntilEvent,
    )
}
"""Word in YAML -> condition."""


class Wait(Step, frozen=True):
    """Continue when a condition is true; a plain word stands for `{for: word}`."""

    word = "wait"
    only = "until"
    hurts = frozenset[NodeId]()
    noted = True
    until: Until

    @property
    def needs(self) -> Needs:
        return self.until.needs

    def aims(self) -> tuple[Struct, ...]:
        return (self.until,)

    def impossible(self, outlook: Outlook) -> Iterator[str]:
        yield from self.until.impossible(outlook)

    def foresee(self, outlook: Outlook, place: Place) -> None:
        self.until.foresee(outlook)

    async def do(self, run: Run, index: int) -> None:
        began, until = run.now(), self.until
        try:
            async with asyncio.timeout(until.within):
                condition = await until.condition(run)
                while not await condition():
                    run.check()
                    await asyncio.sleep(until.look_every_s)
        except TimeoutError:
            raise StepMissed(f"not within {until.within}: {await run.show()}") from None
        run.note(index, self, met=True, found=f"after {run.now() - began:.2f} s")


async def _agreed(run: Run, above: Term, *, by_majority: bool = False) -> bool:
    view = await run.view_now()
    agreed = view.majority_leader() if by_majority else view.agreed_leader()
    return agreed is not None and agreed[1] > above


async def _have_delivered(run: Run, on: Target, count: int) -> bool:
    view = await run.view_now()
    try:
        nodes = choose(on, view, run.rng)
    except NoSuchTarget:
        return False
    return all(view.nodes[node].up and view.nodes[node].delivered_seq >= count for node in nodes)
