"""`heal`: clear faults."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, Self

from msgspec import structs

from lab.steps.lot import Lot
from lab.steps.machine import Machine, Run
from lab.steps.orders import NEVER
from lab.steps.outlook import UP, State
from lab.steps.resume import resume
from lab.steps.start import start
from lab.steps.step import Effect, Fault
from lab.words import Target

END_PATIENCE_S = 10.0
"""A node exits within half a second after a failed write; a busy machine needs more."""


class Heal(Fault, frozen=True):
    """`links`: remove all rules on links; `disks`: clear slow, full and failing disks; `clocks`: end the drift of
    clocks; `busy`: end the busy processes; `all`: all of these, and resume the paused nodes and start the stopped nodes
    among `on`; of all nodes also those that have run and are no members yet.

    A clock that was set forward stays so.
    """

    word = "heal"
    effect = Effect.HEALED
    short = "what"
    in_nemesis = False
    drawn_from = 1
    leaves = ()  # There may be nothing to heal.
    also = ("heal", "resume", "start")
    row_for_each = False
    what: Literal["links", "disks", "clocks", "busy", "all"] = "all"
    on: Target = "all"

    @property
    def leaves_nodes(self) -> frozenset[State]:
        return UP if self.what == "all" else frozenset()

    def reduce(self) -> Iterator[Self]:
        yield from super().reduce()
        yield structs.replace(self, on="all")

    @classmethod
    def draw(cls, lot: Lot) -> Self:
        return cls()

    async def do(self, run: Run, index: int) -> None:
        if self.what in ("links", "all"):
            await _heal_links(run, index)
        if self.what in ("disks", "all"):
            await _heal_disks(run)
        if self.what in ("clocks", "all"):
            _heal_clocks(run)
        if self.what in ("busy", "all"):
            run.book.busy_over(await run.world.end_busy())
        if self.what == "all":
            machines = run.choose(self.on) + (_newcomers(run) if self.on == "all" else [])
            if paused := [each for each in machines if each.paused]:
                await resume(run, paused, index)
            if down := [each for each in machines if not each.running]:
                await start(run, down, index)


def _newcomers(run: Run) -> list[Machine]:
    """Return the nodes that have run and are no members yet. Their list may be committed once the links are healed."""
    members = run.world.member_list
    known = {*members.present, *members.removed}
    return [each for node, each in run.world.machines.items() if node not in known and (each.running or each.exits)]


async def _heal_links(run: Run, index: int) -> None:
    """Remove the rules of all links that have one."""
    row, ruled = run.book.begin(Heal.word, index), list(run.book.links)
    if ruled:
        run.book.links_over(ruled, await run.world.set_rule(ruled, None))
        row.write({"links": len(ruled)}, True)


async def _heal_disks(run: Run) -> None:
    """Clear all disk faults. If one made a write fail, the node exits: wait for that, so that a start can follow."""
    for machine in run.world.machines.values():
        run.book.causes.mended(machine.node, machine.starts)
        machine.order(slow_s=0.0, room=NEVER, die_at=NEVER, fail_sync=False, fail_append=False, hang=False)
        if run.book.was_failed(machine):
            await machine.ended(END_PATIENCE_S)
        run.book.healed("disk", machine)


def _heal_clocks(run: Run) -> None:
    """Stop all drifts; a clock that was set forward stays so."""
    for machine in run.world.machines.values():
        machine.set_clock(drift=0.0)
        run.book.healed("clock", machine)
