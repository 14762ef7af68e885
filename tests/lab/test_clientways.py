"""Links of clients through the proxy: held back, slowed, cut in pieces, reset, refused; nothing is lost on the way."""

from __future__ import annotations

import asyncio

import pytest

from lab.live.proxy import Break, Broken, Count, Evidence, Open, Opened, Proxy, SetRule
from lab.steps.rules import CLIENTS, LinkCounts, Pair, Rule
from tests.lab.inloop import in_loop

NODE = 2
TO_NODE, FROM_NODE = (CLIENTS, NODE), (NODE, CLIENTS)


class Ends:
    """A proxy in this process, with a node behind it that takes connections and leaves them to the test."""

    def __init__(self) -> None:
        self.proxy = Proxy()
        self.arrived: asyncio.Queue[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = asyncio.Queue()
        self.port = 0

    async def open(self) -> None:
        async def take(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await self.arrived.put((reader, writer))

        self.server = await asyncio.start_server(take, "127.0.0.1", 0)
        own = self.server.sockets[0].getsockname()[1]
        opened = await self.proxy.obey(Open("127.0.0.1", {NODE: own}, seed=7, clients=True))
        assert isinstance(opened, Opened)
        ((_, _, self.port),) = opened.ports

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A client's connection; the node's end of it is in node_reader and node_writer."""
        client = await asyncio.open_connection("127.0.0.1", self.port)
        self.node_reader, self.node_writer = await self.arrived.get()
        return client

    async def counts(self, pair: Pair) -> LinkCounts:
        evidence = await self.proxy.obey(Count())
        assert isinstance(evidence, Evidence)
        return next(link.counts for link in evidence.links if (link.sender, link.receiver) == pair)

    async def entered(self, pair: Pair) -> None:
        """Something has come to the near end of this way since the last call."""
        before = (await self.counts(pair)).entered
        while (await self.counts(pair)).entered == before:
            await asyncio.sleep(0)


async def is_reset(reader: asyncio.StreamReader) -> bool:
    try:
        return await reader.read() == b"" and False
    except ConnectionResetError:
        return True


async def opened() -> Ends:
    ends = Ends()
    await ends.open()
    return ends


@in_loop
async def test_what_both_say_passes_and_so_does_the_end() -> None:
    ends = await opened()
    reader, writer = await ends.connect()
    writer.write(b"hello\n")
    assert await ends.node_reader.readexactly(6) == b"hello\n"
    ends.node_writer.write(b"welcome\n")
    assert await reader.readexactly(8) == b"welcome\n"
    ends.node_writer.write(b"bye\n")
    ends.node_writer.close()
    assert await reader.read() == b"bye\n"
    writer.close()


@in_loop
async def test_what_is_cut_in_one_direction_waits_for_the_heal_and_comes_in_order() -> None:
    ends = await opened()
    reader, writer = await ends.connect()
    await ends.proxy.obey(SetRule((TO_NODE,), Rule(delay=86_400)))
    for text in (b"first ", b"second "):
        writer.write(text)
        await ends.entered(TO_NODE)
    ends.node_writer.write(b"the other direction\n")
    assert await reader.readline() == b"the other direction\n"
    assert (await ends.counts(TO_NODE)).delayed == 2 and (await ends.counts(FROM_NODE)).delayed == 0
    await ends.proxy.obey(SetRule((TO_NODE,), None))
    writer.write(b"third")
    assert await ends.node_reader.readexactly(18) == b"first second third"
    writer.close()


@in_loop
async def test_a_connection_that_is_opened_under_a_rule_obeys_it() -> None:
    ends = await opened()
    await ends.proxy.obey(SetRule((FROM_NODE,), Rule(delay=86_400)))
    reader, writer = await ends.connect()
    ends.node_writer.write(b"held\n")
    await ends.entered(FROM_NODE)
    assert (await ends.counts(FROM_NODE)).delayed == 1
    await ends.proxy.obey(SetRule((FROM_NODE,), None))
    assert await reader.readline() == b"held\n"
    writer.close()


@in_loop
async def test_what_is_held_when_the_client_leaves_still_arrives_and_then_the_end() -> None:
    ends = await opened()
    _, writer = await ends.connect()
    await ends.proxy.obey(SetRule((TO_NODE,), Rule(delay=86_400)))
    writer.write(b"last words")
    await ends.entered(TO_NODE)
    writer.write_eof()
    await ends.proxy.obey(SetRule((TO_NODE,), None))
    assert await ends.node_reader.read() == b"last words"
    writer.close()


@in_loop
async def test_pieces_make_up_what_was_said() -> None:
    ends = await opened()
    _, writer = await ends.connect()
    await ends.proxy.obey(SetRule((TO_NODE,), Rule(chunk=2)))
    writer.write(b"abcdefg")
    assert await ends.node_reader.readexactly(2) == b"ab"
    assert await ends.node_reader.readexactly(5) == b"cdefg"
    assert (await ends.counts(TO_NODE)).cut == 1
    writer.close()


@in_loop
async def test_a_narrow_way_lets_all_of_it_pass_in_the_end() -> None:
    ends = await opened()
    _, writer = await ends.connect()
    await ends.proxy.obey(SetRule((TO_NODE,), Rule(bandwidth=1e6)))
    writer.write(bytes(10_000))
    assert await ends.node_reader.readexactly(10_000) == bytes(10_000)
    assert (await ends.counts(TO_NODE)).delayed >= 1
    writer.close()


@in_loop
async def test_a_reset_breaks_every_connection_at_both_ends_and_counts_each_once() -> None:
    ends = await opened()
    clients, at_node = [], []
    for _ in range(2):
        clients.append(await ends.connect())
        at_node.append((ends.node_reader, ends.node_writer))
    assert await ends.proxy.obey(Break((TO_NODE, FROM_NODE))) == Broken(2)
    assert [await is_reset(reader) for reader, _ in clients + at_node] == [True] * 4
    assert await ends.proxy.obey(Break((TO_NODE,))) == Broken(0)
    _, writer = await ends.connect()
    writer.write(b"again")
    assert await ends.node_reader.readexactly(5) == b"again"
    writer.close()


@in_loop
async def test_refused_clients_are_turned_away_until_it_is_healed() -> None:
    ends = await opened()
    reader, _ = await ends.connect()
    await ends.proxy.obey(SetRule((TO_NODE,), Rule(refuse=True)))
    assert await is_reset(reader)
    turned_away, _ = await asyncio.open_connection("127.0.0.1", ends.port)
    assert await is_reset(turned_away)
    counts = await ends.counts(TO_NODE)
    assert (counts.reset, counts.refused) == (1, 1)
    await ends.proxy.obey(SetRule((TO_NODE,), None))
    _, writer = await ends.connect()
    writer.write(b"back")
    assert await ends.node_reader.readexactly(4) == b"back"
    writer.close()


@pytest.mark.parametrize("held", [False, True])
@in_loop
async def test_a_node_that_dies_takes_the_connection_along(held: bool) -> None:
    ends = await opened()
    reader, writer = await ends.connect()
    if held:
        await ends.proxy.obey(SetRule((TO_NODE,), Rule(delay=86_400)))
        writer.write(b"never")
        await ends.entered(TO_NODE)
    ends.node_writer.transport.abort()
    assert await reader.read() == b""
    writer.close()


@in_loop
async def test_clients_of_a_node_that_is_down_are_turned_away() -> None:
    ends = await opened()
    ends.server.close()
    await ends.server.wait_closed()
    reader, _ = await asyncio.open_connection("127.0.0.1", ends.port)
    assert await is_reset(reader)
