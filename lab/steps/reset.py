"""`reset`: connections are reset, once."""

from __future__ import annotations

from typing import Self

from lab.steps.cut import both_ways
from lab.steps.link import receiver
from lab.steps.link_fault import LinkFault
from lab.steps.lot import Lot
from lab.steps.machine import Run
from lab.steps.step import Effect, Needs


class Reset(LinkFault, frozen=True):
    """Reset the connections between these nodes (TCP RST at both ends), in both directions, once; the nodes open them
    again.
    """

    word = "reset"
    effect = Effect.LINKS
    drawn_from = 2

    @property
    def needs(self) -> Needs:
        return super().needs._replace(proxy_fields=("",))

    @classmethod
    def draw(cls, lot: Lot) -> Self:
        source, to = lot.ends()
        return cls(source=source, to=to)

    async def do(self, run: Run, index: int) -> None:
        pairs = both_ways(run.pairs(self.source, self.to))
        row = run.book.begin(self.word, index, receiver(run, pairs))
        broken = await run.world.reset(pairs)
        row.write({"pairs": pairs, "connections": broken}, broken > 0, over=True)
        await run.world.breathe()
