"""The functions that every message or batch passes through, each by itself. No test asserts a time.

docs/performance.md says how to keep a baseline and compare with it.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lab.check.history import MessageLog
from nodeproc.core.messages import Append, Batch, Mark, Position, Record, SessionUse, Submit
from nodeproc.core.sessions import Sessions
from nodeproc.disk.files import RealFiles
from nodeproc.disk.storage import Storage
from nodeproc.disk.wal import scan
from nodeproc.frames import FrameDecoder, encode_frame
from nodeproc.lines import LineDecoder, decode_client_line
from nodeproc.net.nodestream import read_run
from nodeproc.records import Sealer

MESSAGES = 512
TEXTS = tuple(f"{n:06} " + "x" * 93 for n in range(MESSAGES))
SUBMIT = Submit("5f0c2a9be1d04417", 101, 0, 1, TEXTS)


MARK = Sealer(lambda: 0.0).mark(Mark(1, 1, 0))


def batch_of(first: int) -> Record:
    """512 messages of 100 bytes, from seq_no `first` on, of one session."""
    last = first + MESSAGES - 1
    header = Batch(1, first, last, (SessionUse(SUBMIT.session, last, last),))
    return Sealer(lambda: 1_732_300_000.0).batch(header, [SUBMIT])


@pytest.fixture
def storage(tmp_path: Path) -> Iterator[Storage]:
    opened, _, _ = Storage.open(RealFiles(tmp_path), 1)
    yield opened
    opened.close()


def test_decode_the_frame_of_a_batch(benchmark: Any) -> None:
    frame = b"".join(encode_frame(Append(1, Position(1, 0), 0, (batch_of(1),))))
    (message,) = benchmark(lambda: list(FrameDecoder().feed(frame)))
    assert message.records[0].header.last == MESSAGES


def test_decode_frames_of_one_message(benchmark: Any) -> None:
    one = Submit("5f0c2a9be1d04417", 101, 0, 1, TEXTS[:1])
    frames = b"".join(b"".join(encode_frame(one)) for _ in range(64))
    assert len(benchmark(lambda: list(FrameDecoder().feed(frames)))) == 64


def test_make_a_batch(benchmark: Any) -> None:
    record = benchmark(batch_of, 1)
    assert bytes(record.body).count(b"\n") == MESSAGES


def test_make_batches_of_one_message(benchmark: Any) -> None:
    sealer = Sealer(lambda: 1_732_300_000.0)
    one = Submit("5f0c2a9be1d04417", 101, 0, 1, TEXTS[:1])
    header = Batch(1, 1, 1, (SessionUse(one.session, 1, 1),))
    records = benchmark(lambda: [sealer.batch(header, [one]) for _ in range(64)])
    assert {bytes(record.body).count(b"\n") for record in records} == {1}


def test_append_and_deliver_a_batch(benchmark: Any, storage: Storage) -> None:
    """Both writes, without fdatasync."""
    storage.write([MARK])
    rest = [batch_of(first) for first in range(1, 51 * MESSAGES, MESSAGES)][::-1]

    def append() -> None:
        record = rest.pop()
        storage.write([record])
        storage.deliver([record])

    benchmark.pedantic(append, rounds=50, warmup_rounds=1)
    assert storage.delivered_seq == (51 - len(rest)) * MESSAGES > 0


def test_check_sessions(benchmark: Any) -> None:
    """What the leader asks and notes for each submission, with a full table."""
    sessions = Sessions(100_000, {f"session-{n}": (5, n + 1) for n in range(100_000)})
    asked = [f"session-{n}" for n in range(0, 100_000, 1000)]

    def check() -> list[int | None]:
        found = [sessions.expected(session, 0) for session in asked]
        for session in asked:
            sessions.take(session, 6, 200_000)
        sessions.ahead.clear()
        return found

    assert benchmark(check) == [6] * len(asked)


def test_take_lines_of_a_client(benchmark: Any) -> None:
    line = b'{"type":"CHAT","first":1,"payloads":["' + TEXTS[0].encode() + b'"]}\n'
    lines = line * 64
    taken = benchmark(lambda: [decode_client_line(each) for each in LineDecoder(1 << 20).feed(lines)])
    assert len(taken) == 64


def test_scan_lines_as_a_subscriber(benchmark: Any) -> None:
    body = bytes(batch_of(1).body)
    assert benchmark(read_run, body).last == MESSAGES


def test_scan_lines_as_a_judge(benchmark: Any, tmp_path: Path) -> None:
    (tmp_path / "log").write_bytes(b"".join(batch_of(first).body for first in range(1, 8 * MESSAGES, MESSAGES)))
    log = MessageLog(tmp_path / "log", "log")
    assert benchmark(lambda: sum(len(chunk.lines) for chunk in log.chunks())) == 8 * MESSAGES


def test_scan_a_wal_file_as_a_restart_does(benchmark: Any, storage: Storage, tmp_path: Path) -> None:
    storage.write([MARK, *(batch_of(first) for first in range(1, 20 * MESSAGES, MESSAGES))])
    (path,) = (tmp_path / "wal").glob("*.wal")
    data = path.read_bytes()
    assert len(benchmark(scan, 1, "wal", data).entries) == 23  # The opening, a note, the mark, twenty batches.
