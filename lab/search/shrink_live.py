"""`run_lab.py shrink --live`: reduce a scenario whose failure shows only in some runs on real processes.

The passes are those of lab.search.passes. A live run with the same seed has another timing each time, so one run says
little about a candidate. First, runs of the given scenario estimate the rate of its failure. Then a sequential test
decides each candidate: it runs until the candidate either still fails at that rate, or at a quarter of it at most
(lab.search.rates). Rare wrong decisions remain possible, and a candidate can be accepted by luck. So fresh runs of the
result measure its rate at the end; if it lost the failure, the scenario accepted before it is measured instead.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Final, NamedTuple

from msgspec import structs

from lab import runs
from lab.places import near
from lab.plan import scenario as plan
from lab.plan.scenario import NAME_MAX, Scenario
from lab.rundir import remove
from lab.runs import How, Result
from lab.search.passes import Passes, size_of
from lab.search.rates import Rate, SequentialTest
from lab.search.shrink import SHRUNK
from lab.steps.machine import RunFailed
from lab.words import counted

FIRST_FAILURES: Final = 5
FIRST_RUNS: Final = 60
"""The first estimate ends after this number of failures or of runs."""
LAST_FAILURES: Final = 8
LAST_RUNS: Final = (10, 80)
"""The last measurement has as many runs as LAST_FAILURES need on average, but so many at least and at most."""
FOR_THE_END: Final = 0.25
"""Part of the budget that is kept for the last measurement."""
ATTEMPTS: Final = 3
"""A run that the lab cannot carry out or judge is repeated, this often in a row."""

Observe = Callable[[Scenario, str], frozenset[str]]
"""Runs a scenario once, as a mutant ("": as the product); returns the broken invariants and missed expectations."""


_Tell = Callable[[str], None]


class _Spent(Exception):
    """The budget is used up."""


class Measured(NamedTuple):
    """A scenario with the rate at which its failure shows."""

    scenario: Scenario
    rate: Rate


@dataclass(frozen=True, slots=True)
class LiveShrunk:
    """The result.

    invariant: the one that breaks, or the expectation that is missed.
    product: the rate of the same failure without the mutant; None if there is no mutant, or no time was left.
    minimal: False if the budget or a person ended the reduction. interrupted: a person did.
    """

    invariant: str
    mutant: str
    first: Measured
    last: Measured
    product: Rate | None
    candidates: int
    runs: int
    minimal: bool
    interrupted: bool = False


@dataclass
class Runs:
    """Live runs within a budget of real time.

    budget_s: of all runs together. clock: returns seconds.
    """

    observe: Observe
    budget_s: float
    clock: Callable[[], float] = time.monotonic
    count: int = 0
    _began: float = field(init=False)

    def __post_init__(self) -> None:
        self._began = self.clock()

    @property
    def left_s(self) -> float:
        return self._began + self.budget_s - self.clock()

    def run(self, scenario: Scenario, mutant: str, *, kept_s: float = 0.0) -> frozenset[str]:
        """Run a scenario once; return what broke.

        Args:
            kept_s: part of the budget that must remain.

        Raises:
            _Spent: the budget is used up.
        """
        if self.left_s <= kept_s:
            raise _Spent
        self.count += 1
        return self.observe(scenario, mutant)


class _LivePasses(Passes):
    """The reduction of one scenario by live runs."""

    tries_slices: ClassVar[bool] = False

    def __init__(self, first: Measured, seed: int, invariant: str, mutant: str, live: Runs, tell: _Tell) -> None:
        super().__init__(first.scenario, seed)
        self.history = [first]
        """The given scenario and all accepted ones, each with the rate of the test that accepted it."""
        self.candidates = 0
        self._kept, self._invariant, self._mutant, self._live, self._tell = (
            first.rate.value,
            invariant,
            mutant,
            live,
            tell,
        )
        self._last = Rate(0, 0)

    def fails(self, candidate: Scenario) -> bool:
        self.candidates += 1
        test = SequentialTest(self._kept)
        while test.decision is None:
            broken = self._live.run(candidate, self._mutant, kept_s=FOR_THE_END * self._live.budget_s)
            test.add(self._invariant in broken)
        self._last = Rate(test.failed, test.runs)
        return bool(test.decision) and not self._fails_always(candidate)

    def _fails_always(self, candidate: Scenario) -> bool:
        """Return whether the unchanged product fails a candidate too, which then shows nothing about the mutant.

        One run is enough: steps that wait for something that a reduction has removed fail every time.
        """
        if not self._mutant:
            return False
        return self._invariant in self._live.run(candidate, "", kept_s=FOR_THE_END * self._live.budget_s)

    def accepted(self) -> None:
        self.history.append(Measured(self.best, self._last))
        self._tell(f"{size_of(self.best)}, failed in {self._last.failed} of {self._last.runs} runs")


def shrink_live(
    scenario: Scenario, seed: int, mutant: str, live: Runs, tell: _Tell = lambda text: None
) -> LiveShrunk | Rate:
    """Reduce a scenario that fails in some live runs; return the rate of failures if there is none.

    Args:
        seed: of all runs; the results have it, too.
        mutant: that the nodes run as; "" for none.
        tell: called with a line about each reduction.
    """
    invariant, first = _first_estimate(structs.replace(scenario, seed=seed), mutant, live)
    if not invariant:
        return first.rate
    tell(f"{invariant} breaks in {first.rate}")
    passes = _LivePasses(first, seed, invariant, mutant, live, tell)
    minimal, interrupted, product = True, False, None
    try:
        try:
            passes.reduce()
        except _Spent:
            minimal = False
        last = _last_measurement(passes.history, invariant, mutant, live, tell)
        if mutant:
            again = _measure(last.scenario, invariant, "", live, last.rate.runs)
            product = again.rate if again.rate.runs else None
    except KeyboardInterrupt:
        last, minimal, interrupted = passes.history[-1], False, True
    return LiveShrunk(invariant, mutant, first, last, product, passes.candidates, live.count, minimal, interrupted)


def _first_estimate(scenario: Scenario, mutant: str, live: Runs) -> tuple[str, Measured]:
    """Run a scenario until it has failed often enough; return the invariant that breaks most often, and its rate.

    The rate leaves out the last failure, which ended the runs; with it the rate would be too high on average. As the
    budget is known in advance, half of it at most is used.
    """
    broken: Counter[str] = Counter()
    count = 0
    try:
        while count < FIRST_RUNS and max(broken.values(), default=0) < FIRST_FAILURES:
            broken.update(live.run(scenario, mutant, kept_s=live.budget_s / 2))
            count += 1
    except _Spent:
        pass
    if not broken:
        return "", Measured(scenario, Rate(0, count))
    invariant = min(broken, key=lambda each: (-broken[each], each))
    failed = broken[invariant]
    rate = Rate(failed - 1, count - 1) if failed == FIRST_FAILURES and count > failed else Rate(failed, count)
    return invariant, Measured(scenario, rate)


def _last_measurement(history: list[Measured], invariant: str, mutant: str, live: Runs, tell: _Tell) -> Measured:
    """Measure the smallest scenario that still fails, with fresh runs; that is the last accepted one, most often.

    If no time is left for that, the rate is that of the test that accepted it.
    """
    first = history[0].rate.value
    wanted = min(max(LAST_RUNS[0], math.ceil(LAST_FAILURES / first)), LAST_RUNS[1])
    while len(history) > 1:
        scenario = history[-1].scenario
        measured = _measure(scenario, invariant, mutant, live, wanted)
        if not measured.rate.runs:
            break
        test = SequentialTest(first, measured.rate.failed, measured.rate.runs)
        if measured.rate.failed and test.decision is not False:
            return measured
        tell(f"{size_of(scenario)} failed in {measured.rate}: too few, back to the scenario before")
        history.pop()
    return history[-1]


def _measure(scenario: Scenario, invariant: str, mutant: str, live: Runs, wanted: int) -> Measured:
    """Return the rate in `wanted` runs, or in fewer if the budget ends."""
    failed = count = 0
    try:
        while count < wanted:
            failed += invariant in live.run(scenario, mutant)
            count += 1
    except _Spent:
        pass
    return Measured(scenario, Rate(failed, count))


# ---- runs ------------------------------------------------------------------------------------------------


class _Failed(NamedTuple):
    scenario: Scenario
    mutant: str
    broken: frozenset[str]
    directory: Path


@dataclass
class LiveRuns:
    """Observes live runs, and keeps those that failed until `keep` chooses one.

    out: directory of results.
    """

    out: Path
    seed: int
    _failed: list[_Failed] = field(default_factory=list)

    def __call__(self, scenario: Scenario, mutant: str) -> frozenset[str]:
        """Run a scenario; return the names of the broken invariants, and the missed expectations.

        Raises:
            RunFailed: the lab failed several times in a row.
        """
        for _ in range(ATTEMPTS):
            result = runs.run_once(scenario, self.seed, self.out, How(mutant=mutant))
            if result.verdict is not None:
                return self._observed(scenario, mutant, result)
            if result.directory is not None:
                remove(result.directory)
        raise RunFailed(result.problem)

    def _observed(self, scenario: Scenario, mutant: str, result: Result) -> frozenset[str]:
        assert result.verdict is not None and result.directory is not None
        broken = {check.name for check in result.verdict.checks if check.result == "FAIL"}
        missed = (each for each in result.verdict.expectations if each.met is False and not each.soft)
        broken |= {f"expected {each.text}" for each in missed}
        if broken:
            self._failed.append(_Failed(scenario, mutant, frozenset(broken), result.directory))
        else:
            remove(result.directory)
        return frozenset(broken)

    def keep(self, shrunk: LiveShrunk) -> Path | None:
        """Remove all runs but the last that shows the result; return its directory, None if no run does."""
        shown = [
            each.directory
            for each in self._failed
            if shrunk.invariant in each.broken and (each.scenario, each.mutant) == (shrunk.last.scenario, shrunk.mutant)
        ]
        for each in self._failed:
            if each.directory not in shown[-1:]:
                remove(each.directory)
        return shown[-1] if shown else None


# ---- output ----------------------------------------------------------------------------------------------


def write(shrunk: LiveShrunk, results: Path) -> Path:
    """Write the reduced scenario to a file that can be run; return its path."""
    directory = results / SHRUNK
    directory.mkdir(parents=True, exist_ok=True)
    scenario = shrunk.last.scenario
    ending = f"_{shrunk.mutant}_live" if shrunk.mutant else "_live"
    name = scenario.name[: NAME_MAX - len(ending)] + ending
    who = f" as the mutant {shrunk.mutant}" if shrunk.mutant else ""
    description = f"Shrunk from {scenario.name} by live runs. Breaks {shrunk.invariant}{who} in {shrunk.last.rate}."
    path = directory / f"{name}.yml"
    path.write_text(plan.encode_brief(structs.replace(scenario, name=name, description=description)), "utf-8")
    return path


def report(shrunk: LiveShrunk, path: Path, failed: Path | None) -> str:
    """Return the summary. path: of the reduced scenario. failed: directory of a run of it that failed."""
    first, last = shrunk.first, shrunk.last
    lines = [
        f"{shrunk.invariant} breaks:",
        f"given:   {size_of(first.scenario)}: {first.rate}",
        f"shrunk:  {size_of(last.scenario)}: {last.rate}",
    ]
    if shrunk.product is not None:
        lines.append(f"product: without the mutant: {shrunk.product}")
    ended = "you" if shrunk.interrupted else "the budget"
    limit = "" if shrunk.minimal else f"; {ended} ended the reduction, a smaller scenario may exist"
    lines.append(f"tests:   {counted(shrunk.candidates, 'candidate')}, {counted(shrunk.runs, 'run')}{limit}")
    if failed is not None:
        lines.append(f"run:     {near(failed)}")
    lines.append(f"again:   {How(mutant=shrunk.mutant).command(path)} --repeat {last.rate.runs}")
    return "\n".join(lines)
