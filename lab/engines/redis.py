"""Redis with Sentinel. A record is an entry of the stream `chat`; the hash `last` holds each session's last message.

A script writes both on the primary. The primary, and its epoch as the term, are what the Sentinel of the local node
says. Redis acknowledges before its replicas have a write, unless the option `wait` asks for some of them.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Any

import redis.asyncio as client
from redis.exceptions import ReadOnlyError, RedisError, ResponseError

from lab.engines.engine import Engine, EngineStatus, Entry, Place, Refused, Unknown
from nodeproc.core.messages import NodeId

SERVER, SENTINEL = 6379, 26379
ANSWER_TIMEOUT_S, WAIT_MS, POLL_S = 2.0, 1000, 0.02
PAGE = 1000
STREAM, MONITORED = "chat", "chat"
NOT_TAKEN = ("NOREPLICAS", "LOADING", "MASTERDOWN", "READONLY")
"""Beginnings of errors that come before a script has written anything."""

APPEND = """
local has = tonumber(redis.call('HGET', 'last', ARGV[1]) or '0')
if has == tonumber(ARGV[2]) - 1 then
    has = tonumber(ARGV[3])
    redis.call('XADD', 'chat', '*', 's', ARGV[1], 'l', ARGV[3], 'v', ARGV[4])
end
redis.call('HSET', 'last', ARGV[1], has)
return has
"""
"""Arguments: session, first, last, value. It always writes, so that WAIT waits for what was there before, too."""


class Redis(Engine):
    """See Engine."""

    def __init__(self, place: Place, program: str, options: Mapping[str, str]) -> None:
        super().__init__(place, program, options)
        self._clients: dict[tuple[NodeId, int], Any] = {}
        self._connecting = asyncio.Lock()

    # ---- its processes ---------------------------------------------------------------------------

    def files(self) -> Mapping[str, str]:
        place = self.place
        primary = max(place.ids)
        server = [
            f"port {SERVER}",
            f"bind {place.host}",
            "protected-mode no",
            f"replica-announce-ip {place.host}",
            f"dir {place.data_dir}",
            "appendonly yes",
            f"appendfsync {self.options.get('appendfsync', 'everysec')}",
            'save ""',
            "repl-diskless-sync-delay 0",
            "repl-timeout 5",
        ]
        if place.node != primary:
            server.append(f"replicaof {place.hosts[primary]} {SERVER}")
        sentinel = [
            f"port {SENTINEL}",
            f"bind {place.host}",
            "protected-mode no",
            f"sentinel announce-ip {place.host}",
            f"dir {place.conf_dir}",
            f"sentinel monitor {MONITORED} {place.hosts[primary]} {SERVER} {len(place.ids) // 2 + 1}",
            f"sentinel down-after-milliseconds {MONITORED} {2 * place.election_ms}",
            f"sentinel failover-timeout {MONITORED} 4000",
        ]
        return {"redis.conf": "\n".join(server) + "\n", "sentinel.conf": "\n".join(sentinel) + "\n"}

    def command(self) -> Sequence[str]:
        # Two servers, one process to wait for: the Sentinel ends with the process group.
        both = '"$0" "$2/sentinel.conf" --sentinel & exec "$0" "$2/redis.conf"'
        return ["sh", "-c", both, self.program, "", str(self.place.conf_dir)]

    # ---- the cluster -----------------------------------------------------------------------------

    async def ready(self) -> bool:
        return bool(await (await self._local(SERVER)).ping()) and bool(await (await self._local(SENTINEL)).ping())

    async def setup(self) -> None:
        found = await (await self._local(SENTINEL)).sentinel_master(MONITORED)
        others = len(self.place.ids) - 1
        if not int(found["num-other-sentinels"]) == int(found["num-slaves"]) == others:
            raise OSError("the Sentinels do not know each other yet, so there could be no failover")

    async def status(self) -> EngineStatus:
        place = self.place
        found = await (await self._local(SENTINEL)).sentinel_master(MONITORED)
        nodes = {host: node for node, host in place.hosts.items()}
        # During a failover, the new epoch is shown beside the old primary.
        leader = 0 if "failover_in_progress" in found["flags"] else nodes.get(found["ip"], 0)
        if leader == place.node and (await (await self._local(SERVER)).info("replication"))["role"] != "master":
            leader = 0
        return EngineStatus(leader, int(found["config-epoch"]) + 1)

    # ---- records ---------------------------------------------------------------------------------

    async def append(self, session: str, first: int, last: int, value: str) -> int:
        try:
            leader = (await self.status()).leader
            primary = await self._client(leader, SERVER) if leader else None
        except (RedisError, OSError) as error:
            raise Refused(f"no connection: {error!r}") from None
        if primary is None:
            raise Refused("no primary")
        replicas = int(self.options.get("wait", "0"))
        try:
            has = int(await primary.eval(APPEND, 0, session, first, last, value))
            if replicas and int(await primary.wait(replicas, WAIT_MS)) < replicas:
                raise Unknown(f"fewer than {replicas} replicas within {WAIT_MS} ms")
        except (RedisError, OSError) as error:
            await self._drop(leader, SERVER)
            raise outcome(error) from None
        return has

    async def tail(self) -> AsyncGenerator[Sequence[Entry], None]:
        server = await self._local(SERVER)
        entries, at = await self._page(server, "-")
        while more := (await self._page(server, f"({at}") if at else None):
            if not more[0]:
                break
            entries, at = entries + more[0], more[1]
        yield entries
        while True:
            await asyncio.sleep(POLL_S)
            if at and not await server.xrange(STREAM, at, at):
                return
            entries, last = await self._page(server, f"({at}" if at else "-")
            if entries:
                at = last
                yield entries

    @staticmethod
    async def _page(server: Any, start: str) -> tuple[list[Entry], str]:
        """Return the next entries of the stream, and the id of the last of them, "" without one."""
        rows = await server.xrange(STREAM, start, "+", count=PAGE)
        entries = [Entry(fields["s"], int(fields["l"]), fields["v"]) for _, fields in rows]
        return entries, rows[-1][0] if rows else ""

    # ---- connections -----------------------------------------------------------------------------

    async def _local(self, port: int) -> Any:
        return await self._client(self.place.node, port)

    async def _client(self, node: NodeId, port: int) -> Any:
        """Return a client with an open connection to a server. Raises: RedisError, OSError."""
        async with self._connecting:
            if (node, port) not in self._clients:
                host, way = self.place.reach(node, port)
                opened = client.Redis(
                    host=host,
                    port=way,
                    decode_responses=True,
                    socket_timeout=ANSWER_TIMEOUT_S,
                    socket_connect_timeout=ANSWER_TIMEOUT_S,
                    single_connection_client=True,
                    retry=None,
                )
                try:
                    await opened.ping()
                except BaseException:
                    await opened.aclose()
                    raise
                self._clients[node, port] = opened
            return self._clients[node, port]

    async def close(self) -> None:
        for node, port in list(self._clients):
            await self._drop(node, port)

    async def _drop(self, node: NodeId, port: int) -> None:
        if (found := self._clients.pop((node, port), None)) is not None:
            await found.aclose()


def outcome(error: Exception) -> Refused | Unknown:
    """Return what an error of the client library says about a script that was sent."""
    certain = isinstance(error, ReadOnlyError) or (
        isinstance(error, ResponseError) and str(error).startswith(NOT_TAKEN)
    )
    return Refused(repr(error)) if certain else Unknown(repr(error))
