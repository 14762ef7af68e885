"""Links of the kernel: each node has a network namespace, and a router between all of them drops packets by rules.

    node 1 ── eth0 ┐          ┌ eth0 ── node 2
                   ├ router ──┤
    clients, lab ──┘          └ eth0 ── node 3

TCP itself sees the loss: it retransmits at growing intervals, and connections stay half open. Node N has the address
127.77.0.N, so that it listens on loopback as in other runs; the kernel routes such addresses between namespaces if
asked to. `ip` makes the lines, `nft` the rules; both run with CAP_NET_ADMIN in the lab's own user namespace.

`python -m lab.live.kernel.links` tries all this with two nodes, and prints why it does not work.
"""

from __future__ import annotations

import asyncio
import itertools
import re
import socket
import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any, Final, Literal

from lab.live.kernel.namespaces import Namespace, enter, explained, has_entered, tool, write
from lab.live.links import counts_by_name
from lab.live.processes import HeldPort
from lab.plan.scenario import Scenario
from lab.rundir import RunDir
from lab.steps.machine import RunFailed
from lab.steps.rules import CLIENTS, LinkCounts, Pair, Rule
from nodeproc.client import Address
from nodeproc.core.messages import NodeId

PREFIX: Final = "127.77.0"
CLIENTS_HOST, LAB_HOST, ROUTER_HOST = (f"{PREFIX}.{number}" for number in (254, 253, 252))
"""Clients and the lab itself share a namespace. Rules hold for the clients' address only."""
PATIENCE_S: Final = 5.0
"""For a connection between the two nodes of a trial."""
SHARES: Final = 1_000_000
"""A share of packets is rounded to millionths."""
_COUNTER = re.compile(r"counter (entered|lost)_(\d+)_(\d+) \{\s*packets (\d+)")


def host(node: NodeId) -> str:
    """Return the address of a node, or of all clients."""
    return CLIENTS_HOST if node == CLIENTS else f"{PREFIX}.{node}"


class KernelLinks:
    """See lab.live.links.Links. Descriptors refer to the namespaces until the process ends."""

    kind: Literal["kernel"] = "kernel"
    drops_packets = True
    own_host = LAB_HOST
    clients: Mapping[NodeId, Address] = {}

    def __init__(self) -> None:
        assert has_entered(), "the process must be in a network namespace of its own"
        self._namespaces: dict[NodeId, Namespace] = {}
        self._pairs: list[Pair] = []
        self._router = Namespace()
        with self._router:
            _let_route()
        self._attach(None, CLIENTS_HOST, LAB_HOST)

    def hold(self, node: NodeId) -> HeldPort:
        namespace = self._namespaces[node] = Namespace()
        self._attach(namespace, host(node))
        with namespace:
            return HeldPort(host(node))

    def namespace(self, node: NodeId) -> Namespace:
        return self._namespaces[node]

    async def open(
        self, scenario: Scenario, run: RunDir, addresses: Mapping[NodeId, Address], seed: int
    ) -> dict[Pair, Address]:
        self.connect(addresses)
        return {(source, to): addresses[to] for source, to in self._pairs if to != CLIENTS}

    def connect(self, nodes: Iterable[NodeId]) -> None:
        """Give the router its packet filter, once all nodes have their ports."""
        self._pairs = list(itertools.permutations((CLIENTS, *nodes), 2))
        with self._router:
            tool("nft", "-f", "-", given=table(self._pairs))

    async def set_rule(self, pairs: Sequence[Pair], rule: Rule | None) -> dict[Pair, LinkCounts]:
        counts = self._counts() if rule is not None else {}
        with self._router:
            tool("nft", "-f", "-", given="".join(chain(pair, rule) for pair in pairs))
        return counts or self._counts()  # After the end of a rule, so that no packet is missing that it dropped.

    async def reset(self, pairs: Sequence[Pair]) -> int:
        raise AssertionError("Scenario.kernel_refusals() refuses `reset`")

    async def close(self) -> dict[str, Any]:
        return counts_by_name(self._counts())

    def _counts(self) -> dict[Pair, LinkCounts]:
        with self._router:
            listed = tool("nft", "list", "counters", "table", "ip", "links")
        counts = {pair: LinkCounts() for pair in self._pairs}
        for name, source, to, packets in _COUNTER.findall(listed):
            setattr(counts[int(source), int(to)], name, int(packets))
        return counts

    def _attach(self, namespace: Namespace | None, *hosts: str) -> None:
        """Lay a line from the router to a namespace that gets these addresses; None: to the one of the lab."""
        lan = f"line{hosts[0].rpartition('.')[2]}"
        inside = nullcontext() if namespace is None else namespace
        with inside:
            _let_route()
            far = f"netns /proc/self/fd/{self._router.fd}"
            ip(f"link add eth0 type veth peer name {lan} {far}", fds=(self._router.fd,))
        with self._router:
            ip(
                f"address add {ROUTER_HOST}/32 dev {lan} scope global",
                f"link set {lan} up",
                *(f"route add {each}/32 dev {lan}" for each in hosts),
            )
        with inside:
            ip(
                "link set lo up",
                "address delete 127.0.0.1/8 dev lo",  # It would keep all of 127/8 inside of this namespace.
                "address add 127.0.0.1/32 dev lo",
                *(f"address add {each}/32 dev eth0 scope global" for each in hosts),
                "link set eth0 up",
                f"route add {PREFIX}.0/24 via {ROUTER_HOST} dev eth0 onlink src {hosts[0]}",
            )


def ip(*commands: str, fds: Sequence[int] = ()) -> None:
    """Run `ip` with these commands in the present namespace."""
    tool("ip", "-batch", "-", given="\n".join(commands), fds=fds)


def _let_route() -> None:
    """Let the present namespace forward packets, and use addresses of 127/8 on interfaces other than lo."""
    for setting in ("ip_forward", "conf/all/route_localnet"):
        write(f"/proc/sys/net/ipv4/{setting}", "1")


# ---- the packet filter ---------------------------------------------------------------------------


def table(pairs: Sequence[Pair]) -> str:
    """Return the router's packet filter for nft: a chain and two counters for each directed pair, and no rule yet."""
    counters = [f"counter {name}_{a}_{b} {{}}" for a, b in pairs for name in ("entered", "lost")]
    chains = [f"chain link_{a}_{b} {{}}" for a, b in pairs]
    jumps = ", ".join(f"{host(a)} . {host(b)} : jump link_{a}_{b}" for a, b in pairs)
    hook = f"type filter hook forward priority 0; ip saddr . ip daddr vmap {{ {jumps} }}"
    lines = [*counters, *chains, f"chain forward {{ {hook}", "}"]
    return "\n".join(["table ip links {", *lines, "}", ""]) + "".join(chain(pair, None) for pair in pairs)


def chain(pair: Pair, rule: Rule | None) -> str:
    """Return the commands for nft that replace the rule of one link."""
    name = f"ip links link_{pair[0]}_{pair[1]}"
    commands = [f"flush chain {name}", f"add rule {name} counter name entered_{pair[0]}_{pair[1]}"]
    if rule is not None:
        assert rule == Rule(loss=rule.loss, larger_than=rule.larger_than), f"only packets are dropped, found {rule}"
        share = f"numgen random mod {SHARES} < {max(1, round(rule.loss * SHARES))} " if rule.loss < 1.0 else ""
        size = f"ip length > {rule.larger_than} " if rule.larger_than else ""
        commands.append(f"add rule {name} {size}{share}counter name lost_{pair[0]}_{pair[1]} drop")
    return "".join(f"{command}\n" for command in commands)


# ---- what this machine allows ----------------------------------------------------------------------


def main() -> int:
    """Try it with two nodes. Print why it does not work, and return 1 then."""
    try:
        enter()
        links = KernelLinks()
        addresses = {node: links.hold(node).address for node in (1, 2)}
        links.connect(addresses)
        with links.namespace(1), socket.create_server(addresses[1]) as listener:
            listener.settimeout(PATIENCE_S)
            with links.namespace(2):
                socket.create_connection(addresses[1], PATIENCE_S).close()
            listener.accept()[0].close()
        asyncio.run(links.set_rule([(1, 2)], Rule(loss=1.0)))
    except (OSError, RunFailed) as error:
        print(explained(error))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
