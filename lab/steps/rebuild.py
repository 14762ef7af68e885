"""`rebuild`: a node loses its disk and starts again, empty."""

from __future__ import annotations

from lab.steps.step import Step
from lab.words import Target


class Rebuild(Step, frozen=True):
    """The node loses its disk and starts again, empty, with --rebuild. Done when it answers."""

    word = "rebuild"
    short = "target"
    target: Target
