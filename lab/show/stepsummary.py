"""Runs as Markdown for the summary page of a GitHub workflow step: a table, then the runs that did not pass.

GitHub names the file in GITHUB_STEP_SUMMARY and shows everything that a step appends to it, up to 1 MiB a step.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from msgspec import Struct, structs

from lab.check.metrics import Metrics
from lab.check.verdict import Verdict
from lab.show.table import closing

VARIABLE = "GITHUB_STEP_SUMMARY"
PASSED = "PASS"
DETAILS_BYTES = 500_000
"""Limit of the texts of all runs that did not pass: half of GitHub's 1 MiB, because others may append too."""
_NONE = "-"
HEADS = (
    "scenario",
    "verdict",
    "seed",
    "acknowledged",
    "messages/s",
    "p50 ms",
    "p99 ms",
    "longest gap ms",
    "run",
    "again",
)
_ALIGN = (":--", ":--", *(["--:"] * 6), ":--", ":--")


class RunRow(Struct, frozen=True, kw_only=True):
    """One run in the table; None means not measured.

    verdict: as in the last line of summary.txt. again: the command that repeats the run; "" if none is known.
    """

    scenario: str
    verdict: str
    seed: int | None = None
    directory: str = ""
    again: str = ""
    acknowledged: int | None = None
    throughput_per_s: float | None = None
    latency_p50_ms: float | None = None
    latency_p99_ms: float | None = None
    longest_gap_ms: float | None = None


def row_of(
    scenario: str,
    seed: int | None,
    directory: str,
    verdict: Verdict | None,
    metrics: Metrics | None,
    problem: str,
    again: str = "",
) -> RunRow:
    """The row of one run.

    Args:
        problem: why the lab could not carry out or judge the run; "" if it could.
    """
    word = closing(verdict) if verdict is not None else f"the lab failed: {problem}"
    again = "" if word == PASSED else again
    row = RunRow(scenario=scenario, verdict=word, seed=seed, directory=directory, again=again)
    if metrics is None:
        return row
    load, latency = metrics.load, metrics.load.latency
    return structs.replace(
        row,
        acknowledged=load.acknowledged,
        throughput_per_s=load.throughput_per_s,
        latency_p50_ms=latency.p50_ms if latency is not None else None,
        latency_p99_ms=latency.p99_ms if latency is not None else None,
        longest_gap_ms=load.longest_gap_s * 1e3,
    )


def render(runs: Sequence[tuple[RunRow, str]]) -> str:
    """Return the Markdown text of runs, each given with the text to show if it did not pass."""
    passed = sum(row.verdict == PASSED for row, _ in runs)
    lines = [f"### chatlab: {passed} of {len(runs)} runs passed", "", _line(HEADS), _line(_ALIGN)]
    lines += [_line(_cells(row)) for row, _ in runs]
    left = DETAILS_BYTES
    for row, details in runs:
        size = len(details.encode())
        if row.verdict == PASSED or not details:
            continue
        if size > left:
            lines += ["", f"{row.scenario}: {row.verdict}; its summary is too long to be shown here"]
            continue
        left -= size
        fence = _fence(details)
        lines += ["", f"<details><summary>{_text(f'{row.scenario}: {row.verdict}')}</summary>", ""]
        lines += [f"{fence}text", details.rstrip("\n"), fence, "", "</details>"]
    return "\n".join(lines) + "\n\n"


def append_where_asked(runs: Sequence[tuple[RunRow, str]]) -> None:
    """Append the runs to the file that the environment names, if any; an error is printed and otherwise ignored."""
    name = os.environ.get(VARIABLE, "")
    if not name or not runs:
        return
    try:
        with Path(name).open("a", encoding="utf-8") as file:
            file.write(render(runs))
    except OSError as error:
        print(f"{VARIABLE}: {error}", file=sys.stderr)


def _cells(row: RunRow) -> list[str]:
    return [
        row.scenario,
        row.verdict,
        _NONE if row.seed is None else str(row.seed),
        _number(row.acknowledged, 0),
        _number(row.throughput_per_s, 0),
        _number(row.latency_p50_ms, 2),
        _number(row.latency_p99_ms, 2),
        _number(row.longest_gap_ms, 1),
        row.directory,
        row.again,
    ]


def _number(value: float | None, digits: int) -> str:
    return _NONE if value is None else f"{value:,.{digits}f}"


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(_text(cell).replace("|", "\\|") for cell in cells) + " |"


def _text(text: str) -> str:
    """Return the text on one line, with markup escaped."""
    return " ".join(text.split()).replace("<", "&lt;").replace("`", "\\`")


def _fence(text: str) -> str:
    """Return a row of backticks that is longer than any in the text."""
    return "`" * max(3, 1 + max((len(found) for found in re.findall("`+", text)), default=0))
