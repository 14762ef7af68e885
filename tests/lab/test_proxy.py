"""The proxy: frames cut at every byte, links obeyed, broken connections passed on, and no life after the harness."""

from __future__ import annotations

import asyncio
import random
import socket
from pathlib import Path

import msgspec
import pytest

from lab.course.frames import LENGTHS_BYTES, FrameCutter, frame_type, pieces, spoil
from lab.live.children import Child
from lab.live.proxy import (
    Break,
    Broken,
    Count,
    Evidence,
    Open,
    Opened,
    Proxy,
    Record,
    SetRule,
)
from lab.rows import decode_frame_row
from lab.steps.machine import RunFailed
from lab.steps.rules import LinkCounts, Rule
from nodeproc.core.messages import Append, Commit, Heartbeat, Mark, Position, Vote, VoteRequest
from nodeproc.errors import FrameError
from nodeproc.frames import PREAMBLE, FrameDecoder, encode_frame
from nodeproc.records import Sealer
from tests.lab.inloop import in_loop

RECORD = Sealer(lambda: 1.0).mark(Mark(1, 3, 0))
MESSAGES = (
    Heartbeat(1, 0, Position(0, 0)),
    Append(1, Position(0, 0), 0, (RECORD,)),
    Commit(1, 1),
)
FRAMES = [b"".join(encode_frame(message)) for message in MESSAGES]
STREAM = PREAMBLE + b"".join(FRAMES)


def test_frames_are_cut_wherever_the_stream_is_split() -> None:
    for at in range(len(STREAM) + 1):
        cutter = FrameCutter()
        frames = cutter.feed(STREAM[:at]) + cutter.feed(STREAM[at:])
        assert [kind for kind, _ in frames] == ["PREAMBLE", "HEARTBEAT", "APPEND", "COMMIT"]
        assert b"".join(each for _, each in frames) == STREAM


@pytest.mark.parametrize(
    "strange", [b"GET / HTTP/1.1\r\n\r\n", PREAMBLE + b"\xff" * 40, PREAMBLE + FRAMES[0] + b"\0" * 12 + b"rest"]
)
def test_what_is_no_frame_passes_unchanged(strange: bytes) -> None:
    cutter = FrameCutter()
    frames = [frame for at in range(len(strange)) for _, frame in cutter.feed(strange[at : at + 1])]
    assert b"".join(frames) == strange


def test_the_type_is_found_wherever_it_stands_in_the_header() -> None:
    assert frame_type(b'{"type":"APPEND","term":1}') == "APPEND"
    assert frame_type(b'{"term":1, "type": "VOTE"}') == "VOTE"
    assert frame_type(b'{"term":1}') == ""
    assert frame_type(b"not json") == ""


@pytest.mark.parametrize("frame", FRAMES)
def test_a_receiver_takes_nothing_of_a_frame_that_was_spoilt(frame: bytes) -> None:
    spoilt = {spoil(frame, random.Random(seed)) for seed in range(2000)}
    touched = {at for each in spoilt for at in range(len(frame)) if each[at] != frame[at]}
    assert touched == set(range(LENGTHS_BYTES, len(frame)))
    for each in spoilt:
        assert len(each) == len(frame) and sum(a != b for a, b in zip(each, frame, strict=True)) == 1
        with pytest.raises(FrameError):
            list(FrameDecoder().feed(each))


def test_the_shortest_frames_are_spoilt_too() -> None:
    assert spoil(PREAMBLE, random.Random(1)) != PREAMBLE


def test_pieces_make_up_the_frame() -> None:
    assert pieces(b"abcde", 2) == [b"ab", b"cd", b"e"]


class Ends:
    """A proxy of nodes 1 and 2 in this process, and what stands on both sides of the pair (1, 2)."""

    def __init__(self) -> None:
        self.proxy = Proxy()
        self.arrived: asyncio.Queue[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = asyncio.Queue()

    async def open(self) -> int:
        """Returns the port of the pair (1, 2)."""

        async def take(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await self.arrived.put((reader, writer))

        self.server = await asyncio.start_server(take, "127.0.0.1", 0)
        port = self.server.sockets[0].getsockname()[1]
        opened = await self.proxy.obey(Open("127.0.0.1", {1: 1, 2: port}, seed=7))
        assert isinstance(opened, Opened)
        return next(port for sender, receiver, port in opened.ports if (sender, receiver) == (1, 2))

    async def connect(self, port: int) -> tuple[asyncio.StreamWriter, asyncio.StreamReader, asyncio.StreamReader]:
        """The sender's connection in use: (its writer, its reader, the receiver's reader behind the preamble)."""
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(PREAMBLE)
        far_reader, self.far_writer = await self.arrived.get()
        assert await far_reader.readexactly(len(PREAMBLE)) == PREAMBLE
        return writer, reader, far_reader

    async def counts(self) -> LinkCounts:
        """Of the pair (1, 2)."""
        evidence = await self.proxy.obey(Count())
        assert isinstance(evidence, Evidence)
        return next(link.counts for link in evidence.links if (link.sender, link.receiver) == (1, 2))


async def read_frames(reader: asyncio.StreamReader, wanted: int) -> list[str]:
    """Types of so many frames behind the preamble."""
    decoder = FrameDecoder()
    assert await reader.readexactly(len(PREAMBLE)) == PREAMBLE
    found: list[str] = []
    while len(found) < wanted:
        data = await reader.read(65536)
        assert data, found
        found += [type(message).__name__ for message in decoder.feed(data)]
    return found


@in_loop
async def test_a_straight_link_passes_everything_both_ways() -> None:
    ends = Ends()
    reader, writer = await asyncio.open_connection("127.0.0.1", await ends.open())
    writer.write(STREAM)
    far_reader, far_writer = await ends.arrived.get()
    assert await read_frames(far_reader, 3) == ["Heartbeat", "Append", "Commit"]
    far_writer.write(b"answer")
    assert await reader.readexactly(6) == b"answer"
    writer.close()
    assert await far_reader.read() == b""
    far_writer.close()


@in_loop
async def test_a_frame_held_back_is_overtaken_and_counted() -> None:
    ends = Ends()
    _, writer = await asyncio.open_connection("127.0.0.1", await ends.open())
    await ends.proxy.obey(SetRule(((1, 2),), Rule(frames=("APPEND", "COMMIT"), every=1, at_most=60)))
    writer.write(STREAM)
    far_reader, far_writer = await ends.arrived.get()
    assert await read_frames(far_reader, 3) == ["Heartbeat", "Commit", "Append"]
    evidence = await ends.proxy.obey(SetRule(((1, 2),), None))
    assert isinstance(evidence, Evidence)
    assert [link.counts.overtaken for link in evidence.links if link.sender == 1] == [1]
    writer.close()
    far_writer.close()


@in_loop
async def test_healing_lets_delayed_frames_go_at_once() -> None:
    ends = Ends()
    _, writer = await asyncio.open_connection("127.0.0.1", await ends.open())
    await ends.proxy.obey(SetRule(((1, 2),), Rule(frames=("HEARTBEAT",), delay=3600)))
    writer.write(STREAM)
    far_reader, far_writer = await ends.arrived.get()
    assert await far_reader.readexactly(len(PREAMBLE)) == PREAMBLE
    await ends.proxy.obey(SetRule(((1, 2),), None))
    assert await far_reader.readexactly(len(STREAM) - len(PREAMBLE)) == STREAM[len(PREAMBLE) :]
    writer.close()
    far_writer.close()


@in_loop
async def test_a_reset_breaks_both_ends_of_the_connection_and_counts_it_once() -> None:
    ends = Ends()
    port = await ends.open()
    _, reader, far_reader = await ends.connect(port)
    assert await ends.proxy.obey(Break(((1, 2), (2, 1)))) == Broken(1)
    with pytest.raises(ConnectionResetError):
        await reader.read()
    with pytest.raises(ConnectionResetError):
        await far_reader.read()
    assert await ends.proxy.obey(Break(((1, 2),))) == Broken(0)
    writer, _, far_reader = await ends.connect(port)
    writer.write(FRAMES[0])
    assert await far_reader.readexactly(len(FRAMES[0])) == FRAMES[0]
    writer.close()
    ends.far_writer.close()


@in_loop
async def test_a_refused_link_is_broken_and_none_is_opened_until_it_is_healed() -> None:
    ends = Ends()
    port = await ends.open()
    _, reader, _ = await ends.connect(port)
    await ends.proxy.obey(SetRule(((1, 2),), Rule(refuse=True)))
    for _ in range(2):
        with pytest.raises(ConnectionError):
            await reader.read()
            raise ConnectionError
        reader, turned_away = await asyncio.open_connection("127.0.0.1", port)
        turned_away.close()
    counts = await ends.counts()
    assert (counts.reset, counts.refused) == (1, 2)
    await ends.proxy.obey(SetRule(((1, 2),), None))
    writer, _, far_reader = await ends.connect(port)
    writer.write(FRAMES[0])
    assert await far_reader.readexactly(len(FRAMES[0])) == FRAMES[0]
    writer.close()
    ends.far_writer.close()


@in_loop
async def test_a_look_at_the_port_does_not_disturb_the_connection_in_use() -> None:
    ends = Ends()
    port = await ends.open()
    writer, _, far_reader = await ends.connect(port)
    _, probe = await asyncio.open_connection("127.0.0.1", port)
    probe_far_reader, probe_far_writer = await ends.arrived.get()
    probe.close()
    assert await probe_far_reader.read() == b""
    probe_far_writer.close()
    writer.write(FRAMES[0])
    assert await far_reader.readexactly(len(FRAMES[0])) == FRAMES[0]
    writer.close()
    ends.far_writer.close()


@in_loop
async def test_what_the_receiver_answers_vanishes_where_nothing_gets_through_to_the_sender() -> None:
    ends = Ends()
    port = await ends.open()
    writer, reader, _ = await ends.connect(port)
    await ends.proxy.obey(SetRule(((2, 1),), Rule(loss=1.0)))
    ends.far_writer.write(b"lost")
    while not ends.proxy.links[2, 1].counts.lost:
        await asyncio.sleep(0)
    await ends.proxy.obey(SetRule(((2, 1),), None))
    ends.far_writer.write(b"heard")
    assert await reader.readexactly(5) == b"heard"
    writer.close()
    ends.far_writer.close()


@in_loop
async def test_frames_in_pieces_come_whole_in_the_end() -> None:
    ends = Ends()
    writer, _, far_reader = await ends.connect(await ends.open())
    await ends.proxy.obey(SetRule(((1, 2),), Rule(chunk=7)))
    writer.write(b"".join(FRAMES))
    assert await far_reader.readexactly(7) == FRAMES[0][:7]
    assert await far_reader.readexactly(len(b"".join(FRAMES)) - 7) == b"".join(FRAMES)[7:]
    assert (await ends.counts()).cut == 3
    writer.close()
    ends.far_writer.close()


@in_loop
async def test_a_receiver_that_is_down_breaks_the_connection() -> None:
    ends = Ends()
    port = await ends.open()
    ends.server.close()
    await ends.server.wait_closed()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    with pytest.raises(ConnectionError):
        if await reader.read() == b"":
            raise ConnectionError
    writer.close()


@in_loop
async def test_a_receiver_that_leaves_breaks_the_connection() -> None:
    ends = Ends()
    reader, writer = await asyncio.open_connection("127.0.0.1", await ends.open())
    writer.write(STREAM)
    _, far_writer = await ends.arrived.get()
    far_writer.transport.abort()
    with pytest.raises(ConnectionError):
        if await reader.read() == b"":
            raise ConnectionError
    writer.close()


@in_loop
async def test_the_process_obeys_lines_and_ends_with_its_input(tmp_path: Path) -> None:
    child = await Child.spawn("proxy", "lab.live.proxy", tmp_path / "proxy.log")
    opened = msgspec.json.decode(
        await child.ask(msgspec.json.encode(Open("127.0.0.1", {1: 1, 2: 2, 3: 3}, 7))), type=Opened
    )
    assert len(opened.ports) == 6
    with socket.create_connection(("127.0.0.1", opened.ports[0][2])):
        pass
    await child.close()
    assert child.process.returncode == 0
    assert (tmp_path / "proxy.log").read_text() == ""


@in_loop
async def test_a_child_that_dies_is_told_with_its_last_words(tmp_path: Path) -> None:
    child = await Child.spawn("proxy", "lab.live.proxy", tmp_path / "proxy.log")
    with pytest.raises(RunFailed, match=r"proxy ended with exit code 1: .*ValidationError"):
        await child.ask(b'{"do":"nonsense"}')
    await child.close()


# ---- the record of frames ------------------------------------------------------------------------


def test_a_record_has_what_became_of_each_chosen_frame(tmp_path: Path) -> None:
    path = tmp_path / "frames.jsonl"
    record = Record(path)
    messages = VoteRequest(2, Position(1, 5)), Vote(2), Heartbeat(2, 3, Position(1, 5))
    frames = [b"".join(encode_frame(message)) for message in messages]
    kinds = ("VOTE_REQUEST", "VOTE", "HEARTBEAT")
    record.entered(2, 1, "PEER_HELLO", b"a secret", 1.0)
    record.entered(2, 1, "", b"no frame", 1.0)
    for at, (kind, frame) in enumerate(zip(kinds, frames, strict=True)):
        record.entered(2, 1, kind, frame, 1.0 + at)
    record.left([frames[0], b"other bytes", frames[0]], 5.0)
    record.lost(1, 2)
    record.left([frames[1]], 6.0)
    record.lost(2, 1)
    record.entered(1, 2, "VOTE", frames[1], 7.0)
    record.close()
    rows = [decode_frame_row(line) for line in path.read_bytes().splitlines()]
    assert [(row.kind, row.t, row.arrived) for row in rows] == [
        ("VOTE_REQUEST", 1_000_000_000, (5_000_000_000,) * 2),
        ("VOTE", 2_000_000_000, (6_000_000_000,)),
        ("HEARTBEAT", 3_000_000_000, ()),
        ("VOTE", 7_000_000_000, ()),
    ]
    assert rows[0].text == "term 2, position 1:5"
