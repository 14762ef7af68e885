"""`repeat`: steps that are done several times."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from lab.steps.step import Step

MAX_STEPS = 10_000
"""Written out. More is a slip of the pen: nobody waits for so many."""


class Repeat(Step, frozen=True):
    """The steps inside, so many times. lab.plan.scenario.Scenario.unrolled() has them one by one."""

    word = "repeat"
    times: Annotated[int, Meta(ge=1, le=MAX_STEPS)]
    steps: tuple[Step, ...]
