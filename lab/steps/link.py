"""`link`: how the frames on some links are treated."""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

from lab.steps.link_fault import LinkFault
from lab.steps.step import Needs
from lab.words import Count, CountOrNone, Duration, Period, Share


class Reorder(Struct, frozen=True, forbid_unknown_fields=True):
    """Hold back every `every`-th matching frame until `behind` later matching frames have overtaken it.

    at_most: it is let go after this time even when nothing overtook it.
    """

    every: Count = 2
    behind: Count = 1
    at_most: Period = Duration(0.1)


class Link(LinkFault, frozen=True):
    """From now on treat frames on the directed links from `source` to `to` so; a later rule for a link replaces it.

    frames: frame types ("APPEND") that it applies to; empty: all.
    delay: each such frame is held this long, in order, and longer as `distribution` says: by up to `jitter` (uniform),
        by `jitter` on average (exponential), or by around nothing with the deviation `jitter` (normal).
    loss, duplicate, corrupt: shares, 0..1, of such frames that vanish, arrive twice or arrive with one byte changed.
    bandwidth: bytes of such frames a second; 0: any number.
    chunk: such frames arrive in pieces of so many bytes, a millisecond apart; 0: whole.
    refuse: the connection is reset and none can be opened; alone.
    A scenario with such a step runs all its links through the proxy. Links of clients are TCP with nothing in between:
    what is on them is delayed, slowed or cut in pieces, or they are refused, and that is all.
    """

    word = "link"
    frames: tuple[str, ...] = ()
    reorder: Reorder | None = None
    delay: Duration = Duration(0)
    jitter: Duration = Duration(0)
    distribution: Literal["uniform", "exponential", "normal"] = "uniform"
    loss: Share = 0.0
    duplicate: Share = 0.0
    corrupt: Share = 0.0
    bandwidth: CountOrNone = 0
    chunk: CountOrNone = 0
    refuse: bool = False

    @property
    def needs(self) -> Needs:
        needs = super().needs
        if not self.chunk or self.about_clients:
            return needs
        why = "frames are not made of bytes in a simulation, and have no pieces"
        return needs._replace(real_time=why, real_time_field="chunk")
