"""The links of a live run: direct, or through the lab's proxy, which obeys rules. See also lab.live.kernel."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal, Protocol

import msgspec

from lab.course.manifest import HOST
from lab.live.children import Child, Children
from lab.live.processes import HeldPort
from lab.live.proxy import Break, Broken, Count, Evidence, Open, Opened, Order, SetRule
from lab.plan.scenario import Scenario
from lab.rundir import RunDir
from lab.steps.machine import RunFailed
from lab.steps.rules import CLIENTS, LinkCounts, Pair, Rule
from nodeproc.client import Address
from nodeproc.core.messages import NodeId


class Links(Protocol):
    """The links between all nodes, and between clients and nodes, of a run."""

    drops_packets: bool
    """See lab.steps.machine.World."""
    own_host: str
    """The address from which the lab polls nodes; "": any."""

    @property
    def kind(self) -> Literal["direct", "proxied", "kernel"]:
        """See lab.rows.Meta.links."""

    @property
    def clients(self) -> Mapping[NodeId, Address]:
        """The addresses at which clients reach nodes, where these are not the nodes' own."""

    def hold(self, node: NodeId) -> HeldPort:
        """Reserve a port for a node."""

    def namespace(self, node: NodeId) -> AbstractContextManager[None]:
        """Return the context in which the node's program must be started."""

    async def open(
        self, scenario: Scenario, run: RunDir, addresses: Mapping[NodeId, Address], seed: int
    ) -> dict[Pair, Address]:
        """Return (from, to) -> the address at which `from` reaches `to`. addresses: those of the held ports."""

    async def set_rule(self, pairs: Sequence[Pair], rule: Rule | None) -> dict[Pair, LinkCounts]:
        """See lab.steps.machine.World."""

    async def reset(self, pairs: Sequence[Pair]) -> int:
        """See lab.steps.machine.World."""

    async def close(self) -> dict[str, Any]:
        """Return the counts of every link for meta.json; {} for direct links."""


class LiveLinks:
    """Direct links, or those of the proxy if the scenario has rules. See Links."""

    drops_packets = False
    own_host = ""

    def __init__(self, children: Children) -> None:
        self._children = children
        self._proxy: Child | None = None
        self.clients: dict[NodeId, Address] = {}

    @property
    def kind(self) -> Literal["direct", "proxied"]:
        return "direct" if self._proxy is None else "proxied"

    def hold(self, node: NodeId) -> HeldPort:
        return HeldPort()

    def namespace(self, node: NodeId) -> AbstractContextManager[None]:
        return nullcontext()

    async def open(
        self, scenario: Scenario, run: RunDir, addresses: Mapping[NodeId, Address], seed: int
    ) -> dict[Pair, Address]:
        if not scenario.proxied:
            return {(source, to): addresses[to] for source in addresses for to in addresses}
        self._proxy = await self._children.spawn("proxy", "lab.live.proxy", run.proxy_log)
        ports = {node: port for node, (_, port) in addresses.items()}
        frames = not scenario.cluster.is_foreign
        answer = await self._ask(Open(HOST, ports, seed, scenario.proxies_clients, frames, str(run.frames.resolve())))
        opened = msgspec.json.decode(answer, type=Opened)
        self.clients = {to: (HOST, port) for source, to, port in opened.ports if source == CLIENTS}
        return {(source, to): (HOST, port) for source, to, port in opened.ports}

    async def set_rule(self, pairs: Sequence[Pair], rule: Rule | None) -> dict[Pair, LinkCounts]:
        return await self._counted(SetRule(tuple(pairs), rule))

    async def reset(self, pairs: Sequence[Pair]) -> int:
        return msgspec.json.decode(await self._ask(Break(tuple(pairs))), type=Broken).connections

    async def close(self) -> dict[str, Any]:
        """End the proxy. See Links."""
        if self._proxy is None:
            return {}
        links = await self._counted(Count())
        await self._proxy.close()
        return counts_by_name(links)

    async def _counted(self, order: SetRule | Count) -> dict[Pair, LinkCounts]:
        """Give the proxy an order that it answers with the evidence so far."""
        answer = msgspec.json.decode(await self._ask(order), type=Evidence)
        return {(link.sender, link.receiver): link.counts for link in answer.links}

    async def _ask(self, order: Order) -> bytes:
        if self._proxy is None:
            raise RunFailed("there is no proxy that could obey rules for links")
        return await self._proxy.ask(msgspec.json.encode(order))


def counts_by_name(links: Mapping[Pair, LinkCounts]) -> dict[str, Any]:
    """Return the counts as they stand in meta.json: "1-2" -> fields."""
    return {f"{source}-{to}": msgspec.to_builtins(counts) for (source, to), counts in links.items()}
