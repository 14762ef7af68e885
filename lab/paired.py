"""Did a figure change? An exact test for measurements that were made in pairs, one with each version. Pure.

    judge({"throughput": Series(base=(800, 790, …), candidate=(700, 710, …), better="more")})

The two measurements of a pair are made one after the other, so whatever else the machine does affects both alike. Only
the ratio within a pair counts. The logarithms of the ratios are called costs here: positive if `candidate` is worse.

**Test.** If the versions are equal, each cost is as likely to have the other sign (the order within the pairs
alternates). So the 2**n assignments of signs to the observed costs are equally likely. The p-value of a figure is the
share of assignments for which any of the judged figures has a mean as extreme as this figure has in fact, in units of
its own root mean square (the max-T method of Westfall and Young). LEVEL therefore bounds the chance of any false alarm
among all figures that are judged together. Nothing is assumed about the distribution of the noise.

**Interval.** A sign assignment beats the observed one exactly if the mean of the costs whose sign it changes is not
positive. So the changes that the test does not reject lie between two order statistics of the means of all subsets of
the costs (J. A. Hartigan, Using subsample values as typical values, 1969).

**Answer.** The first that applies:

    worse       p below LEVEL, and the median worse by more than WORTH
    undecided   the interval contains a change for the worse of more than EXCLUDED
    better      p below LEVEL in the other direction, and the median better by more than WORTH
    not worse   a change for the worse of more than EXCLUDED is excluded
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Final, Literal, NamedTuple, TypeAlias

Better: TypeAlias = Literal["more", "less"]
Answer: TypeAlias = Literal["worse", "undecided", "better", "not worse"]

LEVEL: Final = 0.02
"""Chance that equal versions are reported as worse."""
WORTH: Final = 1.05
"""A smaller change is not worth an alarm, however certain it is."""
EXCLUDED: Final = 1.10
"""`not worse` means that the confidence interval excludes a larger change for the worse."""
TAIL: Final = 0.025
"""Each side of the 95 % interval."""
PAIRS_MIN: Final = 6
"""The fewest pairs with which a p-value can be below LEVEL: 2**-6 is 0.016."""
PAIRS_MAX: Final = 16
"""The test computes a mean for each of 2**n sign assignments."""
_EQUAL: Final = 1e-12
"""Costs that differ by less are rounding errors."""


class Series(NamedTuple):
    """The values of one figure, in the order of the pairs; all positive.

    better: whether larger or smaller values are better.
    """

    base: Sequence[float]
    candidate: Sequence[float]
    better: Better

    @property
    def costs(self) -> list[float]:
        """The logarithm of each pair's ratio; positive if `candidate` is worse."""
        sign = 1 if self.better == "less" else -1
        return [sign * math.log(candidate / base) for base, candidate in zip(self.base, self.candidate, strict=True)]


class Compared(NamedTuple):
    """The comparison of one figure.

    ratio: median over the pairs of candidate / base. low, high: its 95 % confidence interval.
    p_worse, p_better: p-values of a change in either direction.
    """

    ratio: float
    low: float
    high: float
    p_worse: float
    p_better: float
    answer: Answer


def judge(figures: Mapping[str, Series]) -> dict[str, Compared]:
    """Compare figures that were measured in the same pairs. LEVEL holds for all of them together.

    With fewer than PAIRS_MIN pairs every answer is `undecided`.
    """
    costs = {name: series.costs for name, series in figures.items()}
    p_worse = _p_values(costs)
    p_better = _p_values({name: [-cost for cost in each] for name, each in costs.items()})
    return {
        name: _compared(series.better, costs[name], p_worse[name], p_better[name]) for name, series in figures.items()
    }


def _compared(better: Better, costs: Sequence[float], p_worse: float, p_better: float) -> Compared:
    middle = median(costs)
    low, high = _interval(costs)
    if p_worse < LEVEL and middle > math.log(WORTH):
        answer: Answer = "worse"
    elif high > math.log(EXCLUDED):
        answer = "undecided"
    elif p_better < LEVEL and middle < -math.log(WORTH):
        answer = "better"
    else:
        answer = "not worse"
    if better == "more":
        middle, low, high = -middle, -high, -low
    return Compared(math.exp(middle), math.exp(low), math.exp(high), p_worse, p_better, answer)


def _p_values(costs: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """Return the p-value of each figure against `not worse`."""
    extreme: list[float] = []
    observed: dict[str, float] = {}
    for name, each in costs.items():
        scale = math.sqrt(sum(cost * cost for cost in each)) or 1.0
        sums = [0.0]
        for cost in each:
            sums = [total + cost / scale for total in sums] + [total - cost / scale for total in sums]
        observed[name] = sums[0]
        extreme = list(map(max, extreme, sums)) if extreme else sums
    return {name: sum(total >= value - _EQUAL for total in extreme) / len(extreme) for name, value in observed.items()}


def _interval(costs: Sequence[float]) -> tuple[float, float]:
    """Return the 95 % confidence interval of the cost; unbounded if there are too few pairs for one."""
    outside = int(TAIL * 2 ** len(costs))
    if not outside:
        return -math.inf, math.inf
    subsets = [(0.0, 0)]
    for cost in costs:
        subsets += [(total + cost, size + 1) for total, size in subsets]
    means = sorted(total / size for total, size in subsets if size)
    return means[outside - 1], means[-outside]
