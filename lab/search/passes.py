"""The passes of a reduction, for simulated and for live runs: which candidates are tried, and in which order."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from typing import ClassVar

from msgspec import structs

from lab.plan import scenario as plan
from lab.plan.scenario import Scenario
from lab.search.assumptions import within_assumptions
from lab.search.reductions import (
    Steps,
    joined_sleeps,
    reduced_cluster,
    reduced_load,
    reduced_steps,
    with_steps,
    without_a_node,
    without_chunks,
    without_slices,
)
from lab.words import counted
from nodeproc.errors import ConfigError


class Passes(ABC):
    """Delta debugging of a scenario: fewer steps, fewer nodes, less load, a simpler cluster, simpler steps.

    best: the smallest scenario that fails so far.
    """

    tries_slices: ClassVar[bool] = True
    """Whether steps that only work together are removed together; this takes as many tests as all other passes."""

    def __init__(self, scenario: Scenario, seed: int) -> None:
        self.best = structs.replace(scenario, seed=seed, steps=tuple(scenario.unrolled()))
        self._tried: set[str] = set()
        self._keep_assumptions = _is_sound(scenario)
        """Whether candidates must stay within the protocol's assumptions; False if the scenario itself does not."""

    @abstractmethod
    def fails(self, candidate: Scenario) -> bool:
        """Return whether a candidate fails in the same way as the first scenario."""

    @abstractmethod
    def accepted(self) -> None:
        """Called when `best` has become smaller."""

    def reduce(self) -> None:
        """Repeat all passes until none of them reduces the scenario."""
        before = None
        while self.best != before:
            before = self.best
            self._fewer_steps()
            self._repeatedly(lambda: without_a_node(self.best))
            self._repeatedly(lambda: reduced_load(self.best))
            self._repeatedly(lambda: reduced_cluster(self.best))
            self._repeatedly(lambda: self._in_steps(reduced_steps(self.best.steps)))

    def _fewer_steps(self) -> None:
        """Remove half of the steps, a quarter, …, single steps; then steps that only work if removed together."""
        size = len(self.best.steps) // 2
        while size >= 1:
            for number in range(len(self.best.steps) // size + 1):
                some = list(without_chunks(self.best.steps, size))
                self._take_first(self._in_steps(some[number : number + 1]))
            size //= 2
        if self.tries_slices:
            self._repeatedly(lambda: self._in_steps(without_slices(self.best.steps)))
        self._repeatedly(lambda: self._in_steps(joined_sleeps(self.best.steps)))

    def _in_steps(self, candidates: Iterable[Steps]) -> Iterator[Scenario]:
        return (with_steps(self.best, steps) for steps in candidates if steps)

    def _repeatedly(self, candidates: Callable[[], Iterator[Scenario]]) -> None:
        while self._take_first(candidates()):
            pass

    def _take_first(self, candidates: Iterable[Scenario]) -> bool:
        """Accept the first candidate that fails in the same way; return False if none does."""
        for candidate in candidates:
            if self._is_worth_a_test(candidate) and self.fails(candidate):
                self.best = candidate
                self.accepted()
                return True
        return False

    def _is_worth_a_test(self, candidate: Scenario) -> bool:
        """Return whether the candidate is new, a valid scenario, and within the assumptions if the first one is."""
        key = repr(candidate)
        if key in self._tried or (self._keep_assumptions and not _is_sound(candidate)):
            return False
        self._tried.add(key)
        return _is_scenario(candidate)


def _is_sound(scenario: Scenario) -> bool:
    return within_assumptions(scenario.steps, scenario.cluster.nodes, scenario.cluster.founders)


def _is_scenario(candidate: Scenario) -> bool:
    """Return whether the candidate survives being written to a file and read again."""
    try:
        return plan.load("candidate", text=plan.encode_brief(candidate)) == candidate
    except ConfigError:
        return False


def size_of(scenario: Scenario) -> str:
    """Return the size of a scenario in words."""
    load = "no load" if scenario.load is None else f"{scenario.load.count or 'endless'} messages"
    return f"{counted(scenario.step_count, 'step')}, {counted(scenario.cluster.nodes, 'node')}, {load}"
