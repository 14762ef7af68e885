"""Live runs whose machines, disks and clocks are hurt: each fault leaves its evidence, one without effect says so."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import psutil
import pytest

from lab.check.invariants import check
from lab.check.metrics import measure
from lab.check.verdict import Verdict
from lab.live import live
from lab.live.machine import LiveMachine
from lab.plan import scenario as plan
from lab.rows import FaultRow
from lab.rundir import RunDir
from tests.lab.patient import patient
from tests.lab.supervisable import needs_supervisor

SEED = 7
CLUSTER = "cluster: {limits: {segment_bytes: 8192}}\nload: {clients: 2, rate: 300, size: 200}\n"


def run_in(directory: Path, body: str, mutant: str = "") -> tuple[RunDir, Verdict]:
    """Run a scenario from the YAML of everything but its name and description, and judge it."""
    scenario = plan.load("test.yml", text=f"name: test\ndescription: A test.\n{body}")
    run = RunDir.create(directory, scenario.name, "stamp")
    before = psutil.Process().children(recursive=True)  # such as multiprocessing's, from an earlier test
    live.run(patient(scenario), run, seed=SEED, progress=lambda _: None, mutant=mutant)
    assert psutil.Process().children(recursive=True) == before
    return run, check(run, measure(run))


def of(rows: list[FaultRow], fault: str, node: int) -> list[FaultRow]:
    return [row for row in rows if (row.fault, row.target) == (fault, node) and row.step >= 0]


POWER_AND_DISKS = """
steps:
  - load: start
  - wait: {for: acknowledged, count: 100}
  - disk: {on: 2, slow: 20ms}
  - power_loss: {target: 1, tail: torn}
  - wait: {for: acknowledged, count: 50}
  - start: 1
  - wait: {for: caught_up, on: 1}
  - heal: disks
  - power_loss: {target: 2, mid_write: true}
  - start: killed
  - wait: {for: caught_up, on: 2}
  - disk: {on: 3, full: true}
  - wait: {for: ended, on: 3}
  - wait: new_leader
  - heal: disks
  - start: 3
  - wait: {for: caught_up, on: 3}
  - load: stop
  - wait: idle
expectations:
  - event: {is: torn_tail_dropped, on: 1}
  - event: {is: failed, on: 3, at_most: 1}
  - acknowledged: 150
"""


@pytest.mark.parametrize("disks", ["layered", "supervised"])
def test_power_that_is_lost_and_disks_that_are_slow_and_full_leave_their_evidence(tmp_path: Path, disks: str) -> None:
    if disks == "supervised":
        needs_supervisor()
    run, verdict = run_in(tmp_path, CLUSTER.replace("{limits", f"{{disks: {disks}, limits") + POWER_AND_DISKS)
    rows = run.read_faults()
    (slow,), (torn,), (in_a_write,) = of(rows, "disk", 2), of(rows, "power_loss", 1), of(rows, "power_loss", 2)
    assert slow.effect and slow.evidence["slowed"] > 0 and slow.t_healed > slow.t
    assert torn.effect and torn.evidence["exit"] == -signal.SIGKILL and torn.evidence["torn"].startswith("wal/")
    assert in_a_write.effect and in_a_write.evidence["in_a_write"] and "lost_bytes" in in_a_write.evidence
    (full,), (end,) = of(rows, "disk", 3), of(rows, "exit", 3)
    assert full.effect and full.evidence["refused"] > 0 and full.evidence["exits"] == [4]
    assert (end.role, end.evidence["exit"], end.evidence["because"]) == ("leader", 4, "full")
    assert [row.effect for row in rows] == [True] * len(rows)
    meta = run.read_meta()
    assert meta.disks == disks
    assert [(each.code, each.because) for each in meta.nodes[3].exits] == [(4, "full"), (0, "")]
    assert verdict.outcome == "pass", [each for each in verdict.checks if each.result != "PASS"]


DAMAGE = """
load: {clients: 2, rate: 300, size: 200}
steps:
  - load: start
  - wait: {for: acknowledged, count: 200}
  - disk: {on: 1, DAMAGED}
  - start: {target: 1, refuses: true}
  - rebuild: 1
  - wait: {for: caught_up, on: 1}
  - load: stop
  - wait: idle
"""


@pytest.mark.parametrize(
    ("cluster", "damaged", "evidence", "named"),
    [
        ("cluster: {limits: {segment_bytes: 8192}}", "lose: checkpoint", "lost", "/wal: "),
        # In one long file, as a new one may hold nothing yet of which it is known that it was durable.
        ("", "rot: wal", "rot", ".wal: offset"),
    ],
)
def test_a_damaged_disk_is_refused_and_rebuilt_without_any_layer(
    tmp_path: Path, cluster: str, damaged: str, evidence: str, named: str
) -> None:
    run, verdict = run_in(tmp_path, cluster + DAMAGE.replace("DAMAGED", damaged))
    rows = run.read_faults()
    (disk,), (refusal,), (rebuild,) = (of(rows, fault, 1) for fault in ("disk", "refusal", "rebuild"))
    assert disk.effect and disk.evidence[evidence].startswith("wal/")
    assert refusal.evidence["exit"] == 3 and named in refusal.evidence["says"]
    assert rebuild.evidence["lost_bytes"] > 0
    assert [row.evidence.get("rebuild", False) for row in of(rows, "start", 1)] == [True]
    assert run.read_meta().disks == "direct" and not run.ledger(1).exists()
    assert verdict.outcome == "pass", [each for each in verdict.checks if each.result != "PASS"]


CLOCKS = """
steps:
  - load: start
  - clock: {on: 2, drift: 0.3}
  - clock: {on: leader, jump: 3600s}
  - wait: {for: acknowledged, count: 200}
  - heal: clocks
  - wait: {for: acknowledged, count: 50}
  - load: stop
  - wait: idle
"""


def test_a_clock_that_drifts_shows_in_the_uptime_and_one_that_was_set_in_the_messages(tmp_path: Path) -> None:
    run, verdict = run_in(tmp_path, CLUSTER + CLOCKS)
    (drift,), (jump,) = of(run.read_faults(), "clock", 2), of(run.read_faults(), "clock", 3)
    assert drift.effect and drift.evidence["misread"] > 0 and drift.t_healed > drift.t
    assert jump.effect and jump.evidence["misread"] > 0
    assert verdict.outcome == "pass", [each for each in verdict.checks if each.result != "PASS"]


NOT_DAMAGED = """
steps:
  - send: {client: 101, messages: 1}
  - wait: idle
  - disk: {on: 1, lose: checkpoint}
  - disk: {on: 1, rot: checkpoint}
  - start: 1
"""
MUTED = """
steps:
  - load: start
  - wait: {for: acknowledged, count: 20}
  - disk: {on: 1, slow: 100ms}
  - disk: {on: 2, full: true}
  - disk: {on: 1, failing: sync}
  - disk: {on: 2, failing: append}
  - clock: {on: leader, jump: 90s}
  - power_loss: {target: 1, mid_write: true}
  - start: 1
  - wait: {for: acknowledged, count: 100}
  - heal: all
  - load: stop
"""


def undecided(run: RunDir, verdict: Verdict, faults: tuple[str, ...]) -> list[FaultRow]:
    """The rows of these faults, of a run that shows nothing about them."""
    (found,) = (each for each in verdict.checks if each.name == "faults")
    assert (found.result, verdict.exit_code) == ("UNKNOWN", 2)
    return [row for row in run.read_faults() if row.fault in faults]


def test_what_is_not_there_can_not_be_damaged_and_leaves_the_run_undecided(tmp_path: Path) -> None:
    run, verdict = run_in(tmp_path, NOT_DAMAGED)
    rows = undecided(run, verdict, ("disk",))
    assert [row.evidence for row in rows] == [{"lost": "nothing"}, {"rot": "nothing"}]
    assert not any(row.effect for row in rows)


def test_orders_that_no_node_obeys_leave_the_run_undecided(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def mute(machine: LiveMachine, **orders: Any) -> None:
        """Nothing is ordered."""

    monkeypatch.setattr(LiveMachine, "order", mute)
    monkeypatch.setattr("lab.steps.power_loss.MID_WRITE_PATIENCE_S", 0.2)
    run, verdict = run_in(tmp_path, CLUSTER + MUTED)
    rows = undecided(run, verdict, ("disk", "clock", "power_loss"))
    assert sorted((row.fault, row.target) for row in rows) == [
        ("clock", 3),
        *[("disk", 1)] * 2,
        *[("disk", 2)] * 2,
        ("power_loss", 1),
    ]
    assert not any(row.effect for row in rows)


def test_a_power_loss_on_a_disk_that_has_synced_all_leaves_the_run_undecided(tmp_path: Path) -> None:
    run, verdict = run_in(tmp_path, "steps: [{sleep: 200ms}, {power_loss: 1}, {start: 1}, {wait: leader}]")
    (row,) = undecided(run, verdict, ("power_loss",))
    assert not row.effect and row.evidence["unsynced_bytes"] == row.evidence["lost_bytes"] == 0
