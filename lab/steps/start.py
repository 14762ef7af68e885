"""`start`: nodes that are down are started."""

from __future__ import annotations

from lab.steps.step import Step
from lab.words import Target


class Start(Step, frozen=True):
    """Start nodes that are down, all at once. Done when all answer.

    refuses: each must refuse instead, for its disk is damaged: done when all have ended with the exit code of
        corruption and have named the damaged file.
    """

    word = "start"
    short = "target"
    target: Target
    refuses: bool = False
