"""Carry out one scenario and judge its run directory; the exit codes and option values that all commands share.

    result = run_once(scenario, seed, RESULTS, How(sim=True))
    result.exit_code == PASS

Exit codes are those of run_lab.py: 0 pass, 1 an invariant is broken, 2 undecided, 3 an expectation was missed, 64 wrong
usage or scenario, 70 the lab itself failed, 130 interrupted.
"""

from __future__ import annotations

import argparse
import contextlib
import random
import sys
import traceback
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lab.check.metrics import Metrics
    from lab.check.verdict import Verdict
    from lab.plan.scenario import Scenario
    from lab.rundir import RunDir
    from lab.show.stepsummary import RunRow

ROOT = Path(__file__).resolve().parent.parent
SCENARIOS = ROOT / "scenarios"
RESULTS = ROOT / "results"

PASS, BROKEN, UNDECIDED, MISSED, USAGE, HARNESS, INTERRUPTED = 0, 1, 2, 3, 64, 70, 130
GRAVEST_FIRST = (INTERRUPTED, USAGE, BROKEN, HARNESS, MISSED, UNDECIDED, PASS)
SEED_MAX = 2**31 - 1


@dataclass(frozen=True, slots=True)
class How:
    """How a scenario is run.

    sim: in virtual time, not on real processes. mutant: the rule that the nodes break (lab.selftest); "": none.
    frames: what nodes say to each other is kept, in virtual time.
    """

    sim: bool = False
    mutant: str = ""
    frames: bool = False


LIVE = How()


@dataclass(frozen=True, slots=True)
class Result:
    """How one run, or one judgement, ended.

    directory: None where none could be made, or it was not kept. problem: why there is no verdict; empty where there is
    one.
    """

    scenario: str
    seed: int | None
    directory: Path | None
    exit_code: int
    verdict: Verdict | None = None
    metrics: Metrics | None = None
    problem: str = ""

    def plain(self) -> dict[str, Any]:
        """For --json."""
        import msgspec

        return {
            "scenario": self.scenario,
            "seed": self.seed,
            "directory": None if self.directory is None else str(self.directory),
            "exit_code": self.exit_code,
            "problem": self.problem,
            "verdict": msgspec.to_builtins(self.verdict),
            "metrics": msgspec.to_builtins(self.metrics),
        }

    def text(self) -> str:
        """What people read of it: its summary, or why it has none; of a run that was not kept the last line alone."""
        if self.verdict is None:
            return f"{self.scenario}: the lab failed: {self.problem}\n"
        if self.directory is None:
            from lab.show.table import CLOSING

            return f"{self.scenario}: {CLOSING[self.verdict.outcome]}\n"
        return (self.directory / "summary.txt").read_text("utf-8")


def summary_row(result: Result) -> RunRow:
    """A run in the table of a build server's summary page."""
    from lab.show import stepsummary

    directory = "" if result.directory is None else str(near(result.directory))
    return stepsummary.row_of(result.scenario, result.seed, directory, result.verdict, result.metrics, result.problem)


# ---- options ------------------------------------------------------------------------------------


def positive(text: str) -> int:
    """An option's value that counts something."""
    return whole_number(text, 1, "1 or more")


def seed(text: str) -> int:
    """An option's value that is a seed."""
    return whole_number(text, 0, f"0..{SEED_MAX}")


def whole_number(text: str, least: int, allowed: str, most: int = SEED_MAX) -> int:
    """An option's value within bounds; `allowed` says for people which they are."""
    if not text.isdecimal() or not least <= int(text) <= most:
        raise argparse.ArgumentTypeError(f"found {text!r}, allowed {allowed}")
    return int(text)


# ---- run and judge ------------------------------------------------------------------------------


def gravest(codes: Iterable[int]) -> int:
    """The one exit code of several runs."""
    seen = set(codes)
    return next(code for code in GRAVEST_FIRST if code in seen)


def seed_of(scenario: Scenario, first: int | None, number: int) -> int:
    """The seed of a scenario's run number 0, 1, …: from the command line, its file, or drawn."""
    if first is not None:
        return (first + number) % (SEED_MAX + 1)
    return random.SystemRandom().randrange(SEED_MAX) if scenario.seed is None else scenario.seed


def run_once(scenario: Scenario, seed: int, out: Path, how: How = LIVE) -> Result:
    """Run a scenario and judge what it left; a failure of the lab itself is a result too."""
    from lab.rundir import RunDir, utc_stamp

    directory: Path | None = None
    try:
        run = RunDir.create(out, scenario.name, utc_stamp())
        directory = run.path
        progress = Progress(scenario.name)
        try:
            _carry_out(scenario, run, seed, progress, how)
        finally:
            progress.close()
    except Exception as error:
        return _lab_failed(scenario.name, seed, directory, error)
    return judge(run, scenario.name, seed)


def _carry_out(scenario: Scenario, run: RunDir, seed: int, progress: Progress, how: How) -> None:
    with contextlib.ExitStack() as stack:
        if how.mutant:
            from lab.selftest.mutants import mutated

            stack.enter_context(mutated(how.mutant))  # Live, it is the clients of this process that are changed.
        if how.sim:
            from lab.sim import simulator

            quiet = lambda text: None  # noqa: E731
            simulator.run(scenario, run, seed=seed, progress=quiet, mutant=how.mutant, frames=how.frames)
        else:
            from lab.run import live

            live.run(scenario, run, seed=seed, progress=progress, mutant=how.mutant)


def _lab_failed(name: str, seed: int | None, directory: Path | None, error: Exception) -> Result:
    """The world's errors have a sentence of their own; anything else is ours and shown in full."""
    from lab.run.children import RunFailed

    if isinstance(error, OSError | RunFailed):
        return Result(name, seed, directory, HARNESS, problem=str(error))
    traceback.print_exception(error)
    return Result(name, seed, directory, HARNESS, problem=f"{type(error).__name__}: {error}")


def judge(run: RunDir, name: str, seed: int | None) -> Result:
    """Judge a finished run and write verdict.json, metrics.json, summary.txt and junit.xml into it."""
    import msgspec

    from lab.check.history import RunFileError
    from lab.check.invariants import check
    from lab.check.metrics import encode_metrics, measure
    from lab.check.verdict import encode_verdict
    from lab.show import junit, table

    try:
        try:
            metrics = measure(run)
        except (RunFileError, msgspec.MsgspecError) as error:  # The verdict says UNKNOWN for the same reason.
            metrics = None
            print(error, file=sys.stderr)
        verdict = check(run, metrics)
        run.verdict.write_bytes(encode_verdict(verdict))
        if metrics is not None:
            run.metrics.write_bytes(encode_metrics(metrics))
        run.junit.write_text(junit.render(name, verdict, metrics), encoding="utf-8")
        run.summary.write_text(table.render(run, verdict, metrics) + "\n", encoding="utf-8")
    except Exception as error:
        return _lab_failed(name, seed, run.path, error)
    return Result(name, seed, run.path, verdict.exit_code, verdict, metrics)


# ---- telling ------------------------------------------------------------------------------------


class Progress:
    """One line on standard error that changes; where that is no terminal, plain lines."""

    def __init__(self, name: str) -> None:
        self._name, self._open = name, False

    def __call__(self, text: str) -> None:
        if sys.stderr.isatty():
            print(f"\r\x1b[K{self._name}: {text}", end="", file=sys.stderr, flush=True)
            self._open = True
        else:
            print(f"{self._name}: {text}", file=sys.stderr, flush=True)

    def close(self) -> None:
        """Wipe the line."""
        if self._open:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
            self._open = False


def near(path: Path) -> Path:
    """As seen from the working directory, where the path is below it."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
