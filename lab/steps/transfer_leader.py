"""`transfer_leader`: the leader transfers its leadership to a follower of its choice."""

from __future__ import annotations

import asyncio
from typing import Any, Final, Self

from lab.steps.lot import Lot
from lab.steps.machine import Machine, Run
from lab.steps.outlook import UP
from lab.steps.step import Effect, Fault, Needs
from lab.words import Target
from nodeproc.core.messages import NodeId

PATIENCE_S: Final = 5.0
"""A node reports a transfer that has failed, or is not possible, long before."""
LOOK_EVERY_S: Final = 0.02


class TransferLeader(Fault, frozen=True):
    """Ask these nodes to transfer their leadership (SIGUSR1). Ends when another node leads, or when the node has
    reported why none does.
    """

    word = "transfer_leader"
    effect = Effect.NONE
    short = "target"
    hurts = frozenset[NodeId]()
    needs = Needs(own_node=True)
    acts_on = UP
    target: Target = "leader"

    @classmethod
    def draw(cls, lot: Lot) -> Self:
        return cls(target="all")

    async def do(self, run: Run, index: int) -> None:
        for machine in run.choose(self.target):
            row = run.book.begin(self.word, index, machine)
            if not machine.running or machine.paused:
                row.write({"found": "paused" if machine.running else "does not run"}, False)
                continue
            evidence, effect = await _transfer(run, machine)
            row.write(row.identity | evidence, effect)


async def _transfer(run: Run, machine: Machine) -> tuple[dict[str, Any], bool]:
    """Ask one node; return the evidence, and whether another node leads."""
    term = (await run.view_now()).highest_term
    refused = run.world.count_events([machine.node], "transfer_failed", {})
    before, until = refused(), run.now() + PATIENCE_S
    machine.transfer()
    while run.now() < until and machine.running:
        await asyncio.sleep(LOOK_EVERY_S)
        view = await run.view_now()
        if view.highest_term > term and view.leader not in (0, machine.node):
            return {"leader": view.leader, "term": view.highest_term}, True
        if refused() > before:
            return {"found": "no transfer"}, False
    return {"found": "no answer"}, False
