"""`pause`: SIGSTOP."""

from __future__ import annotations

from typing import Any

from lab.steps.machine import Run
from lab.steps.outlook import PAUSED, Outlook
from lab.steps.step import Effect, Fault
from lab.words import Target
from nodeproc.yamlfile import Place


class Pause(Fault, frozen=True):
    """SIGSTOP. Done when the processes are stopped."""

    word = "pause"
    effect = Effect.DOWN
    short = "target"
    target: Target

    def foresee(self, outlook: Outlook, place: Place) -> None:
        outlook.set(self.target, PAUSED)

    async def do(self, run: Run, index: int) -> None:
        for machine in run.choose(self.target):
            role, began = machine.role, run.now_ns()
            hit = machine.running and not machine.paused and await machine.freeze()
            evidence: dict[str, Any] = {"found": "did not run"}
            if machine.running:
                evidence = machine.identity() | {"state": machine.state()}
            run.book.write(self.word, machine.node, role, began, evidence, hit, index)
