"""`kill`: SIGKILL."""

from __future__ import annotations

from lab.steps.step import Fault
from lab.words import Target


class Kill(Fault, frozen=True):
    """SIGKILL, all at once. Done when the processes are gone."""

    word = "kill"
    short = "target"
    target: Target
