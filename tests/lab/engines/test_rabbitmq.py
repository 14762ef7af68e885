"""The driver of RabbitMQ: what each answer means, and what the inside of a node says about its own log."""

from __future__ import annotations

import asyncio
import json
import struct
from base64 import b64encode
from importlib import import_module
from types import SimpleNamespace
from typing import Any

import pytest

from lab.engines import rabbitmq_epmd
from lab.engines.engine import SETTLED_S, EngineStatus, Entry, Refused, Unknown
from tests.lab.engines.surroundings import PLACE
from tests.lab.inloop import in_loop

pytest.importorskip("aio_pika", reason="the extra `engines` is not installed")

from aio_pika import exceptions as amqp

from lab.engines import rabbitmq

FRAMES = import_module("pamqp.commands").Basic
RETURNED = FRAMES.Return(reply_code=312, reply_text="NO_ROUTE", exchange="", routing_key="chat")


class Confirmation:
    delivery_tag = 1


class Channel:
    """Stands for a channel and its default exchange. published: the answer to each message, or the error."""

    def __init__(self, published: object = None) -> None:
        self.published, self.bodies = published or Confirmation(), list[object]()

    @property
    def default_exchange(self) -> Channel:
        return self

    async def publish(self, message: Any, queue: str, timeout: float) -> object:
        self.bodies.append(json.loads(message.body))
        if isinstance(self.published, Exception):
            raise self.published
        return self.published


def driver(channel: Channel | Exception, **options: str) -> rabbitmq.RabbitMQ:
    engine = rabbitmq.RabbitMQ(PLACE, "rabbitmq-server", options)

    async def confirming() -> Channel:
        if isinstance(channel, Exception):
            raise channel
        return channel

    engine._confirming = confirming  # type: ignore[method-assign]
    return engine


def inside(engine: rabbitmq.RabbitMQ, **answers: list[list[list[str]]]) -> list[str]:
    """Give the answers of the node's inside, each to the questions that begin with this word; return the questions."""
    asked: list[str] = []

    async def ask(question: str) -> list[list[str]]:
        asked.append(question)
        return answers[question.split()[0]].pop(0)

    engine._ask = ask  # type: ignore[method-assign]
    return asked


@in_loop
async def test_a_record_is_published_after_the_one_before_it() -> None:
    channel = Channel()
    engine = driver(channel)
    assert await engine.append("s", 1, 3, "v") == 3
    assert await engine.append("s", 9, 9, "v") == 3
    assert await engine.append("s", 4, 4, "w") == 4
    assert channel.bodies == [["s", 3, "v"], ["s", 4, "w"]]


@pytest.mark.parametrize(
    ("error", "meaning"),
    [
        (amqp.PublishError(SimpleNamespace(delivery=RETURNED), RETURNED), Refused),
        (amqp.DeliveryError(None, FRAMES.Nack()), Unknown),
        (amqp.ChannelInvalidStateError(), Unknown),
        (amqp.AMQPConnectionError(), Unknown),
        (ConnectionResetError(), Unknown),
        (TimeoutError(), Unknown),
    ],
    ids=lambda value: type(value).__name__,
)
def test_errors_of_a_publication(error: Exception, meaning: type[Exception]) -> None:
    @in_loop
    async def run() -> None:
        engine = driver(Channel(error))
        with pytest.raises(meaning):
            await engine.append("s", 1, 1, "v")
        assert engine._last == {}

    run()


@in_loop
async def test_without_a_connection_nothing_is_stored() -> None:
    with pytest.raises(Refused, match="no connection"):
        await driver(amqp.AMQPConnectionError()).append("s", 1, 1, "v")


@in_loop
async def test_a_leader_counts_once_a_follower_has_shown_it_for_a_while() -> None:
    engine = driver(Channel())
    follows, leads, none = ["rabbit@127.64.0.3", "5", "17"], ["rabbit@127.64.0.1", "6", "18"], ["none", "6", "18"]
    inside(engine, status=[[row] for row in (follows, follows, none, leads)])
    assert await engine.status() == EngineStatus(0, 5)
    engine._settled._since -= SETTLED_S
    assert await engine.status() == EngineStatus(3, 5)
    assert [await engine.status(), await engine.status()] == [EngineStatus(0, 6), EngineStatus(1, 6)]


def row(index: int, sender: str, number: str, n: int) -> list[str]:
    return [str(index), sender, number, b64encode(json.dumps(["s", n, f"v{n}"]).encode()).decode()]


@in_loop
async def test_the_tail_shows_what_the_queue_has_taken() -> None:
    engine = driver(Channel())
    asked = inside(
        engine,
        status=[[["none", "1", applied]] for applied in ("2", "2", "7", "6")],
        read=[
            [["1"], row(2, "10", "1", 1)],
            # Number 3 comes before 2, so the queue refuses it; it takes the first 2 only.
            [row(3, "10", "3", 3), row(4, "10", "2", 2), row(5, "10", "2", 2), row(7, "10", "3", 3)],
            [row(6, "10", "4", 4), row(7, "10", "3", 3)],
        ],
    )
    found = [list(entries) async for entries in engine.tail()]
    assert found == [[Entry("s", 1, "v1")], [Entry("s", 2, "v2"), Entry("s", 3, "v3")]]
    assert [question for question in asked if question.startswith("read")] == [
        "read quorum 1 2",
        "read quorum 3 7",
        "read quorum 6 7",
    ]


@in_loop
async def test_the_tail_of_a_stream_shows_whole_chunks() -> None:
    engine = driver(Channel(), queue="stream")
    asked = inside(
        engine,
        # The last committed chunk begins with message 2, then with message 5; after that the stream is empty.
        status=[[["none", "1", applied]] for applied in ("2", "2", "5", "0")],
        read=[
            [row(index, "0", "undefined", index) for index in (1, 2, 3, 4)],
            [row(5, "0", "undefined", 5)],
        ],
    )
    found = [[entry.last for entry in entries] async for entries in engine.tail()]
    assert found == [[1, 2, 3, 4], [5]]
    assert [question for question in asked if question.startswith("read")] == ["read stream 1 2", "read stream 5 5"]


@in_loop
async def test_an_empty_stream_is_an_empty_log() -> None:
    engine = driver(Channel(), queue="stream")
    inside(engine, status=[[["none", "1", "0"]]], read=[])
    assert await anext(engine.tail()) == []


def test_each_node_has_a_port_mapper_and_a_distribution_port() -> None:
    engines = [rabbitmq.RabbitMQ(PLACE._replace(node=node), "/bin/sh", {}) for node in PLACE.ids]
    assert PLACE.host in engines[0].files()["inetrc"].replace(",", ".")
    assert "{26670,26671}" in engines[0].environment()["RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS"]
    ports = {engine.environment()["ERL_EPMD_PORT"] for engine in engines}
    assert len(ports) == 3
    assert {engine.environment()["RABBITMQ_DIST_PORT"] for engine in engines} == {"25671", "25672", "25673"}
    for engine in engines:
        assert set(engine.command()[-3:]) == ports
        assert '"' not in engine.files()["inside.erl"].split("gen_tcp:listen(")[1].split(",")[0]


# ---- the port mapper ------------------------------------------------------------------------------


async def ask(port: int, request: bytes) -> tuple[bytes, asyncio.StreamWriter]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(struct.pack(">H", len(request)) + request)
    return (await reader.read(6) if request[0] == rabbitmq_epmd.REGISTER else await reader.read()), writer


@in_loop
async def test_a_node_is_known_to_the_port_mapper_while_its_connection_is_open() -> None:
    nodes = rabbitmq_epmd.Nodes()
    server = await asyncio.start_server(nodes.serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    rest = struct.pack(">BBHHH", 77, 0, 6, 5, 6) + b"rabbit" + struct.pack(">H", 0)
    names, please = bytes([rabbitmq_epmd.NAMES]), bytes([rabbitmq_epmd.ASK]) + b"rabbit"
    assert (await ask(port, please))[0] == b"\x77\x01"
    answer, held = await ask(port, bytes([rabbitmq_epmd.REGISTER]) + struct.pack(">H", 25671) + rest)
    assert answer == struct.pack(">BBI", rabbitmq_epmd.REGISTERED, 0, 1)
    assert (await ask(port, please))[0] == b"\x77\x00" + struct.pack(">H", 25671) + rest
    assert (await ask(port, names))[0] == struct.pack(">I", port) + b"name rabbit at port 25671\n"
    held.close()
    while (await ask(port, please))[0] != b"\x77\x01":
        pass
    server.close()


class Sink:
    """Takes what the port mapper writes."""

    def write(self, data: bytes) -> None: ...

    def close(self) -> None: ...

    async def drain(self) -> None: ...


def registration(name: bytes) -> bytes:
    said = struct.pack(">BHBBHHH", rabbitmq_epmd.REGISTER, 25671, 77, 0, 6, 5, len(name)) + name + bytes(2)
    return struct.pack(">H", len(said)) + said


@pytest.mark.parametrize(
    ("names", "ended"), [((b"rabbit", b"rabbit"), 0), ((b"rabbit", b"starter"), 1)], ids=["again", "another"]
)
def test_the_port_mapper_forgets_only_what_a_connection_has_registered(names: tuple[bytes, ...], ended: int) -> None:
    @in_loop
    async def run() -> None:
        nodes, readers = rabbitmq_epmd.Nodes(), [asyncio.StreamReader() for _ in names]
        serving = [asyncio.create_task(nodes.serve(reader, Sink())) for reader in readers]  # type: ignore[arg-type]
        for reader, name in zip(readers, names, strict=True):
            reader.feed_data(registration(name))
            await asyncio.sleep(0)
        readers[ended].feed_eof()
        await serving[ended]
        assert [*nodes.said] == [b"rabbit"]
        serving[1 - ended].cancel()

    run()
