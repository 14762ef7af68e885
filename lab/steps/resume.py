"""`resume`: SIGCONT."""

from __future__ import annotations

from lab.steps.step import Step
from lab.words import Target


class Resume(Step, frozen=True):
    """SIGCONT. Done when the nodes answer."""

    word = "resume"
    short = "target"
    target: Target
