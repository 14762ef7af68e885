"""`add_node`: a node is added to the members of the running cluster."""

from __future__ import annotations

from collections.abc import Callable

from lab.steps.changes import ChangeMembers
from lab.steps.entry import Entry
from lab.steps.machine import Machine, Run
from lab.steps.outlook import DOWN, UP, State
from lab.steps.resume import resume
from lab.steps.start import start
from lab.words import target_parts
from nodeproc.core.messages import AddNode as Add
from nodeproc.core.messages import Change, MemberList, NodeId


class AddNode(ChangeMembers, frozen=True):
    """Start these nodes, which are not among the `founders`, and then add them to the members, one after the other.
    Ends when a majority has committed that they have a vote, or were removed again.
    """

    word = "add_node"
    also = ("start", "resume")
    acts_on = DOWN

    @property
    def leaves_nodes(self) -> frozenset[State]:
        return UP

    def check(self, entry: Entry) -> None:
        for part in target_parts(self.target):
            if not isinstance(part, int) or part not in entry.setting.newcomers:
                allowed = ", ".join(map(str, entry.setting.newcomers)) or "none, for all nodes are founders"
                entry.of("target").fail(f"found {part}, allowed the ids of nodes that are no founders: {allowed}")

    def _machines(self, run: Run) -> list[Machine]:
        return [run.world.machines[node] for node in target_parts(self.target) if isinstance(node, int)]

    async def _prepare(self, run: Run, machine: Machine, index: int) -> None:
        if machine.paused:
            await resume(run, [machine], index)
        if not machine.running:
            await start(run, [machine], index)

    def _change(self, run: Run, node: NodeId) -> tuple[Change, Callable[[MemberList], bool]]:
        return Add(node, *run.world.addresses[node]), lambda members: node in members.voters
