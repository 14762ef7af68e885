"""Bytes <-> messages: round trips, splits at every byte, damage, limits. Rules: K1, S7."""

from __future__ import annotations

import contextlib
import itertools
import json
from typing import get_args
from zlib import crc32

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodeproc import entries, frames, lines, records
from nodeproc.core.effects import LocalOp, Met, Promise, Readmitted, Truncate
from nodeproc.core.messages import (
    START,
    Abstain,
    Append,
    Appended,
    Batch,
    CatchUp,
    Commit,
    Coordinator,
    Copy,
    CopyRequest,
    Election,
    Heartbeat,
    HeartbeatAck,
    Join,
    JoinAck,
    Known,
    Leader,
    Line,
    Mark,
    MemberAddress,
    MemberList,
    Members,
    MembersMark,
    Ok,
    OlderMarks,
    PeerMessage,
    Position,
    Promised,
    Promises,
    Record,
    Refuse,
    Removed,
    Resume,
    SessionUse,
    Submit,
    Support,
    TermIs,
    Vote,
    VoteRequest,
)
from nodeproc.errors import FrameError

SEALER = records.Sealer(lambda: 1732300000.1234)
SUBMITS = [Submit("5f0c", 101, 0, 3, ("Hello", 'quotes " and \\ and \n')), Submit("77", 9999, 4, 1, ("Grüße 👋",))]
MARK = SEALER.mark(Mark(2, 1, 6))
LISTED = SEALER.mark(MembersMark(3, 1, 9, MemberList(4, (1, 2, 7), (8,), (3,), (MemberAddress(7, "h", 5007),))))
BATCH = SEALER.batch(Batch(2, 7, 9, (SessionUse("5f0c", 4, 8), SessionUse("77", 1, 9))), SUBMITS)

UNREADABLE = [
    b'{"x":' + b"[" * 2000 + b"]" * 2000 + b',"kind":"mark","type":"STATUS"}',
    b'{"kind":"opening","type":"PEER_REFUSAL","reason":"\xff","identity":"\xff"}',
]
"""msgspec does not call these a MsgspecError."""

FRAMES: list[frames.FrameMessage] = [
    Join(Position(3, 7)),
    JoinAck(3, 2),
    Members({1: Known("one"), 2: Known("two", 4, 1)}),
    Promises({1: Promised("one", 3, Position(2, 9)), 2: Promised("two")}),
    Heartbeat(3, 7, Position(3, 9)),
    HeartbeatAck(3, Position(3, 8)),
    Election(4, Position(3, 8), 2, 77),
    Leader(4, 2, 77),
    Ok(77, True),
    Support(77),
    Abstain(77),
    VoteRequest(4, Position(3, 8)),
    Vote(4),
    Coordinator(4),
    TermIs(5),
    Removed(5),
    CatchUp(4, ((1, 0), (3, 5)), 8, 2**40, True),
    OlderMarks(4, 3, 2**40),
    Resume(4, Position(3, 5), 2**40),
    Append(4, Position(1, 6), 5, (MARK, BATCH)),
    Appended(4, Position(4, 9)),
    Commit(4, 9),
    CopyRequest(Position(3, 5), 2**40),
    Copy(2**40, ()),
    Copy(2**40, (MARK, BATCH, LISTED)),
    SUBMITS[0],
    Refuse("5f0c", 3, "gap", 2),
    frames.PeerHello(1, "lab", 1, "one", False, "00ff"),
    frames.PeerChallenge(2, "two", True, "ff00", "proof"),
    frames.PeerProof("proof"),
    frames.PeerWelcome(Promised("one", 3, Position(3, 1))),
    frames.PeerRefusal("wrong cluster"),
]
CLIENT_LINES: list[lines.ClientLine] = [
    lines.Hello(101, "5f0c", 7),
    lines.Hello(101),
    lines.Chat(1, ("Hello", "Grüße\n")),
    lines.Subscribe(12),
    lines.StatusRequest(),
    lines.AddRequest(node=4, host="10.0.0.4", port=5001, admin_token="t"),
    lines.RemoveRequest(node=4),
    lines.TransferRequest(),
]
ADDRESSES = (MemberAddress(4, "10.0.0.4", 5001),)
NODE_LINES: list[lines.NodeLine] = [
    lines.Welcome(1, "5f0c", 7, 3, 9, 2, 4, 8),
    lines.Ack("5f0c", 3, 9),
    lines.Reject("5f0c", 4, "gap", True, 2),
    lines.Welcome(1, "5f0c", 7, 3, 9, 2, 4, 8, ADDRESSES),
    lines.LeaderLine(2, 4),
    lines.LeaderLine(2, 4, ADDRESSES),
    lines.ChangeIs("refused", "node_3 leads", True, 3),
    lines.Problem("too long"),
    lines.Status(1, "leader", 4, 1, 9, 9, 8, False, 1.5, 77, (lines.PeerStatus(2, True, True, 9),), {"turns": 3}),
    lines.Status(1, "leader", 4, 1, 9, 9, 8, members=lines.MembersStatus(3, True, (1,), (1, 4), (), (2,), ADDRESSES)),
]
LOCAL_OPS: list[LocalOp] = [Promise(3, 2), Truncate(Position(2, 6)), Met(2, Known("two", 4, 1)), Readmitted(3)]
ENTRIES = [MARK.raw, BATCH.raw, LISTED.raw, *map(records.encode_entry, LOCAL_OPS)]
ENTRIES += [records.encode_entry(entries.Committed(7)), records.encode_entry(entries.Opening(1, 0, 1, "one", False))]


def named(value: object) -> str:
    return type(value).__name__


def frame(message: frames.FrameMessage) -> bytes:
    return b"".join(frames.encode_frame(message))


# ---- entries --------------------------------------------------------------------------------------------


def test_every_kind_of_entry_has_a_sample() -> None:
    kinds = {type(entry.header) for raw in ENTRIES if (entry := records.decode_entry(raw, 0)) is not None}
    assert kinds == set(get_args(entries.EntryHeader))


@pytest.mark.parametrize("raw", ENTRIES)
def test_an_entry_cut_at_any_byte_waits_for_the_rest(raw: bytes) -> None:
    for cut in range(len(raw)):
        assert records.decode_entry(raw[:cut], 0) is None
    entry = records.decode_entry(b"xx" + raw + b"yy", 2)
    assert entry is not None
    assert (entry.start, entry.end) == (2, 2 + len(raw))
    assert records.encode_entry(entry.header, raw[entry.body_at - 2 :]) == raw


@pytest.mark.parametrize("raw", ENTRIES)
@pytest.mark.parametrize("flip", [0x01, 0x10, 0x80, 0xFF])
def test_an_entry_changed_at_any_byte_is_never_taken(raw: bytes, flip: int) -> None:
    for at in range(len(raw)):
        changed = raw[:at] + bytes([raw[at] ^ flip]) + raw[at + 1 :]
        with contextlib.suppress(entries.Broken):
            assert records.decode_entry(changed, 0) is None


def test_zeros_are_a_broken_entry() -> None:
    with pytest.raises(entries.Broken, match=r"entry lengths 0 \+ 0 at 4, allowed 1\.\."):
        records.decode_entry(bytes(16), 4)


def test_an_entry_of_impossible_length_is_broken_at_once() -> None:
    for lengths in ((records.MAX_HEADER + 1, 0), (1, records.MAX_BODY + 1)):
        with pytest.raises(entries.Broken, match=f"{lengths[0]} \\+ {lengths[1]}"):
            records.decode_entry(records.PREFIX.pack(*lengths, 0), 0)


def test_an_entry_of_an_unknown_kind_is_broken() -> None:
    header = b'{"kind":"novelty","term":1}'
    with pytest.raises(entries.Broken, match="novelty"):
        records.decode_entry(records.PREFIX.pack(len(header), 0, crc32(header)) + header, 0)


def test_records_are_read_from_a_body_one_by_one() -> None:
    assert records.decode_records(MARK.raw + BATCH.raw + MARK.raw) == (MARK, BATCH, MARK)
    assert records.decode_records(b"") == ()


@pytest.mark.parametrize("op", LOCAL_OPS, ids=named)
def test_what_never_leaves_a_node_is_refused_among_records(op: LocalOp) -> None:
    with pytest.raises(FrameError, match=f"is a {named(op)}, not a mark or a batch"):
        records.decode_records(MARK.raw + records.encode_entry(op))


def test_a_body_cut_inside_a_record_is_refused() -> None:
    body = MARK.raw + BATCH.raw
    for cut in range(1, len(body)):
        if cut != len(MARK.raw):
            with pytest.raises(FrameError):
                records.decode_records(body[:cut])


@pytest.mark.parametrize("header", UNREADABLE, ids=["deep nesting", "bad UTF-8"])
def test_unreadable_json_is_malformed_like_any_other(header: bytes) -> None:
    prefix = records.PREFIX.pack(len(header), 0, crc32(header))
    with pytest.raises(entries.Broken):
        records.decode_entry(prefix + header, 0)
    with pytest.raises(FrameError):
        list(frames.FrameDecoder().feed(prefix + header))
    for decode in (lines.decode_client_line, lines.decode_node_line):
        with pytest.raises(FrameError):
            decode(header)


# ---- the leader's bytes ---------------------------------------------------------------------------------


def test_a_batch_holds_the_lines_of_the_message_log() -> None:
    logged = [json.loads(line) for line in bytes(BATCH.body).splitlines()]
    assert [line["payload"] for line in logged] == ["Hello", 'quotes " and \\ and \n', "Grüße 👋"]
    assert [line["msg_id"] for line in logged] == ["5f0c-3", "5f0c-4", "77-1"]
    first = b'{"seq_no":7,"term":2,"sender_id":101,"msg_id":"5f0c-3","timestamp":1732300000.123,"payload":"Hello"}\n'
    assert bytes(BATCH.body).startswith(first)
    assert first.startswith(lines.MESSAGE_START)
    assert lines.decode_node_line(first) == Line(7, 2, 101, "5f0c-3", 1732300000.123, "Hello")


def test_a_batch_that_does_not_fill_its_header_is_a_bug() -> None:
    with pytest.raises(AssertionError):
        SEALER.batch(Batch(2, 7, 10, ()), SUBMITS)


@given(st.lists(st.text(st.characters(codec="utf-8"), max_size=20), min_size=1, max_size=8))
def test_any_payload_is_one_line_and_comes_back(payloads: list[str]) -> None:
    record = SEALER.batch(Batch(1, 1, len(payloads), ()), [Submit("s", 1, 0, 1, tuple(payloads))])
    assert records.decode_records(record.raw) == (record,)
    logged = bytes(record.body).split(b"\n")
    assert logged.pop() == b""
    decoded = [lines.decode_node_line(line) for line in logged]
    assert [line.payload for line in decoded if isinstance(line, Line)] == payloads


# ---- frames ---------------------------------------------------------------------------------------------


def test_every_frame_has_a_sample() -> None:
    assert {type(message) for message in FRAMES} == {*get_args(PeerMessage), *get_args(frames.Handshake)}


@pytest.mark.parametrize("message", FRAMES, ids=named)
def test_a_frame_comes_back_however_it_is_split(message: frames.FrameMessage) -> None:
    data = frame(message)
    for cut in range(len(data) + 1):
        decoder = frames.FrameDecoder()
        before = list(decoder.feed(data[:cut]))
        assert before == ([message] if cut == len(data) else [])
        assert before + list(decoder.feed(data[cut:])) == [message]


def test_frames_come_back_byte_by_byte_and_all_at_once() -> None:
    data = b"".join(map(frame, FRAMES))
    slow, quick = frames.FrameDecoder(), frames.FrameDecoder()
    assert [message for at in range(len(data)) for message in slow.feed(data[at : at + 1])] == FRAMES
    assert list(quick.feed(data)) == FRAMES


@given(st.lists(st.sampled_from(FRAMES), max_size=12), st.lists(st.integers(0, 5000), max_size=12))
def test_frames_come_back_in_any_pieces(messages: list[frames.FrameMessage], cuts: list[int]) -> None:
    data = b"".join(map(frame, messages))
    borders = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    decoder = frames.FrameDecoder()
    found: list[frames.FrameMessage] = []
    for start, end in itertools.pairwise(borders):
        found += decoder.feed(data[start:end])
    assert found == messages


def test_the_records_of_a_frame_are_not_copied() -> None:
    buffers = frames.encode_frame(Append(4, START, 5, (MARK, BATCH)))
    assert buffers[-1] is BATCH.raw


@pytest.mark.parametrize("message", FRAMES, ids=named)
@pytest.mark.parametrize("flip", [0x01, 0x80, 0xFF])
def test_a_frame_changed_at_any_byte_is_never_taken(message: frames.FrameMessage, flip: int) -> None:
    data = frame(message)
    for at in range(len(data)):
        with contextlib.suppress(FrameError):
            assert list(frames.FrameDecoder().feed(data[:at] + bytes([data[at] ^ flip]) + data[at + 1 :])) == []


def test_frames_before_a_broken_one_are_given_out() -> None:
    data = bytearray(frame(FRAMES[0]) + frame(FRAMES[1]))
    data[-1] ^= 1
    found = []
    with pytest.raises(FrameError, match="frame header CRC mismatch"):
        for message in frames.FrameDecoder().feed(bytes(data)):
            found.append(message)
    assert found == FRAMES[:1]


def test_a_frame_beyond_the_limits_is_refused_by_its_first_bytes() -> None:
    for lengths in ((0, 0), (101, 0), (100, 201), (2**32 - 1, 2**32 - 1)):
        decoder = frames.FrameDecoder(max_header=100, max_body=200)
        with pytest.raises(FrameError, match=r"allowed 1\.\.100 \+ 0\.\.200"):
            list(decoder.feed(records.PREFIX.pack(*lengths, 0)))


def test_the_limits_may_grow_between_two_frames() -> None:
    hello, big = frames.PeerProof("x"), Submit("s", 1, 0, 1, ("y" * 1000,))
    decoder = frames.FrameDecoder(max_header=100, max_body=0)
    found = decoder.feed(frame(hello) + frame(big))
    assert next(found) == hello
    decoder.max_header = 10_000
    assert list(found) == [big]
    with pytest.raises(FrameError):
        list(frames.FrameDecoder(max_header=100, max_body=0).feed(frame(big)))


def test_a_body_where_none_belongs_is_refused() -> None:
    head = frame(Vote(4))[records.PREFIX.size :]
    with pytest.raises(FrameError, match="a body of 3 bytes after Vote, which has none"):
        list(frames.FrameDecoder().feed(records.PREFIX.pack(len(head), 3, crc32(head)) + head + b"abc"))


def test_an_append_without_records_is_refused() -> None:
    head = frames.encode_frame(Append(4, START, 5, (MARK,)))[1]
    with pytest.raises(FrameError, match="APPEND without records"):
        list(frames.FrameDecoder().feed(records.PREFIX.pack(len(head), 0, crc32(head)) + head))


@given(st.binary(max_size=200))
def test_garbage_is_never_a_frame(data: bytes) -> None:
    with contextlib.suppress(FrameError):
        assert list(frames.FrameDecoder().feed(data)) == []


@pytest.mark.parametrize(
    "value",
    [None, 7, "VOTE", [], {}, {"type": "NOVELTY"}, {"type": "VOTE"}, {"type": "VOTE", "term": "4"}, {"term": 4}],
    ids=str,
)
def test_an_intact_frame_with_another_header_is_refused(value: object) -> None:
    head = json.dumps(value).encode()
    with pytest.raises(FrameError, match="frame header: "):
        list(frames.FrameDecoder().feed(records.PREFIX.pack(len(head), 0, crc32(head)) + head))


# ---- lines ----------------------------------------------------------------------------------------------


def test_every_line_has_a_sample() -> None:
    assert {type(line) for line in CLIENT_LINES} == set(get_args(lines.ClientLine))
    assert {type(line) for line in NODE_LINES} == set(get_args(lines.NodeLine))


@pytest.mark.parametrize("line", CLIENT_LINES, ids=named)
def test_what_a_client_says_comes_back(line: lines.ClientLine) -> None:
    data = lines.encode_line(line)
    assert data.count(b"\n") == 1
    assert lines.decode_client_line(data) == line


@pytest.mark.parametrize("line", NODE_LINES, ids=named)
def test_what_a_node_says_comes_back(line: lines.NodeLine) -> None:
    data = lines.encode_line(line)
    assert data.count(b"\n") == 1
    assert not data.startswith(lines.MESSAGE_START)
    assert lines.decode_node_line(data) == line


def test_a_client_may_type_its_lines_by_hand() -> None:
    assert lines.decode_client_line(b'{"type": "SUBSCRIBE", "from": 7}') == lines.Subscribe(7)
    assert lines.decode_client_line(b' {"payloads":["x"], "first":1, "type":"CHAT"} ') == lines.Chat(1, ("x",))
    assert lines.decode_client_line(b'{"type":"STATUS"}\r') == lines.StatusRequest()


@pytest.mark.parametrize(
    "line",
    [
        b"hello",
        b"{}",
        b"[]",
        b'{"type":"CHATTER"}',
        b'{"type":"CHAT","first":1}',
        b'{"type":"CHAT","first":"1","payloads":[]}',
        b'{"type":"CHAT","first":1,"payloads":[7]}',
        b'{"type":"CHAT","first":1,"payloads":["x"],"extra":1}',
        b'{"type":"HELLO"}',
        b'{"type":"HELLO","client_id":1e99}',
        b'{"type":"STATUS"} {"type":"STATUS"}',
        b'{"type":"CHAT","first":1,"payloads":["\xff\xfe"]}',
        b'{"type":"CHAT","first":1,"payloads":["\\ud800"]}',
        b'{"type":"VOTE","term":4}',
    ],
)
def test_a_malformed_line_of_a_client_is_refused(line: bytes) -> None:
    with pytest.raises(FrameError, match="not a line of the client protocol: "):
        lines.decode_client_line(line)


@given(st.binary(max_size=100).filter(lambda line: not line.startswith(b'{"type":')))
def test_garbage_is_never_a_line(line: bytes) -> None:
    """Hypothesis tries bytes, too, that stand in the source; a whole line among them is no garbage."""
    for decode in (lines.decode_client_line, lines.decode_node_line):
        with pytest.raises(FrameError):
            decode(line)
    with pytest.raises(FrameError):
        lines.decode_node_line(lines.MESSAGE_START + line)


def test_lines_come_back_however_they_are_split() -> None:
    encoded = [lines.encode_line(line) for line in (*CLIENT_LINES, *NODE_LINES)]
    data = b"".join(encoded)
    expected = [line[:-1] for line in encoded]
    for cut in range(len(data) + 1):
        decoder = lines.LineDecoder(1000)
        assert decoder.feed(data[:cut]) + decoder.feed(data[cut:]) == expected
    slow = lines.LineDecoder(1000)
    assert [line for at in range(len(data)) for line in slow.feed(data[at : at + 1])] == expected


@given(st.binary(max_size=60), st.lists(st.integers(0, 60), max_size=6))
def test_any_bytes_are_cut_at_their_newlines(data: bytes, cuts: list[int]) -> None:
    borders = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    decoder = lines.LineDecoder(1000)
    found: list[bytes] = []
    for start, end in itertools.pairwise(borders):
        found += decoder.feed(data[start:end])
    assert found == [line for line in data.split(b"\n")[:-1] if line.strip()]


def test_blank_lines_are_left_out() -> None:
    assert lines.LineDecoder(100).feed(b"\n\r\n  \na\n\n") == [b"a"]


@pytest.mark.parametrize("pieces", [[b"x" * 11], [b"x" * 11 + b"\n"], [b"x" * 6, b"x" * 6], [b"ok\n" + b"x" * 11]])
def test_a_line_longer_than_allowed_is_refused_before_it_ends(pieces: list[bytes]) -> None:
    decoder = lines.LineDecoder(10)
    with pytest.raises(FrameError, match=r"over 10 bytes, the longest allowed|allowed 10"):
        for piece in pieces:
            decoder.feed(piece)


def test_a_line_as_long_as_allowed_is_taken() -> None:
    decoder = lines.LineDecoder(10)
    assert decoder.feed(b"x" * 10) == []
    assert decoder.feed(b"\n") == [b"x" * 10]


def test_the_preamble_starts_no_line_of_a_client() -> None:
    assert frames.PREAMBLE[0] not in {lines.encode_line(line)[0] for line in CLIENT_LINES}
    with pytest.raises(UnicodeDecodeError):
        frames.PREAMBLE.decode()


def test_a_record_knows_its_position() -> None:
    assert isinstance(MARK, Record)
    assert (MARK.position, BATCH.position) == (Position(2, 6), Position(2, 9))
    assert bytes(MARK.body) == b""
