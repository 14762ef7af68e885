"""`pause`: SIGSTOP."""

from __future__ import annotations

from lab.steps.step import Fault
from lab.words import Target


class Pause(Fault, frozen=True):
    """SIGSTOP. Done when the processes are stopped."""

    word = "pause"
    short = "target"
    target: Target
