"""The driver of ZooKeeper: what each answer means, and what its own tree says."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lab.engines.engine import EngineStatus, Entry, Place, Refused, Unknown
from tests.lab.engines.surroundings import PLACE
from tests.lab.inloop import in_loop

pytest.importorskip("kazoo", reason="the extra `engines` is not installed")

from kazoo import exceptions as kazoo

from lab.engines import zookeeper
from lab.engines.web import Answer


def place(folder: Path, node: int = 1) -> Place:
    return PLACE._replace(node=node, data_dir=folder, conf_dir=folder)


class Result:
    """A call of the library that is done."""

    def __init__(self, value: object) -> None:
        self.value = value

    def rawlink(self, told: Callable[[Any], None]) -> None:
        told(self)

    def get(self, *, block: bool) -> object:
        if isinstance(self.value, Exception):
            raise self.value
        return self.value


class Node:
    def __init__(self, version: int = 0, children_version: int = 0) -> None:
        self.version, self.children_version = version, children_version


class Server:
    """Stands for the library's client and its transaction. last: answers to looks at the session's last message."""

    connected = True

    def __init__(self, committed: object, *last: object) -> None:
        self.committed, self.last, self.written = committed, list(last), list[tuple[Any, ...]]()
        self.records: list[object] = []
        self.lengths: list[int] = []

    def transaction(self) -> Server:
        return self

    def create(self, path: str, value: bytes, sequence: bool = False) -> None:
        self.written.append((path, value))

    def set_data(self, path: str, value: bytes, version: int) -> None:
        self.written.append((path, value, version))

    def commit_async(self) -> Result:
        return Result(self.committed)

    def sync_async(self, path: str) -> Result:
        return Result(path)

    def get_async(self, path: str) -> Result:
        if path.startswith("/chat/r"):
            return Result(self.records[int(path.removeprefix("/chat/r"))])
        return Result(self.last.pop(0))

    def exists_async(self, path: str) -> Result:
        return Result(Node(children_version=self.lengths.pop(0)))


def driver(server: Server, folder: Path = Path("/data")) -> zookeeper.ZooKeeper:
    engine = zookeeper.ZooKeeper(place(folder), "zkServer.sh", {})
    engine._client = server
    return engine


NONE = kazoo.NoNodeError()
STORED = [Node(), "/chat/r0000000000"]


@in_loop
async def test_a_record_names_the_version_of_the_one_before_it() -> None:
    server = Server(STORED, NONE)
    engine = driver(server)
    assert await engine.append("s", 1, 3, "v") == 3
    assert await engine.append("s", 4, 4, "v") == 4
    record = ("/chat/r", json.dumps(["s", 3, "v"]).encode())
    assert server.written[:3] == [("/last/s", b"3"), record, ("/last/s", b"4", 0)]


@in_loop
async def test_a_session_of_another_node_is_looked_up() -> None:
    server = Server(STORED, (b"4", Node(7)))
    assert await driver(server).append("s", 5, 5, "v") == 5
    assert server.written[0] == ("/last/s", b"5", 7)


@in_loop
async def test_a_gap_stores_nothing() -> None:
    server = Server(STORED, (b"4", Node(7)))
    assert await driver(server).append("s", 9, 9, "v") == 4
    assert server.written == []


@pytest.mark.parametrize("cause", [kazoo.BadVersionError(), kazoo.NodeExistsError()], ids=repr)
def test_a_record_that_is_there_already_is_done(cause: Exception) -> None:
    @in_loop
    async def run() -> None:
        server = Server([cause, kazoo.RuntimeInconsistency()], (b"1", Node(0)))
        assert await driver(server).append("s", 1, 1, "v") == 1

    run()


@pytest.mark.parametrize(
    ("committed", "meaning"),
    [
        ([kazoo.RolledBackError(), kazoo.NoNodeError()], Refused),
        ([kazoo.RolledBackError(), kazoo.NoAuthError()], Refused),
        (kazoo.ConnectionLoss(), Unknown),
        (kazoo.SessionExpiredError(), Unknown),
        (kazoo.OperationTimeoutError(), Unknown),
        (kazoo.ConnectionClosedError(), Unknown),
        (TimeoutError(), Unknown),
    ],
    ids=repr,
)
def test_errors_of_a_transaction(committed: object, meaning: type[Exception]) -> None:
    @in_loop
    async def run() -> None:
        with pytest.raises(meaning):
            await driver(Server(committed, NONE)).append("s", 1, 1, "v")

    run()


@in_loop
async def test_without_a_session_nothing_is_stored() -> None:
    server = Server(STORED, NONE)
    server.connected = False
    with pytest.raises(Refused, match="no session"):
        await driver(server).append("s", 1, 1, "v")


@in_loop
async def test_the_tail_shows_records_in_order_and_ends_when_some_are_gone() -> None:
    server = Server(STORED)
    server.records = [(json.dumps(["s", n, f"v{n}"]).encode(), Node()) for n in (1, 2)] + [NONE]
    server.lengths = [1, 3, 2]
    found = [list(entries) async for entries in driver(server).tail()]
    assert found == [[Entry("s", 1, "v1")], [Entry("s", 2, "v2")]]


@in_loop
async def test_the_tail_ends_with_the_connection() -> None:
    server = Server(STORED)
    server.lengths = [0, 0, 0]
    engine = driver(server)
    found = []
    async for entries in engine.tail():
        found.append(list(entries))
        engine._changed("SUSPENDED")
    assert found == [[]]


def test_the_leader_is_known_once_the_server_serves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = {"zabstate": "broadcast"}

    async def ask(host: str, port: int, path: str, **_: object) -> Answer:
        return Answer(200, state if path.endswith("zabstate") else {"leader_id": 3})

    def status() -> EngineStatus:
        return asyncio.run(driver(Server(STORED), tmp_path).status())

    monkeypatch.setattr(zookeeper, "ask", ask)
    epoch = tmp_path / "version-2" / "currentEpoch"
    epoch.parent.mkdir()
    epoch.write_text("7")
    assert status() == EngineStatus(3, 7)
    state["zabstate"] = "synchronization"
    assert status() == EngineStatus(0, 0)


def test_the_node_with_the_highest_id_is_started_first(tmp_path: Path) -> None:
    assert zookeeper.ZooKeeper(place(tmp_path, 3), "", {}).command()[0] == "java"
    assert zookeeper.ZooKeeper(place(tmp_path, 1), "", {}).command()[0] == "sh"
    (tmp_path / "version-2").mkdir()
    assert zookeeper.ZooKeeper(place(tmp_path, 1), "", {}).command()[0] == "java"
    assert (tmp_path / "myid").read_text() == "1\n"
