"""What the debugger says about rows and branches, in the terminal and on its page, and the search in it."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from lab.debug.branch import BLOCK, Branch
from lab.debug.recorder import Change, Recorded, Row
from lab.debug.views import Value
from lab.words import Duration, counted


def line_of(row: Row, mark: str = "") -> str:
    """Return a row on one line."""
    news = news_of(row)
    return f"{mark}{row.event:>8} {row.t_s:9.4f} s  {row.what}" + (f"  [{news}]" if news else "")


def news_of(row: Row) -> str:
    """Return which fields of which nodes a row changed; "" for none."""
    return "; ".join(f"node {node} {', '.join(_told(each)).replace('_', ' ')}" for node, each in row.changes.items())


def details_of(row: Row) -> Iterator[str]:
    """Yield one line for each change of a row, and for each event that a node logged."""
    for node, changes in row.changes.items():
        for name, (before, after) in _told(changes).items():
            yield f"node {node} {name.replace('_', ' ')}: {before} -> {after}"
    for said in row.said:
        yield f'{said.partition(":")[0]} says "{said.partition(": ")[2]}"'


def _told(changes: dict[str, tuple[Value, Value]]) -> dict[str, tuple[Value, Value]]:
    """Return the changes that are news: where a process has started or ended, its role alone."""
    role = changes.get("role", ("", ""))
    return {"role": role} if "down" in role else changes


def failure_of(recorded: Recorded) -> str:
    """Return the violation at which a branch ended, or what it waited for without success; "" if there is none."""
    return recorded.broken or "; ".join(f"missed: {each}" for each in recorded.missed)


def ending_of(recorded: Recorded) -> str:
    """Return how a branch ended."""
    missed = f"; missed: {'; '.join(recorded.missed)}" if recorded.missed else ""
    return f"{counted(recorded.events, 'event')}, {recorded.broken or 'nothing broke'}{missed}"


def change_text(change: Change) -> str:
    """Return what was done in a branch."""
    if change.step:
        return change.step
    how = "lost" if change.drop else "now" if change.now else f"{Duration(change.late_s)} later"
    return f"frame {change.frame} {how}"


def find(branch: Branch, numbers: range, texts: Collection[str]) -> int:
    """Return the first of these rows that contains one of the texts; the number after the last one if none does."""
    for first in numbers[::BLOCK]:
        block = range(first, first + numbers.step * BLOCK, numbers.step)
        low, high = min(block[0], block[-1]), max(block[0], block[-1])
        found = list(enumerate(branch.rows(low, high), max(0, low)))
        for number, row in found if numbers.step > 0 else reversed(found):
            text = "\n".join([line_of(row), *details_of(row)]).lower()
            if number in numbers and any(each.lower() in text for each in texts):
                return number
    return numbers.stop
