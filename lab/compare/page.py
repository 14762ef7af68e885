"""A comparison of two runs as one HTML page: what differs, the percentiles of both over each other, and the figures.

The page loads nothing and has no script; texts of the runs are escaped.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple, TypeAlias

from lab.bench import table
from lab.compare.compare import NOTE, Comparison
from lab.show.page import template

Histogram: TypeAlias = tuple[tuple[float, int], ...]
"""(latency in ms, number of messages), ascending; see Metrics.histogram."""
WIDE, HIGH, LEFT, BELOW = 860, 300, 60, 34
"""Of the plot, and of its margins, pixels."""
TICKS: Final = ("0", "90", "99", "99.9", "99.99", "99.999", "99.9999")
"""Percentiles; each is as far from the one before as 0 from 90."""


class Curve(NamedTuple):
    """One run's percentiles. path: of an SVG."""

    name: str
    path: str


class Tick(NamedTuple):
    """A line across the plot. at: pixels from the left or from above."""

    at: float
    text: str


class Plot(NamedTuple):
    """The percentiles of both runs. curves: those of runs with messages."""

    curves: list[Curve]
    across: list[Tick]
    up: list[Tick]


def render(comparison: Comparison, histograms: tuple[Histogram, Histogram]) -> str:
    """Return the page."""
    return template(Path(__file__).parent / "templates" / "compare.html").render(
        comparison=comparison,
        plot=percentiles(histograms),
        wide=WIDE,
        high=HIGH,
        left=LEFT,
        floor=HIGH - BELOW,
        number=table.number,
        note=NOTE,
    )


def percentiles(histograms: tuple[Histogram, Histogram]) -> Plot:
    """Return the percentile plot: both axes are logarithmic, that of the percentiles in 1 / (1 - p)."""
    points = [list(_points(each)) for each in histograms]
    every = [point for each in points for point in each]
    if not every:
        return Plot([], [], [])
    right = max(1.0, *(nines for nines, _ in every))
    low = math.floor(min(level for _, level in every))
    high = max(low + 1, math.ceil(max(level for _, level in every)))

    def x(nines: float) -> float:
        return round(LEFT + (WIDE - LEFT - 10) * nines / right, 1)

    def y(level: float) -> float:
        return round((HIGH - BELOW) - (HIGH - BELOW - 10) * (level - low) / (high - low), 1)

    curves = [
        Curve(name, "M" + " L".join(f"{x(nines)} {y(level)}" for nines, level in each))
        for name, each in zip("AB", points, strict=True)
        if each
    ]
    across = [Tick(x(nines), f"{text} %") for nines, text in enumerate(TICKS) if nines <= right]
    return Plot(curves, across, [Tick(y(level), f"{10.0**level:g} ms") for level in range(low, high + 1)])


def _points(histogram: Histogram) -> Iterator[tuple[float, float]]:
    """Yield (log10 of 1 / (1 - p), log10 of ms): a share p of the messages took at most this long."""
    total, below = sum(count for _, count in histogram), 0
    for ms, count in histogram:
        level = math.log10(max(ms, 1e-3))
        if not below:
            yield 0.0, level
        below += count
        yield math.log10(total / max(total - below, 1)), level
