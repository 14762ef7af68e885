"""One client of each system that `bench --engines` measures, side by side: each by its own client library, with a
connection of its own where the library is made for that. All are asyncio clients in one process.

etcd and PySyncObj have no client library among the packages of the lab. etcd is written by its HTTP gateway; PySyncObj
is a library inside its nodes, reached by the lines of lab/engines/pysyncobj_node.py.
"""

from __future__ import annotations

import asyncio
import itertools
import json
from abc import ABC, abstractmethod
from base64 import b64encode
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib import import_module
from typing import Any, ClassVar, Final

from lab.engines.engine import Place
from nodeproc.client import Address, ChatClient

PATIENCE_S = 10.0
"""A library's own patience with one answer; who measures has less or more."""
CLOSE_S = 1.0
TRANSACTION = 125
"""Puts in one transaction of etcd, which takes 128."""
_numbers = itertools.count(1)


class Writer(ABC):
    """One client.

    Args:
        place: surroundings of the node that it uses. options: of the engine.
    """

    connections: ClassVar[int] = 1000
    """More clients than this share connections, because each costs the library several threads or a long handshake."""
    pipelines: ClassVar[bool] = True
    """put_many() is faster than put() again and again."""

    def __init__(self, place: Place, options: Mapping[str, str]) -> None:
        self.place, self.options, self.number = place, options, next(_numbers)

    @abstractmethod
    async def open(self) -> None:
        """Connect. Raises: any Exception."""

    @abstractmethod
    async def put(self, text: str) -> None:
        """Store one message; return when it is acknowledged. Raises: any Exception if it is not."""

    async def put_many(self, texts: Sequence[str]) -> None:
        """Store messages, without waiting for one before the next; one call at a time. Raises: as put()."""
        await asyncio.gather(*map(self.put, texts))

    @abstractmethod
    async def close(self) -> None:
        """Disconnect. Raises: any Exception."""


class Ours(Writer):
    """The client of the lab's own nodes (nodeproc.client). addresses: the nodes, the one to use first at the front."""

    def __init__(self, addresses: Sequence[Address]) -> None:
        self.number = next(_numbers)
        self._client = ChatClient(addresses, self.number)

    async def open(self) -> None:
        await self._client.connect(PATIENCE_S)

    async def put(self, text: str) -> None:
        await self.put_many([text])

    async def put_many(self, texts: Sequence[str]) -> None:
        failed = [outcome for outcome in await self._client.send_many(texts) if outcome.kind != "ok"]
        if failed:
            raise OSError(str(failed[0]))

    async def close(self) -> None:
        await self._client.close()


class Etcd(Writer):
    """A connection to the HTTP gateway, which answers one request after the other; put_many() makes transactions."""

    async def open(self) -> None:
        self._reader, self._writer = await asyncio.open_connection(self.place.host, 2379)
        self._keys = (f"bench/{self.number}/{n}" for n in itertools.count())

    def _request(self, text: str) -> dict[str, str]:
        return {"key": _b64(next(self._keys)), "value": _b64(text)}

    async def put(self, text: str) -> None:
        await self._post("put", self._request(text))

    async def put_many(self, texts: Sequence[str]) -> None:
        puts = [{"request_put": self._request(text)} for text in texts]
        for first in range(0, len(puts), TRANSACTION):
            await self._post("txn", {"success": puts[first : first + TRANSACTION]})

    async def _post(self, name: str, body: Any) -> None:
        data = json.dumps(body).encode()
        head = f"POST /v3/kv/{name} HTTP/1.1\r\nHost: etcd\r\nContent-Length: {len(data)}\r\n\r\n"
        self._writer.write(head.encode() + data)
        answer = await self._reader.readuntil(b"\r\n\r\n")
        if b"chunked" in answer:
            while size := int(await self._reader.readline(), 16):
                await self._reader.readexactly(size + 2)
            await self._reader.readuntil(b"\r\n")
        else:
            length = answer.lower().partition(b"content-length:")[2].split(None, 1)[0]
            await self._reader.readexactly(int(length))
        if b" 200 " not in answer.split(b"\r\n", 1)[0]:
            raise OSError(answer.split(b"\r\n", 1)[0].decode())

    async def close(self) -> None:
        self._writer.close()


class Nats(Writer):
    """A connection of nats-py, with any number of messages under way."""

    async def open(self) -> None:
        async def ignore(error: Exception) -> None:
            """Errors reach the caller too."""

        url = f"nats://{self.place.host}:4222"
        self._connection = await import_module("nats").connect(url, error_cb=ignore)
        self._jetstream = self._connection.jetstream(timeout=PATIENCE_S)

    async def put(self, text: str) -> None:
        await self._jetstream.publish("chat.bench", text.encode())

    async def close(self) -> None:
        await self._connection.close()


class PySyncObj(Writer):
    """A connection to a node, which answers one request after the other."""

    pipelines = False

    async def open(self) -> None:
        self._reader, self._writer = await asyncio.open_connection(self.place.host, 7000, limit=1 << 20)
        self._last = 0

    async def put(self, text: str) -> None:
        self._last += 1
        record = (f"bench-{self.number}", self._last, self._last, text)
        self._writer.write(json.dumps({"do": "append", "record": record}).encode() + b"\n")
        answer = json.loads(await self._reader.readline())
        if answer["has"] != self._last:
            raise OSError(str(answer))

    async def close(self) -> None:
        self._writer.close()


class RabbitMQ(Writer):
    """A channel of aio-pika with confirmations, with any number of messages under way."""

    connections = 3

    async def open(self) -> None:
        self._library = import_module("aio_pika")
        self._connection = await self._library.connect(f"amqp://guest:guest@{self.place.host}/", timeout=PATIENCE_S)
        self._channel = await self._connection.channel(publisher_confirms=True)

    async def put(self, text: str) -> None:
        message = self._library.Message(text.encode(), delivery_mode=self._library.DeliveryMode.PERSISTENT)
        answer = await self._channel.default_exchange.publish(message, "chat", timeout=PATIENCE_S)
        if getattr(answer, "delivery_tag", None) is None:
            raise OSError(f"no confirmation: {answer!r}")

    async def close(self) -> None:
        await self._connection.close()


class Redis(Writer):
    """A connection of redis-py to the primary that the Sentinel of the node names; put_many() is one pipeline."""

    async def open(self) -> None:
        library = import_module("redis.asyncio.sentinel")
        self._sentinel = library.Sentinel([(self.place.host, 26379)], socket_timeout=PATIENCE_S)
        self._primary = self._sentinel.master_for("chat", socket_timeout=PATIENCE_S)
        await self._primary.ping()

    async def put(self, text: str) -> None:
        await self.put_many([text])

    async def put_many(self, texts: Sequence[str]) -> None:
        replicas = int(self.options.get("wait", "0"))
        pipeline = self._primary.pipeline(transaction=False)
        for text in texts:
            pipeline.xadd("bench", {"v": text})
        if replicas:
            pipeline.wait(replicas, round(PATIENCE_S * 1000))
        answers = await pipeline.execute()
        if replicas and answers[-1] < replicas:
            raise OSError(f"{answers[-1]} replicas have it")

    async def close(self) -> None:
        await self._primary.aclose()
        for each in self._sentinel.sentinels:
            await each.aclose()


class ZooKeeper(Writer):
    """A session of kazoo, which has threads of its own, with any number of requests under way."""

    connections = 3

    async def open(self) -> None:
        self._driver = import_module("lab.engines.zookeeper")
        self._client = import_module("kazoo.client").KazooClient(f"{self.place.host}:2181", timeout=PATIENCE_S)
        await asyncio.to_thread(self._client.start, PATIENCE_S)

    async def put(self, text: str) -> None:
        await self._driver.answer_of(self._client.create_async("/chat/b", text.encode(), sequence=True))

    async def close(self) -> None:
        await asyncio.to_thread(self._client.stop)
        await asyncio.to_thread(self._client.close)


WRITERS: Final[Mapping[str, type[Writer]]] = {
    "etcd": Etcd,
    "nats": Nats,
    "pysyncobj": PySyncObj,
    "rabbitmq": RabbitMQ,
    "redis": Redis,
    "zookeeper": ZooKeeper,
}
"""Name of an engine -> its writer."""


async def opened(writers: Sequence[Writer]) -> None:
    """Open all. Raises: any Exception; those that were opened are closed then."""
    try:
        for writer in writers:
            await writer.open()
    except BaseException:
        await closed(writers)
        raise


async def closed(writers: Sequence[Writer]) -> None:
    """Close all, also those that are broken."""

    async def close(writer: Writer) -> None:
        with suppress(Exception):  # Each library has its own errors.
            async with asyncio.timeout(CLOSE_S):
                await writer.close()

    await asyncio.gather(*map(close, writers))


def _b64(text: str) -> str:
    return b64encode(text.encode()).decode()
