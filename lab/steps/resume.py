"""`resume`: SIGCONT."""

from __future__ import annotations

from lab.steps.step import Fault
from lab.words import Target


class Resume(Fault, frozen=True):
    """SIGCONT. Done when the nodes answer."""

    word = "resume"
    short = "target"
    in_nemesis = False
    target: Target
