"""`rebuild`: a node loses its disk and starts again, empty."""

from __future__ import annotations

from lab.steps.step import Fault, Needs
from lab.words import Target


class Rebuild(Fault, frozen=True):
    """The node loses its disk and starts again, empty, with --rebuild. Done when it answers."""

    word = "rebuild"
    short = "target"
    in_nemesis = False
    target: Target

    @property
    def needs(self) -> Needs:
        return Needs(own_node=True)
