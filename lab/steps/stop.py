"""`stop`: SIGTERM."""

from __future__ import annotations

from lab.steps.kill import Ending


class Stop(Ending, frozen=True):
    """SIGTERM. Ends when the processes are gone."""

    word = "stop"
