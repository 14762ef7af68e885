"""Lines that a verdict quotes, with the lines around them."""

from __future__ import annotations

import re
from collections import deque
from typing import NamedTuple

from lab.check.verdict import Check, Quote
from lab.rundir import RunDir

AROUND = 3
"""Lines before and after a quoted one."""
WIDTH = 300
"""Characters of a line that are shown."""
_TIME = re.compile(r'^\{[^{}]*?"t(?:_ns)?": ?(\d{1,19})\b')


class NearLine(NamedTuple):
    """One line of a file. quoted: it is the evidence, and not a neighbour."""

    number: int
    text: str
    quoted: bool


class Excerpt(NamedTuple):
    """A quoted line and its neighbours. file: relative to the run directory; "" if the line is not in a file."""

    file: str
    number: int
    lines: list[NearLine]


def excerpts(run: RunDir, check: Check) -> list[Excerpt]:
    """Return an excerpt for each line that the check's first violation quotes."""
    if check.first is None:
        return []
    return [_excerpt(run, each) for each in check.first.lines]


def _excerpt(run: RunDir, quote: Quote) -> Excerpt:
    file, _, line = quote.place.rpartition(":")
    path = (run.path / file).resolve()
    # A verdict is a file that anybody may have changed: it cannot show files outside of its run.
    if not line.isdecimal() or not path.is_relative_to(run.path.resolve()) or not path.is_file():
        return Excerpt("", 0, [NearLine(0, _cut(quote.text), True)])
    number = int(line)
    before: deque[NearLine] = deque(maxlen=AROUND)
    found: list[NearLine] = []
    with path.open("rb") as lines:
        for at, text in enumerate(lines, 1):
            if at > number + AROUND:
                break
            if at >= number - AROUND:
                shown = NearLine(at, _cut(text.decode("utf-8", "backslashreplace").rstrip("\n")), at == number)
                (before if at < number else found).append(shown)
    return Excerpt(file, number, [*before, *found])


def _cut(text: str) -> str:
    return text if len(text) <= WIDTH else f"{text[:WIDTH]}… ({len(text)} characters)"


def time_of(check: Check) -> int:
    """Return the latest time in the lines that the first violation quotes, ns; 0 if they have none."""
    if check.first is None:
        return 0
    return max((int(found[1]) for quote in check.first.lines if (found := _TIME.match(quote.text))), default=0)
