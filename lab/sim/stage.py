"""The simulated counterpart of lab.live's cluster, load and history: what a run is played on in virtual time."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import replace
from typing import Any

import msgspec

from lab.check.online import OnlineChecks
from lab.course.clients import START_DELAY_S, Addresses
from lab.course.environment import Environment
from lab.course.load import Answer, Go, Halt, Prepare, Ready, Tally, Worker
from lab.course.manifest import node_settings
from lab.course.observation import SeenLeaders, as_text, view_of
from lab.course.recording import outcome_row
from lab.plan.scenario import Load, Scenario
from lab.plan.workload import client_plans
from lab.rows import HistoryRow, NodeExit, NodeUse
from lab.sim.loop import VirtualLoop
from lab.sim.machine import SimMachine
from lab.sim.network import Network
from lab.sim.node import SimNode
from lab.steps import Garbage
from lab.steps.book import FaultBook
from lab.steps.machine import RunFailed
from lab.steps.rules import LinkCounts, Pair, Rule
from lab.steps.targets import ClusterView
from lab.words import EVENTS
from nodeproc.client import Address, ChatClient
from nodeproc.config import NodeConfig
from nodeproc.core.events import Event, HeartbeatReceived, HeartbeatSent
from nodeproc.core.events import Failed as NodeFailed
from nodeproc.core.messages import NodeId
from nodeproc.eventlog import RANK
from nodeproc.lines import Status
from nodeproc.session import Outcome, SessionSettings

KINDS = {level: frozenset(kind for kind in EVENTS.values() if RANK[kind.level] >= rank) for level, rank in RANK.items()}
"""Log level -> the kinds of event that a node reports at it."""
BOOT_LEAST_S, BOOT_MOST_S = 0.05, 0.15
"""From the start of a process to its first answer."""


class SimEnvironment(Environment):
    """Time is the loop's; everything random follows from the seed."""

    def __init__(self, loop: VirtualLoop, seed: int) -> None:
        super().__init__()
        self._loop = loop
        self._rng = random.Random(f"{seed} world")
        self.tokens: set[str] = set()
        """The secrets of all sessions so far."""

    def now(self) -> float:
        return self._loop.now

    def now_ns(self) -> int:
        return round(self._loop.now * 1e9)

    def cpu_s(self) -> float:
        return 0.0

    def chat(
        self,
        addresses: Sequence[Address],
        client: int,
        *,
        settings: SessionSettings | None = None,
        on_outcome: Callable[[Outcome], None] | None = None,
    ) -> ChatClient:
        return ChatClient(
            addresses,
            client,
            settings=settings,
            on_outcome=on_outcome,
            rng=random.Random(self._rng.getrandbits(64)),
            clock=self.now,
            tokens=self._draw_token,
        )

    def _draw_token(self) -> str:
        token = f"{self._rng.getrandbits(64):016x}"
        self.tokens.add(token)
        return token


class SimHistory:
    """Passes rows on to the online checks, which keep them."""

    def __init__(self, environment: Environment, online: OnlineChecks) -> None:
        self._environment, self._online = environment, online

    def write(self, row: HistoryRow) -> None:
        self._online.on_row(row)

    def outcome(self, session: str, outcome: Outcome) -> None:
        """As HistoryWriter.outcome."""
        self.write(outcome_row(self._environment.now_ns(), session, outcome))

    def flush(self) -> None:
        pass

    def close(self) -> None:
        pass


class SimLoad:
    """As LoadWorkers, with one worker inside the simulation."""

    def __init__(self, load: Load, seed: int, environment: Environment, history: SimHistory) -> None:
        self._load, self._seed = load, seed
        self._worker = Worker(self._hear, lambda path: history, environment, tell_every=None)
        self._environment = environment
        self._finished = True
        self._news = asyncio.Event()
        self._ready = False

    def _hear(self, answer: Answer) -> None:
        if isinstance(answer, Ready):
            self._ready = True
        else:
            self._finished = answer.finished
        self._news.set()

    async def spawn(self) -> None:
        pass

    async def start(self, via: tuple[NodeId, ...], addresses: Addresses) -> None:
        self._ready = self._finished = False
        plans = client_plans(self._load, via, self._seed)
        duration = None if self._load.duration is None else float(self._load.duration)
        await self._worker.obey(Prepare("", addresses, plans, duration, float(self._load.deadline)))
        await self._until(lambda: self._ready)
        await self._worker.obey(Go(self._environment.now() + START_DELAY_S))

    def halt(self) -> None:
        asyncio.get_running_loop().create_task(self._worker.obey(Halt()))

    async def settled(self) -> None:
        await self._until(lambda: self.finished)

    @property
    def finished(self) -> bool:
        return self._finished

    @property
    def total(self) -> Tally:
        return self._worker.tally(self._finished)

    async def _until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            self._news.clear()
            await self._news.wait()

    def check(self) -> None:
        pass

    async def close(self) -> None:
        pass

    def kill(self) -> None:
        pass


class SimCluster:
    """The machines of a simulated run. See lab.steps.machine.World and lab.course.runner.Cluster.

    Args:
        draws: what is left to chance: here, how long a process takes to come up.
    """

    def __init__(
        self,
        scenario: Scenario,
        seed: int,
        loop: VirtualLoop,
        online: OnlineChecks,
        book: FaultBook,
        draws: random.Random,
    ) -> None:
        plan = scenario.cluster
        self._loop, self._online, self._book, self._rng = loop, online, book, draws
        self.network = Network(loop, seed, plan.ids, doors=scenario.proxies_clients)
        self._kept = KINDS[plan.log_level]
        self.events: list[tuple[int, NodeId, Event]] = []
        """(t ns, node, event) of the scenario's log level, in order."""
        self._marked = 0
        self._seen: dict[type[Event], int] = {}
        self._up: set[NodeId] = set()
        """Nodes whose process came up."""
        self.statuses: dict[NodeId, Status] = {}
        self.leaders = SeenLeaders()
        self.machines: dict[NodeId, SimMachine] = {}
        for node in plan.ids:
            ports = {peer: peer for peer in plan.ids if peer != node}
            settings = node_settings(plan, node, node, ports, f"node_{node}", "sim", "sim")
            config = msgspec.convert(settings, NodeConfig)
            sim = SimNode(loop, self.network, config, seed, self._on_event, online.on_delivered, self._on_end)
            self.machines[node] = SimMachine(sim, loop)
        self.network.nodes = {node: machine.sim for node, machine in self.machines.items()}

    @property
    def addresses(self) -> Addresses:
        """See World."""
        return {node: ("sim", node) for node in self.machines}

    def now_ns(self) -> int:
        """Virtual time."""
        return round(self._loop.now * 1e9)

    # ---- what nodes report -----------------------------------------------------------------------

    def _on_event(self, node: NodeId, event: Event) -> None:
        kind = type(event)
        self._seen[kind] = self._seen.get(kind, 0) + 1
        if kind in self._kept:
            self.events.append((self.now_ns(), node, event))
            if isinstance(event, NodeFailed):
                self.machines[node].reason = event.reason
        self._online.on_event(node, event)
        if (kind is HeartbeatSent or kind is HeartbeatReceived) and (excess := self.machines[node].sim.excess()):
            self._online.on_excess(node, excess)

    @property
    def seen(self) -> dict[str, int]:
        """Event kind -> how often it was reported."""
        return {str(kind.__struct_config__.tag): count for kind, count in self._seen.items()}

    def _on_end(self, node: NodeId, code: int, asked: bool) -> None:
        machine = self.machines[node]
        role = machine.sim.core.role_name if node in self._up else "down"
        self._up.discard(node)
        because = "" if asked else self._book.ended(machine, code, role)
        end = NodeExit(self.now_ns(), code, asked or bool(because), because)
        machine.exits.append(end)
        self._online.on_exit(node, end, machine.reason)

    def mark_events(self) -> None:
        """Events are counted from here on."""
        self._marked = len(self.events)

    def count_events(
        self, nodes: Sequence[NodeId], event: str, where: Mapping[str, str | int | bool]
    ) -> Callable[[], int]:
        """See World."""
        at, count = self._marked, 0
        wanted = {key: as_text(value) for key, value in where.items()}

        def counted() -> int:
            nonlocal at, count
            for _, node, each in self.events[at:]:
                if node in nodes and each.__struct_config__.tag == event:
                    fields = {"node": node, **msgspec.structs.asdict(each)}
                    count += all(as_text(fields.get(key)) == value for key, value in wanted.items())
            at = len(self.events)
            return count

        return counted

    def use(self) -> dict[NodeId, NodeUse]:
        """How often each was started, and its ends."""
        return {node: NodeUse(each.starts, 0.0, 0, tuple(each.exits)) for node, each in self.machines.items()}

    # ---- looking ---------------------------------------------------------------------------------

    async def open(self, seed: int) -> None:
        """See lab.course.runner.Cluster."""

    def look(self) -> None:
        """See lab.course.runner.Cluster."""

    async def view(self) -> ClusterView:
        """See lab.course.runner.Cluster."""
        up = (machine for machine in self.machines.values() if machine.running and not machine.paused)
        self.statuses = {machine.node: machine.sim.turn.status() for machine in up}
        self.leaders.look(self.now_ns(), self.statuses)
        return view_of(self.machines, self.statuses)

    @property
    def rotten(self) -> list[str]:
        """See lab.course.runner.Cluster."""
        return [each for machine in self.machines.values() for each in machine.rotten]

    # ---- what is done to them --------------------------------------------------------------------

    async def launch(self, nodes: Sequence[NodeId], *, rebuild: bool = False) -> dict[NodeId, float]:
        """See World."""
        took = {}
        for node in nodes:
            if not self.machines[node].running:
                took[node] = self._rng.uniform(BOOT_LEAST_S, BOOT_MOST_S)
                self._loop.post(self._loop.now + took[node], self._boot, node, rebuild)
        await asyncio.sleep(max(took.values(), default=0.0) + 0.001)
        return {node: seconds for node, seconds in took.items() if self.machines[node].running}

    def _boot(self, node: NodeId, rebuild: bool) -> None:
        sim = self.machines[node].sim
        if not sim.running and sim.start(rebuild):
            self._up.add(node)
            self._book.causes.survived(node)
            self._online.on_started(node, sim.storage.delivered_seq)

    async def together(self, parts: Sequence[Coroutine[Any, Any, Any]]) -> list[Any]:
        """See World. One after the other, for none takes virtual time."""
        return [await part for part in parts]

    async def breathe(self) -> None:
        """See World."""
        await asyncio.sleep(0.001)

    async def treat(self, pairs: Sequence[Pair], rule: Rule | None) -> dict[Pair, LinkCounts]:
        """See World."""
        before = {}
        for pair in pairs:
            way = self.network.way(pair)
            before[pair] = replace(way.counts)
            way.treat(rule)
        return before

    async def reset(self, pairs: Sequence[Pair]) -> int:
        """See World."""
        return sum(self.network.way(pair).reset() for pair in pairs)

    async def start_busy(self, processes: int) -> None:
        """See World."""
        raise RunFailed(f"{processes} busy processes: there is no processor in a simulation")

    async def end_busy(self) -> list[float]:
        """See World."""
        return []

    async def send_garbage(self, garbage: Garbage, nodes: Sequence[NodeId], rng: random.Random) -> dict[NodeId, Any]:
        """See World."""
        raise RunFailed(f"{garbage}: there are no sockets in a simulation")

    async def close(self) -> None:
        """SIGTERM everything that runs."""
        for machine in self.machines.values():
            if machine.running:
                machine.sim.stop()

    def drop(self) -> None:
        """See lab.course.runner.Cluster."""
