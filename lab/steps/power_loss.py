"""`power_loss`: a machine loses its power."""

from __future__ import annotations

from typing import Literal

from lab.steps.step import Fault, Needs
from lab.words import Target


class PowerLoss(Fault, frozen=True):
    """The machine of these nodes loses its power: the process dies and what was not synced is lost, in part or whole.

    mid_write: in the middle of one of its next disk operations.
    tail: drawn: any part of what was not synced may be left. torn: the disk first stops answering, until an entry of
        the log waits for its sync; that entry is left in part.
    """

    word = "power_loss"
    short = "target"
    target: Target
    mid_write: bool = False
    tail: Literal["drawn", "torn"] = "drawn"

    @property
    def needs(self) -> Needs:
        return Needs(layer=True, own_node=True)
