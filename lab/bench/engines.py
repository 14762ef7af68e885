"""`bench --engines`: other engines beside the lab's own nodes, in alternation, each by its own client library.

Each row is a system of three nodes on this machine: an installed engine with certain settings, or the lab's own nodes.
No adapter and no supervisor stand between the clients and the engine. The heartbeat interval and the election timeout
are those of a scenario without settings, where an engine has such settings; see the drivers in lab.engines.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import shutil
import signal
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, Final, NamedTuple

import yaml

from lab.bench.figures import Collected
from lab.bench.runs import Runs
from lab.bench.writers import WRITERS, Ours, Writer, closed, opened
from lab.course.manifest import node_settings
from lab.engines import catalogue, install
from lab.engines.catalogue import Spec
from lab.engines.engine import Engine, Place, driver_of, until
from lab.live.processes import HeldPort, Lifeline, NodeProcess, Program
from lab.plan.scenario import Cluster
from nodeproc.client import status
from nodeproc.core.messages import NodeId

IDS: Final[tuple[NodeId, ...]] = (1, 2, 3)
SIZE, CLIENTS, IN_FLIGHT, PIPELINES = 100, 64, 250, 4
SECONDS, QUICK_SECONDS = 2.0, 0.5
"""Of each rate and latency."""
ROW_S, FORMED_S, RECOVERED_S, ATTEMPT_S, AGAIN_S = 600.0, 300.0, 60.0, 0.5, 0.02
"""Patience with a round of a row, with a start, with a failover, with a message meanwhile; the pause between tries."""
PROBES = 6
"""Clients that write during a failover."""
ONE, MANY = "1 client", f"{CLIENTS} clients"
PIPELINED = f"{PIPELINES} clients, {IN_FLIGHT} in flight"
KILLED, SILENT = "leader killed", "leader silent"
OURS: Final = "chatlab"


class Setting(NamedTuple):
    """Settings of a system that are measured. promise: what an acknowledgement means."""

    options: Mapping[str, str]
    promise: str


FSYNC: Final = "fsync by a majority"
SETTINGS: Final[Mapping[str, Sequence[Setting]]] = {
    OURS: (Setting({}, FSYNC), Setting({"durability": "os"}, "written by a majority, not synced")),
    "etcd": (Setting({}, FSYNC),),
    "nats": (
        Setting({}, "written by a majority, synced every 2 min"),
        Setting({"sync_interval": "always"}, FSYNC),
    ),
    "pysyncobj": (Setting({}, "written by a majority, never synced"),),
    "rabbitmq": (Setting({}, FSYNC), Setting({"queue": "stream"}, "written by a majority, never synced")),
    "redis": (
        Setting({}, "in memory of one server, synced every second"),
        Setting({"appendfsync": "always", "wait": "1"}, "fsync by one server, in memory of another"),
    ),
    "zookeeper": (Setting({}, FSYNC),),
}


class Row(NamedTuple):
    """One system with one of its settings. spec: the engine; None: the lab's own nodes."""

    spec: Spec | None
    setting: Setting

    @property
    def name(self) -> str:
        system = OURS if self.spec is None else install.version_of(self.spec)
        return ", ".join([system, *(f"{option} {value}" for option, value in self.setting.options.items())])


def rows(words: Sequence[str]) -> list[Row]:
    """Return the lab's own nodes, and the installed engines of these names, NAME or NAME@VERSION; no name: all.

    Raises:
        ValueError, install.NotInstalled: an engine of this name is unknown or not installed.
    """
    there = []
    for spec, _ in install.installed():
        with suppress(install.NotInstalled):  # The library of its client is missing.
            install.program(spec)
            there.append(spec)
    for word in words:
        if not any(word in (spec.name, str(spec)) for spec in there):
            if "@" in word:
                install.program(catalogue.parse(word))  # Says how to install it.
            names = ", ".join(map(str, there)) or "no engine"
            raise ValueError(f"found {word}, allowed the name of an installed engine; installed: {names}")
    chosen = [None, *(spec for spec in there if not words or {spec.name, str(spec)} & set(words))]
    return [Row(spec, setting) for spec in chosen for setting in SETTINGS[OURS if spec is None else spec.name]]


# ---- systems -------------------------------------------------------------------------------------


class System(ABC):
    """The three nodes of a row. processes: all nodes."""

    processes: dict[NodeId, NodeProcess]

    def start(self, node: NodeId) -> None:
        """Start a node's process."""
        self.processes[node].start()

    @abstractmethod
    async def prepared(self, node: NodeId) -> bool:
        """Prepare this node; return whether it can take part. Raises: any Exception."""

    @abstractmethod
    async def leader(self, node: NodeId) -> NodeId:
        """Return the leader as this node reports it; 0: none. Raises: any Exception."""

    @abstractmethod
    def writer(self, node: NodeId) -> Writer:
        """Return a client that uses this node."""

    async def formed(self) -> NodeId:
        """Wait until all nodes take part and agree on a leader; return it. Raises: TimeoutError."""
        leader = 0

        async def agree() -> bool:
            nonlocal leader
            seen = {await self.leader(node) for node in IDS}
            leader = min(seen)
            return len(seen) == 1 and leader > 0

        async with asyncio.timeout(FORMED_S):
            await asyncio.gather(*(until(partial(self.prepared, node)) for node in IDS))
            await until(agree)
        return leader

    async def close(self) -> None:
        """End everything."""
        for process in self.processes.values():
            process.kill_now()


class OfEngine(System):
    """An engine."""

    def __init__(self, row: Row, folder: Path, lifeline: Lifeline) -> None:
        assert row.spec is not None
        spec, plan, hosts = row.spec, Cluster(), catalogue.hosts_of(folder.name, IDS)
        times = (round(plan.heartbeat_interval * 1000), round(plan.election_timeout * 1000))
        self._writer, self._options = WRITERS[spec.name], row.setting.options
        self.drivers: dict[NodeId, Engine] = {}
        self.processes = {}
        for node in IDS:
            home = folder / str(node)
            home.mkdir()
            place = Place(node, IDS, hosts, home / "data", home / "conf", *times, lambda to, port: (hosts[to], port))
            self.drivers[node] = driver_of(spec)(place, str(install.program(spec)), self._options)
            self.processes[node] = NodeProcess(node, 0, home, home / "output", lifeline.fd)

    def start(self, node: NodeId) -> None:
        driver, process = self.drivers[node], self.processes[node]
        command = driver.prepared()
        environment = [f"{name}={value}" for name, value in driver.environment().items()]
        process.program = Program(("env", *environment, *command), str(process.config))
        process.start()

    async def prepared(self, node: NodeId) -> bool:
        if await self.drivers[node].ready():
            await self.drivers[node].setup()
            return True
        return False

    async def leader(self, node: NodeId) -> NodeId:
        return (await self.drivers[node].status()).leader

    def writer(self, node: NodeId) -> Writer:
        return self._writer(self.drivers[node].place, self._options)

    async def close(self) -> None:
        for driver in self.drivers.values():
            with suppress(Exception):  # Each library has its own errors.
                await asyncio.wait_for(driver.close(), 1.0)
        await super().close()


class OfOurs(System):
    """The lab's own nodes."""

    def __init__(self, row: Row, folder: Path, lifeline: Lifeline) -> None:
        plan = Cluster(durability="os" if "durability" in row.setting.options else "fsync")
        self._held = {node: HeldPort() for node in IDS}
        self.processes = {}
        for node, held in self._held.items():
            config = folder / f"{node}.yml"
            peers = {peer: other.address for peer, other in self._held.items() if peer != node}
            settings = node_settings(plan, node, held.address, peers, str(folder / str(node)), folder.name, "bench")
            config.write_text(yaml.safe_dump(settings), "utf-8")
            self.processes[node] = NodeProcess(node, held.port, config, folder / f"{node}.log", lifeline.fd)

    async def prepared(self, node: NodeId) -> bool:
        return True

    async def leader(self, node: NodeId) -> NodeId:
        return (await status(*self._held[node].address)).leader

    def writer(self, node: NodeId) -> Writer:
        return Ours([self._held[node].address])

    async def close(self) -> None:
        await super().close()
        for held in self._held.values():
            held.release()


# ---- measuring -----------------------------------------------------------------------------------


def measure(row: Row, into: Collected, runs: Runs, quick: bool) -> None:
    """Measure one round of a system. If it fails, its remaining figures are missing, with the reason."""
    runs.tell(row.name)
    for library in ("aiormq", "kazoo"):
        logging.getLogger(library).setLevel(logging.CRITICAL)  # Connections break on purpose.
    folder = Path(tempfile.mkdtemp(prefix="engine-", dir=runs.folder.absolute()))
    try:
        _run(_measure(row, into, folder, QUICK_SECONDS if quick else SECONDS))
    except Exception as error:  # An engine that fails is no reason to lose the figures of the others.
        runs.tell(f"{row.name}: figures are left out: {error!r}")
    finally:
        shutil.rmtree(folder)


def _run(main: Coroutine[Any, Any, None]) -> None:
    """Run on uvloop, if it is installed, as the lab's own clients do."""
    loop = None
    with suppress(ImportError):
        import uvloop

        loop = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(main)


async def _measure(row: Row, into: Collected, folder: Path, seconds: float) -> None:
    lifeline = Lifeline()
    system = (OfOurs if row.spec is None else OfEngine)(row, folder, lifeline)
    try:
        async with asyncio.timeout(ROW_S):
            await _add_figures(partial(into.add, row.name), system, seconds)
    finally:
        await system.close()
        lifeline.cut()


async def _add_figures(add: Callable[..., None], system: System, seconds: float) -> None:
    for node in IDS:
        system.start(node)
    leader = await system.formed()
    await _use(system, [leader], 1, _one(seconds / 4))
    times = await _use(system, [leader], 1, _one(seconds))
    add(ONE, "p50 ms", median(times) * 1e3)
    times = await _use(system, IDS, CLIENTS, _one(seconds))
    add(MANY, "messages/s", len(times) / seconds, "more")
    if system.writer(leader).pipelines:
        times = await _use(system, [leader], PIPELINES, _many(seconds))
        add(PIPELINED, "messages/s", len(times) * IN_FLIGHT / seconds, "more")
    add(KILLED, "ms", await _outage(system, leader, signal.SIGKILL) * 1e3)
    await system.processes[leader].ended(RECOVERED_S)
    system.start(leader)
    leader = await system.formed()
    add(SILENT, "ms", await _outage(system, leader, signal.SIGSTOP) * 1e3)


Loop = Callable[[Writer], Coroutine[Any, Any, list[float]]]


async def _use(system: System, nodes: Sequence[NodeId], clients: int, loop: Loop) -> list[float]:
    """Run a loop in each of these clients, spread over nodes; return what all loops return."""
    most = min(clients, system.writer(nodes[0]).connections)
    writers = [system.writer(node) for node, _ in zip(itertools.cycle(nodes), range(most), strict=False)]
    await opened(writers)
    try:
        found = await asyncio.gather(*(loop(writers[number % most]) for number in range(clients)))
    finally:
        await closed(writers)
    return [each for times in found for each in times]


def _one(seconds: float) -> Loop:
    """Return a loop that sends one message after the other, and returns the seconds that each one took."""
    return _repeated(seconds, lambda writer: writer.put("x" * SIZE))


def _many(seconds: float) -> Loop:
    """Return a loop that sends IN_FLIGHT messages at once, and returns the seconds that each call took."""
    return _repeated(seconds, lambda writer: writer.put_many(["x" * SIZE] * IN_FLIGHT))


def _repeated(seconds: float, call: Callable[[Writer], Coroutine[Any, Any, None]]) -> Loop:
    async def loop(writer: Writer) -> list[float]:
        end, times = time.perf_counter() + seconds, []
        while (began := time.perf_counter()) < end:
            await call(writer)
            times.append(time.perf_counter() - began)
        return times

    return loop


async def _outage(system: System, leader: NodeId, how: signal.Signals) -> float:
    """Send a signal to the leader while clients write to the other nodes.

    Returns:
        Seconds from the signal to the first acknowledgement of a message that was sent after it.

    Raises:
        TimeoutError: there was none.
    """
    writes, recovered = asyncio.Event(), asyncio.Event()
    began = ended = float("inf")

    async def write(writer: Writer) -> None:
        nonlocal ended
        while True:
            async with asyncio.timeout(ATTEMPT_S):
                sent = time.perf_counter()
                await writer.put("x" * SIZE)
            writes.set()
            if sent > began and not recovered.is_set():
                ended = time.perf_counter()
                recovered.set()

    async def probe(node: NodeId) -> None:
        while True:
            writer = system.writer(node)
            try:
                async with asyncio.timeout(ATTEMPT_S):
                    await writer.open()
                await write(writer)
            except Exception:  # Each library has its own errors; the next try has a new connection.
                pass
            finally:
                await closed([writer])
            await asyncio.sleep(AGAIN_S)

    others = [node for node in IDS if node != leader]
    probes = [asyncio.create_task(probe(others[number % len(others)])) for number in range(PROBES)]
    try:
        async with asyncio.timeout(RECOVERED_S):
            await writes.wait()
            began = time.perf_counter()
            os.killpg(system.processes[leader].pid, how)
            await recovered.wait()
    finally:
        left = set(probes)
        while left:  # Some libraries do not pass every cancellation on.
            for task in left:
                task.cancel()
            _, left = await asyncio.wait(left, timeout=AGAIN_S)
    return ended - began
