"""`run_lab.py bench`: measure all sections in rounds, so that compared figures are measured in the same minutes."""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Final, TypeAlias

import msgspec

from lab.bench import bare, engines, faults, floor, growth, judging, loads, starting, table
from lab.bench.figures import Bench, Collected, decode, encode
from lab.bench.runs import Runs
from lab.course.manifest import host, versions
from lab.engines.install import NotInstalled
from lab.places import RESULTS
from lab.runs import HARNESS, USAGE
from lab.steps.machine import RunFailed
from lab.values import positive

SAVED: Final = RESULTS / "bench"

Measuring: TypeAlias = Callable[[Collected, Runs, bool], None]


def _floor(into: Collected, runs: Runs, quick: bool) -> None:
    with tempfile.TemporaryDirectory(prefix="floor-", dir=runs.folder) as folder:
        floor.measure(into, Path(folder), quick)


@dataclass(frozen=True, slots=True)
class Section:
    """measure: measures one round. rounds, quick_rounds: number of rounds, and with --quick."""

    name: str
    measure: Measuring
    rounds: int
    quick_rounds: int = 1


SECTIONS: Final = (
    Section("floor", _floor, 5, 2),
    Section("throughput", loads.throughput, 3),
    Section("closed", loads.closed, 3),
    Section("bare", bare.bare, 3),
    Section("open", loads.open_loop, 2),
    Section("failover", faults.failover, 1),
    Section("start", starting.start, 5),
    Section("idle", starting.idle, 2),
    Section("restart", starting.restart, 1),
    Section("checks", judging.checks, 1),
    Section("growth", growth.growth, 1),
    Section("memory", growth.memory, 1),
)
NAMES: Final = tuple(section.name for section in SECTIONS)
NOT_IN_QUICK: Final = ("growth", "memory")
"""Sections that --quick leaves out unless --only names them."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `run_lab.py bench`."""
    parser.add_argument("--quick", action="store_true", help="few rounds and small sizes: at most two minutes")
    parser.add_argument("--json", action="store_true", help="print one JSON document on standard output")
    parser.add_argument("--save", metavar="NAME", help="save the figures as results/bench/NAME.json, or at a path")
    parser.add_argument("--compare", metavar="NAME", help="compare the new figures with saved ones")
    parser.add_argument("--rounds", metavar="N", type=positive, help="measure every section N times")
    parser.add_argument("--only", metavar="SECTION", nargs="+", choices=NAMES, help=f"only some of {', '.join(NAMES)}")
    parser.add_argument(
        "--engines", metavar="NAME", nargs="*", help="measure installed engines beside the lab's own nodes; none: all"
    )


def main(options: argparse.Namespace) -> int:
    """Measure and print the figures; return the exit code."""
    if options.engines is not None and options.only is not None:
        print("--engines measures no sections: found --only, too", file=sys.stderr)
        return USAGE
    try:
        rows = None if options.engines is None else engines.rows(options.engines)
    except (ValueError, NotInstalled) as error:
        print(f"--engines: {error}", file=sys.stderr)
        return USAGE
    try:
        before = None if options.compare is None else load(options.compare)
    except (OSError, msgspec.MsgspecError) as error:
        print(f"--compare {options.compare}: {error}", file=sys.stderr)
        return USAGE
    SAVED.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="runs-", dir=SAVED))
    try:
        sections = chosen(options.only, options.quick) if rows is None else of_engines(rows)
        bench = measure(Runs(folder, _tell), sections, options.quick, options.rounds)
        if rows is not None:
            bench = msgspec.structs.replace(bench, promises={row.name: row.setting.promise for row in rows})
    except RunFailed as error:
        print(error, file=sys.stderr)
        return HARNESS
    finally:
        shutil.rmtree(folder)
    if options.save is not None:
        place = saved_at(options.save)
        place.write_bytes(encode(bench))
        print(f"saved as {place}", file=sys.stderr)
    print(encode(bench).decode() if options.json else table.render(bench, before))
    return 0


def chosen(only: list[str] | None, quick: bool) -> tuple[Section, ...]:
    """Return the sections to measure, always including the floor, with which the others are compared."""
    if only is not None:
        return tuple(section for section in SECTIONS if section.name in only or section.name == "floor")
    return tuple(section for section in SECTIONS if not (quick and section.name in NOT_IN_QUICK))


def of_engines(rows: Sequence[engines.Row]) -> tuple[Section, ...]:
    """Return a section for each system."""
    return tuple(Section(row.name, partial(engines.measure, row), 3) for row in rows)


def measure(runs: Runs, sections: tuple[Section, ...], quick: bool, every: int | None = None) -> Bench:
    """Measure the first round of every section, then the second rounds, and so on.

    Args:
        every: number of rounds of each section; None: as the section says.
    """
    into, started = Collected(), datetime.now(UTC).isoformat(timespec="seconds")
    rounds = {section.name: every or (section.quick_rounds if quick else section.rounds) for section in sections}
    for number in range(max(rounds.values())):
        for section in sections:
            if number < rounds[section.name]:
                began = time.monotonic()
                section.measure(into, runs, quick)
                _tell(f"{section.name}, round {number + 1} of {rounds[section.name]}: {time.monotonic() - began:.1f} s")
    order = [*NAMES, *(section.name for section in sections)]
    figures = sorted(into.figures(), key=lambda figure: order.index(figure.section))
    return Bench(started, quick, {**host(), **versions()}, tuple(figures))


def saved_at(name: str) -> Path:
    """Return the file of a saved measurement; a name with a slash or the ending .json is a path."""
    return Path(name) if "/" in name or name.endswith(".json") else SAVED / f"{name}.json"


def load(name: str) -> Bench:
    """Return a saved measurement.

    Raises:
        OSError: the file cannot be read.
        msgspec.MsgspecError: it is not a measurement.
    """
    return decode(saved_at(name).read_bytes())


def _tell(text: str) -> None:
    print(f"bench: {text}", file=sys.stderr, flush=True)
