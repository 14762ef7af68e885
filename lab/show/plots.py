"""The plots of a report: data for curves, which the page draws, and the geometry of bars, which need no script."""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from lab.check.metrics import Metrics
from lab.rows import FaultRow, Meta
from lab.show.lanes import Bar

WINDOWS_MOST: Final = 100
CPU_POINTS_MOST: Final = 200
"""Of one node."""
WIDTH, LEFT, BAR, GAP = 1100, 70, 26, 8
"""Pixels: the width of a picture, the space for names on the left, the height of a bar, the space below it."""
LETTER_PX: Final = 7.5
STRIP_ROWS: Final = 4
"""Rows of strips under the bars, for faults that overlap in time."""
_PERCENTILE_POINTS: Final = 150


class Window(NamedTuple):
    """The time in which a fault was in force, seconds after the run's start. number: from 1."""

    number: int
    start_s: float
    end_s: float
    label: str


def windows(meta: Meta, faults: Sequence[FaultRow]) -> list[Window]:
    """Return the windows of the first WINDOWS_MOST faults with effect; the rows of one fault step are one window."""
    found: dict[tuple[int, int, str], list[FaultRow]] = {}
    for row in faults:
        if row.step >= 0 and row.effect and row.fault not in ("start", "resume", "heal"):
            found.setdefault((row.step, row.round, row.asked), []).append(row)
    made = []
    for number, ((_, _, asked), rows) in enumerate(list(found.items())[:WINDOWS_MOST], 1):
        start = min(row.t for row in rows)
        end = max(row.t_healed or row.t_done for row in rows)
        nodes = sorted({row.target for row in rows if row.target})
        label = asked or rows[0].fault
        if len(nodes) == 1 and str(nodes[0]) not in label:
            label += f" (node {nodes[0]})"
        made.append(Window(number, _seconds(meta, start), _seconds(meta, end), label[:60]))
    return made


def _seconds(meta: Meta, t: int) -> float:
    return round((t - meta.t_start) / 1e9, 4)


def data(meta: Meta, metrics: Metrics | None, windows: Sequence[Window], broken_at: int) -> dict[str, Any]:
    """Return what static/report.js draws. Times are seconds after the run's start, latencies ms.

    Args:
        broken_at: time of a violation, ns; 0 if there is none or it is not known.
    """
    made: dict[str, Any] = {
        "end": _seconds(meta, meta.t_end),
        "windows": [[each.start_s, each.end_s, each.number] for each in windows],
        "broken": _seconds(meta, broken_at) if broken_at else None,
    }
    if metrics is not None and metrics.series.acked:
        series = metrics.series
        width_s = series.bucket_ms / 1e3
        made["t"] = [round(at * width_s, 4) for at in range(len(series.acked))]
        made["rate"] = [round(count / width_s) for count in series.acked]
        for name in ("p50", "p99", "max"):
            made[name] = [None if value is None else float(f"{value:.4g}") for value in getattr(series, name)]
    cpu = _cpu(meta)
    if cpu:
        made["cpu"] = cpu
    return made


def _cpu(meta: Meta) -> dict[str, list[list[float]]]:
    """Return node -> [times, percent of a core], from the samples of a live run."""
    samples = defaultdict(list)
    for sample in meta.samples:
        samples[sample.node].append(sample)
    made = {}
    for node, each in sorted(samples.items()):
        each.sort(key=lambda sample: sample.t)
        each = each[:: -(-len(each) // CPU_POINTS_MOST)]
        pairs = [(one, other) for one, other in itertools.pairwise(each) if other.t > one.t]
        pairs = [(one, other) for one, other in pairs if other.cpu_s >= one.cpu_s and other.t > meta.t_start]
        if pairs:
            used = [round(1e11 * (other.cpu_s - one.cpu_s) / (other.t - one.t), 1) for one, other in pairs]
            made[str(node)] = [[_seconds(meta, other.t) for _, other in pairs], used]
    return made


# ---- who led when -----------------------------------------------------------------------------------------


class RoleBar(NamedTuple):
    """A bar in pixels, with its text ("" if there is no room) and its explanation."""

    look: str
    x: float
    width: float
    text: str
    title: str


class Roles(NamedTuple):
    """The picture of the nodes' roles. lanes: (node, y, bars). strips: (x, width, row, number) of a fault.
    ticks: (x, text).
    """

    lanes: list[tuple[int, int, list[RoleBar]]]
    strips: list[tuple[float, float, int, int]]
    strip_rows: int
    ticks: list[tuple[float, str]]
    height: int


_SHORT: Final = {"leader": "★", "follower": "", "candidate": "?", "down": "✕", "paused": "❚❚", "changes": "…"}
_LONG: Final = {
    "leader": "★ leads term {}",
    "follower": "follows, term {}",
    "candidate": "? candidate",
    "down": "✕ down",
    "paused": "❚❚ paused",
    "changes": "… several changes",
}


def role_bars(meta: Meta, lanes: dict[int, list[Bar]], windows: Sequence[Window]) -> Roles:
    """Return the picture of who led when."""
    length = max((meta.t_end - meta.t_start) / 1e9, 1e-9)
    per_s = (WIDTH - LEFT) / length

    def x(seconds: float) -> float:
        return round(LEFT + per_s * min(max(seconds, 0.0), length), 1)

    rows = []
    for at, (node, bars) in enumerate(lanes.items()):
        made = []
        for bar in bars:
            start_s, end_s = _seconds(meta, bar.start), _seconds(meta, bar.end)
            width = round(max(x(end_s) - x(start_s), 1.0), 1)
            name = _LONG[bar.role].format(bar.term)
            text = next((each for each in (name, _SHORT[bar.role]) if len(each) * LETTER_PX < width), "")
            title = f"node {node}: {name}, {start_s:.3f} s to {end_s:.3f} s"
            made.append(RoleBar(bar.role, x(start_s), width, text, title))
        rows.append((node, at * (BAR + GAP), made))
    height = len(rows) * (BAR + GAP)
    strips, ends = [], [0.0] * STRIP_ROWS
    for each in windows:
        start, width = x(each.start_s), max(x(each.end_s) - x(each.start_s), 2.0)
        row = next((at for at, end in enumerate(ends) if end <= start), STRIP_ROWS - 1)
        ends[row] = max(ends[row], start + max(width, 16))
        strips.append((start, width, row, each.number))
    step = _round_step(length / 8)
    ticks = [(x(at * step), f"{at * step:g} s") for at in range(int(length / step) + 1)]
    return Roles(rows, strips, sum(end > 0 for end in ends), ticks, height)


def _round_step(least: float) -> float:
    """Return the smallest of 1, 2, 5, 10, … that is at least this."""
    power = 10.0 ** math.floor(math.log10(least))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= least * 0.999)


# ---- latency by percentile ----------------------------------------------------------------------------------


class Percentiles(NamedTuple):
    """A curve of latency by percentile, both axes logarithmic. points: of an SVG polyline. ticks: (pixels, text)."""

    points: str
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]
    width: int
    height: int


def percentiles(histogram: Sequence[tuple[float, int]]) -> Percentiles | None:
    """Return the curve of Metrics.histogram; None if nothing was acknowledged."""
    count = sum(weight for _, weight in histogram)
    if not count:
        return None
    width, height, left, bottom, top = 540, 220, 56, 24, 8
    nines = max(math.log10(count), 1.0)
    low = math.floor(math.log10(max(histogram[0][0], 1e-3)))
    high = max(math.ceil(math.log10(histogram[-1][0])), low + 1)

    def x(above: float) -> float:
        return round(left + (width - left - 12) * min(-math.log10(above), nines) / nines, 1)

    def y(ms: float) -> float:
        return round(top + (height - top - bottom) * (high - math.log10(max(ms, 1e-3))) / (high - low), 1)

    points, below = [f"{x(1):g},{y(histogram[0][0]):g}"], 0
    for ms, weight in histogram:
        below += weight
        points.append(f"{x(max((count - below) / count, 10**-nines)):g},{y(ms):g}")
    stride = -(-len(points) // _PERCENTILE_POINTS)
    points = [*points[::stride], points[-1]]
    shares = [(10.0**-k, f"{100 - 100 * 10.0**-k:.{max(k - 2, 0)}f} %") for k in range(1, int(nines) + 1)]
    x_ticks = [(x(0.5), "50 %"), *((x(above), text) for above, text in shares)]
    y_ticks = [(y(10.0**power), f"{10.0**power:g} ms") for power in range(low, high + 1)]
    return Percentiles(" ".join(points), x_ticks, y_ticks, width, height)
