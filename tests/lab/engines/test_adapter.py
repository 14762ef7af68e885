"""The adapter over an engine in one file: the lab's checks pass, and fail when that engine forgets."""

from __future__ import annotations

import asyncio
import gc
import json
import random
from collections.abc import AsyncGenerator, Sequence
from pathlib import Path
from typing import Any

import pytest

from lab.check.invariants import check
from lab.check.metrics import measure
from lab.check.verdict import Verdict
from lab.engines import adapter
from lab.engines.catalogue import hosts_of
from lab.engines.engine import Engine, EngineStatus, Entry, Place, Refused, Unknown
from lab.engines.messagelog import ForeignRecord, MessageLog, Record
from lab.engines.port import Known, Port
from lab.engines.tunnels import Tunnel, Tunnels, _dial
from lab.live import live
from lab.live.cluster import ADAPTER_FILES, EVIDENCE
from lab.live.machine import LiveFiles
from lab.live.processes import HeldPort
from lab.places import ROOT
from lab.plan import scenario as plan
from lab.plan.scenario import Scenario
from lab.rundir import RunDir
from nodeproc.errors import ConfigError
from nodeproc.lines import session_of
from tests.lab.inloop import in_loop
from tests.lab.patient import patient
from tests.lab.supervisable import needs_supervisor

HOST = "127.0.0.1"
TOKEN = "0123456789abcdef"
SESSION = session_of(TOKEN)

STORY = """
name: {name}
description: A node is killed under load and started again.
cluster:
  command: "{{python}} -m tests.lab.engines.shelf {{config}} {words}"
  directory: "{root}"
  disks: {disks}
load: {{clients: 3, in_flight: 4, via: all}}
steps:
"""
KILLED = """
  - load: start
  - wait: {{for: acknowledged, count: 100}}
  - kill: {node}
  - wait: {{for: acknowledged, count: 100}}
  - load: stop
  - wait: idle
  - start: {node}
  - wait: leader
"""


def judged(
    directory: Path, name: str, node: int, words: str = "", story: str = KILLED, disks: str = "layered"
) -> tuple[RunDir, Verdict]:
    path = directory / f"{name}.yml"
    path.write_text((STORY + story).format(name=name, node=node, words=words, root=ROOT, disks=disks))
    run = RunDir.create(directory, name, "stamp")
    live.run(patient(plan.load(path)), run, seed=7, progress=lambda _: None)
    return run, check(run, measure(run))


def test_an_engine_that_keeps_its_promise_passes_all_checks(tmp_path: Path) -> None:
    run, verdict = judged(tmp_path, "kept", 2)
    assert verdict.exit_code == 0, verdict
    assert {each.result for each in verdict.checks} == {"PASS"}
    events = [json.loads(line) for line in run.events(2).read_bytes().splitlines()]
    names = [event["event"] for event in events]
    assert names.count("loaded") == 2
    assert names[:3] == ["loaded", "sequence_set", "new_coordinator"]  # The log is known before a leader is.


def test_an_engine_that_forgets_is_convicted(tmp_path: Path) -> None:
    _, verdict = judged(tmp_path, "forgotten", 2, "forgets")
    assert verdict.exit_code == 1
    failed = {each.name: each for each in verdict.checks if each.result == "FAIL"}
    assert "A4" in failed and "acknowledged" in failed["A4"].detail


# ---- the message log ------------------------------------------------------------------------------


def entry(session: str, last: int, *payloads: str, term: int = 1) -> Entry:
    return Entry(session, last, Record(101, term, 1.5, payloads).text())


@in_loop
async def test_the_log_holds_the_records_in_the_order_of_the_store(tmp_path: Path) -> None:
    log = MessageLog(tmp_path / "log")
    await log.begin([entry("s", 2, "a", "b", term=3)])
    await log.add([entry("t", 1, "c", term=2)])
    rows = [json.loads(line) for line in (tmp_path / "log").read_bytes().splitlines()]
    assert [(row["seq_no"], row["term"], row["msg_id"], row["payload"]) for row in rows] == [
        (1, 3, "s-1", "a"),
        (2, 3, "s-2", "b"),
        (3, 3, "t-1", "c"),  # a term in the log never falls
    ]
    assert list(rows[0]) == ["seq_no", "term", "sender_id", "msg_id", "timestamp", "payload"]
    assert b"".join(log.lines) == (tmp_path / "log").read_bytes()


@in_loop
async def test_a_store_that_was_cut_back_cuts_the_log_back(tmp_path: Path) -> None:
    log = MessageLog(tmp_path / "log")
    await log.begin([entry("s", 1, "a"), entry("s", 2, "b")])
    await log.begin([entry("s", 1, "a")])
    assert len((tmp_path / "log").read_bytes().splitlines()) == len(log.lines) == 1
    assert log.seq_nos == {"s-1": 1}


@in_loop
async def test_an_equal_log_is_not_written_again(tmp_path: Path) -> None:
    log = MessageLog(tmp_path / "log")
    await log.begin([entry("s", 1, "a")])
    before = (tmp_path / "log").stat().st_mtime_ns
    await log.begin([entry("s", 1, "a")])
    assert (tmp_path / "log").stat().st_mtime_ns == before


@in_loop
async def test_a_record_that_no_adapter_wrote_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ForeignRecord, match="the store holds 'x'"):
        await MessageLog(tmp_path / "log").begin([Entry("s", 1, "x")])


# ---- the port -------------------------------------------------------------------------------------


class Scripted(Engine):
    """An engine whose answers to append() are given; what it takes appears in the log at once."""

    def __init__(self, place: Place, log: MessageLog, answers: Sequence[int | Exception]) -> None:
        super().__init__(place, "", {})
        self.log, self.answers, self.asked = log, list(answers), list[tuple[int, int]]()

    def command(self) -> Sequence[str]:
        return ["true"]

    async def ready(self) -> bool:
        return True

    async def status(self) -> EngineStatus:
        return EngineStatus(1, 1)

    async def append(self, session: str, first: int, last: int, value: str) -> int:
        self.asked.append((first, last))
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        if answer >= last:
            await self.log.add([Entry(session, last, value)])
        return answer

    async def tail(self) -> AsyncGenerator[Sequence[Entry], None]:
        yield ()


class Once(Scripted):
    """Such an engine without conditions for its records."""

    resends = False


class Client:
    """One connection to a port in this process."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    def send(self, **line: object) -> None:
        self.writer.write(json.dumps(line, separators=(",", ":")).encode() + b"\n")

    async def read(self) -> dict[str, object]:
        found: dict[str, object] = json.loads(await self.reader.readline())
        return found

    async def hello(self, born: int | None = None) -> dict[str, object]:
        self.send(type="HELLO", client_id=101, session_token=TOKEN, born=born)
        return await self.read()


def reach(node: int, port: int) -> tuple[str, int]:
    return HOST, port


async def opened(directory: Path, kind: type[Scripted], answers: Sequence[int | Exception]) -> tuple[Port, Scripted]:
    """A port that listens in this process, and its engine."""
    place = Place(1, (1, 2, 3), {1: HOST}, directory, directory, 100, 500, reach)
    log = MessageLog(directory / "log")
    engine = kind(place, log, answers)
    port = Port(engine, log, lambda: True)
    port.show(Known(1, 1))
    return port, engine


async def client_of(port: Port) -> Client:
    server = await port.listen(HOST, 0)
    return Client(*await asyncio.open_connection(*server.sockets[0].getsockname()))


@in_loop
async def test_a_message_is_acknowledged_once_the_store_has_it(tmp_path: Path) -> None:
    port, _ = await opened(tmp_path, Scripted, [2])
    client = await client_of(port)
    assert (await client.hello())["acknowledged"] == 0
    client.send(type="CHAT", first=1, payloads=["a", "b"])
    assert await client.read() == {"type": "ACK", "session": SESSION, "n": 2, "seq_no": 2}
    again = await client_of(port)
    assert (await again.hello(0))["acknowledged"] == 2


@in_loop
async def test_lines_that_wait_are_stored_as_one_record(tmp_path: Path) -> None:
    port, engine = await opened(tmp_path, Scripted, [1, 3, 4])
    client = await client_of(port)
    await client.hello()
    async with engine.log.grown:  # the first record cannot end before the others have arrived
        client.send(type="CHAT", first=1, payloads=["x"])
        while not engine.asked:
            await asyncio.sleep(0)
        for n in (2, 3, 3, 4):
            client.send(type="CHAT", first=n, payloads=["x"])
        client.send(type="STATUS")
        assert (await client.read())["type"] == "STATUS_IS"
    assert [(await client.read())["n"] for _ in range(3)] == [1, 3, 4]
    assert engine.asked == [(1, 1), (2, 3), (4, 4)]


@in_loop
async def test_a_refusal_asks_the_client_to_send_again(tmp_path: Path) -> None:
    port, engine = await opened(tmp_path, Scripted, [Refused(), 1])
    client = await client_of(port)
    await client.hello()
    client.send(type="CHAT", first=1, payloads=["a"])
    answer = await client.read()
    assert (answer["type"], answer["reason"], answer["retry"]) == ("REJECT", "no_leader", True)
    client.send(type="CHAT", first=1, payloads=["a"])
    assert (await client.read())["type"] == "ACK"
    assert engine.asked == [(1, 1), (1, 1)]


@in_loop
async def test_an_unknown_outcome_is_asked_for_again(tmp_path: Path) -> None:
    port, engine = await opened(tmp_path, Scripted, [Unknown(), 1])
    client = await client_of(port)
    await client.hello()
    client.send(type="CHAT", first=1, payloads=["a"])
    assert (await client.read())["type"] == "ACK"
    assert engine.asked == [(1, 1), (1, 1)]


@in_loop
async def test_messages_that_the_engine_has_already_are_not_stored_again(tmp_path: Path) -> None:
    port, engine = await opened(tmp_path, Scripted, [1, 3])
    await engine.log.add([entry(SESSION, 1, "a")])
    client = await client_of(port)
    await client.hello(0)
    client.send(type="CHAT", first=1, payloads=["a", "b", "c"])
    assert (await client.read())["n"] == 3
    assert engine.asked == [(1, 3), (2, 3)]


@in_loop
async def test_a_gap_names_the_expected_message(tmp_path: Path) -> None:
    port, _ = await opened(tmp_path, Scripted, [4])
    client = await client_of(port)
    await client.hello(0)
    client.send(type="CHAT", first=7, payloads=["g"])
    answer = await client.read()
    assert (answer["reason"], answer["retry"], answer["expected"]) == ("gap", True, 5)


@in_loop
async def test_a_session_that_the_engine_has_forgotten_expires(tmp_path: Path) -> None:
    port, _ = await opened(tmp_path, Scripted, [0, 0])
    client = await client_of(port)
    await client.hello(0)
    client.send(type="CHAT", first=7, payloads=["g"])
    assert (await client.read())["reason"] == "gap"
    client.send(type="CHAT", first=7, payloads=["g"])  # it has nothing unacknowledged before
    answer = await client.read()
    assert (answer["reason"], answer["retry"], answer["first"]) == ("expired", False, 7)


@in_loop
async def test_a_gap_behind_a_refusal_is_only_a_gap(tmp_path: Path) -> None:
    port, _ = await opened(tmp_path, Scripted, [Refused(), 0, Refused(), 0])
    client = await client_of(port)
    await client.hello()
    for first in (1, 2, 1, 2):
        client.send(type="CHAT", first=first, payloads=["x"])
        assert (await client.read())["reason"] == ("no_leader" if first == 1 else "gap")


@in_loop
async def test_without_conditions_an_unknown_outcome_ends_the_session(tmp_path: Path) -> None:
    port, engine = await opened(tmp_path, Once, [1, Unknown()])
    client = await client_of(port)
    await client.hello()
    client.send(type="CHAT", first=1, payloads=["a"])
    assert (await client.read())["n"] == 1
    client.send(type="CHAT", first=2, payloads=["b"])
    answer = await client.read()
    assert (answer["reason"], answer["retry"], answer["first"]) == ("expired", False, 3)  # 2 may be stored
    client.send(type="CHAT", first=2, payloads=["b"])
    assert (await client.read())["reason"] == "expired"
    assert engine.asked == [(1, 1), (2, 2)]


@in_loop
async def test_without_conditions_a_session_cannot_come_from_another_node(tmp_path: Path) -> None:
    port, engine = await opened(tmp_path, Once, [])
    client = await client_of(port)
    await client.hello(born=0)
    client.send(type="CHAT", first=1, payloads=["a"])
    answer = await client.read()
    assert (answer["reason"], answer["retry"]) == ("expired", False)
    assert engine.asked == []


@in_loop
async def test_a_subscriber_gets_the_lines_of_the_log(tmp_path: Path) -> None:
    port, engine = await opened(tmp_path, Scripted, [])
    await engine.log.begin([entry("s", 2, "a", "b")])
    client = await client_of(port)
    client.send(type="SUBSCRIBE", **{"from": 2})
    assert await client.reader.readline() == engine.log.lines[1]
    await engine.log.add([entry("s", 3, "c")])
    assert await client.reader.readline() == engine.log.lines[2]


@in_loop
async def test_a_line_that_is_not_of_the_protocol_is_named(tmp_path: Path) -> None:
    port, _ = await opened(tmp_path, Scripted, [])
    client = await client_of(port)
    client.send(type="CHAT", first=1, payloads=["a"])
    assert await client.read() == {"type": "ERROR", "reason": "a Chat line is not allowed here"}
    assert await client.reader.read() == b""


# ---- links ----------------------------------------------------------------------------------------


@in_loop
async def test_engines_reach_each_other_through_their_adapters(tmp_path: Path) -> None:
    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        data = await reader.read()  # up to the end of input
        gc.collect()  # The other direction alone must keep the tunnel.
        writer.write(data)
        writer.close()

    engine = await asyncio.start_server(echo, HOST, 0)
    port, _ = await opened(tmp_path, Scripted, [])
    adapter = await port.listen(HOST, 0)
    far = adapter.sockets[0].getsockname()
    near, held = engine.sockets[0].getsockname()[1], HeldPort()
    tunnels = Tunnels({1: "127.64.0.1", 2: "127.64.0.2"}, {2: far}, {(2, near): held.port})
    await tunnels.listen()
    way = tunnels.reach(2, near)
    data = random.Random(7).randbytes(300_000)
    reader, writer = await asyncio.open_connection(*way)
    writer.write(data)
    writer.write_eof()
    assert await reader.read() == data
    assert way == (HOST, held.port)
    assert tunnels.reach(1, near) == ("127.64.0.1", near)
    held.release()


@pytest.mark.parametrize("line", [b'{"type":"HELLO","client_id":1}\n', b"\x00\x01", b""])
def test_other_lines_are_no_tunnels(line: bytes) -> None:
    assert Tunnel.of(line) is None
    assert Tunnel.of(Tunnel(2380).line()) == Tunnel(2380)


def test_clusters_have_networks_of_their_own() -> None:
    hosts = [hosts_of(f"scenario {number}", (1, 2)) for number in range(100)]
    assert len({each[1] for each in hosts}) > 90
    for each in hosts:
        first, second, _, node = each[1].split(".")
        assert (first, node) == ("127", "1") and 64 <= int(second) < 128


# ---- under a supervisor ---------------------------------------------------------------------------


def scenario_of(cluster: str, step: str = "send: {client: 1, messages: 1}") -> Scenario:
    return plan.load("x.yml", text=f"name: x\ndescription: x\ncluster: {{{cluster}}}\nsteps: [{{{step}}}]")


@pytest.mark.parametrize(
    ("cluster", "step", "disks"),
    [
        ("engine: etcd@3.5.1", "kill: 1", "direct"),
        ("engine: etcd@3.5.1, disks: supervised", "rebuild: 1", "supervised"),
        ("engine: etcd@3.5.1, disks: supervised", "disk: {on: 1, lose: all}", "supervised"),
        ("engine: etcd@3.5.1, disks: supervised", "power_loss: 1", "supervised"),
        ("engine: etcd@3.5.1, disks: supervised", "disk: {on: 1, failing: sync}", "supervised"),
        ("engine: etcd@3.5.1", "partition: isolate", "supervised"),  # the supervisor redirects connections
        ("command: 'x {port}'", "partition: isolate", "direct"),
        ("nodes: 3", "power_loss: 1", "layered"),
    ],
)
def test_faults_of_disks_and_links_of_an_engine_need_a_supervisor(cluster: str, step: str, disks: str) -> None:
    planned = scenario_of(cluster, step)
    assert (planned.disks, planned.layered) == (disks, disks == "layered")


def test_tails_of_a_power_loss_are_for_those_whose_log_the_lab_can_read_or_for_others() -> None:
    assert scenario_of("engine: etcd@3.5.1, disks: supervised", "power_loss: {target: all, tail: none}")
    with pytest.raises(ConfigError, match="is for the lab's own nodes"):
        scenario_of("engine: etcd@3.5.1, disks: supervised", "power_loss: {target: all, tail: torn}")
    with pytest.raises(ConfigError, match="is for the lab's own nodes"):
        scenario_of("engine: etcd@3.5.1, disks: supervised", "disk: {on: 1, lose: wal}")
    with pytest.raises(ConfigError, match=r"needs `cluster: \{disks: supervised\}`"):
        scenario_of("engine: etcd@3.5.1", "rebuild: 1")
    with pytest.raises(ConfigError, match="none is for other programs"):
        scenario_of("nodes: 3", "power_loss: {target: all, tail: none}")


POWER = """
  - load: start
  - wait: {{for: acknowledged, count: 100}}
  - power_loss: {{target: {node}, tail: none}}
  - load: stop
  - start: {node}
  - wait: leader
"""


REBUILD = """
  - load: start
  - wait: {{for: acknowledged, count: 100}}
  - rebuild: {node}
  - disk: {{on: 1, lose: all}}
  - start: 1
  - load: stop
  - wait: idle
"""


def test_a_program_that_has_lost_its_disk_starts_again_with_nothing(tmp_path: Path) -> None:
    needs_supervisor()
    run, verdict = judged(tmp_path, "lost", 2, story=REBUILD, disks="supervised")
    assert verdict.exit_code == 0, verdict
    rows = {row.fault: row.evidence for row in run.read_faults() if row.effect}
    assert rows["rebuild"]["lost_bytes"] > 0 and rows["disk"]["emptied"].endswith(" bytes")
    for node in (1, 2):
        events = [json.loads(line)["event"] for line in run.events(node).read_bytes().splitlines()]
        assert events.count("loaded") == 2  # What the node said before is evidence, and stays.


def test_the_disk_of_an_engine_is_all_but_what_its_adapter_writes(tmp_path: Path) -> None:
    for name in ("engine/wal/1", "conf/x.conf", "logs/node_1_messages.jsonl", "engine.log", "events.jsonl", "node.log"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("12345")
    assert LiveFiles(tmp_path, None, (*EVIDENCE, *ADAPTER_FILES)).wipe() == 5
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "conf",
        "engine.log",
        "events.jsonl",
        "logs",
        "node.log",
    ]


def test_a_power_loss_takes_the_log_that_a_program_has_not_synced_and_the_store_gives_it_back(tmp_path: Path) -> None:
    needs_supervisor()
    run, verdict = judged(tmp_path, "power", 2, story=POWER, disks="supervised")
    assert verdict.exit_code == 0, verdict
    (loss,) = [row for row in run.read_faults() if row.fault == "power_loss"]
    assert loss.effect and any("messages.jsonl" in name for name in loss.evidence["names"])
    assert run.read_meta().disks == "supervised"


def test_a_closed_port_of_an_engine_is_dialled_again(monkeypatch: pytest.MonkeyPatch) -> None:
    opened: Any = object()
    answers = [ConnectionRefusedError(), ConnectionRefusedError(), opened]

    async def dial(host: str, port: int) -> object:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    @in_loop
    async def run() -> None:
        monkeypatch.setattr(asyncio, "open_connection", dial)
        assert await _dial(("127.0.0.1", 2888), 60.0) is opened
        answers.append(ConnectionRefusedError())
        with pytest.raises(ConnectionRefusedError):
            await _dial(("127.0.0.1", 2888), 0.0)

    run()


class Stuck(Scripted):
    """An engine whose connections never close."""

    read_when_stopped = True

    async def close(self) -> None:
        await asyncio.Event().wait()


class Process:
    """Stands for the engine's process."""

    is_ended = False

    def terminate(self) -> None:
        self.is_ended = True

    async def wait(self) -> int:
        return 0


@in_loop
async def test_an_engine_is_stopped_although_its_connections_do_not_close(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adapter, "CLOSE_PATIENCE_S", 0.01)
    monkeypatch.setattr(adapter, "READ_PATIENCE_S", 0.01)
    folder, log = str(tmp_path), str(tmp_path / "log")
    config = adapter.Config(1, "127.0.0.1", 0, (), folder, log, str(tmp_path / "events"), "c", 100, 500)
    place, tunnels = adapter.place_of(config)
    process: Any = Process()
    await adapter.Adapter(config, Stuck(place, MessageLog(tmp_path / "log"), ()), tunnels)._end(process)
    assert process.is_ended
