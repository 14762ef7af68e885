"""What is known about the cluster at one point of a scenario before it runs, from its file alone. Pure."""

from __future__ import annotations

from typing import Final, Literal, TypeAlias

from lab.words import Target, target_parts
from nodeproc.core.messages import NodeId
from nodeproc.yamlfile import Place

State: TypeAlias = Literal["up", "paused", "down"]
ANY: Final[frozenset[State]] = frozenset(("up", "paused", "down"))
UP: Final[frozenset[State]] = frozenset(("up",))
DOWN: Final[frozenset[State]] = frozenset(("down",))
PAUSED: Final[frozenset[State]] = frozenset(("paused",))
_ALL_OF: Final[dict[str, frozenset[State]]] = {"running": UP, "paused": PAUSED, "down": DOWN}
"""Target word -> the state that its nodes certainly have."""


class Outlook:
    """The states that each node may be in, and what the steps so far have done. Each step's foresee() updates it.

    Args:
        ids: the cluster's nodes. started: the nodes that run before the first step. members: number of founders.
        planned: number of messages of the load; 0: only a `load: stop` ends it.
        most: most messages that the scenario sends; None: no limit.
    """

    def __init__(
        self, ids: tuple[NodeId, ...], started: tuple[NodeId, ...], members: int, planned: int, most: int | None
    ) -> None:
        self.least_members = members
        """The number of members, if every removal so far was done and no addition was."""
        self.ids, self.planned, self.most = ids, planned, most
        self._states = {node: UP if node in started else DOWN for node in ids}
        self.anything = False
        """From here on, a trigger or a nemesis may inject its faults at any time, or a node may exit by itself."""
        self.downed = False
        """Some step may have taken a node down."""
        self.damaged: Place | None = None
        """The step that damaged a disk so that its node cannot start; None after a rebuild."""
        self.load: Literal["never", "runs", "stopped"] = "never"

    def may_be(self, node: NodeId) -> frozenset[State]:
        """The states that a node may be in."""
        return ANY if self.anything else self._states[node]

    @property
    def lacks_majority(self) -> str:
        """Why nothing that needs a majority can come true; "" if it may."""
        most_up = sum("up" in self.may_be(node) for node in self.ids)
        if 2 * most_up > self.least_members:
            return ""
        return f"never comes true: at most {most_up} of {self.least_members} nodes run here, and a majority is needed"

    def nobody(self, part: object) -> str:
        """Why this part of a target means no node; "" if it may mean one."""
        if self.anything:
            return ""
        seen = frozenset[State]().union(*self._states.values())
        if part == "paused" and "paused" not in seen:
            return "no step before pauses a node, or all are resumed"
        if part == "down" and "down" not in seen:
            return "no step before takes a node down, or all are started"
        if part == "killed" and not (self.downed and "down" in seen):
            return "no step before kills or stops a node, or all are started"
        if part in ("leader", "follower", "followers", "running") and "up" not in seen:
            return "no node runs"
        return ""

    def set(self, target: Target, states: frozenset[State]) -> None:
        """Set the states of these nodes. A node that a word may or may not mean can also keep its states."""
        parts = target_parts(target)
        if self.damaged is not None and states == UP:
            states = UP | DOWN
        self.downed |= "down" in states
        for node in self.ids:
            if node in parts or "all" in parts:
                self._states[node] = states
            elif any(isinstance(part, str) and self._may_mean(part, node) for part in parts):
                sure = any(_ALL_OF.get(str(part)) == self._states[node] for part in parts)
                self._states[node] = states if sure else self._states[node] | states

    def _may_mean(self, word: str, node: NodeId) -> bool:
        state = self._states[node]
        if word == "paused":
            return "paused" in state
        return "down" in state if word in ("down", "killed") else "up" in state
