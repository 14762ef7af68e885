"""Statistics of a failure that shows only in some runs: its rate, and whether a change keeps it. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, NamedTuple

CONFIDENCE: Final = 0.95
ERROR: Final = 0.05
"""Probability of each of the two wrong decisions of a sequential test."""
LEAST_FACTOR: Final = 0.25
"""A change loses the failure if it lowers the rate to this part."""
HIGHEST_RATE: Final = 0.95
"""A rate of 1 would let one passing run refute it, although the estimate comes from a few runs."""
FAILURES_MAX: Final = 20
"""A test without a decision after the runs in which so many failures were expected decides that the failure is lost."""


class Rate(NamedTuple):
    """A failure showed in `failed` of `runs` runs."""

    failed: int
    runs: int

    @property
    def value(self) -> float:
        return self.failed / self.runs if self.runs else 0.0

    def interval(self, confidence: float = CONFIDENCE) -> tuple[float, float]:
        """Return the exact confidence interval of the rate (Clopper, Pearson, Biometrika 1934)."""
        tail = (1 - confidence) / 2
        low = 0.0 if self.failed == 0 else _root(lambda rate: 1 - _below(self.failed - 1, self.runs, rate), tail)
        high = 1.0 if self.failed == self.runs else _root(lambda rate: -_below(self.failed, self.runs, rate), -tail)
        return low, high

    def __str__(self) -> str:
        low, high = self.interval()
        times = f"{self.failed} of {self.runs} runs"
        return f"{times}: {self.value:.0%}, {CONFIDENCE:.0%} interval {low:.0%} to {high:.0%}"


def _below(most: int, runs: int, rate: float) -> float:
    """Return the probability of at most `most` failures."""
    return math.fsum(math.comb(runs, n) * rate**n * (1 - rate) ** (runs - n) for n in range(most + 1))


def _root(rising: Callable[[float], float], wanted: float) -> float:
    """Return where a rising function of 0..1 has a value, by bisection."""
    low, high = 0.0, 1.0
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if rising(middle) < wanted else (low, middle)
    return (low + high) / 2


@dataclass(slots=True)
class SequentialTest:
    """Decide from as few runs as possible whether a failure still shows as often (Wald, Ann. Math. Stat. 1945).

    Two rates are compared: `kept`, and a part of it, LEAST_FACTOR. If the true rate is `kept`, or higher, the test
    decides "lost" with a probability of at most about ERROR; if it is that part, or lower, it decides "kept" with a
    probability of at most about ERROR.
    """

    kept: float
    failed: int = 0
    runs: int = 0

    def __post_init__(self) -> None:
        assert 0 < self.kept <= 1, self.kept
        self.kept = min(self.kept, HIGHEST_RATE)

    def add(self, failed: bool) -> None:
        """Count a run."""
        self.failed += failed
        self.runs += 1

    @property
    def decision(self) -> bool | None:
        """True: the failure is kept. False: it is lost. None: more runs are needed."""
        lost = self.kept * LEAST_FACTOR
        passed = self.runs - self.failed
        likelihood = self.failed * math.log(self.kept / lost) + passed * math.log((1 - self.kept) / (1 - lost))
        bound = math.log((1 - ERROR) / ERROR)
        if likelihood >= bound:
            return True
        return False if likelihood <= -bound or self.runs * self.kept >= FAILURES_MAX else None
