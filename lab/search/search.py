"""`run_lab.py sim`: simulate random scenarios, one for each seed, on all CPUs; report failures and coverage.

lab.search.draw turns a seed into a scenario, and online checks watch its simulation. The report depends on the seeds
alone: results are counted in the order of the seeds, regardless of the number of processes. A failing seed is simulated
again into a run directory, and judged from it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field, replace
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeAlias

from lab import runs, values
from lab.live.children import Child
from lab.places import COMMAND, RESULTS, near
from lab.plan.scenario import Scenario
from lab.rundir import LATEST
from lab.search import coverage
from lab.search.draw import CHANGING_SHARE, SIZES, draw
from lab.search.shrink import add_changing, shrink, write
from lab.search.worker import Begin, Played, Seed, decode_played, encode
from lab.steps.machine import RunFailed

WORKER: Final = "lab.search.worker"
SEEDS: Final = 1000
TELL_TERMINAL_S: Final = 0.5
TELL_PLAIN_S: Final = 10.0
KEPT: Final = 10
"""Maximum number of findings with a run directory; for others the report contains only the replay command.

Of these findings, the first one of each invariant is shrunk.
"""


@dataclass(frozen=True, slots=True)
class Search:
    """The settings of a search.

    count: number of seeds; 0 for as many as the time limit allows.
    time_limit: seconds after which no further seed is started.
    mutant: applied to the product; "" for none.
    changing: share of the seeds that change the members.
    """

    first: int
    count: int
    jobs: int
    sizes: tuple[int, ...] = SIZES
    time_limit: float | None = None
    exitfirst: bool = False
    mutant: str = ""
    changing: float = CHANGING_SHARE

    def scenario(self, seed: int) -> Scenario:
        """Return the scenario of one seed of this search."""
        return draw(seed, self.sizes, self.changing)

    def replay(self, seed: int) -> str:
        """Return the command that simulates one seed of this search again."""
        sizes = f" --nodes {','.join(map(str, self.sizes))}" if self.sizes != SIZES else ""
        changing = (
            f" --changing {Decimal(repr(self.changing)).normalize():f}" if self.changing != CHANGING_SHARE else ""
        )
        mutant = f" --mutant {self.mutant}" if self.mutant else ""
        return f"{COMMAND} sim --seed {seed} --seeds 1{sizes}{changing}{mutant}"


@dataclass(slots=True)
class Tally:
    """The sums of the results so far, counted in the order of the seeds."""

    search: Search
    done: int = 0
    problem: str = ""
    """Why the lab could not continue; "" if it could."""
    findings: list[Played] = field(default_factory=list)
    troubles: list[Played] = field(default_factory=list)
    cpu_s: float = 0.0
    virtual_s: float = 0.0
    frames: int = 0
    elections: int = 0
    messages: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    events: Counter[str] = field(default_factory=Counter)
    marks: Counter[str] = field(default_factory=Counter)
    modes: set[str] = field(default_factory=set)
    """What the workers run: "native" or "plain" (nodeproc.native)."""
    _early: dict[int, Played] = field(default_factory=dict)
    """Results that wait for those of earlier seeds."""

    @property
    def over(self) -> bool:
        """True if no further result counts, because the search stops at the first failure."""
        return self.search.exitfirst and bool(self.findings or self.troubles)

    def take(self, played: Played) -> list[Played]:
        """Count a result as soon as all earlier seeds are counted; return the new findings and errors of the lab."""
        self._early[played.seed] = played
        news: list[Played] = []
        while not self.over and (following := self._early.pop(self.search.first + self.done, None)) is not None:
            news += self._count(following)
        return news

    def _count(self, played: Played) -> list[Played]:
        self.done += 1
        self.cpu_s += played.cpu_s
        self.virtual_s += played.virtual_s
        self.frames += played.frames
        self.elections += played.elections
        self.messages += played.messages
        self.faults.update(played.faults)
        self.events.update(played.events)
        self.marks.update(played.marks)
        self.modes.add(played.mode)
        if played.trouble:
            self.troubles.append(played)
        elif played.invariant:
            self.findings.append(played)
        else:
            return []
        return [played]


# ---- playing the seeds --------------------------------------------------------------------------------


Spawn: TypeAlias = Callable[[bool], Awaitable[Child]]
"""Starts a worker process; True: one that stays plain."""


async def play_all(tally: Tally, tell: Callable[[str], None], found: Callable[[Played], None]) -> None:
    """Simulate the seeds on worker processes, which all end with this call.

    Args:
        tell: called with the text of the progress line.
        found: called at once with each finding or error of the lab.

    Raises:
        RunFailed: a worker process ended.
    """
    search = tally.search
    begun = time.monotonic()
    until = float("inf") if search.time_limit is None else begun + search.time_limit
    seeds = _seeds(search, until)
    children: list[Child] = []
    workers: list[tuple[Child, Spawn]] = []
    with tempfile.TemporaryDirectory(prefix="search_") as logs:
        teller = asyncio.create_task(_tell_regularly(tally, begun, tell))
        try:
            for number in range(1, search.jobs + 1):
                spawn: Spawn = partial(_spawn, search, number, Path(logs), children)
                workers.append((await spawn(False), spawn))
            async with asyncio.TaskGroup() as group:
                for child, spawn in workers:
                    group.create_task(_feed(child, spawn, seeds, tally, found))
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None
        finally:
            teller.cancel()
            for child in children:
                child.kill()
                await child.process.wait()


def _seeds(search: Search, until: float) -> Iterator[int]:
    """Yield the seeds to start, until the time is up; at least one."""
    last = search.first + search.count - 1 if search.count else values.SEED_MAX
    for seed in range(search.first, last + 1):
        if seed > search.first and time.monotonic() >= until:
            return
        yield seed


async def _spawn(search: Search, number: int, logs: Path, children: list[Child], plain: bool) -> Child:
    """Start a worker process. children: receives it."""
    child = await Child.spawn(f"search worker {number}", WORKER, logs / f"{number}.log")
    children.append(child)
    child.order(encode(Begin(search.sizes, search.changing, search.mutant, plain)))
    return child


async def _feed(
    child: Child, spawn: Spawn, seeds: Iterator[int], tally: Tally, found: Callable[[Played], None]
) -> None:
    """Send a worker one seed after the other and count its results.

    A plain worker replaces a native one that was killed in an endless loop of compiled code, and ends the seed in time.
    """
    for seed in seeds:
        order = encode(Seed(seed))
        try:
            answer = await child.ask(order)
        except RunFailed:
            if child.process.returncode != -signal.SIGXCPU:
                raise
            child = await spawn(True)
            answer = await child.ask(order)
        for news in tally.take(decode_played(answer)):
            found(news)
        if tally.over:
            return


async def _tell_regularly(tally: Tally, begun: float, tell: Callable[[str], None]) -> None:
    while True:
        await asyncio.sleep(TELL_TERMINAL_S if sys.stderr.isatty() else TELL_PLAIN_S)
        tell(progress_line(tally, time.monotonic() - begun))


def progress_line(tally: Tally, seconds: float) -> str:
    """Return the progress line, the most important figures first, as a terminal may cut off its end."""
    planned = f" of {tally.search.count}" if tally.search.count else ""
    mode = "".join(f"{mode}, " for mode in sorted(tally.modes))
    faults = ", ".join(f"{kind} {count}" for kind, count in tally.faults.most_common())
    rate, core = tally.done / max(seconds, 0.001), tally.done / max(tally.cpu_s, 0.001)
    return (
        f"{tally.done}{planned} seeds, {rate:.1f}/s, {core:.1f}/s a core, {mode}findings {len(tally.findings)}, "
        f"elections {tally.elections}, messages {tally.messages}, faults {tally.faults.total()}: {faults}"
    )


# ---- findings -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Finding:
    """A failing seed, with its run directory and shrunk scenario.

    run: the run directory; None if there is none.
    verdict: of the judges, for that directory.
    small: file of the shrunk scenario; None if it was not shrunk.
    steps: number of steps of the shrunk scenario.
    """

    played: Played
    replay: str
    run: Path | None = None
    verdict: str = ""
    small: Path | None = None
    steps: int = 0
    small_replay: str = ""

    def lines(self) -> Iterator[str]:
        played = self.played
        yield f"seed {played.seed}: {played.invariant}: {played.text}"
        yield f"  again: {self.replay}"
        if self.run is not None:
            yield f"  run:   {near(self.run)}, {self.verdict}"
        if self.small is not None:
            yield f"  small: {near(self.small)}, {self.steps} steps"
            yield f"         {self.small_replay}"

    def plain(self) -> dict[str, Any]:
        """Return the finding's entry in the --json document."""
        return {
            "seed": self.played.seed,
            "invariant": self.played.invariant,
            "text": self.played.text,
            "replay": self.replay,
            "run": None if self.run is None else str(self.run),
            "verdict": self.verdict,
            "small": None if self.small is None else str(self.small),
            "small_steps": self.steps,
            "small_replay": self.small_replay,
        }


def record_finding(search: Search, played: Played, out: Path) -> Finding:
    """Simulate a failing seed again into a run directory and judge it."""
    finding = Finding(played, search.replay(played.seed))
    if played.endless:
        return finding
    scenario = search.scenario(played.seed)
    result = runs.run_once(scenario, played.seed, out, runs.How(sim=True, mutant=search.mutant))
    if result.verdict is None:
        return replace(finding, run=result.directory, verdict=f"no verdict: {result.problem}")
    runs.add_report(result)
    broken = ", ".join(check.name for check in result.verdict.checks if check.result == "FAIL")
    verdict = f"verdict {result.verdict.outcome}" + (f": {broken}" if broken else "")
    return replace(finding, run=out / scenario.name / LATEST, verdict=verdict)


def shrink_finding(search: Search, finding: Finding, out: Path, tell: Callable[[str], None]) -> Finding:
    """Shrink a finding's scenario and write the result to a file."""
    scenario, seed = search.scenario(finding.played.seed), finding.played.seed
    shrunk = shrink(scenario, seed, search.mutant, tell=lambda text: tell(f"shrinking seed {seed}: {text}"))
    if shrunk is None:
        return finding
    path = write(shrunk, out)
    replay = runs.How(sim=True, mutant=search.mutant, frames=True).command(path, seed)
    return replace(finding, small=path, steps=shrunk.scenario.step_count, small_replay=replay)


# ---- output -------------------------------------------------------------------------------------------


def report(tally: Tally, findings: list[Finding]) -> str:
    """Return the report of a search; it depends on the seeds alone."""
    return "\n".join(_report_lines(tally, findings)) + "\n"


def _report_lines(tally: Tally, findings: list[Finding]) -> Iterator[str]:
    search = tally.search
    if search.mutant:
        yield f"mutant: {search.mutant}"
    seeds = f"seeds {search.first}..{search.first + tally.done - 1}" if tally.done else "no seed"
    planned = f" of {search.count} asked for" if search.count and tally.done < search.count else ""
    yield (
        f"{seeds}: {tally.done} played{planned}, nodes {','.join(map(str, search.sizes))}: "
        f"{tally.virtual_s / 3600:.2f} virtual hours, {tally.frames} frames, {tally.elections} elections, "
        f"{tally.messages} messages, {tally.faults.total()} faults"
    )
    yield f"findings: {len(tally.findings) or 'none'}"
    for finding in findings:
        yield from finding.lines()
    if tally.problem:
        yield f"the lab failed: {tally.problem}"
    for played in tally.troubles:
        yield f"seed {played.seed}: the lab failed: {played.trouble.rstrip().splitlines()[-1]}"
        yield f"  again: {search.replay(played.seed)}"
    yield ""
    yield "faults that hit: " + (", ".join(f"{kind} {count}" for kind, count in sorted(tally.faults.items())) or "none")
    yield ""
    yield coverage.render(tally.marks, tally.events).rstrip()


def plain(tally: Tally, findings: list[Finding], code: int) -> dict[str, Any]:
    """Return the JSON document."""
    return {
        "exit_code": code,
        "first": tally.search.first,
        "asked": tally.search.count or None,
        "played": tally.done,
        "nodes": tally.search.sizes,
        "changing": tally.search.changing,
        "mutant": tally.search.mutant or None,
        "findings": [finding.plain() for finding in findings],
        "problem": tally.problem,
        "troubles": [{"seed": each.seed, "trouble": each.trouble} for each in tally.troubles],
        "virtual_s": round(tally.virtual_s, 3),
        "frames": tally.frames,
        "elections": tally.elections,
        "messages": tally.messages,
        "faults": dict(sorted(tally.faults.items())),
        "events": dict(sorted(tally.events.items())),
        "marks": dict(sorted(tally.marks.items())),
        "rules_never_hit": coverage.unhit_rules(tally.marks),
        "marks_never_hit": coverage.unhit_marks(tally.marks, coverage.marks()),
        "events_never_reported": coverage.unreported(tally.events),
    }


# ---- the command --------------------------------------------------------------------------------------


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `run_lab.py sim`."""
    parser.epilog = (
        "Exit codes: 0 no failure, 1 a seed failed, 64 wrong usage, 70 the lab itself failed, 130 interrupted. The "
        "report depends on the seeds alone, not on the number of processes."
    )
    parser.add_argument(
        "--seeds", metavar="N", type=values.positive, help=f"number of seeds ({SEEDS}; with --time-limit: no limit)"
    )
    parser.add_argument("--seed", metavar="S", type=values.seed, default=1, help="the first seed (%(default)s)")
    parser.add_argument(
        "--jobs", metavar="J", type=values.jobs, default=values.processors(), help="number of processes"
    )
    parser.add_argument("--nodes", metavar="N,N", type=values.sizes, default=SIZES, help="cluster sizes (3,5)")
    add_changing(parser)
    parser.add_argument(
        "--time-limit", metavar="T", type=values.duration, help="start no seed after this time, such as 90s or 10m"
    )
    parser.add_argument("-x", "--exitfirst", action="store_true", help="stop at the first seed that fails")
    parser.add_argument("--no-shrink", action="store_true", help="do not shrink the scenarios of failing seeds")
    values.add_mutant(parser)
    parser.add_argument("--out", metavar="DIR", type=Path, default=RESULTS, help="for run directories (%(default)s)")
    parser.add_argument("--json", action="store_true", help="print one JSON document on standard output")


def main(options: argparse.Namespace) -> int:
    """Search and print the report; return the exit code."""
    count = options.seeds or (0 if options.time_limit is not None else SEEDS)
    if refusal := values.beyond_the_last(options.seed, count):
        print(refusal, file=sys.stderr)
        return runs.USAGE
    jobs = min(options.jobs, count or options.jobs)
    search = Search(
        options.seed,
        count,
        jobs,
        options.nodes,
        options.time_limit,
        options.exitfirst,
        options.mutant,
        options.changing,
    )
    tally, findings = Tally(search), []
    progress = runs.Progress("sim")
    interrupted = _play(tally, progress)
    try:
        if not interrupted:
            for finding in _examine(tally, options, progress):
                findings.append(finding)
    except KeyboardInterrupt:
        interrupted = True
    finally:
        progress.close()
    findings += [Finding(each, search.replay(each.seed)) for each in tally.findings[len(findings) :]]
    code = _exit_code(tally, interrupted)
    if options.json:
        print(json.dumps(plain(tally, findings, code), indent=1))
    print(report(tally, findings), end="", file=sys.stderr if options.json else sys.stdout)
    return code


def _exit_code(tally: Tally, interrupted: bool) -> int:
    if interrupted:
        return runs.INTERRUPTED
    if tally.findings:
        return runs.BROKEN
    return runs.HARNESS if tally.troubles or tally.problem else runs.PASS


def _play(tally: Tally, progress: runs.Progress) -> bool:
    """Simulate the seeds with a progress line on standard error; return whether the user interrupted them."""

    def tell(text: str) -> None:
        columns = shutil.get_terminal_size().columns if sys.stderr.isatty() else len(text) + 10
        progress(text[: columns - len("sim: ") - 1])

    def found(played: Played) -> None:
        progress.close()
        what = played.trouble or f"{played.invariant}: {played.text}"
        print(f"sim: seed {played.seed}: {what}\n  {tally.search.replay(played.seed)}", file=sys.stderr, flush=True)

    begun = time.monotonic()
    try:
        asyncio.run(play_all(tally, tell, found))
    except KeyboardInterrupt:
        return True
    except RunFailed as error:
        tally.problem = str(error)
    finally:
        progress.close()
        seconds = time.monotonic() - begun
        print(f"sim: {progress_line(tally, seconds)}; {seconds:.1f} s", file=sys.stderr, flush=True)
    return False


def _examine(tally: Tally, options: argparse.Namespace, progress: runs.Progress) -> Iterator[Finding]:
    """Yield the first findings, each with a run directory, the first one of each invariant with a shrunk scenario."""
    small: set[str] = set()
    for played in tally.findings[:KEPT]:
        finding = record_finding(tally.search, played, options.out)
        if not (options.no_shrink or played.endless or played.invariant in small):
            small.add(played.invariant)
            finding = shrink_finding(tally.search, finding, options.out, progress)
        yield finding
