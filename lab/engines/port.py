"""The port of a node: clients, as docs/client_protocol.md describes them, and connections of other nodes' engines."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress
from typing import NamedTuple

from lab.engines.engine import Engine, Refused, Unknown
from lab.engines.messagelog import MessageLog, Record
from lab.engines.tunnels import DIAL_PATIENCE_S, Tunnel, join
from nodeproc.core.messages import NodeId, SeqNo, Term
from nodeproc.errors import FrameError
from nodeproc.lines import (
    Ack,
    Chat,
    Hello,
    LeaderLine,
    NodeLine,
    Problem,
    Reject,
    Status,
    StatusRequest,
    Subscribe,
    Welcome,
    decode_client_line,
    encode_line,
    session_of,
)

LINE_BYTES = 4 << 20
WAITING_CHATS = 1000
"""CHAT lines of one client that wait; beyond, the adapter stops reading."""
RECORD_MESSAGES = 200
"""Waiting CHAT lines are joined up to this many messages."""
PUSHED_LINES = 1000
HALF_CLOSED_S = 10.0
"""A client that has closed its sending half gets answers for this long."""
RETRY_S = 0.1
"""From an append with unknown outcome to the next try."""


class Known(NamedTuple):
    """What the engine reports: its leader, 0 if it has none now, and the term of the latest leader."""

    leader: NodeId = 0
    term: Term = 0


class Port:
    """All connections to one node.

    Args:
        is_ready: returns whether the local engine answers; before, STATUS is not answered.
    """

    def __init__(self, engine: Engine, log: MessageLog, is_ready: Callable[[], bool]) -> None:
        self.engine, self.log, self._is_ready = engine, log, is_ready
        self.known = Known()
        self.acknowledged: dict[str, int] = {}
        """Session -> its last message that the engine has acknowledged to this process."""
        self.doubtful: set[str] = set()
        """Sessions with a message of unknown outcome, which must not be sent again (Engine.resends)."""
        self.own: set[str] = set()
        """Sessions that began at this process."""
        self._clients: set[_Client] = set()

    async def listen(self, host: str, port: int) -> asyncio.Server:
        return await asyncio.start_server(self._serve, host, port, limit=LINE_BYTES)

    def show(self, known: Known) -> None:
        """Report the engine's leader to all clients, if it has changed."""
        if known != self.known:
            self.known = known
            for client in self._clients:
                client.say(LeaderLine(known.leader, known.term))

    def status(self) -> Status | None:
        """Return the answer to STATUS; None before the engine is ready."""
        node, (leader, term), last = self.engine.place.node, self.known, len(self.log.lines)
        role = "leader" if leader == node else "follower"
        return Status(node, role, term, leader, last, last, last) if self._is_ready() else None

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        client = _Client(self, reader, writer)
        try:
            line = await reader.readline()
            if (tunnel := Tunnel.of(line)) is not None:
                await join(reader, writer, (self.engine.place.host, tunnel.port), patience_s=DIAL_PATIENCE_S)
                return
            self._clients.add(client)
            await client.serve(line)
        except FrameError as error:
            client.say(Problem(str(error)))
        except (OSError, ValueError):  # ValueError: a line that is too long
            pass
        finally:
            self._clients.discard(client)
            client.end()
            writer.close()


class _Client:
    """One connection of a client."""

    def __init__(self, port: Port, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._port, self._reader, self._writer = port, reader, writer
        self._hello: Hello | None = None
        self._chats: asyncio.Queue[Chat] = asyncio.Queue(WAITING_CHATS)
        self._held: Chat | None = None
        """Taken from the queue, and next in turn."""
        self._gap = 0
        """The first message of the latest CHAT, if messages before it were missing."""
        self._worker: asyncio.Task[None] | None = None
        self._pushing: list[asyncio.Task[None]] = []

    def say(self, line: NodeLine) -> None:
        if not self._writer.is_closing():
            self._writer.write(encode_line(line))

    def end(self) -> None:
        for task in (self._worker, *self._pushing):
            if task is not None:
                task.cancel()

    async def serve(self, line: bytes) -> None:
        """Handle lines until the client closes. Raises: FrameError, OSError, ValueError."""
        while line.endswith(b"\n"):
            match decode_client_line(line):
                case StatusRequest():
                    if (status := self._port.status()) is None:
                        return
                    self.say(status)
                case Hello() as hello if self._hello is None:
                    self._hello = hello
                    session = hello.session or session_of(str(hello.session_token))
                    self._begin(session, hello)
                    self._worker = asyncio.create_task(self._work(session, hello.client_id))
                case Subscribe(start):
                    self._pushing.append(asyncio.create_task(self._push(start)))
                case Chat() as chat if self._hello is not None:
                    await self._chats.put(chat)
                case other:
                    raise FrameError(f"a {type(other).__name__} line is not allowed here")
            await self._writer.drain()
            line = await self._reader.readline()
        # A client that closes only its sending half still gets its answers.
        with suppress(TimeoutError):
            async with asyncio.timeout(HALF_CLOSED_S):
                await self._chats.join()
                await asyncio.gather(*self._pushing)

    def _begin(self, session: str, hello: Hello) -> None:
        port, last = self._port, len(self._port.log.lines)
        if hello.born is None:
            port.own.add(session)
        elif not port.engine.resends and session not in port.own:
            port.doubtful.add(session)  # Another node's adapter may have sent its messages.
        n = port.acknowledged.get(session, 0)
        at = port.log.seq_nos.get(f"{session}-{n}", 0)
        born = last if hello.born is None else hello.born
        node, (leader, term) = port.engine.place.node, port.known
        self.say(Welcome(node, session, born, n if at else 0, last, leader, term, at))

    async def _work(self, session: str, client_id: int) -> None:
        """Put the client's messages into the engine, one CHAT after the other."""
        while True:
            chat, lines = await self._next_chat()
            if (refusal := await self._store(session, client_id, chat)) is None:
                await self._acknowledge(session, chat.first + len(chat.payloads) - 1)
            else:
                self.say(refusal)
            for _ in range(lines):
                self._chats.task_done()

    async def _next_chat(self) -> tuple[Chat, int]:
        """Return the next CHAT, joined with waiting ones that continue it; and the number of lines that were joined."""
        chat = await self._chats.get() if self._held is None else self._held
        self._held, payloads, lines = None, list(chat.payloads), 1
        while len(payloads) < RECORD_MESSAGES and not self._chats.empty():
            more = self._chats.get_nowait()
            if more.first != chat.first + len(payloads):
                self._held = more
                break
            payloads += more.payloads
            lines += 1
        return Chat(chat.first, tuple(payloads)), lines

    async def _store(self, session: str, client_id: int, chat: Chat) -> Reject | None:
        """Put the messages of a CHAT into the engine; return None if it has all of them now, else why not."""
        port, engine, last = self._port, self._port.engine, chat.first + len(chat.payloads) - 1
        while (first := max(chat.first, port.acknowledged.get(session, 0) + 1)) <= last:
            if session in port.doubtful:
                return Reject(session, first, "expired", retry=False)
            payloads = chat.payloads[first - chat.first :]
            value = Record(client_id, port.known.term, round(time.time(), 3), payloads).text()
            if not engine.resends:
                port.doubtful.add(session)
            try:
                has = await engine.append(session, first, last, value)
            except Refused:
                port.doubtful.discard(session)
                self._gap = 0
                return Reject(session, first, "no_leader", retry=True)
            except Unknown:
                if not engine.resends:  # Messages up to `last` have an unknown outcome, later ones were never sent.
                    return Reject(session, last + 1, "expired", retry=False)
                await asyncio.sleep(RETRY_S)
                continue
            port.doubtful.discard(session)
            if has < first - 1:
                if self._gap == first:  # The client has all before it acknowledged: the engine has lost some of that.
                    return Reject(session, first, "expired", retry=False)
                self._gap = first
                return Reject(session, first, "gap", retry=True, expected=has + 1)
            self._gap = 0
            port.acknowledged[session] = min(has, last)
        return None

    async def _acknowledge(self, session: str, n: int) -> None:
        """Send ACK as soon as the local store has message n, too: only then is its seq_no known."""
        log, msg_id = self._port.log, f"{session}-{n}"
        async with log.grown:
            await log.grown.wait_for(lambda: msg_id in log.seq_nos)
            self.say(Ack(session, n, log.seq_nos[msg_id]))

    async def _push(self, start: SeqNo) -> None:
        """Send all lines of the log from `start` on."""
        log = self._port.log
        with suppress(OSError):
            while not self._writer.is_closing():
                async with log.grown:
                    while len(log.lines) < start:
                        await log.grown.wait()
                lines = log.lines[start - 1 : start - 1 + PUSHED_LINES]
                start += len(lines)
                self._writer.writelines(lines)
                await self._writer.drain()
