"""`run_lab.py selftest`: break one rule of the product at a time and show whether the checks notice.

A mutant is caught if a simulation of it breaks an invariant; a liveness mutant must break A9. Mutants with a story
(lab.selftest.stories) are simulated in it, the others in the scenarios of random seeds from 0 on, until one fails. The
failing scenario is shrunk (lab.search.shrink), so that the consequence of the broken rule is easy to read. With --live
some mutants also run as real nodes. The exit code is 1 if a mutant escapes.
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Literal

from tabulate import tabulate

from lab import runs, values
from lab.mutants.catalogue import MUTANTS, Mutant
from lab.places import RESULTS, near
from lab.plan.scenario import Scenario
from lab.search.draw import SIZES, draw
from lab.search.failure import Failure, play
from lab.search.search import Search, Tally, play_all
from lab.search.shrink import Shrunk, shrink, write
from lab.selftest.stories import SEEDS, story

DRAWN: Final = 2000
"""Maximum number of random seeds for one mutant."""
LIVE: Final = ("commit_seq_used_before_the_own_mark", "leader_never_steps_down", "sessions_lost_at_restart")
"""Mutants whose stories also run on real nodes with --live."""
LIVE_TRIES: Final = 3
"""Number of live runs; timing varies, and most mutants are caught in the first one."""


@dataclass(frozen=True, slots=True)
class Caught:
    """How a mutant was caught.

    seeds: number of simulated seeds, the last of which failed. seconds: wall-clock time.
    """

    scenario: Scenario
    seed: int
    failure: Failure
    how: Literal["story", "drawn"]
    seeds: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Row:
    """The result of one mutant.

    caught: None if it escaped. small: the shrunk scenario; None if it was not shrunk. live: the check that failed on
    real nodes; "" if none did, "-" if it was not tried.
    """

    mutant: Mutant
    caught: Caught | None
    seeds: int
    seconds: float
    small: Shrunk | None = None
    path: Path | None = None
    live: str = "-"

    @property
    def escaped(self) -> bool:
        return self.caught is None or self.live == ""


# ---- catching -------------------------------------------------------------------------------------------


def counts(mutant: Mutant, invariant: str) -> bool:
    """Return whether breaking this invariant counts as catching the mutant."""
    return mutant.kind == "safety" or invariant == "A9"


def catch(mutant: Mutant, seeds: int, jobs: int, time_limit: float | None, *, drawn: bool) -> Row:
    """Simulate a mutant until it is caught.

    Args:
        seeds: maximum number of random seeds.
        time_limit: no random seed is started after so many seconds.
        drawn: use random seeds even if the mutant has a story.
    """
    begun = time.monotonic()
    scenario = None if drawn else story(mutant.name)
    if scenario is not None:
        return _catch_in_story(mutant, scenario, begun)
    first = 0
    while first < seeds:
        left = None if time_limit is None else max(time_limit - (time.monotonic() - begun), 0.0)
        search = Search(first, seeds - first, jobs, SIZES, left, exitfirst=True, mutant=mutant.name)
        tally = Tally(search)
        asyncio.run(play_all(tally, lambda text: None, lambda played: None))
        seconds = time.monotonic() - begun
        if tally.troubles:
            raise RuntimeError(f"{mutant.name}, seed {tally.troubles[0].seed}:\n{tally.troubles[0].trouble}")
        first += tally.done
        if not tally.findings:
            return Row(mutant, None, first, seconds)
        played = tally.findings[0]
        if counts(mutant, played.invariant):
            failure = play(draw(played.seed), played.seed, mutant.name)
            assert failure is not None, f"{mutant.name}: seed {played.seed} failed in another process"
            caught = Caught(draw(played.seed), played.seed, failure, "drawn", first, seconds)
            return Row(mutant, caught, first, seconds)
    return Row(mutant, None, first, time.monotonic() - begun)


def _catch_in_story(mutant: Mutant, scenario: Scenario, begun: float) -> Row:
    for number, seed in enumerate(SEEDS, 1):
        failure = play(scenario, seed, mutant.name)
        if failure is not None and counts(mutant, failure.invariant):
            seconds = time.monotonic() - begun
            return Row(mutant, Caught(scenario, seed, failure, "story", number, seconds), number, seconds)
    return Row(mutant, None, len(SEEDS), time.monotonic() - begun)


def shrink_row(row: Row, out: Path) -> Row:
    """Shrink the scenario that caught a mutant and write the result to a file."""
    caught = row.caught
    assert caught is not None
    small = shrink(caught.scenario, caught.seed, row.mutant.name, failure=caught.failure)
    assert small is not None
    return replace(row, small=small, path=write(small, out))


def play_live(row: Row, out: Path) -> Row:
    """Run the mutant's story on real nodes."""
    scenario = story(row.mutant.name)
    assert scenario is not None, row.mutant.name
    how = runs.How(mutant=row.mutant.name)
    for seed in range(1, LIVE_TRIES + 1):
        result = runs.run_once(scenario, seed, out, how)
        if result.exit_code in (runs.BROKEN, runs.MISSED) and result.verdict is not None:
            broken = [check.name for check in result.verdict.checks if check.result == "FAIL"]
            return replace(row, live=", ".join(broken) or "expectation")
    return replace(row, live="")


# ---- output ---------------------------------------------------------------------------------------------


def table(rows: Sequence[Row]) -> str:
    """Return the table of results, one line for each mutant."""
    columns = ("mutant", "rule", "caught by", "in", "seeds", "s", "steps", "nodes", "live")
    cells = [
        (
            row.mutant.name,
            row.mutant.rule,
            "NOTHING" if row.caught is None else row.caught.failure.invariant,
            "-" if row.caught is None else row.caught.how,
            str(row.seeds),
            f"{row.seconds:.2f}",
            "-" if row.small is None else str(row.small.scenario.step_count),
            "-" if row.small is None else str(row.small.scenario.cluster.nodes),
            row.live or "NOTHING",
        )
        for row in rows
    ]
    align = ("left", "left", "left", "left", "right", "right", "right", "right", "left")
    return str(tabulate(cells, headers=columns, tablefmt="simple", colalign=align, disable_numparse=True))


def summary(rows: Sequence[Row]) -> Iterator[str]:
    """Yield the lines below the table: totals, medians, and the mutants that escaped."""
    escaped = [row.mutant.name for row in rows if row.escaped]
    seeds, seconds = (statistics.median(values) for values in ([r.seeds for r in rows], [r.seconds for r in rows]))
    yield f"{len(rows) - len(escaped)} of {len(rows)} mutants caught; median {seeds:g} seeds, {seconds:.2f} s"
    steps = [row.small.scenario.step_count for row in rows if row.small is not None]
    if steps:
        yield f"shrunk scenarios: median {statistics.median(steps):g} steps, most {max(steps)}"
    directories = {near(row.path.parent) for row in rows if row.path is not None}
    yield from (f"they are in {directory}/, each with its mutant's name" for directory in directories)
    if escaped:
        yield f"ESCAPED: {', '.join(escaped)}"


def _line(row: Row) -> str:
    if row.caught is None:
        return f"{row.mutant.name}: ESCAPED, {row.seeds} seeds, {row.seconds:.1f} s"
    failure = row.caught.failure
    return f"{row.mutant.name}: {failure.invariant}, {row.seeds} seeds, {row.seconds:.1f} s: {failure.text}"


# ---- the command ----------------------------------------------------------------------------------------


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `run_lab.py selftest`."""
    parser.epilog = "Exit codes: 0 every mutant is caught, 1 one escapes. docs/teaching.md explains the mutants."
    parser.add_argument(
        "--only", metavar="NAME", nargs="+", type=values.mutant, default=list(MUTANTS), help="only these mutants (all)"
    )
    parser.add_argument(
        "--jobs", metavar="J", type=values.jobs, default=values.processors(), help="processes (%(default)s)"
    )
    parser.add_argument(
        "--seeds",
        metavar="MAX",
        type=values.positive,
        default=DRAWN,
        help="limit of random seeds (%(default)s)",
    )
    parser.add_argument("--time-limit", metavar="T", type=values.duration, help="limit for random seeds, such as 90s")
    parser.add_argument("--drawn", action="store_true", help="use random seeds instead of stories")
    parser.add_argument("--no-shrink", action="store_true", help="do not shrink the failing scenarios")
    parser.add_argument("--live", action="store_true", help=f"also run on real nodes: {', '.join(LIVE)}")
    parser.add_argument(
        "--out", metavar="DIR", type=Path, default=RESULTS, help="directory for shrunk/ and runs (%(default)s)"
    )


def main(options: argparse.Namespace) -> int:
    """Examine the selected mutants and print the results; return the exit code."""
    rows = examine([MUTANTS[name] for name in dict.fromkeys(options.only)], options)
    print(table(rows))
    print("\n" + "\n".join(summary(rows)))
    return runs.BROKEN if any(row.escaped for row in rows) else runs.PASS


def examine(mutants: Sequence[Mutant], options: argparse.Namespace) -> list[Row]:
    """Catch the mutants one after the other, and shrink the failing scenarios in other processes meanwhile.

    A single mutant needs no other process, whose start would take longer than most shrinks.
    """
    rows: list[Row] = []
    small: dict[int, Future[Row]] = {}
    with ProcessPoolExecutor(options.jobs, multiprocessing.get_context("spawn")) as pool:
        for mutant in mutants:
            row = catch(mutant, options.seeds, options.jobs, options.time_limit, drawn=options.drawn)
            print(_line(row), file=sys.stderr, flush=True)
            if row.caught is not None and not options.no_shrink:
                if len(mutants) == 1:
                    row = shrink_row(row, options.out)
                else:
                    small[len(rows)] = pool.submit(shrink_row, row, options.out)
            rows.append(row)
        for at, future in small.items():
            rows[at] = future.result()
    if options.live:
        rows = [play_live(row, options.out) if row.mutant.name in LIVE else row for row in rows]
    return rows
