"""`when`: faults that are done as soon as something comes true."""

from __future__ import annotations

from lab.steps.step import Needs, Step
from lab.steps.wait import UntilAny


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

    @property
    def inner(self) -> tuple[Step, ...]:
        return self.steps

    @property
    def needs(self) -> Needs:
        return self.until.needs
