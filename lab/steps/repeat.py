"""`repeat`: steps that are done several times."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

from msgspec import Meta

from lab.steps.step import Step

MAX_STEPS = 10_000
"""Written out. More is a slip of the pen: nobody waits for so many."""


class Repeat(Step, frozen=True):
    """The steps inside, so many times. unrolled() has them one by one."""

    word = "repeat"
    inner_key = "steps"
    times: Annotated[int, Meta(ge=1, le=MAX_STEPS)]
    steps: tuple[Step, ...]

    @property
    def inner(self) -> tuple[Step, ...]:
        return self.steps

    @property
    def unrolled_count(self) -> int:
        return self.times * sum(step.unrolled_count for step in self.steps)

    def unrolled(self) -> Iterator[Step]:
        for _ in range(self.times):
            for step in self.steps:
                yield from step.unrolled()
