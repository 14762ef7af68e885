"""NATS JetStream. A record is a message of the stream `chat` with the subject chat.SESSION: `LAST VALUE`.

The leader stores a message only if the subject's last message has the expected sequence number. Reads, even those that
a follower could serve, say little about that follower's store, so the driver reads the files of the stream itself.
"""

from __future__ import annotations

import asyncio
import os
import struct
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import nats
from nats.errors import Error, NoRespondersError, NoServersError
from nats.js.errors import APIError, NoStreamResponseError, NotFoundError, ServiceUnavailableError

from lab.engines.engine import Engine, EngineStatus, Entry, Place, Refused, Settled, Unknown
from lab.engines.web import ask

CLIENTS, ROUTES, MONITOR = 4222, 6222, 8222
STREAM, ACCOUNT = "chat", "$G"
STATUS_TIMEOUT_S, CONNECT_TIMEOUT_S, ANSWER_TIMEOUT_S = 0.5, 1.0, 2.0
WRONG_LAST = (10071, 10164)
"""Error codes of a message whose expected last sequence is not that of its subject."""
NO_MESSAGE = 10037
POLL_S = 0.02


class _Last(NamedTuple):
    """A session's last message, and the sequence number of its record in the stream; zeros if there is none."""

    n: int
    sequence: int


class Nats(Engine):
    """See Engine."""

    read_when_stopped = True

    def __init__(self, place: Place, program: str, options: Mapping[str, str]) -> None:
        super().__init__(place, program, options)
        self._connection: Any = None
        self._connecting = asyncio.Lock()
        self._is_closed = False
        self._last: dict[str, _Last] = {}
        """Session -> its latest record that this driver knows of."""
        self._followed, self._settled = EngineStatus(0, 0), Settled(place.node)

    # ---- its process -----------------------------------------------------------------------------

    def files(self) -> Mapping[str, str]:
        place = self.place
        routes = ", ".join(f'"nats://{place.hosts[node]}:{ROUTES}"' for node in place.others)
        sync = f", sync_interval: {self.options['sync_interval']}" if "sync_interval" in self.options else ""
        lines = [
            f"server_name: n{place.node}",
            f'listen: "{place.host}:{CLIENTS}"',
            f'http: "{place.host}:{MONITOR}"',
            f'jetstream {{ store_dir: "{place.data_dir}"{sync} }}',
            f'cluster {{ name: lab, listen: "{place.host}:{ROUTES}", routes: [{routes}] }}',
        ]
        return {"nats.conf": "\n".join(lines) + "\n"}

    def command(self) -> Sequence[str]:
        return [self.program, "-c", str(self.place.conf_dir / "nats.conf")]

    # ---- the cluster -----------------------------------------------------------------------------

    async def ready(self) -> bool:
        answer = await ask(self.place.host, MONITOR, "/healthz?js-server-only=true", within=STATUS_TIMEOUT_S)
        return answer.code == 200

    async def setup(self) -> None:
        jetstream = await self._jetstream()
        replicas = len(self.place.ids)
        await jetstream.add_stream(name=STREAM, subjects=[f"{STREAM}.>"], num_replicas=replicas, storage="file")

    async def lead(self) -> None:
        if (await self.status()).leader not in (0, self.place.node):
            wanted = {"placement": {"preferred": f"n{self.place.node}"}}
            await self._jetstream()
            subject = f"$JS.API.STREAM.LEADER.STEPDOWN.{STREAM}"
            await self._connection.request(subject, msgspec.json.encode(wanted), timeout=ANSWER_TIMEOUT_S)

    async def status(self) -> EngineStatus:
        answer = await ask(self.place.host, MONITOR, f"/raftz?acc={ACCOUNT}", within=STATUS_TIMEOUT_S)
        groups = (answer.body or {}).get(ACCOUNT) or {}
        for name, group in groups.items():
            if name.startswith("S-"):
                peers = {peer: int(each["name"][1:]) for peer, each in group["peers"].items() if each.get("name")}
                peers[group["id"]] = self.place.node
                leader = peers.get(group.get("leader", ""), 0)
                # A request for votes raises a follower's term while it still names the leader of the term before.
                if leader != self._followed.leader:
                    found = EngineStatus(leader, int(group["term"]))
                    if not self._settled.is_sure(found):
                        return EngineStatus(0, 0)
                    self._followed = found
                return self._followed
        return EngineStatus(0, 0)

    # ---- records ---------------------------------------------------------------------------------

    async def append(self, session: str, first: int, last: int, value: str) -> int:
        try:
            jetstream = await self._jetstream()
        except (Error, OSError) as error:  # TimeoutError is an OSError
            raise Refused(f"no connection: {error!r}") from None
        known = self._last.get(session, _Last(0, 0))
        try:
            if known.n != first - 1:
                known = await self._look(jetstream, session)
            if known.n != first - 1:
                return known.n
            expected = {"Nats-Expected-Last-Subject-Sequence": str(known.sequence)}
            ack = await jetstream.publish(f"{STREAM}.{session}", f"{last} {value}".encode(), headers=expected)
        except APIError as error:
            self._last.pop(session, None)
            if error.err_code in WRONG_LAST:
                return await self._has(jetstream, session)
            raise outcome(error) from None
        except (Error, OSError) as error:
            self._last.pop(session, None)
            raise outcome(error) from None
        self._last[session] = _Last(last, ack.seq)
        return last

    async def _has(self, jetstream: Any, session: str) -> int:
        """Return the session's last message in the stream. Raises: Unknown."""
        try:
            self._last[session] = found = await self._look(jetstream, session)
        except (Error, OSError) as error:
            raise Unknown(repr(error)) from None
        return found.n

    async def _look(self, jetstream: Any, session: str) -> _Last:
        try:
            found = await jetstream.get_last_msg(STREAM, f"{STREAM}.{session}")
        except NotFoundError as error:
            if error.err_code != NO_MESSAGE:  # It is the stream that does not exist.
                raise
            return _Last(0, 0)
        return _Last(int(found.data.split(b" ", 1)[0]), found.seq)

    async def _jetstream(self) -> Any:
        """Return the interface of a connection to the local server. Raises: nats.errors.Error, OSError."""
        async with self._connecting:
            if self._connection is None or self._connection.is_closed:
                self._last.clear()
                async with asyncio.timeout(CONNECT_TIMEOUT_S):  # The library tries again and again.
                    self._connection = await nats.connect(
                        f"nats://{self.place.host}:{CLIENTS}", allow_reconnect=False, error_cb=_ignore
                    )
        return self._connection.jetstream(timeout=ANSWER_TIMEOUT_S)

    async def close(self) -> None:
        self._is_closed = True
        if self._connection is not None:
            await self._connection.close()

    async def tail(self) -> AsyncGenerator[Sequence[Entry], None]:
        if not self._is_closed and not await self.ready():
            # It repairs damaged blocks at its start: cut off, and filled again from the Raft log.
            raise OSError("the server has not recovered its streams yet")
        folder = self.place.data_dir / "jetstream" / ACCOUNT / "streams" / STREAM / "msgs"
        blocks = Blocks(folder)
        yield blocks.read()
        while not blocks.cut_back:
            await asyncio.sleep(POLL_S)
            if new := blocks.read():
                yield new


def outcome(error: Exception) -> Refused | Unknown:
    """Return what an error of the client library says about a message that was published.

    Without a responder, or if the stream's leader says that it is not available, nothing was proposed. Any other error
    of the leader may follow a failure to store the message on this leader only.
    """
    certain = NoStreamResponseError | NoRespondersError | NoServersError | ServiceUnavailableError | NotFoundError
    return Refused(repr(error)) if isinstance(error, certain) else Unknown(repr(error))


async def _ignore(error: Exception) -> None:
    """Errors reach the caller too; the library would print them."""


# ---- the files of a stream -----------------------------------------------------------------------

_HEAD = struct.Struct("<IQqH")
"""Length of the record, sequence number, time, length of the subject."""
_HAS_HEADERS, _IS_GONE = 1 << 31, 0b11 << 62
"""Bit of the length; bits of the sequence number of an erased message and of a tombstone."""
_SUM_BYTES = 8


class Stored(NamedTuple):
    """A message in a block. end: offset of the byte after it."""

    sequence: int
    subject: str
    body: bytes
    end: int


def stored(block: bytes) -> Iterator[Stored]:
    """Yield the messages of a part of a block, up to the first incomplete one; erased ones have the sequence 0."""
    at = 0
    while at + _HEAD.size <= len(block):
        length, sequence, _, subject_length = _HEAD.unpack_from(block, at)
        end = at + (length & ~_HAS_HEADERS)
        body = at + _HEAD.size + subject_length
        if end > len(block) or body > end:
            return
        subject = block[at + _HEAD.size : body].decode("utf-8", "replace")
        if length & _HAS_HEADERS:
            body += 4 + int.from_bytes(block[body : body + 4], "little")
        yield Stored(0 if sequence & _IS_GONE else sequence, subject, block[body : end - _SUM_BYTES], end)
        at = end


class Blocks:
    """Reads the growing files of a stream: blocks 1.blk, 2.blk, …"""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._read: dict[Path, tuple[int, int]] = {}
        """Block -> (inode, bytes that were read)."""
        self._sequence = 0
        self.cut_back = False
        """Records that read() has returned are gone."""

    def read(self) -> list[Entry]:
        """Return the records that are new."""
        found: list[Entry] = []
        paths = sorted(self._folder.glob("*.blk"), key=lambda path: int(path.stem))
        self.cut_back = not self._read.keys() <= set(paths)
        for path in paths:
            inode, offset = self._read.get(path, (0, 0))
            try:
                with path.open("rb") as file:
                    status = os.fstat(file.fileno())
                    file.seek(offset)
                    block = file.read()
            except FileNotFoundError:
                self.cut_back = True
                return found
            self.cut_back |= status.st_size < offset or inode not in (0, status.st_ino)
            end = 0
            for message in stored(block):
                end = message.end
                if message.sequence:
                    self.cut_back |= message.sequence <= self._sequence
                    self._sequence = message.sequence
                    last, _, value = message.body.decode().partition(" ")
                    found.append(Entry(message.subject.removeprefix(f"{STREAM}."), int(last), value))
            if self.cut_back:
                return []
            self._read[path] = (status.st_ino, offset + end)
        return found
