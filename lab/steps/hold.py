"""`hold`: wait for the presenter."""

from __future__ import annotations

from lab.steps.machine import Run
from lab.steps.step import Step
from lab.words import Duration, Period
from nodeproc.core.messages import NodeId


class Hold(Step, frozen=True):
    """Wait until the presenter presses Enter, at most `within`. It ends at once in a simulation, on a build server
    (`CI` is set), and where the run is not in the foreground of a terminal.
    """

    word = "hold"
    short = "within"
    hurts = frozenset[NodeId]()
    within: Period = Duration(600)

    async def do(self, run: Run, index: int) -> None:
        await run.hold(self.within)
