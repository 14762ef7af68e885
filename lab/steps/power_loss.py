"""`power_loss`: a machine loses its power."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, Self

from msgspec import structs

from lab.steps.entry import Entry
from lab.steps.outlook import DOWN, UP, Outlook
from lab.steps.step import Fault, Needs
from lab.words import Target
from nodeproc.yamlfile import Place


class PowerLoss(Fault, frozen=True):
    """The machine of these nodes loses its power: the process dies and what was not synced is lost, in part or whole.

    mid_write: in the middle of one of its next disk operations.
    tail: drawn: any part of what was not synced may be left. torn: the disk first stops answering, until an entry of
        the log waits for its sync; that entry is left in part.
    """

    word = "power_loss"
    short = "target"
    ends_process = True
    target: Target
    mid_write: bool = False
    tail: Literal["drawn", "torn"] = "drawn"

    def check(self, entry: Entry) -> None:
        if self.mid_write and self.tail != "drawn":
            entry.at("tail").fail("what mid_write leaves is drawn, so that nothing else may be asked for")

    @property
    def needs(self) -> Needs:
        return Needs(layer=True, own_node=True)

    def foresee(self, outlook: Outlook, place: Place) -> None:
        outlook.take_down(self.target, DOWN | UP if self.mid_write else DOWN)

    def reduce(self) -> Iterator[Self]:
        yield from super().reduce()
        if self.mid_write:
            yield structs.replace(self, mid_write=False)
