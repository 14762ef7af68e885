"""`heal`: faults are over."""

from __future__ import annotations

from typing import Literal

from lab.steps.step import Fault
from lab.words import Target


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
    what: Literal["links", "disks", "clocks", "busy", "all"] = "all"
    on: Target = "all"
