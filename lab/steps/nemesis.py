"""`nemesis`: one fault after the other, in a drawn order."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator
from typing import Any, Self

from msgspec import Struct, structs

from lab.steps.entry import Entry
from lab.steps.heal import Heal
from lab.steps.machine import Run, StepMissed
from lab.steps.outlook import Outlook
from lab.steps.reducing import shorter
from lab.steps.step import Fault, Step
from lab.steps.targets import NoSuchTarget
from lab.words import Duration, Period
from nodeproc.core.messages import NodeId
from nodeproc.yamlfile import Place

EVERY = Duration(2)


HOLDS = (0.25, 0.75)
"""Least and greatest part of `every` for which a fault holds."""


class Nemesis(Step, frozen=True, rename={"time": "for"}):
    """For a time one fault after the other, each healed before the next.

    every: from one fault to the next; longer where a heal takes longer. A fault holds for a drawn quarter to three
        quarters of it.
    faults: come in a drawn order, all of them before one comes again. One whose target means nobody is left out.
    """

    word = "nemesis"
    inner_key = "faults"
    in_rounds = True
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

    def in_full(self) -> Any:
        return {**self._times(), "faults": [fault.as_yaml(in_brief=False) for fault in self.faults]}

    def in_brief(self) -> Any:
        return {**self._times(), "faults": [fault.as_yaml(in_brief=True) for fault in self.faults]}

    def shown(self) -> Any:
        return {**self._times(), "faults": f"{len(self.faults)} kinds"}

    def _times(self) -> dict[str, str]:
        return {"for": str(self.time), "every": str(self.every)}

    @property
    def inner(self) -> tuple[Step, ...]:
        return self.faults

    def foresee(self, outlook: Outlook, place: Place) -> None:
        outlook.anything = True

    def aims(self) -> tuple[Struct, ...]:
        return ()  # Nobody knows who runs when it acts.

    def reduce(self) -> Iterator[Self]:
        yield from super().reduce()
        yield from shorter(self, "time")

    def without(self, gone: NodeId) -> Self | None:
        inside = tuple(less for each in self.faults if (less := each.without(gone)) is not None)
        return structs.replace(self, faults=inside) if inside else None

    def findings(self) -> Iterator[str]:
        yield self.show()

    @property
    def faults_done(self) -> tuple[Fault, ...]:
        return tuple(fault for fault in self.faults if isinstance(fault, Fault))

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
