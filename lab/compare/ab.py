"""`run_lab.py ab --base REF SCENARIO`: is this version worse than another one? Decided by alternating runs.

Both versions run the scenario in pairs, in the order AB BA AB …, after one run of each that is not counted. A pair
counts if both runs passed. lab.paired judges the figures; docs/comparing.md explains how to read the result.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

from lab import values
from lab.compare.decision import Pair, Report
from lab.compare.figures import JUDGED, JUDGED_SIM, NAMES, SEEDS
from lab.compare.trees import Ran, Runner, Tree, checked_out, this_tree
from lab.live.processes import Lifeline
from lab.paired import EXCLUDED, LEVEL, PAIRS_MAX, PAIRS_MIN, WORTH
from lab.places import RESULTS, SCENARIOS
from lab.plan.choosing import find
from lab.plan.sense import load_checked
from lab.rundir import utc_stamp
from lab.runs import INTERRUPTED, USAGE, Progress
from nodeproc.errors import ConfigError

PAIRS: Final = 8
SIM_SEEDS: Final = 5


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `run_lab.py ab`."""
    worth, excluded = f"{WORTH - 1:.0%}", f"{EXCLUDED - 1:.0%}"
    parser.epilog = (
        f"Exit codes: 0 no judged figure is worse by more than {excluded}; 1 a run of this version broke an invariant; "
        f"2 undecided; 3 a figure is worse by more than {worth}, with a chance of a false alarm below {LEVEL:.0%}; "
        "64 wrong usage; 70 the lab itself failed; 130 interrupted."
    )
    parser.add_argument("scenario", metavar="SCENARIO", help="a file, or the name of a scenario")
    parser.add_argument(
        "--base", metavar="REF", help="the version to compare this directory with: a commit, branch, tag or directory"
    )
    parser.add_argument(
        "--aa", action="store_true", help="compare a version with itself: can this machine show a change?"
    )
    parser.add_argument(
        "--pairs",
        metavar="N",
        type=values.between(PAIRS_MIN, PAIRS_MAX),
        default=PAIRS,
        help=f"number of pairs of runs, {PAIRS_MIN} to {PAIRS_MAX} (%(default)s)",
    )
    parser.add_argument(
        "--metric",
        metavar="NAME",
        action="append",
        choices=NAMES,
        help=f"judge this figure, or several, instead of {', '.join(JUDGED)}: {', '.join(NAMES)}",
    )
    parser.add_argument("--sim", action="store_true", help="compare the speed of simulations instead of real processes")
    parser.add_argument(
        "--seeds",
        metavar="N",
        type=values.positive,
        help=f"with --sim: number of seeds that each run simulates ({SIM_SEEDS})",
    )
    parser.add_argument("--seed", metavar="S", type=values.seed, default=1, help="seed of the first pair (%(default)s)")
    parser.add_argument(
        "--out",
        metavar="DIR",
        type=Path,
        default=RESULTS,
        help="runs that do not pass are kept in DIR/ab (%(default)s)",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON document on standard output")


def main(options: argparse.Namespace) -> int:
    """Measure and print the report; return the exit code."""
    try:
        return _main(options)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return USAGE


def _main(options: argparse.Namespace) -> int:
    """As main().

    Raises:
        ConfigError: the options name something that does not exist or fit.
    """
    scenario = find(options.scenario, SCENARIOS)
    judged = tuple(options.metric or (JUDGED_SIM if options.sim else JUDGED))
    _check(options, scenario, judged)
    here = this_tree()
    pairs: list[Pair] = []
    interrupted = False
    with _interrupted_by_sigterm(), contextlib.ExitStack() as stack:
        base = here if options.base is None else stack.enter_context(checked_out(options.base))
        trees = {"base": base, "candidate": base if options.aa else here}
        lifeline = Lifeline()
        stack.callback(lifeline.cut)
        runner = Runner(scenario, lifeline.fd, (options.seeds or SIM_SEEDS) if options.sim else 0)
        try:
            for pair in _measured(options, runner, trees):
                pairs.append(pair)
        except KeyboardInterrupt:
            interrupted = True
    report = Report(
        scenario.stem,
        trees["base"].label,
        trees["candidate"].label,
        options.aa,
        options.pairs,
        tuple(pairs),
        judged,
        interrupted,
    )
    print(json.dumps(report.plain(), indent=1) if options.json else report.text())
    return report.exit_code


def _check(options: argparse.Namespace, scenario: Path, judged: Sequence[str]) -> None:
    """Check the options against each other, and the scenario.

    Raises:
        ConfigError: says what to change.
    """
    if options.base is None and not options.aa:
        raise ConfigError("--base REF is missing: the version to compare with, such as HEAD; or --aa")
    if not options.sim and (options.seeds or SEEDS.name in judged):
        raise ConfigError(f"{'--seeds' if options.seeds else f'--metric {SEEDS.name}'}: only with --sim")
    loaded = load_checked(scenario, simulated=options.sim)
    if options.sim and (refusals := loaded.sim_refusals()):
        raise ConfigError(f"{loaded.name}: {refusals[0]}")


@contextlib.contextmanager
def _interrupted_by_sigterm() -> Iterator[None]:
    """SIGTERM raises KeyboardInterrupt, so that whatever was started is ended."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _measured(options: argparse.Namespace, runner: Runner, trees: Mapping[str, Tree]) -> Iterator[Pair]:
    """Yield the pairs as they are measured, until all are, or until too few can count.

    Raises:
        ConfigError: a version refuses the scenario or an option.
        KeyboardInterrupt: as interrupted by the user.
    """
    folder: Path = options.out.absolute() / "ab" / utc_stamp()
    progress = Progress("ab")
    lost = 0
    try:
        for number in range(options.pairs + 1):
            seed, rans = options.seed + number * max(runner.seeds, 1), dict[str, Ran]()
            for side in ("base", "candidate") if number % 2 else ("candidate", "base"):
                progress(f"pair {number} of {options.pairs}: {side}" if number else f"first run, not counted: {side}")
                ran = rans[side] = runner.run(trees[side], seed, folder / f"{number}-{side}")
                if ran.code == USAGE:
                    raise ConfigError(f"{side}: {ran.problem}")
                if ran.code == INTERRUPTED:
                    raise KeyboardInterrupt
            pair = Pair(number, seed, rans["base"], rans["candidate"])
            yield pair
            lost += bool(number) and not pair.counts
            if options.pairs - lost < PAIRS_MIN:
                return
    finally:
        progress.close()
        for each in (folder, folder.parent):
            with contextlib.suppress(OSError):  # It does not exist, or contains a run that did not pass.
                each.rmdir()
