"""`cut`: frames on some links are dropped."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated, Self

from msgspec import Meta, structs

from lab.steps.entry import Entry
from lab.steps.link import treat
from lab.steps.link_fault import DRAWN_FRAMES, LinkFault
from lab.steps.lot import Lot
from lab.steps.machine import Run
from lab.steps.rules import Pair, Rule
from lab.steps.step import Needs
from lab.words import named_ids
from nodeproc.core.messages import NodeId

ELECTION_ANSWERS = frozenset({"OK", "SUPPORT", "VOTE"})
"""Frames that only help somebody to win an election: losing them hides nothing from a leader."""
LARGEST_PACKET_BYTES = 65_535
"""Of IP."""
UNTIL_HEALED_S = 86_400.0
"""A delay longer than any run: bytes on a cut link of clients wait for the heal, because TCP loses nothing."""


class Cut(LinkFault, frozen=True):
    """Drop all frames on these directed links from now on; connections stay open. `frames`: only these types; `both`:
    in the other direction too.

    frames: the frame types that are dropped; empty: all.
    larger_than: only packets with more bytes than this are dropped; 0: all. Needs `cluster: {network: kernel}`.
    Data on a cut link of clients is not dropped: it waits for the heal, because TCP loses nothing.
    """

    word = "cut"
    drawn_from = 2
    leaves = ("link",)
    frames: tuple[str, ...] = ()
    both: bool = False
    larger_than: Annotated[int, Meta(ge=0, lt=LARGEST_PACKET_BYTES)] = 0

    def check(self, entry: Entry) -> None:
        super().check(entry)
        self.check_frames(entry, self.frames)
        if self.larger_than and entry.setting.network != "kernel":
            entry.at("larger_than").fail("is about packets; it needs cluster: {network: kernel}")

    @property
    def needs(self) -> Needs:
        needs = super().needs._replace(proxy_fields=("frames",) if self.frames else ())
        if not self.larger_than:
            return needs
        return needs._replace(real_time="simulated frames are not made of packets", real_time_field="larger_than")

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
        rule = structs.replace(
            cut(run, of_clients=self.about_clients), frames=self.frames, larger_than=self.larger_than
        )
        await treat(run, pairs, rule, index)


def cut(run: Run, *, of_clients: bool = False) -> Rule:
    """Return the rule of a cut link. In the proxy, links whose frames are not known carry TCP bytes, which wait for the
    heal.
    """
    if (of_clients or run.is_foreign) and not run.world.drops_packets:
        return Rule(delay=UNTIL_HEALED_S)
    return Rule(loss=1.0)


def both_ways(pairs: Sequence[Pair]) -> tuple[Pair, ...]:
    """Return these links and those in the opposite direction, ascending."""
    return tuple(sorted({*pairs, *((to, source) for source, to in pairs)}))
