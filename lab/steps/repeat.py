"""`repeat`: do some steps several times."""

from __future__ import annotations

from typing import Annotated, Any

from msgspec import Meta

from lab.steps.entry import Entry
from lab.steps.machine import Run
from lab.steps.step import Step

MAX_STEPS = 10_000
"""Of a scenario, with repeats written out. A larger number is taken for a mistake."""


class Repeat(Step, frozen=True):
    """Repeat the steps inside."""

    word = "repeat"
    inner_field = "steps"
    times: Annotated[int, Meta(ge=1, le=MAX_STEPS)]
    steps: tuple[Step, ...]

    def check(self, entry: Entry) -> None:
        entry.at("steps").check_inner(self.steps, (Step,))

    def shown(self) -> Any:
        return f"{self.times} times {len(self.steps)} steps"

    @property
    def rounds(self) -> int:
        return self.times

    async def do(self, run: Run, index: int) -> None:
        raise AssertionError("Scenario.unrolled() writes repeats out")
