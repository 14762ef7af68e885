"""`pause`: SIGSTOP."""

from __future__ import annotations

from lab.steps.outlook import PAUSED, Outlook
from lab.steps.step import Fault
from lab.words import Target
from nodeproc.yamlfile import Place


class Pause(Fault, frozen=True):
    """SIGSTOP. Done when the processes are stopped."""

    word = "pause"
    short = "target"
    target: Target

    def foresee(self, outlook: Outlook, place: Place) -> None:
        outlook.set(self.target, PAUSED)
