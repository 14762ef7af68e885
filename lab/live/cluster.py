"""The cluster of a live run: its configuration files, its machines, and the links between them."""

from __future__ import annotations

import asyncio
import dataclasses
import random
import secrets
import signal
import sys
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from functools import partial
from typing import Any

import msgspec
import yaml

from lab.course.manifest import HOST, node_settings
from lab.course.observation import SeenLeaders, view_of
from lab.live.busy import BusyProcesses
from lab.live.garbage import Crowd, Mark, besiege
from lab.live.machine import LiveMachine
from lab.live.observation import EventCount, StatusLine, file_sizes
from lab.live.processes import HeldPort, Lifeline, NodeProcess, Program
from lab.live.ways import Ways
from lab.plan.command import filled
from lab.plan.scenario import Cluster as ClusterPlan
from lab.plan.scenario import Scenario
from lab.rows import NodeUse, Sample
from lab.rundir import RunDir
from lab.steps import Garbage
from lab.steps.book import FaultBook
from lab.steps.rules import LinkCounts, Pair, Rule
from lab.steps.targets import ClusterView
from nodeproc.client import Address
from nodeproc.core.messages import NodeId
from nodeproc.lines import Status


def share_of(whole: int, at: int, parts: int) -> int:
    """What part `at` gets of a whole that is dealt out in turn."""
    return whole // parts + (at < whole % parts)


def program_of(plan: ClusterPlan, run: RunDir, settings: dict[str, Any]) -> Program | None:
    """What one node of a cluster with a command is, and the JSON file that it is told of; None: the lab's own.

    Args:
        settings: the node's, as node_settings() made them.
    """
    if plan.command is None:
        return None
    assert isinstance(plan.command, tuple), plan.command  # load() has split it
    node = settings["node_id"]
    run.message_log(node).parent.mkdir(parents=True)
    files = {"message_log": str(run.message_log(node).resolve()), "events": str(run.events(node).resolve())}
    config = run.program_config(node).resolve()
    config.write_bytes(msgspec.json.format(msgspec.json.encode(settings | files), indent=1) + b"\n")
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
        on_sample: is handed every CPU and memory sample.
        mutant: what is started in place of the nodes' own program; "": nothing.
    """

    def __init__(
        self, scenario: Scenario, run: RunDir, book: FaultBook, on_sample: Callable[[Sample], None], mutant: str = ""
    ) -> None:
        self._scenario, self._run, self._book = scenario, run, book
        self._on_sample, self._mutant = on_sample, mutant
        self._ports: dict[NodeId, HeldPort] = {}
        self._status_lines: dict[NodeId, StatusLine] = {}
        self._lifeline = Lifeline()
        self._cluster_id = f"{scenario.name} {run.path.name}"
        self._ways = Ways()
        self.machines: dict[NodeId, LiveMachine] = {}
        self.statuses: dict[NodeId, Status] = {}
        self.leaders = SeenLeaders()
        self.proxy: dict[str, Any] = {}
        """What became of every link's frames, once the run is over; empty for direct links."""
        self._events_before: dict[Any, int] = {}
        """Bytes of each event file at the latest mark_events()."""
        self._busy: list[BusyProcesses] = []
        self._is_dropped = False

    @property
    def addresses(self) -> dict[NodeId, Address]:
        """See World."""
        ports = self._ways.client_ports
        return {node: (HOST, ports.get(node, held.port)) for node, held in self._ports.items()}

    # ---- from nothing to configured, and back ----------------------------------------------------

    async def open(self, seed: int) -> None:
        """Take the ports, start the proxy where the scenario needs one, write the nodes' files."""
        plan, run = self._scenario.cluster, self._run
        self._ports = {node: HeldPort(HOST) for node in plan.ids}
        ports = {node: held.port for node, held in self._ports.items()}
        ways = await self._ways.open(self._scenario, run, ports, seed)
        cluster_id, secret = self._cluster_id, secrets.token_hex(16)
        for node, port in ports.items():
            run.node_dir(node).mkdir(parents=True, exist_ok=True)  # It may hold a history already.
            peers = {peer: ways[node, peer] for peer in plan.ids if peer != node}
            data_dir = str(run.node_dir(node).resolve())
            settings = node_settings(plan, node, port, peers, data_dir, cluster_id, secret)
            program = program_of(plan, run, settings)
            if program is None:
                run.node_config(node).write_text(yaml.safe_dump(settings, sort_keys=False), "utf-8")
            self._status_lines[node] = StatusLine((HOST, port), plan.client_token)
            process = NodeProcess(
                node,
                HOST,
                port,
                run.node_config(node),
                run.node_log(node),
                self._lifeline.fd,
                self._on_sample,
                program=program,
                mutant=self._mutant,
                client_token=plan.client_token,
            )
            role = partial(self._said_role, node)
            self.machines[node] = LiveMachine(process, run, self._book, role, seed, layered=self._scenario.layered)

    async def close(self) -> None:
        """SIGTERM everything that runs, and let go of what was held."""
        await asyncio.gather(*(each.end(signal.SIGTERM) for each in self.machines.values() if each.running))
        await self.end_busy()
        self.proxy = await self._ways.close()
        self.drop()

    async def gone(self) -> None:
        """Wait for the end of the lab's own processes that drop() killed."""
        await asyncio.gather(*(busy.gone() for busy in self._busy), self._ways.gone())

    def drop(self) -> None:
        """Kill what still runs and let go of everything, at once: for any end of a run. May be called again."""
        for machine in self.machines.values():
            machine.process.kill_now()
        for busy in self._busy:
            busy.kill()
        self._ways.kill()
        for line in self._status_lines.values():
            line.hang_up()
        for held in self._ports.values():
            held.release()
        self._ports = {}
        if not self._is_dropped:
            self._is_dropped = True
            for machine in self.machines.values():
                machine.close()
            self._lifeline.cut()

    # ---- looking ---------------------------------------------------------------------------------

    async def view(self) -> ClusterView:
        """Ask every node that runs and is not paused, all at the same time."""
        asked = [node for node, machine in self.machines.items() if machine.running and not machine.paused]
        answers = await asyncio.gather(*(self._status_lines[node].ask() for node in asked))
        self.statuses = {node: answer for node, answer in zip(asked, answers, strict=True) if answer is not None}
        self.leaders.look(time.monotonic_ns(), self.statuses)
        return view_of(self.machines, self.statuses)

    def _said_role(self, node: NodeId) -> str:
        """What it was when last looked at."""
        return self.statuses[node].role if node in self.statuses else ""

    def look(self) -> None:
        """Sample every process."""
        for machine in self.machines.values():
            machine.process.look()

    def use(self) -> dict[NodeId, NodeUse]:
        """What each node cost, all its processes added."""
        return {node: machine.process.use() for node, machine in self.machines.items()}

    @property
    def rotten(self) -> list[str]:
        """See lab.course.runner.Cluster."""
        return [each for machine in self.machines.values() for each in machine.rotten]

    def mark_events(self) -> None:
        """Events are counted from here on."""
        self._events_before = file_sizes(self._run.events(node) for node in self.machines)

    def count_events(
        self, nodes: Sequence[NodeId], event: str, where: Mapping[str, str | int | bool]
    ) -> Callable[[], int]:
        """See World."""
        paths = {path: self._events_before.get(path, 0) for path in (self._run.events(node) for node in nodes)}
        return EventCount(paths, event, where).update

    # ---- what is done to them --------------------------------------------------------------------

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

    async def treat(self, pairs: Sequence[Pair], rule: Rule | None) -> dict[Pair, LinkCounts]:
        """See World."""
        return await self._ways.treat(pairs, rule)

    async def reset(self, pairs: Sequence[Pair]) -> int:
        """See World."""
        return await self._ways.reset(pairs)

    async def start_busy(self, processes: int) -> None:
        """See World."""
        self._busy.append(BusyProcesses(self._run.busy_log))
        await self._busy[-1].begin(processes)

    async def end_busy(self) -> list[float]:
        """See World."""
        busy, self._busy = self._busy, []
        return [await each.end() for each in busy]

    async def send_garbage(self, garbage: Garbage, nodes: Sequence[NodeId], rng: random.Random) -> dict[NodeId, Any]:
        """See World; besides, what the nodes' memory did meanwhile."""
        ids = tuple(sorted(self.machines))
        crowds = {
            node: Crowd(Mark(node, (HOST, self._ports[node].port), self._cluster_id, peer_of(node, ids), ids))
            for node in nodes
        }
        before = {node: self.machines[node].process.memory_bytes()[0] for node in nodes}
        coming = [
            besiege(
                crowds[node],
                share_of(garbage.connections, at, len(nodes)),
                share_of(garbage.half_open, at, len(nodes)),
                garbage.time,
                random.Random(rng.getrandbits(64)),
            )
            for at, node in enumerate(nodes)
        ]
        await asyncio.gather(*coming)
        found = {}
        for node, crowd in crowds.items():
            evidence = {name: value for name, value in dataclasses.asdict(crowd).items() if name != "mark"}
            now, peak = self.machines[node].process.memory_bytes()
            memory = {"rss_before_bytes": before[node], "rss_after_bytes": now, "rss_peak_bytes": peak}
            found[node] = evidence | memory
        return found


def peer_of(node: NodeId, ids: Sequence[NodeId]) -> NodeId:
    """Another member; in a cluster of one itself."""
    return next((each for each in ids if each != node), node)
