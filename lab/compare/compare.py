"""`run_lab.py compare A B`: what differs between two runs, or between two saved measurements of `bench`.

Everything that could be a reason for different figures comes first, then the figures with their ratio. A run gives one
value of each figure, which does not show what is chance; docs/comparing.md explains which command does.
"""

from __future__ import annotations

import argparse
import difflib
import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeAlias

import msgspec
from tabulate import tabulate

from lab.bench import table
from lab.bench.figures import Bench, change
from lab.compare.figures import QUANTITIES, values
from lab.places import PROGRAM, near
from lab.runs import PASS, USAGE

Facts: TypeAlias = dict[str, str]
NOTE: Final = (
    f"One run each: a ratio alone does not show whether a difference is more than chance. `{PROGRAM} ab` shows it."
)


class CompareError(Exception):
    """The two cannot be compared."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `run_lab.py compare`."""
    what = "a run directory, or a measurement that `bench --save` wrote: its name or file"
    parser.add_argument("a", metavar="A", help=what)
    parser.add_argument("b", metavar="B", help="another one of the same kind")
    parser.add_argument("--json", action="store_true", help="print one JSON document on standard output")
    parser.add_argument("--html", metavar="FILE", type=Path, help="also write the comparison of two runs as a page")


def main(options: argparse.Namespace) -> int:
    """Print the comparison; return the exit code."""
    try:
        a, b = (_read(word) for word in (options.a, options.b))
        if isinstance(a, Run) and isinstance(b, Run):
            comparison = compare_runs(a, b)
        elif isinstance(a, Bench) and isinstance(b, Bench):
            comparison = compare_benches(options.a, a, options.b, b)
        else:
            run, bench = (options.a, options.b) if isinstance(a, Run) else (options.b, options.a)
            raise CompareError(f"{run} is a run and {bench} a measurement; allowed: two runs, or two measurements")
        if options.html is not None:
            _write(options.html, comparison, a, b)
    except CompareError as error:
        print(error, file=sys.stderr)
        return USAGE
    print(json.dumps(comparison.plain(), indent=1) if options.json else comparison.text())
    return PASS


def _write(path: Path, comparison: Comparison, a: Run | Bench, b: Run | Bench) -> None:
    from lab.compare.page import render

    if not isinstance(a, Run) or not isinstance(b, Run):
        raise CompareError("--html: found two measurements, allowed: two runs")
    try:
        path.write_text(render(comparison, (a.histogram, b.histogram)), "utf-8")
    except OSError as error:
        raise CompareError(f"--html {path}: {error.strerror or error}") from None


class Difference(NamedTuple):
    """One fact in which A and B differ; "-" where one has none."""

    what: str
    a: str
    b: str


@dataclass(frozen=True, slots=True)
class Comparison:
    """A comparison. figures: for --json. tables: the figures for people."""

    names: tuple[str, str]
    differences: tuple[Difference, ...]
    figures: list[dict[str, Any]]
    tables: str

    def text(self) -> str:
        """Return the comparison without a newline at the end."""
        head = "\n".join(f"{letter}  {name}" for letter, name in zip("AB", self.names, strict=True))
        differ = "no difference of machine, versions, settings or scenario"
        if self.differences:
            differ = str(tabulate(self.differences, headers=["differs", "A", "B"], disable_numparse=True))
        return "\n\n".join((head, differ, self.tables))

    def plain(self) -> dict[str, Any]:
        """Return the --json document."""
        return {
            "exit_code": PASS,
            "a": self.names[0],
            "b": self.names[1],
            "differences": [each._asdict() for each in self.differences],
            "figures": self.figures,
        }


def differences(a: Facts, b: Facts) -> Iterator[Difference]:
    """Yield the facts that are not equal, in the order of A's facts, then those that only B has."""
    for what in {**a, **b}:
        if a.get(what) != b.get(what):
            yield Difference(what, a.get(what, "-"), b.get(what, "-"))


# ---- two runs -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Run:
    """What is compared of a run.

    scenario: the lines of scenario.yml without the seed. histogram: of the latencies, as in metrics.json.
    """

    path: Path
    facts: Facts
    scenario: list[str]
    values: dict[str, float]
    histogram: tuple[tuple[float, int], ...]


def _read(word: str) -> Run | Bench:
    """Return the run in a directory, or the measurement with this name or in this file.

    Raises:
        CompareError: it is neither.
    """
    if Path(word).is_dir():
        return read_run(Path(word))
    from lab.bench import bench

    try:
        return bench.load(word)
    except FileNotFoundError:
        place = near(bench.saved_at(word))
        raise CompareError(f"{word}: no such run directory, and no measurement {place}") from None
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise CompareError(f"{word}: not a measurement of `bench --save`: {error}") from None


def read_run(path: Path) -> Run:
    """Read a finished run. It is measured again if it has no readable metrics.json.

    Raises:
        CompareError: it is not a finished run, or a file cannot be read.
    """
    from lab.check import history, metrics
    from lab.rundir import RunDir, RunDirError

    try:
        run = RunDir.open(path)
        meta = msgspec.to_builtins(history.read_meta(run.meta))
        try:
            measured = msgspec.json.decode(run.metrics.read_bytes(), type=dict[str, Any])
        except (OSError, msgspec.MsgspecError):
            measured = msgspec.to_builtins(metrics.measure(run))
        lines = run.scenario.read_text("utf-8").splitlines()
    except (RunDirError, history.RunFileError, OSError, UnicodeDecodeError) as error:
        raise CompareError(f"{path}: {error}" if str(path) not in str(error) else str(error)) from None
    settings = {"durability": measured.get("durability"), **meta["cluster"]}
    facts = {
        "scenario": meta["scenario"],
        "seed": meta["seed"],
        "world": meta["kind"],
        "links": meta["links"],
        "disks": meta["disks"],
        "mutant": meta["mutant"] or "none",
        "outcome": _outcome(run.verdict),
        "interpreter": meta["interpreter"],
        **meta["host"],
        **meta["versions"],
        **{f"cluster.{name}": value for name, value in settings.items()},
    }
    kept = [line for line in lines if not line.startswith("seed:")]
    histogram = tuple((float(ms), int(count)) for ms, count in measured.get("histogram", ()))
    return Run(run.path, {name: str(value) for name, value in facts.items()}, kept, values([measured]), histogram)


def _outcome(verdict: Path) -> str:
    try:
        return str(msgspec.json.decode(verdict.read_bytes(), type=dict[str, Any])["outcome"])
    except (OSError, msgspec.MsgspecError, KeyError):
        return "not judged"


def compare_runs(a: Run, b: Run) -> Comparison:
    """Compare two runs."""
    found = list(differences(a.facts, b.facts))
    if a.facts["scenario"] == b.facts["scenario"]:
        found += _changed_lines(a.scenario, b.scenario)
    rows, plain = [], []
    for each in QUANTITIES:
        left, right = a.values.get(each.name), b.values.get(each.name)
        if left is None and right is None:
            continue
        ratio = right / left if left is not None and right is not None else None
        shown = ["-" if value is None else table.number(value) for value in (left, right)]
        rows.append(
            [each.name, each.unit, *shown, "-" if ratio is None else f"{ratio:.3f}", f"{each.better} is better"]
        )
        plain.append(
            {"name": each.name, "unit": each.unit, "better": each.better, "a": left, "b": right, "ratio": ratio}
        )
    headers = ["figure", "unit", "A", "B", "B / A", ""]
    align = ["left", "left", "right", "right", "right", "left"]
    tables = tabulate(rows, headers=headers, colalign=align, disable_numparse=True) if rows else "no figures"
    return Comparison((str(near(a.path)), str(near(b.path))), tuple(found), plain, f"{tables}\n\n{NOTE}")


def _changed_lines(a: list[str], b: list[str]) -> Iterator[Difference]:
    for kind, start, end, other, other_end in difflib.SequenceMatcher(None, a, b, autojunk=False).get_opcodes():
        if kind != "equal":
            left, right = "\n".join(a[start:end]), "\n".join(b[other:other_end])
            yield Difference("scenario.yml", left or "-", right or "-")


# ---- two measurements ---------------------------------------------------------------------------


def compare_benches(a_name: str, a: Bench, b_name: str, b: Bench) -> Comparison:
    """Compare two measurements, as `bench --compare` does."""
    found = differences(_facts(a), _facts(b))
    names = (f"{a_name}, {a.started_utc}", f"{b_name}, {b.started_utc}")
    plain = []
    for figure in b.figures:
        changed = change(figure, a)
        if changed is None:
            continue
        section, name, unit = figure.key
        of_rounds = changed.compared
        plain.append(
            {"section": section, "name": name, "unit": unit, "better": figure.better}
            | {"a": changed.before, "b": figure.median, "ratio": changed.ratio}
            | {"interval": None if of_rounds is None else [of_rounds.low, of_rounds.high]}
            | {"answer": None if of_rounds is None else of_rounds.answer}
        )
    return Comparison(names, tuple(found), plain, table.figures(b, a))


def _facts(bench: Bench) -> Facts:
    host: Mapping[str, Any] = bench.host
    return {"quick": "yes" if bench.quick else "no", **{name: str(value) for name, value in host.items()}}
