"""The cluster of a live run: configuration files, machines, and the links between them."""

from __future__ import annotations

import asyncio
import random
import secrets
import signal
import sys
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import msgspec
import yaml
from msgspec import UNSET, structs

from lab.course.manifest import node_settings
from lab.course.observation import SeenLeaders, view_of
from lab.engines import catalogue, install
from lab.engines.tunnels import LOOPBACK
from lab.live.busy import BusyProcesses
from lab.live.children import Children
from lab.live.garbage import GarbageClients, Target, share_of
from lab.live.kernel.links import KernelLinks
from lab.live.layers import DiskLayer, LedgerLayer, SupervisedLayer
from lab.live.links import Links, LiveLinks
from lab.live.machine import LiveMachine
from lab.live.observation import EventCount, StatusLine, file_sizes
from lab.live.processes import HeldPort, Lifeline, NodeProcess, Program
from lab.live.supervise import Refused, Supervisor
from lab.live.supervise.orders import total
from lab.plan.command import filled
from lab.plan.scenario import Cluster as ClusterPlan
from lab.plan.scenario import Scenario
from lab.rows import NodeUse, Sample, Supervision
from lab.rundir import RunDir
from lab.steps import Garbage
from lab.steps.book import FaultBook
from lab.steps.machine import RunFailed
from lab.steps.rules import LinkCounts, Pair, Rule
from lab.steps.targets import ClusterView
from nodeproc.client import Address, administer
from nodeproc.core.messages import AddNode, Change, MemberList, NodeId
from nodeproc.errors import Unreachable
from nodeproc.lines import AddRequest, AdminRequest, RemoveRequest, Status

PEEK_PATIENCE_S = 0.2
ADAPTER_MODULE = "lab.engines.adapter"


def engine_settings(plan: ClusterPlan) -> dict[str, Any]:
    """Return the part of the adapter's configuration that is about the engine. Raises: RunFailed."""
    try:
        program = install.program(catalogue.parse(plan.engine))
    except install.NotInstalled as error:
        raise RunFailed(str(error)) from None
    return {"engine": plan.engine, "engine_options": plan.engine_options, "engine_program": str(program)}


EVIDENCE = ("events", "node.log")
"""Beginnings of names in a node's directory that a supervisor leaves alone: the lab judges by them."""
ADAPTER_FILES = ("logs/", "conf/", "engine.log")
"""As EVIDENCE, of an engine's adapter: what it writes anew at each start."""


def program_of(plan: ClusterPlan, run: RunDir, settings: dict[str, Any]) -> Program | None:
    """Return the program of one node if the scenario has a command or an engine, and write its JSON configuration.

    Args:
        settings: the node's, from node_settings().

    Returns:
        None for the lab's own nodes.

    Raises:
        RunFailed: the engine is not installed.
    """
    if not plan.is_foreign:
        return None
    node = settings["node_id"]
    run.message_log(node).parent.mkdir(parents=True)
    files = {"message_log": str(run.message_log(node).resolve()), "events": str(run.events(node).resolve())}
    config = run.program_config(node).resolve()
    engine = engine_settings(plan) if plan.engine else {}
    config.write_bytes(msgspec.json.format(msgspec.json.encode(settings | files | engine), indent=1) + b"\n")
    if engine:
        command = (sys.executable, "-m", ADAPTER_MODULE, str(config))
        return Program(command, str(run.path.resolve()), is_adapter=True)
    assert isinstance(plan.command, tuple), plan.command  # load() has split it
    values = {
        "config": str(config),
        "id": str(node),
        "host": settings["host"],
        "port": str(settings["port"]),
        "peers": ",".join(f"{peer['id']}={peer['host']}:{peer['port']}" for peer in settings["peers"]),
        "data_dir": settings["data_dir"],
        "python": sys.executable,
        **files,
    }
    return Program(filled(plan.command, values), plan.directory)


class Cluster:
    """The machines of a live run. See lab.steps.machine.World and lab.course.runner.Cluster.

    Args:
        children: the lab's own processes in this run.
        on_sample: called with every CPU and memory sample.
        mutant: the mutant that the nodes run as (lab.mutants); "": none.
    """

    kind: Literal["live", "sim"] = "live"

    def __init__(
        self,
        scenario: Scenario,
        run: RunDir,
        book: FaultBook,
        children: Children,
        on_sample: Callable[[Sample], None],
        mutant: str,
    ) -> None:
        self._scenario, self._run, self._book, self._children = scenario, run, book, children
        self._on_sample, self._mutant = on_sample, mutant
        self._ports: dict[NodeId, HeldPort] = {}
        self._ways: list[HeldPort] = []
        """Ports of adapters for the connections of their engines."""
        self._status_lines: dict[NodeId, StatusLine] = {}
        self._peeking: dict[NodeId, StatusLine] = {}
        """Of peek(), which must not make a view() wait for a node that does not answer."""
        self._lifeline = Lifeline()
        self._cluster_id = f"{scenario.name} {run.path.name}"
        self.links: Links = KernelLinks() if scenario.cluster.network == "kernel" else LiveLinks(children)
        self.machines: dict[NodeId, LiveMachine] = {}
        self.statuses: dict[NodeId, Status] = {}
        self.member_list = MemberList(0, scenario.cluster.founder_ids)
        self._admin_token = secrets.token_hex(16)
        self.leaders = SeenLeaders()
        self.proxy: dict[str, Any] = {}
        """The counts of every link after the run; empty for direct links."""
        self.supervision: Supervision | None = None
        """The cost of the supervisors; None if there are none, or the run did not end by itself."""
        self._events_before: dict[Path, int] = {}
        """Size of each event file at the latest mark_events()."""
        self._busy: list[BusyProcesses] = []
        self._is_dropped = False

    @property
    def addresses(self) -> dict[NodeId, Address]:
        """See World."""
        return {node: self.links.clients.get(node, held.address) for node, held in self._ports.items()}

    @property
    def members(self) -> tuple[NodeId, ...]:
        """See World."""
        return self.member_list.present

    async def change_members(self, node: NodeId, change: Change) -> str:
        """See World. The node is asked as an operator asks it, with the admin token."""
        request: AdminRequest = RemoveRequest(node=change.node)
        if isinstance(change, AddNode):
            request = AddRequest(node=change.node, host=change.host, port=change.port)
        tokens = {"client_token": self._scenario.cluster.client_token or UNSET, "admin_token": self._admin_token}
        try:
            answer = await administer(
                self._ports[node].address, structs.replace(request, **tokens), source=self.links.own_host
            )
        except Unreachable as error:
            return str(error)
        return answer.reason

    @property
    def drops_packets(self) -> bool:
        """See World."""
        return self.links.drops_packets

    # ---- for the runner --------------------------------------------------------------------------

    async def open(self, seed: int) -> None:
        """Reserve the ports, open the links, and write the nodes' configuration."""
        plan, run, links = self._scenario.cluster, self._run, self.links
        self._ports = {node: links.hold(node) for node in plan.ids}
        addresses = {node: held.address for node, held in self._ports.items()}
        reached_at = await links.open(self._scenario, run, addresses, seed)
        cluster_id, secret = self._cluster_id, secrets.token_hex(16)
        for node, address in addresses.items():
            run.node_dir(node).mkdir(parents=True, exist_ok=True)  # A test may have put files there.
            # Through the proxy each node reaches another at an address of its own, which no list of members has.
            known = plan.ids if self._scenario.proxied else plan.founder_ids
            peers = {peer: reached_at[node, peer] for peer in known if peer != node}
            data_dir = str(run.node_dir(node).resolve())
            layer = self._layer(node)
            ways: list[dict[str, Any]] = []
            if isinstance(layer, SupervisedLayer) and plan.engine:
                ways = self._redirect_engine(layer.supervisor, node) if self._scenario.proxied else []
            elif isinstance(layer, SupervisedLayer):
                # The nodes know true addresses only.
                table = {addresses[peer]: reached for peer, reached in peers.items() if reached != addresses[peer]}
                layer.supervisor.redirect(table)
                peers = {peer: addresses[peer] for peer in peers}
            settings = node_settings(plan, node, address, peers, data_dir, cluster_id, secret)
            if self._scenario.changes_members:
                settings |= {"founders": list(plan.founder_ids), "admin_token": self._admin_token}
            program = program_of(plan, run, settings | ({"ways": ways} if ways else {}))
            if program is None:
                run.node_config(node).write_text(yaml.safe_dump(settings, sort_keys=False), "utf-8")
            for lines in (self._status_lines, self._peeking):
                lines[node] = StatusLine(address, plan.client_token, links.own_host)
            process = NodeProcess(
                node,
                address[1],
                run.node_config(node),
                run.node_log(node),
                self._lifeline.fd,
                self._on_sample,
                program=program,
                mutant=self._mutant,
                client_token=plan.client_token,
                host=address[0],
                namespace=links.namespace(node),
                polled_from=links.own_host,
                ledger=run.ledger(node) if isinstance(layer, LedgerLayer) else None,
                supervisor=layer.supervisor if isinstance(layer, SupervisedLayer) else None,
            )
            role = partial(self._reported_role, node)
            self.machines[node] = LiveMachine(
                process, run, self._book, role, seed, layer, self._exempt if plan.is_foreign else None
            )

    def _redirect_engine(self, supervisor: Supervisor, node: NodeId) -> list[dict[str, Any]]:
        """Send an engine's connections to other engines to its adapter, at these ports (lab.engines.adapter.Way)."""
        plan, ways = self._scenario.cluster, []
        hosts, table = catalogue.hosts_of(self._cluster_id, plan.ids), {}
        for peer in plan.ids:
            for port in catalogue.parse(plan.engine).kind.ports if peer != node else ():
                self._ways.append(held := HeldPort())
                table[hosts[peer], port] = (LOOPBACK, held.port)
                ways.append({"node": peer, "engine_port": port, "port": held.port})
        supervisor.redirect(table)
        return ways

    @property
    def _exempt(self) -> tuple[str, ...]:
        """Beginnings of the names of files that faults of a node's disk leave alone."""
        return (*EVIDENCE, *ADAPTER_FILES) if self._scenario.cluster.engine else EVIDENCE

    def _layer(self, node: NodeId) -> DiskLayer | None:
        """Return what stands between a node and its disk."""
        run, plan, data_dir = self._run, self._scenario.cluster, self._run.node_dir(node)
        if self._scenario.disks == "supervised":
            log, lifeline, writeback_s = run.supervisor_log(node), self._lifeline.fd, float(plan.writeback or 0)
            try:
                with self.links.namespace(node):
                    supervisor = Supervisor.open(
                        data_dir, log, exempt=self._exempt, writeback_s=writeback_s, inherited_fds=[lifeline]
                    )
            except Refused as refused:
                raise RunFailed(f"cluster.disks: supervised: {refused}") from refused
            return SupervisedLayer(data_dir, supervisor)
        return LedgerLayer(data_dir, run.ledger(node)) if self._scenario.layered else None

    async def close(self) -> None:
        """See lab.course.runner.Cluster."""
        await asyncio.gather(*(each.end(signal.SIGTERM) for each in self.machines.values() if each.running))
        await self.end_busy()
        self.proxy = await self.links.close()
        self.supervision = total(
            layer.supervisor.figures()
            for layer in (machine.layer for machine in self.machines.values())
            if isinstance(layer, SupervisedLayer)
        )
        self.drop()

    def drop(self) -> None:
        """See lab.course.runner.Cluster."""
        for machine in self.machines.values():
            machine.process.kill_now()
        self._children.kill()
        for line in (*self._status_lines.values(), *self._peeking.values()):
            line.hang_up()
        for held in (*self._ports.values(), *self._ways):
            held.release()
        self._ports, self._ways = {}, []
        if not self._is_dropped:
            self._is_dropped = True
            for machine in self.machines.values():
                machine.close()
            self._lifeline.cut()

    async def view(self) -> ClusterView:
        """See lab.course.runner.Cluster."""
        asked = [node for node, machine in self.machines.items() if machine.running and not machine.paused]
        answers = await asyncio.gather(*(self._status_lines[node].ask() for node in asked))
        self.statuses = {node: answer for node, answer in zip(asked, answers, strict=True) if answer is not None}
        self.leaders.take(time.monotonic_ns(), self.statuses)
        for answer in self.statuses.values():
            self._take_list(answer)
        return view_of(self.machines, self.members, self.statuses)

    def _take_list(self, answer: Status) -> None:
        """Take over the list of members of a leader that knows that the list is committed, if it is newer."""
        members = answer.members
        if members is not None and members.committed and members.version > self.member_list.version:
            self.member_list = MemberList(members.version, members.voters, members.learners, members.removed)

    async def peek(self) -> dict[NodeId, Status]:
        """See lab.course.runner.Cluster."""
        asked = [node for node, machine in self.machines.items() if machine.running and not machine.paused]
        answers = await asyncio.gather(*(self._peek_at(node) for node in asked))
        return {node: answer for node, answer in zip(asked, answers, strict=True) if answer is not None}

    async def _peek_at(self, node: NodeId) -> Status | None:
        try:
            async with asyncio.timeout(PEEK_PATIENCE_S):
                return await self._peeking[node].ask()
        except TimeoutError:
            return None

    def _reported_role(self, node: NodeId) -> str:
        """Return the role in the node's latest STATUS; "" if it did not answer the latest question."""
        return self.statuses[node].role if node in self.statuses else ""

    def sample(self) -> None:
        """See lab.course.runner.Cluster."""
        for machine in self.machines.values():
            machine.process.sample()

    def use(self) -> dict[NodeId, NodeUse]:
        """See lab.course.runner.Cluster."""
        return {node: machine.process.use() for node, machine in self.machines.items()}

    def mark_events(self) -> None:
        """See lab.course.runner.Cluster."""
        self._events_before = file_sizes(self._run.events(node) for node in self.machines)

    def count_events(
        self, nodes: Sequence[NodeId], event: str, where: Mapping[str, str | int | bool]
    ) -> Callable[[], int]:
        """See World."""
        paths = {path: self._events_before.get(path, 0) for path in (self._run.events(node) for node in nodes)}
        return EventCount(paths, event, where).update

    # ---- what steps do to the nodes --------------------------------------------------------------

    async def launch(self, nodes: Sequence[NodeId], *, rebuild: bool = False) -> dict[NodeId, float]:
        """See World."""
        down = [node for node in nodes if not self.machines[node].running]
        took = await asyncio.gather(*(self.machines[node].start(rebuild=rebuild) for node in down))
        return {node: ready_s for node, ready_s in zip(down, took, strict=True) if ready_s is not None}

    async def together(self, parts: Sequence[Coroutine[Any, Any, Any]]) -> list[Any]:
        """See World."""
        return await asyncio.gather(*parts)

    async def breathe(self) -> None:
        """See World."""

    async def set_rule(self, pairs: Sequence[Pair], rule: Rule | None) -> dict[Pair, LinkCounts]:
        """See World."""
        return await self.links.set_rule(pairs, rule)

    async def reset(self, pairs: Sequence[Pair]) -> int:
        """See World."""
        return await self.links.reset(pairs)

    async def start_busy(self, processes: int) -> None:
        """See World."""
        self._busy.append(BusyProcesses())
        await self._busy[-1].begin(processes, self._children, self._run.busy_log)

    async def end_busy(self) -> list[float]:
        """See World."""
        busy, self._busy = self._busy, []
        return [await each.end() for each in busy]

    async def send_garbage(self, garbage: Garbage, nodes: Sequence[NodeId], rng: random.Random) -> dict[NodeId, Any]:
        """See World; the evidence also contains the memory of the nodes."""
        ids, parts = tuple(sorted(self.machines)), len(nodes)
        clients: dict[NodeId, GarbageClients] = {}
        for node in nodes:
            peer = next((each for each in ids if each != node), node)
            clients[node] = GarbageClients(Target(self._ports[node].address, self._cluster_id, peer, ids))
        before = {node: self.machines[node].process.memory_bytes()[0] for node in nodes}
        await asyncio.gather(
            *(
                clients[node].run(
                    share_of(garbage.connections, at, parts),
                    share_of(garbage.half_open, at, parts),
                    garbage.time,
                    random.Random(rng.getrandbits(64)),
                )
                for at, node in enumerate(nodes)
            )
        )
        found = {}
        for node in nodes:
            now, peak = self.machines[node].process.memory_bytes()
            memory = {"rss_before_bytes": before[node], "rss_after_bytes": now, "rss_peak_bytes": peak}
            found[node] = clients[node].evidence() | memory
        return found
