"""Make the scenario of a failing seed small: what is left is needed for the failure, and plain.

Delta debugging (Zeller, Hildebrandt, TSE 2002) over the steps, then over nodes, load and cluster, then each step by
itself, until nothing can be taken away any more. A candidate is taken over when the same invariant breaks in it under
the same seed, when it still asks nothing that the protocol does not promise, and, where the product is a mutant, when
the product itself passes it. So the last candidate is a scenario that fails each time, by what the first one failed by.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from msgspec import structs

from lab.plan import scenario as plan
from lab.plan.scenario import Scenario
from lab.search.draw import SIZES, draw
from lab.search.failure import Failure, play
from lab.search.smaller import (
    Steps,
    a_node_less,
    chunks_left_out,
    plainer_cluster,
    plainer_load,
    plainer_steps,
    sleeps_joined,
    slices_left_out,
    with_steps,
)
from lab.search.sound import is_sound
from nodeproc.errors import ConfigError

SIMULATIONS: Final = 1500
"""At most so many, unless more are asked for; most failures need a few hundred."""
ROOT: Final = Path(__file__).resolve().parents[2]
RESULTS: Final = ROOT / "results"
SHRUNK: Final = "shrunk"
"""Directory of the small scenarios, below that of the results."""
PASS, BROKEN, USAGE = 0, 1, 64


@dataclass(frozen=True, slots=True)
class Shrunk:
    """A small scenario that fails.

    scenario: its seed included. failure: what it is missed by. mutant: of the product; "": itself.
    simulations: how many it took. minimal: nothing more can be taken away; else the simulations were used up.
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
    """Make a failing scenario small.

    Args:
        mutant: what the product is while the scenario is played; "": itself.
        failure: what it fails by, where the caller knows.
        simulations: at most so many.
        tell: told a line whenever it has become smaller.

    Returns:
        None: the scenario does not fail.
    """
    found = failure or play(scenario, seed, mutant)
    return None if found is None else _Shrinking(scenario, seed, mutant, found, simulations, tell).carry_out()


class _Spent(Exception):
    """No simulation is left."""


class _Shrinking:
    """One scenario on its way down."""

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
        self._sound = is_sound(scenario.steps, scenario.cluster.nodes)
        """Else it can't be told what of it would be."""

    def carry_out(self) -> Shrunk:
        """Everything again and again, until nothing can be taken away."""
        minimal = False
        try:
            while not minimal:
                before = self.best
                self._fewer_steps()
                self._repeatedly(lambda: a_node_less(self.best))
                self._repeatedly(lambda: plainer_load(self.best))
                self._repeatedly(lambda: plainer_cluster(self.best))
                self._repeatedly(lambda: self._in_steps(plainer_steps(self.best.steps)))
                minimal = self.best == before
        except _Spent:
            pass
        return Shrunk(self.best, self.failure, self._mutant, self._spent, minimal)

    def _fewer_steps(self) -> None:
        """Half of the steps, a quarter, …, single ones; then what can only go together."""
        size = len(self.best.steps) // 2
        while size >= 1:
            for number in range(len(self.best.steps) // size + 1):
                some = list(chunks_left_out(self.best.steps, size))
                self._take_first(self._in_steps(some[number : number + 1]))
            size //= 2
        self._repeatedly(lambda: self._in_steps(slices_left_out(self.best.steps)))
        self._repeatedly(lambda: self._in_steps(sleeps_joined(self.best.steps)))

    def _in_steps(self, candidates: Iterable[Steps]) -> Iterator[Scenario]:
        return (with_steps(self.best, steps) for steps in candidates if steps)

    def _repeatedly(self, candidates: Callable[[], Iterator[Scenario]]) -> None:
        while self._take_first(candidates()):
            pass

    def _take_first(self, candidates: Iterable[Scenario]) -> bool:
        """Go on with the first candidate that fails in the same way; False: none does."""
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
        if key in self._tried or (self._sound and not is_sound(candidate.steps, candidate.cluster.nodes)):
            return False
        self._tried.add(key)
        if not _is_scenario(candidate) or not self.failure.like(found := self._play(candidate, self._mutant)):
            return False
        if self._mutant and self._play(candidate, "") is not None:
            return False  # What the product itself can't do shows nothing about the mutant.
        assert found is not None
        self.failure = found
        return True

    def _play(self, candidate: Scenario, mutant: str) -> Failure | None:
        if self._spent >= self._simulations:
            raise _Spent
        self._spent += 1
        return play(candidate, self._seed, mutant)


def _is_scenario(candidate: Scenario) -> bool:
    """Whether it could be written to a file and read again."""
    try:
        return plan.load("candidate", text=plan.encode_brief(candidate)) == candidate
    except ConfigError:
        return False


# ---- what is left of it -----------------------------------------------------------------------------------


def write(shrunk: Shrunk, results: Path) -> Path:
    """Write the small scenario as a file that can be run; returns where."""
    directory = results / SHRUNK
    directory.mkdir(parents=True, exist_ok=True)
    name = shrunk.mutant or f"{shrunk.scenario.name}_seed_{shrunk.seed}"
    path = directory / f"{name}.yml"
    who = f" as the mutant {shrunk.mutant}" if shrunk.mutant else ""
    description = f"Shrunk from {shrunk.scenario.name}. Breaks {shrunk.failure.invariant}{who}: {shrunk.failure.text}"
    path.write_text(plan.encode_brief(structs.replace(shrunk.scenario, name=name, description=description)), "utf-8")
    return path


def replay_command(path: Path, seed: int, mutant: str = "", *, live: bool = False) -> str:
    """The command that plays a scenario again: in virtual time, or on real processes."""
    near = path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
    how = "" if live else f" --sim --seed {seed} --frames"
    return f"python run_lab.py {near}{how}" + (f" --mutant {mutant}" if mutant else "")


def report(shrunk: Shrunk, path: Path) -> str:
    """What has become of a failing scenario, and how to see it again."""
    scenario, failure = shrunk.scenario, shrunk.failure
    lines = [
        f"{failure.invariant}: {failure.text}",
        f"{scenario.step_count} steps, {scenario.cluster.nodes} nodes, after {shrunk.simulations} simulations"
        + ("" if shrunk.minimal else ", all that were allowed: there may be less"),
        f"again:   {replay_command(path, shrunk.seed, shrunk.mutant)}",
        f"live:    {replay_command(path, shrunk.seed, shrunk.mutant, live=True)}",
    ]
    return "\n".join(lines)


# ---- the command ------------------------------------------------------------------------------------------


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `run_lab.py shrink`."""
    parser.add_argument("what", metavar="SEED|FILE", help="a seed whose drawn scenario fails, or a scenario file")
    parser.add_argument("--seed", metavar="S", type=_whole, help="of the run of FILE; without it, the file's own")
    parser.add_argument("--nodes", metavar="N,…", type=_sizes, default=SIZES, help="sizes that SEED draws from (3,5)")
    parser.add_argument("--mutant", metavar="NAME", default="", help="break one rule (lab/mutants) meanwhile")
    parser.add_argument(
        "--simulations", metavar="MAX", type=_whole, default=SIMULATIONS, help="at most so many (%(default)s)"
    )
    parser.add_argument("--out", metavar="DIR", type=Path, default=RESULTS, help="where shrunk/ goes (results/)")


def _whole(text: str) -> int:
    if not text.isdecimal() or int(text) > plan.MAX_SEED:
        raise argparse.ArgumentTypeError(f"found {text!r}, allowed 0..{plan.MAX_SEED}")
    return int(text)


def _sizes(text: str) -> tuple[int, ...]:
    """1,3,5: cluster sizes to draw from."""
    found = tuple(int(part) if part.isdecimal() else 0 for part in text.split(","))
    if not all(2 <= size <= plan.MAX_NODES for size in found):
        raise argparse.ArgumentTypeError(f"found {text!r}, allowed numbers from 2 to {plan.MAX_NODES} with , between")
    return found


def main(options: argparse.Namespace) -> int:
    """Shrink and say what is left: 1 it is written, 0 there is no failure, 64 it can't be played."""
    from lab.mutants.catalogue import MUTANTS

    if options.mutant and options.mutant not in MUTANTS:
        print(f"mutant {options.mutant!r}, allowed: {', '.join(MUTANTS)}", file=sys.stderr)
        return USAGE
    try:
        scenario, seed = _asked(options)
    except ValueError as error:
        print(error, file=sys.stderr)
        return USAGE
    tell = lambda text: print(text, file=sys.stderr, flush=True)  # noqa: E731
    shrunk = shrink(scenario, seed, options.mutant, simulations=options.simulations, tell=tell)
    if shrunk is None:
        print(f"{scenario.name}, seed {seed}: nothing fails")
        return PASS
    print(report(shrunk, write(shrunk, options.out)))
    return BROKEN


def _asked(options: argparse.Namespace) -> tuple[Scenario, int]:
    """The scenario and its seed.

    Raises:
        ValueError: there is none, or it can't be simulated.
    """
    if options.what.isdecimal():
        seed = _whole(options.what)
        return draw(seed, options.nodes), seed
    try:
        scenario = plan.load(Path(options.what))
    except ConfigError as error:
        raise ValueError(str(error)) from None
    given: int | None = scenario.seed if options.seed is None else options.seed
    if given is None:
        raise ValueError(f"{options.what}: has no seed of its own, so --seed is needed")
    if refusals := scenario.sim_refusals():
        raise ValueError("\n".join(f"{options.what}: {reason}" for reason in refusals))
    return scenario, given
