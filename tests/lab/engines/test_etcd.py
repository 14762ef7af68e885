"""The driver of etcd: what each answer means. A server in this process stands for etcd."""

from __future__ import annotations

import asyncio
import json
from base64 import b64encode
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from lab.engines import etcd
from lab.engines.engine import EngineStatus, Entry, Place, Refused, Unknown
from tests.lab.inloop import in_loop

HOST = "127.0.0.1"


class Server:
    """Answers each path with given bytes; the requests are kept."""

    def __init__(self, answers: dict[str, bytes]) -> None:
        self.answers, self.requests = answers, list[Any]()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        size = int(head.split(b"Content-Length:")[1].split()[0])
        self.requests.append(json.loads(await reader.readexactly(size) or b"null"))
        writer.write(self.answers[head.split()[1].decode()])
        writer.close()


def answer(body: object, code: int = 200) -> bytes:
    return f"HTTP/1.0 {code} x\r\n\r\n{json.dumps(body)}".encode()


@asynccontextmanager
async def driver(
    monkeypatch: pytest.MonkeyPatch, answers: dict[str, bytes], **options: str
) -> AsyncIterator[tuple[etcd.Etcd, Server]]:
    server = Server(answers)
    listening = await asyncio.start_server(server.serve, HOST, 0)
    monkeypatch.setattr(etcd, "CLIENTS", listening.sockets[0].getsockname()[1])
    async with listening:
        yield etcd.Etcd(place(), "etcd", options), server


def reach(node: int, port: int) -> tuple[str, int]:
    return HOST, port


def place() -> Place:
    return Place(1, (1, 2, 3), dict.fromkeys((1, 2, 3), HOST), Path("/data"), Path("/conf"), 100, 200, reach)


def b64(text: str) -> str:
    return b64encode(text.encode()).decode()


def row(session: str, last: int, value: str, revision: int) -> dict[str, str]:
    return {"key": b64(f"chat/{session}/{last}"), "value": b64(value), "create_revision": str(revision)}


TXN = "/v3/kv/txn"
HAS_FOUR = {"responses": [{"response_range": {"kvs": [{"value": b64("4")}]}}]}
HAS_NONE: dict[str, Any] = {"responses": [{"response_range": {}}]}


@pytest.mark.parametrize(
    ("body", "has"), [({"succeeded": True}, 9), (HAS_FOUR, 4), (HAS_NONE, 0)], ids=["stored", "other", "nothing"]
)
def test_a_transaction_tells_the_last_message(monkeypatch: pytest.MonkeyPatch, body: object, has: int) -> None:
    @in_loop
    async def run() -> None:
        async with driver(monkeypatch, {TXN: answer(body)}) as (engine, server):
            assert await engine.append("s", 8, 9, "v") == has
            compared = server.requests[0]["compare"][0]
            assert compared == {"key": b64("last/s"), "target": "VALUE", "value": b64("7")}
            written = [put["request_put"] for put in server.requests[0]["success"]]
            assert written[1] == {"key": b64("chat/s/9"), "value": b64("v")}

    run()


@in_loop
async def test_the_first_record_of_a_session_requires_that_it_has_none() -> None:
    with pytest.MonkeyPatch.context() as patch:
        async with driver(patch, {TXN: answer({"succeeded": True})}) as (engine, server):
            assert await engine.append("s", 1, 2, "v") == 2
            assert server.requests[0]["compare"][0]["create_revision"] == 0


@pytest.mark.parametrize(
    ("reply", "error"),
    [
        (answer({"message": "etcdserver: too many requests"}, 429), Refused),
        (answer({"message": "etcdserver: request is too large"}, 400), Refused),
        (answer({"message": "etcdserver: mvcc: database space exceeded"}, 429), Refused),
        (answer({"message": "etcdserver: request timed out"}, 503), Unknown),
        (answer({"message": "etcdserver: leader changed"}, 503), Unknown),
        (answer([], 500), Unknown),
        (b"HTTP/1.0 200 OK\r\n\r\n{", Unknown),
        (b"", Unknown),
        (b"rubbish\r\n\r\n", Unknown),
    ],
)
def test_other_answers_to_a_transaction(monkeypatch: pytest.MonkeyPatch, reply: bytes, error: type[Exception]) -> None:
    @in_loop
    async def run() -> None:
        async with driver(monkeypatch, {TXN: reply}) as (engine, _):
            with pytest.raises(error):
                await engine.append("s", 1, 1, "v")

    run()


@in_loop
async def test_a_server_that_is_down_has_taken_nothing() -> None:
    with pytest.MonkeyPatch.context() as patch:
        async with driver(patch, {}) as (engine, _):
            pass
        with pytest.raises(Refused):
            await engine.append("s", 1, 1, "v")


@in_loop
async def test_a_server_that_does_not_answer_may_have_taken_it() -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(etcd, "APPEND_TIMEOUT_S", 0.01)
        silent = await asyncio.start_server(lambda reader, writer: None, HOST, 0)
        patch.setattr(etcd, "CLIENTS", silent.sockets[0].getsockname()[1])
        with pytest.raises(Unknown):
            await etcd.Etcd(place(), "etcd", {}).append("s", 1, 1, "v")


@in_loop
async def test_the_tail_is_what_the_member_has_and_then_its_watch() -> None:
    kvs = [row("b", 2, "y", 7), row("a", 1, "x", 5)]
    watch = b"HTTP/1.0 200 OK\r\n\r\n" + b"".join(
        json.dumps({"result": result}).encode() + b"\n"
        for result in ({"created": True}, {"events": [{"kv": row("a", 3, "z", 9)}]}, {"canceled": True})
    )
    answers = {"/v3/kv/range": answer({"header": {"revision": "7"}, "kvs": kvs}), "/v3/watch": watch}
    with pytest.MonkeyPatch.context() as patch:
        async with driver(patch, answers) as (engine, server):
            found = [list(entries) async for entries in engine.tail()]
    assert found == [[Entry("a", 1, "x"), Entry("b", 2, "y")], [Entry("a", 3, "z")]]
    assert server.requests[0]["serializable"] is True
    assert server.requests[1]["create_request"]["start_revision"] == 8


@in_loop
async def test_the_leader_is_the_node_of_etcd_s_member() -> None:
    raft = {"lead": "1f", "term": 4}
    members = {"members": [{"ID": "7", "name": "n1"}, {"ID": "31", "name": "n3"}]}
    answers = {
        "/debug/vars": answer({"raft.status": raft}),
        "/v3/cluster/member/list": answer(members),
        # It reads the leader before the term, and an election came in between.
        "/v3/maintenance/status": answer({"header": {"member_id": "7"}, "leader": "7", "raftTerm": "4"}),
    }
    with pytest.MonkeyPatch.context() as patch:
        async with driver(patch, answers) as (engine, _):
            assert await engine.status() == EngineStatus(3, 4)
        async with driver(patch, {"/debug/vars": answer({"raft.status": raft | {"lead": "0"}})}) as (engine, _):
            assert await engine.status() == EngineStatus(0, 4)


@in_loop
async def test_a_monitor_asks_for_the_hash_and_survives_its_failure() -> None:
    answers = {
        "/v3/maintenance/hash": answer({"message": "too slow"}, 503),
        "/debug/vars": answer({"raft.status": {"lead": "0", "term": 4}}),
    }
    with pytest.MonkeyPatch.context() as patch:
        async with driver(patch, answers, monitor="hash") as (engine, server):
            assert await engine.status() == EngineStatus(0, 4)
    assert server.requests == [{}, None]


def test_the_command_allows_for_what_etcd_refuses() -> None:
    command = etcd.Etcd(place(), "/bin/etcd", {"snapshot_count": "50"}).command()
    assert command[0] == "/bin/etcd"
    assert "--election-timeout=500" in command  # five heartbeats; the configuration has 200
    assert "--snapshot-count=50" in command
