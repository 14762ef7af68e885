"""Real node processes on free ports, for tests: started, killed, asked, and never left behind."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from nodeproc.client import ChatClient
from tests import TOO_LONG_S

PROJECT = Path(__file__).resolve().parents[2]

Seen = TypeVar("Seen")


class Holder:
    """Keeps a port from everybody but a node that asks for it with SO_REUSEADDR: bound and never listening."""

    def __init__(self) -> None:
        self._sock = socket.socket()
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._sock.bind(("127.0.0.1", 0))
        self.port: int = self._sock.getsockname()[1]

    def close(self) -> None:
        self._sock.close()


_held: list[Holder] = []


def free_ports(count: int) -> list[int]:
    """Ports of our own until the module's tests are done: nobody listens there but who is told of them."""
    holders = [Holder() for _ in range(count)]
    _held.extend(holders)
    return [holder.port for holder in holders]


def release_ports() -> None:
    while _held:
        _held.pop().close()


@contextlib.asynccontextmanager
async def connected(client: ChatClient) -> AsyncIterator[ChatClient]:
    """As `async with client`, whose 10 s are too short for processes that are just starting on a busy machine."""
    await client.connect(TOO_LONG_S)
    try:
        yield client
    finally:
        await client.close()


class Cluster:
    """Nodes 1..count under one directory. Used as a context: nothing lives on behind it."""

    def __init__(self, root: Path, count: int = 3, **settings: Any) -> None:
        self.root, self.count = root, count
        self._settings = settings
        self._holders = {node: Holder() for node in range(1, count + 1)}
        self.processes: dict[int, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> Cluster:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.processes.values():
            process.kill()
            process.wait()
        for holder in self._holders.values():
            holder.close()

    def port(self, node: int) -> int:
        return self._holders[node].port

    def config(self, node: int) -> Path:
        """The node's file, written anew."""
        path = self.root / f"node{node}.yml"
        settings = {
            "node_id": node,
            "port": self.port(node),
            "data_dir": str(self.root / f"node_{node}"),
            "peers": [{"id": peer, "port": self.port(peer)} for peer in self._holders if peer != node],
            **self._settings,
        }
        path.write_text(json.dumps(settings))
        return path

    def start(self, *nodes: int, flags: Sequence[str] = ("--quiet",)) -> None:
        for node in nodes or self._holders:
            self.processes[node] = run_node("--config", str(self.config(node)), *flags, log=self.root / f"{node}.log")

    def kill(self, node: int) -> None:
        """SIGKILL: the process tells nobody."""
        self.processes[node].kill()
        self.processes[node].wait()

    def stop(self, node: int) -> int:
        """SIGTERM, once the node answers: one that has just been started would die of it. Returns the exit code."""
        until(lambda: self.status(node) is not None)
        self.processes[node].send_signal(signal.SIGTERM)
        return self.processes[node].wait(TOO_LONG_S)

    def wait(self, node: int) -> int:
        """Wait until the node ends by itself. Returns the exit code."""
        return self.processes[node].wait(TOO_LONG_S)

    def linked(self) -> None:
        """Wait until every node has a link to every other: from then on each knows all the others' identities."""

        def all_linked() -> bool:
            seen = [self.status(node) for node in self.processes]
            return all(status and all(peer["connected"] for peer in status["peers"]) for status in seen)

        until(all_linked)

    def log_lines(self, node: int) -> bytes:
        """The node's message log."""
        path = self.root / f"node_{node}" / "logs" / f"node_{node}_messages.jsonl"
        return path.read_bytes() if path.exists() else b""

    def events(self, node: int) -> list[dict[str, Any]]:
        """All whole rows of the node's events.jsonl; none where there is no file yet."""
        path = self.root / f"node_{node}" / "events.jsonl"
        rows = path.read_bytes().splitlines(keepends=True) if path.exists() else []
        return [json.loads(row) for row in rows if row.endswith(b"\n")]

    def status(self, node: int) -> dict[str, Any] | None:
        """STATUS_IS, None where nobody answers."""
        try:
            with Line(self.port(node)) as line:
                line.say({"type": "STATUS"})
                return line.hear()
        except OSError:
            return None

    def leader(self) -> int:
        """Wait until the live nodes agree on a leader that lives. Returns its id."""
        found = 0

        def agreed() -> bool:
            nonlocal found
            alive = [node for node, process in self.processes.items() if process.poll() is None]
            seen = [self.status(node) for node in alive]
            leaders = {status["leader"] if status else 0 for status in seen}
            found = next(iter(leaders)) if len(leaders) == 1 else 0
            return found in alive

        until(agreed)
        return found


class Line:
    """A client as `nc` would be one: a socket and JSON lines."""

    def __init__(self, port: int) -> None:
        self._sock = socket.create_connection(("127.0.0.1", port), TOO_LONG_S)
        self._file = self._sock.makefile("rb")

    def __enter__(self) -> Line:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        self._sock.close()

    def say(self, *lines: dict[str, Any]) -> None:
        self._sock.sendall(b"".join(json.dumps(line).encode() + b"\n" for line in lines))

    def hear(self) -> dict[str, Any]:
        """The next line.

        Raises:
            ConnectionError: there is none.
        """
        line = self._file.readline()
        if not line:
            raise ConnectionError("closed")
        heard: dict[str, Any] = json.loads(line)
        return heard

    def hear_type(self, kind: str) -> dict[str, Any]:
        """The next line of this type."""
        while (heard := self.hear()).get("type") != kind:
            pass
        return heard


def run_node(*arguments: str, log: Path | None = None, **popen: Any) -> subprocess.Popen[bytes]:
    """python -m nodeproc, from the project's directory."""
    with (log or Path(os.devnull)).open("ab") as out:
        return subprocess.Popen(
            [sys.executable, "-m", "nodeproc", *arguments],
            cwd=PROJECT,
            stdin=subprocess.DEVNULL,
            **{"stdout": out, "stderr": out, **popen},
        )


def until(seen: Callable[[], Seen | None], timeout: float = TOO_LONG_S) -> Seen:
    """Look again and again, with a pause that a timer of the kernel ends; returns what is seen at last."""
    deadline = time.monotonic() + timeout
    with selectors.DefaultSelector() as nothing:
        while not (found := seen()):
            assert time.monotonic() < deadline, f"not so within {timeout:g} s: {seen}"
            nothing.select(0.01)
    return found
