"""Section floor: the limits of this machine, measured in the same minutes as the other sections.

Disk: a small write and its fdatasync, at the end of a growing file and in a file of zeros. Network: a byte to another
process and back over the loopback. Disk, network and encoding together: lab.bench.pipeline.
"""

from __future__ import annotations

import asyncio
import os
import socket
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from statistics import median

import msgspec

from lab.bench.figures import Collected
from lab.bench.pipeline import HOST, Cost, Echo, Order, Send, Sent, Serve, Serving, Spent
from lab.live.children import Child
from nodeproc.disk.files import sync_file

FDATASYNC = "write + fdatasync of 512 B"
PIPELINED = "bare pipeline, 100 B, 1 client"
PIPELINED_COST = "bare pipeline, 100 B, 1 client, CPU"
SINGLE = "bare pipeline, 100 B, 1 client, one message a frame"
ONE = "bare pipeline, 1 client in closed loop"
SIXTY_FOUR = "bare pipeline, 64 clients in closed loop"

BLOCK = 512
ZEROS_BYTES = 1 << 20


def measure(into: Collected, folder: Path, quick: bool) -> None:
    """Measure one round."""
    into.add("floor", FDATASYNC, "p50 ms", fdatasync_ms(folder, 200 if quick else 500, zeros=False))
    into.add(
        "floor", f"{FDATASYNC}, in a file of zeros", "p50 ms", fdatasync_ms(folder, 200 if quick else 500, zeros=True)
    )
    asyncio.run(_with_processes(into, folder, quick))


def fdatasync_ms(folder: Path, times: int, *, zeros: bool) -> float:
    """Return the median milliseconds of a small write and its fdatasync.

    Args:
        zeros: write into a file that was filled with zeros and synced before; else at the end of a growing file.
    """
    data = os.urandom(BLOCK)
    took = []
    with tempfile.NamedTemporaryFile(dir=folder) as file:
        fd = file.fileno()
        if zeros:
            os.write(fd, bytes(max(ZEROS_BYTES, times * BLOCK)))
            os.fsync(fd)
        for number in range(times):
            began = time.perf_counter()
            os.pwrite(fd, data, number * BLOCK)
            sync_file(fd)
            took.append(time.perf_counter() - began)
    return median(took) * 1e3


async def _with_processes(into: Collected, folder: Path, quick: bool) -> None:
    async with processes(folder, 4) as children:
        into.add("floor", "loopback round trip to another process", "p50 ms", await _round_trip(children[0], 1000))
        leader, port = await open_pipeline(children, folder)
        load = children[3]
        await send(load, Send(port, 1, 20_000, 20_000, 100))
        before = await _cpu_s(leader)
        count = 100_000 if quick else 400_000
        sent = await send(load, Send(port, 1, 20_000, count, 100))
        into.add("floor", PIPELINED, "messages/s", count / sent.seconds, "more")
        into.add("floor", PIPELINED_COST, "µs/message", (await _cpu_s(leader) - before) * 1e6 / count)
        sent = await send(load, Send(port, 1, 20_000, count // 4, 100, line_messages=1))
        into.add("floor", SINGLE, "messages/s", count // 4 / sent.seconds, "more")
        sent = await send(load, Send(port, 1, 1, 300 if quick else 1000, 100))
        into.add("floor", ONE, "p50 ms", sent.p50_ms)
        count = 5_000 if quick else 20_000
        sent = await send(load, Send(port, 64, 1, count, 100))
        into.add("floor", SIXTY_FOUR, "messages/s", count / sent.seconds, "more")


@asynccontextmanager
async def processes(folder: Path, count: int) -> AsyncIterator[list[Child]]:
    """Start processes of lab.bench.pipeline, and end them after the with block."""
    children: list[Child] = []
    try:
        for number in range(count):
            log = folder / f"pipeline-{number}.log"
            children.append(await Child.spawn(f"pipeline process {number}", "lab.bench.pipeline", log))
        yield children
    finally:
        await asyncio.gather(*(child.close() for child in children))


async def open_pipeline(children: Sequence[Child], folder: Path) -> tuple[Sequence[Child], int]:
    """Start two followers and a leader; return these three and the port of the leader."""
    ports: list[int] = []
    for number, child in enumerate(children[:3]):
        place = Path(tempfile.mkdtemp(prefix=f"pipeline-{number}-", dir=folder))
        order = Serve(str(place), tuple(ports) if number == 2 else ())
        ports.append(msgspec.json.decode(await _ask(child, order), type=Serving).port)
    return children[:3], ports[2]


async def send(child: Child, order: Send) -> Sent:
    return msgspec.json.decode(await _ask(child, order), type=Sent)


async def _cpu_s(children: Sequence[Child]) -> float:
    answers = [await _ask(child, Cost()) for child in children]
    return sum(msgspec.json.decode(answer, type=Spent).cpu_s for answer in answers)


async def _ask(child: Child, order: Order) -> bytes:
    return await child.ask(msgspec.json.encode(order))


async def _round_trip(child: Child, times: int) -> float:
    """Return the median milliseconds of a byte to another process and back."""
    port = msgspec.json.decode(await _ask(child, Echo()), type=Serving).port
    took = []
    with socket.create_connection((HOST, port)) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for _ in range(times):
            began = time.perf_counter()
            connection.sendall(b"x")
            connection.recv(1)
            took.append(time.perf_counter() - began)
    return median(took) * 1e3
