"""The load: open and closed loop against a node that answers at once, and what its history says."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lab.course.clients import NamedClients, Subscribers
from lab.course.load import tick_s
from lab.course.recording import HistoryWriter, merge, row_time
from lab.live.children import Children, child_environment
from lab.live.load_workers import LoadWorkers, worker_count
from lab.plan.scenario import Load
from lab.rows import Acked, HistoryRow, Invoke, Phase, Shown, Unknown, decode_history_row, encode_row
from lab.rundir import RunDir
from lab.steps import Sender
from lab.steps.machine import RunFailed
from lab.words import Duration
from tests import TOO_LONG_S
from tests.lab.fakenode import FakeNode
from tests.lab.inloop import in_loop

SEED = 7


def rows_of(path: Path) -> list[HistoryRow]:
    return [decode_history_row(line) for line in path.read_bytes().splitlines()]


async def run_load(load: Load, directory: Path, workers: int = 1) -> tuple[FakeNode, LoadWorkers, list[HistoryRow]]:
    """A load from start to end against one fake node."""
    node = FakeNode()
    await node.listen()
    run = RunDir(directory)
    each = LoadWorkers(load, run, SEED, workers, Children())
    await each.spawn()
    await each.start((1,), {1: ("127.0.0.1", node.port)})
    await each.settled()
    await each.close()
    merge(sorted(directory.glob("history-*.part")), run.history)
    return node, each, rows_of(run.history)


@in_loop
async def test_an_open_loop_states_when_each_message_should_have_been_sent(tmp_path: Path) -> None:
    load = Load(clients=2, rate=2000, count=100, size=40)
    node, workers, rows = await run_load(load, tmp_path)
    assert workers.total.acknowledged == workers.total.sent == len(node.lines) == 100
    by_client: dict[int, list[int]] = {}
    for row in rows:
        if isinstance(row, Invoke):
            assert row.t >= row.intended + (row.count - 1) * row.every
            by_client.setdefault(row.client, []).extend(row.intended + at * row.every for at in range(row.count))
    assert sorted(by_client) == [1001, 1002]
    for times in by_client.values():
        gaps = {later - earlier for earlier, later in itertools.pairwise(times)}
        assert all(abs(gap - 1_000_000) < 2000 for gap in gaps), gaps  # 1 ms; float seconds are exact to less than that


@in_loop
async def test_payloads_can_be_made_again_from_the_history(tmp_path: Path) -> None:
    node, _, rows = await run_load(Load(clients=3, rate=5000, count=60, size=80), tmp_path)
    made = {
        (f'"msg_id":"{row.session}-{n}"', row.payload(n))
        for row in rows
        if isinstance(row, Invoke)
        for n in range(row.n, row.n + row.count)
    }
    lines = b"".join(node.lines).decode()
    assert len(made) == 60
    assert all(f'{msg_id},"timestamp":1.0,"payload":"{payload}"' in lines for msg_id, payload in made)


@in_loop
async def test_a_closed_loop_never_has_more_in_flight_than_asked(tmp_path: Path) -> None:
    _, workers, rows = await run_load(Load(clients=2, in_flight=3, count=50), tmp_path)
    assert workers.total.acknowledged == 50
    sent: dict[str, int] = {}
    done: dict[str, int] = {}
    for row in rows:
        if isinstance(row, Invoke):
            sent[row.session] = row.n + row.count - 1
            assert sent[row.session] - done.get(row.session, 0) <= 3
        elif isinstance(row, Acked):
            done[row.session] = row.n
    assert sum(sent.values()) == sum(done.values()) == 50


@in_loop
async def test_a_duration_ends_a_load(tmp_path: Path) -> None:
    _, open_loop, _ = await run_load(Load(clients=2, rate=1000, duration=Duration(0.1)), tmp_path)
    assert 98 <= open_loop.total.acknowledged <= 102
    (tmp_path / "closed").mkdir()
    _, closed_loop, _ = await run_load(Load(clients=1, in_flight=1, duration=Duration(0.1)), tmp_path / "closed")
    assert closed_loop.total.acknowledged == closed_loop.total.sent > 0


@in_loop
async def test_several_workers_share_the_clients_and_a_load_can_be_started_again(tmp_path: Path) -> None:
    node = FakeNode()
    await node.listen()
    run, addresses = RunDir(tmp_path), {1: ("127.0.0.1", node.port)}
    workers = LoadWorkers(Load(clients=3, rate=1000, count=30), run, SEED, 2, Children())
    await workers.spawn()
    for total in (30, 60):
        await workers.start((1,), addresses)
        await workers.settled()
        assert workers.total.acknowledged == len(node.lines) == total
    await workers.close()
    parts = sorted(tmp_path.glob("history-*.part"))
    assert [part.name for part in parts] == ["history-1.part", "history-2.part"]
    sessions = {row.session for part in parts for row in rows_of(part) if isinstance(row, Invoke)}
    assert len(sessions) == 6


@in_loop
async def test_a_halted_load_sends_nothing_more(tmp_path: Path) -> None:
    node = FakeNode()
    await node.listen()
    workers = LoadWorkers(Load(clients=1, rate=500), RunDir(tmp_path), SEED, 1, Children())
    await workers.spawn()
    await workers.start((1,), {1: ("127.0.0.1", node.port)})
    while workers.total.acknowledged < 10:
        await asyncio.sleep(0)
    await workers.halt()
    await workers.settled()
    assert workers.total.sent == workers.total.acknowledged == len(node.lines)
    await workers.close()


@in_loop
async def test_without_any_node_outcomes_are_not_ok_and_the_load_still_ends(tmp_path: Path) -> None:
    workers = LoadWorkers(
        Load(clients=1, rate=1000, count=5, deadline=Duration(0.2)), RunDir(tmp_path), SEED, 1, Children()
    )
    await workers.spawn()
    await workers.start((1,), {1: ("127.0.0.1", 1)})
    await workers.settled()
    total = workers.total
    await workers.close()
    assert (total.sent, total.acknowledged, total.pending) == (5, 0, 0)
    assert sum(row.count for row in rows_of(RunDir(tmp_path).history_part(1)) if isinstance(row, Unknown)) == 5


@in_loop
async def test_a_worker_that_dies_ends_the_waiting_with_a_reason(tmp_path: Path) -> None:
    workers = LoadWorkers(Load(clients=1, rate=1), RunDir(tmp_path), SEED, 1, children := Children())
    await workers.spawn()
    children.kill()
    with pytest.raises(RunFailed, match="load worker 1 ended with exit code -9"):
        await workers.start((1,), {1: ("127.0.0.1", 1)})


def test_a_worker_ends_with_its_input() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "lab.live.load_worker"],
        input=b"",
        capture_output=True,
        env=child_environment(),
        timeout=TOO_LONG_S,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def test_a_rate_gets_the_workers_that_it_needs_and_no_more_than_clients() -> None:
    assert worker_count(Load(clients=9, rate=20_000)) == 1
    assert worker_count(Load(clients=1, rate=1e6)) == 1
    assert worker_count(Load(clients=9, rate=100, workers=3)) == 3
    assert worker_count(Load(clients=2, in_flight=1, workers=3)) == 2


def test_slow_loads_send_each_message_by_itself() -> None:
    assert tick_s(100) == 0.0
    assert 0.0 < tick_s(5000) < tick_s(300_000) <= 0.005


# ---- named clients and subscribers ---------------------------------------------------------------


@in_loop
async def test_a_named_client_keeps_its_session_from_node_to_node_until_it_comes_fresh(tmp_path: Path) -> None:
    nodes = {1: FakeNode(1), 2: FakeNode(2)}
    nodes[2].lines, nodes[2]._sessions = nodes[1].lines, nodes[1]._sessions  # one cluster, as a client sees it
    for node in nodes.values():
        await node.listen()
    addresses = {node: ("127.0.0.1", each.port) for node, each in nodes.items()}
    with contextlib.closing(HistoryWriter(tmp_path / "part")) as history:
        clients = NamedClients(history)
        for sender in (
            Sender(client=9, messages=("a", "b"), via=1),
            Sender(client=9, messages=2, via=2),
            Sender(client=9, messages=1, fresh=True),
        ):
            await (await clients.send(sender, addresses)).chat.drained()
        assert clients.waiting == 0 and len(nodes[1].lines) == 5
        await clients.close()
    sent = [row for row in rows_of(tmp_path / "part") if isinstance(row, Invoke)]
    assert [row.n for row in sent] == [1, 3, 1]
    assert sent[0].session == sent[1].session != sent[2].session
    assert [text for row in sent for text in row.payloads] == [
        "a",
        "b",
        "message 1 of client 9",
        "message 2 of client 9",
        "message 3 of client 9",
    ]


@in_loop
async def test_a_subscriber_notes_what_it_was_shown(tmp_path: Path) -> None:
    node = FakeNode()
    await node.listen()
    addresses = {1: ("127.0.0.1", node.port)}
    with contextlib.closing(HistoryWriter(tmp_path / "part")) as history:
        clients = NamedClients(history)
        await (await clients.send(Sender(client=9, messages=("a", "b")), addresses)).chat.drained()
        subscribers = Subscribers(2, addresses, history)
        assert await subscribers.until_shown(2, 5.0)
        await subscribers.close()
        await clients.close()
    shown = [row for row in rows_of(tmp_path / "part") if isinstance(row, Shown)]
    assert [(row.first, row.last) for row in shown] == [(1, 2), (1, 2)]
    assert shown[0].client != shown[1].client and shown[0].crc == shown[1].crc


# ---- history parts -------------------------------------------------------------------------------


def test_parts_are_merged_by_time_and_a_torn_line_is_left_out(tmp_path: Path) -> None:
    parts = [tmp_path / "history-0.part", tmp_path / "history-1.part"]
    parts[0].write_bytes(b"".join(encode_row(Phase(t, "step", '"t":0')) for t in (1, 4, 5)))
    parts[1].write_bytes(encode_row(Acked(2, "s", 1, 1)) + encode_row(Acked(30, "s", 2, 2)) + b'{"op":"ok","t":4')
    merge(parts, tmp_path / "history.jsonl")
    assert [row.t for row in rows_of(tmp_path / "history.jsonl")] == [1, 2, 4, 5, 30]
    assert not any(part.exists() for part in parts)


def test_a_row_without_a_time_is_refused() -> None:
    with pytest.raises(ValueError, match="not found"):
        row_time(b'{"op":"phase"}\n')


def test_rows_are_on_disk_once_written_and_flushed(tmp_path: Path) -> None:
    with contextlib.closing(HistoryWriter(tmp_path / "part")) as history:
        history.write(Phase(time.monotonic_ns(), "step"))
        history.flush()
        assert len(rows_of(tmp_path / "part")) == 1
