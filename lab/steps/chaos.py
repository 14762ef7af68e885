"""`chaos`: nodes that get the processor by fits and starts."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from typing import Self

from lab.steps.entry import Entry
from lab.steps.outlook import ANY, Outlook
from lab.steps.reducing import shorter
from lab.steps.step import Fault
from lab.words import Duration, Period, Target
from nodeproc.yamlfile import Place

SHORTEST_STINT_S = 0.001


def draw_first_stint(chaos: Chaos, rng: random.Random) -> float:
    """Seconds for which a node runs before it stands still for the first time: it shall, in the time that there is."""
    return draw_stint(min(chaos.longest, max(chaos.time / 4, SHORTEST_STINT_S)), rng)


def draw_stint(longest: float, rng: random.Random) -> float:
    """Seconds for which a node in `chaos` runs, or stands still: short most often, each order of magnitude alike.

    Args:
        longest: seconds, SHORTEST_STINT_S or more.
    """
    return SHORTEST_STINT_S * math.exp(rng.random() * math.log(longest / SHORTEST_STINT_S))


class Chaos(Fault, frozen=True, rename={"time": "for"}):
    """For a time these nodes get the processor by fits and starts. Done when the time is over and all go on.

    Each runs and stands still (SIGSTOP) in turn, for drawn times of 1 ms to `longest`.
    """

    word = "chaos"
    short = "time"
    time: Period
    on: Target = "running"
    longest: Period = Duration(2)

    def check(self, entry: Entry) -> None:
        if self.longest < SHORTEST_STINT_S:
            entry.at("longest").wrong("1ms or more")

    def foresee(self, outlook: Outlook, place: Place) -> None:
        outlook.set(self.on, ANY)

    def reduce(self) -> Iterator[Self]:
        yield from super().reduce()
        yield from shorter(self, "time")
