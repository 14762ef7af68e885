"""The clients of a run, seen from the harness: the load's workers, named senders, and subscribers."""

from __future__ import annotations

import asyncio
import math
import os
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import TypeAlias
from zlib import crc32

import msgspec

from lab.plan.scenario import Load
from lab.plan.step import Sender
from lab.plan.workload import FIRST_SUBSCRIBER, ClientPlan, client_plans, numbered_message, share
from lab.rows import Invoke, Shown
from lab.run.children import Child
from lab.run.load import Answer, Go, Halt, Prepare, Ready, Tally
from lab.run.world import REAL, History, World
from lab.rundir import RunDir
from nodeproc import nodestream
from nodeproc.client import Address, ChatClient
from nodeproc.core.messages import NodeId, SeqNo
from nodeproc.session import Outcome

Addresses: TypeAlias = dict[NodeId, Address]

WORKER_RATE = 400_000.0
"""Messages a second that one worker is asked for. It was seen to spend 1.1 µs of CPU a message, payload included."""
START_DELAY_S = 0.02
"""Between the order to go and the load's zero, so that all workers begin together."""


def worker_count(load: Load) -> int:
    """Processes that a load gets: what the scenario says, or what its rate needs, but no more than clients."""
    needed = load.workers or math.ceil((load.rate or 1.0) / WORKER_RATE)
    return max(1, min(needed, load.clients, load.workers or (os.cpu_count() or 1)))


class LoadWorkers:
    """The load of a run. It may be started again after it was stopped or has come to its end.

    Args:
        count: worker processes.
        client_token: what their clients show to the nodes.
    """

    def __init__(self, load: Load, run: RunDir, seed: int, count: int, client_token: str = "") -> None:
        self._load, self._run, self._seed, self._count = load, run, seed, count
        self._client_token = client_token
        self._children: list[Child] = []
        self._readers: list[asyncio.Task[None]] = []
        self._tallies: list[Tally] = []
        self._ready: list[asyncio.Event] = []
        self._news = asyncio.Event()
        self._used: list[bool] = []
        """Workers that have a plan in the present load."""

    async def spawn(self) -> None:
        """Start the processes, so that a later start is quick."""
        for number in range(1, self._count + 1):
            log = self._run.path / f"load-{number}.log"
            child = await Child.spawn(f"load worker {number}", "lab.run.load", log)
            self._children.append(child)
            self._tallies.append(Tally(finished=True))
            self._ready.append(asyncio.Event())
            self._readers.append(asyncio.create_task(self._read(number - 1, child)))
        self._used = [False] * self._count

    async def _read(self, index: int, child: Child) -> None:
        decode = msgspec.json.Decoder(Answer).decode
        try:
            while True:
                match decode(await child.answer()):
                    case Ready():
                        self._ready[index].set()
                    case Tally() as tally:
                        self._tallies[index] = tally
                self._news.set()
        finally:
            self._news.set()

    async def start(self, via: tuple[NodeId, ...], addresses: Addresses) -> None:
        """Connect all clients, then let all workers begin at one moment.

        Raises:
            RunFailed: a worker ended.
        """
        assert self.finished
        shares = share(client_plans(self._load, via, self._seed), self._count)
        self._used = [index < len(shares) for index in range(self._count)]
        for index, plans in enumerate(shares):
            self._ready[index].clear()
            self._tallies[index] = msgspec.structs.replace(self._tallies[index], finished=False)
            self._children[index].order(msgspec.json.encode(self._prepare(index, plans, addresses)))
        await self._until(lambda: all(self._ready[index].is_set() for index in range(len(shares))))
        go = msgspec.json.encode(Go(time.monotonic() + START_DELAY_S))
        for index in range(len(shares)):
            self._children[index].order(go)

    def _prepare(self, index: int, plans: tuple[ClientPlan, ...], addresses: Addresses) -> Prepare:
        return Prepare(
            history=str(self._run.history_part(index + 1)),
            addresses=addresses,
            plans=plans,
            duration=None if self._load.duration is None else float(self._load.duration),
            deadline=float(self._load.deadline),
            client_token=self._client_token,
        )

    def halt(self) -> None:
        """Send nothing new."""
        for index, child in enumerate(self._children):
            if self._used[index]:
                child.order(msgspec.json.encode(Halt()))

    async def settled(self) -> None:
        """Wait until every message has its outcome.

        Raises:
            RunFailed: a worker ended.
        """
        await self._until(lambda: self.finished)

    @property
    def finished(self) -> bool:
        """No worker sends any more, and every message has its outcome."""
        return all(tally.finished for tally in self._tallies)

    @property
    def total(self) -> Tally:
        """All workers added up, as they told last."""
        tallies = self._tallies
        return Tally(
            sent=sum(each.sent for each in tallies),
            acknowledged=sum(each.acknowledged for each in tallies),
            rejected=sum(each.rejected for each in tallies),
            unknown=sum(each.unknown for each in tallies),
            cpu_s=round(sum(each.cpu_s for each in tallies), 3),
            finished=self.finished,
        )

    async def _until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            self.check()
            self._news.clear()
            await self._news.wait()

    def check(self) -> None:
        """Raises what ended a worker's reader, if one has ended."""
        for reader in self._readers:
            if reader.done():
                reader.result()

    async def close(self) -> None:
        """End the processes; what they have written is whole then."""
        for reader in self._readers:
            reader.cancel()
        await asyncio.gather(*self._readers, return_exceptions=True)
        await asyncio.gather(*(child.close() for child in self._children))

    def kill(self) -> None:
        for child in self._children:
            child.kill()

    async def gone(self) -> None:
        """Wait for the end of processes that were killed."""
        await asyncio.gather(*self._readers, return_exceptions=True)
        await asyncio.gather(*(child.process.wait() for child in self._children))


class NamedClient:
    """A client of `send` steps; it keeps its session from step to step."""

    def __init__(self, client: int, addresses: Sequence[Address], history: History, world: World) -> None:
        self.client = client
        self._history, self._world = history, world
        self.outcomes: Counter[str] = Counter()
        self.chat = world.chat(addresses, client, on_outcome=self._on_outcome)
        self.chat.start()

    def send(self, payloads: tuple[str, ...]) -> None:
        """Hand the messages over, one behind the other, without waiting."""
        if self.chat.session.ended and not self.chat.session.unsettled:
            self.chat.renew()
        now, session = self._world.now_ns(), self.chat.session
        # The row goes first: an acknowledgement must not be older than what it answers.
        row = Invoke(now, self.client, session.id, session.last_n + 1, len(payloads), now, payloads=payloads)
        self._history.write(row)
        first = self.chat.submit_nowait(payloads)
        assert first == row.n, (first, row.n)

    def _on_outcome(self, outcome: Outcome) -> None:
        self.outcomes[outcome.kind] += outcome.last - outcome.first + 1
        self._history.outcome(self.chat.session.id, outcome)


class NamedClients:
    """All clients that `send` steps name."""

    def __init__(self, history: History, world: World = REAL) -> None:
        self._history, self._world = history, world
        self._clients: dict[int, NamedClient] = {}
        self._via: dict[int, NodeId] = {}
        self._numbered: Counter[int] = Counter()

    async def send(self, sender: Sender, addresses: Addresses) -> NamedClient:
        """Make the client or move it to its node, and hand its messages over."""
        order = self._order(sender, addresses)
        client = self._clients.get(sender.client)
        if client is not None and sender.fresh:
            await client.chat.close()
            client = None
        if client is None:
            client = self._clients[sender.client] = NamedClient(sender.client, order, self._history, self._world)
        elif sender.via is not None and client.chat.session.node != sender.via:
            client.chat.move(order)
        client.send(self._messages(sender))
        return client

    def _order(self, sender: Sender, addresses: Addresses) -> list[Address]:
        """Its node first, then the others in turn."""
        nodes = sorted(addresses)
        via = sender.via or self._via.get(sender.client, nodes[0])
        self._via[sender.client] = via
        at = nodes.index(via)
        return [addresses[node] for node in nodes[at:] + nodes[:at]]

    def _messages(self, sender: Sender) -> tuple[str, ...]:
        if not isinstance(sender.messages, int):
            return sender.messages
        done = self._numbered[sender.client]
        self._numbered[sender.client] += sender.messages
        return tuple(numbered_message(sender.client, done + number) for number in range(1, sender.messages + 1))

    @property
    def waiting(self) -> int:
        """Messages of all of them without an outcome."""
        return sum(each.chat.session.unsettled for each in self._clients.values())

    async def close(self) -> None:
        await asyncio.gather(*(each.chat.close() for each in self._clients.values()))


class Subscribers:
    """Clients that are shown everything from the first message on."""

    def __init__(self, count: int, addresses: Addresses, history: History, world: World = REAL) -> None:
        nodes = sorted(addresses)
        self._chats = []
        for index in range(count):
            at = index % len(nodes)
            order = [addresses[node] for node in nodes[at:] + nodes[:at]]
            self._chats.append(_follow(FIRST_SUBSCRIBER + index, order, history, world))

    async def until_shown(self, last: SeqNo, patience_s: float) -> bool:
        """Wait until all were shown everything up to `last`; False if that took too long. Rule: A8."""
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


def _follow(client: int, addresses: Sequence[Address], history: History, world: World) -> ChatClient:
    def on_shown(shown: nodestream.Shown) -> None:
        history.write(Shown(world.now_ns(), client, shown.first, shown.last, crc32(shown.lines)))

    chat = world.chat(addresses, client)
    chat.start()
    chat.follow(1, on_shown)
    return chat
