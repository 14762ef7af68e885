"""A8: a subscriber is shown the log from its first line on, and all of it in time.

A row of the history names the lines that a subscriber was shown, and the CRC of their bytes. Each subscriber has its
own place in the reference log, which only moves forward. While no fault is in force, a subscriber that lacks an
acknowledged message must be shown a line within the bound of A9. At the end of the run each subscriber must have been
shown all lines.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, NamedTuple
from zlib import crc32

from lab.check.history import CHUNK_BYTES, MessageLog
from lab.check.judge import Case, Judge
from lab.check.recovery import Stretch, healthy_stretches
from lab.check.verdict import Check, quote
from lab.plan.scenario import Scenario
from lab.plan.workload import FIRST_SUBSCRIBER
from lab.rows import Acked, HistoryRow, Shown, encode_row
from lab.words import counted

NS_PER_S = 1_000_000_000


class _Reader:
    """One subscriber's place in the log: behind line `line`, at byte `_offset`."""

    def __init__(self, log: MessageLog) -> None:
        self._log = log
        self.line = 0
        self._offset = 0

    def go_before(self, line: int) -> bool:
        """Move to just before `line`. False if the log is shorter."""
        start, self._offset = self._log.start_of(line)
        self.line = start - 1
        return self.crc_to(line - 1) is not None

    def crc_to(self, last: int) -> int | None:
        """Return the CRC of the lines from here to `last` and move behind them. None if the log ends before.

        The end is found by how the next line starts: in a log that A2 holds for, line and seq_no are the same, and no
        payload has a bare newline in it.
        """
        if last == self.line:
            return 0
        next_start = b'\n{"seq_no":%d,' % (last + 1)
        crc, size, lines = 0, min(CHUNK_BYTES, (last - self.line) * 256 + 256), self.line
        while True:
            data = self._log.read(self._offset, size)
            found = data.find(next_start)
            at_end = found < 0 and len(data) < size
            if at_end and last != lines + data.count(b"\n"):
                return None
            end = data.rfind(b"\n") + 1 if at_end else found + 1 if found >= 0 else size - len(next_start)
            crc = crc32(data[:end], crc)
            self._offset += end
            if at_end or found >= 0:
                self.line = last
                return crc
            lines += data.count(b"\n", 0, end)
            size = CHUNK_BYTES


class _Wait(NamedTuple):
    """A subscriber that lacked an acknowledged message was shown nothing from `since` to `t`."""

    place: int
    client: int
    last: int
    """The line up to which it had been shown the log."""
    since: int
    t: int


class Subscribers(Judge):
    """Follows the lines that each subscriber is shown, and how long it is shown none although it lacks some."""

    invariants: ClassVar = {"A8": "subscribers"}
    needs_history: ClassVar = True

    def __init__(self, case: Case) -> None:
        super().__init__(case)
        self._findings = self.found()
        self._readers: dict[int, _Reader] = {}
        self._last = dict.fromkeys(_clients(case.scenario), 0)
        """Subscriber of the scenario -> the line up to which it was shown the log."""
        self._acked = self._lines = self._latest = 0
        self._any_shown = False
        self._since: dict[int, int] = {}
        """Subscriber that lacks an acknowledged message -> since when it has been shown nothing."""
        self._waits: list[_Wait] = []
        """Waits longer than case.bound_s."""

    def on_row(self, place: int, row: HistoryRow) -> None:
        self._latest = place
        if isinstance(row, Acked) and row.seq_no > self._acked:
            self._acked = row.seq_no
            for client, last in self._last.items():
                if last < row.seq_no:
                    self._since.setdefault(client, row.t)
        elif isinstance(row, Shown):
            self._on_shown(place, row)

    def _on_shown(self, place: int, row: Shown) -> None:
        self._any_shown = True
        if self._is_hopeless:
            return
        self._lines += row.last - row.first + 1
        self._judge(place, row)
        if row.client in self._last:
            self._end_wait(place, row.client, row.t)
            self._last[row.client] = row.last
            if row.last < self._acked:
                self._since[row.client] = row.t

    @property
    def _is_hopeless(self) -> bool:
        """True if the log breaks A2 and there is no other log: then the expected lines are not known."""
        contiguity = self.case.contiguity
        return contiguity is not None and contiguity.count > 0 and not self.case.deviating

    def _judge(self, place: int, row: Shown) -> None:
        log = self.case.log
        if row.last < row.first:
            self._add(place, row, f"lines {row.first}..{row.last} run backwards")
            return
        reader = self._readers.get(row.client)
        due = 1 if reader is None else reader.line + 1
        if reader is None or row.first != due:
            if row.first != due:
                self._add(place, row, f"client {row.client} was shown line {row.first} instead of {due}")
            reader = self._readers[row.client] = _Reader(log)
            if not reader.go_before(row.first):
                self._add(place, row, f"client {row.client} was shown line {row.first}; the log ends before it")
                return
        crc = reader.crc_to(row.last)
        if crc is None:
            ends = f"{log.name} ends at {log.length}"
            self._add(place, row, f"client {row.client} was shown lines up to {row.last}; {ends}")
        elif crc != row.crc:
            lines = f"lines {row.first}..{row.last} of {log.name}"
            self._add(place, row, f"client {row.client} was shown other bytes than {lines}")

    def _add(self, number: int, row: Shown, message: str) -> None:
        place = f"{self.case.run.history.name}:{number}"
        self._findings.add(place, message, quote(place, encode_row(row)))

    def _end_wait(self, place: int, client: int, t: int) -> None:
        since = self._since.pop(client, t)
        if t - since > self.case.bound_s * NS_PER_S:
            self._waits.append(_Wait(place, client, self._last[client], since, t))

    def check(self) -> Check:
        if self._any_shown and self._is_hopeless:
            return self.found().unknown("the log itself is not contiguous (A2)")
        case, findings = self.case, self._findings
        if case.scenario is not None and case.meta is not None and case.faults is not None:
            for client in list(self._since):
                self._end_wait(self._latest, client, case.meta.t_end)
            self._judge_waits([stretch for stretch in healthy_stretches(case) if stretch.quiet])
        for client in self._last:
            last, upto = self._readers[client].line if client in self._readers else 0, self._must_be_shown
            if last < upto:
                findings.add(
                    case.run.history.name,
                    f"client {client} was shown lines up to {last}; all nodes had delivered {upto}, and it stayed "
                    "connected",
                )
        if not self._lines:
            decisive = case.scenario is None or len(self._last) > 0
            return findings.unknown("no subscriber was shown anything", decisive=decisive)
        return findings.passed(f"{counted(len(self._readers), 'subscriber')}, {counted(self._lines, 'line')}")

    @property
    def _must_be_shown(self) -> int:
        """The seq_no that each subscriber must have received in the end; 0 if the run was not completed."""
        convergence = None if self.case.meta is None else self.case.meta.convergence
        if convergence is None or not convergence.reached:
            return 0
        return max(convergence.delivered.values(), default=0)

    def _judge_waits(self, quiet: Sequence[Stretch]) -> None:
        for wait in self._waits:
            for span in quiet:
                waited = (min(wait.t, span.end) - max(wait.since, span.start)) / NS_PER_S
                if waited > self.case.bound_s:
                    self._findings.add(
                        f"{self.case.run.history.name}:{wait.place}",
                        f"client {wait.client} was shown lines up to {wait.last} and then nothing for {waited:.3f} s "
                        f"while every node ran and no fault was in force (allowed {self.case.bound_s:g} s)",
                    )
                    break


def _clients(scenario: Scenario | None) -> range:
    return range(FIRST_SUBSCRIBER, FIRST_SUBSCRIBER + (0 if scenario is None else scenario.subscribers))
