"""The plan of a load: which client sends what and when. All of it follows from the seed. Pure."""

from __future__ import annotations

from msgspec import Struct

from lab.plan.scenario import Load
from nodeproc.core.messages import NodeId

FIRST_SUBSCRIBER = 900_001
"""Client id of the first subscriber, higher than the ids that scenarios use."""


class ClientPlan(Struct, frozen=True):
    """The plan of one client of a load.

    addresses: nodes in the order in which the client tries them.
    interval_s: open loop: message n is due interval_s * (n - 1) + phase_s after the start; 0 for a closed loop.
    in_flight: closed loop: number of messages without outcome; 0 for an open loop.
    count: number of messages to send; None: until stopped.
    """

    client: int
    addresses: tuple[NodeId, ...]
    interval_s: float
    phase_s: float
    in_flight: int
    count: int | None
    size: int
    seed: int

    def due_s(self, n: int) -> float:
        """Return when message n should be sent, in seconds after the start. Open loop only."""
        return self.phase_s + (n - 1) * self.interval_s

    def due_count(self, elapsed_s: float) -> int:
        """Return how many messages should have been sent this long after the start. Open loop only."""
        if elapsed_s < self.phase_s:
            return 0
        due = int((elapsed_s - self.phase_s) / self.interval_s + 1e-9) + 1
        return due if self.count is None else min(due, self.count)


def client_plans(load: Load, via: tuple[NodeId, ...], seed: int) -> tuple[ClientPlan, ...]:
    """Return the plan of each client.

    Args:
        via: the nodes of load.via when the load starts, at least one.

    Returns:
        Plans in the order of client ids. Counts add up to load.count, rates to load.rate; phases are spread evenly.
    """
    interval_s = load.clients / load.rate if load.rate is not None else 0.0
    plans = []
    for index in range(load.clients):
        turn = index % len(via)
        count = None
        if load.count is not None:
            count = load.count // load.clients + (1 if index < load.count % load.clients else 0)
        plans.append(
            ClientPlan(
                client=load.first_client + index,
                addresses=via[turn:] + via[:turn],
                interval_s=interval_s,
                phase_s=interval_s * index / load.clients,
                in_flight=load.in_flight or 0,
                count=count,
                size=load.size,
                seed=seed,
            )
        )
    return tuple(plans)


def share(plans: tuple[ClientPlan, ...], workers: int) -> tuple[tuple[ClientPlan, ...], ...]:
    """Distribute the plans over workers in turn. No share is empty, so there may be fewer shares than workers."""
    return tuple(plans[index::workers] for index in range(min(workers, len(plans))))
