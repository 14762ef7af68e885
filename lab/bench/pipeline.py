"""The processes of section floor, `python -m lab.bench.pipeline`: the chat's data path without its protocol.

A sender sends numbered texts to a leader. The leader encodes the lines of the message log, appends them to a file and
sends them to two followers, which append them to files of their own. Each process fdatasyncs its file. Lines that two
of the three processes have synced are appended to a second file in each process, and acknowledged. There are no terms,
elections, sessions, checks, restarts or late followers: the rest is the work that any such program must do.

Orders and answers are JSON lines (lab.live.children). A frame between the processes is u32 number of bytes | u32 total
number of messages so far, including this frame | bytes. An answer is the total number alone.
"""

from __future__ import annotations

import asyncio
import os
import socket
import struct
import threading
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from typing import TypeAlias, cast

import msgspec
from msgspec import Struct

from lab.live.children import orders, run_child, say
from lab.payloads import payloads
from nodeproc.core.messages import Line
from nodeproc.disk.files import sync_file

HOST = "127.0.0.1"
HEAD = struct.Struct("<II")
COUNT = struct.Struct("<I")
LINE_MESSAGES = 512
"""Maximum number of texts in one frame of a sender."""
SEED = 7


class Serve(Struct, frozen=True, tag_field="do", tag="serve"):
    """Run as a follower, or as the leader if `followers` (their ports) is not empty.

    folder: directory of the two files.
    """

    folder: str
    followers: tuple[int, ...] = ()


class Send(Struct, frozen=True, tag_field="do", tag="send"):
    """Send messages to the leader, `in_flight` of each client at a time, until `count` are acknowledged.

    line_messages: the most texts in one frame.
    """

    port: int
    clients: int
    in_flight: int
    count: int
    size: int
    line_messages: int = LINE_MESSAGES


class Echo(Struct, frozen=True, tag_field="do", tag="echo"):
    """Send every byte back."""


class Cost(Struct, frozen=True, tag_field="do", tag="cost"):
    """Return the CPU seconds of the process so far."""


Order: TypeAlias = Serve | Send | Echo | Cost


class Serving(Struct, frozen=True):
    """Answer to Serve and Echo: the port at which the process listens."""

    port: int


class Sent(Struct, frozen=True):
    """Answer to Send: total time, and the median of the time from a frame to its answer."""

    seconds: float
    p50_ms: float


class Spent(Struct, frozen=True):
    """Answer to Cost: CPU seconds of this process so far."""

    cpu_s: float


class Disk:
    """The two files. A thread runs one fdatasync of the first file at a time, which covers all earlier writes.

    Args:
        durable: called in the event loop with the number of durable messages.
    """

    def __init__(self, folder: Path, durable: Callable[[int], None]) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
        self._log, self._lines = os.open(folder / "log", flags, 0o644), os.open(folder / "lines", flags, 0o644)
        self._durable = durable
        self._loop = asyncio.get_running_loop()
        self._asked: SimpleQueue[int] = SimpleQueue()
        self._written, self._busy = 0, False
        threading.Thread(target=self._run, daemon=True).start()

    def write(self, data: bytes, upto: int) -> None:
        os.write(self._log, data)
        self._written = upto
        if not self._busy:
            self._busy = True
            self._asked.put(upto)

    def deliver(self, data: list[bytes]) -> None:
        os.write(self._lines, b"".join(data))

    def _run(self) -> None:
        while True:
            upto = self._asked.get()
            sync_file(self._log)
            try:
                self._loop.call_soon_threadsafe(self._on_synced, upto)
            except RuntimeError:
                return  # The loop is closed.

    def _on_synced(self, upto: int) -> None:
        self._busy = self._written > upto
        if self._busy:
            self._asked.put(self._written)
        self._durable(upto)


class Frames(asyncio.Protocol):
    """A connection that receives frames.

    Args:
        on_frame: called with (connection, number of messages so far, bytes).
    """

    def __init__(self, on_frame: Callable[[Frames, int, bytes], None]) -> None:
        self._on_frame = on_frame
        self._buffer = bytearray()
        self.transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        at_once(self.transport)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        at, buffer = 0, self._buffer
        while len(buffer) >= at + HEAD.size:
            size, upto = HEAD.unpack_from(buffer, at)
            if len(buffer) < at + HEAD.size + size:
                break
            at += HEAD.size
            self._on_frame(self, upto, bytes(buffer[at : at + size]))
            at += size
        del buffer[:at]


class Answers(asyncio.Protocol):
    """A connection that receives cumulative numbers of acknowledged messages."""

    def __init__(self, on_answer: Callable[[int], None]) -> None:
        self._on_answer = on_answer
        self._rest = b""
        self.transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        at_once(self.transport)

    def data_received(self, data: bytes) -> None:
        data = self._rest + data
        whole = len(data) - len(data) % COUNT.size
        self._rest = data[whole:]
        if whole:
            self._on_answer(COUNT.unpack_from(data, whole - COUNT.size)[0])


class Echoing(asyncio.Protocol):
    """A connection that echoes all bytes."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        at_once(self._transport)

    def data_received(self, data: bytes) -> None:
        self._transport.write(data)


class Server:
    """A follower or the leader."""

    def __init__(self, order: Serve) -> None:
        self._disk = Disk(Path(order.folder), self._on_durable)
        self._ports = order.followers
        self._followers: list[Answers] = []
        self._durable = [0] * (1 + len(order.followers))
        """Messages durable here, and at each follower."""
        self._waiting: list[tuple[Frames, int, list[str]]] = []
        self._unacknowledged: deque[tuple[int, bytes, list[tuple[Frames, int]]]] = deque()
        """(number of the last message, bytes, [(connection, its last number)]) of each batch."""
        self._last = 0
        self._leader: Frames | None = None
        self._encode = msgspec.json.Encoder().encode_lines
        self._decode = msgspec.json.Decoder(list[str]).decode

    async def open(self) -> int:
        """Connect to the followers, listen, and return the port."""
        loop = asyncio.get_running_loop()
        for index, port in enumerate(self._ports, 1):
            on_answer = partial(self._on_answer, index)
            _, answers = await loop.create_connection(partial(Answers, on_answer), HOST, port)
            self._followers.append(answers)
        return await listen(partial(Frames, self._take_texts if self._ports else self._take_batch))

    # ---- the leader ------------------------------------------------------------------------------

    def _take_texts(self, connection: Frames, upto: int, data: bytes) -> None:
        if not self._waiting:
            asyncio.get_running_loop().call_soon(self._order)
        self._waiting.append((connection, upto, self._decode(data)))

    def _order(self) -> None:
        """Encode all waiting texts as one batch, send it and write it."""
        waiting, self._waiting = self._waiting, []
        stamp, number, lines = round(time.time(), 3), self._last, []
        for _, upto, texts in waiting:
            first = upto - len(texts)
            for n, text in enumerate(texts, first + 1):
                number += 1
                lines.append(Line(number, 1, 1, f"0123456789abcdef-{n}", stamp, text))
        self._last = number
        data = self._encode(lines)
        self._unacknowledged.append((number, data, [(connection, upto) for connection, upto, _ in waiting]))
        frame = [HEAD.pack(len(data), number), data]
        for follower in self._followers:
            follower.transport.writelines(frame)
        self._disk.write(data, number)

    def _on_answer(self, index: int, upto: int) -> None:
        self._durable[index] = upto
        self._acknowledge()

    def _acknowledge(self) -> None:
        """Deliver the batches that a majority has synced, and acknowledge them."""
        reached = sorted(self._durable)[len(self._durable) // 2]
        bodies: list[bytes] = []
        answers: dict[Frames, int] = {}
        while self._unacknowledged and self._unacknowledged[0][0] <= reached:
            _, data, waiting = self._unacknowledged.popleft()
            bodies.append(data)
            answers.update(waiting)
        if bodies:
            self._disk.deliver(bodies)
        for connection, upto in answers.items():
            connection.transport.write(COUNT.pack(upto))

    # ---- the follower ----------------------------------------------------------------------------

    def _take_batch(self, connection: Frames, upto: int, data: bytes) -> None:
        self._leader = connection
        self._disk.write(data, upto)
        self._disk.deliver([data])

    def _on_durable(self, upto: int) -> None:
        if self._ports:
            self._durable[0] = upto
            self._acknowledge()
        elif self._leader is not None:
            self._leader.transport.write(COUNT.pack(upto))


class Sender:
    """All clients of one Send."""

    def __init__(self, order: Send) -> None:
        self.order = order
        self._left, self._acknowledged = order.count, 0
        self._took: list[float] = []
        self.done = asyncio.Event()

    async def run(self) -> Sent:
        loop = asyncio.get_running_loop()
        clients = [Client(self, index) for index in range(self.order.clients)]
        for each in clients:
            _, each.answers = await loop.create_connection(partial(Answers, each.on_answer), HOST, self.order.port)
        began = time.perf_counter()
        for each in clients:
            each.fill()
        await self.done.wait()
        seconds = time.perf_counter() - began
        for each in clients:
            each.answers.transport.close()
        return Sent(seconds, sorted(self._took)[len(self._took) // 2] * 1e3)

    def take(self, wanted: int) -> int:
        """Reserve up to `wanted` of the remaining messages; return their number."""
        count = min(wanted, self._left, self.order.line_messages)
        self._left -= count
        return count

    def answered(self, count: int, took: float) -> None:
        self._took.append(took)
        self._acknowledged += count
        if self._acknowledged >= self.order.count:
            self.done.set()


class Client:
    """One client connection, which keeps `in_flight` messages unanswered."""

    def __init__(self, sender: Sender, number: int) -> None:
        self._sender, self._number = sender, number
        self._sent = self._answered = 0
        self._under_way: deque[tuple[int, float]] = deque()
        self._encode = msgspec.json.Encoder().encode
        self.answers: Answers

    def fill(self) -> None:
        order = self._sender.order
        buffers: list[bytes] = []
        while (room := order.in_flight - (self._sent - self._answered)) and (count := self._sender.take(room)):
            data = self._encode(payloads(SEED, self._number, self._sent + 1, count, order.size))
            self._sent += count
            self._under_way.append((self._sent, time.perf_counter()))
            buffers += (HEAD.pack(len(data), self._sent), data)
        if buffers:
            self.answers.transport.writelines(buffers)

    def on_answer(self, upto: int) -> None:
        now = time.perf_counter()
        while self._under_way and self._under_way[0][0] <= upto:
            last, since = self._under_way.popleft()
            self._sender.answered(last - self._answered, now - since)
            self._answered = last
        self.fill()


async def listen(protocol: Callable[[], asyncio.BaseProtocol]) -> int:
    """Listen at a free port and return it."""
    server = await asyncio.get_running_loop().create_server(protocol, HOST, 0)
    return int(server.sockets[0].getsockname()[1])


def at_once(transport: asyncio.Transport) -> None:
    """Set TCP_NODELAY: send a frame without waiting for the acknowledgement of the one before it."""
    transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


async def main() -> None:
    """Carry out the orders on standard input until it ends."""
    decode = msgspec.json.Decoder(Order).decode
    async for line in orders():
        order = decode(line)
        answer: Serving | Sent | Spent
        match order:
            case Serve():
                answer = Serving(await Server(order).open())
            case Send():
                answer = await Sender(order).run()
            case Echo():
                answer = Serving(await listen(Echoing))
            case Cost():
                answer = Spent(time.process_time())
        say(msgspec.json.encode(answer))


if __name__ == "__main__":
    run_child(main())
