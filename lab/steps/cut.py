"""`cut`: frames on some links are dropped."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Self

from msgspec import structs

from lab.steps.entry import Entry
from lab.steps.link import treat
from lab.steps.link_fault import DRAWN_FRAMES, LinkFault
from lab.steps.lot import Lot
from lab.steps.machine import Run
from lab.steps.rules import Pair, Rule
from lab.words import named_ids
from nodeproc.core.messages import NodeId

ELECTION_ANSWERS = frozenset({"OK", "SUPPORT", "VOTE"})
"""Frames that only help somebody to win an election: losing them hides nothing from a leader."""
UNTIL_HEALED_S = 86_400.0
"""A delay longer than any run: bytes on a cut link of clients wait for the heal, because TCP loses nothing."""


class Cut(LinkFault, frozen=True):
    """Drop all frames on these directed links from now on; connections stay open. `frames`: only these types; `both`:
    in the other direction too.

    frames: the frame types that are dropped; empty: all.
    Data on a cut link of clients is not dropped: it waits for the heal, because TCP loses nothing.
    """

    word = "cut"
    drawn_from = 2
    leaves = ("link",)
    frames: tuple[str, ...] = ()
    both: bool = False

    def check(self, entry: Entry) -> None:
        super().check(entry)
        self.check_frames(entry, self.frames)

    def reduce(self) -> Iterator[Self]:
        yield from super().reduce()
        if self.both:
            yield structs.replace(self, both=False)

    @classmethod
    def draw(cls, lot: Lot) -> Self:
        frames = (lot.rng.choice(DRAWN_FRAMES),) if lot.chance(0.3) else ()
        source, to = lot.ends()
        return cls(source=source, to=to, frames=frames, both=lot.chance(0.3))

    @property
    def hurts(self) -> frozenset[NodeId] | None:
        harmless = ELECTION_ANSWERS
        if self.source == "all" and not self.both:  # A node that gets no records keeps no other leader from committing.
            harmless |= {"APPEND"}
        if not harmless.issuperset(self.frames):
            return None  # The frames that still pass may hide the loss from a leader: the protocol promises nothing.
        return named_ids(self.source) or named_ids(self.to)

    async def do(self, run: Run, index: int) -> None:
        pairs = run.pairs(self.source, self.to)
        if self.both:
            pairs = both_ways(pairs)
        await treat(run, pairs, cut(run, self.frames, of_clients=self.about_clients), index)


def cut(run: Run, frames: tuple[str, ...] = (), *, of_clients: bool = False) -> Rule:
    """Return the rule of a cut link. Links whose frames are not known carry TCP bytes, which wait for the heal."""
    if of_clients or run.is_foreign:
        return Rule(delay=UNTIL_HEALED_S)
    return Rule(frames=frames, loss=1.0)


def both_ways(pairs: Sequence[Pair]) -> tuple[Pair, ...]:
    """Return these links and those in the opposite direction, ascending."""
    return tuple(sorted({*pairs, *((to, source) for source, to in pairs)}))
