"""`heal`: faults are over."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, Self

from msgspec import structs

from lab.steps.outlook import UP, Outlook
from lab.steps.step import Fault
from lab.words import Target
from nodeproc.core.messages import NodeId
from nodeproc.yamlfile import Place


class Heal(Fault, frozen=True):
    """Faults are over.

    links: all links are straight again. disks: no disk is slow, full or failing. clocks: none drifts; what was jumped
    stays. busy: the busy processes are gone. all: all of these; besides, what is paused is resumed and what is down is
    started.
    on: the nodes that `all` wakes and starts.
    """

    word = "heal"
    short = "what"
    in_nemesis = False
    rows = ("heal", "resume", "start")
    what: Literal["links", "disks", "clocks", "busy", "all"] = "all"
    on: Target = "all"

    def foresee(self, outlook: Outlook, place: Place) -> None:
        if self.what == "all":
            outlook.set(self.on, UP)

    def reduce(self) -> Iterator[Self]:
        yield from super().reduce()
        yield structs.replace(self, on="all")

    def proofs(self) -> tuple[tuple[str, ...], ...]:
        return ()  # There may be nothing to heal.

    def nodes_with_rows(self, ids: tuple[NodeId, ...]) -> tuple[NodeId, ...]:
        return ()  # What it does depends on how they are.
