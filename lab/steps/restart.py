"""`restart` and `full_restart`: nodes are taken down and started again."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Iterator
from typing import Literal, Self

from lab.steps.kill import end
from lab.steps.machine import Run
from lab.steps.outlook import UP, Outlook
from lab.steps.reducing import shorter
from lab.steps.start import start
from lab.steps.step import Effect, Fault
from lab.words import Duration, Target
from nodeproc.yamlfile import Place

SIGNALS = {"kill": signal.SIGKILL, "stop": signal.SIGTERM}


class Restart(Fault, frozen=True, rename={"down": "down_for"}):
    """Take nodes down and start them again, one after the other. Done when the last one answers.

    how: stop (SIGTERM) or kill (SIGKILL).
    down: how long each stays down.
    """

    word = "restart"
    effect = Effect.DOWN
    short = "target"
    rows = ("stop", "kill", "start")
    target: Target
    how: Literal["stop", "kill"] = "stop"
    down: Duration = Duration(0)

    def foresee(self, outlook: Outlook, place: Place) -> None:
        outlook.take_down(self.target, then=UP)

    def reduce(self) -> Iterator[Self]:
        yield from super().reduce()
        yield from shorter(self, "down", least=Duration(0))

    def proofs(self) -> tuple[tuple[str, ...], ...]:
        return ((self.how,), ("start",))

    async def do(self, run: Run, index: int) -> None:
        for machine in run.choose(self.target):
            await end(run, [machine], SIGNALS[self.how], index)
            await asyncio.sleep(self.down)
            await start(run, [machine], index)


class FullRestart(Fault, frozen=True, rename={"down": "down_for"}):
    """Take all running nodes down at once, then start all nodes. Done when all answer."""

    word = "full_restart"
    effect = Effect.DOWN
    short = "how"
    rows = ("stop", "kill", "start")
    how: Literal["stop", "kill"]
    down: Duration = Duration(0)

    def foresee(self, outlook: Outlook, place: Place) -> None:
        outlook.take_down("all", then=UP)

    def reduce(self) -> Iterator[Self]:
        yield from super().reduce()
        yield from shorter(self, "down", least=Duration(0))

    def proofs(self) -> tuple[tuple[str, ...], ...]:
        return ((self.how,), ("start",))

    async def do(self, run: Run, index: int) -> None:
        machines = run.choose("all")
        await end(run, [each for each in machines if each.running], SIGNALS[self.how], index)
        await asyncio.sleep(self.down)
        await start(run, machines, index)
