"""The index of all runs in a results directory: one entry a run, read from its verdict and metrics.

The entries are kept in `.index.json` of that directory and read again only for runs that have changed since. The file
can be removed at any time, and need not be writable.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Final, Literal, TypeAlias, TypeVar

import msgspec
from msgspec import Struct
from tabulate import tabulate

from lab.check.verdict import Verdict
from lab.rundir import RunDir, bytes_of, runs_of
from lab.show.table import closing
from lab.words import size_text

CACHE: Final = ".index.json"
_FORMAT: Final = 1
"""Number of the cache's form; a cache of another form is not used."""
_CAUSE_MIN: Final = 20
"""Minimum width of the column of causes, in characters."""

Outcome: TypeAlias = Literal["pass", "broken", "missed", "undecided", "not judged", "incomplete"]
Times: TypeAlias = tuple[int, int, int]


class Entry(Struct, frozen=True):
    """One run. None: not measured.

    scenario, run: the names of its two directories.
    started_utc: ISO 8601.
    outcome: that of the verdict; `not judged` without one; `incomplete` if it ended early or is still under way.
    check: the first check that is FAIL, such as `A4 durability`; "" if there is none.
    cause: the result on one line; "" if the run passed or has no verdict.
    gap_s: longest time without an acknowledgement.
    """

    scenario: str
    run: str
    started_utc: str
    world: Literal["live", "sim", ""]
    seed: int | None
    mutant: str
    outcome: Outcome
    check: str
    cause: str
    acknowledged_per_s: float | None
    p99_ms: float | None
    gap_s: float | None
    elections: int | None
    size_bytes: int


def index(results: Path) -> list[Entry]:
    """Return the entries of all runs below a results directory, the newest first."""
    known = _read(results / CACHE, _Cache) or _Cache(_FORMAT, {})
    before = known.runs if known.format == _FORMAT else {}
    fresh: dict[str, _Cached] = {}
    entries: list[Entry] = []
    for home in runs_of(results):
        for path in home.runs:
            run = RunDir(path)
            name = f"{home.path.name}/{path.name}"
            times = (_mtime(path), _mtime(run.meta), _mtime(run.verdict))
            cached = before.get(name)
            if cached is None or cached.times != times:
                entry = _entry(run)
                if entry is None:
                    continue
                cached = _Cached(times, entry)
            entries.append(cached.entry)
            if cached.entry.outcome != "incomplete":  # It may be under way, and grow.
                fresh[name] = cached
    if fresh != before:
        _keep(results / CACHE, _Cache(_FORMAT, fresh))
    return sorted(entries, key=lambda entry: (entry.started_utc, entry.scenario, entry.run), reverse=True)


def render(entries: Sequence[Entry], width: int) -> str:
    """Return a table of entries that is about `width` characters wide, without a newline at the end."""
    headers = [
        "scenario",
        "started (UTC)",
        "world",
        "seed",
        "outcome",
        "acks/s",
        "p99\nms",
        "gap\nms",
        "elections",
        "size",
    ]
    align = ["left", "left", "left", "right", "left", "right", "right", "right", "right", "right"]
    rows = [_row(entry) for entry in entries]
    text = str(tabulate(rows, headers=headers, colalign=align, disable_numparse=True))
    if not any(entry.cause for entry in entries):
        return text
    left = max(width - max(map(len, text.splitlines())) - 2, _CAUSE_MIN)
    for row, entry in zip(rows, entries, strict=True):
        row.append(entry.cause if len(entry.cause) <= left else entry.cause[: left - 1] + "…")
    return str(tabulate(rows, headers=[*headers, "cause"], colalign=[*align, "left"], disable_numparse=True))


def _row(entry: Entry) -> list[str]:
    def number(value: float | None, digits: int = 1) -> str:
        return "" if value is None else f"{value:,.{digits}f}"

    return [
        entry.scenario,
        entry.started_utc[:19].replace("T", " "),
        entry.world,
        "" if entry.seed is None else str(entry.seed),
        f"{entry.outcome}{f' ({entry.mutant})' if entry.mutant else ''}",
        number(entry.acknowledged_per_s, 0),
        number(entry.p99_ms),
        number(None if entry.gap_s is None else entry.gap_s * 1e3),
        number(entry.elections, 0),
        size_text(entry.size_bytes),
    ]


# ---- one run ------------------------------------------------------------------------------------


class _Meta(Struct):
    kind: Literal["live", "sim"]
    seed: int
    mutant: str = ""


class _Latency(Struct):
    p99_ms: float


class _Load(Struct):
    throughput_per_s: float
    longest_gap_s: float
    latency: _Latency | None = None


class _Terms(Struct):
    elections: int


class _Metrics(Struct):
    load: _Load
    terms: _Terms | None = None


def _entry(run: RunDir) -> Entry | None:
    """Return the entry of a run; None if the directory is not, or no longer, that of a run."""
    try:
        size = bytes_of(run.path)
    except FileNotFoundError:
        return None
    if not (run.scenario.is_file() or run.meta.is_file()):
        return None
    meta, verdict = _read(run.meta, _Meta), _read(run.verdict, Verdict)
    metrics = _read(run.metrics, _Metrics)
    load = metrics.load if metrics is not None else None
    check = next((each for each in verdict.checks if each.result == "FAIL"), None) if verdict is not None else None
    outcome: Outcome = "incomplete" if meta is None else "not judged" if verdict is None else verdict.outcome
    stamp = run.path.name
    return Entry(
        scenario=run.path.parent.name,
        run=stamp,
        started_utc=f"{stamp[:4]}-{stamp[4:6]}-{stamp[6:11]}:{stamp[11:13]}:{stamp[13:20]}",
        world=meta.kind if meta is not None else "",
        seed=meta.seed if meta is not None else None,
        mutant=meta.mutant if meta is not None else "",
        outcome=outcome,
        check=f"{check.name} {check.title}" if check is not None else "",
        cause=closing(verdict) if verdict is not None and verdict.outcome != "pass" else "",
        acknowledged_per_s=load.throughput_per_s if load is not None else None,
        p99_ms=load.latency.p99_ms if load is not None and load.latency is not None else None,
        gap_s=load.longest_gap_s if load is not None else None,
        elections=metrics.terms.elections if metrics is not None and metrics.terms is not None else None,
        size_bytes=size,
    )


# ---- the cache ----------------------------------------------------------------------------------


class _Cached(Struct, frozen=True):
    """An entry, and when the directory, meta.json and verdict.json had last changed as it was read."""

    times: Times
    entry: Entry


class _Cache(Struct, frozen=True):
    format: int
    runs: dict[str, _Cached]
    """scenario/stamp -> the entry of that run."""


T = TypeVar("T")


def _read(path: Path, form: type[T]) -> T | None:
    """Return the content of a file; None if it does not exist or has another form."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=form)
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
        return None


def _keep(path: Path, cache: _Cache) -> None:
    """Replace the cache in one step, because several processes may do so at a time."""
    fresh = path.with_name(f"{path.name}.{os.getpid()}")
    with contextlib.suppress(OSError):
        fresh.write_bytes(msgspec.json.encode(cache))
        fresh.replace(path)


def _mtime(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0
