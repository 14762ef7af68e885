"""ZooKeeper, by kazoo. A record is a node /chat/rNNNNNNNNNN, numbered by the server; /last/SESSION holds the session's
last message.

Both are written by one transaction on the condition that the version of /last/SESSION is unchanged. A server answers
reads from its own tree, without asking the leader.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from kazoo.client import KazooClient
from kazoo.exceptions import (
    BadVersionError,
    KazooException,
    NodeExistsError,
    NoNodeError,
    RolledBackError,
    RuntimeInconsistency,
)
from kazoo.handlers.threading import KazooTimeoutError, SequentialThreadingHandler

from lab.engines.engine import Engine, EngineStatus, Entry, Place, Refused, Unknown
from lab.engines.web import ask

CLIENTS, LEARNERS, ELECTIONS, ADMIN = 2181, 2888, 3888, 8080
TICK_MS, SYNC_TICKS, INIT_TICKS = 500, 4, 10
"""A follower and the leader part after SYNC_TICKS of silence; a new leader gives up after INIT_TICKS."""
SESSION_S, ANSWER_TIMEOUT_S, STATUS_TIMEOUT_S, REDIAL_S, POLL_S = 10.0, 3.0, 0.5, 0.1, 0.02
FIRST_START_S = 1.5
"""The other servers of a new cluster are started after that with the highest id."""
PAGE = 500
RECORDS, LAST = "/chat", "/last"
JARS = Path("/usr/share/java")
NEEDED = (
    "zookeeper",
    "slf4j-simple",
    "servlet-api",
    *(f"jetty9-{part}" for part in ("http", "io", "security", "server", "servlet", "util", "util-ajax")),
)
"""Names of JAR files: the server, and what its interface for administration needs."""
JAVA = (
    "java",
    "-Xms64m",
    "-Xmx512m",
    "-XX:+UseSerialGC",
    "-XX:TieredStopAtLevel=1",
    "-Djute.maxbuffer=50000000",
    "-Dzookeeper.fastleader.maxNotificationInterval=1000",
    "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn",
    "-Dorg.slf4j.simpleLogger.showDateTime=true",
)


class _Last(NamedTuple):
    """A session's last message, and the version of its node; (0, -1) if there is none."""

    n: int
    version: int


class ZooKeeper(Engine):
    """See Engine."""

    def __init__(self, place: Place, program: str, options: Mapping[str, str]) -> None:
        super().__init__(place, program, options)
        self._client: Any = None
        self._breaks = 0
        """How often the connection was lost: the server may have been given another tree then."""
        self._last: dict[str, _Last] = {}
        """Session -> its latest record that this driver knows of."""

    # ---- its process -----------------------------------------------------------------------------

    def files(self) -> Mapping[str, str]:
        place = self.place
        lines = [
            f"tickTime={TICK_MS}",
            f"initLimit={INIT_TICKS}",
            f"syncLimit={SYNC_TICKS}",
            f"dataDir={place.data_dir}",
            f"clientPort={CLIENTS}",
            f"clientPortAddress={place.host}",
            "maxClientCnxns=0",
            f"admin.serverAddress={place.host}",
            f"admin.serverPort={ADMIN}",
            *(f"server.{node}={place.hosts[node]}:{LEARNERS}:{ELECTIONS}" for node in place.ids),
        ]
        return {"zoo.cfg": "\n".join(lines) + "\n"}

    def command(self) -> Sequence[str]:
        # The identity is no data: a server that has lost its disk gets it back from whoever installs it.
        (self.place.data_dir / "myid").write_text(f"{self.place.node}\n")
        jars = ":".join(str(JARS / f"{name}.jar") for name in NEEDED)
        server = "org.apache.zookeeper.server.quorum.QuorumPeerMain"
        java = [*JAVA, "-cp", jars, server, str(self.place.conf_dir / "zoo.cfg")]
        if self.place.node == max(self.place.ids) or (self.place.data_dir / "version-2").exists():
            return java
        # A new cluster elects the highest id of those that are there when the first majority is.
        return ["sh", "-c", f'sleep {FIRST_START_S}; exec "$0" "$@"', *java]

    # ---- the cluster -----------------------------------------------------------------------------

    async def ready(self) -> bool:
        return (await ask(self.place.host, ADMIN, "/commands/ruok", within=STATUS_TIMEOUT_S)).code == 200

    async def setup(self) -> None:
        client = self._connected()
        for path in (RECORDS, LAST):
            await answer_of(client.ensure_path_async(path))

    async def status(self) -> EngineStatus:
        before = self._epoch()
        state = (await ask(self.place.host, ADMIN, "/commands/zabstate", within=STATUS_TIMEOUT_S)).body
        found = (await ask(self.place.host, ADMIN, "/commands/leader", within=STATUS_TIMEOUT_S)).body
        if state.get("zabstate") != "broadcast" or "leader_id" not in found or self._epoch() != before:
            return EngineStatus(0, 0)
        return EngineStatus(int(found["leader_id"]), before)

    def _epoch(self) -> int:
        """Return the epoch that the server has accepted from its leader. Raises: OSError, ValueError."""
        return int((self.place.data_dir / "version-2" / "currentEpoch").read_text())

    # ---- records ---------------------------------------------------------------------------------

    async def append(self, session: str, first: int, last: int, value: str) -> int:
        try:
            client = self._connected()
        except OSError as error:
            raise Refused(str(error)) from None
        known = self._last.pop(session, _Last(0, -1))
        try:
            if known.n != first - 1:
                known = await self._look(client, session)
            if known.n != first - 1:
                self._last[session] = known
                return known.n
            found = await answer_of(self._transaction(client, known, session, last, value).commit_async())
            errors = [each for each in found if isinstance(each, Exception)]
            if errors:
                cause = next(each for each in errors if not isinstance(each, RolledBackError | RuntimeInconsistency))
                if isinstance(cause, BadVersionError | NodeExistsError):
                    known = self._last[session] = await self._look(client, session)
                    return known.n
                raise Refused(f"the transaction failed: {cause!r}")
        except (KazooException, KazooTimeoutError, OSError) as error:  # TimeoutError is an OSError
            raise Unknown(repr(error)) from None
        self._last[session] = _Last(last, known.version + 1)
        return last

    @staticmethod
    def _transaction(client: Any, known: _Last, session: str, last: int, value: str) -> Any:
        transaction = client.transaction()
        if known.version < 0:
            transaction.create(f"{LAST}/{session}", str(last).encode())
        else:
            transaction.set_data(f"{LAST}/{session}", str(last).encode(), version=known.version)
        transaction.create(f"{RECORDS}/r", json.dumps([session, last, value]).encode(), sequence=True)
        return transaction

    async def _look(self, client: Any, session: str) -> _Last:
        """Return the session's last message as the leader has it."""
        await answer_of(client.sync_async(LAST))
        try:
            data, status = await answer_of(client.get_async(f"{LAST}/{session}"))
        except NoNodeError:
            return _Last(0, -1)
        return _Last(int(data), status.version)

    async def tail(self) -> AsyncGenerator[Sequence[Entry], None]:
        client = self._connected()
        breaks = self._breaks
        count, is_first = 0, True
        while self._breaks == breaks:
            # A record's number is the number of changes below RECORDS before it.
            status = await answer_of(client.exists_async(RECORDS))
            end = 0 if status is None else status.children_version
            if end < count:
                return
            entries: list[Entry] = []
            while count < end:
                page = [client.get_async(f"{RECORDS}/r{n:010}") for n in range(count, min(end, count + PAGE))]
                for each in page:
                    with suppress(NoNodeError):  # The record is lost, and there are later ones.
                        data, _ = await answer_of(each)
                        entries.append(Entry(*json.loads(data)))
                count += len(page)
            if self._breaks == breaks and (entries or is_first):
                yield entries
                is_first = False
            await asyncio.sleep(POLL_S)

    # ---- the connection --------------------------------------------------------------------------

    def _connected(self) -> Any:
        """Return a client that has a session with the local server. Raises: OSError: it has none now."""
        if self._client is None:
            retry = {"max_tries": -1, "delay": REDIAL_S, "backoff": 1, "max_delay": REDIAL_S}
            self._client = KazooClient(
                f"{self.place.host}:{CLIENTS}", timeout=SESSION_S, handler=_Handler(), connection_retry=retry
            )
            self._client.add_listener(self._changed)
            self._client.start_async()
        if not self._client.connected:
            raise ConnectionError("no session with the local server")
        return self._client

    def _changed(self, state: str) -> None:
        self._breaks += state != "CONNECTED"

    async def close(self) -> None:
        if self._client is not None:
            await asyncio.to_thread(self._client.stop)
            await asyncio.to_thread(self._client.close)


class _Handler(SequentialThreadingHandler):  # type: ignore[misc]
    """The library's handler, with a pause before each connection: a server may close hundreds of them a second."""

    def create_connection(self, *arguments: Any, **options: Any) -> Any:
        time.sleep(REDIAL_S)
        return super().create_connection(*arguments, **options)


async def answer_of(asked: Any) -> Any:
    """Return the result of a call of the library, which runs a thread of its own. Raises: its errors, TimeoutError."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[None] = loop.create_future()

    def settle() -> None:
        if not done.done():
            done.set_result(None)

    asked.rawlink(lambda _: loop.call_soon_threadsafe(settle))
    async with asyncio.timeout(ANSWER_TIMEOUT_S):
        await done
    return asked.get(block=False)
