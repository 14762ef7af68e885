"""Random choices for drawn scenarios. Pure."""

from __future__ import annotations

import random
from typing import Literal

from lab.steps.reducing import rounded
from lab.words import Duration, Target
from nodeproc.core.messages import NodeId


class Lot:
    """Draws nodes, times and shares from one random generator.

    Args:
        nodes: the number of nodes in the cluster.
    """

    def __init__(self, rng: random.Random, nodes: int) -> None:
        self.rng, self.nodes = rng, nodes
        self.ids = range(1, nodes + 1)

    def chance(self, share: float) -> bool:
        """Return True with this probability."""
        return self.rng.random() < share

    def one(self) -> NodeId:
        return self.rng.choice(self.ids)

    def some(self) -> Target:
        """Draw one node, seldom two."""
        return tuple(sorted({self.one() for _ in range(self.rng.choice((1, 1, 1, 2)))}))

    def most(self) -> tuple[NodeId, ...]:
        """Draw a majority of the nodes, or more."""
        return tuple(sorted(self.rng.sample(self.ids, self.rng.randint(self.nodes // 2 + 1, self.nodes))))

    def ends(self) -> tuple[NodeId | Literal["all"], NodeId | Literal["all"]]:
        """Draw the ends of links: from one node to one, to all, from all to one, or from all to all."""
        source, to = self.rng.sample(self.ids, 2)
        return self.rng.choice(((source, to), (source, "all"), ("all", to), ("all", "all")))

    def how(self) -> Literal["stop", "kill"]:
        """Draw whether a process is stopped or killed."""
        return self.rng.choice(("stop", "kill", "kill"))

    def short(self) -> Duration:
        """Draw how long a node stays down, or the time before the next step."""
        return self.time(0.0, 0.05, 0.3, 1.0)

    def time(self, *seconds: float) -> Duration:
        """Draw one of these times."""
        return rounded(self.rng.choice(seconds))
