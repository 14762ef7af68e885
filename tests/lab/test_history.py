"""Reading files of a run in pieces: whole lines, true line numbers, and what is no line said so."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lab.check import history
from lab.check.history import NOT_A_MESSAGE, MessageLog, RunFileError, find_line, read_events, read_history, read_pieces
from lab.rows import Acked, encode_row
from tests.lab.synthetic import build_run


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(history, "CHUNK_BYTES", 1000)


@given(content=st.lists(st.sampled_from([b"a", b"bb", b"", b"\xff\x00"]), max_size=50), ends=st.booleans())
def test_pieces_put_together_are_the_file(
    tmp_path_factory: pytest.TempPathFactory, content: list[bytes], ends: bool
) -> None:
    path = tmp_path_factory.mktemp("pieces") / "file"
    data = b"\n".join(content) + (b"\n" if ends else b"")
    path.write_bytes(data)
    before = history.CHUNK_BYTES
    history.CHUNK_BYTES = 7
    try:
        pieces = list(read_pieces(path))
    finally:
        history.CHUNK_BYTES = before
    assert b"".join(piece.data for piece in pieces) == data
    for piece in pieces:
        assert piece.first_line == 1 + data[: piece.offset].count(b"\n")
        assert piece.newlines == piece.data.count(b"\n")
    assert all(piece.data.endswith(b"\n") for piece in pieces[:-1])


def test_a_line_is_found_by_its_number(tmp_path: Path, small_chunks: None) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"".join(b"line %d\n" % number for number in range(1, 1001)) + b"torn")
    assert [find_line(path, number) for number in (1, 500, 1000, 1001, 1002)] == [
        b"line 1",
        b"line 500",
        b"line 1000",
        b"torn",
        None,
    ]


def test_every_message_of_a_log_is_found_again_by_its_seq_no(tmp_path: Path, small_chunks: None) -> None:
    run = build_run(tmp_path)
    log = MessageLog(run.message_log(1), "log")
    read = [line for chunk in log.chunks() for line in chunk.lines]
    assert [line.seq_no for line in read] == list(range(1, 201))
    assert log.line_count == 200
    assert [log.find(seq_no) for seq_no in range(200, 0, -1)] == read[::-1]
    assert log.find(0) is log.find(201) is None


def test_what_is_no_message_keeps_its_place(tmp_path: Path) -> None:
    run = build_run(tmp_path)
    path = run.message_log(1)
    lines = path.read_bytes().splitlines(keepends=True)
    lines[7], lines[9] = b"\n", b'{"seq_no":"x"}\n'
    path.write_bytes(b"".join(lines) + b'{"seq_no":201')
    log = MessageLog(path, "log")
    read = [line for chunk in log.chunks() for line in chunk.lines]
    assert [number for number, line in enumerate(read, 1) if line is NOT_A_MESSAGE] == [8, 10]
    assert log.torn == 201


def test_a_missing_log_is_an_empty_one(tmp_path: Path) -> None:
    assert list(MessageLog(tmp_path / "none", "none").chunks()) == []


def test_a_history_whose_time_falls_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    path.write_bytes(encode_row(Acked(5, "s", 1, 1)) + encode_row(Acked(4, "s", 2, 2)))
    with pytest.raises(RunFileError, match=r"^history\.jsonl:2: t=4 is before t=5"):
        list(read_history(path))


@pytest.mark.parametrize("bad", [b"{}\n", b"\n", b'{"op":"ok","t":1}\n', b"torn"])
def test_a_line_that_is_no_row_is_named(tmp_path: Path, bad: bytes) -> None:
    path = tmp_path / "history.jsonl"
    path.write_bytes(encode_row(Acked(1, "s", 1, 1)) + bad)
    with pytest.raises(RunFileError, match=r"^history\.jsonl:2: not a row"):
        list(read_history(path))


def test_a_torn_event_that_a_start_writes_on_or_that_ends_the_file_is_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    starting = b'{"t_ns":2,"no{"t_ns":3,"node":1,"event":"starting","term":2}\n{"t_ns":4,"no'
    path.write_bytes(b'{"t_ns":1,"node":1,"event":"a"}\n' + starting)
    found = [(number, event.event, event.term) for number, event in read_events(path, 1)]
    assert found == [(1, "a", 0), (2, "starting", 2)]


@pytest.mark.parametrize(
    ("bad", "what"),
    [
        (b'{"t_ns":2,"no\n', "not an event"),
        (b'{"t_ns":2,"no{"t_ns":3,"node":1,"event":"became_leader"}\n', "not an event"),
        (b'{"t_ns":2,"node":1,"event":"b","term":1,"term":2}\n', "not an event"),
        (b"\n", "not an event"),
        (b'{"t_ns":2,"node":2,"event":"b"}\n', "an event of node 2"),
        (b'{"t_ns":0,"node":1,"event":"b"}\n', "t_ns=0 is before t_ns=1"),
    ],
)
def test_another_line_that_is_no_event_is_named(tmp_path: Path, bad: bytes, what: str) -> None:
    path = tmp_path / "events.jsonl"
    path.write_bytes(b'{"t_ns":1,"node":1,"event":"a"}\n' + bad + b'{"t_ns":9,"node":1,"event":"c"}\n')
    with pytest.raises(RunFileError, match=f"events.jsonl:2: {what}"):
        list(read_events(path, 1))
