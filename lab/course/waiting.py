"""What `wait` and `when` wait for: conditions that are looked at again and again until one comes true."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Protocol, TypeAlias, assert_never

from lab.course.load import Tally
from lab.steps import (
    Until,
    UntilAcknowledged,
    UntilAny,
    UntilCaughtUp,
    UntilDelivered,
    UntilEnded,
    UntilEvent,
    UntilIdle,
    UntilLeader,
    UntilLoadDone,
    UntilNewLeader,
    UntilTermChange,
)
from lab.steps.targets import ClusterView, NoSuchTarget, choose
from lab.words import Target
from nodeproc.core.messages import NodeId, SeqNo, Term
from nodeproc.lines import Status

Condition: TypeAlias = Callable[[], Awaitable[bool]]

LOOK_EVERY_S = 0.02
"""Between two looks at the nodes' STATUS while something is waited for."""
QUICK_LOOK_S = 0.005
"""The same for what no node has to be asked for."""


class SeenNodes(Protocol):
    """Of the cluster, what can be seen of it. See lab.course.runner.Nodes."""

    nodes: Any
    statuses: dict[NodeId, Status]

    async def view(self) -> ClusterView: ...

    def count_events(self, nodes: Sequence[NodeId], until: UntilEvent) -> Callable[[], int]: ...


class SeenLoad(Protocol):
    """Of the load, how far it is."""

    @property
    def finished(self) -> bool: ...

    @property
    def total(self) -> Tally: ...


class SeenClients(Protocol):
    """Of the clients that `send` steps name, how many messages wait for an outcome."""

    @property
    def waiting(self) -> int: ...


def look_again_s(until: Until) -> float:
    """Until what is waited for is looked at again."""
    return QUICK_LOOK_S if isinstance(until, UntilEvent | UntilAcknowledged) else LOOK_EVERY_S


class Lookout:
    """Makes conditions of what a scenario waits for.

    Args:
        rng: the run's; draws for `follower`.
    """

    def __init__(self, cluster: SeenNodes, load: SeenLoad | None, named: SeenClients, rng: random.Random) -> None:
        self._cluster, self._load, self._named, self._rng = cluster, load, named, rng
        self._seen: dict[NodeId, SeqNo] = {}
        """How far each node had delivered when it was last looked at."""

    async def condition(self, until: UntilAny, term_before: Term, *, from_now: bool = False) -> Condition:
        """What is waited for, compared with how things stand now.

        Args:
            term_before: the highest that any node showed before the latest fault.
            from_now: only events that are still to come count, not those since the latest fault.
        """
        match until:
            case UntilLeader():
                return lambda: self._agreed(above=0)
            case UntilNewLeader():
                return lambda: self._agreed(above=term_before)
            case UntilTermChange():
                before = (await self.look()).highest_term
                return lambda: self._shows_term_above(before)
            case UntilCaughtUp():
                wanted = (await self.look()).committed
                if until.share < 1:
                    return self._caught_up_in_part(until, wanted)
                return lambda: self._caught_up(until.on, wanted)
            case UntilDelivered():
                return lambda: self._delivered(until.on, until.count)
            case UntilAcknowledged():
                assert self._load is not None
                return self._acknowledged_above(self._load.total.acknowledged + until.count)
            case UntilLoadDone():
                return self._load_is_done
            case UntilIdle():
                return self._is_idle
            case UntilEnded():
                nodes = choose(until.on, await self._cluster.view(), self._rng)
                return lambda: self._ended(nodes)
            case UntilEvent():
                return await self._event_condition(until, from_now)
            case _:
                assert_never(until)

    async def look(self) -> ClusterView:
        """The cluster as it is now."""
        view = await self._cluster.view()
        for node, answer in self._cluster.statuses.items():
            self._seen[node] = answer.delivered_seq
        return view

    async def _agreed(self, above: int) -> bool:
        agreed = (await self._cluster.view()).agreed_leader()
        return agreed is not None and agreed[1] > above

    async def _delivered(self, on: Target, count: int) -> bool:
        view = await self._cluster.view()
        try:
            nodes = choose(on, view, self._rng)
        except NoSuchTarget:
            return False
        return all(view.nodes[node].up and view.nodes[node].delivered_seq >= count for node in nodes)

    async def _ended(self, nodes: Sequence[NodeId]) -> bool:
        return not any(self._cluster.nodes[node].running for node in nodes)

    async def _caught_up(self, on: Target, count: int) -> bool:
        if not await self._delivered(on, count):
            return False
        nodes = choose(on, await self._cluster.view(), self._rng)
        return not any(self._cluster.statuses[node].rebuilding for node in nodes if node in self._cluster.statuses)

    async def _shows_term_above(self, term: Term) -> bool:
        return (await self.look()).highest_term > term

    def _caught_up_in_part(self, until: UntilCaughtUp, wanted: SeqNo) -> Condition:
        before = dict(self._seen)

        async def condition() -> bool:
            view = await self.look()
            try:
                nodes = choose(until.on, view, self._rng)
            except NoSuchTarget:
                return False
            answered = [node for node in nodes if node in self._cluster.statuses]
            for node in answered:  # One that lost its disk has less than it was last seen with.
                before[node] = min(before.get(node, 0), view.nodes[node].delivered_seq)
            return len(answered) == len(nodes) and all(
                view.nodes[node].delivered_seq >= before[node] + until.share * (wanted - before[node]) for node in nodes
            )

        return condition

    def _acknowledged_above(self, wanted: int) -> Condition:
        async def condition() -> bool:
            assert self._load is not None
            return self._load.total.acknowledged >= wanted

        return condition

    async def _load_is_done(self) -> bool:
        assert self._load is not None
        return self._load.finished

    async def _is_idle(self) -> bool:
        if self._named.waiting or (self._load is not None and self._load.total.pending):
            return False
        view = await self._cluster.view()
        delivered = {view.nodes[node].delivered_seq for node in view.up}
        answered = all(node in self._cluster.statuses for node in view.up)
        return answered and len(delivered) == 1 and delivered == {view.committed}

    async def _event_condition(self, until: UntilEvent, from_now: bool) -> Condition:
        nodes = choose(until.on, await self._cluster.view(), self._rng)
        counted = self._cluster.count_events(nodes, until)
        wanted = until.count + (counted() if from_now else 0)

        async def condition() -> bool:
            return counted() >= wanted

        return condition
