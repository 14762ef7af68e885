"""A node that orders alone and forgets all: for tests of the lab that need an answer, not a chat.

In a test's own loop: FakeNode().listen(); as a process: python -m tests.lab.fakenode --config FILE …
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
from pathlib import Path

import msgspec
import yaml

from nodeproc.core.messages import Line
from nodeproc.lines import (
    Ack,
    Chat,
    Hello,
    LineDecoder,
    NodeLine,
    Status,
    StatusRequest,
    Subscribe,
    Welcome,
    decode_client_line,
    encode_line,
)


class FakeNode:
    """Leads term 1 alone; every message is delivered at once."""

    def __init__(self, node: int = 1) -> None:
        self.node = node
        self.lines: list[bytes] = []
        self.port = 0
        self._sessions: dict[str, int] = {}

    async def listen(self, host: str = "127.0.0.1", port: int = 0) -> None:
        self.server = await asyncio.get_running_loop().create_server(
            lambda: _Guest(self), host, port, reuse_address=True
        )
        self.port = self.server.sockets[0].getsockname()[1]

    def order(self, session: str, client: int, chat: Chat) -> Ack:
        for n, payload in enumerate(chat.payloads, chat.first):
            if n == self._sessions.get(session, 0) + 1:
                self._sessions[session] = n
                line = Line(len(self.lines) + 1, 1, client, f"{session}-{n}", 1.0, payload)
                self.lines.append(msgspec.json.encode(line) + b"\n")
        return Ack(session, self._sessions.get(session, 0), len(self.lines))

    def welcome(self, session: str) -> Welcome:
        return Welcome(
            node=self.node,
            session=session,
            born=0,
            acknowledged=0,
            acknowledged_seq=0,
            last_seq=len(self.lines),
            leader=self.node,
            term=1,
        )

    def status(self) -> Status:
        last = len(self.lines)
        return Status(self.node, "leader", 1, self.node, last, last, last, False, 1.0, os.getpid(), (), {})


class _Guest(asyncio.Protocol):
    def __init__(self, node: FakeNode) -> None:
        self._node, self._decoder = node, LineDecoder(1 << 20)
        self._hello = Hello(0)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        for raw in self._decoder.feed(data):
            match decode_client_line(raw):
                case Hello() as hello:
                    self._hello = hello
                    self._say(self._node.welcome(hello.session))
                case Chat() as chat:
                    self._say(self._node.order(self._hello.session, self._hello.client_id, chat))
                case Subscribe() as subscribe:
                    self._transport.write(b"".join(self._node.lines[subscribe.start - 1 :]))
                case StatusRequest():
                    self._say(self._node.status())

    def _say(self, line: NodeLine) -> None:
        self._transport.write(encode_line(line))


async def main() -> None:
    """As the lab starts a node."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--config", type=Path)
    parser.add_argument("--lifeline", type=int)
    parser.add_argument("--quiet", action="store_true")
    parser.add_argument("--die-with-parent", action="store_true")
    options = parser.parse_args()
    config = yaml.safe_load(options.config.read_text())
    if config.get("fail"):
        raise SystemExit(config["fail"])
    over, loop = asyncio.Event(), asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, over.set)
    loop.add_reader(options.lifeline, over.set)
    node = FakeNode(config["node_id"])
    await node.listen(config["host"], config["port"])
    await over.wait()


if __name__ == "__main__":
    asyncio.run(main())
