"""A campaign's state: one SQLite file, results/campaigns/NAME/campaign.sqlite, in WAL mode.

A seed is finished when its row is committed. So a campaign that was killed at any point repeats no finished seed and
loses none; a seed whose result was on its way is played again. Reading is possible at any time, also with `sqlite3`:

    SELECT outcome, count(*) FROM seeds GROUP BY outcome;
    SELECT seed, count(*) FROM seeds WHERE mutant = '' GROUP BY seed HAVING count(*) > 1;
    SELECT text, count(*) FROM seeds, json_each(seeds.marks) JOIN marks ON id = value GROUP BY text ORDER BY 2;

docs/campaigns.md describes the tables.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shlex
import sqlite3
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec
from msgspec import Struct

from lab.campaign.orders import Reduced, Result, file_stem
from lab.places import COMMAND, near
from lab.runs import How
from lab.search.draw import CHANGING_SHARE
from lab.search.search import Search
from lab.search.worker import Played

CAMPAIGNS: Final = "campaigns"
"""Directory of all campaigns, in the results directory."""
FILE: Final = "campaign.sqlite"
FORMAT: Final = 1
PASSED, FAILED, TROUBLE = "passed", "failed", "lab failed"

_TABLES: Final = """
CREATE TABLE campaign (settings TEXT NOT NULL, spent_s REAL NOT NULL DEFAULT 0);
CREATE TABLE marks (id INTEGER PRIMARY KEY, text TEXT NOT NULL UNIQUE);
CREATE TABLE findings (
    id INTEGER PRIMARY KEY,
    mutant TEXT NOT NULL,
    kind TEXT NOT NULL,
    marks TEXT NOT NULL,
    text TEXT NOT NULL,
    seed INTEGER NOT NULL,
    scenario TEXT NOT NULL,
    steps INTEGER NOT NULL,
    simulations INTEGER NOT NULL,
    minimal INTEGER NOT NULL,
    UNIQUE (mutant, kind, marks)
);
CREATE TABLE seeds (
    seed INTEGER NOT NULL,
    mutant TEXT NOT NULL,
    outcome TEXT NOT NULL CHECK (outcome IN ('passed', 'failed', 'lab failed')),
    kind TEXT NOT NULL,
    text TEXT NOT NULL,
    finding INTEGER REFERENCES findings,
    marks TEXT NOT NULL,
    faults TEXT NOT NULL,
    frames INTEGER NOT NULL,
    elections INTEGER NOT NULL,
    messages INTEGER NOT NULL,
    virtual_s REAL NOT NULL,
    seconds REAL NOT NULL,
    mode TEXT NOT NULL,
    worker TEXT NOT NULL,
    code TEXT NOT NULL,
    PRIMARY KEY (seed, mutant)
) WITHOUT ROWID;
CREATE INDEX failures ON seeds (mutant, kind) WHERE outcome = 'failed';
"""


class Settings(Struct, frozen=True, forbid_unknown_fields=True):
    """What a campaign was begun with; it never changes.

    first: the first seed.
    count: number of seeds; 0 if `time_limit_s` alone ends the campaign.
    time_limit_s: start no seed after this running time, in seconds; of all starts together.
    sizes: cluster sizes to draw from.
    mutants: what plays each seed: names of mutants, "" for the product.
    code: the version of the code, as in lab.campaign.code.
    commit: the commit whose code plays the seeds; "" for the code that began the campaign.
    changing: share of the seeds that change the members.
    """

    name: str
    first: int
    count: int
    time_limit_s: float | None
    sizes: tuple[int, ...]
    mutants: tuple[str, ...]
    code: str
    commit: str = ""
    changing: float = CHANGING_SHARE
    format: int = FORMAT

    @property
    def planned(self) -> int:
        """Number of seeds, each counted once for each mutant; 0 if the time alone limits them."""
        return self.count * len(self.mutants)


class StoreError(Exception):
    """A campaign or a soak cannot be created or opened; the text says why."""


@contextlib.contextmanager
def locked(directory: Path, what: str, allowed: str = "") -> Iterator[None]:
    """Keep other processes from playing what is in a directory; the lock ends with this process at the latest.

    Args:
        what: the name of its content, for the error. allowed: the end of the error.

    Raises:
        StoreError: another process has locked the directory.
    """
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise StoreError(f"{what} is being played by another process{allowed}") from None
    try:
        yield
    finally:
        os.close(descriptor)


class Failing(NamedTuple):
    """A failing seed, with the numbers of its marks."""

    seed: int
    marks: frozenset[int]
    text: str


@dataclass(frozen=True, slots=True)
class Finding:
    """A distinct failure: what breaks, and the marks of the scenario that remains after shrinking.

    kind: the broken invariant; for failures of code also the place, such as `assert in Log.append`.
    seed: the one that was shrunk.
    scenario: YAML; "" if it could not be shrunk.
    seeds: number of failing seeds that this finding explains.
    """

    id: int
    mutant: str
    kind: str
    marks: frozenset[int]
    text: str
    seed: int
    scenario: str
    steps: int
    simulations: int
    minimal: bool
    seeds: int = 0


class Sums(NamedTuple):
    """The sums of the seeds of one mutant, or of the product."""

    done: int
    failed: int
    troubled: int
    frames: int
    elections: int
    messages: int
    virtual_s: float
    seconds: float


ENDLESS: Final = "A9, hung"
"""The kind of all seeds that exceed the limit of CPU time."""


def kind_of(played: Played) -> str:
    """Return the kind of a failure: its invariant, and where code failed, the place."""
    if played.endless:
        return ENDLESS
    place = played.text.partition(":")[0] if played.invariant in ("assert", "crash") else ""
    return f"{played.invariant} in {place}" if place else played.invariant


class Store:
    """The state of one campaign.

    directory: contains the SQLite file, the exported scenarios and the report.
    """

    def __init__(self, directory: Path, connection: sqlite3.Connection) -> None:
        self.directory = directory
        self._db = connection
        with contextlib.closing(sqlite3.connect(":memory:")) as new:
            new.executescript(_TABLES)
            missing = _columns(new) - _columns(connection)
        if missing:
            raise StoreError(f"found no {', '.join(sorted(missing))}, allowed a campaign of this lab")
        row = self._db.execute("SELECT settings FROM campaign").fetchone()
        if row is None:
            raise StoreError("found no settings")
        self.settings = msgspec.json.decode(row[0], type=Settings)
        if self.settings.format != FORMAT:
            raise StoreError(f"found format {self.settings.format}, allowed {FORMAT}")
        self._marks = {text: number for number, text in self._db.execute("SELECT id, text FROM marks")}

    # ---- creating and opening ------------------------------------------------------------------------

    @classmethod
    def create(cls, directory: Path, settings: Settings) -> Store:
        """Create a campaign in a directory that exists and has none.

        The file appears whole: it is written under another name first.
        """
        partial = directory / f"{FILE}.new"
        partial.unlink(missing_ok=True)
        db = sqlite3.connect(partial, isolation_level=None)
        db.executescript(f"BEGIN; {_TABLES} COMMIT;")
        db.execute("INSERT INTO campaign (settings) VALUES (?)", (msgspec.json.encode(settings).decode(),))
        db.close()
        partial.rename(directory / FILE)
        return cls.open(directory)

    @classmethod
    def open(cls, directory: Path) -> Store:
        """Open an existing campaign.

        Raises:
            StoreError: there is none, or its file cannot be read.
        """
        file = directory / FILE
        if not file.is_file():
            others = ", ".join(names(directory.parent)) or "none"
            raise StoreError(f"campaign {directory.name!r}: there is none in {near(directory.parent)}, found: {others}")
        db = sqlite3.connect(file, isolation_level=None, timeout=60)
        try:
            db.execute("PRAGMA journal_mode = WAL")
            db.execute("PRAGMA synchronous = NORMAL")  # A power loss may cost the last seeds, which are played again.
            return cls(directory, db)
        except (sqlite3.Error, msgspec.DecodeError, StoreError) as error:
            db.close()
            raise StoreError(f"{near(file)}: {error}") from None

    def close(self) -> None:
        self._db.close()

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _one(self, query: str, *values: object) -> tuple[Any, ...]:
        row: tuple[Any, ...] = self._db.execute(query, values).fetchone()
        return row

    # ---- seeds ---------------------------------------------------------------------------------------

    def done(self) -> set[tuple[int, str]]:
        """Return seed and mutant of all finished seeds."""
        return set(self._db.execute("SELECT seed, mutant FROM seeds"))

    def count(self) -> int:
        """Return the number of finished seeds, of all mutants together."""
        return int(self._one("SELECT count(*) FROM seeds")[0])

    def add(self, mutant: str, result: Result, worker: str) -> Failing:
        """Record a finished seed; a seed that is recorded already stays as it is. Return its marks and text."""
        played = result.played
        outcome = TROUBLE if played.trouble else FAILED if played.invariant else PASSED
        text = played.trouble or played.text
        self._db.execute("BEGIN IMMEDIATE")
        marks = self._numbers(played.marks)
        faults = json.dumps(dict(sorted(played.faults.items())))
        counts = (played.frames, played.elections, played.messages, played.virtual_s, result.seconds)
        self._db.execute(
            "INSERT OR IGNORE INTO seeds VALUES (?, ?, ?, ?, ?, NULL, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                *(played.seed, mutant, outcome, kind_of(played), text, _encode_marks(marks), faults),
                *(*counts, played.mode, worker, self.settings.code),
            ),
        )
        self._db.execute("COMMIT")
        return Failing(played.seed, marks, text)

    def _numbers(self, marks: Iterable[str]) -> frozenset[int]:
        """Return the numbers of marks; a new mark gets the next one."""
        for mark in marks:
            if mark not in self._marks:
                self._marks[mark] = len(self._marks) + 1
                self._db.execute("INSERT INTO marks VALUES (?, ?)", (self._marks[mark], mark))
        return frozenset(self._marks[mark] for mark in marks)

    def spend(self, seconds: float) -> None:
        """Record the running time of the campaign so far, of all starts together."""
        self._db.execute("UPDATE campaign SET spent_s = ?", (seconds,))

    @property
    def spent_s(self) -> float:
        """The running time so far, of all starts together."""
        return float(self._one("SELECT spent_s FROM campaign")[0])

    # ---- findings ------------------------------------------------------------------------------------

    def unexplained(self) -> dict[tuple[str, str], list[Failing]]:
        """Return (mutant, kind) -> the failing seeds that belong to no finding, in order."""
        found: dict[tuple[str, str], list[Failing]] = {}
        for mutant, kind, seed, marks, text in self._db.execute(
            "SELECT mutant, kind, seed, marks, text FROM seeds "
            f"WHERE outcome = '{FAILED}' AND finding IS NULL ORDER BY mutant, kind, seed"
        ):
            found.setdefault((mutant, kind), []).append(Failing(seed, frozenset(json.loads(marks)), text))
        return found

    def findings(self) -> list[Finding]:
        """Return all findings in the order in which they were found."""
        rows = self._db.execute(
            "SELECT f.*, (SELECT count(*) FROM seeds WHERE finding = f.id) FROM findings f ORDER BY f.id"
        )
        return [
            Finding(number, mutant, kind, frozenset(json.loads(marks)), *rest)
            for number, mutant, kind, marks, *rest in rows
        ]

    def add_finding(self, mutant: str, kind: str, failing: Failing, reduced: Reduced) -> Finding:
        """Record a failure after shrinking and return its finding, which may be known already. The seed belongs to it.

        Args:
            reduced: without a scenario if the failure could not be shrunk; then the seed's own marks count.
        """
        self._db.execute("BEGIN IMMEDIATE")
        numbers = self._numbers(reduced.marks) if reduced.scenario else failing.marks
        marks = "[]" if kind == ENDLESS else _encode_marks(numbers)
        small = (reduced.scenario, reduced.steps, reduced.simulations, int(reduced.minimal))
        self._db.execute(
            "INSERT OR IGNORE INTO findings VALUES (NULL, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (mutant, kind, marks, reduced.text or failing.text, failing.seed, *small),
        )
        (number,) = self._one("SELECT id FROM findings WHERE (mutant, kind, marks) = (?, ?, ?)", mutant, kind, marks)
        self._db.execute("UPDATE seeds SET finding = ? WHERE (seed, mutant) = (?, ?)", (number, failing.seed, mutant))
        self._db.execute("COMMIT")
        return next(each for each in self.findings() if each.id == number)

    def explain(self, mutant: str, seeds: Iterable[int], finding: int) -> None:
        """Record that these failing seeds belong to a finding."""
        self._db.execute("BEGIN IMMEDIATE")
        self._db.executemany(
            "UPDATE seeds SET finding = ? WHERE (seed, mutant) = (?, ?)", [(finding, seed, mutant) for seed in seeds]
        )
        self._db.execute("COMMIT")

    # ---- reading -------------------------------------------------------------------------------------

    def sums(self, mutant: str) -> Sums:
        """Return the sums of the finished seeds of a mutant; "" for the product."""
        return Sums(
            *self._one(
                f"SELECT count(*), coalesce(sum(outcome = '{FAILED}'), 0), coalesce(sum(outcome = '{TROUBLE}'), 0), "
                "coalesce(sum(frames), 0), coalesce(sum(elections), 0), coalesce(sum(messages), 0), "
                "coalesce(sum(virtual_s), 0.0), coalesce(sum(seconds), 0.0) FROM seeds WHERE mutant = ?",
                mutant,
            )
        )

    def modes(self) -> list[str]:
        """Return what the seeds ran as: "native" or "plain", or both."""
        return [mode for (mode,) in self._db.execute("SELECT DISTINCT mode FROM seeds ORDER BY mode")]

    def faults(self) -> dict[str, int]:
        """Return kind of fault -> number of faults that had an effect."""
        return dict(
            self._db.execute("SELECT key, sum(value) FROM seeds, json_each(seeds.faults) GROUP BY key ORDER BY key")
        )

    def marks(self) -> Counter[str]:
        """Return mark -> number of seeds that hit it."""
        rows = self._db.execute(
            "SELECT text, hits FROM marks JOIN "
            "(SELECT value, count(*) AS hits FROM seeds, json_each(seeds.marks) GROUP BY value) ON value = id"
        )
        return Counter(dict(rows))

    def troubles(self) -> Iterator[tuple[int, str, str]]:
        """Yield seed, mutant and traceback of the seeds in which the lab failed."""
        yield from self._db.execute(
            f"SELECT seed, mutant, text FROM seeds WHERE outcome = '{TROUBLE}' ORDER BY seed, mutant"
        )

    def failing(self, mutant: str, finding: int | None, most: int) -> list[int]:
        """Return the first failing seeds that belong to a finding; None for those that belong to none."""
        rows = self._db.execute(
            f"SELECT seed FROM seeds WHERE outcome = '{FAILED}' AND mutant = ? AND finding IS ? ORDER BY seed LIMIT ?",
            (mutant, finding, most),
        )
        return [seed for (seed,) in rows]

    # ---- files and commands --------------------------------------------------------------------------

    @property
    def code_directory(self) -> Path | None:
        """The directory of the exported code; None if the running lab's code plays the seeds."""
        return self.directory / "code" if self.settings.commit else None

    def scenario_file(self, finding: Finding) -> Path:
        return self.directory / "findings" / f"{file_stem(finding.mutant, finding.seed)}.yml"

    def replay(self, seed: int, mutant: str) -> str:
        """Return the command that simulates a seed of this campaign again."""
        search = Search(seed, 1, 1, self.settings.sizes, mutant=mutant, changing=self.settings.changing)
        return self._command + search.replay(seed).removeprefix(COMMAND)

    def small_replay(self, finding: Finding) -> str:
        """Return the command that simulates a finding's shrunk scenario."""
        command = How(sim=True, mutant=finding.mutant, frames=True).command(self.scenario_file(finding), finding.seed)
        return self._command + command.removeprefix(COMMAND)

    @property
    def _command(self) -> str:
        if self.code_directory is None:
            return COMMAND
        return f"python3 {shlex.quote(str(near(self.code_directory / 'run_lab.py')))}"

    def export(self) -> list[Path]:
        """Write the shrunk scenario of each finding to its file; return the files."""
        written = []
        for finding in self.findings():
            if finding.scenario:
                path = self.scenario_file(finding)
                path.parent.mkdir(exist_ok=True)
                path.write_text(finding.scenario, "utf-8")
                written.append(path)
        return written


def _encode_marks(numbers: Iterable[int]) -> str:
    return json.dumps(sorted(numbers), separators=(",", ":"))


def _columns(db: sqlite3.Connection) -> set[str]:
    rows = db.execute(
        "SELECT t.name, c.name FROM sqlite_master t JOIN pragma_table_info(t.name) c WHERE t.type = 'table'"
    )
    return {f"{table}.{column}" for table, column in rows}


def names(home: Path) -> list[str]:
    """Return the names of all campaigns in a directory."""
    return sorted(file.parent.name for file in home.glob(f"*/{FILE}"))
