"""The cluster of a run: its configuration files, its processes, the proxy between them, and what is done to them.

Everything done to a node or a link leaves a row in faults.jsonl with the evidence that it happened.
"""

from __future__ import annotations

import asyncio
import dataclasses
import random
import secrets
import signal
import sys
import time
from collections.abc import Callable, Sequence
from itertools import count
from typing import Any, assert_never

import msgspec
import yaml

from lab.course.damage import ended_at_work
from lab.course.links import CLIENTS, LINK_EFFECTS, LinkCounts, Pair
from lab.course.manifest import HOST, node_settings, rule_of
from lab.course.observation import SeenLeaders
from lab.course.world import RunFailed
from lab.live.busy import BusyProcesses
from lab.live.children import Child
from lab.live.disks import Disks
from lab.live.garbage import Crowd, Mark, besiege
from lab.live.observation import EventCount, StatusLine, file_sizes
from lab.live.processes import HeldPort, Lifeline, NodeProcess, Program
from lab.live.proxy import Break, Broken, Count, Evidence, Open, Opened, Order, Treat
from lab.plan.command import filled
from lab.plan.scenario import Cluster as ClusterPlan
from lab.plan.scenario import Scenario
from lab.rows import FaultRow, NodeExit, NodeUse, Sample, encode_row
from lab.rundir import RunDir
from lab.steps import Busy, Chaos, Clock, Disk, Garbage, Link, MachineStep, PowerLoss, Rebuild, UntilEvent
from lab.steps.chaos import draw_first_stint, draw_stint
from lab.steps.targets import ClusterView, NodeView
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
    """See the module's docstring.

    Args:
        on_sample: is handed every CPU and memory sample.
        mutant: what is started in place of the nodes' own program; "": nothing.
    """

    def __init__(self, scenario: Scenario, run: RunDir, on_sample: Callable[[Sample], None], mutant: str = "") -> None:
        self._scenario, self._run, self._on_sample, self._mutant = scenario, run, on_sample, mutant
        self._ports: dict[NodeId, HeldPort] = {}
        self._client_ports: dict[NodeId, int] = {}
        """Where the proxy listens for clients, if it is between them and the nodes."""
        self._status_lines: dict[NodeId, StatusLine] = {}
        self._lifeline = Lifeline()
        self._cluster_id = f"{scenario.name} {run.path.name}"
        self._proxy: Child | None = None
        self._treated: dict[Pair, tuple[int, LinkCounts]] = {}
        """Link with a rule -> (number of its row, evidence before the rule)."""
        self._open_rows: dict[int, FaultRow] = {}
        """Of rules that are in force, by number."""
        self._numbers = count()
        self._faults = run.faults.open("ab", buffering=0)
        self.nodes: dict[NodeId, NodeProcess] = {}
        self.statuses: dict[NodeId, Status] = {}
        """The latest answers; a node that did not answer the latest question is missing."""
        self.leaders = SeenLeaders()
        self.proxy: dict[str, Any] = {}
        """What became of every link's frames, once the run is over; empty for direct links."""
        self._events_before: dict[Any, int] = {}
        """Bytes of each event file at the latest mark_events()."""
        self._busy: list[tuple[BusyProcesses, FaultRow]] = []
        """The busy processes of each `busy` step, and its row."""
        self._seed = 0
        self._asking = ("", 0)
        """See asking()."""
        self._disks = Disks(run, self.nodes, self._role, self._row, self._record)

    @property
    def addresses(self) -> dict[NodeId, Address]:
        """Where clients reach each node."""
        return {node: (HOST, self._client_ports.get(node, held.port)) for node, held in self._ports.items()}

    # ---- from nothing to configured, and back ----------------------------------------------------

    async def open(self, seed: int) -> None:
        """Take the ports, start the proxy where the scenario needs one, write the nodes' files."""
        plan, run, self._seed = self._scenario.cluster, self._run, seed
        self._ports = {node: HeldPort(HOST) for node in plan.ids}
        ways = await self._open_ways(seed)
        cluster_id, secret = self._cluster_id, secrets.token_hex(16)
        for node, held in self._ports.items():
            run.node_dir(node).mkdir(parents=True, exist_ok=True)  # It may hold a history already.
            peers = {peer: ways[node, peer] for peer in plan.ids if peer != node}
            data_dir = str(run.node_dir(node).resolve())
            settings = node_settings(plan, node, held.port, peers, data_dir, cluster_id, secret)
            program = program_of(plan, run, settings)
            if program is None:
                run.node_config(node).write_text(yaml.safe_dump(settings, sort_keys=False), "utf-8")
            self._status_lines[node] = StatusLine((HOST, held.port), plan.client_token)
            process = NodeProcess(
                node,
                HOST,
                held.port,
                run.node_config(node),
                run.node_log(node),
                self._lifeline.fd,
                self._on_sample,
                program=program,
                mutant=self._mutant,
                client_token=plan.client_token,
            )
            process.on_end = self._disks.on_end
            if self._scenario.layered:
                process.ledger = run.ledger(node)
            self.nodes[node] = process
        self._disks.open(seed, self._scenario.layered)

    async def _open_ways(self, seed: int) -> dict[Pair, int]:
        """(from, to) -> the port at which `from` reaches `to`: its own, or the proxy's."""
        ports = {node: held.port for node, held in self._ports.items()}
        if not self._scenario.proxied:
            return {(source, to): ports[to] for source in ports for to in ports}
        self._proxy = await Child.spawn("proxy", "lab.live.proxy", self._run.proxy_log)
        frames = not self._scenario.cluster.is_foreign
        answer = await self._ask_proxy(Open(HOST, ports, seed, self._scenario.proxies_clients, frames))
        opened = msgspec.json.decode(answer, type=Opened)
        self._client_ports = {to: port for source, to, port in opened.ports if source == CLIENTS}
        return {(source, to): port for source, to, port in opened.ports}

    async def close(self) -> None:
        """SIGTERM everything that runs, and let go of what was held."""
        await self._end_all([node for node in self.nodes.values() if node.running], signal.SIGTERM)
        await self._calm_down()
        self._disks.close()
        if self._proxy is not None:
            self.proxy = await self._proxy_evidence()
            await self._proxy.close()
        self.drop()

    async def gone(self) -> None:
        """Wait for the end of the lab's own processes that drop() killed."""
        await asyncio.gather(*(busy.gone() for busy, _ in self._busy))
        if self._proxy is not None:
            await self._proxy.process.wait()

    def drop(self) -> None:
        """Kill what still runs and let go of everything, at once: for any end of a run. May be called again."""
        for node in self.nodes.values():
            node.kill_now()
        for busy, _ in self._busy:
            busy.kill()
        if self._proxy is not None:
            self._proxy.kill()
        for line in self._status_lines.values():
            line.hang_up()
        for held in self._ports.values():
            held.release()
        self._ports = {}
        if not self._faults.closed:
            self._faults.close()
            self._lifeline.cut()

    # ---- looking ---------------------------------------------------------------------------------

    async def view(self) -> ClusterView:
        """Ask every node that runs and is not paused, all at the same time."""
        asked = [node for node, process in self.nodes.items() if process.running and not process.paused]
        answers = await asyncio.gather(*(self._status_lines[node].ask() for node in asked))
        self.statuses = {node: answer for node, answer in zip(asked, answers, strict=True) if answer is not None}
        self.leaders.look(time.monotonic_ns(), self.statuses)
        return ClusterView({node: self._node_view(node) for node in self.nodes}, self.killed)

    @property
    def killed(self) -> tuple[NodeId, ...]:
        """The nodes that the lab took down and has not started since."""
        down = (process for process in self.nodes.values() if not process.running and process.exits)
        return tuple(process.node for process in down if process.exits[-1].asked)

    def _node_view(self, node: NodeId) -> NodeView:
        process, answer = self.nodes[node], self.statuses.get(node)
        if answer is None:
            return NodeView(process.running, process.paused)
        return NodeView(
            running=process.running,
            paused=process.paused,
            role=answer.role,
            term=answer.term,
            leader=answer.leader,
            commit_seq=answer.commit_seq,
            delivered_seq=answer.delivered_seq,
        )

    def look(self) -> None:
        """Sample every process."""
        for node in self.nodes.values():
            node.look()

    def use(self) -> dict[NodeId, NodeUse]:
        return {node: process.use() for node, process in self.nodes.items()}

    def _role(self, node: NodeId) -> str:
        """For rows: what it was when last looked at."""
        process = self.nodes[node]
        if not process.running:
            return "down"
        return self.statuses[node].role if node in self.statuses else "unknown"

    # ---- events --------------------------------------------------------------------------------------

    def mark_events(self) -> None:
        """Events are counted from here on."""
        self._events_before = file_sizes(self._run.events(node) for node in self.nodes)

    def count_events(self, nodes: Sequence[NodeId], until: UntilEvent) -> Callable[[], int]:
        """Counts these nodes' events of one kind since the latest mark_events()."""
        paths = {path: self._events_before.get(path, 0) for path in (self._run.events(node) for node in nodes)}
        return EventCount(paths, until.event, until.where).update

    # ---- nodes -----------------------------------------------------------------------------------

    async def launch(self, targets: Sequence[NodeId]) -> dict[NodeId, float]:
        """Start those that are down, all at once, and wait until they answer.

        Returns:
            seconds that each took. One that its disk keeps from running stays down, and is missing.
        """
        down = [node for node in targets if not self.nodes[node].running]
        for node in down:
            self.nodes[node].start()
        took = await asyncio.gather(*(self._ready(node) for node in down))
        return {node: ready_s for node, ready_s in zip(down, took, strict=True) if ready_s is not None}

    async def _ready(self, node: NodeId) -> float | None:
        """Seconds until it answered; None where it ended of what was done to its disk."""
        process = self.nodes[node]
        try:
            took = await process.ready()
        except RunFailed:
            if not process.running and process.exits[-1].because:
                return None
            raise
        self._disks.came_up(node)
        return took

    async def start(self, targets: Sequence[NodeId], step: int) -> None:
        """As launch, with rows."""
        roles = {node: self._role(node) for node in targets}
        began = time.monotonic_ns()
        took = await self.launch(targets)
        for node in targets:
            evidence: dict[str, Any] = {"pid": self.nodes[node].pid}
            if node in took:
                evidence["ready_s"] = round(took[node], 4)
            else:
                evidence["found"] = "ran already" if self.nodes[node].running else "its disk kept it from running"
            hit = node in took
            if not hit and ended_at_work(self.nodes[node].exits, began):
                hit, evidence["found"] = True, "the others know that its data is older"
            done = began + int(took.get(node, 0.0) * 1e9)
            self._record(self._row("start", node, roles[node], began, evidence, hit, step, done))

    async def start_in_vain(self, targets: Sequence[NodeId], step: int) -> str:
        """Start nodes that must refuse their damaged disks; done when they have ended."""
        began = time.monotonic_ns()
        await self.launch(targets)
        found = (self._disks.refusal(node, began, step) for node in targets)
        return next(filter(None, found), "")

    async def end(self, targets: Sequence[NodeId], fault: str, step: int) -> None:
        """fault: "kill" (SIGKILL) or "stop" (SIGTERM), all at once; done when the processes are gone."""
        how = signal.SIGKILL if fault == "kill" else signal.SIGTERM
        roles = {node: self._role(node) for node in targets}
        pids = {node: self.nodes[node].pid for node in targets}
        began = time.monotonic_ns()
        running = [node for node in targets if self.nodes[node].running]
        ends = zip(running, await self._end_all([self.nodes[node] for node in running], how), strict=True)
        exits = {node: end for node, end in ends if end is not None}
        for node in targets:
            evidence: dict[str, Any] = {"found": "runs on" if node in running else "did not run"}
            if node in exits:
                evidence = {"pid": pids[node], "signal": how.name, "exit": exits[node].code}
            done = exits[node].t if node in exits else began
            self._record(self._row(fault, node, roles[node], began, evidence, node in exits, step, done))

    async def _end_all(self, processes: Sequence[NodeProcess], how: signal.Signals) -> list[NodeExit | None]:
        return await asyncio.gather(*(process.end(how) for process in processes))

    async def pause(self, targets: Sequence[NodeId], step: int) -> None:
        """SIGSTOP; done when the processes are stopped."""
        for node in targets:
            process, role, began = self.nodes[node], self._role(node), time.monotonic_ns()
            hit = process.running and not process.paused and await process.pause()
            evidence = {"pid": process.pid, "state": process.state()} if process.running else {"found": "did not run"}
            self._record(self._row("pause", node, role, began, evidence, hit, step))

    async def resume(self, targets: Sequence[NodeId], step: int) -> None:
        """SIGCONT; done when the nodes answer."""
        for node in targets:
            process, role, began = self.nodes[node], self._role(node), time.monotonic_ns()
            hit = process.running and process.paused
            evidence: dict[str, Any] = {"found": "was not paused"}
            if hit:
                process.wake()
                evidence = {"pid": process.pid, "answered_s": round(await process.ready(), 4)}
            self._record(self._row("resume", node, role, began, evidence, hit, step))

    # ---- the processor ---------------------------------------------------------------------------

    async def disturb(self, chaos: Chaos, targets: Sequence[NodeId], step: int) -> None:
        """SIGSTOP and SIGCONT in turn, each node at times of its own; done when the time is over and all run."""
        await asyncio.gather(*(self._disturb_one(chaos, node, step) for node in targets))

    async def _disturb_one(self, chaos: Chaos, node: NodeId, step: int) -> None:
        process, role, began = self.nodes[node], self._role(node), time.monotonic_ns()
        stints = random.Random(f"chaos {self._seed} {step} {node}")
        until, stops, longest, whole = time.monotonic() + chaos.time, 0, 0.0, 0.0
        runs = draw_first_stint(chaos, stints)
        while process.running and not process.paused:
            await asyncio.sleep(min(runs, max(0.0, until - time.monotonic())))
            if time.monotonic() >= until or not process.running or process.paused:
                break
            runs = draw_stint(chaos.longest, stints)
            stopped = time.monotonic()
            if await process.pause():
                await asyncio.sleep(min(draw_stint(chaos.longest, stints), max(0.0, until - time.monotonic())))
                stops += 1
            if process.running:
                process.wake()
            stint = time.monotonic() - stopped
            longest, whole = max(longest, stint), whole + stint
        evidence = {"stops": stops, "stopped_s": round(whole, 4), "longest_s": round(longest, 4)}
        self._record(self._row("chaos", node, role, began, evidence, stops > 0, step))

    async def crowd(self, busy: Busy, step: int) -> None:
        """Other processes take processor time; its row is written when they are gone, with what they took."""
        began, processes = time.monotonic_ns(), BusyProcesses(self._run.busy_log)
        row = self._row("busy", 0, "", began, {"processes": busy.processes}, False, step)
        self._busy.append((processes, row))
        await processes.begin(busy.processes)
        self._busy[-1] = (processes, msgspec.structs.replace(row, t_done=time.monotonic_ns()))
        if busy.time:
            await asyncio.sleep(busy.time)
            await self._calm_down()

    async def _calm_down(self) -> None:
        """No process of crowd() is left."""
        crowds, self._busy = self._busy, []
        for processes, row in crowds:
            cpu_s = round(await processes.end(), 3)
            evidence = row.evidence | {"cpu_s": cpu_s}
            self._record(
                msgspec.structs.replace(row, evidence=evidence, effect=cpu_s > 0, t_healed=time.monotonic_ns())
            )

    # ---- strangers -------------------------------------------------------------------------------

    async def besiege(self, garbage: Garbage, targets: Sequence[NodeId], step: int) -> None:
        """Connections that say nonsense or nothing whole; a row for each node says what became of them."""
        roles = {node: self._role(node) for node in targets}
        began = time.monotonic_ns()
        ids = tuple(sorted(self.nodes))
        crowds = {
            node: Crowd(Mark(node, (HOST, self._ports[node].port), self._cluster_id, self._peer_of(node), ids))
            for node in targets
        }
        before = {node: self.nodes[node].memory_bytes() for node in targets}
        rng = random.Random(f"garbage {self._seed} {step}")
        coming = [
            besiege(
                crowds[node],
                share_of(garbage.connections, at, len(targets)),
                share_of(garbage.half_open, at, len(targets)),
                garbage.time,
                random.Random(rng.getrandbits(64)),
            )
            for at, node in enumerate(targets)
        ]
        await asyncio.gather(*coming)
        for node, crowd in crowds.items():
            evidence = {name: value for name, value in dataclasses.asdict(crowd).items() if name != "mark"}
            (rss, _), (rss_now, peak) = before[node], self.nodes[node].memory_bytes()
            evidence |= {"rss_before_bytes": rss, "rss_after_bytes": rss_now, "rss_peak_bytes": peak}
            self._record(self._row("garbage", node, roles[node], began, evidence, crowd.closed + crowd.held > 0, step))

    def _peer_of(self, node: NodeId) -> NodeId:
        """Another member; in a cluster of one itself."""
        return next((each for each in self.nodes if each != node), node)

    # ---- machines, disks and clocks --------------------------------------------------------------

    @property
    def rotten(self) -> list[str]:
        """As Disks.rotten."""
        return self._disks.rotten

    async def hurt(self, step: MachineStep, targets: Sequence[NodeId], index: int) -> None:
        match step:
            case PowerLoss():
                await self._disks.lose_power(step, targets, index)
            case Disk():
                await self._disks.hurt(step, targets, index)
            case Clock():
                self._disks.misset(step, targets, index)
            case Rebuild():
                await asyncio.gather(*(self._rebuild(node, index) for node in targets))
            case _:
                assert_never(step)

    async def _rebuild(self, node: NodeId, index: int) -> None:
        """Its disk is lost, and it starts again on an empty one; done when it answers."""
        if not await self._disks.wipe(node, index):
            return
        began = time.monotonic_ns()
        self.nodes[node].start("--rebuild")
        evidence = {"pid": self.nodes[node].pid, "rebuild": True, "ready_s": round(await self.nodes[node].ready(), 4)}
        self._disks.came_up(node)
        self._record(self._row("start", node, "down", began, evidence, True, index))

    # ---- links -----------------------------------------------------------------------------------

    async def treat(self, link: Link, pairs: Sequence[Pair], step: int) -> None:
        """Put a rule on these links, whatever ends it names. Its row is written when it is over, with its evidence."""
        rule = rule_of(link)
        began = time.monotonic_ns()
        before = await self._counted(Treat(tuple(pairs), rule))
        self._settle(before, [pair for pair in pairs if pair in self._treated])
        number = next(self._numbers)
        evidence = {"pairs": tuple(pairs), "rule": msgspec.to_builtins(rule)} | dict.fromkeys(LINK_EFFECTS, 0)
        target, role = self._receiver(pairs)
        row = self._row("link", target, role, began, evidence, False, step)
        self._open_rows[number] = row
        for pair in pairs:
            self._treated[pair] = (number, before[pair])

    async def mend(self, what: str, step: int) -> None:
        """Disks and clocks are well again, the busy processes end: one of these, or all."""
        if what in ("disks", "clocks", "all"):
            await self._disks.mend(what)
        if what in ("busy", "all"):
            await self._calm_down()

    async def reset(self, pairs: Sequence[Pair], step: int) -> None:
        """Break the connections of these links, once."""
        began = time.monotonic_ns()
        broken = msgspec.json.decode(await self._ask_proxy(Break(tuple(pairs))), type=Broken).connections
        target, role = self._receiver(pairs)
        evidence = {"pairs": tuple(pairs), "connections": broken}
        self._record(self._row("reset", target, role, began, evidence, broken > 0, step))

    def _receiver(self, pairs: Sequence[Pair]) -> tuple[NodeId, str]:
        """For rows: the one node that these links lead to, and what it is; 0 where they lead to several."""
        targets = {to for _, to in pairs}
        target = min(targets) if len(targets) == 1 else 0
        return target, self._role(target) if target else ""

    async def heal_links(self, step: int) -> None:
        """Make all links straight; nothing to do where they are."""
        began, treated = time.monotonic_ns(), list(self._treated)
        if not treated:
            return
        self._settle(await self._counted(Treat(tuple(treated), None)), treated)
        self._record(self._row("heal", 0, "", began, {"links": len(treated)}, True, step))

    async def _proxy_evidence(self) -> dict[str, Any]:
        """What became of every link's frames, for meta.json; empty for direct links."""
        if self._proxy is None:
            return {}
        links = await self._counted(Count())
        return {f"{source}-{to}": msgspec.to_builtins(counts) for (source, to), counts in links.items()}

    async def _counted(self, order: Treat | Count) -> dict[Pair, LinkCounts]:
        """Give the proxy an order that it answers with the evidence so far."""
        answer = msgspec.json.decode(await self._ask_proxy(order), type=Evidence)
        return {(link.sender, link.receiver): link.counts for link in answer.links}

    async def _ask_proxy(self, order: Order) -> bytes:
        if self._proxy is None:
            raise RunFailed("there is no proxy to treat links with")
        return await self._proxy.ask(msgspec.json.encode(order))

    def _settle(self, now: dict[Pair, LinkCounts], over: Sequence[Pair]) -> None:
        """The rules of these links are over: add their evidence to their rows, write the rows that are complete."""
        for pair in over:
            number, before = self._treated.pop(pair)
            evidence = self._open_rows[number].evidence
            for name in LINK_EFFECTS:
                evidence[name] += getattr(now[pair], name) - getattr(before, name)
        left = {number for number, _ in self._treated.values()}
        for number in sorted(set(self._open_rows) - left):
            row = self._open_rows.pop(number)
            hits = sum(row.evidence[name] for name in LINK_EFFECTS)
            self._record(msgspec.structs.replace(row, effect=hits > 0, t_healed=time.monotonic_ns()))

    # ---- rows --------------------------------------------------------------------------------------

    def asking(self, text: str, number: int) -> None:
        self._asking = (text, number)

    def _row(
        self,
        fault: str,
        target: NodeId,
        role: str,
        t: int,
        evidence: dict[str, Any],
        effect: bool,
        step: int,
        t_done: int = 0,
    ) -> FaultRow:
        """t_done: now, where left out."""
        asked, number = self._asking if step >= 0 else ("", 0)
        done = t_done or time.monotonic_ns()
        return FaultRow(fault, target, role, t, done, evidence, effect, step, asked=asked, round=number)

    def _record(self, row: FaultRow) -> None:
        self._faults.write(encode_row(row))
