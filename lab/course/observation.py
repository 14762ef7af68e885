"""What a run sees of its nodes, on real processes and in virtual time."""

from __future__ import annotations

from collections.abc import Mapping

from lab.rows import Led
from nodeproc.core.messages import NodeId, Term
from nodeproc.lines import Status


class SeenLeaders:
    """Who said in a STATUS that it leads which term, each once."""

    def __init__(self) -> None:
        self._first: dict[tuple[NodeId, Term], int] = {}

    def look(self, t: int, statuses: Mapping[NodeId, Status]) -> None:
        """Take what nodes answered at t."""
        for node, status in statuses.items():
            if status.role == "leader":
                self._first.setdefault((node, status.term), t)

    def rows(self) -> tuple[Led, ...]:
        return tuple(Led(t, node, term) for (node, term), t in self._first.items())


def as_text(value: object) -> str:
    """A field's value as scenarios write it."""
    return str(value).lower() if isinstance(value, bool) else str(value)
