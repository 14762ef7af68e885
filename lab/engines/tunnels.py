"""Connections between the engines of two nodes, through the lab's links.

    engine of node 1 -> adapter of node 1 -> the lab's link from 1 to 2 -> adapter of node 2 -> engine of node 2

The adapter of node 1 has a port of its own for each port of the other engine. Whoever connects there is joined with
that engine. The first line on the link is a Tunnel, which says where the rest of the bytes belong.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import suppress
from typing import Self

import msgspec
from msgspec import Struct

from nodeproc.client import Address
from nodeproc.core.messages import NodeId

CHUNK = 1 << 16
LOOPBACK = "127.0.0.1"


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
        peers: node -> the address at which this node reaches that node's adapter.
    """

    def __init__(self, peers: Mapping[NodeId, Address]) -> None:
        self._peers = peers
        self._ports: dict[tuple[NodeId, int], int] = {}

    async def open(self, node: NodeId, port: int) -> int:
        """Return the port on loopback that leads to a port of another node's engine."""
        if (node, port) not in self._ports:

            async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                with suppress(OSError, asyncio.CancelledError):  # Cancelled at the end of the process.
                    await join(reader, writer, self._peers[node], Tunnel(port).line())
                writer.close()

            server = await asyncio.start_server(accept, LOOPBACK, 0)
            self._ports[node, port] = int(server.sockets[0].getsockname()[1])
        return self._ports[node, port]


async def join(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, address: Address, greeting: bytes = b""
) -> None:
    """Connect to an address, send a greeting, and copy bytes in both directions until both have ended.

    Raises:
        OSError: nobody listens there.
    """
    far_reader, far_writer = await asyncio.open_connection(*address)
    far_writer.write(greeting)
    await asyncio.gather(_copy(reader, far_writer), _copy(far_reader, writer))


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Copy until the end of input, and pass that on. A broken connection breaks the other one."""
    try:
        while data := await reader.read(CHUNK):
            writer.write(data)
            await writer.drain()
        writer.write_eof()
    except OSError:
        writer.transport.abort()
