"""The base of `add_node` and `remove_node`: the members of the cluster change while it runs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Final

from lab.steps.machine import Machine, Run, StepMissed
from lab.steps.step import Effect, Fault, Needs
from lab.words import Duration, Period, Target
from nodeproc.core.messages import Change, MemberList, NodeId

LOOK_EVERY_S: Final = 0.02
ASK_EVERY_S: Final = 0.2
"""A change that is refused, or whose leader is gone, is asked for again."""


class ChangeMembers(Fault, frozen=True):
    """Base of the changes of the members.

    must: the step is missed if the change is not done in its time. Otherwise the row says what was found.
    """

    effect = Effect.NONE
    short = "target"
    row_for_each = False
    in_nemesis = False
    needs = Needs(own_node=True)
    target: Target
    within: Period = Duration(10)
    must: bool = True

    def _change(self, run: Run, node: NodeId) -> tuple[Change, Callable[[MemberList], bool]]:
        """Return the change, and the test whether a committed list shows that it is done."""
        raise NotImplementedError(self.word)

    async def do(self, run: Run, index: int) -> None:
        machines = self._machines(run)
        for machine in machines:
            await self._prepare(run, machine, index)
        for machine in machines:
            row = run.book.begin(self.word, index, machine)
            change, is_done = self._change(run, machine.node)
            refused = await self._ask(run, change, is_done)
            members = run.world.member_list
            done = is_done(members)
            evidence: dict[str, Any] = {"version": members.version, "voters": list(members.voters)}
            row.write(row.identity | evidence | ({} if done else {"found": refused}), done)
            if self.must and not done and machine.node not in members.removed:
                raise StepMissed(refused)

    def _machines(self, run: Run) -> list[Machine]:
        return run.choose(self.target)

    async def _prepare(self, run: Run, machine: Machine, index: int) -> None:
        """Do what comes before the first request for any node."""

    async def _ask(self, run: Run, change: Change, is_done: Callable[[MemberList], bool]) -> str:
        """Ask the leader, again and again, until the change is done or the time is over; return the last refusal."""
        found, ask_at, until = "no leader", 0.0, run.now() + float(self.within)
        while not is_done(members := run.world.member_list) and run.now() < until:
            if change.node in members.removed:
                return "the node was removed"
            leader = (await run.view_now()).leader
            if leader and run.now() >= ask_at:
                found = await run.world.change_members(leader, change) or "the change was begun and is not done"
                ask_at = run.now() + ASK_EVERY_S
            await asyncio.sleep(LOOK_EVERY_S)
        return found
