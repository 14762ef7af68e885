"""The list of all judges. A new invariant needs a file with its judge and a line here."""

from __future__ import annotations

from typing import Final

from lab.check.agreement import Agreement
from lab.check.elections import Elections
from lab.check.health import Health
from lab.check.judge import Judge
from lab.check.recovery import Recovery
from lab.check.replay import Replay
from lab.check.subscribers import Subscribers

JUDGES: Final[tuple[type[Judge], ...]] = (
    Agreement,  # A1
    Replay,  # A2 to A6
    Elections,  # A7
    Subscribers,  # A8
    Recovery,  # A9
    Health,  # A10
)
"""In the order of the verdict; a judge may use the results of those before it."""
