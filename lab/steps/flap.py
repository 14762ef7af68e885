"""`flap`: links fail and come back several times."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Annotated, Self

from msgspec import Meta, structs

from lab.steps.cut import both_ways, cut
from lab.steps.link import treat
from lab.steps.link_fault import LinkFault
from lab.steps.lot import Lot
from lab.steps.machine import Run
from lab.steps.reducing import shorter
from lab.words import Duration, Period
from nodeproc.core.messages import NodeId


class Flap(LinkFault, frozen=True, rename={"lasts": "down_for", "rests": "up_for"}):
    """Cut the links between these nodes and heal them again, several times, in both directions; ends when they are
    healed for the last time.

    times: number of cuts. lasts: duration of each cut. rests: time between two cuts, in which the links work.
    """

    word = "flap"
    leaves = ("link",)
    times: Annotated[int, Meta(ge=1, le=1000)] = 5
    lasts: Period = Duration(0.15)
    rests: Period = Duration(0.15)

    def reduce(self) -> Iterator[Self]:
        yield from super().reduce()
        if self.times > 1:
            yield structs.replace(self, times=self.times // 2)
        yield from shorter(self, "lasts")
        yield from shorter(self, "rests")

    @classmethod
    def draw(cls, lot: Lot) -> Self:
        source, to = lot.ends()
        lasts, rests = lot.time(0.02, 0.2, 1.0), lot.time(0.02, 0.2, 1.0)
        return cls(source=source, to=to, times=lot.rng.randint(2, 6), lasts=lasts, rests=rests)

    @property
    def hurts(self) -> frozenset[NodeId]:
        return frozenset()  # At its end the links work.

    async def do(self, run: Run, index: int) -> None:
        pairs = both_ways(run.pairs(self.source, self.to))
        rule = cut(run, of_clients=self.about_clients)
        for left in reversed(range(self.times)):
            await treat(run, pairs, rule, index)
            await asyncio.sleep(self.lasts)
            run.book.links_over(pairs, await run.world.set_rule(pairs, None))
            if left:
                await asyncio.sleep(self.rests)
