"""A2: each line of a message log has the right form and number; terms never decrease; times lie within the run."""

from __future__ import annotations

import math
from typing import Final

from lab.check.history import NOT_A_MESSAGE, Chunk, MessageLog
from lab.check.verdict import Findings, quote
from nodeproc.core.messages import SeqNo

ANY_TIME: Final = (-math.inf, math.inf)


class Numbering:
    """Judges the lines of one log, the next ones with each call.

    Args:
        times: between which timestamps must lie, seconds since the epoch.
    """

    def __init__(self, findings: Findings, log: MessageLog, times: tuple[float, float] = ANY_TIME) -> None:
        self.findings, self._log, self._times = findings, log, times
        self.seq_no: SeqNo = 0
        """Of the last line."""
        self.term = 0
        """The highest so far."""
        self.term_starts: list[tuple[int, SeqNo]] = []
        """(term, seq_no of its first message)."""
        self.is_wrong = False
        """A line has another seq_no than is due: then a seq_no says nothing about a place in the log."""

    def whole_log(self) -> None:
        """Judge all lines, if the log is not read for another reason."""
        for chunk in self._log.chunks():
            self.take(chunk, 0, len(chunk.lines))
        self.end()

    def end(self) -> None:
        """Judge how the log ends."""
        if self._log.torn:
            self.findings.add(self._log.place(self._log.torn), "the last line has no end")

    def take(self, chunk: Chunk, start: int, end: int) -> None:
        """Judge lines start..end - 1 of a chunk. Nearly all chunks are contiguous and of one term."""
        lines = chunk.lines[start:end]
        if self._times != ANY_TIME:
            self._judge_times(chunk, start, end)
        terms = [line.term for line in lines]
        if (
            chunk.contiguous
            and not chunk.misformed
            and lines[0].seq_no == self.seq_no + 1
            and terms[0] >= max(self.term, 1)
            and terms.count(terms[0]) == len(terms)
        ):
            if terms[0] > self.term:
                self.term_starts.append((terms[0], lines[0].seq_no))
            self.seq_no, self.term = lines[-1].seq_no, terms[0]
        else:
            self._judge_lines(chunk, start, end)

    def _judge_lines(self, chunk: Chunk, start: int, end: int) -> None:
        findings = self.findings
        for number, line in enumerate(chunk.lines[start:end], chunk.first_line + start):
            place, due = self._log.place(number), self.seq_no + 1
            shown = quote(place, f"seq_no={line.seq_no} term={line.term} msg_id={line.msg_id}")
            if line is NOT_A_MESSAGE:
                text = self._log.text(number)
                what = "not a line of a message log" if text else "an empty line"
                findings.add(place, f"{what} instead of seq_no {due}", quote(place, text))
                self.seq_no = due
                continue
            if fault := chunk.misformed.get(number - chunk.first_line):
                findings.add(place, f"not in the form of a message log: {fault}", quote(place, self._log.text(number)))
            if line.seq_no != due:
                self.is_wrong = True
                findings.add(place, f"seq_no {line.seq_no} instead of {due}", shown)
            if line.term < max(self.term, 1):
                findings.add(place, f"term {line.term} after term {max(self.term, 1)}", shown)
            if line.term > self.term:
                self.term_starts.append((line.term, line.seq_no))
            self.seq_no, self.term = line.seq_no, max(line.term, self.term)

    def _judge_times(self, chunk: Chunk, start: int, end: int) -> None:
        lines, (low, high) = chunk.lines[start:end], self._times
        times = [line.timestamp for line in lines if line is not NOT_A_MESSAGE]
        if not times or (min(times) >= low and max(times) <= high):
            return
        for number, line in enumerate(lines, chunk.first_line + start):
            if line is not NOT_A_MESSAGE and not low <= line.timestamp <= high:
                place = self._log.place(number)
                when = "before the run began" if line.timestamp < low else "after the run had ended"
                self.findings.add(place, f"timestamp {line.timestamp} is {when}", quote(place, self._log.text(number)))
