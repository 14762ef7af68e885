"""`engines record`: run the scenarios of published problems, and write what was seen into a table in docs/engines.md.

    python3 run_lab.py engines record nats_power_loss nats_power_loss_control --runs 10

Each scenario is a series of runs; a new series replaces the scenario's older one in scenarios/engines/record.json. The
table is made of that file. A scenario says in its description which checks shall fail and where the problem was
published: `(A4; nats-server #7564)`. One without that is a control, whose runs shall pass.
"""

from __future__ import annotations

import argparse
import re
import statistics
import sys
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final

import msgspec
from msgspec import Struct

from lab.engines import install
from lab.engines.catalogue import parse
from lab.places import RESULTS, ROOT
from lab.plan.choosing import choose
from lab.plan.scenario import Scenario
from lab.runs import INTERRUPTED, LIVE, PASS, USAGE, Progress, Result, refusals, run_once, seed_of
from lab.search.rates import Rate
from lab.values import positive, seed

HOME: Final = ROOT / "scenarios" / "engines"
RECORD: Final = HOME / "record.json"
PAGE: Final = ROOT / "docs" / "engines.md"
BEGIN, END = "<!-- written by `engines record` -->\n", "<!-- end -->\n"
HEAD = (
    "| scenario | published as | engine | seen | 95 % interval | seconds a run |\n"
    "| --- | --- | --- | --- | --- | --- |\n"
)
_PUBLISHED = re.compile(r"\(A\d+; ([^()]+)\)")


class Series(Struct, frozen=True):
    """Runs of one scenario.

    engine: with its version; for a program of the system, that of its package. options: of the engine.
    published: where the problem was published; "": the scenario is a control.
    outcomes: outcome of a run, or `lab failed` -> its number of runs.
    broken: check that failed -> its number of runs.
    seconds: of each run.
    """

    engine: str
    options: dict[str, str]
    published: str
    outcomes: dict[str, int] = {}
    broken: dict[str, int] = {}
    seconds: tuple[float, ...] = ()

    @classmethod
    def of(cls, scenario: Scenario) -> Series:
        """Return the series of a scenario, without a run."""
        options = dict(scenario.cluster.engine_options)
        return cls(install.version_of(parse(scenario.cluster.engine)), options, published(scenario))

    def with_run(self, outcome: str, failed: Iterable[str], seconds: float) -> Series:
        """Return the series with one more run. failed: names of the checks that failed."""
        outcomes, broken = Counter(self.outcomes), Counter(self.broken)
        outcomes[outcome] += 1
        broken.update(failed)
        return msgspec.structs.replace(
            self, outcomes=dict(outcomes), broken=dict(broken), seconds=(*self.seconds, round(seconds, 1))
        )

    @property
    def rate(self) -> Rate:
        """How many runs had the outcome that the scenario is for."""
        return Rate(self.outcomes.get("broken" if self.published else "pass", 0), len(self.seconds))

    @property
    def seen(self) -> str:
        """Outcomes and failed checks with their numbers of runs, the expected outcome first."""
        expected = "broken" if self.published else "pass"
        parts = [f"{'problem' if self.published else 'passed'} {self.rate.failed} of {self.rate.runs}"]
        parts += [f"{outcome} {count}" for outcome, count in sorted(self.outcomes.items()) if outcome != expected]
        checks = ", ".join(
            f"{check} {self.broken[check]}" for check in sorted(self.broken, key=lambda name: int(name[1:]))
        )
        return "; ".join(parts) + (f" ({checks})" if checks else "")


def published(scenario: Scenario) -> str:
    """Return where a scenario's problem was published; "" for a control."""
    found = _PUBLISHED.search(" ".join(scenario.description.split()))
    return found[1] if found else ""


def load(path: Path = RECORD) -> dict[str, Series]:
    """Return scenario -> its series; none if there is no record yet."""
    return msgspec.json.decode(path.read_bytes(), type=dict[str, Series]) if path.exists() else {}


def save(record: Mapping[str, Series], path: Path = RECORD, page: Path = PAGE) -> None:
    """Write the record, and the table into the page."""
    ordered = dict(sorted(record.items()))
    before, _, rest = page.read_text("utf-8").partition(BEGIN)
    _, found, after = rest.partition(END)
    if not found:
        raise ValueError(f"{page}: found no table between {BEGIN.strip()} and {END.strip()}")
    path.write_bytes(msgspec.json.format(msgspec.json.encode(ordered), indent=1) + b"\n")
    page.write_text(before + BEGIN + table(ordered) + END + after, "utf-8")


def table(record: Mapping[str, Series]) -> str:
    """Return the table in Markdown."""
    rows = []
    for name, series in record.items():
        options = ", ".join(f"`{option}: {value}`" for option, value in series.options.items())
        low, high = series.rate.interval()
        seconds = f"{statistics.median(series.seconds):.0f}"
        rows.append(
            f"| `{name}` | {series.published or 'control'} | {', '.join(filter(None, [series.engine, options]))} "
            f"| {series.seen} | {low:.0%} to {high:.0%} | {seconds} |\n"
        )
    return HEAD + "".join(rows)


def record(words: Sequence[str], runs: int, out: Path, first_seed: int | None) -> int:
    """Run the scenarios, one run after the other, and record them; return the exit code.

    Args:
        words: scenarios; none: all in scenarios/engines whose engines are installed.
        runs: of each scenario.
        first_seed: of the first run; each run adds 1. None: random.
    """
    if not HOME.is_dir():
        print(f"engines record: needs a checkout, found no {HOME}", file=sys.stderr)
        return USAGE
    chosen, mistakes = choose(list(words) or [str(HOME)], (), (HOME,))
    for mistake in mistakes:
        print(mistake, file=sys.stderr)
    wanted: list[Scenario] = []
    for path, scenario, by_name in chosen:
        why = refusal(scenario)
        if why:
            print(f"{path.stem}: {'' if by_name else 'skipped: '}{why}", file=sys.stderr)
        if why and by_name:
            return USAGE
        wanted += [] if why else [scenario]
    if mistakes:
        return USAGE
    seen = load()
    for scenario in wanted:
        series = Series.of(scenario)
        for number in range(runs):
            progress = Progress(f"{number + 1} of {runs}, {scenario.name}", brief=True)
            began = time.monotonic()
            try:
                result = run_once(scenario, seed_of(scenario, first_seed, number), out, progress=progress)
            except KeyboardInterrupt:
                return INTERRUPTED
            finally:
                progress.close()
            series = series.with_run(*_outcome(result), time.monotonic() - began)
            save(seen | {scenario.name: series})
            print(f"{scenario.name}: {result.closing}", flush=True)
        seen[scenario.name] = series
        print(f"{scenario.name}: {series.seen}", flush=True)
    return PASS


def refusal(scenario: Scenario) -> str:
    """Return why this scenario cannot be run here; "" if it can."""
    if not scenario.cluster.engine:
        return "the scenario names no engine"
    try:
        install.program(parse(scenario.cluster.engine))
    except install.NotInstalled as error:
        return str(error)
    return "; ".join(refusals(scenario, LIVE))


def _outcome(result: Result) -> tuple[str, list[str]]:
    """Return the outcome of a run, and the checks that failed."""
    if result.verdict is None:
        return "lab failed", []
    failed = [check.name for check in result.verdict.checks if check.result == "FAIL" and check.name.startswith("A")]
    return result.verdict.outcome, failed


# ---- the command line ---------------------------------------------------------------------------


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command `engines`."""
    commands = install.add_arguments(parser)
    recording = commands.add_parser("record", help="run published problems, and write the table in docs/engines.md")
    recording.add_argument(
        "scenarios", metavar="SCENARIO", nargs="*", help="of scenarios/engines; without any: all that can be run here"
    )
    recording.add_argument("--runs", metavar="N", type=positive, default=10, help="of each scenario (%(default)s)")
    recording.add_argument("--seed", metavar="S", type=seed, help="seed of the first run; each run adds 1")
    recording.add_argument(
        "--out", metavar="DIR", type=Path, default=RESULTS, help="directory for the runs (%(default)s)"
    )
    recording.set_defaults(act=lambda options: record(options.scenarios, options.runs, options.out, options.seed))


main = install.main
