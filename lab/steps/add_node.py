"""`add_node`: a node is added to the members of the running cluster."""

from __future__ import annotations

from collections.abc import Sequence

from lab.steps.changes import ADDED, Asked, ChangeMembers, addition, check_newcomer, newcomer_of, start_all
from lab.steps.entry import Entry
from lab.steps.machine import Run
from lab.steps.outlook import DOWN, UP, State
from lab.steps.step import Effect
from lab.words import Newcomer, Target
from nodeproc.core.messages import NodeId


class AddNode(ChangeMembers, frozen=True):
    """Start these nodes, which are not among the `founders`, and then add them to the members, one after the other.
    Ends when a majority has committed that they have a vote, or were removed again.

    target: ids, or `newcomer`: the lowest id that was never a member so far.
    """

    word = ADDED
    effect = Effect.NONE
    short = "target"
    also = ("start", "resume")
    acts_on = DOWN
    target: Newcomer | tuple[NodeId, ...]

    @property
    def _parts(self) -> tuple[Newcomer, ...]:
        return self.target if isinstance(self.target, tuple) else (self.target,)

    @property
    def aim(self) -> Target:
        return tuple(part for part in self._parts if part != "newcomer")

    @property
    def leaves_nodes(self) -> frozenset[State]:
        return UP

    def check(self, entry: Entry) -> None:
        for part in self._parts:
            check_newcomer(entry.of("target"), part)

    async def _prepare(self, run: Run, index: int) -> Sequence[Asked]:
        machines = [newcomer_of(run, part) for part in self._parts]
        await start_all(run, machines, index)
        return [addition(run, machine) for machine in machines]
