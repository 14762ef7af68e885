"""`repeat`: steps that are done several times."""

from __future__ import annotations

from typing import Annotated, Any, Self, TypeAlias

from msgspec import Meta

from lab.steps.entry import Entry
from lab.steps.machine import Run
from lab.steps.step import Step

MAX_STEPS = 10_000
"""Written out. More is a slip of the pen: nobody waits for so many."""
Times: TypeAlias = Annotated[int, Meta(ge=1, le=MAX_STEPS)]


class Repeat(Step, frozen=True):
    """Repeat the steps inside."""

    word = "repeat"
    inner_field = "steps"
    times: Times
    steps: tuple[Step, ...]

    @classmethod
    def read(cls, entry: Entry) -> Self:
        entry.mapping(("times", "steps"), ("times", "steps"))
        times = entry.at("times").convert(Times)
        if not entry.at("steps").list_of("steps"):
            entry.at("steps").wrong("at least one step")
        return cls(times=times, steps=entry.at("steps").steps())

    def inside(self, *, in_brief: bool) -> Any:
        return {"times": self.times, "steps": [step.as_yaml(in_brief=in_brief) for step in self.steps]}

    def shown(self) -> Any:
        return f"{self.times} times {len(self.steps)} steps"

    @property
    def rounds(self) -> int:
        return self.times

    async def do(self, run: Run, index: int) -> None:
        raise AssertionError("Scenario.unrolled() writes repeats out")
