"""`start`: nodes that are down are started."""

from __future__ import annotations

from collections.abc import Iterator

from lab.steps.outlook import UP, Outlook
from lab.steps.step import Fault
from lab.words import Target
from nodeproc.yamlfile import Place


class Start(Fault, frozen=True):
    """Start nodes that are down, all at once. Done when all answer.

    refuses: each must refuse instead, for its disk is damaged: done when all have ended with the exit code of
        corruption and have named the damaged file.
    """

    word = "start"
    short = "target"
    in_nemesis = False
    rows = ("start", "refusal")
    target: Target
    refuses: bool = False

    def foresee(self, outlook: Outlook, place: Place) -> None:
        if not self.refuses:
            outlook.set(self.target, UP)

    def impossible(self, outlook: Outlook) -> Iterator[str]:
        if self.refuses and outlook.damaged is None and not outlook.anything:
            yield "nothing has damaged a disk before, so that no node refuses to start"

    def findings(self) -> Iterator[str]:
        if self.refuses:
            yield self.show()
