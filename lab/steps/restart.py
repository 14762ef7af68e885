"""`restart` and `full_restart`: nodes are taken down and started again."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, Self

from lab.steps.outlook import UP, Outlook
from lab.steps.reducing import shorter
from lab.steps.step import Fault
from lab.words import Duration, Target
from nodeproc.yamlfile import Place


class Restart(Fault, frozen=True, rename={"down": "down_for"}):
    """Take nodes down and start them again, one after the other. Done when the last one answers.

    how: stop (SIGTERM) or kill (SIGKILL).
    down: how long each stays down.
    """

    word = "restart"
    short = "target"
    rows = ("stop", "kill", "start")
    target: Target
    how: Literal["stop", "kill"] = "stop"
    down: Duration = Duration(0)

    def foresee(self, outlook: Outlook, place: Place) -> None:
        outlook.take_down(self.target, then=UP)

    def reduce(self) -> Iterator[Self]:
        yield from super().reduce()
        yield from shorter(self, "down", least=Duration(0))

    def proofs(self) -> tuple[tuple[str, ...], ...]:
        return ((self.how,), ("start",))


class FullRestart(Fault, frozen=True, rename={"down": "down_for"}):
    """Take all running nodes down at once, then start all nodes. Done when all answer."""

    word = "full_restart"
    short = "how"
    rows = ("stop", "kill", "start")
    how: Literal["stop", "kill"]
    down: Duration = Duration(0)

    def foresee(self, outlook: Outlook, place: Place) -> None:
        outlook.take_down("all", then=UP)

    def reduce(self) -> Iterator[Self]:
        yield from super().reduce()
        yield from shorter(self, "down", least=Duration(0))

    def proofs(self) -> tuple[tuple[str, ...], ...]:
        return ((self.how,), ("start",))
