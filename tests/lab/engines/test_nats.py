"""The driver of NATS JetStream: what each error means, and the files of a stream."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import pytest

from lab.engines import engine as engine_module
from lab.engines.engine import EngineStatus, Entry, Refused, Unknown
from lab.engines.web import Answer
from tests.lab.engines.surroundings import PLACE
from tests.lab.inloop import in_loop

pytest.importorskip("nats", reason="the extra `engines` is not installed")

from nats import errors
from nats.js import errors as js

from lab.engines import nats


class Stream:
    """Stands for the library: it answers publish() and get_last_msg() as given."""

    def __init__(self, published: object, last: object = None) -> None:
        self.published, self.last, self.headers = published, last, list[dict[str, str]]()

    async def publish(self, subject: str, data: bytes, headers: dict[str, str]) -> Any:
        self.headers.append(headers)
        if isinstance(self.published, Exception):
            raise self.published
        return self.published

    async def get_last_msg(self, stream: str, subject: str) -> Any:
        if isinstance(self.last, Exception):
            raise self.last
        return self.last


class Found:
    def __init__(self, seq: int, data: bytes = b"") -> None:
        self.seq, self.data = seq, data


def driver(stream: Stream) -> nats.Nats:
    engine = nats.Nats(PLACE, "nats-server", {})

    async def connected() -> Stream:
        return stream

    engine._jetstream = connected  # type: ignore[method-assign]
    return engine


NO_MESSAGE = js.NotFoundError(code=404, err_code=10037)
NO_STREAM = js.NotFoundError(code=404, err_code=10059)
WRONG_LAST = js.BadRequestError(code=400, err_code=10071)


@in_loop
async def test_a_record_names_the_one_before_it() -> None:
    stream = Stream(Found(17))
    engine = driver(stream)
    assert await engine.append("s", 1, 3, "v") == 3
    assert await engine.append("s", 4, 4, "v") == 4
    sequences = [headers["Nats-Expected-Last-Subject-Sequence"] for headers in stream.headers]
    assert sequences == ["0", "17"]


@in_loop
async def test_a_session_of_another_node_is_looked_up() -> None:
    stream = Stream(Found(18), Found(17, b"3 v"))
    assert await driver(stream).append("s", 4, 5, "v") == 5
    assert stream.headers[0]["Nats-Expected-Last-Subject-Sequence"] == "17"


@in_loop
async def test_a_condition_that_is_not_met_tells_the_last_message() -> None:
    assert await driver(Stream(WRONG_LAST, Found(17, b"3 v"))).append("s", 1, 1, "v") == 3
    assert await driver(Stream(WRONG_LAST, NO_MESSAGE)).append("s", 1, 1, "v") == 0


@in_loop
async def test_a_gap_is_not_published() -> None:
    stream = Stream(Found(18), NO_MESSAGE)
    assert await driver(stream).append("s", 4, 5, "v") == 0
    assert stream.headers == []


@pytest.mark.parametrize(
    ("error", "meaning"),
    [
        (js.NoStreamResponseError(), Refused),
        (js.ServiceUnavailableError(code=503, err_code=10008), Refused),
        (errors.NoRespondersError(), Refused),
        (js.APIError(code=500, err_code=10077), Unknown),  # the leader could not store what others may have
        (errors.TimeoutError(), Unknown),
        (TimeoutError(), Unknown),
        (errors.ConnectionClosedError(), Unknown),
        (ConnectionResetError(), Unknown),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else value.__name__,
)
def test_errors_of_a_publication(error: Exception, meaning: type[Exception]) -> None:
    @in_loop
    async def run() -> None:
        with pytest.raises(meaning):
            await driver(Stream(error)).append("s", 1, 1, "v")

    run()


@in_loop
async def test_without_its_stream_nothing_is_stored() -> None:
    with pytest.raises(Refused):
        await driver(Stream(Found(1), NO_STREAM)).append("s", 4, 4, "v")


@in_loop
async def test_without_a_server_nothing_is_stored() -> None:
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Refused):
        patch.setattr(nats, "CONNECT_TIMEOUT_S", 0.01)
        await nats.Nats(PLACE, "nats-server", {}).append("s", 1, 1, "v")


@in_loop
async def test_after_a_rejected_condition_an_unanswered_look_is_unknown() -> None:
    with pytest.raises(Unknown):
        await driver(Stream(WRONG_LAST, errors.TimeoutError())).append("s", 1, 1, "v")


@in_loop
async def test_a_node_that_has_just_started_believes_a_leader_once_it_has_shown_it_for_a_while() -> None:
    """It may have voted in a new term, and not have heard yet who won."""
    group = {"id": "a", "leader": "c", "term": 5, "peers": {"c": {"name": "n3"}}}

    async def ask(host: str, port: int, path: str, *, within: float) -> Answer:
        return Answer(200, {"$G": {"S-R3F-x": group}})

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nats, "ask", ask)
        engine = nats.Nats(PLACE, "nats-server", {})
        assert await engine.status() == EngineStatus(0, 0)
        engine._settled._since -= engine_module.SETTLED_S
        assert await engine.status() == EngineStatus(3, 5)
        group["leader"] = "a"  # The local node knows that it leads.
        assert await engine.status() == EngineStatus(1, 5)


@in_loop
async def test_a_request_for_votes_makes_nobody_the_leader_of_its_term() -> None:
    def group(leader: str, term: int) -> Answer:
        peers = {"b": {"name": "n2"}, "c": {"name": "n3"}}
        return Answer(200, {"$G": {"S-R3F-x": {"id": "a", "leader": leader, "term": term, "peers": peers}}})

    answers = [group("c", 4), group("c", 5), group("", 5), group("b", 5)]  # Node 2 stands for term 5, and wins.

    async def ask(host: str, port: int, path: str, *, within: float) -> Answer:
        return answers.pop(0)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nats, "ask", ask)
        patch.setattr(engine_module, "SETTLED_S", 0.0)
        engine = nats.Nats(PLACE, "nats-server", {})
        shown = [await engine.status() for _ in range(len(answers))]
    assert shown == [EngineStatus(3, 4), EngineStatus(3, 4), EngineStatus(0, 5), EngineStatus(2, 5)]


@in_loop
async def test_a_stream_is_read_when_the_server_has_repaired_it_or_has_ended(tmp_path: Path) -> None:
    engine = nats.Nats(PLACE._replace(data_dir=tmp_path), "nats-server", {})

    async def ask(host: str, port: int, path: str, *, within: float) -> Answer:
        return Answer(503, None)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nats, "ask", ask)
        with pytest.raises(OSError, match="has not recovered"):
            await anext(engine.tail())
        await engine.close()
        assert await anext(engine.tail()) == []


# ---- files ----------------------------------------------------------------------------------------


def message(sequence: int, subject: str, body: bytes, headers: bytes = b"") -> bytes:
    inside = subject.encode()
    if headers:
        inside += struct.pack("<I", len(headers)) + headers
    inside += body + b"checksum"
    length = 22 + len(inside)
    return struct.pack("<IQqH", length | (1 << 31 if headers else 0), sequence, 0, len(subject)) + inside


def test_a_block_is_read_up_to_its_last_whole_message() -> None:
    first = message(1, "chat.s", b"1 v")
    second = message(2, "chat.s", b"2 w", b"NATS/1.0\r\n\r\n")
    whole = first + second
    for cut in range(len(whole) + 1):
        found = list(nats.stored(whole[:cut]))
        assert [each.body for each in found] == [b"1 v", b"2 w"][: (cut >= len(first)) + (cut == len(whole))]
    assert [each.end for each in nats.stored(whole)] == [len(first), len(whole)]


def test_erased_messages_and_tombstones_are_no_messages() -> None:
    block = message(1 | 1 << 63, "", b"") + message(2 | 1 << 62, "", b"") + message(3, "chat.s", b"1 v")
    assert [each.sequence for each in nats.stored(block)] == [0, 0, 3]


def test_blocks_are_read_as_they_grow(tmp_path: Path) -> None:
    blocks = nats.Blocks(tmp_path)
    assert blocks.read() == []
    (tmp_path / "9.blk").write_bytes(message(1, "chat.s", b"1 v"))
    (tmp_path / "10.blk").write_bytes(message(2, "chat.s", b"2 w") + b"\x20")
    assert blocks.read() == [Entry("s", 1, "v"), Entry("s", 2, "w")]
    assert blocks.read() == [] and not blocks.cut_back
    (tmp_path / "10.blk").write_bytes(message(2, "chat.s", b"2 w") + message(3, "chat.t", b"1 x"))
    assert blocks.read() == [Entry("t", 1, "x")]


@pytest.mark.parametrize("how", ["shorter", "gone", "again", "other"])
def test_a_store_that_was_cut_back_is_noticed(tmp_path: Path, how: str) -> None:
    path, one = tmp_path / "1.blk", message(1, "chat.s", b"1 v")
    path.write_bytes(one + message(2, "chat.s", b"2 w"))
    blocks = nats.Blocks(tmp_path)
    assert len(blocks.read()) == 2
    match how:
        case "shorter":
            path.write_bytes(one)
        case "gone":
            path.unlink()
        case "again":
            path.write_bytes(path.read_bytes() + one)
        case "other":
            (tmp_path / "new").write_bytes(path.read_bytes() + one)
            (tmp_path / "new").replace(path)
    assert blocks.read() == []
    assert blocks.cut_back


def test_the_configuration_names_the_other_nodes() -> None:
    text = nats.Nats(PLACE, "nats-server", {"sync_interval": "always"}).files()["nats.conf"]
    assert "sync_interval: always" in text
    assert '"nats://127.64.0.2:6222", "nats://127.64.0.3:6222"' in text
