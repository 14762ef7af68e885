"""The clients of `send` steps, and the subscribers. (The clients of the load are in lab.course.load.)"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from typing import TypeAlias
from zlib import crc32

from lab.course.environment import REAL, Environment
from lab.course.recording import History
from lab.payloads import numbered_message
from lab.plan.workload import FIRST_SUBSCRIBER
from lab.rows import Invoke, Shown
from lab.steps import Sender
from nodeproc import lines
from nodeproc.client import Address, ChatClient
from nodeproc.core.messages import NodeId, SeqNo
from nodeproc.outcome import Outcome

Addresses: TypeAlias = dict[NodeId, Address]


class NamedClient:
    """A client of `send` steps; it keeps its session from one step to the next."""

    def __init__(self, client: int, addresses: Sequence[Address], history: History, environment: Environment) -> None:
        self.client = client
        self._history, self._environment = history, environment
        self.outcomes: Counter[str] = Counter()
        self.chat = environment.chat(addresses, client, on_outcome=self._on_outcome)
        self.chat.start()

    def send(self, payloads: tuple[str, ...]) -> None:
        """Hand the messages to the client library, without waiting for outcomes."""
        if self.chat.session.ended and not self.chat.session.unsettled:
            self.chat.renew()
        now, session = self._environment.now_ns(), self.chat.session
        # The row is written first: an acknowledgement must not be older than its message.
        row = Invoke(now, self.client, session.id, session.last_n + 1, len(payloads), now, payloads=payloads)
        self._history.write(row)
        first = self.chat.submit_nowait(payloads)
        assert first == row.n, (first, row.n)

    def _on_outcome(self, outcome: Outcome) -> None:
        self.outcomes[outcome.kind] += outcome.last - outcome.first + 1
        self._history.outcome(self.chat.session.id, outcome)


class NamedClients:
    """All clients of `send` steps."""

    def __init__(self, history: History, environment: Environment = REAL) -> None:
        self._history, self._environment = history, environment
        self._clients: dict[int, NamedClient] = {}
        self._via: dict[int, NodeId] = {}
        self._numbered: Counter[int] = Counter()

    async def send(self, sender: Sender, addresses: Addresses) -> NamedClient:
        """Create the client, or move it to the node that it is to use, and send its messages."""
        order = self._order(sender, addresses)
        client = self._clients.get(sender.client)
        if client is not None and sender.fresh:
            await client.chat.close()
            client = None
        if client is None:
            client = self._clients[sender.client] = NamedClient(sender.client, order, self._history, self._environment)
        elif sender.via is not None and client.chat.session.node != sender.via:
            client.chat.move(order)
        client.send(self._messages(sender))
        return client

    def _order(self, sender: Sender, addresses: Addresses) -> list[Address]:
        """Return the addresses of all nodes, the client's own node first."""
        via = sender.via or self._via.get(sender.client, min(addresses))
        self._via[sender.client] = via
        return _in_turn(addresses, sorted(addresses).index(via))

    def _messages(self, sender: Sender) -> tuple[str, ...]:
        if not isinstance(sender.messages, int):
            return sender.messages
        done = self._numbered[sender.client]
        self._numbered[sender.client] += sender.messages
        return tuple(numbered_message(sender.client, done + number) for number in range(1, sender.messages + 1))

    @property
    def waiting(self) -> int:
        """Messages without outcome, of all these clients."""
        return sum(each.chat.session.unsettled for each in self._clients.values())

    async def close(self) -> None:
        await asyncio.gather(*(each.chat.close() for each in self._clients.values()))


class Subscribers:
    """Clients that receive every message from the first one on."""

    def __init__(self, count: int, addresses: Addresses, history: History, environment: Environment = REAL) -> None:
        self._chats = [
            _follow(FIRST_SUBSCRIBER + index, _in_turn(addresses, index % len(addresses)), history, environment)
            for index in range(count)
        ]

    async def until_shown(self, last: SeqNo, patience_s: float) -> bool:
        """Wait until all have received every message up to `last`; return False if that took too long. Rule: A8."""
        try:
            async with asyncio.timeout(patience_s):
                await asyncio.gather(*(_until_shown(chat, last) for chat in self._chats))
        except TimeoutError:
            return False
        return True

    async def close(self) -> None:
        await asyncio.gather(*(chat.close() for chat in self._chats))


async def _until_shown(chat: ChatClient, last: SeqNo) -> None:
    await chat.until(lambda: chat.session.place > last)


def _in_turn(addresses: Addresses, first: int) -> list[Address]:
    """Return the addresses of all nodes by ascending id, starting with the node at index `first`."""
    nodes = sorted(addresses)
    return [addresses[node] for node in nodes[first:] + nodes[:first]]


def _follow(client: int, addresses: Sequence[Address], history: History, environment: Environment) -> ChatClient:
    def on_shown(shown: lines.Shown) -> None:
        history.write(Shown(environment.now_ns(), client, shown.first, shown.last, crc32(shown.lines)))

    chat = environment.chat(addresses, client)
    chat.start()
    chat.follow(1, on_shown)
    return chat
