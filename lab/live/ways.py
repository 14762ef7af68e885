"""The links of a live run: direct ones, or those that pass the lab's proxy and can be treated."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from lab.course.manifest import HOST
from lab.live.children import Child
from lab.live.proxy import Break, Broken, Count, Evidence, Open, Opened, Order, Treat
from lab.plan.scenario import Scenario
from lab.rundir import RunDir
from lab.steps.machine import RunFailed
from lab.steps.rules import CLIENTS, LinkCounts, Pair, Rule
from nodeproc.core.messages import NodeId


class Ways:
    """All links of a run."""

    def __init__(self) -> None:
        self._proxy: Child | None = None
        self.client_ports: dict[NodeId, int] = {}
        """Where the proxy listens for clients, if it is between them and the nodes."""

    async def open(self, scenario: Scenario, run: RunDir, ports: Mapping[NodeId, int], seed: int) -> dict[Pair, int]:
        """(from, to) -> the port at which `from` reaches `to`: its own, or the proxy's."""
        if not scenario.proxied:
            return {(source, to): ports[to] for source in ports for to in ports}
        self._proxy = await Child.spawn("proxy", "lab.live.proxy", run.proxy_log)
        frames = not scenario.cluster.is_foreign
        answer = await self._ask(Open(HOST, dict(ports), seed, scenario.proxies_clients, frames))
        opened = msgspec.json.decode(answer, type=Opened)
        self.client_ports = {to: port for source, to, port in opened.ports if source == CLIENTS}
        return {(source, to): port for source, to, port in opened.ports}

    async def treat(self, pairs: Sequence[Pair], rule: Rule | None) -> dict[Pair, LinkCounts]:
        """See lab.steps.machine.World."""
        return await self._counted(Treat(tuple(pairs), rule))

    async def reset(self, pairs: Sequence[Pair]) -> int:
        """See lab.steps.machine.World."""
        return msgspec.json.decode(await self._ask(Break(tuple(pairs))), type=Broken).connections

    async def close(self) -> dict[str, Any]:
        """End the proxy; returns what became of every link's frames, for meta.json; empty for direct links."""
        if self._proxy is None:
            return {}
        links = await self._counted(Count())
        await self._proxy.close()
        return {f"{source}-{to}": msgspec.to_builtins(counts) for (source, to), counts in links.items()}

    async def _counted(self, order: Treat | Count) -> dict[Pair, LinkCounts]:
        """Give the proxy an order that it answers with the evidence so far."""
        answer = msgspec.json.decode(await self._ask(order), type=Evidence)
        return {(link.sender, link.receiver): link.counts for link in answer.links}

    async def _ask(self, order: Order) -> bytes:
        if self._proxy is None:
            raise RunFailed("there is no proxy to treat links with")
        return await self._proxy.ask(msgspec.json.encode(order))

    def kill(self) -> None:
        """SIGKILL, without waiting."""
        if self._proxy is not None:
            self._proxy.kill()

    async def gone(self) -> None:
        """Wait for the end of a proxy that was killed."""
        if self._proxy is not None:
            await self._proxy.process.wait()
