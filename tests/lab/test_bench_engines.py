"""`bench --engines`: which systems it measures, and its figures of an engine that only echoes."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from lab.bench import bench, engines, table, writers
from lab.bench.figures import Bench, Collected, Figure, decode
from lab.bench.runs import Runs
from lab.bench.writers import Writer
from lab.engines import catalogue, install
from lab.engines.catalogue import Kind, Spec
from lab.engines.engine import Engine, EngineStatus, Entry
from lab.engines.web import listens
from tests.lab.test_bench import arguments

PORT = 7999
SERVER = """
import socketserver, sys
class Echo(socketserver.StreamRequestHandler):
    def handle(self):
        for line in self.rfile:
            self.wfile.write(line)
class Server(socketserver.ThreadingTCPServer):
    daemon_threads = True
    allow_reuse_address = True
Server((sys.argv[1], int(sys.argv[2])), Echo).serve_forever()
"""
ECHO = Spec("echo", "1.0")


class Echo(Engine):
    """An engine whose nodes know nothing of each other. The leader is the highest one that listens."""

    def command(self) -> Sequence[str]:
        return [self.program, "-I", "-S", "-c", SERVER, self.place.host, str(PORT)]

    async def ready(self) -> bool:
        return await listens(self.place.host, PORT, within=1.0)

    async def status(self) -> EngineStatus:
        up = [node for node, host in self.place.hosts.items() if await listens(host, PORT, within=1.0)]
        return EngineStatus(max(up), 1)

    async def append(self, session: str, first: int, last: int, value: str) -> int:
        raise NotImplementedError

    def tail(self) -> AsyncGenerator[Sequence[Entry], None]:
        raise NotImplementedError


class EchoWriter(Writer):
    """Sends lines, and waits for each."""

    pipelines = False

    async def open(self) -> None:
        self._reader, self._writer = await asyncio.open_connection(self.place.host, PORT)

    async def put(self, text: str) -> None:
        self._writer.write(text.encode() + b"\n")
        assert await self._reader.readline()

    async def close(self) -> None:
        self._writer.close()


@pytest.fixture
def echo(monkeypatch: pytest.MonkeyPatch) -> str:
    """Install the engine `echo`, and only that."""
    monkeypatch.setitem(writers.WRITERS, "echo", EchoWriter)
    monkeypatch.setitem(engines.SETTINGS, "echo", (engines.Setting({}, "nothing"),))
    monkeypatch.setitem(catalogue.KINDS, "echo", Kind(f"{__name__}:Echo", (PORT,)))
    monkeypatch.setattr(install, "installed", lambda: [(ECHO, sys.executable)])
    monkeypatch.setattr(install, "program", lambda spec: Path(sys.executable))
    monkeypatch.setattr(engines, "QUICK_SECONDS", 0.05)
    return str(ECHO)


def test_an_engine_is_measured_beside_the_lab_s_own_nodes(
    echo: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bench, "SAVED", tmp_path)
    monkeypatch.setitem(engines.SETTINGS, engines.OURS, engines.SETTINGS[engines.OURS][:1])
    assert bench.main(arguments("--engines", "echo", "--quick", "--json")) == 0
    output = capsys.readouterr().out
    found = decode(output.encode())
    assert found.promises == {engines.OURS: engines.FSYNC, echo: "nothing"}
    outages = [(engines.KILLED, "ms"), (engines.SILENT, "ms")]
    one, many, pipelined = (engines.ONE, "p50 ms"), (engines.MANY, "messages/s"), (engines.PIPELINED, "messages/s")
    for system, expected in ((engines.OURS, [one, many, pipelined, *outages]), (echo, [one, many, *outages])):
        figures = [each for each in found.figures if each.section == system]
        assert [(each.name, each.unit) for each in figures] == expected
        assert all(value > 0 for each in figures for value in each.values)
    assert list(tmp_path.iterdir()) == []
    assert [each.cmdline() for each in psutil.process_iter() if str(tmp_path) in " ".join(_words(each))] == []


def _words(process: psutil.Process) -> list[str]:
    try:
        return list(process.cmdline())
    except psutil.Error:
        return []


def test_an_engine_that_fails_leaves_the_figures_of_the_others(
    echo: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refuse(self: EchoWriter) -> None:
        raise OSError("full up")

    monkeypatch.setattr(EchoWriter, "open", refuse)
    told: list[str] = []
    into = Collected()
    engines.measure(engines.rows(["echo"])[-1], into, Runs(tmp_path, told.append), quick=True)
    assert told[-1] == f"{echo}: figures are left out: OSError('full up')"
    assert into.figures() == () and list(tmp_path.iterdir()) == []


def test_an_unknown_engine_is_refused(echo: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert bench.main(arguments("--engines", "zab")) == 64
    said = "--engines: found zab, allowed the name of an installed engine; installed: echo@1.0\n"
    assert capsys.readouterr().err == said


def test_a_version_that_is_not_installed_is_refused_with_the_way_to_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert bench.main(arguments("--engines", "etcd@0.0.1")) == 64
    assert capsys.readouterr().err.endswith("engines install etcd@0.0.1\n")


def test_engines_and_sections_are_not_measured_together(capsys: pytest.CaptureFixture[str]) -> None:
    assert bench.main(arguments("--engines", "--only", "idle")) == 64
    assert "--only" in capsys.readouterr().err


def test_every_setting_of_an_engine_is_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    there = [(Spec("nats", "2.12.1"), ""), (Spec("nats", "2.15.1"), ""), (Spec("etcd", "3.5.1"), "")]
    monkeypatch.setattr(install, "installed", lambda: there)
    monkeypatch.setattr(install, "program", lambda spec: Path())
    ours = ["chatlab", "chatlab, durability os"]
    of_nats = ["nats@2.12.1", "nats@2.12.1, sync_interval always"]
    assert [row.name for row in engines.rows(["nats@2.12.1"])] == [*ours, *of_nats]
    assert len(engines.rows([])) == len(engines.rows(["nats", "etcd"])) == 7


def test_all_engines_of_the_catalogue_can_be_measured() -> None:
    assert writers.WRITERS.keys() == catalogue.KINDS.keys() == engines.SETTINGS.keys() - {engines.OURS}


class Late(Writer):
    """Answers its second message, which was sent before the leader's death, only once the leader is dead."""

    def __init__(self, is_dead: Callable[[], bool], acknowledged: list[float]) -> None:
        self._is_dead, self._acknowledged = is_dead, acknowledged

    async def open(self) -> None:
        pass

    async def put(self, text: str) -> None:
        await asyncio.sleep(0)
        if len(self._acknowledged) == 1:
            while not self._is_dead():
                await asyncio.sleep(0)
        self._acknowledged.append(time.perf_counter())

    async def close(self) -> None:
        pass


def test_an_outage_ends_with_a_message_that_was_sent_after_the_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    acknowledged: list[float] = []
    signals: list[tuple[int, int]] = []
    monkeypatch.setattr(engines, "PROBES", 1)
    monkeypatch.setattr(engines, "ATTEMPT_S", 60.0)
    monkeypatch.setattr(os, "killpg", lambda pid, how: signals.append((pid, how)))
    system = SimpleNamespace(
        processes={3: SimpleNamespace(pid=77)}, writer=lambda node: Late(lambda: bool(signals), acknowledged)
    )
    outage = asyncio.run(engines._outage(system, 3, signal.SIGKILL))  # type: ignore[arg-type]
    assert signals == [(77, signal.SIGKILL)]
    assert outage >= acknowledged[2] - acknowledged[1] > 0


def test_the_table_has_a_row_for_each_system() -> None:
    rate = Figure("nats@2.12.1", engines.MANY, "messages/s", "more", "", (100.0, 300.0, 200.0))
    text = table.render(Bench("2024-10-21T12:34:56", False, {}, (rate,), {"nats@2.12.1": "nothing", "etcd@3.5.1": "x"}))
    assert "nats@2.12.1  nothing" in text and "100 .. 300" in text
    assert text.splitlines()[-1].split()[-2:] == ["x", "-"]
