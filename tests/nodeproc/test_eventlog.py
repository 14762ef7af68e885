"""Events as lines on the console and in events.jsonl."""

from __future__ import annotations

import json
import os
import re
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from nodeproc import eventlog
from nodeproc.core.events import BecameLeader, Delivered, Failed, HeartbeatSent
from nodeproc.core.messages import Line
from nodeproc.eventlog import Console, EventLog, printable, show_messages
from tests import TOO_LONG_S


class Pipes:
    """A console whose two streams end in pipes."""

    def __init__(self) -> None:
        self.log, self._log_in = os.pipe()
        self.messages, self._messages_in = os.pipe()
        self.console = Console(self._log_in, self._messages_in)

    def finish(self) -> tuple[str, str]:
        """What was written to the log and to the messages."""
        self.console.close(timeout=TOO_LONG_S)
        os.close(self._log_in)
        os.close(self._messages_in)
        read = []
        for fd in (self.log, self.messages):
            with os.fdopen(fd, "rb") as stream:
                read.append(stream.read().decode())
        return read[0], read[1]


@pytest.fixture
def pipes() -> Iterator[Pipes]:
    yield Pipes()


def line(seq_no: int, payload: str) -> bytes:
    return eventlog._encode(Line(seq_no, 1, 9999, f"s-{seq_no}", 1.5, payload)) + b"\n"


def test_the_console_line_is_the_guides(pipes: Pipes) -> None:
    log = EventLog(2, level="INFO", events=None, console=pipes.console, show_delivered=True)
    log.emit([BecameLeader(2, 7)])
    log.close()
    text, _ = pipes.finish()
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d - node\.2 - INFO - Became LEADER for term 2\n", text)


def test_events_below_the_level_go_nowhere(tmp_path: Path, pipes: Pipes) -> None:
    log = EventLog(1, level="INFO", events=tmp_path / "e.jsonl", console=pipes.console, show_delivered=False)
    log.emit([HeartbeatSent(2, 1), Delivered(1, 2), BecameLeader(3, 4), Failed("x")])
    log.close()
    rows = [json.loads(row) for row in (tmp_path / "e.jsonl").read_text().splitlines()]
    assert [row["event"] for row in rows] == ["became_leader", "failed"]
    assert {"node": 1, "term": 3, "last_seq": 4}.items() <= rows[0].items()
    assert rows[0]["t_ns"] <= rows[1]["t_ns"]
    assert pipes.finish()[0].count("\n") == 2


def test_events_are_added_to_what_an_earlier_run_wrote(tmp_path: Path) -> None:
    for term in (1, 2):
        log = EventLog(1, level="DEBUG", events=tmp_path / "e.jsonl", console=None, show_delivered=False)
        log.emit([BecameLeader(term, 0)])
        log.close()
    assert len((tmp_path / "e.jsonl").read_bytes().splitlines()) == 2


def test_times_do_not_go_back_where_another_thread_reports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = EventLog(1, level="DEBUG", events=tmp_path / "e.jsonl", console=None, show_delivered=False)
    locked = []

    def clock() -> int:
        locked.append(log._lock.locked())
        return len(locked)

    def report() -> None:
        log.emit([Failed("the disk does not answer")])
        log.flush()

    monkeypatch.setattr("nodeproc.eventlog.time.monotonic_ns", clock)
    log.emit([BecameLeader(1, 0)])  # The rest of its turn takes long.
    other = threading.Thread(target=report)
    other.start()
    other.join()
    assert len((tmp_path / "e.jsonl").read_bytes().splitlines()) == 2, "the report waits for the end of the turn"
    log.close()
    rows = [json.loads(row) for row in (tmp_path / "e.jsonl").read_text().splitlines()]
    assert [(row["t_ns"], row["event"]) for row in rows] == [(1, "became_leader"), (2, "failed")]
    assert locked == [True, True], "a thread can come between the time of an event and its place"


def test_delivered_messages_print_as_in_the_guide(pipes: Pipes) -> None:
    log = EventLog(1, level="INFO", events=None, console=pipes.console, show_delivered=True)
    log.delivered([memoryview(line(1, "Hello from node 1!") + line(2, "Grüße"))])
    log.close()
    assert pipes.finish()[1] == "[seq=1] node_9999: Hello from node 1!\n[seq=2] node_9999: Grüße\n"


def test_quiet_prints_no_messages(pipes: Pipes) -> None:
    log = EventLog(1, level="INFO", events=None, console=pipes.console, show_delivered=False)
    log.delivered([memoryview(line(1, "hidden"))])
    log.close()
    assert pipes.finish() == ("", "")


def test_a_message_cannot_steer_the_terminal() -> None:
    assert printable("a\x1b[2Jb\r\n\u202e") == "a\\x1b[2Jb\\r\\n\\u202e"
    assert show_messages(line(1, "x\x1b]0;y\x07")) == "[seq=1] node_9999: x\\x1b]0;y\\x07\n"


def test_a_console_that_nobody_reads_does_not_stop_the_node(pipes: Pipes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(eventlog, "CONSOLE_MAX_BYTES", 1 << 20)
    for _ in range(100):
        pipes.console.show("x" * 99_999 + "\n")
    os.set_blocking(pipes.log, False)
    read = b""
    while b"left out" not in read:  # The thread writes on as soon as there is room again.
        try:
            read += os.read(pipes.log, 1 << 20)
        except BlockingIOError:
            pipes.console.show("more\n")
    assert len(read) < 3 << 20
    os.close(pipes.log)
    pipes.console.close(timeout=TOO_LONG_S)


def test_a_console_that_is_gone_is_given_up(pipes: Pipes) -> None:
    os.close(pipes.log)
    pipes.console.show("to nobody\n", [line(1, "to somebody")])
    pipes.console.close(timeout=TOO_LONG_S)
    os.close(pipes._messages_in)
    assert os.read(pipes.messages, 100) == b"[seq=1] node_9999: to somebody\n"


def test_a_full_file_of_events_makes_way_and_three_are_kept(tmp_path: Path) -> None:
    events = tmp_path / "events.jsonl"
    log = EventLog(1, level="INFO", events=events, console=None, show_delivered=False, max_bytes=200)
    for term in range(1, 13):
        log.emit([BecameLeader(term, 0)])
        log.flush()
    log.close()
    assert sorted(each.name for each in tmp_path.iterdir()) == [
        "events.jsonl",
        *(f"events.jsonl.{n}" for n in (1, 2, 3)),
    ]
    rows = [
        json.loads(row) for number in (3, 2, 1, 0) for row in eventlog.part(events, number).read_text().splitlines()
    ]
    assert [row["term"] for row in rows] == list(range(13 - len(rows), 13)) and len(rows) >= 4
    assert all(eventlog.part(events, number).stat().st_size <= 200 for number in range(4))


def test_a_file_of_events_goes_on_where_the_process_before_has_left_it(tmp_path: Path) -> None:
    events = tmp_path / "events.jsonl"
    for term in (1, 2, 3):
        log = EventLog(1, level="INFO", events=events, console=None, show_delivered=False, max_bytes=200)
        log.emit([BecameLeader(term, 0)])
        log.close()
    assert eventlog.part(events, 1).exists()
