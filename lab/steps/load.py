"""`load`: the scenario's load is started or stopped."""

from __future__ import annotations

from typing import Literal

from lab.steps.step import Needs, Step


class LoadSwitch(Step, frozen=True):
    """Start the scenario's load, or stop it: nothing new is sent, what is under way is waited for."""

    word = "load"
    short = "do"
    do: Literal["start", "stop"]

    @property
    def needs(self) -> Needs:
        return Needs(load=True)

    @property
    def starts_load(self) -> bool:
        return self.do == "start"

    def sends(self, planned: int) -> int:
        return planned if self.starts_load else 0
