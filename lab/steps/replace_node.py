"""`replace_node`: a new node takes the place of a member of the running cluster."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from lab.steps.changes import (
    ADDED,
    REMOVED,
    Asked,
    ChangeMembers,
    addition,
    check_newcomer,
    newcomer_of,
    removal,
    start_all,
)
from lab.steps.entry import Entry
from lab.steps.machine import Run
from lab.steps.outlook import UP, State
from lab.words import Newcomer, Target
from nodeproc.core.messages import NodeId
from nodeproc.members import removes_first


class ReplaceNode(ChangeMembers, frozen=True, rename={"newcomer": "with"}):
    """Start the new node, `with`, add it to the members, and then remove the member `target`, whether it runs or not.
    Where no node can be added, the member is removed first. Ends when a majority has committed both.

    newcomer: as the `target` of `add_node`.
    """

    word = "replace_node"
    short = "target"
    leaves = (ADDED, REMOVED)
    also = ("start", "resume")
    target: Literal["leader", "follower"] | NodeId
    newcomer: Newcomer

    @property
    def aim(self) -> Target:
        return self.newcomer if isinstance(self.newcomer, int) else ()

    @property
    def leaves_nodes(self) -> frozenset[State]:
        return UP

    def check(self, entry: Entry) -> None:
        if isinstance(self.target, int):
            entry.of("target").check_id(self.target)
        check_newcomer(entry.of("with"), self.newcomer)
        if self.newcomer == self.target:
            entry.of("with").fail(f"found {self.newcomer}, which is the target")

    async def _prepare(self, run: Run, index: int) -> Sequence[Asked]:
        [old], new = run.choose(self.target), newcomer_of(run, self.newcomer)
        await start_all(run, [new], index)
        changes = [addition(run, new), removal(old)]
        return changes[::-1] if removes_first(run.world.member_list, old.node) else changes

    @property
    def _is_one(self) -> bool:
        return True
