"""Does drawing steered by coverage reach rare marks sooner? Pairs of campaigns from the same first seed.

PAIRS=20 DRAWS=400 JOBS=2 for the figures of decision 45; `pytest -s` shows them.

The rarest marks of a pair are those that the runs of all other pairs hit least often, so that no run chooses its own
goals. A mark that a run does not reach counts as reached at its last draw.
"""

from __future__ import annotations

import os
import random
import statistics
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import msgspec
import pytest

from lab.places import ROOT
from lab.search.draw import draw
from tests.bench.steering import SIZES, STRATEGIES, Draw, Reached, scenario_of

PAIRS = int(os.environ.get("PAIRS", "2"))
DRAWS = int(os.environ.get("DRAWS", "2"))
JOBS = int(os.environ.get("JOBS", "1"))
FIRST_SEED = int(os.environ.get("FIRST_SEED", "8000001"))
RAREST = 10
RESAMPLES = 10_000


def played(strategy: str, pair: int) -> Reached:
    first_seed = FIRST_SEED + pair * DRAWS
    command = [sys.executable, "-m", "tests.bench.steering", strategy, str(first_seed), str(DRAWS)]
    return msgspec.json.decode(
        subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE).stdout, type=Reached
    )


def rarest(runs: Sequence[Reached]) -> list[str]:
    """Return the marks that the fewest draws hit."""
    hits: Counter[str] = Counter()
    for run in runs:
        hits.update(run.hits)
    return sorted(hits, key=lambda mark: (hits[mark], mark))[:RAREST]


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Return the 95 % interval of the mean (bootstrap)."""
    rng = random.Random(1)
    means = sorted(statistics.fmean(rng.choices(values, k=len(values))) for _ in range(RESAMPLES))
    return means[RESAMPLES // 40], means[-RESAMPLES // 40 - 1]


def test_steered_draws_against_plain_ones() -> None:
    orders = [(strategy, pair) for pair in range(PAIRS) for strategy in STRATEGIES]
    with ThreadPoolExecutor(JOBS) as threads:
        runs = dict(zip(orders, threads.map(lambda order: played(*order), orders), strict=True))
    failures = [f"{order}: {each}" for order, run in runs.items() for each in run.failures]
    assert not failures, failures
    goals = [rarest([run for (_, other), run in runs.items() if other != pair]) for pair in range(PAIRS)]
    draws, found = {}, {}
    for strategy in STRATEGIES:
        ours = [(runs[strategy, pair].first, goals[pair]) for pair in range(PAIRS)]
        draws[strategy] = [statistics.fmean(first.get(mark, DRAWS) for mark in marks) for first, marks in ours]
        found[strategy] = [sum(mark in first for mark in marks) for first, marks in ours]
        print(
            f"\n{strategy}: the {RAREST} rarest marks after {statistics.fmean(draws[strategy]):.1f} of {DRAWS} draws, "
            f"{statistics.fmean(found[strategy]):.1f} of them reached; "
            f"all marks reached: {statistics.fmean(len(first) for first, _ in ours):.1f}"
        )
        for what, values in (("draws", draws), ("reached", found)):
            more = [ours - plain for ours, plain in zip(values[strategy], values["plain"], strict=True)]
            low, high = interval(more)
            print(f"  {what}, more than plain: {statistics.fmean(more):+.1f} ({low:+.1f} to {high:+.1f})")
    assert len({tuple(sorted(runs[strategy, 0].first.items())) for strategy in STRATEGIES}) > 1, "all drew the same"


@pytest.mark.parametrize("seed", range(1, 9))
def test_a_changed_choice_changes_the_draw_of_its_seed(seed: int) -> None:
    plain, choices = scenario_of(Draw(seed))
    assert plain == draw(seed, SIZES)
    changed = [scenario_of(Draw(seed, {number: 1}))[0] for number in range(1, choices + 1)]
    assert any(each != plain for each in changed)
    assert scenario_of(Draw(seed, {choices + 1: 1}))[0] == plain
