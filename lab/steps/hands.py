"""`hands`: steps that a person orders while the run goes on."""

from __future__ import annotations

from lab.steps.machine import Run
from lab.steps.outlook import Outlook
from lab.steps.step import Needs, Step
from lab.words import Duration, Period
from nodeproc.core.messages import NodeId
from nodeproc.yamlfile import Place


class Hands(Step, frozen=True):
    """Do the steps that a person orders, until the person ends the session, at most `within`. It ends at once unless
    `run_lab.py hands` or `run_lab.py serve` carries it out.

    The run's scenario.yml has the ordered steps in its place, with the time between them.
    """

    word = "hands"
    short = "within"
    hurts = frozenset[NodeId]()
    needs = Needs(proxy=True, client_proxy=True, layer=True, own_node=True, proxy_fields=("",))
    within: Period = Duration(1800)

    def foresee(self, outlook: Outlook, place: Place) -> None:
        outlook.anything = True

    async def do(self, run: Run, index: int) -> None:
        """Nobody orders a step; lab.course.by_hand takes the place of this method where somebody may."""
