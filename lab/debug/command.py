"""`run_lab.py debug`: step through a simulated run in the terminal or on a page, backwards too, and change it."""

from __future__ import annotations

import argparse
import asyncio
import sys
from pathlib import Path
from typing import Final, NamedTuple

from lab import values
from lab.debug.branch import begin
from lab.debug.shell import Shell, Wrong, lines, obey
from lab.debug.texts import ending_of, failure_of
from lab.plan import scenario as plan
from lab.plan.scenario import Scenario
from nodeproc.errors import ConfigError

PASS, USAGE, HARNESS = 0, 64, 70
DRAWN: Final = 2000
"""Maximum number of random seeds that are tried for a mutant without a story."""


class Asked(NamedTuple):
    """What to debug. mutant: "" for none."""

    scenario: Scenario
    seed: int
    mutant: str

    @property
    def title(self) -> str:
        return f"{self.scenario.name}, seed {self.seed}" + (f", mutant {self.mutant}" if self.mutant else "")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `run_lab.py debug`."""
    what = "a scenario (file or name), or the directory of a simulated run; with --mutant by default one that fails"
    parser.add_argument("run", metavar="RUN", nargs="?", help=what)
    parser.add_argument("--seed", metavar="N", type=values.seed, help="seed of the simulation (that of the run)")
    values.add_mutant(parser)
    parser.add_argument("--web", action="store_true", help="show the run on a page in the browser")
    parser.add_argument(
        "--port", metavar="P", type=values.between(0, 65535), default=0, help="its port (0: a free one)"
    )
    parser.add_argument("--open", action="store_true", help="open the page in the browser")


def main(options: argparse.Namespace) -> int:
    """Debug until the user leaves; return 0, 64 if there is no such run, or 70 if a page needs a missing package."""
    if options.web:
        from lab.watch.serve import missing

        if why := missing("debug --web"):
            print(why, file=sys.stderr)
            return HARNESS
    try:
        asked = _asked(options)
    except (ConfigError, Wrong) as error:
        print(error, file=sys.stderr)
        return USAGE
    return _on_a_page(asked, options) if options.web else _in_the_terminal(asked)


def _in_the_terminal(asked: Asked) -> int:
    try:
        branch = begin(*asked)
    except (EOFError, ConnectionError):
        return HARNESS
    shell = Shell(asked.scenario, [branch], print)
    print(f"{asked.title}: {ending_of(branch.recorded)}")
    shell.go_row(branch.recorded.rows - 1 if failure_of(branch.recorded) else -1)
    try:
        for line in lines():
            if line.strip() and not obey(shell, line):
                break
    finally:
        for each in shell.branches:
            each.close()
    return PASS


def _on_a_page(asked: Asked, options: argparse.Namespace) -> int:
    from lab.debug.page import Page
    from lab.watch.web import serve

    try:
        branch = begin(*asked)
    except (EOFError, ConnectionError):
        return HARNESS
    page = Page(*asked, branch)
    note = f"{asked.title}: {ending_of(branch.recorded)}; Ctrl+C ends"
    try:
        asyncio.run(serve(page, options.port, "", note, open_page=options.open))
    except OSError as error:
        print(f"--port {options.port}: {error.strerror or error}; allowed: a free port, or 0", file=sys.stderr)
        return USAGE
    finally:
        page.close()
    return PASS


def _asked(options: argparse.Namespace) -> Asked:
    """Return what the command line asks for.

    Raises:
        ConfigError, Wrong: there is no such run.
    """
    from lab.places import SCENARIOS
    from lab.plan.choosing import find
    from lab.plan.sense import load_checked
    from lab.rundir import RunDir, RunDirError
    from lab.runs import seed_of

    if options.run is None:
        if not options.mutant:
            raise Wrong("found neither RUN nor --mutant, allowed: one of them, or both")
        return failing(options.mutant, options.seed)
    path = Path(options.run)
    if path.is_dir():
        from lab.check.history import RunFileError, read_meta

        try:
            run = RunDir.open(path)
            meta = read_meta(run.meta)
        except (RunDirError, RunFileError) as error:
            raise Wrong(str(error)) from None
        if meta.kind != "sim":
            raise Wrong(f"{path}: found a live run, allowed: a simulated one (--sim)")
        scenario = plan.load(run.scenario)
        return Asked(scenario, meta.seed if options.seed is None else options.seed, options.mutant or meta.mutant)
    scenario = load_checked(find(options.run, SCENARIOS), simulated=True)
    return Asked(scenario, seed_of(scenario, options.seed, 0), options.mutant)


def failing(mutant: str, seed: int | None = None) -> Asked:
    """Return a run that a mutant makes fail: its story, or the scenario drawn from the first seed that fails.

    Args:
        seed: the only one that is tried; None: all.

    Raises:
        Wrong: no seed fails.
    """
    from lab.mutants.catalogue import MUTANTS
    from lab.search.draw import draw
    from lab.search.failure import play
    from lab.selftest.selftest import counts
    from lab.selftest.stories import SEEDS, story

    told = story(mutant)
    seeds = [seed] if seed is not None else SEEDS if told is not None else range(DRAWN)
    for each in seeds:
        scenario = told or draw(each)
        failure = play(scenario, each, mutant)
        if failure is not None and counts(MUTANTS[mutant], failure.invariant):
            return Asked(scenario, each, mutant)
    raise Wrong(f"{mutant}: none of {len(seeds)} seeds fails; allowed: a RUN that does")
