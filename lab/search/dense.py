"""The part that random scenarios with many faults close together share: lab.search.overlap and lab.search.changing.

Pauses are measured in election timeouts, messages flow from the first fault to the last, and single kinds of frames are
late or lost.
"""

from __future__ import annotations

import math
import random
from abc import abstractmethod
from collections.abc import Callable
from typing import ClassVar, Final, TypeAlias

from lab.plan.scenario import Load
from lab.steps import (
    Cut,
    Disk,
    FullRestart,
    Heal,
    Kill,
    Partition,
    Pause,
    PowerLoss,
    Restart,
    Resume,
    Sleep,
    Start,
    Step,
)
from lab.steps.lot import Lot
from lab.steps.reducing import rounded
from lab.words import Duration
from nodeproc.core.messages import NodeId

Steps: TypeAlias = list[Step]

MESSAGES: Final = 150


class Dense(Lot):
    """The random choices of one seed, in the order in which they are made."""

    frames: ClassVar[tuple[str, ...]] = (
        *("APPEND", "APPENDED", "CATCH_UP", "RESUME", "VOTE_REQUEST", "VOTE"),
        *("ELECTION", "SUPPORT", "COORDINATOR", "HEARTBEAT", "HEARTBEAT_ACK"),
    )
    """The types of frames from which a rule of links draws."""

    def __init__(self, seed: int, rng: random.Random, nodes: int) -> None:
        super().__init__(rng, nodes)
        self.seed = seed
        self.heartbeat = rng.choice((0.02, 0.05))
        self.timeout = self.heartbeat * rng.choice((3, 5))
        """Election timeout in seconds, the unit of all other times."""

    def _priorities(self) -> dict[NodeId, int]:
        return dict(zip(self.ids, self.rng.sample(range(1, 10), self.nodes), strict=True)) if self.chance(0.5) else {}

    def _load(self, faults: Steps) -> Load:
        """Send messages from the first fault to the last."""
        lasts = sum(float(step.time) for step in faults if isinstance(step, Sleep))
        rate = float(min(max(round(MESSAGES / max(lasts, 0.5)), 10), 300))
        clients = self.rng.choice((1, 3, 5))
        return Load(clients=clients, rate=rate, size=10, count=MESSAGES, deadline=rounded(self.rng.choice((0.5, 10.0))))

    # ---- faults --------------------------------------------------------------------------------------

    @abstractmethod
    def _makers(self) -> dict[str, Callable[[], Steps]]:
        """Return the kinds of faults, by name."""

    def _usual_makers(self) -> dict[str, Callable[[], Steps]]:
        return {
            "kill": lambda: [Kill.draw(self)],
            "kill two": lambda: [Kill(target=self._two())],
            "start": lambda: [Start.draw(self)],
            "restart": lambda: [Restart.draw(self)],
            "restart two": lambda: [Restart(target=self._two(), how="kill", down=self.short())],
            "full restart": lambda: [FullRestart.draw(self)],
            "power": lambda: [PowerLoss(target=self.one()), Sleep(time=self.short()), Start(target="all")],
            "pause": lambda: [Pause.draw(self)],
            "resume": lambda: [Resume.draw(self)],
            "slow disk": lambda: [Disk(on=self.one(), slow=self._times(0.3, 1.0, 2.0))],
            "healed disks": lambda: [Heal(what="disks")],
            "isolate": lambda: [Partition(kind="isolate", node=self.one())],
            "lost": lambda: [Cut(source=self.one(), to="all", frames=self._frames())],
            "heal links": lambda: [Heal(what="links")],
            "heal": lambda: [Heal.draw(self)],
        }

    def _some_faults(self) -> Callable[[], Steps]:
        """Draw a few kinds of faults; return what draws one of them."""
        rng, makers = self.rng, self._makers()
        some = rng.sample(sorted(makers), rng.randint(3, 7))
        weights = [rng.choice((1, 1, 3)) for _ in some]
        return lambda: makers[rng.choices(some, weights)[0]]()

    def _rest(self) -> Callable[[], Sleep]:
        """Draw how close together the faults are; return what draws one pause."""
        rest = self.timeout * self.rng.choice((0.1, 0.5, 1.5))
        return lambda: Sleep(time=rounded(rest * math.exp(self.rng.gauss(0.0, 1.0))))

    # ---- small choices -------------------------------------------------------------------------------

    def short(self) -> Duration:
        """Draw a time, in election timeouts like all times of this class."""
        return self._times(0.0, 0.5)

    def _two(self) -> tuple[NodeId, ...]:
        return tuple(sorted(self.rng.sample(self.ids, 2)))

    def _frames(self) -> tuple[str, ...]:
        return tuple(sorted(self.rng.sample(self.frames, self.rng.choice((1, 1, 2)))))

    def _times(self, *factors: float) -> Duration:
        """Choose one of the factors; return it times the election timeout."""
        return rounded(self.timeout * self.rng.choice(factors))
