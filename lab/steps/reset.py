"""`reset`: connections are broken, once."""

from __future__ import annotations

from typing import Self

from lab.steps.cut import both_ways
from lab.steps.link import receiver
from lab.steps.link_fault import LinkFault
from lab.steps.lot import Lot
from lab.steps.machine import Run
from lab.steps.step import Effect


class Reset(LinkFault, frozen=True):
    """Reset the connections between these nodes (TCP RST at both ends), in both directions, once; the nodes open them
    again.
    """

    word = "reset"
    effect = Effect.LINKS
    at_once = True
    drawn_from = 2

    @classmethod
    def draw(cls, lot: Lot) -> Self:
        source, to = lot.ends()
        return cls(source=source, to=to)

    async def do(self, run: Run, index: int) -> None:
        pairs, began = both_ways(run.pairs(self.source, self.to)), run.now_ns()
        broken = await run.world.reset(pairs)
        evidence = {"pairs": pairs, "connections": broken}
        run.book.write(self.word, *receiver(run, pairs), began, evidence, broken > 0, index)
        await run.world.breathe()
