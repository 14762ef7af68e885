"""`restart` and `full_restart`: nodes are taken down and started again."""

from __future__ import annotations

import asyncio
from typing import Literal, Self

from lab.steps.kill import end
from lab.steps.lot import Lot
from lab.steps.machine import Run
from lab.steps.outlook import UP, Outlook
from lab.steps.start import start
from lab.steps.step import Effect, Fault
from lab.words import Duration, Target
from nodeproc.yamlfile import Place


class Restart(Fault, frozen=True, rename={"down": "down_for"}):
    """Down and up again, one node after the other; how: `stop` (SIGTERM) or `kill` (SIGKILL)."""

    word = "restart"
    effect = Effect.DOWN
    short = "target"
    drawn_from = 1
    rows = ("stop", "kill", "start")
    leaves_nodes = UP
    target: Target
    how: Literal["stop", "kill"] = "stop"
    down: Duration = Duration(0)

    @property
    def proofs(self) -> tuple[tuple[str, ...], ...]:
        return ((self.how,), ("start",))

    @classmethod
    def draw(cls, lot: Lot) -> Self:
        return cls(target=lot.some(), how=lot.how(), down=lot.short())

    async def do(self, run: Run, index: int) -> None:
        for machine in run.choose(self.target):
            await end(run, [machine], self.how, index)
            await asyncio.sleep(self.down)
            await start(run, [machine], index)


class FullRestart(Fault, frozen=True, rename={"down": "down_for"}):
    """All running nodes down at once, then all nodes up: `full_restart: stop`, `full_restart: kill`."""

    word = "full_restart"
    effect = Effect.DOWN
    short = "how"
    drawn_from = 1
    rows = ("stop", "kill", "start")
    how: Literal["stop", "kill"]
    down: Duration = Duration(0)

    @property
    def proofs(self) -> tuple[tuple[str, ...], ...]:
        return ((self.how,), ("start",))

    @classmethod
    def draw(cls, lot: Lot) -> Self:
        return cls(how=lot.how(), down=lot.short())

    def foresee(self, outlook: Outlook, place: Place) -> None:
        outlook.take_down("all", then=UP)

    async def do(self, run: Run, index: int) -> None:
        machines = run.choose("all")
        await end(run, [each for each in machines if each.running], self.how, index)
        await asyncio.sleep(self.down)
        await start(run, machines, index)
