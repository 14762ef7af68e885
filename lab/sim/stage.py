"""The simulated counterpart of lab.live's cluster, load and history: what a Conductor plays a scenario on."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import msgspec

from lab.course.clients import START_DELAY_S, Addresses
from lab.course.damage import (
    FATAL,
    MID_WRITE_OPERATIONS,
    MID_WRITE_PATIENCE_S,
    Cause,
    Causes,
    Rot,
    Tear,
    cause_of,
    draw_rot,
    draw_tear,
    ended_at_work,
    file_name,
    lost_place,
)
from lab.course.links import LINK_EFFECTS, Pair
from lab.course.load import Answer, Go, Halt, Prepare, Ready, Tally, Worker
from lab.course.manifest import node_settings, rule_of
from lab.course.observation import SeenLeaders, as_text
from lab.course.world import RunFailed, World
from lab.plan.scenario import Load, Scenario
from lab.plan.workload import client_plans
from lab.rows import Acked, Failed, FaultRow, HistoryRow, NodeExit, NodeUse, Unknown
from lab.sim.loop import VirtualLoop
from lab.sim.network import Network
from lab.sim.node import SimNode
from lab.sim.watch import Violation, Watch
from lab.steps import Busy, Chaos, Clock, Disk, Garbage, Link, MachineStep, PowerLoss, Rebuild, UntilEvent
from lab.steps.chaos import draw_first_stint, draw_stint
from lab.steps.targets import ClusterView, NodeView
from nodeproc.client import Address, ChatClient
from nodeproc.config import NodeConfig
from nodeproc.core import events
from nodeproc.core.events import Event, HeartbeatReceived, HeartbeatSent
from nodeproc.core.events import Failed as NodeFailed
from nodeproc.core.messages import NodeId
from nodeproc.errors import EXIT_CORRUPTION
from nodeproc.eventlog import RANK
from nodeproc.lines import Status
from nodeproc.session import Outcome, SessionSettings

BOOT_LEAST_S, BOOT_MOST_S = 0.05, 0.15
"""From the start of a process to its first answer."""
TORN_PATIENCE_S, TORN_LOOK_S = 2.0, 0.001
"""A disk that is to leave a torn log waits so long for an entry that is not synced, and looks so often."""


class _InForce(NamedTuple):
    """A fault of a disk or a clock that lasts.

    kind: disks or clocks: which heal ends it. proof: the node's count that proves an effect, and what it was before.
    row: number of its row.
    """

    node: NodeId
    kind: str
    proof: str
    row: int
    before: int


class SimWorld(World):
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
    """Rows for the watch, and kept where somebody wants to read them."""

    def __init__(self, world: World, watch: Watch, keep: bool) -> None:
        self._world, self._watch, self._keep = world, watch, keep
        self.rows: list[HistoryRow] = []

    def write(self, row: HistoryRow) -> None:
        if self._keep:
            self.rows.append(row)
        self._watch.on_row(row)

    def outcome(self, session: str, outcome: Outcome) -> None:
        """As HistoryWriter.outcome."""
        now, count = self._world.now_ns(), outcome.last - outcome.first + 1
        match outcome.kind:
            case "ok":
                self.write(Acked(now, session, outcome.last, outcome.seq_no))
            case "rejected":
                self.write(Failed(now, session, outcome.first, count, outcome.reason))
            case "unknown":
                self.write(Unknown(now, session, outcome.first, count))

    def flush(self) -> None:
        pass

    def close(self) -> None:
        pass


class SimLoad:
    """As LoadWorkers, with one worker inside the simulation."""

    def __init__(self, load: Load, seed: int, world: World, history: SimHistory) -> None:
        self._load, self._seed = load, seed
        self._worker = Worker(self._hear, lambda path: history, world, tell_every=None)
        self._world = world
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
        await self._worker.obey(Go(self._world.now() + START_DELAY_S))

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
    """The nodes of a simulated run, and what is done to them. As lab.live.cluster.Cluster.

    Args:
        keep: events and fault rows are kept for a run directory.
    """

    def __init__(self, scenario: Scenario, seed: int, loop: VirtualLoop, watch: Watch, keep: bool) -> None:
        plan = scenario.cluster
        self._plan, self._loop, self._watch, self._keep = plan, loop, watch, keep
        self._rng = random.Random(f"{seed} faults")
        self.network = Network(loop, seed, plan.ids, doors=scenario.proxies_clients)
        self._rank = RANK[plan.log_level]
        self.events: list[tuple[int, NodeId, Event]] = []
        """(t ns, node, event) of the scenario's log level, in order."""
        self._marked = 0
        self._seen: dict[type[Event], int] = {}
        self.faults: list[FaultRow] = []
        self._asking = ("", 0)
        self.injected: dict[str, int] = {}
        """Fault kind -> how often it hit."""
        self._open: dict[Pair, int] = {}
        """Treated link -> number of its row in `faults`."""
        self._before: dict[Pair, tuple[int, ...]] = {}
        self._copies: dict[NodeId, dict[str, bytes]] = {}
        """Of data directories, as they once were."""
        self._exits: dict[NodeId, list[NodeExit]] = {node: [] for node in plan.ids}
        self._causes = Causes()
        self._rotten: list[tuple[NodeId, Rot]] = []
        """What old rot has changed."""
        self._up: set[NodeId] = set()
        """Nodes whose process came up."""
        self._in_force: list[_InForce] = []
        """Faults of disks and clocks that a heal ends."""
        self.statuses: dict[NodeId, Status] = {}
        self.leaders = SeenLeaders()
        self._reasons: dict[NodeId, str] = {}
        """Why a node failed last, as it reported."""
        self.nodes: dict[NodeId, SimNode] = {}
        for node in plan.ids:
            ports = {peer: peer for peer in plan.ids if peer != node}
            settings = node_settings(plan, node, node, ports, f"node_{node}", "sim", "sim")
            config = msgspec.convert(settings, NodeConfig)
            self.nodes[node] = SimNode(
                loop, self.network, config, seed, self._on_event, watch.on_delivered, self._on_end
            )
        self.network.nodes = self.nodes

    @property
    def addresses(self) -> Addresses:
        return {node: ("sim", node) for node in self.nodes}

    def now_ns(self) -> int:
        return round(self._loop.now * 1e9)

    # ---- what nodes report -------------------------------------------------------------------------

    def _on_event(self, node: NodeId, event: Event) -> None:
        kind = type(event)
        if isinstance(event, NodeFailed):
            self._reasons[node] = event.reason
        self._seen[kind] = self._seen.get(kind, 0) + 1
        if RANK[kind.level] >= self._rank:
            self.events.append((self.now_ns(), node, event))
        self._watch.on_event(node, event)
        if kind in (HeartbeatSent, HeartbeatReceived) and (excess := self.nodes[node].excess()):
            raise Violation("A10", f"node {node}: {excess}")

    @property
    def seen(self) -> dict[str, int]:
        """Event kind -> how often it was reported."""
        return {str(kind.__struct_config__.tag): count for kind, count in self._seen.items()}

    def _on_end(self, node: NodeId, code: int, asked: bool) -> None:
        each = self.nodes[node]
        cause = None if asked else self._causes.why(node, code, each.starts)
        because = "" if cause is None else cause.what
        self._exits[node].append(NodeExit(self.now_ns(), code, asked or cause is not None, because))
        role = each.core.role_name if node in self._up else "down"
        self._up.discard(node)
        if cause is not None:
            self._ended_by_disk(node, role, code, cause)
        elif not asked:
            reason = self._reasons.get(node, "")
            raise Violation("A10", f"node {node} ended by itself with code {code}{': ' if reason else ''}{reason}")

    def _ended_by_disk(self, node: NodeId, role: str, code: int, cause: Cause) -> None:
        """The fault of its disk has had its effect."""
        of = ("disk", cause.step, node)
        number = max(at for at, row in enumerate(self.faults) if (row.fault, row.step, row.target) == of)
        fault = self.faults[number]
        if not fault.effect:
            self._hit(number)
        self._record("exit", node, role, self.now_ns(), {"exit": code, "because": cause.what}, True, cause.step)
        self.faults[-1] = msgspec.structs.replace(self.faults[-1], asked=fault.asked, round=fault.round)

    def mark_events(self) -> None:
        self._marked = len(self.events)

    def count_events(self, nodes: Sequence[NodeId], until: UntilEvent) -> Callable[[], int]:
        at, count = self._marked, 0
        wanted = {key: as_text(value) for key, value in until.where.items()}

        def counted() -> int:
            nonlocal at, count
            for _, node, event in self.events[at:]:
                if node in nodes and event.__struct_config__.tag == until.event:
                    fields = {"node": node, **msgspec.structs.asdict(event)}
                    count += all(as_text(fields.get(key)) == value for key, value in wanted.items())
            at = len(self.events)
            return count

        return counted

    def use(self) -> dict[NodeId, NodeUse]:
        return {
            node: NodeUse(each.starts, 0.0, 0, tuple(self._exits[node])) for node, each in sorted(self.nodes.items())
        }

    # ---- looking -----------------------------------------------------------------------------------

    async def open(self, seed: int) -> None:
        pass

    def look(self) -> None:
        pass

    async def view(self) -> ClusterView:
        views = {}
        self.statuses = {}
        for node, each in self.nodes.items():
            if each.running and not each.paused:
                status = self.statuses[node] = each.turn.status()
                views[node] = NodeView(
                    True, False, status.role, status.term, status.leader, status.commit_seq, status.delivered_seq
                )
            else:
                views[node] = NodeView(each.running, each.paused)
        self.leaders.look(self.now_ns(), self.statuses)
        return ClusterView(views, self.killed)

    @property
    def killed(self) -> tuple[NodeId, ...]:
        """As Cluster.killed."""
        down = (node for node, each in self.nodes.items() if not each.running and self._exits[node])
        return tuple(node for node in down if self._exits[node][-1].asked)

    def _role(self, node: NodeId) -> str:
        each = self.nodes[node]
        if not each.running:
            return "down"
        return "unknown" if each.paused else each.core.role_name

    # ---- nodes -------------------------------------------------------------------------------------

    async def launch(self, targets: Sequence[NodeId]) -> dict[NodeId, float]:
        """Start those that are down; returns how long each took. One that refuses to start stays down."""
        took = {}
        for node in targets:
            if not self.nodes[node].running:
                took[node] = self._rng.uniform(BOOT_LEAST_S, BOOT_MOST_S)
                self._loop.post(self._loop.now + took[node], self._boot, node)
        await asyncio.sleep(max(took.values(), default=0.0) + 0.001)
        return took

    def _boot(self, node: NodeId, rebuild: bool = False) -> None:
        each = self.nodes[node]
        if not each.running and each.start(rebuild):
            self._up.add(node)
            self._causes.survived(node)
            self._watch.recovered(node, each.storage.delivered_seq)

    async def start_in_vain(self, targets: Sequence[NodeId], step: int) -> str:
        began = self.now_ns()
        await self.launch(targets)
        for node in targets:
            end = self._exits[node][-1] if self._exits[node] else None
            if self.nodes[node].running or end is None or end.t < began or end.code != EXIT_CORRUPTION:
                return f"node {node} did not refuse its disk"
            said = (each for _, by, each in reversed(self.events) if by == node and isinstance(each, events.Failed))
            says = next(said).reason
            cause = self._causes.why(node, end.code, self.nodes[node].starts)
            if cause is None or cause.place not in says:
                return f"node {node} did not name what is damaged: {says}"
            self._record("refusal", node, "down", began, {"exit": end.code, "says": says}, True, step)
        return ""

    async def start(self, targets: Sequence[NodeId], step: int) -> None:
        roles = {node: self._role(node) for node in targets}
        began = self.now_ns()
        took = await self.launch(targets)
        for node in targets:
            hit = node in took and self.nodes[node].running
            evidence: dict[str, Any] = {"found": "its disk kept it from running" if node in took else "ran already"}
            if hit:
                evidence = {"ready_s": round(took[node], 4)}
            elif node in took and ended_at_work(self._exits[node], began):
                hit, evidence = True, {"found": "the others know that its data is older"}
            self._record("start", node, roles[node], began, evidence, hit, step)

    async def end(self, targets: Sequence[NodeId], fault: str, step: int) -> None:
        began = self.now_ns()
        for node in targets:
            each, role = self.nodes[node], self._role(node)
            evidence: dict[str, Any] = {"found": "did not run"}
            if each.running:
                if fault == "kill":
                    each.kill()
                else:
                    each.stop()
                signal = "SIGKILL" if fault == "kill" else "SIGTERM"
                evidence = {"signal": signal, "exit": self._exits[node][-1].code}
            hit = "exit" in evidence and not each.running
            self._record(fault, node, role, began, evidence, hit, step)
        await asyncio.sleep(0.001)

    async def pause(self, targets: Sequence[NodeId], step: int) -> None:
        for node in targets:
            each, role = self.nodes[node], self._role(node)
            hit = each.running and not each.paused
            if hit:
                each.pause()
            evidence = {"state": "stopped"} if each.paused else {"found": "did not run"}
            self._record("pause", node, role, self.now_ns(), evidence, hit, step)

    async def resume(self, targets: Sequence[NodeId], step: int) -> None:
        for node in targets:
            each, role = self.nodes[node], self._role(node)
            hit = each.running and each.paused
            if hit:
                each.resume()
            evidence = {"state": "running"} if hit else {"found": "was not paused"}
            self._record("resume", node, role, self.now_ns(), evidence, hit, step)
        await asyncio.sleep(0.001)

    async def disturb(self, chaos: Chaos, targets: Sequence[NodeId], step: int) -> None:
        await asyncio.gather(*(self._disturb_one(chaos, node, step) for node in targets))

    async def _disturb_one(self, chaos: Chaos, node: NodeId, step: int) -> None:
        """As Cluster._disturb_one."""
        each, role, began = self.nodes[node], self._role(node), self.now_ns()
        stints = random.Random(self._rng.getrandbits(64))
        until, stops, longest, whole = self._loop.now + chaos.time, 0, 0.0, 0.0
        runs = draw_first_stint(chaos, stints)
        while each.running and not each.paused:
            await asyncio.sleep(min(runs, max(0.0, until - self._loop.now)))
            if self._loop.now >= until or not each.running or each.paused:
                break
            runs = draw_stint(chaos.longest, stints)
            stint = min(draw_stint(chaos.longest, stints), max(0.0, until - self._loop.now))
            each.pause()
            await asyncio.sleep(stint)
            stops, longest, whole = stops + 1, max(longest, stint), whole + stint
            if each.running and each.paused:
                each.resume()
        evidence = {"stops": stops, "stopped_s": round(whole, 4), "longest_s": round(longest, 4)}
        self._record("chaos", node, role, began, evidence, stops > 0, step)

    async def crowd(self, busy: Busy, step: int) -> None:
        raise RunFailed(f"{busy}: there is no processor in a simulation")

    async def besiege(self, garbage: Garbage, targets: Sequence[NodeId], step: int) -> None:
        raise RunFailed(f"{garbage}: there are no sockets in a simulation")

    # ---- links -------------------------------------------------------------------------------------

    async def treat(self, link: Link, pairs: Sequence[Pair], step: int) -> None:
        self._settle([pair for pair in pairs if pair in self._open])
        rule = rule_of(link)
        evidence = {"pairs": tuple(pairs), "rule": msgspec.to_builtins(rule)} | dict.fromkeys(LINK_EFFECTS, 0)
        target, role = self._receiver(pairs)
        self._record("link", target, role, self.now_ns(), evidence, False, step)
        for pair in pairs:
            way = self.network.way(pair)
            self._open[pair] = len(self.faults) - 1
            self._before[pair] = tuple(getattr(way.counts, name) for name in LINK_EFFECTS)
            way.treat(rule)

    def _settle(self, pairs: Sequence[Pair]) -> None:
        """The rules of these links are over: their rows get the evidence."""
        for pair in pairs:
            number, before = self._open.pop(pair), self._before.pop(pair)
            row, counts = self.faults[number], self.network.way(pair).counts
            for name, old in zip(LINK_EFFECTS, before, strict=True):
                row.evidence[name] += getattr(counts, name) - old
            hit = any(row.evidence[name] for name in LINK_EFFECTS)
            if hit and not row.effect:
                self._count("link")
            self.faults[number] = msgspec.structs.replace(row, effect=hit, t_healed=self.now_ns())

    async def reset(self, pairs: Sequence[Pair], step: int) -> None:
        broken = sum(self.network.way(pair).reset() for pair in pairs)
        target, role = self._receiver(pairs)
        evidence = {"pairs": tuple(pairs), "connections": broken}
        self._record("reset", target, role, self.now_ns(), evidence, broken > 0, step)
        await asyncio.sleep(0.001)

    def _receiver(self, pairs: Sequence[Pair]) -> tuple[NodeId, str]:
        """As Cluster._receiver."""
        targets = {to for _, to in pairs}
        target = min(targets) if len(targets) == 1 else 0
        return target, self._role(target) if target else ""

    async def heal_links(self, step: int) -> None:
        treated = list(self._open)
        if not treated:
            return
        self._settle(treated)
        for pair in treated:
            self.network.way(pair).treat(None)
        self._record("heal", 0, "", self.now_ns(), {"links": len(treated)}, True, step)

    # ---- what only a simulation can do -------------------------------------------------------------

    async def hurt(self, step: MachineStep, targets: Sequence[NodeId], index: int) -> None:
        nodes = sorted(set(targets))
        match step:
            case PowerLoss():
                await self._lose_power(nodes, step, index)
            case Disk():
                for node in nodes:
                    self._hurt_disk(node, step, index)
            case Clock():
                for node in nodes:
                    each = self.nodes[node]
                    each.set_drift(step.drift)
                    each.wall_offset += float(step.jump)
                    evidence = {"drift": step.drift, "jump_s": float(step.jump), "misread": 0}
                    self._record("clock", node, self._role(node), self.now_ns(), evidence, False, index)
                    self._now_in_force(node, "clocks", "misread")
            case Rebuild():
                await self._rebuild(nodes, index)
        await asyncio.sleep(0.001)

    async def _lose_power(self, nodes: Sequence[NodeId], step: PowerLoss, index: int) -> None:
        """As Disks.lose_power."""
        began, roles = self.now_ns(), {node: self._role(node) for node in nodes}
        running = [node for node in nodes if self.nodes[node].running]
        tears: dict[NodeId, Tear | None] = {}
        if step.tail == "torn":
            tears = await self._wait_for_tears(running)
        for node in running:
            self.nodes[node].loss = None
        if step.mid_write:
            await self._die_in_a_write([node for node in running if not self.nodes[node].paused])
        for node in nodes:
            each, in_a_write = self.nodes[node], self.nodes[node].loss is not None
            if each.running:
                each.lose_power(tears.get(node))
            evidence: dict[str, Any] = {"found": "did not run"}
            hit = False
            if node in running and each.loss is not None:
                evidence = {"exit": self._exits[node][-1].code} | each.loss.evidence()
                hit = each.loss.tear is not None if step.tail == "torn" else each.loss.effect
            if "exit" in evidence and step.mid_write:
                evidence["in_a_write"] = hit = in_a_write
            self._record("power_loss", node, roles[node], began, evidence, hit, index)
            if hit and step.mid_write:
                self._count("power_loss in a write")

    async def _die_in_a_write(self, nodes: Sequence[NodeId]) -> None:
        """Each node dies in the middle of one of its next disk operations; done when all have, or have none."""
        for node in nodes:
            files = self.nodes[node].files
            files.crash_at = files.operations + self._rng.randint(1, MID_WRITE_OPERATIONS)
        until = self._loop.now + MID_WRITE_PATIENCE_S
        while self._loop.now < until and any(self.nodes[node].running for node in nodes):
            await asyncio.sleep(TORN_LOOK_S)

    async def _wait_for_tears(self, nodes: Sequence[NodeId]) -> dict[NodeId, Tear | None]:
        """The disks stop answering; where each log will end once an entry of it waits."""
        tears: dict[NodeId, Tear | None] = dict.fromkeys(nodes)
        slow = {node: self.nodes[node].slow_sync for node in nodes}
        for node in nodes:
            self.nodes[node].slow_sync = TORN_PATIENCE_S * 10
        until = self._loop.now + TORN_PATIENCE_S
        while not all(tears.values()) and self._loop.now < until:
            await asyncio.sleep(TORN_LOOK_S)
            for node in nodes:
                files = self.nodes[node].files
                tears[node] = draw_tear(files.contents(), files.synced(), self._rng)
        for node in nodes:
            self.nodes[node].slow_sync = slow[node]
        return tears

    def _hurt_disk(self, node: NodeId, step: Disk, index: int) -> None:
        each, role = self.nodes[node], self._role(node)
        if step.copy:
            copy = self._copies[node] = each.files.contents()
            self._record("disk", node, role, self.now_ns(), {"copied": sum(map(len, copy.values()))}, bool(copy), index)
            return
        if step.rot or step.lose or step.restore:
            if each.running and step.needs_dead_node:
                each.kill()
                self._record("kill", node, role, self.now_ns(), {"signal": "SIGKILL"}, True, index)
            found, place = self._damage(node, step)
            if cause := cause_of(step, index, place):
                self._causes.add(node, cause)
            damage = {step.leaves: found or "nothing"}
            self._record("disk", node, role, self.now_ns(), damage, bool(found), index)
            return
        if cause := cause_of(step, index):
            self._causes.add(node, cause)
        if step.slow:
            self._settle_in_force("disks", node, "slowed")
            state, proof = f"slow by {step.slow}", "slowed"
            each.slow_sync = float(step.slow)
        elif step.full:
            state, proof = "full", "refused"
            each.files.capacity = each.files.used()
        else:
            state, proof = f"failing {step.failing}", "failed"
            each.fail(step.failing)
        self._record("disk", node, role, self.now_ns(), {"state": state, proof: 0}, False, index)
        self._now_in_force(node, "disks", proof)

    def _damage(self, node: NodeId, step: Disk) -> tuple[str, str]:
        """Change a byte or lose a file; returns which, and where a node has to see it; "" where nothing was damaged."""
        files = self.nodes[node].files
        contents = files.contents()
        if step.restore:
            return self._put_back(node, contents), ""
        if step.lose == "all":
            self.nodes[node].lose_disk()
            self._watch.forget(node)
            return ", ".join(contents), ""
        if step.lose:
            name = file_name(step.lose, node, contents)
            if not name:
                return "", ""
            files.remove(name)
            return name, lost_place(name)
        rot = draw_rot(contents, step.rot, node, self._rng)
        if rot is None:
            return "", ""
        damaged = bytearray(contents[rot.name])
        damaged[rot.at] = rot.after
        if not step.needs_dead_node:
            files.rot(rot.name, rot.at, rot.after)
            self._rotten.append((node, rot))
            return str(rot), ""
        files.put(rot.name, bytes(damaged))
        return str(rot), rot.name

    @property
    def rotten(self) -> list[str]:
        """As Disks.rotten."""
        found = []
        for node, rot in self._rotten:
            data = self.nodes[node].files.contents().get(rot.name, b"")
            found += [str(rot)] if data[rot.at : rot.at + 1] == bytes([rot.after]) else []
        return found

    def _put_back(self, node: NodeId, contents: dict[str, bytes]) -> str:
        """The latest copy takes the place of the data directory; returns what that changed, "" if nothing."""
        copy, files = self._copies.get(node, contents), self.nodes[node].files
        if copy == contents:
            return ""
        for name in contents.keys() - copy.keys():
            files.remove(name)
        for name, data in copy.items():
            files.put(name, data)
        self._watch.forget(node)
        return f"{sum(map(len, copy.values()))} bytes instead of {sum(map(len, contents.values()))}"

    def _now_in_force(self, node: NodeId, kind: str, proof: str) -> None:
        """The latest row is of a fault that lasts, and that this count of the node proves."""
        self._in_force.append(_InForce(node, kind, proof, len(self.faults) - 1, getattr(self.nodes[node], proof)))

    def _settle_in_force(self, kind: str, node: NodeId = 0, proof: str = "") -> None:
        """Faults of disks or clocks are over, on all nodes or of one node and proof: their rows get the evidence."""
        over = [
            each
            for each in self._in_force
            if each.kind == kind and (not node or (each.node, each.proof) == (node, proof))
        ]
        self._in_force = [each for each in self._in_force if each not in over]
        for fault in over:
            row = self.faults[fault.row]
            hits = row.evidence[fault.proof] = getattr(self.nodes[fault.node], fault.proof) - fault.before
            if fault.proof in FATAL:
                row.evidence["exits"] = [end.code for end in self._exits[fault.node] if end.t >= row.t]
            self.faults[fault.row] = msgspec.structs.replace(row, t_healed=self.now_ns())
            if hits and not row.effect:
                self._hit(fault.row)

    async def _rebuild(self, nodes: Sequence[NodeId], index: int) -> None:
        for node in nodes:
            each, role = self.nodes[node], self._role(node)
            evidence: dict[str, Any] = {"disk": "lost"}
            if each.running:
                each.kill()
                evidence["exit"] = self._exits[node][-1].code
            lost = evidence["lost_bytes"] = each.files.used()
            each.lose_disk()
            self._causes.forget(node)
            self._watch.forget(node)
            self._record("rebuild", node, role, self.now_ns(), evidence, lost > 0, index)
            await asyncio.sleep(self._rng.uniform(BOOT_LEAST_S, BOOT_MOST_S))
            self._boot(node, rebuild=True)
            self._record("start", node, "down", self.now_ns(), {"rebuild": True}, each.running, index)

    async def mend(self, what: str, step: int) -> None:
        for node, each in self.nodes.items():
            if what in ("clocks", "all"):
                each.set_drift(0.0)
            if what in ("disks", "all"):
                each.quicken_disk()
                each.files.capacity = each.files.on_operation = None
                each.files.crash_at = None
                self._causes.mended(node, each.starts)
        for kind in ("disks", "clocks"):
            if what in (kind, "all"):
                self._settle_in_force(kind)

    # ---- rows --------------------------------------------------------------------------------------

    def asking(self, text: str, number: int) -> None:
        self._asking = (text, number)

    def _record(
        self, fault: str, target: NodeId, role: str, t: int, evidence: dict[str, Any], effect: bool, step: int
    ) -> None:
        asked, number = self._asking if step >= 0 else ("", 0)
        self.faults.append(
            FaultRow(fault, target, role, t, self.now_ns(), evidence, effect, step, asked=asked, round=number)
        )
        if effect and step >= 0 and fault != "heal":
            self._count(fault)

    def _hit(self, number: int) -> None:
        """A fault whose effect could not be seen at once has had it."""
        row = self.faults[number] = msgspec.structs.replace(self.faults[number], effect=True)
        if row.step >= 0:
            self._count(row.fault)

    def _count(self, fault: str) -> None:
        self.injected[fault] = self.injected.get(fault, 0) + 1

    async def close(self) -> None:
        """SIGTERM everything that runs."""
        for each in self.nodes.values():
            if each.running:
                each.stop()

    def drop(self) -> None:
        pass
