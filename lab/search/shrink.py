"""`run_lab.py shrink`: reduce a failing scenario to the steps and settings that the failure needs.

Delta debugging (Zeller, Hildebrandt, TSE 2002): remove steps, then nodes, then reduce load and cluster, then simplify
each step, until no pass can reduce anything any more. A candidate is accepted if it fails by the same invariant under
the same seed, if it stays within the protocol's assumptions and, with a mutant, if the unchanged product passes it. So
the result is a scenario that fails every time, in the same way as the first one.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from msgspec import structs

from lab import runs, values
from lab.places import RESULTS, SCENARIOS
from lab.plan import scenario as plan
from lab.plan.choosing import find
from lab.plan.scenario import Scenario
from lab.search.draw import CHANGING_SHARE, SIZES, draw
from lab.search.failure import Failure, play
from lab.search.passes import Passes, size_of
from lab.search.rates import Rate
from lab.steps.machine import RunFailed
from lab.words import counted
from nodeproc.errors import ConfigError

SIMULATIONS: Final = 1500
"""Default limit of simulations; most failures need a few hundred."""
BUDGET_S: Final = 3600.0
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


class _Shrinking(Passes):
    """The reduction of one scenario in the simulator."""

    def __init__(
        self,
        scenario: Scenario,
        seed: int,
        mutant: str,
        failure: Failure,
        simulations: int,
        tell: Callable[[str], None],
    ) -> None:
        super().__init__(scenario, seed)
        self.failure = failure
        self._seed, self._mutant, self._simulations, self._tell = seed, mutant, simulations, tell
        self._spent = 0

    def carry_out(self) -> Shrunk:
        """Repeat all passes until none of them reduces the scenario."""
        try:
            self.reduce()
        except _Spent:
            minimal = False
        else:
            minimal = True
        return Shrunk(self.best, self.failure, self._mutant, self._spent, minimal)

    def accepted(self) -> None:
        self._tell(f"{size_of(self.best)} after {self._spent} simulations")

    def fails(self, candidate: Scenario) -> bool:
        if not self.failure.like(found := self._play(candidate, self._mutant)):
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


# ---- output -----------------------------------------------------------------------------------------------


def document(shrunk: Shrunk, name: str = "") -> str:
    """Return the reduced scenario as the text of a file that can be run. name: "" for that of write()."""
    who = f" as the mutant {shrunk.mutant}" if shrunk.mutant else ""
    description = f"Shrunk from {shrunk.scenario.name}. Breaks {shrunk.failure.invariant}{who}: {shrunk.failure.text}"
    return plan.encode_brief(structs.replace(shrunk.scenario, name=name or file_stem(shrunk), description=description))


def file_stem(shrunk: Shrunk) -> str:
    return shrunk.mutant or f"{shrunk.scenario.name}_seed_{shrunk.seed}"


def write(shrunk: Shrunk, results: Path) -> Path:
    """Write the reduced scenario to a file that can be run; return its path."""
    directory = results / SHRUNK
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f"{file_stem(shrunk)}.yml"
    path.write_text(document(shrunk), "utf-8")
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
    add_changing(parser)
    values.add_mutant(parser)
    parser.add_argument(
        "--simulations",
        metavar="MAX",
        type=values.count,
        help=f"limit without --live ({SIMULATIONS})",
    )
    parser.add_argument("--live", action="store_true", help="run real processes; not every run has to fail")
    parser.add_argument("--budget", metavar="T", type=values.running_time, help="running time with --live (1h)")
    parser.add_argument("--out", metavar="DIR", type=Path, default=RESULTS, help="for shrunk/ (%(default)s)")


def add_changing(parser: argparse.ArgumentParser) -> None:
    """Add the option --changing."""
    what = f"share of the seeds that change the members ({CHANGING_SHARE:g})"
    parser.add_argument("--changing", metavar="SHARE", type=values.share, default=CHANGING_SHARE, help=what)


def main(options: argparse.Namespace) -> int:
    """Shrink a scenario and write it; return 1, or 0 if it does not fail, 2 if live runs were too few to know, or
    64 if it cannot be run that way."""
    try:
        scenario, seed = _asked(options)
    except ValueError as error:
        print(error, file=sys.stderr)
        return runs.USAGE
    tell = lambda text: print(text, file=sys.stderr, flush=True)  # noqa: E731
    if options.live:
        return _main_live(scenario, seed, options, tell)
    limit = SIMULATIONS if options.simulations is None else options.simulations
    shrunk = shrink(scenario, seed, options.mutant, simulations=limit, tell=tell)
    if shrunk is None:
        print(f"{scenario.name}, seed {seed}: nothing fails")
        return runs.PASS
    print(report(shrunk, write(shrunk, options.out)))
    return runs.BROKEN


def _main_live(scenario: Scenario, seed: int, options: argparse.Namespace, tell: Callable[[str], None]) -> int:
    from lab.search import shrink_live as live

    observe, budget_s = live.LiveRuns(options.out, seed), options.budget or BUDGET_S
    try:
        shrunk = live.shrink_live(scenario, seed, options.mutant, live.Runs(observe, budget_s), tell)
    except RunFailed as error:
        print(f"the lab failed: {error}", file=sys.stderr)
        return runs.HARNESS
    if isinstance(shrunk, Rate):
        few = shrunk.runs < live.FIRST_RUNS
        ended = f"; the budget ended before {live.FIRST_RUNS}" if few else ""
        print(f"{scenario.name}, seed {seed}: nothing fails in {counted(shrunk.runs, 'run')}{ended}")
        return runs.UNDECIDED if few else runs.PASS
    print(live.report(shrunk, live.write(shrunk, options.out), observe.keep(shrunk)))
    return runs.INTERRUPTED if shrunk.interrupted else runs.BROKEN


def _asked(options: argparse.Namespace) -> tuple[Scenario, int]:
    """Return the selected scenario and its seed.

    Raises:
        ValueError: there is no such scenario, it has no seed, it cannot be run in this way, or an option has no use.
    """
    if options.live and options.simulations is not None:
        raise ValueError("--simulations: not with --live, which has --budget")
    if not options.live and options.budget is not None:
        raise ValueError("--budget: only with --live")
    if options.live and (refusal := values.unwritable(options.out / SHRUNK)):
        raise ValueError(refusal)
    if options.what.isdecimal():
        if options.seed is not None:
            raise ValueError("--seed: only with a scenario")
        try:
            seed = values.seed(options.what)
        except argparse.ArgumentTypeError as error:
            raise ValueError(f"seed: {error}") from None
        return draw(seed, options.nodes, options.changing), seed
    try:
        scenario = plan.load(find(options.what, SCENARIOS))
    except ConfigError as error:
        raise ValueError(str(error)) from None
    given: int | None = scenario.seed if options.seed is None else options.seed
    if given is None and options.live:
        given = 1
    if given is None:
        raise ValueError(f"{options.what}: the file has no seed, so --seed is required")
    if refusals := runs.refusals(scenario, runs.How(sim=not options.live)):
        raise ValueError("\n".join(f"{options.what}: {reason}" for reason in refusals))
    return scenario, given
