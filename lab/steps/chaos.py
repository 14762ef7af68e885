"""`chaos`: nodes are paused again and again, at random times."""

from __future__ import annotations

import asyncio
import math
import random
from typing import Self

from lab.steps.entry import Entry
from lab.steps.lot import Lot
from lab.steps.machine import Machine, Run
from lab.steps.outlook import ANY
from lab.steps.step import Effect, Fault
from lab.words import Duration, Period, Target

SHORTEST_STINT_S = 0.001


def draw_first_stint(chaos: Chaos, rng: random.Random) -> float:
    """Draw the seconds for which a node runs before its first pause: at most a quarter of the fault's time."""
    return draw_stint(min(chaos.longest, max(chaos.time / 4, SHORTEST_STINT_S)), rng)


def draw_stint(longest: float, rng: random.Random) -> float:
    """Draw the seconds for which a node runs, or is paused: log-uniform, each order of magnitude equally likely.

    Args:
        longest: seconds, SHORTEST_STINT_S or more.
    """
    return SHORTEST_STINT_S * math.exp(rng.random() * math.log(longest / SHORTEST_STINT_S))


class Chaos(Fault, frozen=True, rename={"time": "for"}):
    """Pause these nodes randomly: each runs and is stopped (SIGSTOP) in turn, for random times of 1 ms to `longest`.
    Ends when the time is over and all run.
    """

    word = "chaos"
    effect = Effect.NONE
    short = "time"
    drawn_from = 1
    leaves_nodes = ANY
    time: Period
    on: Target = "running"
    longest: Period = Duration(2)

    def check(self, entry: Entry) -> None:
        if self.longest < SHORTEST_STINT_S:
            entry.at("longest").wrong("1ms or more")

    @classmethod
    def draw(cls, lot: Lot) -> Self:
        on = lot.some()
        return cls(time=lot.time(0.5, 2.0, 5.0), on=on, longest=lot.time(0.05, 0.5, 2.0))

    async def do(self, run: Run, index: int) -> None:
        await asyncio.gather(*(self._pause_randomly(run, each, index) for each in run.choose(self.on)))

    async def _pause_randomly(self, run: Run, machine: Machine, index: int) -> None:
        """SIGSTOP and SIGCONT in turn, each node at times of its own."""
        row, draws = run.book.begin(self.word, index, machine), random.Random(run.draws.getrandbits(64))
        until, stops, longest, whole = run.now() + self.time, 0, 0.0, 0.0
        runs = draw_first_stint(self, draws)
        while machine.running and not machine.paused:
            await asyncio.sleep(min(runs, max(0.0, until - run.now())))
            if run.now() >= until or not machine.running or machine.paused:
                break
            runs, stands = draw_stint(self.longest, draws), draw_stint(self.longest, draws)
            stopped = run.now()
            if await machine.freeze():
                await asyncio.sleep(min(stands, max(0.0, until - run.now())))
                stops += 1
            if machine.running and machine.paused:
                machine.wake()
            stint = run.now() - stopped
            longest, whole = max(longest, stint), whole + stint
        evidence = {"stops": stops, "stopped_s": round(whole, 4), "longest_s": round(longest, 4)}
        row.write(evidence, stops > 0, over=True)
