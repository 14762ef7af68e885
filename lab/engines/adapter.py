"""A node whose messages are kept by another program's replicated store: `python -m lab.engines.adapter CONFIG`.

The adapter starts one node's engine, speaks the client protocol in front of it, and writes the message log from the
records that this engine's own store holds. It writes the log anew at each start, and reads the store once more at its
end, so that the judges see what the store has forgotten. CONFIG is the JSON file of docs/bring_your_own_node.md with
`engine`, `engine_options`, `engine_program` and `ways`.

An acknowledgement needs both: the engine has acknowledged the record, and the store of the client's own node has it.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import aclosing, suppress
from pathlib import Path
from typing import NoReturn

import msgspec
from msgspec import Struct

from lab.engines import catalogue
from lab.engines.engine import POLL_S, Engine, Entry, Place, driver_of, until
from lab.engines.messagelog import ForeignRecord, MessageLog
from lab.engines.port import Known, Port
from lab.engines.tunnels import Tunnels
from nodeproc.core.messages import NodeId
from nodeproc.errors import EXIT_DISK_FAILED

SILENT_S = 1.5
"""An engine that has not answered for this long is reported as one without a leader."""
LEAD_PATIENCE_S = 10.0
"""The first leader is the node with the highest id, if the engine can do that within this time."""
READ_PATIENCE_S = 5.0
CLOSE_PATIENCE_S = 2.0
"""Connections that the driver cannot close within this time end with the process."""
STOP_PATIENCE_S = 6.0
"""From SIGTERM to the engine's exit, before SIGKILL."""


class Peer(Struct, frozen=True):
    """Another node's adapter, as this node reaches it."""

    id: NodeId
    host: str
    port: int


class Way(Struct, frozen=True):
    """The port on loopback that leads to a port of another node's engine, through the lab's links."""

    node: NodeId
    engine_port: int
    port: int


class Config(Struct, frozen=True):
    """The part of the configuration that the adapter uses."""

    node_id: NodeId
    host: str
    port: int
    peers: tuple[Peer, ...]
    data_dir: str
    message_log: str
    events: str
    cluster_id: str
    heartbeat_interval_ms: float
    election_timeout_ms: float
    engine: str = ""
    engine_program: str = ""
    engine_options: dict[str, str] = {}
    ways: tuple[Way, ...] = ()


def place_of(config: Config) -> tuple[Place, Tunnels]:
    """Return the surroundings of this node's engine, and its ways to the other ones."""
    peers = {peer.id: (peer.host, peer.port) for peer in config.peers}
    ids, data_dir = tuple(sorted([config.node_id, *peers])), Path(config.data_dir)
    hosts = {config.node_id: config.host} | {node: host for node, (host, _) in peers.items()}
    if len(set(hosts.values())) < len(hosts):  # Not so in the kernel's network, where each node has its own address.
        hosts = catalogue.hosts_of(config.cluster_id, ids)
    tunnels = Tunnels(hosts, peers, {(way.node, way.engine_port): way.port for way in config.ways})
    place = Place(
        config.node_id,
        ids,
        hosts,
        data_dir / "engine",
        data_dir / "conf",
        round(config.heartbeat_interval_ms),
        round(config.election_timeout_ms),
        tunnels.reach,
    )
    return place, tunnels


def engine_of(config: Config, place: Place) -> Engine:
    """Return the driver of the configured engine."""
    spec = catalogue.parse(config.engine)
    return driver_of(spec)(place, config.engine_program, config.engine_options)


class Events:
    """The events of this node: what its engine reports about leader and term."""

    def __init__(self, path: Path, node: NodeId) -> None:
        self._path, self._node = path, node

    def write(self, event: str, **fields: object) -> None:
        row = {"t_ns": time.monotonic_ns(), "node": self._node, "event": event, **fields}
        with self._path.open("ab") as file:
            file.write(msgspec.json.encode(row) + b"\n")


class Adapter:
    """One node's adapter, from its start to SIGTERM."""

    def __init__(self, config: Config, engine: Engine, tunnels: Tunnels) -> None:
        self._tunnels = tunnels
        self._config, self._engine, self._place = config, engine, engine.place
        self._events = Events(Path(config.events), config.node_id)
        self._log = MessageLog(Path(config.message_log))
        self._port = Port(engine, self._log, lambda: self._ready)
        self._ready = False
        self._has_read = False

    async def run(self) -> int:
        """Run the engine until SIGTERM; return the exit code."""
        stop = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
        is_first = not self._place.conf_dir.exists()
        await self._tunnels.listen()
        process = await self._start_engine()
        await self._port.listen(self._config.host, self._config.port)
        ends = [asyncio.create_task(process.wait()), asyncio.create_task(stop.wait())]
        work = [asyncio.create_task(part) for part in (self._prepare(is_first), self._watch(), self._follow())]
        await asyncio.wait([*ends, *work], return_when=asyncio.FIRST_COMPLETED)
        for task in work:
            task.cancel()
        done, _ = await asyncio.wait(work, timeout=CLOSE_PATIENCE_S)  # A library may wait for an answer nevertheless.
        for task in done:
            with suppress(asyncio.CancelledError):
                await task
        if not stop.is_set():
            print(f"the engine ended with exit code {process.returncode}: {last_line(self._output)}", file=sys.stderr)
            return EXIT_DISK_FAILED  # The lab knows whether it has injected such a fault.
        await self._end(process)
        return 0

    # ---- the engine's process --------------------------------------------------------------------

    @property
    def _output(self) -> Path:
        return Path(self._config.data_dir) / "engine.log"

    async def _start_engine(self) -> asyncio.subprocess.Process:
        command = self._engine.prepared()
        with self._output.open("ab") as output:
            return await asyncio.create_subprocess_exec(
                *command,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd=self._config.data_dir,
                env={**os.environ, **self._engine.environment()},
            )

    async def _end(self, process: asyncio.subprocess.Process) -> None:
        """Read the store once more, and stop the engine."""
        if not self._engine.read_when_stopped:
            await self._read_again()
        with suppress(Exception):  # as in _watch
            async with asyncio.timeout(CLOSE_PATIENCE_S):
                await self._engine.close()
        with suppress(ProcessLookupError):
            process.terminate()
        try:
            async with asyncio.timeout(STOP_PATIENCE_S):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()
        if self._engine.read_when_stopped:
            await self._read_again()

    async def _read_again(self) -> None:
        """Write the log as the store is now. If the store cannot be read, the log stays as it is."""
        try:
            async with asyncio.timeout(READ_PATIENCE_S), aclosing(self._engine.tail()) as tail:
                await self._log.begin(await anext(tail))
        except Exception as error:
            print(f"the store could not be read at the end: {error!r}", file=sys.stderr)

    # ---- what the engine says --------------------------------------------------------------------

    async def _prepare(self, is_first: bool) -> None:
        """Wait until the engine answers, and create what records need."""
        engine, node = self._engine, self._place.node
        await until(engine.ready)
        if is_first and node == max(self._place.ids):
            with suppress(TimeoutError):
                async with asyncio.timeout(LEAD_PATIENCE_S):
                    await until(self._leads_at_first)
        self._ready = True
        await until(self._set_up)
        await asyncio.Event().wait()

    async def _set_up(self) -> bool:
        await self._engine.setup()
        return True

    async def _leads_at_first(self) -> bool:
        """Ask the engine to make this node the leader; return whether it is."""
        await self._set_up()
        await self._engine.lead()
        return (await self._engine.status()).leader == self._place.node

    async def _watch(self) -> None:
        """Follow the engine's leader."""
        heard = time.monotonic()
        while True:
            try:
                status = await self._engine.status()
                heard = time.monotonic()
                if self._has_read:  # As the lab's own nodes, which know their log before they know a leader.
                    self._show(Known(status.leader, status.term if status.leader else self._port.known.term))
            except Exception:  # Each library has its own errors for a server that does not answer.
                if time.monotonic() - heard > SILENT_S:
                    self._show(Known(0, self._port.known.term))
            await asyncio.sleep(POLL_S)

    def _show(self, known: Known) -> None:
        """Report the leader in events and to the clients, if it has changed."""
        before, node, write = self._port.known, self._place.node, self._events.write
        if known == before:
            return
        if before.leader == node and known.leader == 0:
            write("quorum_lost", term=before.term)
        elif before.leader not in (0, node, known.leader):
            write("leader_timeout", leader=before.leader, reason="the engine follows it no longer")
        if known.leader == node:
            write("became_leader", term=known.term)
        elif known.leader:
            write("new_coordinator", term=known.term, leader=known.leader)
        self._port.show(known)

    async def _follow(self) -> None:
        """Keep the message log equal to the store, which this reads anew whenever it has lost records."""
        while True:
            try:
                async with aclosing(self._engine.tail()) as tail:
                    await self._begin(await anext(tail))
                    async for entries in tail:
                        await self._log.add(entries)
            except ForeignRecord:
                raise
            except Exception:  # as in _watch
                pass
            await asyncio.sleep(POLL_S)

    async def _begin(self, entries: Sequence[Entry]) -> None:
        """Write the log anew."""
        self._port.acknowledged.clear()
        await self._log.begin(entries)
        if not self._has_read:
            self._has_read, last = True, len(self._log.lines)
            self._events.write("loaded", messages=last)
            self._events.write("sequence_set", last_seq=last, next_expected=last + 1)


def last_line(log: Path) -> str:
    """Return the last line of the engine's own output."""
    lines = log.read_text("utf-8", "replace").splitlines()
    return lines[-1][:500] if lines else "(it said nothing)"


def run(config_file: str, driver_of: Callable[[Config, Place], Engine] = engine_of) -> NoReturn:
    """Run the adapter with a configuration file, and exit.

    Args:
        driver_of: returns the driver for a configuration and a place.
    """
    config = msgspec.json.decode(Path(config_file).read_bytes(), type=Config)
    place, tunnels = place_of(config)
    runner = asyncio.Runner()
    code = runner.run(Adapter(config, driver_of(config, place), tunnels).run())
    sys.stderr.flush()
    os._exit(code)  # Open connections end with the process; asyncio would cancel each, and print tracebacks.


if __name__ == "__main__":
    run(sys.argv[1])
