"""`run_lab.py soak`: random scenarios on real processes, for hours.

Each seed draws a scenario as in `sim`, which runs live in a process of its own (lab.campaign.soak_run) and is judged.
The directory of a run is kept only if the run did not pass. results/soaks/NAME/runs.jsonl has a line for each finished
run, so a soak that was interrupted or killed goes on with the seeds that have none.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import random
import shlex
import shutil
import statistics
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, TypeAlias, TypeVar

import msgspec
from msgspec import Struct, structs
from tabulate import tabulate

from lab import runs, values
from lab.campaign.code import code_version
from lab.campaign.store import StoreError, locked
from lab.check.verdict import EXIT_CODES, decide
from lab.live.children import Child, end_on_sigterm
from lab.places import COMMAND, RESULTS, near
from lab.plan.scenario import Scenario
from lab.rundir import RunDir, remove
from lab.runs import Result
from lab.search.assumptions import CAUGHT_UP, HEAL_ALL, NAMED_CLIENT, may_expire
from lab.search.draw import SIZES, draw
from lab.steps import LoadSwitch, Send, Sender
from lab.steps.machine import RunFailed
from lab.words import Duration, counted

SOAKS: Final = "soaks"
"""Directory of all soaks, in the results directory."""
START: Final = "soak.json"
ROWS: Final = "runs.jsonl"
TABLE: Final = "table.txt"
LOG: Final = "errors.log"
"""What the lab's own processes printed on standard error; removed if it is empty."""
LAST: Final = Send(clients=(Sender(client=NAMED_CLIENT + 99, messages=2, fresh=True),), within=Duration(25))
"""Sent when all nodes are healed, so that A9 has a wait to judge even if the scenario's own messages came too early."""
RUNNER: Final = "lab.campaign.soak_run"
ATTEMPTS: Final = 3
"""A soak ends when the lab has failed in so many runs in a row: the next ones would fail too."""
OUTCOMES: Final = {
    runs.PASS: "passed",
    runs.BROKEN: "broken",
    runs.MISSED: "missed",
    runs.UNDECIDED: "undecided",
    runs.HARNESS: "lab failed",
}


class Start(Struct, frozen=True):
    """With what a soak began. first: the seed of its first run. sizes: cluster sizes to draw from."""

    first: int
    sizes: tuple[int, ...]


class Row(Struct, frozen=True):
    """One finished run.

    seconds: real time, including the judges.
    closing: the result on one line.
    code: the version of the lab and the nodes.
    ended_s: running time of the soak until this run had ended, of all starts together, seconds.
    directory: of the run; "" if it was not kept.
    faults: kind -> how many had an effect. without_effect: number of the others.
    unavailable_s: kind of fault -> the longest time without an acknowledgement after one, seconds.
    longest_gap_s: the longest time of the run without an acknowledgement.
    """

    seed: int
    nodes: int
    exit_code: int
    closing: str
    seconds: float
    code: str = ""
    ended_s: float = 0.0
    directory: str = ""
    again: str = ""
    acknowledged: int = 0
    faults: dict[str, int] = {}
    without_effect: int = 0
    unavailable_s: dict[str, float] = {}
    longest_gap_s: float = 0.0


class Order(Struct, frozen=True):
    """What a process of the soak plays next. directory: of the soak. sizes: cluster sizes to draw from."""

    seed: int
    sizes: tuple[int, ...]
    directory: str


Play: TypeAlias = Callable[[int], Awaitable[Row]]
"""Runs and judges the scenario of a seed."""


@dataclass(slots=True)
class Soak:
    """A soak with its rows. clock: returns seconds."""

    directory: Path
    clock: Callable[[], float] = time.monotonic

    def begin(self, seed: int | None, sizes: tuple[int, ...] | None) -> Start:
        """Return with what the soak began, which is now if it is new.

        Args:
            seed: of the first run; None: random, or that of the beginning.
            sizes: None: SIZES, or those of the beginning.

        Raises:
            StoreError: the soak began with other values, or with another version.
        """
        path = self.directory / START
        if not path.exists():
            if self.rows():
                raise StoreError(f"{near(self.directory)}: found runs of an older version; allowed is another --name")
            start = Start(random.SystemRandom().randrange(values.SEED_MAX) if seed is None else seed, sizes or SIZES)
            fresh = path.with_suffix(".new")
            fresh.write_bytes(msgspec.json.encode(start) + b"\n")
            fresh.replace(path)
            return start
        start = _decoded(path.read_bytes(), Start, near(path))
        for option, given, begun in (("seed", seed, start.first), ("nodes", sizes, start.sizes)):
            if given is not None and given != begun:
                found, allowed = (
                    ",".join(map(str, each if isinstance(each, tuple) else [each])) for each in (given, begun)
                )
                raise StoreError(f"--{option}: found {found}, allowed {allowed} as this soak began, or another --name")
        return start

    def rows(self) -> list[Row]:
        """Return the finished runs. A line that was cut off when the soak was killed is left out.

        Raises:
            StoreError: another line is not a row.
        """
        path = self.directory / ROWS
        try:
            *lines, _ = path.read_bytes().split(b"\n")
        except FileNotFoundError:
            return []
        return [_decoded(line, Row, f"{near(path)}:{number}") for number, line in enumerate(lines, 1)]

    async def carry_out(self, players: Sequence[Play], first: int, limit_s: float, tell: Callable[[Row], None]) -> None:
        """Have each player run one scenario after the other until the time is up.

        Args:
            first: the seed with which the soak began.
            limit_s: running time of all starts of this soak, in seconds.
            tell: called with each new row.

        Raises:
            ExceptionGroup: of a RunFailed if the lab failed in ATTEMPTS runs in a row, or of what a player raised.
        """
        rows, code, failed = self.rows(), code_version(), 0
        self.remove_interrupted()
        seeds = _seeds(first, {row.seed for row in rows})
        began = self.clock() - spent_s(rows)
        with (self.directory / ROWS).open("r+b" if rows else "wb") as file:
            file.truncate(file.seek(_whole_bytes(self.directory / ROWS)))

            async def feed(play: Play) -> None:
                nonlocal failed
                while self.clock() - began < limit_s:
                    found = await play(next(seeds))
                    row = structs.replace(found, code=code, ended_s=round(self.clock() - began, 3))
                    file.write(msgspec.json.encode(row) + b"\n")
                    file.flush()
                    tell(row)
                    failed = failed + 1 if row.exit_code == runs.HARNESS else 0
                    if failed == ATTEMPTS:
                        raise RunFailed(f"{ATTEMPTS} times in a row; {row.closing}")

            async with asyncio.TaskGroup() as group:
                for play in players:
                    group.create_task(feed(play))

    def remove_interrupted(self) -> None:
        """Remove the directories of runs that were not judged, and an empty LOG."""
        for place in self.directory.glob("drawn_*"):
            found = [each for each in place.iterdir() if each.is_dir() and not each.is_symlink()]
            for run in found:
                if not RunDir(run).verdict.is_file():
                    remove(run)
            if not any(map(Path.exists, found)):
                shutil.rmtree(place)
        log = self.directory / LOG
        if log.exists() and not log.stat().st_size:
            log.unlink()


T = TypeVar("T")


def _decoded(line: bytes, kind: type[T], place: object) -> T:
    try:
        return msgspec.json.decode(line, type=kind)
    except msgspec.MsgspecError as error:
        what = kind.__name__.lower()
        raise StoreError(f"{place}: found {line[:40]!r}, allowed the {what} of a soak: {error}") from None


def _seeds(first: int, played: Collection[int]) -> Iterator[int]:
    """Yield the seeds that are not played yet, in order."""
    for number in itertools.count(first):
        if (seed := number % (values.SEED_MAX + 1)) not in played:
            yield seed


def spent_s(rows: Sequence[Row]) -> float:
    """Return the running time of a soak, of all starts together, in seconds."""
    return max((row.ended_s for row in rows), default=0.0)


def play(
    order: Order,
    run: Callable[[Scenario, int, Path], Result] = runs.run_once,
    clock: Callable[[], float] = time.monotonic,
) -> Row:
    """Run and judge the scenario of a seed; keep its directory only if it did not pass.

    Args:
        run: runs and judges a scenario below a directory.
        clock: returns seconds.
    """
    began, directory = clock(), Path(order.directory)
    scenario = with_last_messages(draw(order.seed, order.sizes))
    result = without_missed_faults(run(scenario, order.seed, directory))
    row = row_of(result, scenario.cluster.nodes, clock() - began)
    runs.without_passed(result)
    place = directory / scenario.name
    if place.is_dir() and not any(place.iterdir()):
        place.rmdir()
    return row


def _whole_bytes(file: Path) -> int:
    """Return the size of a file up to its last complete line."""
    return file.read_bytes().rfind(b"\n") + 1


def with_last_messages(scenario: Scenario) -> Scenario:
    """Return the scenario with LAST at its end. If its messages may be refused, nothing waits for them."""
    stopped = LoadSwitch(switch="stop") in scenario.steps
    stop = () if scenario.load is None or stopped else (LoadSwitch(switch="stop"),)
    last = structs.replace(LAST, wait=not may_expire(scenario.cluster))
    return structs.replace(scenario, steps=(*scenario.steps, *stop, HEAL_ALL, CAUGHT_UP, last))


def without_missed_faults(result: Result) -> Result:
    """Return the result with an exit code that allows faults without effect.

    A written scenario is undecided if a fault of it had no effect. A drawn one starts nodes that run already,
    or slows links without frames; its other faults are worth a verdict.
    """
    if result.verdict is None:
        return result
    left = tuple(
        check
        for check in result.verdict.checks
        if not (check.name == "faults" and check.result == "UNKNOWN" and " had no effect" in check.detail)
    )
    return replace(result, exit_code=EXIT_CODES[decide(left, result.verdict.expectations)])


def row_of(result: Result, nodes: int, seconds: float) -> Row:
    """Return the row of a finished run. nodes: size of the cluster. seconds: real time of the run."""
    kept = result.directory if result.exit_code != runs.PASS else None
    row = Row(
        seed=0 if result.seed is None else result.seed,
        nodes=nodes,
        exit_code=result.exit_code,
        closing="PASS" if result.exit_code == runs.PASS else result.closing,
        seconds=round(seconds, 3),
        directory="" if kept is None else str(kept),
        again=f"{COMMAND} {shlex.quote(str(near(kept / 'scenario.yml')))} --seed {result.seed}" if kept else "",
    )
    if result.directory is not None:
        rows = [each for each in RunDir(result.directory).read_faults() if each.fault != "heal"]
        faults = Counter(each.fault for each in rows if each.effect)
        row = structs.replace(row, faults=dict(sorted(faults.items())), without_effect=len(rows) - faults.total())
    if result.metrics is None:
        return row
    unavailable: dict[str, float] = {}
    for each in result.metrics.availability:
        word = each.asked.partition(":")[0].strip("{ ")
        unavailable[word] = max(unavailable.get(word, 0.0), each.unavailable_s_max or 0.0)
    load = result.metrics.load
    return structs.replace(
        row, acknowledged=load.acknowledged, unavailable_s=unavailable, longest_gap_s=load.longest_gap_s
    )


# ---- the table -------------------------------------------------------------------------------------------


def report(rows: Sequence[Row]) -> str:
    """Return the table of a soak: outcomes, faults, unavailability, and the runs that did not pass."""
    outcomes = Counter(OUTCOMES.get(row.exit_code, str(row.exit_code)) for row in rows)
    lines = [
        f"{counted(len(rows), 'run')} in {spent_s(rows) / 3600:.2f} h: "
        + (", ".join(f"{n} {each}" for each, n in outcomes.most_common()) or "none finished"),
        f"{sum(row.acknowledged for row in rows)} messages acknowledged, "
        f"{sum(sum(row.faults.values()) for row in rows)} faults with an effect, "
        f"{sum(row.without_effect for row in rows)} without",
        "",
        tabulate(_fault_rows(rows), ("fault", "runs", "faults", "median s", "90 % s", "max s"), floatfmt=".2f"),
        "median, 90 %, max: over the runs, the longest time without an acknowledgement after such a fault",
    ]
    for row in rows:
        if row.exit_code != runs.PASS:
            lines += [
                "",
                f"seed {row.seed}, {row.nodes} nodes: {row.closing}",
                f"  again: {row.again or 'no directory'}",
            ]
    return "\n".join(lines) + "\n"


def _fault_rows(rows: Sequence[Row]) -> list[tuple[str, int, int, float | None, float | None, float | None]]:
    faults: Counter[str] = Counter()
    of_runs: Counter[str] = Counter()
    unavailable: defaultdict[str, list[float]] = defaultdict(list)
    for row in rows:
        faults.update(row.faults)
        of_runs.update(row.faults.keys())
        for kind, longest in row.unavailable_s.items():
            unavailable[kind].append(longest)
        unavailable["any time"].append(row.longest_gap_s)
    table = [(kind, of_runs[kind], faults[kind], *_spread(unavailable[kind])) for kind in sorted(faults)]
    return [*table, ("any time", len(rows), faults.total(), *_spread(unavailable["any time"]))]


def _spread(seconds: Sequence[float]) -> tuple[float | None, float | None, float | None]:
    """Return median, 90th percentile and maximum; None for no value."""
    if not seconds:
        return None, None, None
    tenths = statistics.quantiles(seconds, n=10, method="inclusive") if len(seconds) > 1 else [seconds[0]] * 9
    return tenths[4], tenths[8], max(seconds)


# ---- the command -----------------------------------------------------------------------------------------


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `run_lab.py soak`."""
    parser.epilog = (
        "An interrupted soak goes on when it is started again. Exit codes: those of runs, the worst one counts; "
        "64 wrong usage, 130 interrupted."
    )
    parser.add_argument(
        "--time", metavar="T", type=values.running_time, required=True, help="running time of all starts, such as 4h"
    )
    parser.add_argument(
        "--name", metavar="NAME", type=values.name, default="soak", help="name of the soak (%(default)s)"
    )
    parser.add_argument("--seed", metavar="S", type=values.seed, help="seed of the first run of a new soak (random)")
    parser.add_argument("--nodes", metavar="N,N", type=values.sizes, help="cluster sizes (3,5)")
    parser.add_argument(
        "--jobs", metavar="J", type=values.jobs, default=1, help="number of runs at the same time (%(default)s)"
    )
    parser.add_argument("--out", metavar="DIR", type=Path, default=RESULTS, help="directory for soaks/ (%(default)s)")


def main(options: argparse.Namespace) -> int:
    """Carry out a soak and print its table; return the exit code, 64 while another process plays the same soak."""
    if refusal := values.unwritable(options.out):
        print(refusal, file=sys.stderr)
        return runs.USAGE
    soak = Soak(options.out.absolute() / SOAKS / options.name)
    try:
        soak.directory.mkdir(parents=True, exist_ok=True)
        with locked(soak.directory, f"soak {options.name!r}", "; allowed is another --name"):
            return _carry_out(soak, options)
    except StoreError as error:
        print(error, file=sys.stderr)
        return runs.USAGE
    except OSError as error:
        print(f"soak {options.name!r}: {error}", file=sys.stderr)
        return runs.HARNESS


def _carry_out(soak: Soak, options: argparse.Namespace) -> int:
    rows, start = soak.rows(), soak.begin(options.seed, options.nodes)
    spent, ended = spent_s(rows), runs.PASS
    if rows and spent >= options.time:
        allowed = "allowed is a longer --time, or another --name"
        print(f"soak {options.name!r} has run for {spent:.0f} s: {allowed}", file=sys.stderr)
        soak.remove_interrupted()
        ended = runs.USAGE
    else:
        if rows:
            print(f"soak: {options.name} goes on after {counted(len(rows), 'run')} and {spent:.0f} s", file=sys.stderr)
        try:
            asyncio.run(_play_all(soak, start, options))
        except (KeyboardInterrupt, asyncio.CancelledError):
            ended = runs.INTERRUPTED
        except RunFailed as error:
            print(f"the lab failed: {error}", file=sys.stderr)
            ended = runs.HARNESS
    rows = soak.rows()
    table = report(rows)
    print(table, end="")
    (soak.directory / TABLE).write_text(table, "utf-8")
    return runs.worst([ended, *(row.exit_code for row in rows)])


async def _play_all(soak: Soak, start: Start, options: argparse.Namespace) -> None:
    """Carry out a soak on processes of its own, which all end with this call; SIGTERM interrupts it as Ctrl+C does.

    Raises:
        RunFailed: one of the processes ended, or the lab failed several times in a row.
    """
    end_on_sigterm()
    log, children = soak.directory / LOG, list[Child]()
    try:
        for number in range(1, options.jobs + 1):
            children.append(await Child.spawn(f"process {number} of the soak", RUNNER, log))
        players = [_player(soak, child, start.sizes) for child in children]
        await soak.carry_out(players, start.first, options.time, _tell)
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from None
    finally:
        for child in children:
            child.terminate()
        for child in children:
            await child.close()
        soak.remove_interrupted()


def _player(soak: Soak, child: Child, sizes: tuple[int, ...]) -> Play:
    async def play(seed: int) -> Row:
        answer = await child.ask(msgspec.json.encode(Order(seed, sizes, str(soak.directory))))
        return msgspec.json.decode(answer, type=Row)

    return play


def _tell(row: Row) -> None:
    faults = ", ".join(f"{kind} {count}" for kind, count in row.faults.items()) or "no faults"
    print(f"soak: seed {row.seed}: {row.closing} ({row.seconds:.0f} s; {faults})", file=sys.stderr, flush=True)
