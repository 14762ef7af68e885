"""RabbitMQ, by AMQP 0-9-1: a quorum queue or a stream. A record is a message: JSON of session, last and value.

The queue stores no message on a condition, so a session ends with a message of unknown outcome. A quorum queue shows
messages only to consumers, by way of its leader; so a few lines of Erlang inside the node (rabbitmq_inside.erl) read
what the local member has applied, from its own log. They read a stream's local copy, too, with or without a leader.
"""

from __future__ import annotations

import asyncio
import json
import socket
import sys
from base64 import b64decode
from collections.abc import AsyncGenerator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import aio_pika
from aio_pika.exceptions import AMQPError, ChannelInvalidStateError, PublishError

from lab.engines.engine import Engine, EngineStatus, Entry, Place, Refused, Settled, Unknown
from lab.engines.web import listens

AMQP, DISTRIBUTION, STREAMS, INSIDE = 5672, 25670, 26670, 15699
"""Node n listens at the ports DISTRIBUTION + n and STREAMS + n for other nodes: a server wants their numbers to be free
at all addresses."""
QUEUE = "chat"
SIZE_OF = {"quorum": "x-quorum-initial-group-size", "stream": "x-initial-cluster-size"}
"""Type of the queue -> the argument with the number of its members."""
CONNECT_TIMEOUT_S, CONFIRM_TIMEOUT_S, ANSWER_TIMEOUT_S, SETUP_TIMEOUT_S, POLL_S = 2.0, 3.0, 2.0, 10.0, 0.02
PAGE = 1000
NET_TICKTIME_S = 8
LINE_BYTES = 1 << 24
HERE = Path(__file__).parent


class RabbitMQ(Engine):
    """See Engine."""

    resends: ClassVar[bool] = False

    def __init__(self, place: Place, program: str, options: Mapping[str, str]) -> None:
        super().__init__(place, program, options)
        self._type = options.get("queue", "quorum")
        self._connection: Any = None
        self._channel: Any = None
        self._connecting = asyncio.Lock()
        self._settled = Settled(place.node)
        self._last: dict[str, int] = {}
        """Session -> its last message that was confirmed to this driver."""

    # ---- its process -----------------------------------------------------------------------------

    def files(self) -> Mapping[str, str]:
        place = self.place
        settings = [
            "cluster_formation.peer_discovery_backend = classic_config",
            *(f"cluster_formation.classic_config.nodes.{node} = rabbit@{place.hosts[node]}" for node in place.ids),
            "cluster_formation.randomized_startup_delay_range.min = 0",
            "cluster_formation.randomized_startup_delay_range.max = 0",
            f"listeners.tcp.1 = {place.host}:{AMQP}",
            f"net_ticktime = {self.options.get('net_ticktime', NET_TICKTIME_S)}",
            "loopback_users = none",
            "vm_memory_high_watermark.absolute = 2GB",
            "disk_free_limit.absolute = 50MB",
            "log.console = true",
            "log.console.level = warning",
            "log.file = false",
        ]
        inside = (HERE / "rabbitmq_inside.erl").read_text()
        address = place.host.replace(".", ",")
        inside = inside.replace("@PORT@", str(INSIDE)).replace("@IP@", address)
        # A stream's leader connects to the addresses of its replicas' host names: here, each node has its own.
        names = f'{{host, {{{address}}}, ["{socket.gethostname().partition(".")[0]}"]}}.\n{{lookup, [file, native]}}.\n'
        return {
            "rabbitmq.conf": "\n".join(settings) + "\n",
            "inside.erl": inside,
            "plugins": "[].\n",
            "inetrc": names,
        }

    def command(self) -> Sequence[str]:
        # The port mapper ends with the process group. The program beside the link is for the user rabbitmq only.
        epmd = [sys.executable, str(HERE / "rabbitmq_epmd.py"), self.place.host, str(self._epmd_port)]
        epmd += [str(self._epmd_port + node - self.place.node) for node in self.place.ids]
        return ["sh", "-c", '"$@" & exec "$0"', str(Path(self.program).resolve()), *epmd]

    @property
    def _epmd_port(self) -> int:
        """The port at which this node asks for others: each node of each cluster has its own."""
        _, one, other, node = map(int, self.place.host.split("."))
        return 10_000 + (one * 256 + other) % 2_000 * 10 + node % 10

    def environment(self) -> Mapping[str, str]:
        place, conf = self.place, self.place.conf_dir
        host = place.host.replace(".", ",")
        return {
            "HOME": str(conf),
            "RABBITMQ_NODENAME": f"rabbit@{place.host}",
            "RABBITMQ_USE_LONGNAME": "true",
            "RABBITMQ_NODE_IP_ADDRESS": place.host,
            "RABBITMQ_NODE_PORT": str(AMQP),
            "RABBITMQ_DIST_PORT": str(DISTRIBUTION + place.node),
            "RABBITMQ_MNESIA_BASE": str(place.data_dir),
            "RABBITMQ_LOG_BASE": str(conf / "log"),
            "RABBITMQ_CONFIG_FILE": str(conf / "rabbitmq.conf"),
            "RABBITMQ_ADVANCED_CONFIG_FILE": str(conf / "none.config"),
            "RABBITMQ_CONF_ENV_FILE": str(conf / "none"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(conf / "plugins"),
            "RABBITMQ_PID_FILE": str(conf / "pid"),
            "RABBITMQ_ERLANG_COOKIE": "lab",
            "RABBITMQ_ALLOW_INPUT": "1",  # The shell becomes the server, and starts no second process.
            "ERL_EPMD_PORT": str(self._epmd_port),
            "ERL_FLAGS": "-start_epmd false",
            "ERL_INETRC": str(conf / "inetrc"),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": (
                f"-noinput +sbwt none +S 1:1 -kernel inet_dist_use_interface {{{host}}} "
                f"-osiris port_range {{{STREAMS + place.node - 1},{STREAMS + place.node}}} "  # It takes the second one.
                f'-eval file:eval("{conf / "inside.erl"}").'
            ),
        }

    # ---- the cluster -----------------------------------------------------------------------------

    async def ready(self) -> bool:
        return await listens(self.place.host, AMQP, within=ANSWER_TIMEOUT_S)  # It is opened last.

    async def setup(self) -> None:
        async with asyncio.timeout(SETUP_TIMEOUT_S):
            channel = await self._confirming()
            is_first = self.place.node == max(self.place.ids)
            if is_first and int((await self._ask("running"))[0][0]) < len(self.place.ids):
                raise OSError("the nodes have not formed their cluster yet")
            arguments = {
                "x-queue-type": self._type,
                SIZE_OF[self._type]: len(self.place.ids),
                "x-queue-leader-locator": "client-local",
            }
            try:
                await channel.declare_queue(QUEUE, durable=True, passive=not is_first, arguments=arguments)
            except AMQPError:
                await self._drop()
                raise

    async def status(self) -> EngineStatus:
        [[leader, term, _]] = await self._ask(f"status {self._type}")
        nodes = {f"rabbit@{host}": node for node, host in self.place.hosts.items()}
        found = EngineStatus(nodes.get(leader, 0), int(term))
        return found if self._settled.is_sure(found) else EngineStatus(0, found.term)

    async def _ask(self, question: str) -> list[list[str]]:
        """Return the lines of an answer from inside the local node, each as its words. Raises: OSError, EOFError."""
        async with asyncio.timeout(ANSWER_TIMEOUT_S):
            reader, writer = await asyncio.open_connection(self.place.host, INSIDE, limit=LINE_BYTES)
            try:
                writer.write(question.encode() + b"\n")
                *lines, end = (await reader.read(-1)).decode().splitlines() or [""]
            finally:
                writer.close()
        if end != "end":
            raise EOFError(f"{question}: half an answer")
        if lines and lines[0].startswith("error"):
            raise OSError(f"{question}: {lines[0]}")
        return [line.split(" ") for line in lines]

    # ---- records ---------------------------------------------------------------------------------

    async def append(self, session: str, first: int, last: int, value: str) -> int:
        if self._last.get(session, 0) != first - 1:
            return self._last.get(session, 0)
        try:
            channel = await self._confirming()
        except (AMQPError, OSError) as error:  # TimeoutError is an OSError
            raise Refused(f"no connection: {error!r}") from None
        body = json.dumps([session, last, value]).encode()
        message = aio_pika.Message(body, delivery_mode=aio_pika.DeliveryMode.PERSISTENT)
        try:
            answer = await channel.default_exchange.publish(message, QUEUE, timeout=CONFIRM_TIMEOUT_S)
        except (AMQPError, ChannelInvalidStateError, OSError) as error:
            await self._drop()
            raise outcome(error) from None
        if getattr(answer, "delivery_tag", None) is None:
            raise Unknown(f"no confirmation: {answer!r}")
        self._last[session] = last
        return last

    async def tail(self) -> AsyncGenerator[Sequence[Entry], None]:
        at, highest, is_first = 0, 0, True
        accepted: dict[str, int] = {}
        """Sender -> number of its last message that the queue has taken; a number that does not follow is refused."""
        while True:
            [[_, _, applied]] = await self._ask(f"status {self._type}")
            if int(applied) < highest:
                return
            highest = int(applied)
            entries, before = list[Entry](), -1
            while before < at < highest:
                before = at
                for index, *message in await self._ask(f"read {self._type} {at + 1} {min(highest, at + PAGE)}"):
                    if int(index) != at + 1:
                        break  # The log has not all of them at hand yet.
                    at = int(index)
                    if message:
                        sender, number, body = message
                        if number == "undefined" or int(number) == accepted.get(sender, 0) + 1:
                            accepted[sender] = accepted.get(sender, 0) + 1
                            entries.append(Entry(*json.loads(b64decode(body))))
            if entries or (is_first and at >= highest):
                yield entries
                is_first = False
            await asyncio.sleep(POLL_S)

    # ---- connections -----------------------------------------------------------------------------

    async def _connect(self) -> Any:
        return await aio_pika.connect(f"amqp://guest:guest@{self.place.host}:{AMQP}/", timeout=CONNECT_TIMEOUT_S)

    async def _confirming(self) -> Any:
        """Return an open channel to the local node that confirms messages. Raises: AMQPError, OSError."""
        async with self._connecting:
            if self._channel is None or self._channel.is_closed or self._connection.is_closed:
                await self._drop()
                self._connection = await self._connect()
                self._channel = await self._connection.channel(publisher_confirms=True, on_return_raises=True)
        return self._channel

    async def _drop(self) -> None:
        connection, self._connection, self._channel = self._connection, None, None
        if connection is not None:
            await connection.close()

    async def close(self) -> None:
        await self._drop()


def outcome(error: Exception) -> Refused | Unknown:
    """Return what an error of the client library says about a message that was published.

    A returned message reached no queue. A message that the queue has rejected may have been stored by some members.
    """
    return Refused(repr(error)) if isinstance(error, PublishError) else Unknown(repr(error))
