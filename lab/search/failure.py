"""The failure of a simulated scenario, with the invariant that it breaks.

A scenario fails if an invariant breaks, if the code of a node fails, or if a waiting step ends without success: as
everything it needs is healed, that breaks A9.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

from lab.mutants.catalogue import Mutant, mutated
from lab.plan.scenario import Scenario
from lab.sim.simulator import Outcome, simulate


class Failure(NamedTuple):
    """One failure.

    invariant: A1 to A10, or `assert` or `crash` if the code of a node failed.
    text: the observation.
    step: the step that waited without success; "" if it was no step.
    """

    invariant: str
    text: str
    step: str = ""

    def like(self, other: Failure | None) -> bool:
        """Return whether the other failure is of the same kind: same invariant, same step, same failing function."""
        return other is not None and self._kind == other._kind

    @property
    def _kind(self) -> tuple[str, str, str]:
        place = self.text.partition(":")[0] if self.invariant in ("assert", "crash") else ""
        return self.invariant, self.step, place


def failure_of(outcome: Outcome) -> Failure | None:
    """Return the failure in a simulation's outcome, or None."""
    if outcome.invariant:
        return Failure(outcome.invariant, outcome.text)
    if outcome.missed:
        step, found = outcome.missed[0]
        return Failure("A9", f"{step}: {found}", step)
    return None


def as_mutant(name: str) -> AbstractContextManager[Mutant | None]:
    """Return a context manager that applies the mutant inside the with block; "" for none."""
    return mutated(name) if name else nullcontext()


def play(scenario: Scenario, seed: int, mutant: str = "") -> Failure | None:
    """Simulate a scenario once and return its failure, or None.

    Args:
        mutant: applied during the simulation; "" for none.
    """
    with as_mutant(mutant):
        return failure_of(simulate(scenario, seed))
