"""`restart` and `full_restart`: nodes are taken down and started again."""

from __future__ import annotations

from typing import Literal

from lab.steps.step import Fault
from lab.words import Duration, Target


class Restart(Fault, frozen=True, rename={"down": "down_for"}):
    """Take nodes down and start them again, one after the other. Done when the last one answers.

    how: stop (SIGTERM) or kill (SIGKILL).
    down: how long each stays down.
    """

    word = "restart"
    short = "target"
    target: Target
    how: Literal["stop", "kill"] = "stop"
    down: Duration = Duration(0)


class FullRestart(Fault, frozen=True, rename={"down": "down_for"}):
    """Take all running nodes down at once, then start all nodes. Done when all answer."""

    word = "full_restart"
    short = "how"
    how: Literal["stop", "kill"]
    down: Duration = Duration(0)
