"""Run one scenario and judge its run directory; the exit codes that all commands share.

    result = run_once(scenario, seed, Path("results"), How(sim=True))
    result.exit_code == PASS

The exit codes are those of run_lab.py: 0 pass, 1 an invariant is broken, 2 undecided, 3 an expectation was missed,
64 wrong usage or scenario, 70 the lab itself failed, 130 interrupted.
"""

from __future__ import annotations

import contextlib
import random
import shlex
import shutil
import sys
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lab.places import COMMAND, near
from lab.values import SEED_MAX

if TYPE_CHECKING:
    from lab.check.metrics import Metrics
    from lab.check.verdict import Verdict
    from lab.course.by_hand import Person
    from lab.plan.scenario import Scenario
    from lab.rundir import RunDir
    from lab.show.stepsummary import RunRow

PASS, BROKEN, UNDECIDED, MISSED, USAGE, HARNESS, INTERRUPTED = 0, 1, 2, 3, 64, 70, 130
WORST_FIRST = (INTERRUPTED, USAGE, BROKEN, HARNESS, MISSED, UNDECIDED, PASS)


@dataclass(frozen=True, slots=True)
class How:
    """How a scenario is run.

    sim: simulate the scenario in virtual time, instead of starting processes.
    mutant: the mutant that the nodes run as (lab.mutants); "" for none.
    frames: record the frames between nodes; only with `sim`.
    engine: the words of the command line that put an engine in place of the nodes; none: the scenario's own nodes.
    network, disks: replace these settings of the scenario's cluster; "": the scenario's own.
    """

    sim: bool = False
    mutant: str = ""
    frames: bool = False
    engine: tuple[str, ...] = ()
    network: Literal["", "kernel"] = ""
    disks: Literal["", "supervised"] = ""

    def of(self, scenario: Scenario) -> Scenario:
        """Return the scenario with the network and the disks that were asked for."""
        from msgspec import structs

        asked = {"network": self.network, "disks": self.disks}
        changes = {key: value for key, value in asked.items() if value}
        return structs.replace(scenario, cluster=structs.replace(scenario.cluster, **changes))

    def command(self, path: Path, seed: int | None = None) -> str:
        """Return the command that runs the scenario file again in the same way. seed: None: the one in the file."""
        from lab.plan.choosing import word_for

        parts = [COMMAND, shlex.quote(word_for(path)), "--sim" if self.sim else ""]
        parts += [] if seed is None else [f"--seed {seed}"]
        parts += [shlex.quote(word) for word in self.engine]
        parts += [f"--network {self.network}" if self.network else "", f"--disks {self.disks}" if self.disks else ""]
        parts += ["--frames" if self.frames else ""]
        parts += [f"--mutant {self.mutant}" if self.mutant else ""]
        return " ".join(part for part in parts if part)


LIVE = How()


@dataclass(frozen=True, slots=True)
class Result:
    """The result of one run, or of judging one.

    directory: None if none could be created, or it was not kept.
    problem: why there is no verdict; "" if there is one.
    again: the command that repeats the run; "" if none is known.
    """

    scenario: str
    seed: int | None
    directory: Path | None
    exit_code: int
    verdict: Verdict | None = None
    metrics: Metrics | None = None
    problem: str = ""
    again: str = ""

    def plain(self) -> dict[str, Any]:
        """Return the entry of a run in the --json document; figures over time are left to metrics.json."""
        import msgspec

        metrics = msgspec.to_builtins(self.metrics)
        if metrics is not None:
            del metrics["series"], metrics["histogram"]

        return {
            "scenario": self.scenario,
            "seed": self.seed,
            "directory": None if self.directory is None else str(self.directory),
            "exit_code": self.exit_code,
            "problem": self.problem,
            "again": self.again,
            "verdict": msgspec.to_builtins(self.verdict),
            "metrics": metrics,
        }

    @property
    def closing(self) -> str:
        """The result on one line: PASS, or the first cause of any other result."""
        if self.verdict is None:
            return f"the lab failed: {self.problem}"
        from lab.show.table import closing

        return closing(self.verdict)

    @property
    def origin(self) -> str:
        """Seed and directory."""
        seed = "" if self.seed is None else f"seed {self.seed}, "
        return seed + ("not kept" if self.directory is None else str(near(self.directory)))

    def text(self, width: int = 0) -> str:
        """Return the tables of the run, its directory, the command that repeats it, and the result as the last line.

        Args:
            width: of the terminal, in characters; 0 for the width of summary.txt.
        """
        lines = []
        if self.verdict is not None and self.directory is not None:
            from lab.rundir import RunDir
            from lab.show import table

            lines += [table.render(RunDir(self.directory), self.verdict, self.metrics, width or table.WIDTH), ""]
        lines.append(self.origin)
        if self.again and self.exit_code != PASS:
            lines.append(f"again: {self.again}")
        return "\n".join([*lines, f"{self.scenario}: {self.closing}"]) + "\n"


def summary_row(result: Result) -> RunRow:
    """Return the row of a run in the table of a build server's summary page."""
    from lab.show import stepsummary

    directory = "" if result.directory is None else str(near(result.directory))
    return stepsummary.row_of(
        result.scenario, result.seed, directory, result.verdict, result.metrics, result.problem, result.again
    )


# ---- run and judge ------------------------------------------------------------------------------


def worst(codes: Iterable[int]) -> int:
    """Return the exit code of several runs: that of the worst one."""
    seen = set(codes)
    return next(code for code in WORST_FIRST if code in seen)


def seed_of(scenario: Scenario, first: int | None, number: int) -> int:
    """Return the seed of a scenario's run `number` (from 0): from the command line, from its file, or random."""
    if first is not None:
        return (first + number) % (SEED_MAX + 1)
    return random.SystemRandom().randrange(SEED_MAX) if scenario.seed is None else scenario.seed


def refusals(scenario: Scenario, how: How) -> list[str]:
    """Return the reasons why a scenario cannot be run in this way, or not on this machine; empty if it can."""
    if how.sim:
        return scenario.sim_refusals()
    cluster, reasons = how.of(scenario).cluster, []
    if cluster.network == "kernel":
        from lab.live import enclosed

        reasons += scenario.kernel_refusals() or list(filter(None, [enclosed.missing()]))
    if cluster.disks == "supervised":
        from lab.live import supervise

        reasons += scenario.supervisor_refusals() or list(filter(None, [supervise.missing()]))
    return reasons


def run_once(
    scenario: Scenario,
    seed: int,
    out: Path,
    how: How = LIVE,
    *,
    progress: Callable[[str], None] = lambda text: None,
    person: Person | None = None,
) -> Result:
    """Run a scenario and judge its run directory; a failure of the lab itself is returned as a result too.

    Args:
        progress: called with a line at each step of a live run.
        person: orders steps in a live run; see lab.course.by_hand.
    """
    from lab.rundir import RunDir, utc_stamp

    directory: Path | None = None
    scenario = how.of(scenario)
    try:
        run = RunDir.create(out, scenario.name, utc_stamp())
        directory = run.path
        _carry_out(scenario, run, seed, progress, how, person)
    except Exception as error:
        return _lab_failed(scenario.name, seed, directory, error)
    result = judge(run, scenario.name, seed)
    if result.verdict is not None:
        from lab.rows import Judged, encode_row

        with contextlib.suppress(OSError), run.live.open("ab") as live:
            live.write(encode_row(Judged(result.verdict.outcome)))
    return result


def add_report(result: Result) -> None:
    """Write report.html into the run directory. If that fails, the result stays as it is; standard error says why."""
    from lab.rundir import RunDir

    if result.directory is None or result.verdict is None:
        return
    try:
        from lab.show.report import write
    except ImportError as error:
        problem = f"no report.html: {error}"
    else:
        problem = write(RunDir(result.directory))
    if problem:
        print(problem, file=sys.stderr)


def without_passed(result: Result) -> Result:
    """Remove the directory of a run that passed; that of any other run stays."""
    from lab.rundir import remove

    if result.exit_code != PASS or result.directory is None:
        return result
    remove(result.directory)
    return replace(result, directory=None)


def _carry_out(
    scenario: Scenario,
    run: RunDir,
    seed: int,
    progress: Callable[[str], None],
    how: How,
    person: Person | None,
) -> None:
    with contextlib.ExitStack() as stack:
        if how.mutant:
            from lab.mutants.catalogue import mutated

            stack.enter_context(mutated(how.mutant))  # In a live run this changes the clients, which run in here.
        if how.sim:
            from lab.sim import simulator

            simulator.run(scenario, run, seed=seed, mutant=how.mutant, frames=how.frames)
        else:
            from lab.live import live

            live.run(scenario, run, seed=seed, progress=progress, mutant=how.mutant, person=person)


def _lab_failed(name: str, seed: int | None, directory: Path | None, error: Exception) -> Result:
    """Return the result of a run that the lab could not carry out or judge.

    Errors of the environment have a message of their own; any other exception is a fault of the lab, and its traceback
    is printed.
    """
    from lab.steps.machine import RunFailed

    if isinstance(error, OSError) and error.strerror:
        return Result(name, seed, directory, HARNESS, problem=f"{error.filename or directory}: {error.strerror}")
    if isinstance(error, OSError | RunFailed):
        return Result(name, seed, directory, HARNESS, problem=str(error))
    traceback.print_exception(error)
    return Result(name, seed, directory, HARNESS, problem=f"{type(error).__name__}: {error}")


def judge(run: RunDir, name: str, seed: int | None) -> Result:
    """Judge a finished run; write verdict.json, metrics.json, summary.txt and junit.xml into it if it is writable."""
    from lab.check.history import RunFileError
    from lab.check.invariants import check
    from lab.check.metrics import encode_metrics, measure
    from lab.check.verdict import encode_verdict
    from lab.show import junit, table

    try:
        try:
            metrics = measure(run)
        except (RunFileError, OSError) as error:  # The verdict says UNKNOWN for the same reason.
            metrics = None
            print(error, file=sys.stderr)
        verdict = check(run, metrics)
        result = Result(name, seed, run.path, verdict.exit_code, verdict, metrics)
        summary = f"{table.render(run, verdict, metrics)}\n\n{name}: {result.closing}\n"
        _keep(run.verdict, encode_verdict(verdict))
        if metrics is not None:
            _keep(run.metrics, encode_metrics(metrics))
        _keep(run.junit, junit.render(name, verdict, metrics).encode())
        _keep(run.summary, summary.encode())
    except Exception as error:
        return _lab_failed(name, seed, run.path, error)
    return result


def _keep(path: Path, content: bytes) -> None:
    """Write a file of the verdict; a run directory that is not writable is judged without it."""
    try:
        path.write_bytes(content)
    except OSError as error:
        print(f"{near(path)} could not be written: {error.strerror}", file=sys.stderr)


# ---- output -------------------------------------------------------------------------------------


class Progress:
    """Progress on standard error: one line that is overwritten, or if that is no terminal, a new line each time.

    Args:
        brief: if standard error is no terminal, print only the name, once.
    """

    def __init__(self, name: str, *, brief: bool = False) -> None:
        self._name, self._brief, self._open, self._has_printed = name, brief, False, False

    def __call__(self, text: str) -> None:
        if sys.stderr.isatty():
            line = f"{self._name}: {text}"[: shutil.get_terminal_size().columns - 1]
            print(f"\r\x1b[K{line}", end="", file=sys.stderr, flush=True)
            self._open = True
        elif not self._brief:
            print(f"{self._name}: {text}", file=sys.stderr, flush=True)
        elif not self._has_printed:
            print(self._name, file=sys.stderr, flush=True)
            self._has_printed = True

    def close(self) -> None:
        """Clear the line."""
        if self._open:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
            self._open = False
