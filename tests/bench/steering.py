"""A process that plays drawn scenarios in the order of a strategy, and shows when it reached which mark.

    python -m tests.bench.steering STRATEGY FIRST_SEED DRAWS

It prints one line of JSON, a `Reached`. The strategies:

plain   Each draw is that of the next seed, as in a campaign.
new     Every second draw is one that reached a new mark, with one choice changed.
rare    Every second draw is one that reached a mark, with one choice changed. The mark is chosen at random; the fewer
        draws have reached it, the more often.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final, NamedTuple
from unittest import mock

import msgspec
from msgspec import Struct

from lab.search import coverage
from nodeproc import native

if TYPE_CHECKING:  # Modules with marks are imported after coverage.install().
    from lab.plan.scenario import Scenario

STRATEGIES: Final = ("plain", "new", "rare")
SIZES: Final = (3, 5, 7)
PARENTS_MAX: Final = 20
"""The first draws that reached a mark; later ones are no parents for its sake."""


class Reached(Struct, frozen=True):
    """What a strategy reached.

    first: mark -> number of draws until it was reached. hits: mark -> number of draws that reached it.
    failures: draws that broke an invariant.
    """

    first: dict[str, int]
    hits: dict[str, int]
    failures: list[str]


class Draw(NamedTuple):
    """The scenario of a seed, or one that differs from it.

    changes: number of a choice, from 1 -> seed of another value for it.
    """

    seed: int
    changes: Mapping[int, int] = {}


def scenario_of(drawn: Draw) -> tuple[Scenario, int]:
    """Return the scenario of a draw, and the number of random choices that were made for it."""
    from lab.search.draw import draw

    made, original = 0, random.Random

    class Changed(original):  # type: ignore[valid-type, misc]
        def another(self) -> random.Random | None:
            nonlocal made
            made += 1
            return original(drawn.changes[made]) if made in drawn.changes else None

        def random(self) -> float:
            value, other = super().random(), self.another()
            return float(value if other is None else other.random())

        def _randbelow(self, n: int) -> int:
            value, other = super()._randbelow(n), self.another()
            return int(value if other is None else other.randrange(n))

    with mock.patch("random.Random", Changed):
        return draw(drawn.seed, SIZES), made


class Steering:
    """Chooses the draws, and keeps what they reached."""

    def __init__(self, strategy: str, first_seed: int) -> None:
        self.rng = random.Random(f"{first_seed} {strategy}")
        self.strategy, self.next_seed, self.draws = strategy, first_seed, 0
        self.first: dict[str, int] = {}
        self.hits: dict[str, int] = {}
        self.new: list[tuple[Draw, int]] = []
        """Draws that reached a new mark, and the number of their choices."""
        self.parents: dict[str, list[tuple[Draw, int]]] = {}
        """Mark -> the first draws that reached it, likewise."""

    def choose(self) -> Draw:
        """Return the next draw."""
        self.draws += 1
        if self.strategy == "plain" or self.draws % 2 or not self.new:
            self.next_seed += 1
            return Draw(self.next_seed - 1)
        if self.strategy == "new":
            parent, choices = self.rng.choice(self.new)
        else:
            (mark,) = self.rng.choices(list(self.hits), [1 / number for number in self.hits.values()])
            parent, choices = self.rng.choice(self.parents[mark])
        return Draw(parent.seed, {**parent.changes, self.rng.randint(1, choices): self.rng.getrandbits(32)})

    def take(self, drawn: Draw, choices: int, marks: list[str]) -> None:
        """Take what a draw reached."""
        if not self.first.keys() >= set(marks):
            self.new.append((drawn, choices))
        for mark in marks:
            self.first.setdefault(mark, self.draws)
            self.hits[mark] = self.hits.get(mark, 0) + 1
            parents = self.parents.setdefault(mark, [])
            if len(parents) < PARENTS_MAX:
                parents.append((drawn, choices))


def run(strategy: str, first_seed: int, draws: int) -> Reached:
    """Play so many draws."""
    from lab.search.failure import failure_of
    from lab.sim.simulator import simulate

    steering, failures = Steering(strategy, first_seed), []
    for _ in range(draws):
        drawn = steering.choose()
        scenario, choices = scenario_of(drawn)
        coverage.reset()
        if failure := failure_of(simulate(scenario, drawn.seed)):
            failures.append(f"{drawn}: {failure.invariant}: {failure.text}")
        steering.take(drawn, choices, coverage.hits())
    return Reached(steering.first, steering.hits, failures)


def main(strategy: str, first_seed: str, draws: str) -> None:
    native.activate()
    coverage.install()
    sys.stdout.buffer.write(msgspec.json.encode(run(strategy, int(first_seed), int(draws))) + b"\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
