"""Node processes: ports held while a node is down, readiness, signals with evidence, ends that nobody asked for."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from pathlib import Path

import psutil
import pytest
import yaml

from lab.live.processes import HeldPort, Lifeline, NodeProcess
from lab.steps.machine import RunFailed
from tests.lab.inloop import in_loop

HOST = "127.0.0.1"


class Stage:
    """One fake node as a process, with everything it needs; everything goes when the test leaves it."""

    def __init__(self, directory: Path, **settings: object) -> None:
        self.held, self.lifeline = HeldPort(), Lifeline()
        config = directory / "node_1.yml"
        config.write_text(yaml.safe_dump({"node_id": 1, "host": HOST, "port": self.held.port, **settings}))
        self.node = NodeProcess(
            1, self.held.port, config, directory / "node.log", self.lifeline.fd, module="tests.lab.fakenode"
        )

    def __enter__(self) -> Stage:
        return self

    def __exit__(self, *_: object) -> None:
        self.node.kill_now()
        self.held.release()


def test_a_held_port_refuses_connections() -> None:
    held = HeldPort()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((HOST, held.port))
    held.release()


def test_a_held_port_is_given_to_nobody_else_and_again_to_its_node() -> None:
    held = HeldPort()
    for _ in range(2):
        with socket.socket() as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((HOST, held.port))
            listener.listen()
            socket.create_connection((HOST, held.port)).close()
    others = [HeldPort() for _ in range(50)]
    assert held.port not in {other.port for other in others}
    for each in (held, *others):
        each.release()


@in_loop
async def test_a_started_node_answers_and_stops_cleanly_when_asked(tmp_path: Path) -> None:
    with Stage(tmp_path) as stage:
        stage.node.start()
        assert await stage.node.ready() > 0
        end = await stage.node.end(signal.SIGTERM)
        assert end is not None
        assert (end.code, end.expected, stage.node.running) == (0, True, False)
        assert stage.node.use().cpu_s > 0 and stage.node.use().rss_peak_bytes > 1 << 20


@in_loop
async def test_a_killed_node_leaves_a_signal_and_starts_again_on_its_port(tmp_path: Path) -> None:
    with Stage(tmp_path) as stage:
        stage.node.start()
        await stage.node.ready()
        first = stage.node.pid
        end = await stage.node.end(signal.SIGKILL)
        assert end is not None
        assert (end.code, end.expected) == (-signal.SIGKILL, True)
        assert not psutil.pid_exists(first)
        stage.node.start()
        await stage.node.ready()
        assert stage.node.pid != first and stage.node.starts == 2


@in_loop
async def test_a_paused_node_stands_still_until_it_is_woken(tmp_path: Path) -> None:
    with Stage(tmp_path) as stage:
        stage.node.start()
        await stage.node.ready()
        await stage.node.pause()
        assert stage.node.paused and psutil.Process(stage.node.pid).status() == psutil.STATUS_STOPPED
        stage.node.wake()
        await stage.node.ready()
        assert not stage.node.paused


@in_loop
async def test_a_paused_node_can_be_stopped_and_killed(tmp_path: Path) -> None:
    with Stage(tmp_path) as stage:
        for how, code in ((signal.SIGTERM, 0), (signal.SIGKILL, -9)):
            stage.node.start()
            await stage.node.ready()
            await stage.node.pause()
            end = await stage.node.end(how)
            assert end is not None and end.code == code
            assert not stage.node.paused


@in_loop
async def test_an_end_that_is_explained_is_expected_and_one_with_another_code_is_not(tmp_path: Path) -> None:
    with Stage(tmp_path, fail="no space") as stage:
        asked: list[tuple[int, int]] = []

        def why(node: int, code: int) -> str:
            asked.append((node, code))
            return "full" if len(asked) == 1 else ""

        stage.node.on_end = why
        for expected, because in ((True, "full"), (False, "")):
            stage.node.start()
            while stage.node.running:
                await asyncio.sleep(0)
            end = stage.node.exits[-1]
            assert (end.code, end.expected, end.because) == (1, expected, because)
        assert asked == [(1, 1), (1, 1)]


@in_loop
async def test_an_end_without_a_signal_is_waited_for_and_expected_if_it_comes(tmp_path: Path) -> None:
    with Stage(tmp_path) as stage:
        stage.node.start()
        await stage.node.ready()
        assert not await stage.node.doomed(0.01)
        stage.lifeline.cut()
        assert await stage.node.doomed(10.0)
        assert [(end.code, end.expected) for end in stage.node.exits] == [(0, True)]


@in_loop
async def test_an_end_that_nobody_asked_for_is_noticed(tmp_path: Path) -> None:
    with Stage(tmp_path) as stage:
        stage.node.start()
        await stage.node.ready()
        os.kill(stage.node.pid, signal.SIGABRT)
        while stage.node.running:
            await asyncio.sleep(0)
        assert [(end.code, end.expected) for end in stage.node.exits] == [(-signal.SIGABRT, False)]


@in_loop
async def test_a_node_that_can_not_start_is_told_with_its_last_words(tmp_path: Path) -> None:
    with Stage(tmp_path, fail="no good configuration") as stage:
        stage.node.start()
        with pytest.raises(RunFailed, match="node 1 ended with exit code 1: no good configuration"):
            await stage.node.ready()


@in_loop
async def test_a_node_ends_when_its_lifeline_is_cut(tmp_path: Path) -> None:
    with Stage(tmp_path) as stage:
        stage.node.start()
        await stage.node.ready()
        stage.lifeline.cut()
        while stage.node.running:
            await asyncio.sleep(0)
        assert stage.node.exits[0].code == 0


@in_loop
async def test_kill_now_leaves_nothing_and_may_be_repeated(tmp_path: Path) -> None:
    with Stage(tmp_path) as stage:
        stage.node.start()
        pid = stage.node.pid
        stage.node.kill_now()
        stage.node.kill_now()
        assert not psutil.pid_exists(pid)
