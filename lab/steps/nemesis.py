"""`nemesis`: inject one fault after the other, in random order."""

from __future__ import annotations

import asyncio
import random
from typing import Any

from lab.steps.changes import ChangeMembers
from lab.steps.entry import Entry
from lab.steps.heal import Heal
from lab.steps.machine import Run, StepMissed
from lab.steps.step import Fault, Step
from lab.steps.targets import NoSuchTarget
from lab.steps.writing import plain
from lab.words import Duration, Period

HOLDS = (0.25, 0.75)
"""Least and greatest part of `every` for which a fault lasts."""


class Nemesis(Step, frozen=True, kw_only=True, rename={"time": "for"}):
    """For this time, inject one fault of a list after the other, and heal each. A change of the members goes on while
    the next faults come.

    every: from one fault to the next; longer if a heal takes longer. A fault lasts for a random quarter to three
        quarters of this time. The next fault after a change comes within half of it; the next change waits for the
        one before.
    faults: in a random order; none comes again before all others have come. A fault whose target means no node is left
        out.
    """

    word = "nemesis"
    inner_field = "faults"
    in_rounds = True
    noted = True
    time: Period
    every: Period = Duration(2)
    faults: tuple[Step, ...]

    def check(self, entry: Entry) -> None:
        allowed = [each for each in entry.setting.steps.values() if each.in_nemesis]
        entry.at("faults").check_inner(self.faults, allowed)
        for index, fault in enumerate(self.faults):
            if isinstance(fault, Fault) and fault.unhealable:
                entry.at("faults", index, fault.word).fail(fault.unhealable)

    def shown(self) -> Any:
        return plain(self) | {"faults": f"{len(self.faults)} kinds"}

    async def do(self, run: Run, index: int) -> None:
        draws, until = random.Random(f"nemesis {run.seed} {index}"), run.now() + self.time
        left: list[Step] = []
        number = done = 0
        change: asyncio.Task[bool] | None = None
        try:
            while (began := run.now()) < until:
                left = left or draws.sample(self.faults, len(self.faults))
                fault, holds = left.pop(), self.every * draws.uniform(*HOLDS)
                number += 1
                if isinstance(fault, ChangeMembers):
                    done += change is not None and await change
                    change = asyncio.create_task(self._change(run, fault, index, number))
                    await asyncio.sleep(holds - self.every * HOLDS[0])
                    continue
                done += await self._one(run, fault, index, number, holds)
                run.check()
                await asyncio.sleep(max(0.0, began + self.every - run.now()))
            done += change is not None and await change
        finally:
            if change is not None:
                change.cancel()
        if not done:
            raise StepMissed(f"the targets of all {number} faults meant no node")
        run.note(index, self, met=True, found=f"{done} faults done and healed")

    async def _change(self, run: Run, change: ChangeMembers, index: int, number: int) -> bool:
        """Ask for a change until it is done; return False if its target means no node."""
        try:
            await run.do_fault(change, index, number)
        except NoSuchTarget:
            return False
        return True

    async def _one(self, run: Run, fault: Step, index: int, number: int, holds: float) -> bool:
        """Inject a fault, wait, and heal everything; return False if its target means no node."""
        assert isinstance(fault, Fault)
        try:
            await run.do_fault(fault, index, number)
        except NoSuchTarget:
            return False
        await asyncio.sleep(holds)
        await run.do_fault(Heal(), index, number, of=fault)
        return True
