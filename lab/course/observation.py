"""What a run knows of its nodes from their STATUS."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from lab.rows import Led
from lab.steps.machine import Machine
from lab.steps.targets import ClusterView, NodeView
from nodeproc.core.messages import NodeId, Term
from nodeproc.lines import Status


class SeenLeaders:
    """The nodes whose STATUS said that they lead a term, and when each first said so."""

    def __init__(self) -> None:
        self._first: dict[tuple[NodeId, Term], int] = {}

    def take(self, t: int, statuses: Mapping[NodeId, Status]) -> None:
        """Take the answers that nodes gave at t."""
        for node, status in statuses.items():
            if status.role == "leader":
                self._first.setdefault((node, status.term), t)

    def rows(self) -> tuple[Led, ...]:
        """Return one row for each node and term."""
        return tuple(Led(t, node, term) for (node, term), t in self._first.items())


def as_text(value: object) -> str:
    """Return a field's value as scenarios write it."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def view_of(
    machines: Mapping[NodeId, Machine], members: Collection[NodeId], statuses: Mapping[NodeId, Status]
) -> ClusterView:
    """Return the state of all members at this moment.

    Args:
        statuses: the answers of the nodes that answered just now.
    """
    views = {}
    for node, machine in machines.items():
        if node not in members:
            continue
        views[node] = NodeView(machine.running, machine.paused)
        if (answer := statuses.get(node)) is not None:
            views[node] = NodeView(
                machine.running,
                machine.paused,
                answer.role,
                answer.term,
                answer.leader,
                answer.commit_seq,
                answer.delivered_seq,
            )
    down = (machines[node] for node in views if not machines[node].running and machines[node].exits)
    killed = tuple(machine.node for machine in down if machine.exits[-1].asked)
    return ClusterView(views, killed, tuple(node for node in machines if node not in views))
