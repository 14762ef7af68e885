"""The paired comparison: values worked out by hand, properties of the interval, and the rates of wrong answers."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Sequence
from itertools import product

import pytest

from lab.paired import LEVEL, PAIRS_MIN, TAIL, Better, Compared, Series, judge

ROUNDS = 400
"""Repetitions of each simulated measurement."""


def series(*ratios: float, better: Better = "less") -> Series:
    return Series([100.0] * len(ratios), [100.0 * ratio for ratio in ratios], better)


def compared(*ratios: float, better: Better = "less") -> Compared:
    return judge({"it": series(*ratios, better=better)})["it"]


def costs(*values: float) -> Compared:
    """The comparison of pairs with these logarithms of their ratios."""
    return compared(*map(math.exp, values))


# ---- by hand ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "p_worse", "p_better"),
    [
        ((0.3, 0.1, 0.2), 1 / 8, 1.0),  # Only the observed signs give a sum of 0.6.
        ((0.1, 0.2, -0.3), 5 / 8, 5 / 8),  # Sum 0. Sums: ±0.6, ±0.4, ±0.2, 0 twice.
        ((0.1, 0.2, 0.4), 1 / 8, 1.0),
        ((-0.1, 0.2, 0.4), 2 / 8, 7 / 8),  # Sum 0.5; only 0.7 is larger.
        ((0.1, -0.2, -0.4), 7 / 8, 2 / 8),
        ((0.0, 0.0), 1.0, 1.0),
        ((0.1,) * 8, 1 / 256, 1.0),
        ((0.1,) * 7 + (-0.1,), 9 / 256, 1 - 1 / 256 - 8 / 256 + 8 / 256),  # One of eight other, or none.
    ],
)
def test_p_values_by_hand(values: tuple[float, ...], p_worse: float, p_better: float) -> None:
    found = costs(*values)
    assert (found.p_worse, found.p_better) == pytest.approx((p_worse, p_better))


def test_the_interval_of_six_pairs_reaches_from_the_least_to_the_largest_ratio() -> None:
    """2.5 % of 64 is one sign assignment: the one that is beyond every subset's mean."""
    found = compared(1.01, 1.02, 0.97, 1.04, 0.99, 1.03)
    assert (found.low, found.high) == pytest.approx((0.97, 1.04))


@pytest.mark.parametrize(
    ("ratios", "answer"),
    [
        ((1.07,) * 8, "worse"),
        ((1.04,) * 8, "not worse"),  # Certain, but not worth an alarm.
        ((0.90,) * 8, "better"),
        ((0.97,) * 8, "not worse"),
        ((1.0,) * 8, "not worse"),
        ((1.5, 0.7, 1.4, 0.6, 1.5, 0.7, 1.4, 0.6), "undecided"),
        ((0.5, 0.4, 0.3, 0.5, 0.45, 0.6, 0.95, 0.2), "better"),  # A wide interval, all of it on the better side.
        ((1.2,) * (PAIRS_MIN - 1), "undecided"),
        ((1.2,) * PAIRS_MIN, "worse"),
    ],
)
def test_the_answer(ratios: tuple[float, ...], answer: str) -> None:
    assert compared(*ratios).answer == answer
    assert compared(*(1 / ratio for ratio in ratios), better="more").answer == answer


def test_a_rate_is_shown_as_a_rate() -> None:
    found = compared(0.8, 0.81, 0.79, 0.8, 0.82, 0.8, better="more")
    assert found.answer == "worse"
    assert (found.low, found.ratio, found.high) == pytest.approx((0.79, 0.8, 0.82))


def test_too_few_pairs_have_no_interval() -> None:
    found = compared(1.0, 1.1)
    assert (found.low, found.high, found.answer) == (0.0, math.inf, "undecided")


# ---- against definitions ------------------------------------------------------------------------


def share_at_least(values: Sequence[float]) -> float:
    """The p-value by its definition: of all sign assignments, the share with at least the observed sum."""
    sums = [
        sum(sign * value for sign, value in zip(signs, values, strict=True)) for signs in product((1, -1), repeat=8)
    ]
    return sum(each >= sum(values) - 1e-12 for each in sums) / len(sums)


@pytest.mark.parametrize("seed", range(5))
def test_the_interval_holds_the_changes_that_the_test_does_not_reject(seed: int) -> None:
    rng = random.Random(seed)
    values = [rng.gauss(0.05, 0.1) for _ in range(8)]
    found = costs(*values)
    low, high, near = math.log(found.low), math.log(found.high), 1e-9
    assert share_at_least([value - (low - near) for value in values]) <= TAIL
    assert share_at_least([value - (low + near) for value in values]) > TAIL
    assert share_at_least([(high + near) - value for value in values]) <= TAIL
    assert share_at_least([(high - near) - value for value in values]) > TAIL


def test_a_figure_judged_twice_is_judged_as_once_and_two_that_differ_share_the_level() -> None:
    one = series(1.2, 1.1, 0.9, 1.3, 1.1, 1.2, 1.1)
    other = series(1.1, 0.9, 1.3, 0.8, 1.0, 0.95, 1.2)
    alone = judge({"one": one})["one"].p_worse
    assert judge({"one": one, "again": one})["one"].p_worse == alone
    assert judge({"one": one, "other": other})["one"].p_worse > alone


# ---- how often an answer is wrong ---------------------------------------------------------------


def gaussian(rng: random.Random) -> float:
    return rng.gauss(0, 1)


def spiky(rng: random.Random) -> float:
    """One run of ten is disturbed by something else and takes much longer."""
    return rng.gauss(0, 0.3) + (5 * rng.random() if rng.random() < 0.1 else 0)


def answers(rng: random.Random, noise: object, size: float, change: float, figures: int = 3) -> set[str]:
    """The answers about related figures of one simulated measurement with eight pairs."""
    assert callable(noise)
    drift = [rng.gauss(0, 0.5) for _ in range(8)]  # The machine is slower for a while: both runs of a pair are.
    common = [(noise(rng), noise(rng)) for _ in range(8)]
    found = {}
    for number in range(figures):
        base = [math.exp(d + size * (a + noise(rng))) for d, (a, _) in zip(drift, common, strict=True)]
        now = [change * math.exp(d + size * (b + noise(rng))) for d, (_, b) in zip(drift, common, strict=True)]
        found[str(number)] = Series(base, now, "less")
    return {each.answer for each in judge(found).values()}


def rates(noise: object, size: float, change: float) -> Counter[str]:
    """Answer -> how many of ROUNDS simulated measurements have it for at least one figure."""
    rng, found = random.Random(20241021), Counter[str]()
    for _ in range(ROUNDS):
        found.update(answers(rng, noise, size, change))
    return found


def at_most(share: float) -> float:
    """What a share may come to in ROUNDS repetitions: three standard deviations above it."""
    return ROUNDS * share + 3 * math.sqrt(ROUNDS * share * (1 - share))


@pytest.mark.parametrize("noise", [gaussian, spiky])
@pytest.mark.parametrize("size", [0.01, 0.05, 0.3])
def test_equal_versions_are_called_worse_no_more_often_than_stated(noise: object, size: float) -> None:
    assert rates(noise, size, 1.0)["worse"] <= at_most(LEVEL)


@pytest.mark.parametrize("noise", [gaussian, spiky])
@pytest.mark.parametrize("size", [0.01, 0.03, 0.1, 0.3])
def test_a_version_ten_per_cent_slower_is_found_or_undecided(noise: object, size: float) -> None:
    rng = random.Random(20241021)
    passed = sum(answers(rng, noise, size, 1.10) <= {"not worse", "better"} for _ in range(ROUNDS))
    assert passed <= at_most(TAIL)
    assert size > 0.03 or rates(noise, size, 1.10)["better"] == 0


def test_a_quiet_machine_decides() -> None:
    assert rates(gaussian, 0.01, 1.10)["worse"] == ROUNDS
    assert rates(gaussian, 0.01, 1.0) == Counter({"not worse": ROUNDS})
