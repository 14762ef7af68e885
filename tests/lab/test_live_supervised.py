"""Live runs of the lab's own nodes under supervisors."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import yaml

from lab.live.children import child_environment
from lab.live.supervise import Refused, Supervisor
from lab.places import ROOT
from lab.steps.machine import RunFailed
from tests.lab.supervisable import needs_supervisor
from tests.lab.test_live_disks import of, run_in

LINKS_AND_DAMAGE = """
cluster: {disks: supervised, limits: {segment_bytes: 8192}}
load: {clients: 2, rate: 200, size: 200}
steps:
  - load: start
  - wait: {for: acknowledged, count: 200}
  - disk: {on: 1, lose: checkpoint}
  - start: {target: 1, refuses: true}
  - rebuild: 1
  - wait: {for: caught_up, on: 1}
  - cut: {from: leader, to: 1}
  - wait: {for: acknowledged, count: 100}
  - heal: links
  - power_loss: 2
  - start: killed
  - wait: caught_up
  - load: stop
  - wait: idle
"""


def test_nodes_that_know_true_addresses_reach_each_other_through_the_proxy(tmp_path: Path) -> None:
    needs_supervisor()
    run, verdict = run_in(tmp_path, LINKS_AND_DAMAGE)
    rows = run.read_faults()
    assert [row.effect for row in rows] == [True] * len(rows)
    (power,) = of(rows, "power_loss", 2)
    assert power.evidence["unsynced_bytes"] > 0
    configs = {node: yaml.safe_load(run.node_config(node).read_text()) for node in (1, 2, 3)}
    ports = {node: config["port"] for node, config in configs.items()}
    for node, config in configs.items():
        assert {peer["id"]: peer["port"] for peer in config["peers"]} == {k: v for k, v in ports.items() if k != node}
    meta = run.read_meta()
    assert (meta.disks, meta.links) == ("supervised", "proxied")
    assert meta.supervision is not None and meta.supervision.problems == ()
    assert meta.supervision.redirected > 0 and meta.supervision.stops["fdatasync"] > 0
    assert not list(run.path.glob("nodes/*.kept")) and not run.ledger(1).exists()
    assert verdict.outcome == "pass", [each for each in verdict.checks if each.result != "PASS"]


LYING = """
cluster: {disks: supervised}
load: {clients: 2, rate: 200, deadline: 2s}
steps:
  - load: start
  - wait: {for: acknowledged, count: 100}
  - power_loss: all
  - start: all
  - wait: leader
  - load: stop
"""


def test_a_node_whose_fdatasync_writes_nothing_is_convicted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    needs_supervisor()
    monkeypatch.setattr("lab.live.layers.TAILS", ("none",))
    _, verdict = run_in(tmp_path, LYING, mutant="sync_that_writes_nothing")
    failed = {each.name: each.detail for each in verdict.checks if each.result == "FAIL"}
    assert "acknowledged" in failed["A4"]


def test_a_system_that_allows_no_supervisor_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise Refused("pidfd_getfd: Operation not permitted")

    monkeypatch.setattr(Supervisor, "open", refuse)
    with pytest.raises(RunFailed, match=r"cluster\.disks: supervised: pidfd_getfd: Operation not permitted"):
        run_in(tmp_path, LINKS_AND_DAMAGE)


def test_nothing_is_left_when_the_lab_is_killed(tmp_path: Path) -> None:
    needs_supervisor()
    body = "cluster: {disks: supervised}\nsteps: [{send: {client: 1, messages: [hello]}}, {sleep: 600s}]\n"
    scenario = tmp_path / "idle.yml"
    scenario.write_text(f"name: idle\ndescription: A test.\n{body}")
    command = [sys.executable, str(ROOT / "run_lab.py"), str(scenario), "--out", str(tmp_path / "runs")]
    lab = psutil.Popen(command, stderr=subprocess.PIPE, env=child_environment(), process_group=0)
    assert lab.stderr is not None
    for line in lab.stderr:
        if b"sleep: 600s" in line:
            break
    left = lab.children(recursive=True)
    assert len(left) == 6, [each.cmdline() for each in left]
    os.kill(lab.pid, signal.SIGKILL)
    lab.wait()
    lab.stderr.close()
    _, alive = psutil.wait_procs(left, timeout=60)
    assert alive == []
    assert not list(tmp_path.rglob("*.kept"))
