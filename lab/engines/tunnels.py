"""Connections between the engines of two nodes, through the lab's links.

    engine of node 1 -> adapter of node 1 -> the lab's link from 1 to 2 -> adapter of node 2 -> engine of node 2

The adapter of node 1 has a port of its own for each port of the other engine, and joins what connects there with that
engine. A supervisor sends the engine's connections there (lab.live.supervise). The first line on the link is a Tunnel,
which says where the rest of the bytes belong.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from typing import Any, Self

import msgspec
from msgspec import Struct

from nodeproc.client import Address
from nodeproc.core.messages import NodeId

CHUNK = 1 << 16
DIAL_PATIENCE_S, REDIAL_S = 1.0, 0.02
"""An engine's port that is closed is dialled again: the other engine would do that, but its connection was accepted."""
LOOPBACK = "127.0.0.1"

_joining: set[asyncio.Task[Any] | None] = set()
"""The tasks in join(). asyncio itself refers to none of them once their connections have ended in one direction."""


class Tunnel(Struct, frozen=True, tag_field="type", tag="TUNNEL"):
    """The first line of a connection between engines. port: of the receiving engine."""

    port: int

    @classmethod
    def of(cls, line: bytes) -> Self | None:
        """Return the tunnel that a first line asks for; None if the line is something else."""
        try:
            return msgspec.json.decode(line, type=cls)
        except msgspec.DecodeError:
            return None

    def line(self) -> bytes:
        return msgspec.json.encode(self) + b"\n"


class Tunnels:
    """This node's ends of the tunnels to other nodes.

    Args:
        hosts: node -> the address of its engine.
        peers: node -> the address at which this node reaches that node's adapter.
        ways: (node, port of its engine) -> the port on loopback that leads there; none if engines connect directly.
    """

    def __init__(
        self, hosts: Mapping[NodeId, str], peers: Mapping[NodeId, Address], ways: Mapping[tuple[NodeId, int], int]
    ) -> None:
        self._hosts, self._peers, self._ways = hosts, peers, ways

    def reach(self, node: NodeId, port: int) -> Address:
        """Return the address that leads to a port of a node's engine."""
        way = self._ways.get((node, port))
        return (self._hosts[node], port) if way is None else (LOOPBACK, way)

    async def listen(self) -> None:
        """Open this node's ends."""
        for (node, port), way in self._ways.items():
            await asyncio.start_server(partial(self._accept, node, port), LOOPBACK, way)

    async def _accept(
        self, node: NodeId, port: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        with suppress(OSError):
            await join(reader, writer, self._peers[node], Tunnel(port).line())
        writer.close()


async def join(
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    address: Address,
    greeting: bytes = b"",
    *,
    patience_s: float = 0.0,
) -> None:
    """Connect to an address, send a greeting, and copy bytes in both directions until both have ended.

    Args:
        patience_s: for how long a refused connection is tried again.

    Raises:
        OSError: nobody listens there.
    """
    far_reader, far_writer = await _dial(address, patience_s)
    _joining.add(task := asyncio.current_task())
    try:
        far_writer.write(greeting)
        await asyncio.gather(_copy(reader, far_writer), _copy(far_reader, writer))
    finally:
        _joining.discard(task)
        far_writer.close()


async def _dial(address: Address, patience_s: float) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    until = time.monotonic() + patience_s
    while True:
        try:
            return await asyncio.open_connection(*address)
        except ConnectionRefusedError:
            if time.monotonic() >= until:
                raise
        await asyncio.sleep(REDIAL_S)


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Copy until the end of input, and pass that on. A broken connection breaks the other one."""
    try:
        while data := await reader.read(CHUNK):
            writer.write(data)
            await writer.drain()
        writer.write_eof()
    except OSError:
        writer.transport.abort()
