"""`stop`: SIGTERM."""

from __future__ import annotations

from lab.steps.outlook import Outlook
from lab.steps.step import Fault
from lab.words import Target
from nodeproc.yamlfile import Place


class Stop(Fault, frozen=True):
    """SIGTERM, all at once. Done when the processes are gone."""

    word = "stop"
    short = "target"
    ends_process = True
    target: Target

    def foresee(self, outlook: Outlook, place: Place) -> None:
        outlook.take_down(self.target)
