"""`load`: the scenario's load is started or stopped."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from lab.steps.machine import Run
from lab.steps.outlook import Outlook
from lab.steps.step import Needs, Step
from nodeproc.yamlfile import Place


class LoadSwitch(Step, frozen=True, rename={"switch": "do"}):
    """Start or stop the scenario's load; a stop waits for the messages under way."""

    word = "load"
    short = "switch"
    needs = Needs(load=True)
    switch: Literal["start", "stop"]

    @property
    def starts_load(self) -> bool:
        return self.switch == "start"

    def sends(self, planned: int) -> int:
        return planned if self.starts_load else 0

    def foresee(self, outlook: Outlook, place: Place) -> None:
        outlook.load = "runs" if self.starts_load else "stopped"

    def impossible(self, outlook: Outlook) -> Iterator[str]:
        if self.starts_load and outlook.load == "runs":
            yield "the load runs already; stop it before, or wait for load_done"
        if not self.starts_load and outlook.load == "never":
            yield "the load was not started before"

    async def do(self, run: Run, index: int) -> None:
        if self.switch == "start":
            await run.start_load()
        else:
            await run.stop_load()
