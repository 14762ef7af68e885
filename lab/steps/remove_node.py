"""`remove_node`: a node is removed from the members of the running cluster."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from lab.steps.changes import REMOVED, Asked, ChangeMembers, removal
from lab.steps.machine import Run
from lab.steps.outlook import Outlook
from lab.steps.step import Effect
from lab.words import Target, target_parts
from nodeproc.yamlfile import Place


class RemoveNode(ChangeMembers, frozen=True):
    """Remove these nodes from the members, one after the other; a leader hands over first. Ends when a majority has
    committed the list without them. A removed node stops once it hears of it.
    """

    word = REMOVED
    effect = Effect.NONE
    short = "target"
    target: Target

    def impossible(self, outlook: Outlook) -> Iterator[str]:
        if set(target_parts(self.target)).issuperset(outlook.ids) or self.target == "all":
            yield "removes all members, and the last one can't be removed"

    def foresee(self, outlook: Outlook, place: Place) -> None:
        outlook.least_members -= len(outlook.ids if self.target == "all" else target_parts(self.target))

    async def _prepare(self, run: Run, index: int) -> Sequence[Asked]:
        return [removal(machine) for machine in run.choose(self.target)]
