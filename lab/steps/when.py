"""`when`: faults that are done as soon as something comes true."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any, Self

from msgspec import Struct, structs

from lab.steps.entry import Entry
from lab.steps.machine import Condition, Run
from lab.steps.outlook import Outlook
from lab.steps.reducing import without_node
from lab.steps.step import Fault, Needs, Step
from lab.steps.targets import NoSuchTarget
from lab.steps.wait import UntilAny, read_until
from lab.steps.writing import plain
from nodeproc.core.messages import NodeId
from nodeproc.yamlfile import Place


class When(Step, frozen=True, rename={"until": "so", "steps": "do"}):
    """As soon as something comes true, faults are done, whatever step the run has come to by then.

    until: waited for from here on, while the steps behind are done. It fires once; what has not fired at the end of the
        steps is a missed expectation.
    steps: faults, and sleeps between them. A fault waits for one that is being done.
    """

    word = "when"
    inner_key = "do"
    until: UntilAny
    steps: tuple[Step, ...]

    @classmethod
    def read(cls, entry: Entry) -> Self:
        entry.mapping(("so", "do"), ("so", "do"))
        until = read_until(entry.at("so"))
        if "within" in entry.at("so").value:
            entry.at("so", "within").fail_at_key("has no meaning here: a `when` waits until the steps are over")
        allowed = [each for each in entry.setting.steps.values() if each.in_when]
        return cls(until=until, steps=entry.at("do").inner_steps(allowed))

    def in_full(self) -> Any:
        so = {key: value for key, value in plain(self.until).items() if key != "within"}
        return {"so": so, "do": [step.as_yaml(in_brief=False) for step in self.steps]}

    def in_brief(self) -> Any:
        return {"so": self.until.in_brief(), "do": [step.as_yaml(in_brief=True) for step in self.steps]}

    def shown(self) -> Any:
        return {"so": self.until.in_brief(), "do": [{step.word: step.shown()} for step in self.steps]}

    @property
    def inner(self) -> tuple[Step, ...]:
        return self.steps

    @property
    def needs(self) -> Needs:
        return self.until.needs._replace(majority=False)

    def foresee(self, outlook: Outlook, place: Place) -> None:
        outlook.anything = True

    def aims(self) -> tuple[Struct, ...]:
        return ()  # Nobody knows who runs when it acts.

    def without(self, gone: NodeId) -> Self | None:
        until = without_node(self.until, gone)
        inside = tuple(less for each in self.steps if (less := each.without(gone)) is not None)
        return structs.replace(self, until=until, steps=inside) if inside and until else None

    def findings(self) -> Iterator[str]:
        yield self.show()

    @property
    def faults_done(self) -> tuple[Fault, ...]:
        return tuple(step for step in self.steps if isinstance(step, Fault))

    async def do(self, run: Run, index: int) -> None:
        condition = await self.until.condition(run, from_now=True)
        run.arm(index, self._wait_and_do(run, index, condition))

    async def _wait_and_do(self, run: Run, index: int, condition: Condition) -> None:
        began = run.now()
        while not await condition():
            await asyncio.sleep(self.until.look_every_s)
        run.fired(index)
        found = f"after {run.now() - began:.2f} s"
        run.tell(f"{run.show_step(self)}: {found}")
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
