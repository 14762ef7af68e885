"""A time-space diagram of a few moments of a run, on a step axis: one row for each thing that happened."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from lab.check.verdict import Verdict
from lab.rows import FaultRow, Meta
from lab.rundir import RunDir
from lab.show.evidence import time_of
from lab.show.lanes import Bar
from lab.show.story import CLIENTS, TRAFFIC, Arrow, Item, Note, Skipped, read

ROWS_MOST: Final = 80
ROW, TOP, LEFT, LANES, TEXT = 17, 44, 84, 560, 520
"""Pixels: a row's height, the space above and to the left, the width of all lanes, and of the text."""
TEXT_MOST: Final = 84
_LEAD_MOST_NS: Final = 10_000_000_000
"""A leader that came later after a fault did not come because of it."""
_LAST_NS: Final = 450_000_000
"""Length of the last moments before a violation."""


@dataclass(frozen=True, slots=True)
class Moment:
    """The part of the run that a diagram shows, ns.

    zero: the time from which its rows count. acked: of the first acknowledgement by the new leader; 0 if not known.
    """

    title: str
    since: int
    until: int
    zero: int
    acked: int = 0


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a diagram, in pixels.

    look: arrow, lost, event, fault, client or skipped. x, y: of the dot, or the tip of the arrow. from_x, from_y: the
    arrow's start.
    """

    look: str
    time: str
    text: str
    x: float
    y: float
    from_x: float = 0.0
    from_y: float = 0.0
    head: str = ""
    """Points of the arrow's head."""


@dataclass(frozen=True, slots=True)
class Diagram:
    """A moment as a picture. lanes: (x, name)."""

    moment: Moment
    lanes: tuple[tuple[float, str], ...]
    rows: tuple[Row, ...]
    width: int
    height: int


# ---- which moments --------------------------------------------------------------------------------------


def failovers(
    meta: Meta, faults: Sequence[FaultRow], lanes: dict[int, list[Bar]], acknowledged: Mapping[int, int]
) -> list[Moment]:
    """Return a moment for each first leader after a fault, and for each leader that came without one.

    Args:
        acknowledged: time of a fault -> time of the first acknowledgement after the new leader's election, ns.
    """
    hits = sorted((row for row in faults if row.step >= 0 and row.effect), key=lambda row: row.t)
    hits = [row for row in hits if row.fault not in ("start", "resume", "heal")]
    times = [row.t for row in hits]
    moments, seen = [], set()
    led = sorted((bar.start, node, bar.term) for node, bars in lanes.items() for bar in bars if bar.role == "leader")
    for at, node, term in led:
        if at <= meta.t_start:
            continue
        index = bisect_right(times, at) - 1
        hit = hits[index] if index >= 0 and at - times[index] < _LEAD_MOST_NS else None
        if hit is not None and hit.t in seen:
            continue
        if hit is not None:
            seen.add(hit.t)
        zero = at - 100_000_000 if hit is None else hit.t
        what = "Election without a fault" if hit is None else f"After {hit.asked or hit.fault}"
        title = f"{what} at {(zero - meta.t_start) / 1e9:.3f} s: node {node} leads term {term}"
        took = at - zero
        title += f" after {took / 1e6:.1f} ms" if hit is not None else ""
        since, until = zero - max(took * 15 // 100, 2_000_000), at + max(took * 3 // 10, 5_000_000)
        acked = acknowledged.get(zero, 0)
        until = max(until, acked + 1_000_000) if acked < at + 3 * took else until
        moments.append(Moment(title, since, until, zero, acked))
    return moments


def violation(meta: Meta, verdict: Verdict) -> Moment | None:
    """Return the last moments before the violation whose time is known, if any: that of a quoted line or of the end."""
    failed = [check for check in verdict.checks if check.result == "FAIL"]
    if not failed:
        return None
    times = [t for check in failed if (t := time_of(check))]
    at = min(times, default=0) or (meta.t_end if meta.watched else 0)
    if not at:
        return None
    return Moment("The last moments before the violation", at - _LAST_NS, at + 2_000_000, at)


def chosen(moments: Sequence[Moment], most: int) -> list[Moment]:
    """Return at most so many: the first ones and the last one."""
    return list(moments) if len(moments) <= most else [*moments[: most - 1], *moments[-1:]] if most else []


# ---- the picture ----------------------------------------------------------------------------------------


def draw(run: RunDir, moment: Moment, most: int = ROWS_MOST) -> Diagram | None:
    """Return the diagram of a moment; None if nothing happened in it.

    Args:
        most: maximum number of rows. The rows in the middle are left out if there are more.
    """
    story = read(run, window=(moment.since, moment.until), clients=False)
    whole = list(story.items)
    if moment.since <= moment.acked <= moment.until:
        note = Note(moment.acked, CLIENTS, "o", "the first acknowledgement after the election")
        whole.insert(bisect_right([item.t for item in whole], note.t), note)
    items = _fewer(whole, most)
    if not items:
        return None
    places = [CLIENTS, *story.nodes]
    gap = LANES / len(places)
    x = {lane: LEFT + gap * (at + 0.5) for at, lane in enumerate(places)}
    times = [item.t for item in items]
    rows = []
    for at, item in enumerate(items):
        y = TOP + ROW * (at + 0.5)
        time = f"{(item.t - moment.zero) / 1e6:+.1f} ms"
        match item:
            case Arrow():
                sent = TOP + ROW * bisect_right(times, item.sent, hi=at)
                rows.append(_arrow(item, time, x[item.source], min(sent, y - 5), x[item.to], y))
            case Note():
                look = {"*": "event", "#": "fault", "o": "client"}[item.mark]
                who = f"node {item.lane}: " if item.lane else ""
                rows.append(Row(look, time, _cut(who + item.text), x.get(item.lane, x[CLIENTS]), y))
            case Skipped():
                rows.append(Row("skipped", time, f"… {item.count} {item.what}", 0, y))
    lanes = tuple((x[lane], "lab" if lane == CLIENTS else f"node {lane}") for lane in places)
    return Diagram(moment, lanes, tuple(rows), LEFT + LANES + TEXT, TOP + ROW * len(items) + 8)


def _arrow(item: Arrow, time: str, from_x: float, from_y: float, x: float, y: float) -> Row:
    text = _cut(f"{item.source} → {item.to} {item.says}")
    if item.lost:
        middle = (from_x + x) / 2
        return Row("lost", time, _cut(f"{text}, lost"), middle, y, from_x, from_y)
    back = -7 if x > from_x else 7
    tilt = (y - from_y) / (x - from_x)
    head = f"{x:.1f},{y:.1f} {x + back:.1f},{y + back * tilt - 3:.1f} {x + back:.1f},{y + back * tilt + 3:.1f}"
    return Row("arrow", time, text, x, y, from_x, from_y, head)


def _cut(text: str) -> str:
    return text if len(text) <= TEXT_MOST else text[: TEXT_MOST - 1] + "…"


def _fewer(items: Iterable[Item], most: int) -> list[Item]:
    """Leave out plain traffic first, and then the middle, until at most `most` items are left; count what is left out.

    Two thirds of the items that stay are at the end.
    """
    kept = list(items)
    if len(kept) > most:
        kept = [item for item in kept if not (isinstance(item, Arrow) and item.kind in TRAFFIC and not item.lost)]
        kept = [item for item in kept if not (isinstance(item, Note) and item.text.startswith("delivered:"))]
    if len(kept) > most:
        first, last = kept[: most // 3], kept[-(most - most // 3 - 1) :]
        kept = [*first, Skipped(first[-1].t, len(kept) - len(first) - len(last), "more"), *last]
    return kept
