"""`cluster.command`: programs of somebody else's as nodes. The example passes while nothing happens, and is caught."""

from __future__ import annotations

import ast
import asyncio
import random
import signal
import sys
from pathlib import Path

import msgspec
import psutil
import pytest

from lab.check.invariants import check
from lab.check.metrics import measure
from lab.check.verdict import Verdict
from lab.course.machine import MachineDisk
from lab.live import live
from lab.live.machine import LiveFiles
from lab.live.processes import HeldPort, Lifeline, NodeProcess, Program
from lab.live.proxy import Break, Broken, Count, Evidence, Open, Opened, Proxy, SetRule
from lab.places import ROOT
from lab.plan import scenario as plan
from lab.plan.command import PLACEHOLDERS, filled, split_command
from lab.rows import Sample
from lab.rundir import RunDir
from lab.steps.machine import RunFailed
from lab.steps.rules import Rule
from nodeproc.client import status
from nodeproc.errors import Unreachable
from nodeproc.lines import Status
from tests import TOO_LONG_S
from tests.lab.harness import LAST_STEP, harness_in_the_middle
from tests.lab.inloop import in_loop
from tests.lab.patient import patient

EXAMPLE = ROOT / "examples" / "simple_log"
HOST = "127.0.0.1"


def judged(directory: Path, path: Path) -> tuple[RunDir, Verdict]:
    """A live run of a scenario file, and its verdict."""
    planned = plan.load(path)
    run = RunDir.create(directory, planned.name, "stamp")
    live.run(patient(planned), run, seed=7, progress=lambda _: None)
    return run, check(run, measure(run))


def results(verdict: Verdict) -> dict[str, str]:
    return {each.name: each.result for each in verdict.checks}


# ---- the example ----------------------------------------------------------------------------------


def test_the_example_is_short_and_needs_nothing() -> None:
    source = (EXAMPLE / "node.py").read_text()
    assert len(source.splitlines()) < 150
    imported = [name for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Import) for name in node.names]
    imported_from = [node.module for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ImportFrom)]
    assert {each.name for each in imported} | set(imported_from) <= sys.stdlib_module_names


@pytest.mark.parametrize("name", ["calm", "follower_restarted"])
def test_the_example_passes_what_it_was_written_for(tmp_path: Path, name: str) -> None:
    run, verdict = judged(tmp_path, EXAMPLE / f"{name}.yml")
    assert verdict.exit_code == 0, verdict
    found = results(verdict)
    assert found.pop("A7") == "UNKNOWN"  # it writes no events, and need not
    assert set(found.values()) == {"PASS"}
    meta = run.read_meta()
    assert (meta.links, meta.cluster["command"]) == ("direct", ["python3", "node.py", "{config}"])
    assert all(use.cpu_s > 0 and use.rss_peak_bytes > 1 << 20 for use in meta.nodes.values())


ONCE = f"""
name: once
description: A program that starts only once.
cluster:
  command: sh -c 'mkdir {{data_dir}}/once && exec python3 node.py {{config}}'
  directory: {EXAMPLE}
bounds: {{recovery: 1s, convergence: 1s}}
steps:
  - kill: 1
  - start: killed
"""


def test_a_node_that_does_not_start_again_is_a_finding(tmp_path: Path) -> None:
    path = tmp_path / "once.yml"
    path.write_text(ONCE)
    _, verdict = judged(tmp_path, path)
    assert verdict.exit_code == 1
    health = next(each for each in verdict.checks if each.name == "A10")
    assert health.result == "FAIL" and "node 1 ended by itself with code 1" in health.detail
    faults = next(each for each in verdict.checks if each.name == "faults")
    assert "start of node 1 had no effect" in faults.detail and "it ended again at once" in faults.detail


def test_the_example_is_caught_when_its_leader_is_killed(tmp_path: Path) -> None:
    _, verdict = judged(tmp_path, EXAMPLE / "leader_killed.yml")
    assert verdict.exit_code == 1
    durability = next(each for each in verdict.checks if each.name == "A4")
    assert durability.result == "FAIL" and "was acknowledged" in durability.detail
    assert results(verdict)["A10"] == results(verdict)["faults"] == "PASS"


def test_the_example_is_caught_when_its_leader_is_cut_off(tmp_path: Path) -> None:
    run, verdict = judged(tmp_path, EXAMPLE / "leader_cut_off.yml")
    assert verdict.exit_code == 1
    found = results(verdict)
    assert found["A1"] == found["A4"] == "FAIL"
    assert found["faults"] == "PASS" and run.read_meta().links == "proxied"
    assert any(row.fault == "link" and row.evidence["delayed"] for row in run.read_faults())


# ---- what is written down -------------------------------------------------------------------------


def test_the_tutorial_names_every_placeholder_and_every_scenario_of_the_example() -> None:
    tutorial = (ROOT / "docs" / "bring_your_own_node.md").read_text()
    assert [word for word in PLACEHOLDERS if f"`{{{word}}}`" not in tutorial] == []
    assert [path.stem for path in EXAMPLE.glob("*.yml") if path.stem not in tutorial] == []


def test_a_command_is_split_and_filled() -> None:
    command = split_command("node 'two words' --at={host}:{port} {id}")
    assert command == ("node", "two words", "--at={host}:{port}", "{id}")
    values = dict.fromkeys(PLACEHOLDERS, "?") | {"host": HOST, "port": "5001", "id": "{port}"}
    assert filled(command, values) == ("node", "two words", "--at=127.0.0.1:5001", "{port}")
    assert split_command(("a", '{"port": {port}}'))[1] == '{"port": {port}}'


@pytest.mark.parametrize(
    ("cluster", "words"),
    [
        ("command: ''", "cluster.command: is empty"),
        ("command: []", "cluster.command: is empty"),
        ("command: 'node \"x {port}'", "cluster.command: No closing quotation"),
        ("command: [node, '{prot}']", "cluster.command: found {prot}, allowed {config}, {id}, {host}, {port}"),
        ("command: node {id}", "names neither {config} nor {port}"),
        ("directory: x", "cluster.directory: is the directory of command, and there is no command"),
    ],
)
def test_a_command_that_makes_no_sense_is_refused(cluster: str, words: str) -> None:
    with pytest.raises(Exception, match="cluster") as caught:
        plan.load("own.yml", text=f"name: own\ndescription: d\nsteps: [sleep: 1s]\ncluster:\n  {cluster}\n")
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("step", "words"),
    [
        ("{link: {frames: [APPEND], delay: 5ms}}", "steps[0].link.frames: the frames of nodes that cluster.command"),
        ("{link: {loss: 0.5}}", "steps[0].link.loss: is for links that carry frames"),
        ("{power_loss: leader}", "steps[0].power_loss: needs `cluster: {disks: supervised}`"),
        ("{disk: {on: 1, full: true}}", "steps[0].disk: needs `cluster: {disks: supervised}`"),
        ("{cut: {frames: [APPEND]}}", "steps[0].cut.frames: the frames of nodes"),
        ("{disk: {on: 1, rot: data}}", "steps[0].disk: needs `cluster: {disks: supervised}`"),
        ("{disk: {on: 1, restore: true}}", "steps[0].disk: needs `cluster: {disks: supervised}`"),
        ("{disk: {on: 1, rot: wal}}", "steps[0].disk: is for the lab's own nodes"),
        ("{disk: {on: 1, lose: messages}}", "steps[0].disk: is for the lab's own nodes"),
    ],
)
def test_what_can_t_be_done_to_unknown_nodes_is_refused(step: str, words: str) -> None:
    text = f"name: own\ndescription: d\nsteps: [{step}]\ncluster: {{command: 'node {{port}}'}}\n"
    with pytest.raises(Exception, match="steps") as caught:
        plan.load("own.yml", text=text)
    assert words in str(caught.value)


def test_paths_of_a_command_are_relative_to_the_scenario_and_stay_so_when_it_is_written_down(tmp_path: Path) -> None:
    text = "name: own\ndescription: d\nsteps: [sleep: 1s]\ncluster: {command: './node {port}', directory: bin}\n"
    read = plan.load(tmp_path / "stories" / "own.yml", text=text)
    assert read.cluster.directory == str(tmp_path / "stories" / "bin")
    assert plan.load("elsewhere.yml", text=plan.encode(read)) == read
    assert read.sim_refusals() == ["cluster.command: a program has no virtual time to run in"]


class OtherDisk(MachineDisk):
    """The disk of another program, which has one file that the lab leaves alone."""

    def __init__(self, root: Path) -> None:
        super().__init__(1)
        for name, data in (("data/a/1.blk", b"one\0\0"), ("data/2.blk", b"\0"), ("logs/messages", b"x")):
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_bytes(data)
        self._files = LiveFiles(root, None, ("logs/",))

    @property
    def files(self) -> LiveFiles:
        return self._files


def test_a_bit_of_another_program_s_data_rots(tmp_path: Path) -> None:
    disk, before = OtherDisk(tmp_path), b"one\0\0"
    rot = disk.rot("data", random.Random(1))
    assert rot is not None and rot.name == "data/a/1.blk" and rot.at < len("one")  # Zeros at the end are not data yet.
    after = (tmp_path / rot.name).read_bytes()
    assert [(one ^ other).bit_count() for one, other in zip(before, after, strict=True)].count(1) == 1
    assert disk.rot("data", random.Random(1), "*/a/*.blk") is not None
    assert disk.rot("data", random.Random(1), "data/2.blk") is disk.rot("data", random.Random(1), "*.wal") is None


def test_another_program_s_data_are_copied_and_restored(tmp_path: Path) -> None:
    disk = OtherDisk(tmp_path)
    assert disk.take_copy() == 6
    (tmp_path / "data/a/1.blk").write_bytes(b"later")
    (tmp_path / "data/3.blk").write_bytes(b"new")
    assert disk.restore() == "6 bytes instead of 9"
    names = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file())
    assert names == ["data/2.blk", "data/a/1.blk", "logs/messages"]
    assert (tmp_path / "data/a/1.blk").read_bytes() == b"one\0\0" and disk.restore() == ""


# ---- processes --------------------------------------------------------------------------------------

SPEAKER = """
import json, os, socket, sys
port, said = int(sys.argv[1]), json.loads(sys.argv[2])
print(os.getcwd(), os.environ.get("PYTHONPATH", "no path"), flush=True)
with socket.create_server(("127.0.0.1", port)) as server:
    while True:
        client, _ = server.accept()
        with client, client.makefile("rwb") as lines:
            lines.readline()
            lines.write(json.dumps(said).encode() + b"\\n")
"""
STATUS = {"type": "STATUS_IS", "node": 1, "role": "leader", "term": 1, "leader": 1}
STATUS |= {"last_seq": 0, "commit_seq": 0, "delivered_seq": 0}


class OwnNode:
    """One such program as a node, and everything it needs; everything goes when the test leaves it."""

    def __init__(self, directory: Path, said: object = STATUS, *, command: tuple[str, ...] = ()) -> None:
        (directory / "speaker.py").write_text(SPEAKER)
        self.held, self.lifeline, self.log = HeldPort(), Lifeline(), directory / "node.log"
        words = command or (sys.executable, "speaker.py", str(self.held.port), msgspec.json.encode(said).decode())
        program = Program(tuple(word.replace("PORT", str(self.held.port)) for word in words), str(directory))
        self.node = NodeProcess(1, self.held.port, directory / "none", self.log, self.lifeline.fd, program=program)

    def __enter__(self) -> OwnNode:
        return self

    def __exit__(self, *_: object) -> None:
        self.node.kill_now()
        self.held.release()


@in_loop
async def test_a_program_keeps_its_environment_its_directory_and_its_process_id(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PYTHONPATH", raising=False)
    with OwnNode(tmp_path) as own:
        own.node.start()
        await own.node.ready()
        assert own.log.read_text() == f"{tmp_path} no path\n"
        assert psutil.Process(own.node.pid).cmdline()[1] == "speaker.py"
        assert psutil.Process(own.node.pid).children() == []
        end = await own.node.end(signal.SIGTERM)
        assert end is not None and end.code == -signal.SIGTERM


@in_loop
async def test_signals_reach_what_a_wrapper_has_started(tmp_path: Path) -> None:
    said = msgspec.json.encode(STATUS).decode()
    wrapper = ("sh", "-c", f"{sys.executable} speaker.py PORT '{said}'; true")
    with OwnNode(tmp_path, command=wrapper) as own:
        own.node.start()
        await own.node.ready()
        (below,) = psutil.Process(own.node.pid).children()
        await own.node.pause()
        while below.status() != psutil.STATUS_STOPPED:
            await asyncio.sleep(0)
        own.node.wake()
        await own.node.ready()
        await own.node.end(signal.SIGKILL)
        _, left = psutil.wait_procs([below], timeout=TOO_LONG_S)
        assert left == []


@in_loop
async def test_the_figures_of_a_program_are_those_of_its_whole_group(tmp_path: Path) -> None:
    said = msgspec.json.encode(STATUS).decode()
    busy = "t = __import__('time').process_time\nwhile t() < 0.2: pass\n__import__('signal').pause()"
    wrapper = ("sh", "-c", f"{sys.executable} -c \"{busy}\" & exec {sys.executable} speaker.py PORT '{said}'")
    with OwnNode(tmp_path, command=wrapper) as own:
        samples: list[Sample] = []
        own.node.on_sample = samples.append
        own.node.start()
        await own.node.ready()
        own.node.sample()
        while samples[-1].cpu_s < 0.2:
            await asyncio.sleep(0)
            own.node.sample()
        (below,) = psutil.Process(own.node.pid).children()
        assert samples[-1].rss_bytes > below.memory_info().rss  # the speaker's besides
        await own.node.end(signal.SIGKILL)  # nobody waits for the child, which the kernel's figures leave out
        assert own.node.use().cpu_s >= 0.2


@in_loop
async def test_a_program_and_what_it_started_end_when_the_lifeline_is_cut(tmp_path: Path) -> None:
    said = msgspec.json.encode(STATUS).decode()
    with OwnNode(tmp_path, command=("sh", "-c", f"{sys.executable} speaker.py PORT '{said}'; true")) as own:
        own.node.start()
        await own.node.ready()
        below = psutil.Process(own.node.pid).children()
        own.lifeline.cut()
        while own.node.running:
            await asyncio.sleep(0)
        _, left = psutil.wait_procs(below, timeout=TOO_LONG_S)
        assert len(below) == 1 and left == []


@in_loop
async def test_a_program_that_is_not_there_is_told(tmp_path: Path) -> None:
    with OwnNode(tmp_path, command=("./no_such_program",)) as own:
        own.node.start()
        with pytest.raises(
            RunFailed, match=r"ended with exit code 127: can't start ./no_such_program in .*No such file"
        ):
            await own.node.ready()


@in_loop
async def test_an_answer_that_is_no_status_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def ask(host: str, port: int, **more: str) -> Status:
        """As `status`, but the first answer that is none ends the wait."""
        try:
            return await status(host, port, client_token=more["client_token"])
        except Unreachable as error:
            if "missing" in str(error):
                monkeypatch.setattr("lab.live.processes.READY_PATIENCE_S", 0.0)
            raise

    monkeypatch.setattr("lab.live.processes.status", ask)
    with OwnNode(tmp_path, {"type": "STATUS_IS", "node": 1}) as own:
        own.node.start()
        with pytest.raises(RunFailed, match="missing required field `role`"):
            await own.node.ready()


def test_a_killed_harness_leaves_no_program_of_somebody_else_s(tmp_path: Path) -> None:
    cluster = f"cluster: {{command: \"sh -c 'python3 node.py {{config}}; true'\", directory: {EXAMPLE}}}\n"
    with harness_in_the_middle(tmp_path, f"{cluster}steps: [{LAST_STEP}]\n", 6) as (harness, below):
        harness.kill()  # Below it are three shells and three programs.
        _, left = psutil.wait_procs(below, timeout=TOO_LONG_S)
        assert left == []


# ---- links of which only bytes are known -------------------------------------------------------------


class Ends:
    """A proxy of nodes 1 and 2 in this process, which talk bytes, and connections that node 1 opens to node 2."""

    async def open(self) -> None:
        self.proxy = Proxy()
        self.arrived: asyncio.Queue[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = asyncio.Queue()

        async def take(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await self.arrived.put((reader, writer))

        self.server = await asyncio.start_server(take, HOST, 0)
        port = self.server.sockets[0].getsockname()[1]
        opened = await self.proxy.obey(Open(HOST, {1: 1, 2: port}, seed=7, frames=False))
        assert isinstance(opened, Opened)
        self.port = next(port for sender, receiver, port in opened.ports if (sender, receiver) == (1, 2))

    async def connect(self) -> None:
        self.reader, self.writer = await asyncio.open_connection(HOST, self.port)
        self.far_reader, self.far_writer = await self.arrived.get()

    async def delayed(self) -> dict[tuple[int, int], int]:
        evidence = await self.proxy.obey(Count())
        assert isinstance(evidence, Evidence)
        return {(link.sender, link.receiver): link.counts.delayed for link in evidence.links}


@in_loop
async def test_a_one_way_cut_of_bytes_holds_one_direction_until_it_is_healed() -> None:
    ends = Ends()
    await ends.open()
    await ends.connect()
    await ends.proxy.obey(SetRule(((2, 1),), Rule(delay=86_400.0)))
    ends.writer.write(b"there")
    assert await ends.far_reader.readexactly(5) == b"there"
    ends.far_writer.write(b"and back")
    while not (await ends.delayed())[2, 1]:
        await asyncio.sleep(0)
    assert (await ends.delayed())[1, 2] == 0
    await ends.proxy.obey(SetRule(((2, 1),), None))
    assert await ends.reader.readexactly(8) == b"and back"


@in_loop
async def test_connections_of_bytes_are_refused_in_the_direction_in_which_they_are_opened() -> None:
    ends = Ends()
    await ends.open()
    await ends.proxy.obey(SetRule(((2, 1),), Rule(refuse=True)))
    await ends.connect()
    await ends.proxy.obey(SetRule(((1, 2),), Rule(refuse=True)))
    with pytest.raises(ConnectionError):
        await ends.reader.readexactly(1)
    reader, _ = await asyncio.open_connection(HOST, ends.port)
    with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
        await reader.readexactly(1)
    evidence = await ends.proxy.obey(Count())
    assert isinstance(evidence, Evidence)
    counts = {(link.sender, link.receiver): link.counts for link in evidence.links}
    assert (counts[1, 2].reset, counts[1, 2].refused, counts[2, 1].refused) == (1, 1, 0)


@in_loop
async def test_a_reset_of_bytes_breaks_what_the_sender_opened() -> None:
    ends = Ends()
    await ends.open()
    await ends.connect()
    assert await ends.proxy.obey(Break(((2, 1),))) == Broken(0)
    assert await ends.proxy.obey(Break(((1, 2),))) == Broken(1)
    with pytest.raises(ConnectionError):
        await ends.reader.readexactly(1)
