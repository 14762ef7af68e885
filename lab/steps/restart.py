"""`restart` and `full_restart`: nodes are taken down and started again."""

from __future__ import annotations

import asyncio
from typing import Literal, Self

from lab.steps.kill import end
from lab.steps.lot import Lot
from lab.steps.machine import Run
from lab.steps.outlook import PAUSED, UP
from lab.steps.start import start
from lab.steps.step import Fault
from lab.words import Duration, Target


class Restart(Fault, frozen=True, rename={"down": "down_for"}):
    """Stop and start these nodes, one after the other; `how`: `stop` (SIGTERM) or `kill` (SIGKILL)."""

    word = "restart"
    short = "target"
    drawn_from = 1
    leaves_nodes = UP
    acts_on = UP | PAUSED
    target: Target
    how: Literal["stop", "kill"] = "stop"
    down: Duration = Duration(0)

    @property
    def leaves(self) -> tuple[str, ...]:
        return self.how, "start"

    @classmethod
    def draw(cls, lot: Lot) -> Self:
        return cls(target=lot.some(), how=lot.how(), down=lot.short())

    async def do(self, run: Run, index: int) -> None:
        for machine in run.choose(self.target):
            await end(run, [machine], self.how, index)
            await asyncio.sleep(self.down)
            await start(run, [machine], index)


class FullRestart(Fault, frozen=True, rename={"down": "down_for"}):
    """Stop or kill all running nodes at once, then start all nodes: `full_restart: stop`, `full_restart: kill`."""

    word = "full_restart"
    short = "how"
    drawn_from = 1
    aim = "all"
    row_for_each = False  # A node that is down already is started only.
    leaves_nodes = UP
    how: Literal["stop", "kill"]
    down: Duration = Duration(0)

    @property
    def leaves(self) -> tuple[str, ...]:
        return self.how, "start"

    @classmethod
    def draw(cls, lot: Lot) -> Self:
        return cls(how=lot.how(), down=lot.short())

    async def do(self, run: Run, index: int) -> None:
        machines = run.choose("all")
        running = [each for each in machines if each.running]
        await end(run, running or machines, self.how, index)  # If none runs, the rows say so.
        await asyncio.sleep(self.down)
        await start(run, machines, index)
