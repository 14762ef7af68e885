"""The simulated cluster, and the other parts of the simulated world: time, clients, history and load."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final, Literal

import msgspec

from lab.check.online import OnlineChecks
from lab.course.environment import Environment
from lab.course.load import Worker, Workers
from lab.course.manifest import HOST, node_settings
from lab.course.observation import SeenLeaders, as_text, view_of
from lab.course.recording import History
from lab.course.worker_orders import Order, Tally
from lab.plan.scenario import Load, Scenario
from lab.rows import HistoryRow, NodeExit, NodeUse
from lab.sim.loop import VirtualLoop
from lab.sim.machine import SimMachine
from lab.sim.network import Network
from lab.sim.node import excess
from lab.sim.promises import Promises
from lab.steps import Garbage
from lab.steps.book import FaultBook
from lab.steps.machine import Addresses, RunFailed
from lab.steps.rules import LinkCounts, Pair, Rule
from lab.steps.targets import ClusterView
from lab.words import EVENTS
from nodeproc.config import NodeConfig
from nodeproc.core.events import Event, HeartbeatReceived, HeartbeatSent, MembersCommitted
from nodeproc.core.events import Failed as NodeFailed
from nodeproc.core.messages import Change, MemberList, NodeId
from nodeproc.eventlog import RANK
from nodeproc.lines import Status

KINDS = {level: frozenset(kind for kind in EVENTS.values() if RANK[kind.level] >= rank) for level, rank in RANK.items()}
"""Log level -> the kinds of event that a node reports at that level."""
BOOT_LEAST_S: Final = 0.05
BOOT_MOST_S: Final = 0.15
"""From the start of a process to its first answer."""


class SimEnvironment(Environment):
    """The time is the loop's, and all random numbers follow from the seed."""

    def __init__(self, loop: VirtualLoop, seed: int) -> None:
        super().__init__()
        self._loop = loop
        self._rng = random.Random(f"{seed} world")
        self.tokens: set[str] = set()
        """The tokens of all sessions so far."""

    def now(self) -> float:
        return self._loop.now

    def now_ns(self) -> int:
        return round(self._loop.now * 1e9)

    def cpu_s(self) -> float:
        return 0.0

    def _sources(self) -> dict[str, Any]:
        return {"rng": random.Random(self._rng.getrandbits(64)), "clock": self.now, "tokens": self._draw_token}

    def _draw_token(self) -> str:
        token = f"{self._rng.getrandbits(64):016x}"
        self.tokens.add(token)
        return token


class SimHistory(History):
    """Passes rows on to the online checks, which keep them."""

    def __init__(self, environment: Environment, online: OnlineChecks) -> None:
        super().__init__(environment.now_ns)
        self._online = online

    def write(self, row: HistoryRow) -> None:
        self._online.on_row(row)


class SimLoad(Workers):
    """One worker inside the simulation."""

    def __init__(self, load: Load, seed: int, environment: Environment, history: SimHistory) -> None:
        super().__init__(load, seed, 1, environment=environment)
        self._worker = Worker(
            lambda answer: self.on_answer(0, answer), lambda path: history, environment, report_every=None
        )

    async def order(self, worker: int, order: Order) -> None:
        await self._worker.obey(order)

    def tallies(self) -> Sequence[Tally]:
        return [self._worker.tally(self.finished)]


class SimCluster:
    """The machines of a simulated run. See lab.steps.machine.World and lab.course.runner.Cluster.

    Args:
        draws: draws how long the start of a process takes.
    """

    kind: Literal["live", "sim"] = "sim"
    drops_packets = False

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
        newcomers = plan.ids[len(plan.founder_ids) :]
        self.network = Network(loop, seed, plan.ids, client_rules=scenario.proxies_clients, newcomers=newcomers)
        self._kept = KINDS[plan.log_level]
        self.events: list[tuple[int, NodeId, Event]] = []
        """(t ns, node, event) of the scenario's log level, in order."""
        self._marked = 0
        self._seen: dict[type[Event], int] = {}
        self._up: set[NodeId] = set()
        """The nodes whose latest process has come up and not ended."""
        self.statuses: dict[NodeId, Status] = {}
        self.leaders = SeenLeaders()
        self.machines: dict[NodeId, SimMachine] = {}
        promises = Promises(online.on_broken_promise)
        self.member_list = MemberList(0, plan.founder_ids)
        for node in plan.ids:
            peers = {peer: (HOST, peer) for peer in plan.founder_ids if peer != node}
            settings = node_settings(plan, node, (HOST, node), peers, f"node_{node}", "sim", "sim")
            config = msgspec.convert(settings, NodeConfig)
            self.machines[node] = SimMachine(
                loop, self.network, config, seed, self._on_event, online.on_delivered, self._on_end, promises
            )

    @property
    def addresses(self) -> Addresses:
        """See World."""
        return {node: (HOST, node) for node in self.machines}

    def now_ns(self) -> int:
        """Return the virtual time."""
        return round(self._loop.now * 1e9)

    # ---- what nodes report -----------------------------------------------------------------------

    def _on_event(self, node: NodeId, event: Event) -> None:
        kind = type(event)
        self._seen[kind] = self._seen.get(kind, 0) + 1
        if type(event) is MembersCommitted and event.version > self.member_list.version:
            self.member_list = MemberList(event.version, event.voters, event.learners, event.removed)
        if kind in self._kept:
            self.events.append((self.now_ns(), node, event))
            if isinstance(event, NodeFailed):
                self.machines[node].reason = event.reason
        self._online.on_event(node, event)
        if kind is HeartbeatSent or kind is HeartbeatReceived:
            exceeded = excess(self.machines[node].live)
            if exceeded:
                self._online.on_excess(node, exceeded)

    @property
    def seen(self) -> dict[str, int]:
        """Event kind -> how often nodes reported it."""
        return {str(kind.__struct_config__.tag): count for kind, count in self._seen.items()}

    def _on_end(self, node: NodeId, code: int, asked: bool) -> None:
        machine = self.machines[node]
        role = machine.process.core.role_name if node in self._up and machine.process is not None else "down"
        self._up.discard(node)
        if machine.process is not None and machine.process.has_left:
            self._book.left(machine, code, role)
        because = "" if asked else self._book.ended(machine, code, role)
        end = NodeExit(self.now_ns(), code, asked or bool(because), because)
        machine.exits.append(end)
        self._online.on_exit(node, end, machine.reason)

    def mark_events(self) -> None:
        """See lab.course.runner.Cluster."""
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
        """See lab.course.runner.Cluster. A simulation has no CPU or memory to measure."""
        return {node: NodeUse(each.starts, 0.0, 0, tuple(each.exits)) for node, each in self.machines.items()}

    # ---- for the runner --------------------------------------------------------------------------

    async def open(self, seed: int) -> None:
        """See lab.course.runner.Cluster."""

    def sample(self) -> None:
        """See lab.course.runner.Cluster."""

    async def view(self) -> ClusterView:
        """See lab.course.runner.Cluster."""
        machines = {node: self.machines[node] for node in self.members}
        up = (machine for machine in machines.values() if machine.running and not machine.paused)
        self.statuses = {machine.node: machine.live.turn.status() for machine in up}
        self.leaders.take(self.now_ns(), self.statuses)
        return view_of(self.machines, machines, self.statuses)

    async def peek(self) -> dict[NodeId, Status]:
        """See lab.course.runner.Cluster."""
        up = (machine for machine in self.machines.values() if machine.running and not machine.paused)
        return {machine.node: machine.live.turn.status() for machine in up}

    # ---- what steps do to the nodes --------------------------------------------------------------

    @property
    def members(self) -> tuple[NodeId, ...]:
        """See World."""
        return self.member_list.present

    async def change_members(self, node: NodeId, change: Change) -> str:
        """See World."""
        machine = self.machines[node]
        if not machine.running or machine.paused:
            return f"node {node} does not answer"
        return machine.live.turn.change_members(change)

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
        machine = self.machines[node]
        if not machine.running and machine.start(rebuild=rebuild):
            self._up.add(node)
            self._book.causes.survived(node)
            self._online.on_started(node, machine.live.storage.delivered_seq)

    async def together(self, parts: Sequence[Coroutine[Any, Any, Any]]) -> list[Any]:
        """See World."""
        return await asyncio.gather(*parts)

    async def breathe(self) -> None:
        """See World."""
        await asyncio.sleep(0.001)

    async def set_rule(self, pairs: Sequence[Pair], rule: Rule | None) -> dict[Pair, LinkCounts]:
        """See World."""
        before = {}
        for pair in pairs:
            link = self.network.link(pair)
            before[pair] = replace(link.counts)
            link.set_rule(rule)
        return before

    async def reset(self, pairs: Sequence[Pair]) -> int:
        """See World."""
        return sum(self.network.link(pair).reset() for pair in pairs)

    async def start_busy(self, processes: int) -> None:
        """See World."""
        raise RunFailed(f"{processes} busy processes: a simulation has no CPU")

    async def end_busy(self) -> list[float]:
        """See World."""
        return []

    async def send_garbage(self, garbage: Garbage, nodes: Sequence[NodeId], rng: random.Random) -> dict[NodeId, Any]:
        """See World."""
        raise RunFailed(f"{garbage}: a simulation has no sockets")

    async def close(self) -> None:
        """See lab.course.runner.Cluster."""
        for machine in self.machines.values():
            if machine.running:
                machine.stop(transfer=False)

    def drop(self) -> None:
        """See lab.course.runner.Cluster."""
