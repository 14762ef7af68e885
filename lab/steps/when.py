"""`when`: inject faults as soon as a condition comes true."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

from lab.steps.entry import Entry
from lab.steps.machine import Condition, Run
from lab.steps.sleep import Sleep
from lab.steps.step import Fault, Needs, Step
from lab.steps.targets import NoSuchTarget
from lab.steps.wait import Until


class Triggers:
    """The `when` steps that wait for their condition while the steps behind them are done."""

    def __init__(self) -> None:
        self.tasks: dict[int, asyncio.Task[None]] = {}
        """Index of a `when` step -> the task that waits for its condition and then injects its faults."""
        self._fired: set[int] = set()

    def arm(self, index: int, waiting: Coroutine[Any, Any, None]) -> None:
        """Start to wait."""
        self.tasks[index] = asyncio.create_task(waiting)

    def fired(self, index: int) -> None:
        """The condition holds now."""
        self._fired.add(index)

    async def end(self) -> list[int]:
        """Finish the steps that have fired; return the indices of those that have not."""
        missed = [index for index in self.tasks if index not in self._fired]
        for index in missed:
            self.tasks[index].cancel()
        await asyncio.gather(*(self.tasks[index] for index in sorted(self._fired)))
        return missed

    def cancel(self) -> None:
        """Cancel everything at once."""
        for task in self.tasks.values():
            task.cancel()


class When(Step, frozen=True, rename={"until": "so", "steps": "do"}):
    """As soon as `so` comes true, the faults in `do` are injected, whichever step runs at that time.

    until: watched from here on, while the next steps run. A trigger fires once; a trigger that has not fired at the end
        of the steps is a missed expectation.
    steps: faults, and sleeps between them. A fault waits until the one that is being injected is done.
    """

    word = "when"
    inner_field = "steps"
    noted = True
    until: Until
    steps: tuple[Step, ...]

    def check(self, entry: Entry) -> None:
        if "within" in entry.at("so").value:
            entry.at("so", "within").fail("has no meaning here: a `when` waits until the steps are over", at_key=True)
        allowed = [each for each in entry.setting.steps.values() if issubclass(each, Fault | Sleep)]
        entry.at("do").check_inner(self.steps, allowed)

    def inside(self, *, in_brief: bool) -> Any:
        whole = super().inside(in_brief=in_brief)
        if not in_brief:
            del whole["so"]["within"]
        return whole

    @property
    def needs(self) -> Needs:
        return self.until.needs._replace(majority=False)

    async def do(self, run: Run, index: int) -> None:
        condition = await self.until.condition(run, from_now=True)
        run.triggers.arm(index, self._wait_and_do(run, index, condition))

    async def _wait_and_do(self, run: Run, index: int, condition: Condition) -> None:
        began = run.now()
        while not await condition():
            await asyncio.sleep(self.until.look_every_s)
        run.triggers.fired(index)
        found = f"after {run.now() - began:.2f} s"
        run.tell(f"{self.show()}: {found}")
        try:
            for each in self.steps:
                if isinstance(each, Fault):
                    await run.do_fault(each, index)
                else:
                    await each.do(run, index)
        except NoSuchTarget as missed:
            run.note(index, self, met=False, found=f"{found}: {missed}")
        else:
            run.note(index, self, met=True, found=found)
