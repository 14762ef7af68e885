"""The links of a live run: direct, or through the lab's proxy, which obeys rules."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from lab.course.manifest import HOST
from lab.live.children import Child, Children
from lab.live.proxy import Break, Broken, Count, Evidence, Open, Opened, Order, SetRule
from lab.plan.scenario import Scenario
from lab.rundir import RunDir
from lab.steps.machine import RunFailed
from lab.steps.rules import CLIENTS, LinkCounts, Pair, Rule
from nodeproc.core.messages import NodeId


class LiveLinks:
    """All links of a run."""

    def __init__(self, children: Children) -> None:
        self._children = children
        self._proxy: Child | None = None
        self.client_ports: dict[NodeId, int] = {}
        """The proxy's ports for clients; empty if clients connect to the nodes directly."""

    async def open(self, scenario: Scenario, run: RunDir, ports: Mapping[NodeId, int], seed: int) -> dict[Pair, int]:
        """Return (from, to) -> the port at which `from` reaches `to`: the node's own, or the proxy's."""
        if not scenario.proxied:
            return {(source, to): ports[to] for source in ports for to in ports}
        self._proxy = await self._children.spawn("proxy", "lab.live.proxy", run.proxy_log)
        frames = not scenario.cluster.is_foreign
        answer = await self._ask(Open(HOST, dict(ports), seed, scenario.proxies_clients, frames))
        opened = msgspec.json.decode(answer, type=Opened)
        self.client_ports = {to: port for source, to, port in opened.ports if source == CLIENTS}
        return {(source, to): port for source, to, port in opened.ports}

    async def set_rule(self, pairs: Sequence[Pair], rule: Rule | None) -> dict[Pair, LinkCounts]:
        """See lab.steps.machine.World."""
        return await self._counted(SetRule(tuple(pairs), rule))

    async def reset(self, pairs: Sequence[Pair]) -> int:
        """See lab.steps.machine.World."""
        return msgspec.json.decode(await self._ask(Break(tuple(pairs))), type=Broken).connections

    async def close(self) -> dict[str, Any]:
        """End the proxy; return the counts of every link for meta.json, {} if there is no proxy."""
        if self._proxy is None:
            return {}
        links = await self._counted(Count())
        await self._proxy.close()
        return {f"{source}-{to}": msgspec.to_builtins(counts) for (source, to), counts in links.items()}

    async def _counted(self, order: SetRule | Count) -> dict[Pair, LinkCounts]:
        """Give the proxy an order that it answers with the evidence so far."""
        answer = msgspec.json.decode(await self._ask(order), type=Evidence)
        return {(link.sender, link.receiver): link.counts for link in answer.links}

    async def _ask(self, order: Order) -> bytes:
        if self._proxy is None:
            raise RunFailed("there is no proxy that could obey rules for links")
        return await self._proxy.ask(msgspec.json.encode(order))
