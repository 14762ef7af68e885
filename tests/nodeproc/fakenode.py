"""Nodes that speak the client protocol and agree by magic: one log in the test process, many listening ports."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import msgspec
from msgspec import UNSET, UnsetType

from nodeproc.core.messages import Line, MemberAddress
from nodeproc.errors import FrameError
from nodeproc.lines import (
    Ack,
    Chat,
    ClientLine,
    Hello,
    LeaderLine,
    LineDecoder,
    NodeLine,
    PeerStatus,
    Problem,
    Reject,
    Status,
    StatusRequest,
    Subscribe,
    Welcome,
    decode_client_line,
    encode_line,
)
from tests import TOO_LONG_S


class FakeCluster:
    """The log and the session table of all its nodes; ordering is instantaneous."""

    def __init__(self) -> None:
        self.messages: list[Line] = []
        self.sessions: dict[str, tuple[int, int]] = {}
        self.nodes: list[FakeNode] = []
        self.leader = 3
        self.term = 1
        self.expired: set[str] = set()

    async def start(self, count: int = 3) -> list[FakeNode]:
        for node_id in range(1, count + 1):
            node = FakeNode(self, node_id)
            await node.start()
            self.nodes.append(node)
        return self.nodes

    async def stop(self) -> None:
        for node in self.nodes:
            await node.stop()

    def payloads(self) -> list[str]:
        return [message.payload for message in self.messages]

    def order(self, client_id: int, session: str, chat: Chat) -> Reject | None:
        """Take what is new of a CHAT. Rule: S2."""
        last_n = self.sessions.get(session, (0, 0))[0]
        if session in self.expired:
            return Reject(session, chat.first, "expired", False)
        if chat.first > last_n + 1:
            return Reject(session, chat.first, "gap", True, last_n + 1)
        before = len(self.messages)
        for n, payload in enumerate(chat.payloads, chat.first):
            if n > last_n:
                seq_no = len(self.messages) + 1
                self.messages.append(Line(seq_no, self.term, client_id, f"{session}-{n}", 1.0, payload))
                self.sessions[session] = n, seq_no
        if len(self.messages) > before:
            for node in self.nodes:
                node.delivered()
        return None

    def change_leader(self, leader: int) -> None:
        self.leader, self.term = leader, self.term + 1
        for node in self.nodes:
            for connection in node.connections:
                connection.say(LeaderLine(leader, self.term))


class FakeNode:
    """One listening port.

    deaf: reads and answers nothing, like a stopped process.
    drop_chats: how many of the next CHAT lines are lost on their way to the leader.
    hold_acks: deliver, but don't acknowledge, not in WELCOME either.
    """

    def __init__(self, cluster: FakeCluster, node_id: int) -> None:
        self.cluster = cluster
        self.node_id = node_id
        self.port = 0
        self.deaf = False
        self.drop_chats = 0
        self.hold_acks = False
        self.problem = ""
        self.new_addresses: tuple[MemberAddress, ...] | UnsetType = UNSET
        self.connections: list[FakeConnection] = []
        self.lines: list[ClientLine] = []
        self._server: asyncio.Server | None = None
        self._watchers: list[tuple[Callable[[], bool], asyncio.Future[None]]] = []

    async def start(self) -> None:
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: FakeConnection(self), "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Close the port and reset its connections, like a killed process."""
        if self._server is not None:
            self._server.close()
            self._server = None
        self.reset_connections()

    def reset_connections(self) -> None:
        for connection in list(self.connections):
            connection.transport.abort()

    def delivered(self) -> None:
        for connection in self.connections:
            connection.push()

    async def saw(self, condition: Callable[[], bool]) -> None:
        """Wait until the condition holds after some line or connection."""
        if not condition():
            future = asyncio.get_running_loop().create_future()
            self._watchers.append((condition, future))
            async with asyncio.timeout(TOO_LONG_S):
                await future

    def wake(self) -> None:
        for condition, future in self._watchers:
            if not future.done() and condition():
                future.set_result(None)


class FakeConnection(asyncio.Protocol):
    """One client at one fake node."""

    def __init__(self, node: FakeNode) -> None:
        self.node = node
        self.hello: Hello | None = None
        self.next_seq = 0
        """Next seq_no to push; 0: no subscription."""
        self._decoder = LineDecoder(4 << 20)
        self.transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self.node.connections.append(self)
        self.node.wake()

    def connection_lost(self, exc: Exception | None) -> None:
        self.node.connections.remove(self)
        self.node.wake()

    def data_received(self, data: bytes) -> None:
        if self.node.deaf:
            return
        try:
            for line in self._decoder.feed(data):
                self.take(decode_client_line(line))
        except FrameError as error:
            self.say(Problem(str(error)))
            self.transport.close()
        self.node.wake()

    def say(self, line: NodeLine) -> None:
        if not self.node.deaf:
            self.transport.write(encode_line(line))

    def take(self, line: ClientLine) -> None:
        node, cluster = self.node, self.node.cluster
        node.lines.append(line)
        if isinstance(line, StatusRequest):
            last = len(cluster.messages)
            peers = (PeerStatus(2, True, True, last),)
            self.say(
                Status(
                    node.node_id, "follower", cluster.term, cluster.leader, last, last, last, False, 1.0, 1, peers, {}
                )
            )
        elif node.problem:
            self.say(Problem(node.problem))
            self.transport.close()
        elif isinstance(line, Hello):
            self.hello = line
            last_n, seq_no = (0, 0) if node.hold_acks else cluster.sessions.get(line.session, (0, 0))
            last = len(cluster.messages)
            born = last if line.born is None else line.born
            known = cluster.leader, cluster.term, seq_no, node.new_addresses
            self.say(Welcome(node.node_id, line.session, born, last_n, last, *known))
        elif isinstance(line, Subscribe):
            self.next_seq = line.start
            self.push()
        elif isinstance(line, Chat):
            self.take_chat(line)

    def take_chat(self, chat: Chat) -> None:
        assert self.hello is not None
        node, cluster, session = self.node, self.node.cluster, self.hello.session
        if node.drop_chats:
            node.drop_chats -= 1
        elif not cluster.leader:
            self.say(Reject(session, chat.first, "no_leader", True))
        elif (refusal := cluster.order(self.hello.client_id, session, chat)) is not None:
            self.say(refusal)
        elif not node.hold_acks:
            n, seq_no = cluster.sessions[session]
            self.say(Ack(session, n, seq_no))

    def push(self) -> None:
        messages = self.node.cluster.messages
        if 0 < self.next_seq <= len(messages) and not self.node.deaf:
            self.transport.write(msgspec.json.Encoder().encode_lines(messages[self.next_seq - 1 :]))
            self.next_seq = len(messages) + 1
