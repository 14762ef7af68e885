"""Figures of a measurement: repeated values, their medians, and comparisons with the floor, with targets and with
another measurement. Pure.

A measurement is saved as one JSON document; later ones can be compared with it, figure by figure.
"""

from __future__ import annotations

from collections.abc import Iterator
from statistics import median
from typing import Any, Literal, NamedTuple

import msgspec
from msgspec import Struct

from lab import paired
from lab.paired import Better


class Figure(Struct, frozen=True):
    """One measured quantity, with one value for each repetition.

    better: whether larger or smaller values are better.
    floor: name of the figure of section "floor" to compare with; "" if none is comparable.
    values: in the order of measurement.
    """

    section: str
    name: str
    unit: str
    better: Better
    floor: str
    values: tuple[float, ...]

    @property
    def median(self) -> float:
        return median(self.values)

    @property
    def key(self) -> tuple[str, str, str]:
        return (self.section, self.name, self.unit)


class Target(Struct, frozen=True):
    """The value that a figure must reach (least), and the one that it should reach (goal).

    of_floor: both bounds are ratios to the figure's floor, not values.
    worst: the worst value counts instead of the median.
    """

    section: str
    name: str
    unit: str
    least: float
    goal: float
    of_floor: bool = False
    worst: bool = False


TARGETS: tuple[Target, ...] = (
    Target("throughput", "100 B, 1 client on the leader", "messages/s", 0.60, 0.85, of_floor=True),
    Target("throughput", "100 B, 1 client on the leader", "messages/s", 150_000, 300_000),
    Target("throughput", "100 B, 1 client on the leader", "CPU µs/message", 8, 5),
    Target("closed", "64 clients", "messages/s", 20_000, 40_000),
    Target("closed", "1 client", "p50 ms", 1.7, 1.3, of_floor=True),
    Target("failover", "leader killed, to the next acknowledgement", "ms", 150, 50),
    Target("failover", "leader killed, to the next acknowledgement", "ms", 800, 300, worst=True),
    Target("restart", "one node, more with 10,000,000 messages than with none", "s", 1, 0.2),
    Target("checks", "1,000,000 messages on three nodes", "s", 5, 1),
    Target("checks", "1,000,000 messages on three nodes", "MB", 200, 100),
    Target("checks", "simulated seeds, native", "seeds/s a core", 50, 75),
    Target("idle", "three nodes, nothing to do", "% of a core", 3, 1),
)


class Collected:
    """Collects values during a measurement."""

    def __init__(self) -> None:
        self._values: dict[tuple[str, str, str], list[float]] = {}
        self._kinds: dict[tuple[str, str, str], tuple[Better, str]] = {}

    def add(self, section: str, name: str, unit: str, value: float, better: Better = "less", floor: str = "") -> None:
        """Add one value to a figure."""
        key = (section, name, unit)
        self._kinds[key] = (better, floor)
        self._values.setdefault(key, []).append(value)

    def figures(self) -> tuple[Figure, ...]:
        """Return all figures, in the order of their first values."""
        return tuple(Figure(*key, *self._kinds[key], tuple(values)) for key, values in self._values.items())


class Bench(Struct, frozen=True, omit_defaults=True):
    """One complete measurement.

    host: description of the machine and versions. quick: measured with few rounds and small sizes.
    promises: section -> what an acknowledgement means there, if the sections are systems.
    """

    started_utc: str
    quick: bool
    host: dict[str, Any]
    figures: tuple[Figure, ...]
    promises: dict[str, str] = {}

    def find(self, section: str, name: str, unit: str) -> Figure | None:
        return next((each for each in self.figures if each.key == (section, name, unit)), None)

    def floor_of(self, figure: Figure) -> Figure | None:
        """Return the floor's figure with which this one is compared, if it was measured."""
        if not figure.floor:
            return None
        return next((each for each in self.figures if each.section == "floor" and each.name == figure.floor), None)

    def ratio(self, figure: Figure) -> float | None:
        """Return the median divided by the floor's median: a share for rates, a multiple for times."""
        floor = self.floor_of(figure)
        return figure.median / floor.median if floor is not None and floor.median else None


class Reached(Struct, frozen=True):
    """A target and the measured value; None if it was not measured."""

    target: Target
    value: float | None
    verdict: Literal["goal", "met", "missed", "not measured"]


def judge(bench: Bench) -> Iterator[Reached]:
    """Compare the figures with all targets, in order."""
    for target in TARGETS:
        figure = bench.find(target.section, target.name, target.unit)
        value = None if figure is None else _value(bench, figure, target)
        if figure is None or value is None:
            yield Reached(target, None, "not measured")
        else:
            sign = 1 if figure.better == "more" else -1
            best = next((word for word, bound in _bounds(target) if sign * value >= sign * bound), "missed")
            yield Reached(target, value, msgspec.convert(best, Literal["goal", "met", "missed"]))


def _bounds(target: Target) -> tuple[tuple[str, float], ...]:
    return (("goal", target.goal), ("met", target.least))


def _value(bench: Bench, figure: Figure, target: Target) -> float | None:
    if target.of_floor:
        return bench.ratio(figure)
    if target.worst:
        return max(figure.values) if figure.better == "less" else min(figure.values)
    return figure.median


class Change(NamedTuple):
    """A figure of another measurement, next to one of this.

    ratio: of the medians, this one divided by the other; None if one of them is not positive.
    compared: by rounds; None if that is impossible, or if there are fewer than paired.PAIRS_MIN.
    """

    before: float
    ratio: float | None
    compared: paired.Compared | None


def change(figure: Figure, before: Bench) -> Change | None:
    """Compare a figure with the same one of another measurement, round by round; None if that has no such figure."""
    other = before.find(*figure.key)
    if other is None:
        return None
    rounds = min(len(other.values), len(figure.values), paired.PAIRS_MAX)
    series = paired.Series(other.values[:rounds], figure.values[:rounds], figure.better)
    if min(*other.values, *figure.values) <= 0:
        return Change(other.median, figure.median / other.median if other.median > 0 else None, None)
    compared = paired.judge({"": series})[""] if rounds >= paired.PAIRS_MIN else None
    return Change(other.median, figure.median / other.median, compared)


def encode(bench: Bench) -> bytes:
    """Return the document to save, indented."""
    return msgspec.json.format(msgspec.json.encode(bench), indent=1) + b"\n"


def decode(data: bytes) -> Bench:
    """Return a measurement from the document that encode() returned.

    Raises:
        msgspec.MsgspecError: the data is no such document.
    """
    return msgspec.json.decode(data, type=Bench)
