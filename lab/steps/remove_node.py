"""`remove_node`: a node is removed from the members of the running cluster."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from lab.steps.changes import ChangeMembers
from lab.steps.machine import Run
from lab.steps.outlook import Outlook
from lab.words import target_parts
from nodeproc.core.messages import Change, MemberList, NodeId
from nodeproc.core.messages import RemoveNode as Remove


class RemoveNode(ChangeMembers, frozen=True):
    """Remove these nodes from the members, one after the other; a leader hands over first. Ends when a majority has
    committed the list without them. A removed node stops once it hears of it.
    """

    word = "remove_node"

    def impossible(self, outlook: Outlook) -> Iterator[str]:
        if set(target_parts(self.target)).issuperset(outlook.ids) or self.target == "all":
            yield "removes all members, and the last one can't be removed"

    def _change(self, run: Run, node: NodeId) -> tuple[Change, Callable[[MemberList], bool]]:
        return Remove(node), lambda members: node in members.removed
