"""A session by hand: steps that a person orders one by one, in place of the scenario's `hands` step.

An ordered step is checked like a step of a file, and done and recorded by the same runner. The time between two orders
is recorded as a `sleep`. So the run is judged like any other, and its scenario.yml can be run again.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from typing import Final, NamedTuple, Protocol

from msgspec import Struct

from lab.plan.scenario import Scenario, read_step
from lab.plan.sense import outlook_of, wrong_with
from lab.rundir import RunDir
from lab.steps import Fault, Hands, Hold, Sleep, Step, effect_of
from lab.steps.book import FaultBook
from lab.steps.outlook import Outlook, State
from lab.steps.repeat import MAX_STEPS
from lab.steps.step import Effect
from lab.steps.targets import ClusterView, NodeView, NoSuchTarget
from lab.words import Duration
from nodeproc.errors import ConfigError

LOOK_EVERY_S: Final = 0.5
"""While nothing is ordered, the run is checked this often."""
SHORTEST_SLEEP_S: Final = 0.05
"""A shorter time between two orders is not recorded."""


class Answer(Struct, frozen=True, omit_defaults=True):
    """The result of an order.

    step: as recorded; "" if nothing was done.
    took_ms: from the beginning of the step until its evidence was there.
    problem: why the step was refused or missed; "" if it was done. A missed step ends the session.
    warning: why the run's verdict will be UNDECIDED although the step was done.
    """

    step: str = ""
    took_ms: float = 0.0
    problem: str = ""
    warning: str = ""


class Order(NamedTuple):
    """words: one step, as in a scenario file: `kill: leader`."""

    words: str
    answer: Callable[[Answer], None]


class Person(Protocol):
    """The person who orders steps, and who sees the answers."""

    def begin(self, run: RunDir) -> None:
        """The run begins; its files are in this directory."""

    async def order(self, patience_s: float) -> Order | None:
        """Return the next order; None if the person has ended the session.

        Raises:
            TimeoutError: there was no order within this time.
        """


class Course(Protocol):
    """The run as a session by hand sees it; implemented by lab.course.runner."""

    book: FaultBook
    steps: list[Step]
    """The steps so far, `repeat` written out."""

    def now(self) -> float: ...

    async def view_now(self) -> ClusterView: ...

    def check(self) -> None: ...

    def tell(self, text: str) -> None: ...

    def has_passed(self, sleep: Sleep) -> None:
        """Record a step that consisted of time only, and is over."""

    async def do_step(self, step: Step) -> str:
        """Do a step and record it; return why it was missed, or ""."""


class ByHand:
    """The session of one run.

    Args:
        on_steps: called with the run's steps each time when an order has been carried out.
    """

    def __init__(self, scenario: Scenario, person: Person, on_steps: Callable[[Sequence[Step]], None]) -> None:
        self._scenario, self._person, self._on_steps = scenario, person, on_steps

    async def carry_out(self, run: Course, hands: Hands) -> str:
        """Do what is ordered, until the session ends; return why its last step was missed, or ""."""
        outlook = outlook_of(self._scenario, run.steps)
        since, until = run.now(), run.now() + hands.within
        run.tell("steps by hand")
        missed = ""
        while not missed and (order := await self._next(run, until)) is not None:
            try:
                steps = list(self._allowed(order.words, await run.view_now(), outlook, len(run.steps)))
            except (ConfigError, NoSuchTarget) as refused:
                order.answer(Answer(problem=str(refused)))
                continue
            _pass(run, since)
            began, first = run.now(), len(run.steps)
            for step in steps:
                step.foresee(outlook, ())
                missed = missed or await run.do_step(step)
            since = run.now()
            shown = "; ".join(step.words for step in steps)
            order.answer(Answer(shown, round(1000 * (since - began), 1), missed, _warning(run.book, first)))
            self._on_steps(run.steps)
        if not missed:
            _pass(run, since)
        self._on_steps(run.steps)
        return missed

    async def _next(self, run: Course, until: float) -> Order | None:
        """Return the next order; None if the session is over."""
        while (left := until - run.now()) > 0:
            try:
                return await self._person.order(min(left, LOOK_EVERY_S))
            except TimeoutError:
                run.check()
        return None

    def _allowed(self, words: str, view: ClusterView, outlook: Outlook, done: int) -> Iterator[Step]:
        """Yield the steps that the words stand for, each of which can have an effect now.

        Raises:
            ConfigError: the words are no step, or a step that cannot be done now.
        """
        outlook = copy.deepcopy(outlook)
        read = read_step(words, self._scenario)
        if done + read.unrolled_count >= MAX_STEPS:
            raise ConfigError(f"the session has {done} steps, allowed {MAX_STEPS}")
        for number, step in enumerate(read.unrolled()):
            if isinstance(step, Hands | Hold):
                raise ConfigError(f"{step.word}: has no meaning by hand, where the run waits for you anyway")
            if isinstance(step, Fault) and not number and (why := _without_effect(step, view)):
                raise ConfigError(f"{step.words}: {why}")
            for text in wrong_with(step, outlook):
                raise ConfigError(f"{step.words}: {text}")
            step.foresee(outlook, ())
            if outlook.damaged is not None:
                raise ConfigError(f"{step.words}: the node could not start any more; allowed in a scenario file only")
            yield step


def _pass(run: Course, since: float) -> None:
    """Record the time since the last step."""
    if (passed := round(run.now() - since, 2)) >= SHORTEST_SLEEP_S:
        run.has_passed(Sleep(time=Duration(passed)))


def _without_effect(fault: Fault, view: ClusterView) -> str:
    """Return why a fault would not change one of the nodes that it names, or ""."""
    for node in fault.nodes_with_rows(view.ids):
        if (state := _state(view.nodes[node])) not in fault.acts_on:
            return f"node {node} is {state}; allowed: a node that is {' or '.join(sorted(fault.acts_on))}"
    return ""


def _state(node: NodeView) -> State:
    return "up" if node.up else "paused" if node.paused else "down"


def _warning(book: FaultBook, first: int) -> str:
    """Return which row of the steps from this index on shows no effect; "" if all do, or may do so later."""
    for row in book.rows:
        if row.step >= first and not row.effect and effect_of(row.fault) in (Effect.DOWN, Effect.UP):
            return f"{row.fault} of node {row.target} had no effect, so that the verdict will be UNDECIDED"
    return ""
