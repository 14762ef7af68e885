"""Cut nodes off by dropping packets, as a broken network does, and measure what they do once it is whole again.

    python -m tests.kernel.cut_links 5 20 60

Needs root, unshare, ip and nft. Every node has a network namespace of its own on one bridge; nothing outside of these
is touched, and all of it is gone when this process ends. One JSON line for each cut: seconds cut, what was cut
(the leader, or every node from every other), seconds from the heal to the first acknowledgement and until all nodes are
equal, and how often a node found a link silent.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nodeproc.client import ChatClient, status
from nodeproc.errors import Unreachable
from nodeproc.lines import Status

PROJECT = Path(__file__).resolve().parents[2]
INSIDE = "CHAT_CUT_LINKS_INSIDE"
NODES = (1, 2, 3)
PORT = 5001
TIMEOUT_S = 200.0


def missing() -> str:
    """What this machine lacks, "" if nothing."""
    if os.geteuid() != 0:
        return "needs root"
    lacking = [tool for tool in ("unshare", "ip", "nft") if shutil.which(tool) is None]
    if lacking:
        return f"needs {', '.join(lacking)}"
    tried = "mount -t tmpfs none /run && ip link add name br0 type bridge && ip netns add n && nft add table ip t"
    done = subprocess.run(["unshare", "-n", "-m", "sh", "-c", tried], capture_output=True, text=True, check=False)
    return f"needs network namespaces with nft: {done.stderr.strip()}" if done.returncode else ""


def measure(seconds: list[str]) -> list[dict[str, Any]]:
    """Run this file in namespaces of its own. Returns its rows."""
    command = ["unshare", "-n", "-m", "--kill-child", sys.executable, "-m", "tests.kernel.cut_links", *seconds]
    done = subprocess.run(
        command, cwd=PROJECT, env={**os.environ, INSIDE: "1"}, stdout=subprocess.PIPE, timeout=3600, check=True
    )
    return [json.loads(line) for line in done.stdout.splitlines()]


def run(*command: str, given: str | None = None) -> None:
    subprocess.run(command, input=given, text=True, check=True)


def address(node: int) -> str:
    return f"10.77.0.{node}"


def make_network() -> None:
    run("mount", "-t", "tmpfs", "none", "/run")  # ip keeps its namespaces there.
    run("ip", "link", "add", "name", "br0", "type", "bridge")
    run("ip", "address", "add", f"{address(254)}/24", "dev", "br0")
    run("ip", "link", "set", "br0", "up")
    for node in NODES:
        run("ip", "netns", "add", f"n{node}")
        run("ip", "link", "add", f"v{node}", "type", "veth", "peer", "name", "eth", "netns", f"n{node}")
        run("ip", "link", "set", f"v{node}", "master", "br0", "up")
        for command in ("address add {}/24 dev eth", "link set eth up", "link set lo up"):
            run("ip", "-n", f"n{node}", *command.format(address(node)).split())


def cut(node: int, others: tuple[int, ...]) -> None:
    """Drop what comes in to this node from the others. Dropped on its way out, the sender would be told."""
    sources = ", ".join(map(address, others))
    chain = f"type filter hook input priority 0\nip saddr {{ {sources} }} drop\n"
    rules = f"table ip cut {{\nchain in {{\n{chain}}}\n}}\n"
    run("ip", "netns", "exec", f"n{node}", "nft", "-f", "-", given=rules)


def heal(*nodes: int) -> None:
    for node in nodes:
        run("ip", "netns", "exec", f"n{node}", "nft", "delete", "table", "ip", "cut")


@contextlib.contextmanager
def started(root: Path) -> Iterator[None]:
    with contextlib.ExitStack() as processes:
        for node in NODES:
            settings = {
                "node_id": node,
                "host": address(node),
                "port": PORT,
                "data_dir": str(root / f"node_{node}"),
                "peers": [{"id": peer, "host": address(peer), "port": PORT} for peer in NODES if peer != node],
                "secret": "0123456789abcdef",
                "allow_any_client": True,
            }
            (root / f"{node}.yml").write_text(json.dumps(settings))
            command = [sys.executable, "-m", "nodeproc", "--quiet", "--config", str(root / f"{node}.yml")]
            log = processes.enter_context((root / f"{node}.log").open("wb"))
            process = subprocess.Popen(["ip", "netns", "exec", f"n{node}", *command], cwd=PROJECT, stderr=log)
            processes.callback(process.wait)
            processes.callback(process.kill)
        yield


async def statuses() -> list[Status]:
    return [await status(address(node), PORT, 5.0) for node in NODES]


async def agreed(above: int = -1) -> int:
    """Wait until all nodes have one leader and the same messages, more than so many. Returns the leader."""
    async with asyncio.timeout(TIMEOUT_S):
        while True:
            with contextlib.suppress(Unreachable):
                seen = await statuses()
                leader, delivered_seq = seen[0].leader, seen[0].delivered_seq
                equal = all((each.leader, each.delivered_seq) == (leader, delivered_seq) for each in seen)
                if equal and leader and delivered_seq > above:
                    return leader
            await asyncio.sleep(0.02)


def times_lost(root: Path) -> int:
    """How often a node found nothing acknowledged on a link."""
    logs = [(root / f"node_{node}" / "events.jsonl").read_text() for node in NODES]
    return sum(log.count("nothing acknowledged for") for log in logs)


async def one_cut(root: Path, what: str, seconds: float) -> dict[str, Any]:
    leader = await agreed()
    lost_before = times_lost(root)
    if what == "leader":
        others = tuple(node for node in NODES if node != leader)
        cut(leader, others)
        for node in others:
            cut(node, (leader,))
    else:
        others = NODES
        for node in NODES:
            cut(node, tuple(peer for peer in NODES if peer != node))
    end = time.monotonic() + seconds
    async with ChatClient([(address(node), PORT) for node in others], 101) as client:
        sent = 0
        while time.monotonic() < end:
            if what == "leader" or not sent:
                client.submit_nowait([f"message {sent}"])
                sent += 1
            await asyncio.sleep(0.05)
        heal(*NODES)
        healed = time.monotonic()
        outcome = await client.send("after the heal")
        first_ack = time.monotonic() - healed
        await agreed(outcome.seq_no - 1)
    return {
        "cut": what,
        "seconds": seconds,
        "first_ack_s": round(first_ack, 3),
        "equal_s": round(time.monotonic() - healed, 3),
        "links_lost": times_lost(root) - lost_before,
    }


async def main(seconds: list[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        make_network()
        with started(root):
            for each in seconds:
                for what in ("leader", "all"):
                    print(json.dumps(await one_cut(root, what, float(each))), flush=True)


if __name__ == "__main__":
    if INSIDE in os.environ:
        asyncio.run(main(sys.argv[1:]))
    elif problem := missing():
        sys.exit(f"cut_links: {problem}")
    else:
        for row in measure(sys.argv[1:]):
            print(json.dumps(row))
