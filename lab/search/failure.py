"""What a simulation missed, in one word: the invariant that did not hold.

A scenario fails when an invariant is seen to break, when a node's own code fails, or when a step that waits for
something waited in vain: with all healed, that breaks A9.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

from lab.mutants.catalogue import Mutant, mutated
from lab.plan.scenario import Scenario
from lab.sim.simulator import Outcome, simulate


class Failure(NamedTuple):
    """invariant: A1 to A10 (a node ended by itself), `assert` or `crash` (its code failed); text: what was seen.

    step: the step that waited in vain; "": it was no step.
    """

    invariant: str
    text: str
    step: str = ""

    def like(self, other: Failure | None) -> bool:
        """The same rule is broken: in the same step if it is one's, in the same function if it is the code's."""
        return other is not None and self._kind == other._kind

    @property
    def _kind(self) -> tuple[str, str, str]:
        place = self.text.partition(":")[0] if self.invariant in ("assert", "crash") else ""
        return self.invariant, self.step, place


def failure_of(outcome: Outcome) -> Failure | None:
    """What a simulation's outcome missed; None: nothing."""
    if outcome.invariant:
        return Failure(outcome.invariant, outcome.text)
    if outcome.missed:
        step, found = outcome.missed[0]
        return Failure("A9", f"{step}: {found}", step)
    return None


def as_mutant(name: str) -> AbstractContextManager[Mutant | None]:
    """The product is this mutant inside the with block; "": it is itself."""
    return mutated(name) if name else nullcontext()


def play(scenario: Scenario, seed: int, mutant: str = "") -> Failure | None:
    """Simulate once; what was missed.

    Args:
        mutant: what the product is meanwhile; "": itself.
    """
    with as_mutant(mutant):
        return failure_of(simulate(scenario, seed))
