"""The base of `add_node`, `remove_node` and `replace_node`: the members of the cluster change while it runs.

Other faults are injected while a change is asked for.
"""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple

from lab.steps.entry import Entry
from lab.steps.machine import Machine, Run, StepMissed
from lab.steps.resume import resume
from lab.steps.start import start
from lab.steps.step import Fault, Needs
from lab.steps.targets import NoSuchTarget
from lab.words import Duration, Newcomer, Period
from nodeproc.core.messages import AddNode, Change, MemberList, RemoveNode

LOOK_EVERY_S: Final = 0.02
ASK_EVERY_S: Final = 0.2
"""A change that is refused, or whose leader is gone, is asked for again."""
ADDED: Final = "add_node"
REMOVED: Final = "remove_node"


class Asked(NamedTuple):
    """One change that is asked for. is_done: whether a committed list shows it."""

    word: str
    """Of its row: ADDED or REMOVED."""
    machine: Machine
    change: Change
    is_done: Callable[[MemberList], bool]


class ChangeMembers(Fault, frozen=True, kw_only=True):
    """Base of the changes of the members.

    within: for each change.
    must: the step is missed if a change is not done in its time. Otherwise the row says what was found.
    """

    row_for_each = False
    needs = Needs(own_node=True)
    within: Period = Duration(10)
    must: bool = True

    @abstractmethod
    async def _prepare(self, run: Run, index: int) -> Sequence[Asked]:
        """Start the new nodes; return the changes in their order."""

    async def do(self, run: Run, index: int) -> None:
        asked_by = run.book.asked
        changes = await self._prepare(run, index)
        async with run.others_allowed():
            found = ""
            for each in changes:
                row = run.book.begin(each.word, index, each.machine, asked_by)
                if not (found and self._is_one):
                    found = await self._ask(run, each)
                members = run.world.member_list
                evidence: dict[str, Any] = {"version": members.version, "voters": list(members.voters)}
                row.write(row.identity | evidence | ({"found": found} if found else {}), not found)
                if found and self.must and each.machine.node not in members.removed:
                    raise StepMissed(found)

    @property
    def _is_one(self) -> bool:
        """True if the changes belong together: after one that is not done, the next is not asked for."""
        return False

    async def _ask(self, run: Run, asked: Asked) -> str:
        """Ask the leader, again and again, until the change is done or the time is over; return the last refusal, or
        "" if it is done.
        """
        found, ask_at, until = "no leader", 0.0, run.now() + float(self.within)
        while not asked.is_done(members := run.world.member_list):
            if asked.change.node in members.removed:
                return "the node was removed"
            if run.now() >= until:
                return found
            leader = (await run.view_now()).leader
            if leader and run.now() >= ask_at:
                refused = await run.world.change_members(leader, asked.change)
                found = refused or "the change was begun and is not done"
                ask_at = run.now() + ASK_EVERY_S
            await asyncio.sleep(LOOK_EVERY_S)
        return ""


def addition(run: Run, machine: Machine) -> Asked:
    """Return the change that gives this machine's node a vote."""
    node = machine.node
    return Asked(ADDED, machine, AddNode(node, *run.world.addresses[node]), lambda members: node in members.voters)


def removal(machine: Machine) -> Asked:
    node = machine.node
    return Asked(REMOVED, machine, RemoveNode(node), lambda members: node in members.removed)


def check_newcomer(entry: Entry, newcomer: Newcomer) -> None:
    """Refuse an id that no newcomer can have. entry: of the newcomer. Raises ConfigError."""
    newcomers = entry.setting.newcomers
    if newcomer not in newcomers and (newcomer != "newcomer" or not newcomers):
        allowed = ", ".join(map(str, ("newcomer", *newcomers))) if newcomers else "none, for all nodes are founders"
        entry.fail(f"found {newcomer}, allowed the ids of nodes that are no founders: {allowed}")


def newcomer_of(run: Run, newcomer: Newcomer) -> Machine:
    """Return the machine that is meant. Raises NoSuchTarget."""
    world = run.world
    if newcomer != "newcomer":
        return world.machines[newcomer]
    known = {*world.members, *world.member_list.removed}
    for node in sorted(world.machines):
        if node not in known:
            return world.machines[node]
    raise NoSuchTarget("no node is a newcomer now: all were members")


async def start_all(run: Run, machines: Sequence[Machine], index: int) -> None:
    """Start and resume these machines' nodes, if they do not run."""
    for machine in machines:
        if machine.paused:
            await resume(run, [machine], index)
        if not machine.running:
            await start(run, [machine], index)
