"""`resume`: SIGCONT."""

from __future__ import annotations

from lab.steps.outlook import UP, Outlook
from lab.steps.step import Fault
from lab.words import Target
from nodeproc.yamlfile import Place


class Resume(Fault, frozen=True):
    """SIGCONT. Done when the nodes answer."""

    word = "resume"
    short = "target"
    in_nemesis = False
    target: Target

    def foresee(self, outlook: Outlook, place: Place) -> None:
        outlook.set(self.target, UP)
