"""`start`: nodes that are down are started."""

from __future__ import annotations

from lab.steps.step import Fault
from lab.words import Target


class Start(Fault, frozen=True):
    """Start nodes that are down, all at once. Done when all answer.

    refuses: each must refuse instead, for its disk is damaged: done when all have ended with the exit code of
        corruption and have named the damaged file.
    """

    word = "start"
    short = "target"
    in_nemesis = False
    target: Target
    refuses: bool = False
