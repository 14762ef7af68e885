"""`stop`: SIGTERM."""

from __future__ import annotations

import signal

from lab.steps.kill import end
from lab.steps.machine import Run
from lab.steps.outlook import Outlook
from lab.steps.step import Effect, Fault
from lab.words import Target
from nodeproc.yamlfile import Place


class Stop(Fault, frozen=True):
    """SIGTERM, all at once. Done when the processes are gone."""

    word = "stop"
    effect = Effect.DOWN
    short = "target"
    ends_process = True
    target: Target

    def foresee(self, outlook: Outlook, place: Place) -> None:
        outlook.take_down(self.target)

    async def do(self, run: Run, index: int) -> None:
        await end(run, run.choose(self.target), signal.SIGTERM, index)
