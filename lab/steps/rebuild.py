"""`rebuild`: a node loses its disk and starts again, empty."""

from __future__ import annotations

from lab.steps.outlook import UP, Outlook
from lab.steps.step import Fault, Needs
from lab.words import Target
from nodeproc.yamlfile import Place


class Rebuild(Fault, frozen=True):
    """The node loses its disk and starts again, empty, with --rebuild. Done when it answers."""

    word = "rebuild"
    short = "target"
    in_nemesis = False
    rows = ("rebuild", "start")
    ends_process = True
    target: Target

    @property
    def needs(self) -> Needs:
        return Needs(own_node=True)

    def foresee(self, outlook: Outlook, place: Place) -> None:
        outlook.take_down(self.target, then=UP)
        outlook.damaged = None

    def proofs(self) -> tuple[tuple[str, ...], ...]:
        return (("rebuild",),)
