"""`nemesis`: one fault after the other, in a drawn order."""

from __future__ import annotations

import asyncio
import random
from typing import Any, Self

from lab.steps.entry import Entry
from lab.steps.heal import Heal
from lab.steps.machine import Run, StepMissed
from lab.steps.step import Fault, Step
from lab.steps.targets import NoSuchTarget
from lab.words import Duration, Period

EVERY = Duration(2)


HOLDS = (0.25, 0.75)
"""Least and greatest part of `every` for which a fault holds."""


class Nemesis(Step, frozen=True, rename={"time": "for"}):
    """For this time, inject one fault of a list after the other, and heal each.

    every: from one fault to the next; longer where a heal takes longer. A fault lasts for a random quarter to three
        quarters of it.
    faults: in a random order, all of them before one comes again. A fault whose target means nobody is left out.
    """

    word = "nemesis"
    inner_field = "faults"
    in_rounds = True
    noted = True
    time: Period
    faults: tuple[Step, ...]
    every: Period = EVERY

    @classmethod
    def read(cls, entry: Entry) -> Self:
        value = entry.mapping(("for", "faults"), ("for", "faults", "every"))
        times = {key: entry.at(key).period() for key in ("for", "every") if key in value}
        allowed = [each for each in entry.setting.steps.values() if each.in_nemesis]
        faults = entry.at("faults").inner_steps(allowed)
        for index, fault in enumerate(faults):
            if isinstance(fault, Fault) and fault.unhealable:
                entry.at("faults", index, fault.word).fail(fault.unhealable)
        return cls(time=times["for"], faults=faults, every=times.get("every", EVERY))

    def inside(self, *, in_brief: bool) -> Any:
        return {**self._times(), "faults": [fault.as_yaml(in_brief=in_brief) for fault in self.faults]}

    def shown(self) -> Any:
        return {**self._times(), "faults": f"{len(self.faults)} kinds"}

    def _times(self) -> dict[str, str]:
        return {"for": str(self.time), "every": str(self.every)}

    async def do(self, run: Run, index: int) -> None:
        draws, until = random.Random(f"nemesis {run.seed} {index}"), run.now() + self.time
        left: list[Step] = []
        number = done = 0
        while (began := run.now()) < until:
            left = left or draws.sample(self.faults, len(self.faults))
            fault, holds = left.pop(), self.every * draws.uniform(*HOLDS)
            number += 1
            done += await self._one(run, fault, index, number, holds)
            run.check()
            await asyncio.sleep(max(0.0, began + self.every - run.now()))
        if not done:
            raise StepMissed(f"each of {number} faults was about a node that was not there")
        run.note(index, self, met=True, found=f"{done} faults done and healed")

    async def _one(self, run: Run, fault: Step, index: int, number: int, holds: float) -> bool:
        """Do one of them, let it hold, heal all. False: nobody was what it is about."""
        assert isinstance(fault, Fault)
        try:
            await run.do_fault(fault, index, number)
        except NoSuchTarget:
            return False
        await asyncio.sleep(holds)
        await run.do_fault(Heal(), index, number, of=fault)
        return True
