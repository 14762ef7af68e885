"""Live runs with real nodes: what they leave, and that they leave no process, however they end."""

from __future__ import annotations

import signal
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psutil
import pytest
import yaml

from lab.check.invariants import check
from lab.check.metrics import measure
from lab.course import manifest
from lab.course.manifest import node_settings
from lab.live import live
from lab.live.observation import EventCount, file_sizes
from lab.places import ROOT
from lab.plan import scenario as plan
from lab.plan.scenario import Scenario
from lab.rows import Invoke, Phase
from lab.rundir import RunDir
from lab.steps.machine import RunFailed
from nodeproc import config as nodeconfig
from nodeproc.errors import ConfigError
from tests import TOO_LONG_S
from tests.lab.harness import LAST_STEP, harness_in_the_middle
from tests.lab.patient import patient

SEED = 7


def scenario(body: str) -> Scenario:
    """A scenario from the YAML of everything but its name and description."""
    return plan.load("test.yml", text=f"name: test\ndescription: A test.\n{body}")


def run_in(directory: Path, planned: Scenario) -> tuple[RunDir, list[str]]:
    """Run it; returns where, and the progress lines."""
    run = RunDir.create(directory, planned.name, "stamp")
    told: list[str] = []
    live.run(patient(planned), run, seed=SEED, progress=told.append)
    return run, told


def nodes_left() -> list[int]:
    """Child processes of this test, which must all be gone after a run."""
    return [process.pid for process in psutil.Process().children(recursive=True)]


def test_the_leader_is_killed_under_load_and_the_run_passes(tmp_path: Path) -> None:
    run, told = run_in(tmp_path, plan.load(ROOT / "scenarios" / "leader_failure.yml"))
    assert nodes_left() == []
    meta, faults = run.read_meta(), run.read_faults()
    kill = faults[0]
    assert (kill.fault, kill.role, kill.effect, kill.evidence["exit"]) == ("kill", "leader", True, -signal.SIGKILL)
    assert [row.fault for row in faults[1:]] == ["start"] and faults[1].step == -1
    assert meta.convergence is not None and meta.convergence.reached and meta.problem == ""
    assert sorted(meta.nodes) == run.node_ids() == [1, 2, 3]
    assert all(use.cpu_s > 0 and use.rss_peak_bytes > 1 << 20 for use in meta.nodes.values())
    assert all(end.expected for use in meta.nodes.values() for end in use.exits)
    assert len({run.message_log(node).read_bytes() for node in run.node_ids()}) == 1
    times = [row.t for row in run.read_history()]
    assert times == sorted(times) and not list(run.path.glob("*.part"))
    assert plan.load(run.scenario).seed == SEED
    assert any("kill the leader under load" in line for line in told)
    assert check(run, measure(run)).exit_code == 0


def test_the_time_of_a_run_does_not_count_the_start_of_its_nodes(tmp_path: Path) -> None:
    """Else a message would be from after the end of a run whose nodes needed minutes to start."""
    planned = scenario("steps: [{sleep: 1s}]")
    before = datetime.now(UTC)
    run = live.LiveRun(planned, RunDir.create(tmp_path, "test", "stamp"), SEED, lambda text: None, "")
    run._runner.facts.t_start = time.monotonic_ns() + 600 * 10**9
    assert datetime.fromisoformat(run._meta().started_utc) - before >= timedelta(seconds=599.9)


EVERY_KIND_OF_STEP = """
load: {clients: 2, in_flight: 4}
steps:
  - link: {from: 3, to: 1, frames: [APPEND], delay: 5ms}
  - load: start
  - wait: {for: acknowledged, count: 50}
  - heal: links
  - load: stop
  - pause: 1
  - resume: paused
  - restart: {target: 2, how: kill}
  - wait: leader
  - send: {client: 7, messages: 2, wait: false}
  - wait: idle
  - stop: [1, 2]
  - heal: all
  - wait: {for: caught_up, on: all}
  - expect: [{caught_up: all}, {leader: 2}]
"""


def test_every_kind_of_step_leaves_its_rows(tmp_path: Path) -> None:
    run, _ = run_in(
        tmp_path,
        scenario(EVERY_KIND_OF_STEP),
    )
    faults = [(row.fault, row.target, row.effect) for row in run.read_faults() if row.step >= 0]
    assert faults == [
        ("link", 1, True),
        ("heal", 0, True),
        ("pause", 1, True),
        ("resume", 1, True),
        ("kill", 2, True),
        ("start", 2, True),
        ("stop", 1, True),
        ("stop", 2, True),
        ("start", 1, True),
        ("start", 2, True),
    ]
    meta = run.read_meta()
    assert meta.links == "proxied" and meta.proxy["3-1"]["delayed"] > 0 and meta.proxy["3-2"]["delayed"] == 0
    assert [each.met for each in meta.expectations if each.text.startswith("caught_up")] == [True]
    assert [each.met for each in meta.expectations if each.text.startswith("leader")] == [False]
    assert sum(row.count for row in run.read_history() if isinstance(row, Invoke) and row.client == 7) == 2
    assert nodes_left() == []


CHANGES_OF_MEMBERS = """
cluster: {nodes: 4, founders: 3}
load: {clients: 2, in_flight: 4}
steps:
  - link: {from: [1, 2, 3], to: 4, frames: [APPEND], delay: 5ms}
  - load: start
  - wait: {for: acknowledged, count: 50}
  - add_node: 4
  - heal: links
  - remove_node: leader
  - load: stop
"""


def test_members_change_while_the_links_of_the_newcomer_obey_rules(tmp_path: Path) -> None:
    """Rule: G1, G3, G5."""
    run, _ = run_in(tmp_path, scenario(CHANGES_OF_MEMBERS))
    rows = {row.fault: row for row in run.read_faults()}
    assert all(rows[word].effect for word in ("link", "add_node", "remove_node", "left"))
    removed, meta = rows["remove_node"].target, run.read_meta()
    assert rows["left"].target == removed and rows["left"].evidence["exit"] == 0
    assert [(end.code, end.expected) for end in meta.nodes[removed].exits] == [(0, True)]
    assert sum(meta.proxy[f"{node}-4"]["delayed"] for node in (1, 2, 3)) > 0
    assert meta.convergence is not None and sorted(meta.convergence.delivered) == sorted({1, 2, 3, 4} - {removed})
    assert check(run, measure(run)).exit_code == 0


def test_a_missed_step_ends_the_steps_and_not_the_run(tmp_path: Path) -> None:
    run, told = run_in(
        tmp_path,
        scenario("""
steps:
  - kill: [1, 2]
  - wait: {for: new_leader, within: 300ms}
  - send: {client: 1, messages: [never]}
"""),
    )
    meta = run.read_meta()
    assert [(each.step, each.met) for each in meta.expectations] == [(1, False)]
    assert "1 down, 2 down" in meta.expectations[0].found
    assert meta.convergence is not None and meta.convergence.reached
    assert [row.target for row in run.read_faults() if row.step == -1] == [1, 2]
    assert not any(isinstance(row, Invoke) for row in run.read_history())
    assert any(line.startswith("missed: wait") for line in told)
    assert any(isinstance(row, Phase) and row.phase == "converged" for row in run.read_history())


def test_a_fault_that_hits_nobody_says_so(tmp_path: Path) -> None:
    run, _ = run_in(tmp_path, scenario("steps: [{kill: 1}, {kill: 1}, {resume: 2}, {start: 3}]"))
    rows = [(row.fault, row.effect) for row in run.read_faults() if row.step >= 0]
    assert rows == [("kill", True), ("kill", False), ("resume", False), ("start", False)]


def test_nodes_that_can_not_start_fail_the_run_with_their_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = manifest.node_settings
    monkeypatch.setattr("lab.live.cluster.node_settings", lambda *plan: settings(*plan) | {"nonsense": 1})
    run = RunDir.create(tmp_path, "test", "stamp")
    with pytest.raises(RunFailed, match=r"node \d ended with exit code 2: .*nonsense"):
        live.run(scenario("steps: [sleep: 1s]"), run, seed=SEED, progress=lambda _: None)
    assert "nonsense" in run.read_meta().problem
    assert nodes_left() == []


# ---- a harness that is interrupted ---------------------------------------------------------------

MIDDLE = f"""
load: {{clients: 3, rate: 1000}}
steps: [link: {{delay: 1ms}}, load: start, wait: {{for: acknowledged, count: 10}}, pause: 1, {LAST_STEP}]
"""
"""With a treated network, a load on and a paused node."""
BELOW = 5
"""Three nodes, the proxy, one load worker."""


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_leaves_no_process_and_says_that_it_was(tmp_path: Path, how: signal.Signals) -> None:
    with harness_in_the_middle(tmp_path, MIDDLE, BELOW) as (harness, below):
        harness.send_signal(how)
        _, left = psutil.wait_procs(below, timeout=TOO_LONG_S)
        assert left == []
        assert harness.wait(TOO_LONG_S) != 0
    assert RunDir(tmp_path).read_meta().problem == "interrupted"
    assert any(isinstance(row, Invoke) for row in RunDir(tmp_path).read_history())


def test_a_killed_harness_leaves_no_process(tmp_path: Path) -> None:
    with harness_in_the_middle(tmp_path, MIDDLE, BELOW) as (harness, below):
        harness.kill()
        _, left = psutil.wait_procs(below, timeout=TOO_LONG_S)
        assert left == []


# ---- configuration and events --------------------------------------------------------------------


def test_the_settings_that_the_lab_writes_are_those_that_a_node_reads(tmp_path: Path) -> None:
    cluster = scenario("""
cluster: {nodes: 3, priorities: {2: 9}, heartbeat_interval: 50ms, durability: os, limits: {max_clients: 5}}
steps: [sleep: 1s]
""").cluster
    settings = node_settings(
        cluster, 2, ("127.0.0.1", 5002), {1: ("127.0.0.1", 5001), 3: ("127.0.0.1", 5003)}, "data", "cluster", "secret"
    )
    read = nodeconfig.load("node_2.yml", text=yaml.safe_dump(settings))
    assert (read.node_id, read.port, read.priority, read.heartbeat_interval_ms) == (2, 5002, 9, 50)
    assert [(peer.id, peer.port) for peer in read.peers] == [(1, 5001), (3, 5003)]
    assert (read.durability, read.limits.max_clients, read.secret) == ("os", 5, "secret")
    with pytest.raises(ConfigError):
        nodeconfig.load("node_2.yml", text=yaml.safe_dump(settings | {"misspelt": 1}))


def test_events_are_counted_from_a_moment_on_and_only_whole_lines(tmp_path: Path) -> None:
    events, missing = tmp_path / "events.jsonl", tmp_path / "not yet"
    wanted = b'{"t_ns":1,"node":1,"event":"buffered","seq_no":7}\n'
    events.write_bytes(wanted)
    count = EventCount(file_sizes([events, missing]), "buffered", {"seq_no": 7})
    assert count.update() == 0
    with events.open("ab") as file:
        file.write(wanted + wanted.replace(b"7", b"8") + b'{"torn' + wanted + wanted[:-1])
    assert count.update() == 1
    with events.open("ab") as file:
        file.write(b"\n")
    missing.write_bytes(wanted)
    assert count.update() == 3
