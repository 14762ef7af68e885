"""The role of each node over time, as bars: leader, follower, candidate, paused or down."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import msgspec

from lab.rows import FaultRow, Meta, NodeStatus, decode_live_row
from lab.rundir import RunDir

ROLE_OF: Final = {
    "starting": "follower",
    "became_follower": "follower",
    "new_coordinator": "follower",
    "became_candidate": "candidate",
    "became_leader": "leader",
}
"""Event -> the node's role from then on."""
_NEEDLES: Final = tuple(f'"{name}"'.encode() for name in ROLE_OF)
BARS_MOST: Final = 150
"""Of one node; if there are more, short bars next to each other become one."""


class Bar(NamedTuple):
    """A node's role from start to end, ns. role: `changes` stands for several short ones."""

    start: int
    end: int
    role: str
    term: int


class _Event(msgspec.Struct, frozen=True, gc=False):
    """An event that shows a role; other fields are ignored."""

    t_ns: int
    event: str
    term: int = 0


@dataclass(slots=True)
class _Mark:
    """From t on the node has this role; "": the role that it had before a pause. term: None: unchanged."""

    t: int
    role: str
    term: int | None = None


def lanes(run: RunDir, meta: Meta, faults: Sequence[FaultRow]) -> dict[int, list[Bar]]:
    """Return node -> its bars from the run's start to its end, without gaps."""
    statuses = _from_statuses(run) if any(not run.events(node).is_file() for node in meta.nodes) else {}
    found = {}
    for node, use in sorted(meta.nodes.items()):
        marks = list(_from_events(run, node)) or statuses.get(node, [])
        marks += [_Mark(end.t, "down") for end in use.exits]
        for row in faults:
            if row.fault == "pause" and row.target == node and row.effect:
                marks.append(_Mark(row.t_done, "paused"))
                marks += [_Mark(row.t_healed, "")] if row.t_healed else []
        marks.sort(key=lambda mark: mark.t)
        found[node] = _shortened(_bars(marks, meta), meta)
    return found


def _from_events(run: RunDir, node: int) -> Iterator[_Mark]:
    """Yield the roles that the node reported; a line that a kill cut off is left out."""
    if not run.events(node).is_file():
        return
    decode = msgspec.json.Decoder(_Event).decode
    with run.events(node).open("rb") as file:
        for line in file:
            if any(needle in line for needle in _NEEDLES):
                try:
                    event = decode(line)
                except (msgspec.MsgspecError, UnicodeDecodeError):
                    continue
                if event.event in ROLE_OF:
                    yield _Mark(event.t_ns, ROLE_OF[event.event], event.term)


def _from_statuses(run: RunDir) -> dict[int, list[_Mark]]:
    """Return the roles in live.jsonl, for nodes that write no events."""
    found: dict[int, list[_Mark]] = {}
    if not run.live.is_file():
        return found
    with run.live.open("rb") as file:
        for line in file:
            if b'"op":"status"' in line:
                row = decode_live_row(line)
                assert isinstance(row, NodeStatus), line
                found.setdefault(row.node, []).append(_Mark(row.t, row.role, row.term))
    return found


def _bars(marks: Iterable[_Mark], meta: Meta) -> list[Bar]:
    bars: list[Bar] = []
    role, before, term, since = "down", "down", 0, meta.t_start
    for mark in marks:
        new = mark.role or (before if role == "paused" else role)
        new_term = term if mark.term is None else max(mark.term, term)
        if (new, new_term) == (role, term):
            continue
        if mark.t > since:
            bars.append(Bar(since, min(mark.t, meta.t_end), role, term))
        if new == "paused":
            before = role
        role, term, since = new, new_term, max(mark.t, meta.t_start)
    if meta.t_end > since:
        bars.append(Bar(since, meta.t_end, role, term))
    return [bar for bar in bars if bar.end > bar.start]


def _shortened(bars: list[Bar], meta: Meta) -> list[Bar]:
    """Join neighbouring short bars until there are at most BARS_MOST."""
    shortest = (meta.t_end - meta.t_start) // 1000
    while len(bars) > BARS_MOST:
        joined: list[Bar] = []
        for bar in bars:
            last = joined[-1] if joined else None
            if last is not None and max(last.end - last.start, bar.end - bar.start) < shortest:
                joined[-1] = Bar(last.start, bar.end, "changes", bar.term)
            else:
                joined.append(bar)
        bars, shortest = joined, shortest * 2
    return bars
