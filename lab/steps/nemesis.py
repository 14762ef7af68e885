"""`nemesis`: one fault after the other, in a drawn order."""

from __future__ import annotations

from lab.steps.step import Step
from lab.words import Duration, Period


class Nemesis(Step, frozen=True, rename={"time": "for"}):
    """For a time one fault after the other, each healed before the next.

    every: from one fault to the next; longer where a heal takes longer. A fault holds for a drawn quarter to three
        quarters of it.
    faults: come in a drawn order, all of them before one comes again. One whose target means nobody is left out.
    """

    word = "nemesis"
    inner_key = "faults"
    time: Period
    faults: tuple[Step, ...]
    every: Period = Duration(2)

    @property
    def inner(self) -> tuple[Step, ...]:
        return self.faults
