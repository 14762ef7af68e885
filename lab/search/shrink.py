"""`run_lab.py shrink`: reduce a failing scenario to the steps and settings that the failure needs.

Delta debugging (Zeller, Hildebrandt, TSE 2002): remove steps, then nodes, then reduce load and cluster, then simplify
each step, until no pass can reduce anything any more. A candidate is accepted if it fails by the same invariant under
the same seed, if it stays within the protocol's assumptions and, with a mutant, if the unchanged product passes it. So
the result is a scenario that fails every time, in the same way as the first one.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from msgspec import structs

from lab import runs, values
from lab.places import RESULTS, SCENARIOS
from lab.plan import scenario as plan
from lab.plan.choosing import find
from lab.plan.scenario import Scenario
from lab.search.assumptions import within_assumptions
from lab.search.draw import SIZES, draw
from lab.search.failure import Failure, play
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
from nodeproc.errors import ConfigError

SIMULATIONS: Final = 1500
"""Default limit of simulations; most failures need a few hundred."""
SHRUNK: Final = "shrunk"
"""Directory of the shrunk scenarios, in the results directory."""


@dataclass(frozen=True, slots=True)
class Shrunk:
    """A reduced scenario that fails.

    scenario: including its seed.
    mutant: applied during the simulations; "" for none.
    simulations: the number that the reduction took.
    minimal: False if the limit of simulations ended the reduction.
    """

    scenario: Scenario
    failure: Failure
    mutant: str
    simulations: int
    minimal: bool

    @property
    def seed(self) -> int:
        assert self.scenario.seed is not None
        return self.scenario.seed


def shrink(
    scenario: Scenario,
    seed: int,
    mutant: str = "",
    *,
    failure: Failure | None = None,
    simulations: int = SIMULATIONS,
    tell: Callable[[str], None] = lambda text: None,
) -> Shrunk | None:
    """Reduce a failing scenario; return None if it does not fail.

    Args:
        mutant: applied during the simulations; "" for none.
        failure: the scenario's failure, if the caller knows it.
        simulations: limit of simulations.
        tell: called with a line about each reduction.
    """
    found = failure or play(scenario, seed, mutant)
    return None if found is None else _Shrinking(scenario, seed, mutant, found, simulations, tell).carry_out()


class _Spent(Exception):
    """The limit of simulations is reached."""


class _Shrinking:
    """The reduction of one scenario."""

    def __init__(
        self,
        scenario: Scenario,
        seed: int,
        mutant: str,
        failure: Failure,
        simulations: int,
        tell: Callable[[str], None],
    ) -> None:
        self.best, self.failure = structs.replace(scenario, seed=seed, steps=tuple(scenario.unrolled())), failure
        self._seed, self._mutant, self._simulations, self._tell = seed, mutant, simulations, tell
        self._spent = 0
        self._tried: set[str] = set()
        self._keep_assumptions = within_assumptions(scenario.steps, scenario.cluster.nodes)
        """Whether candidates must stay within the protocol's assumptions; False if the scenario itself does not."""

    def carry_out(self) -> Shrunk:
        """Repeat all passes until none of them reduces the scenario."""
        minimal = False
        try:
            while not minimal:
                before = self.best
                self._fewer_steps()
                self._repeatedly(lambda: without_a_node(self.best))
                self._repeatedly(lambda: reduced_load(self.best))
                self._repeatedly(lambda: reduced_cluster(self.best))
                self._repeatedly(lambda: self._in_steps(reduced_steps(self.best.steps)))
                minimal = self.best == before
        except _Spent:
            pass
        return Shrunk(self.best, self.failure, self._mutant, self._spent, minimal)

    def _fewer_steps(self) -> None:
        """Remove half of the steps, a quarter, …, single steps; then steps that only work if removed together."""
        size = len(self.best.steps) // 2
        while size >= 1:
            for number in range(len(self.best.steps) // size + 1):
                some = list(without_chunks(self.best.steps, size))
                self._take_first(self._in_steps(some[number : number + 1]))
            size //= 2
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
            if self._fails(candidate):
                self.best = candidate
                load = "no load" if candidate.load is None else f"{candidate.load.count or 'endless'} messages"
                size = f"{candidate.step_count} steps, {candidate.cluster.nodes} nodes, {load}"
                self._tell(f"{size} after {self._spent} simulations")
                return True
        return False

    def _fails(self, candidate: Scenario) -> bool:
        key = repr(candidate)
        if key in self._tried or (
            self._keep_assumptions and not within_assumptions(candidate.steps, candidate.cluster.nodes)
        ):
            return False
        self._tried.add(key)
        if not _is_scenario(candidate) or not self.failure.like(found := self._play(candidate, self._mutant)):
            return False
        if self._mutant and self._play(candidate, "") is not None:
            return False  # A scenario that the unchanged product fails shows nothing about the mutant.
        assert found is not None
        self.failure = found
        return True

    def _play(self, candidate: Scenario, mutant: str) -> Failure | None:
        if self._spent >= self._simulations:
            raise _Spent
        self._spent += 1
        return play(candidate, self._seed, mutant)


def _is_scenario(candidate: Scenario) -> bool:
    """Return whether the candidate survives being written to a file and read again."""
    try:
        return plan.load("candidate", text=plan.encode_brief(candidate)) == candidate
    except ConfigError:
        return False


# ---- output -----------------------------------------------------------------------------------------------


def write(shrunk: Shrunk, results: Path) -> Path:
    """Write the reduced scenario to a file that can be run; return its path."""
    directory = results / SHRUNK
    directory.mkdir(parents=True, exist_ok=True)
    name = shrunk.mutant or f"{shrunk.scenario.name}_seed_{shrunk.seed}"
    path = directory / f"{name}.yml"
    who = f" as the mutant {shrunk.mutant}" if shrunk.mutant else ""
    description = f"Shrunk from {shrunk.scenario.name}. Breaks {shrunk.failure.invariant}{who}: {shrunk.failure.text}"
    path.write_text(plan.encode_brief(structs.replace(shrunk.scenario, name=name, description=description)), "utf-8")
    return path


def report(shrunk: Shrunk, path: Path) -> str:
    """Return the summary of a reduction, with the commands that run the scenario again."""
    scenario, failure = shrunk.scenario, shrunk.failure
    lines = [
        f"{failure.invariant}: {failure.text}",
        f"{scenario.step_count} steps, {scenario.cluster.nodes} nodes, after {shrunk.simulations} simulations"
        + ("" if shrunk.minimal else ", the limit: a smaller scenario may exist"),
        f"again:   {runs.How(sim=True, mutant=shrunk.mutant, frames=True).command(path, shrunk.seed)}",
        f"live:    {runs.How(mutant=shrunk.mutant).command(path, shrunk.seed)}",
    ]
    return "\n".join(lines)


# ---- the command ------------------------------------------------------------------------------------------


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `run_lab.py shrink`."""
    parser.add_argument("what", metavar="SEED|SCENARIO", help="a seed whose random scenario fails, or a scenario")
    parser.add_argument("--seed", metavar="S", type=values.seed, help="seed of the run of SCENARIO (its own seed)")
    parser.add_argument("--nodes", metavar="N,…", type=values.sizes, default=SIZES, help="cluster sizes for SEED (3,5)")
    values.add_mutant(parser)
    parser.add_argument(
        "--simulations",
        metavar="MAX",
        type=values.count,
        default=SIMULATIONS,
        help="limit (%(default)s)",
    )
    parser.add_argument("--out", metavar="DIR", type=Path, default=RESULTS, help="for shrunk/ (%(default)s)")


def main(options: argparse.Namespace) -> int:
    """Shrink a scenario and write it; return 1, or 0 if it does not fail, or 64 if it cannot be simulated."""
    try:
        scenario, seed = _asked(options)
    except ValueError as error:
        print(error, file=sys.stderr)
        return runs.USAGE
    tell = lambda text: print(text, file=sys.stderr, flush=True)  # noqa: E731
    shrunk = shrink(scenario, seed, options.mutant, simulations=options.simulations, tell=tell)
    if shrunk is None:
        print(f"{scenario.name}, seed {seed}: nothing fails")
        return runs.PASS
    print(report(shrunk, write(shrunk, options.out)))
    return runs.BROKEN


def _asked(options: argparse.Namespace) -> tuple[Scenario, int]:
    """Return the selected scenario and its seed.

    Raises:
        ValueError: there is no such scenario, it has no seed, or it cannot be simulated.
    """
    if options.what.isdecimal():
        seed = int(options.what)
        return draw(seed, options.nodes), seed
    try:
        scenario = plan.load(find(options.what, SCENARIOS))
    except ConfigError as error:
        raise ValueError(str(error)) from None
    given: int | None = scenario.seed if options.seed is None else options.seed
    if given is None:
        raise ValueError(f"{options.what}: the file has no seed, so --seed is required")
    if refusals := scenario.sim_refusals():
        raise ValueError("\n".join(f"{options.what}: {reason}" for reason in refusals))
    return scenario, given
