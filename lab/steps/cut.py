"""`cut`: frames on some links vanish."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Self

from msgspec import structs

from lab.steps.entry import Entry
from lab.steps.link_fault import LinkFault


class Cut(LinkFault, frozen=True):
    """Frames on the directed links from `source` to `to` vanish silently from now on; connections stay open.

    frames: frame types that it applies to; empty: all.
    both: in the other direction too.
    What is on a cut link of clients does not vanish but waits for the heal, as TCP has it.
    """

    word = "cut"
    rows = ("link",)
    frames: tuple[str, ...] = ()
    both: bool = False

    def check(self, entry: Entry) -> None:
        super().check(entry)
        self.check_frames(entry, self.frames)

    def reduce(self) -> Iterator[Self]:
        yield from super().reduce()
        if self.both:
            yield structs.replace(self, both=False)
