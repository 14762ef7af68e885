"""`power_loss`: nodes' machines lose power."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Iterator, Sequence
from typing import Any, Literal, Self

from msgspec import structs

from lab.steps.entry import Entry
from lab.steps.lot import Lot
from lab.steps.machine import Machine, Run
from lab.steps.orders import NEVER
from lab.steps.outlook import DOWN, PAUSED, UP, State
from lab.steps.step import Effect, Fault, Needs
from lab.words import Target

TORN_PATIENCE_S, TORN_TRY_S, TORN_LOOK_S = 5.0, 0.25, 0.01
"""How long, how long at a time, and how often a torn power loss looks for a log entry that is not synced."""
MID_WRITE_OPERATIONS = 12
"""A power loss in the middle of a write comes within this many disk operations."""
MID_WRITE_PATIENCE_S = 5.0


class PowerLoss(Fault, frozen=True):
    """The process dies, and all or part of its unsynced data is lost. `mid_write: true`: it dies in the middle of one
    of its next disk operations. `tail: torn`: the log ends in the middle of an entry. `tail: none`: of other
    programs, nothing remains that was not synced.

    tail: drawn: any part of the unsynced data may remain. torn: the disk first stops answering until an entry of the
        log waits for its fdatasync; a part of that entry remains.
    """

    word = "power_loss"
    effect = Effect.DOWN
    short = "target"
    ends_process = True
    acts_on = UP | PAUSED
    target: Target
    mid_write: bool = False
    tail: Literal["drawn", "torn", "none"] = "drawn"

    def check(self, entry: Entry) -> None:
        if not entry.setting.foreign and self.tail == "none":
            entry.at("tail").fail("none is for other programs, which run under a supervisor; allowed: drawn, torn")
        if self.mid_write and self.tail != "drawn":
            entry.at("tail").fail("mid_write draws what it leaves; no other tail may stand beside it")

    @property
    def needs(self) -> Needs:
        return Needs(layer=True, own_node=True, or_supervised=self.tail != "torn")

    @property
    def leaves_nodes(self) -> frozenset[State]:
        return DOWN | UP if self.mid_write else DOWN

    def reduce(self) -> Iterator[Self]:
        yield from super().reduce()
        if self.mid_write:
            yield structs.replace(self, mid_write=False)

    @classmethod
    def draw(cls, lot: Lot) -> Self:
        return cls(target=lot.some(), mid_write=lot.chance(0.5))

    async def do(self, run: Run, index: int) -> None:
        machines, torn = run.choose(self.target), self.tail == "torn"
        rows = [run.book.begin(self.word, index, each) for each in machines]
        running = [each for each in machines if each.running]
        if torn:
            await _wait_for_tears(run, running)
        if self.mid_write:
            await run.world.together([_die_in_a_write(run, each) for each in running if not each.paused])
        alive = [each for each in running if each.running]
        await run.world.together([each.end(signal.SIGKILL) for each in alive])
        for machine, row in zip(machines, rows, strict=True):
            evidence: dict[str, Any] = {"found": "survived SIGKILL" if machine.running else "did not run"}
            hit = machine in running and not machine.running
            if hit:
                machine.order(hang=False, die_at=NEVER)
                loss = machine.cut_power(torn, everything=self.tail == "none")
                evidence = row.identity | {"exit": machine.exits[-1].code} | loss.evidence()
                hit = loss.tear is not None if torn else loss.effect
                if self.mid_write:
                    hit = evidence["in_a_write"] = machine not in alive
            row.write(evidence, hit)
        await run.world.breathe()


async def _wait_for_tears(run: Run, machines: Sequence[Machine]) -> None:
    """Stop all fdatasyncs until an entry of each WAL waits for its fdatasync, at most TORN_PATIENCE_S.

    A leader that hangs sends nothing more. If a follower has synced all that it got until then, another try is needed.
    """
    until = run.now() + TORN_PATIENCE_S
    while True:
        for machine in machines:
            machine.order(hang=True)
        again = run.now() + TORN_TRY_S
        while not (tears := all(each.tearable() for each in machines)) and run.now() < again:
            await asyncio.sleep(TORN_LOOK_S)
        if tears or run.now() >= until:
            return
        for machine in machines:
            machine.order(hang=False)
        await asyncio.sleep(TORN_LOOK_S)


async def _die_in_a_write(run: Run, machine: Machine) -> None:
    """Let the node die in the middle of one of its next disk operations; return when it is gone, or makes none."""
    machine.order(die_at=machine.counts().operations + run.draws.randint(1, MID_WRITE_OPERATIONS))
    await machine.doomed(MID_WRITE_PATIENCE_S)
