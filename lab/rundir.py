"""The directory of a run; no other module contains its file names.

results/<scenario>/<UTC stamp>/ contains everything that a run writes; docs/results.md explains each file. The link
`latest` next to the stamps points to the newest run of that scenario, and results/latest to the newest run of all. The
rows of the files are defined in lab.rows.
"""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from lab.rows import (
    FaultRow,
    FrameRow,
    HistoryRow,
    Meta,
    decode_fault_row,
    decode_frame_row,
    decode_history_row,
    decode_meta,
    encode_meta,
    encode_row,
)

LATEST = "latest"
_STAMP = re.compile(r"\d{8}T\d{6}\.\d{3}Z(-\d+)?")


class RunDirError(Exception):
    """A path is not a run directory; the text names the missing file."""


def utc_stamp(now: datetime | None = None) -> str:
    """Return the name of a run: 20241021T123456.789Z."""
    at = (now or datetime.now(UTC)).astimezone(UTC)
    return at.strftime("%Y%m%dT%H%M%S.") + f"{at.microsecond // 1000:03d}Z"


class _File:
    """A file with a fixed name in the run directory: `run.meta` is the path of meta.json."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __get__(self, run: RunDir, _: type[RunDir]) -> Path:
        return run.path / self._name


@dataclass(frozen=True, slots=True)
class RunDir:
    """The paths of the files of one run. Asking for a path neither reads nor creates the file."""

    path: Path

    @classmethod
    def create(cls, results_root: Path, scenario_name: str, stamp: str) -> RunDir:
        """Create an empty run directory and point both `latest` links to it.

        If the stamp is in use already, -2, -3, … is appended.
        """
        home = results_root / scenario_name
        home.mkdir(parents=True, exist_ok=True)
        name, number = stamp, 1
        while True:
            try:
                (home / name).mkdir()
                break
            except FileExistsError:
                number += 1
                name = f"{stamp}-{number}"
        _point(home / LATEST, Path(name))
        _point(results_root / LATEST, Path(scenario_name) / name)
        return cls(home / name)

    @classmethod
    def open(cls, path: Path) -> RunDir:
        """Return an existing run, with `latest` links resolved.

        Raises:
            RunDirError: the path is not a directory, or has no scenario.yml or no meta.json.
        """
        run = cls(path.resolve())
        if not run.path.is_dir():
            raise RunDirError(f"{path}: no such directory; a run is results/<scenario>/<stamp>")
        for file in (run.scenario, run.meta):
            if not file.is_file():
                raise RunDirError(f"{path}: no {file.name} in it, so it is not a finished run")
        return run

    # ---- written by the run ----------------------------------------------------------------------

    scenario = _File("scenario.yml")
    """The resolved scenario as it was run, including the seed."""
    by_hand = _File("by_hand.yml")
    """The steps that were done by hand, as a scenario for people."""
    meta = _File("meta.json")
    history = _File("history.jsonl")
    faults = _File("faults.jsonl")
    frames = _File("frames.jsonl")
    """The frames between nodes that were recorded; see Meta.frames."""
    live = _File("live.jsonl")
    """Written as things happen, for watching the run; the judges do not read it."""
    proxy_log = _File("proxy.log")
    busy_log = _File("busy.log")
    network_log = _File("network.log")

    def history_part(self, worker: int) -> Path:
        """The history of one load worker; merged into history.jsonl by time at the end, then removed."""
        return self.path / f"history-{worker}.part"

    # ---- written by or for each node -------------------------------------------------------------

    nodes = _File("nodes")

    def node_dir(self, node: int) -> Path:
        """Data directory of a node."""
        return self.nodes / f"node_{node}"

    def node_config(self, node: int) -> Path:
        return self.nodes / f"node_{node}.yml"

    def program_config(self, node: int) -> Path:
        """The configuration, as JSON, for a program that `cluster.command` starts, instead of node_config."""
        return self.nodes / f"node_{node}.json"

    def ledger(self, node: int) -> Path:
        """The record of what a power loss would leave of a node's files (lab.live.inside.ledger)."""
        return self.nodes / f"node_{node}.ledger"

    def supervisor_log(self, node: int) -> Path:
        """The errors of a node's supervisor (lab.live.supervise)."""
        return self.nodes / f"node_{node}.supervisor.log"

    def message_log(self, node: int) -> Path:
        return self.node_dir(node) / "logs" / f"node_{node}_messages.jsonl"

    def events(self, node: int) -> Path:
        return self.node_dir(node) / "events.jsonl"

    def node_log(self, node: int) -> Path:
        """Standard error of a node, over all its starts."""
        return self.node_dir(node) / "node.log"

    def node_ids(self) -> list[int]:
        """Ids of all nodes that have a data directory, ascending."""
        found = (entry.name.removeprefix("node_") for entry in self.nodes.glob("node_*") if entry.is_dir())
        return sorted(int(name) for name in found if name.isdecimal())

    # ---- written by the judges -------------------------------------------------------------------

    verdict = _File("verdict.json")
    metrics = _File("metrics.json")
    summary = _File("summary.txt")
    junit = _File("junit.xml")
    diagram = _File("diagram.svg")
    report = _File("report.html")

    # ---- reading rows ----------------------------------------------------------------------------

    def read_history(self) -> Iterator[HistoryRow]:
        """Yield the rows of history.jsonl in order; none if the file does not exist."""
        for line in _lines(self.history):
            yield decode_history_row(line)

    def read_frames(self) -> Iterator[FrameRow]:
        """Yield the rows of frames.jsonl; none if the file does not exist."""
        for line in _lines(self.frames):
            yield decode_frame_row(line)

    def read_faults(self) -> list[FaultRow]:
        return [decode_fault_row(line) for line in _lines(self.faults)]

    def write_faults(self, rows: Iterable[FaultRow]) -> None:
        """Write faults.jsonl, replacing its content."""
        self.faults.write_bytes(b"".join(map(encode_row, rows)))

    def read_meta(self) -> Meta:
        return decode_meta(self.meta.read_bytes())

    def write_meta(self, meta: Meta) -> None:
        self.meta.write_bytes(encode_meta(meta))


class Cleaned(NamedTuple):
    """The result of `clean`: numbers of runs and their bytes."""

    removed: int
    removed_bytes: int
    kept: int
    kept_bytes: int


class Home(NamedTuple):
    """The directory of a scenario's runs. runs: their directories, the oldest first."""

    path: Path
    runs: list[Path]


def runs_of(results_root: Path) -> Iterator[Home]:
    """Yield the directories below a results directory, with everything in them that is named like a run."""
    for home in sorted(results_root.iterdir()) if results_root.is_dir() else []:
        if not home.is_symlink() and home.is_dir():
            runs = [each for each in home.iterdir() if _STAMP.fullmatch(each.name) and not each.is_symlink()]
            yield Home(home, sorted(runs, key=_age))


def bytes_of(run: Path) -> int:
    """Return the sum of the sizes of all files of a run."""
    return sum(file.lstat().st_size for file in run.rglob("*") if not file.is_dir())


def clean(results_root: Path, keep: int, *, dry_run: bool = False) -> Cleaned:
    """Remove all but the newest `keep` runs of each scenario; directories not named like a run stay untouched.

    A run without meta.json may still be under way: it stays if its directory has changed within the last hour.
    """
    counts = [0, 0, 0, 0]
    for home, runs in runs_of(results_root):
        for place, run in enumerate(reversed(runs)):
            size = bytes_of(run)
            stays = place < keep or (not (run / "meta.json").exists() and time.time() - run.stat().st_mtime < 3600)
            counts[2 if stays else 0] += 1
            counts[3 if stays else 1] += size
            if not stays and not dry_run:
                shutil.rmtree(run)
        if not dry_run:
            _drop_if_broken(home / LATEST)
            if not any(home.iterdir()):
                home.rmdir()
    if not dry_run:
        _drop_if_broken(results_root / LATEST)
    return Cleaned(*counts)


def remove(run: Path) -> None:
    """Remove a run directory, and the `latest` links to it.

    Its scenario's directory stays, because another process may be about to create a run there.
    """
    shutil.rmtree(run)
    _drop_if_broken(run.parent / LATEST)
    _drop_if_broken(run.parent.parent / LATEST)


def _age(run: Path) -> tuple[str, int]:
    """Return the sort key of a run: its stamp, and the appended number if several runs have the same stamp."""
    stamp, _, number = run.name.partition("-")
    return stamp, int(number or 1)


def _drop_if_broken(link: Path) -> None:
    if link.is_symlink() and not link.exists():
        link.unlink(missing_ok=True)


def _lines(path: Path) -> Iterator[bytes]:
    if not path.is_file():
        return
    with path.open("rb") as file:
        yield from file


def _point(link: Path, target: Path) -> None:
    """Make `link` point to `target`; an existing link is replaced atomically, whatever other processes do."""
    fresh = link.with_name(f".{link.name}.{os.getpid()}.new")
    fresh.unlink(missing_ok=True)
    fresh.symlink_to(target)
    fresh.replace(link)
