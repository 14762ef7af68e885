"""Sections start, restart and idle: time to the first acknowledgement, time of a restart, CPU of idle nodes."""

from __future__ import annotations

import asyncio
import shutil
import signal
import tempfile
import time
from pathlib import Path

import psutil
import yaml

from lab.bench.figures import Collected
from lab.bench.prepared import fill
from lab.bench.runs import Ran, Runs
from lab.course.manifest import node_settings
from lab.live.processes import HeldPort, Lifeline, NodeProcess
from lab.plan.scenario import Cluster
from lab.plan.scenario import Cluster as ClusterPlan
from lab.rows import Acked
from lab.steps import Send, Sender, Sleep, Start, Step
from lab.words import Duration

CLIENT = 9999
REST = Duration(10)
RESTART_SIZE = 16
"""Bytes of payload in histories of up to ten million messages; a start does not read payloads."""


def start(into: Collected, runs: Runs, quick: bool) -> None:
    """Measure new clusters from the start of their processes to the first acknowledgement."""
    for nodes in (1, 3) if quick else (1, 3, 5):
        hello = Send(clients=(Sender(client=CLIENT, messages=("hello",), via=nodes),))
        steps: tuple[Step, ...] = (Start(target="all"), hello)

        def use(ran: Ran, nodes: int = nodes) -> None:
            began = min(row.t for row in ran.run.read_faults() if row.fault == "start")
            acked = next(row.t for row in ran.run.read_history() if isinstance(row, Acked))
            name = f"{nodes} {'node' if nodes == 1 else 'nodes'}, to the first acknowledgement"
            into.add("start", name, "s", (acked - began) / 1e9)

        runs.carry_out(runs.scenario("bench_start", None, steps, Cluster(nodes=nodes, start="none")), use)


def idle(into: Collected, runs: Runs, quick: bool) -> None:
    """Measure the CPU use of three nodes without clients."""
    seconds = Duration(3) if quick else REST

    def use(ran: Ran) -> None:
        percent = [cost.cpu_percent for cost in ran.metrics.nodes if cost.cpu_percent is not None]
        into.add("idle", "three nodes, nothing to do", "% of a core", sum(percent))

    runs.carry_out(runs.scenario("bench_idle", None, (Sleep(time=seconds),), subscribers=0), use)


# ---- one node and its history -------------------------------------------------------------------------


def restart(into: Collected, runs: Runs, quick: bool) -> None:
    """Measure restarts of a node with histories of up to ten million messages: time to its first answer, and memory."""
    sizes = (0, 100_000) if quick else (0, 1_000_000, 10_000_000)
    folders = {}
    place = Path(tempfile.mkdtemp(prefix="restart-", dir=runs.folder))
    try:
        for messages in sizes:
            folders[messages] = place / str(messages)
            fill(folders[messages], 1, messages, size=RESTART_SIZE)
        took: dict[int, list[float]] = {messages: [] for messages in sizes}
        for _ in range(3 if quick else 7):
            for messages, folder in folders.items():
                seconds, rss = asyncio.run(_start_alone(folder))
                took[messages].append(seconds)
                into.add("restart", f"one node with {messages:,} messages", "s", seconds)
                into.add("restart", f"one node with {messages:,} messages", "MiB when it answers", rss / (1 << 20))
        for messages in sizes[1:]:
            for with_them, without in zip(took[messages], took[0], strict=True):
                into.add(
                    "restart", f"one node, more with {messages:,} messages than with none", "s", with_them - without
                )
    finally:
        shutil.rmtree(place)


async def _start_alone(folder: Path) -> tuple[float, int]:
    """Start a cluster of one node on this data directory.

    Returns:
        (seconds from exec to its first answer to STATUS, its memory at that time in bytes)
    """
    held, lifeline = HeldPort(), Lifeline()
    config = folder.with_suffix(".yml")
    settings = node_settings(ClusterPlan(nodes=1), 1, held.address, {}, str(folder.resolve()), "bench", "")
    config.write_text(yaml.safe_dump(settings), "utf-8")
    node = NodeProcess(1, held.port, config, folder.with_suffix(".log"), lifeline.fd)
    try:
        began = time.monotonic()
        node.start()
        await node.ready()
        seconds = time.monotonic() - began
        rss = psutil.Process(node.pid).memory_info().rss
        await node.end(signal.SIGTERM)
    finally:
        node.kill_now()
        held.release()
        lifeline.cut()
    return seconds, rss
