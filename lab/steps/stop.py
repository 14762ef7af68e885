"""`stop`: SIGTERM."""

from __future__ import annotations

from lab.steps.step import Fault
from lab.words import Target


class Stop(Fault, frozen=True):
    """SIGTERM, all at once. Done when the processes are gone."""

    word = "stop"
    short = "target"
    target: Target
