"""`repeat`: steps that are done several times."""

from __future__ import annotations

from typing import Annotated, Any, Self, TypeAlias

from msgspec import Meta, structs

from lab.steps.entry import Entry
from lab.steps.machine import Run
from lab.steps.step import Step
from nodeproc.core.messages import NodeId

MAX_STEPS = 10_000
"""Written out. More is a slip of the pen: nobody waits for so many."""
Times: TypeAlias = Annotated[int, Meta(ge=1, le=MAX_STEPS)]


class Repeat(Step, frozen=True):
    """The steps inside, so many times. unrolled() has them one by one."""

    word = "repeat"
    inner_key = "steps"
    times: Times
    steps: tuple[Step, ...]

    @classmethod
    def read(cls, entry: Entry) -> Self:
        entry.mapping(("times", "steps"), ("times", "steps"))
        times = entry.at("times").convert(Times)
        if not entry.at("steps").list_of("steps"):
            entry.at("steps").wrong("at least one step")
        return cls(times=times, steps=entry.at("steps").steps())

    def in_full(self) -> Any:
        return {"times": self.times, "steps": [step.as_yaml(in_brief=False) for step in self.steps]}

    def in_brief(self) -> Any:
        return {"times": self.times, "steps": [step.as_yaml(in_brief=True) for step in self.steps]}

    def shown(self) -> Any:
        return f"{self.times} times {len(self.steps)} steps"

    @property
    def inner(self) -> tuple[Step, ...]:
        return self.steps

    @property
    def rounds(self) -> int:
        return self.times

    def without(self, gone: NodeId) -> Self | None:
        inside = tuple(less for each in self.steps if (less := each.without(gone)) is not None)
        return structs.replace(self, steps=inside) if inside else None

    async def do(self, run: Run, index: int) -> None:
        raise AssertionError("Scenario.unrolled() writes repeats out")
