"""What a run sees of its nodes, on real processes and in virtual time."""

from __future__ import annotations

from collections.abc import Mapping

from lab.rows import Led
from lab.steps.machine import Machine
from lab.steps.targets import ClusterView, NodeView
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


def view_of(machines: Mapping[NodeId, Machine], statuses: Mapping[NodeId, Status]) -> ClusterView:
    """The nodes at this moment.

    Args:
        statuses: what those that were asked just now have answered.
    """
    views = {}
    for node, machine in machines.items():
        answer = statuses.get(node)
        if answer is None:
            views[node] = NodeView(machine.running, machine.paused)
        else:
            views[node] = NodeView(
                running=machine.running,
                paused=machine.paused,
                role=answer.role,
                term=answer.term,
                leader=answer.leader,
                commit_seq=answer.commit_seq,
                delivered_seq=answer.delivered_seq,
            )
    down = (machine for machine in machines.values() if not machine.running and machine.exits)
    return ClusterView(views, tuple(machine.node for machine in down if machine.exits[-1].asked))
