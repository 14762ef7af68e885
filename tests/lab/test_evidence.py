"""Rows of faults: when each was over, and that a fault which does nothing is never taken for one that did."""

from __future__ import annotations

from pathlib import Path

import pytest

from lab.check.invariants import check
from lab.check.verdict import Verdict
from lab.plan import scenario as plan
from lab.rows import FaultRow
from lab.rundir import RunDir
from lab.sim import simulator
from lab.steps.book import FaultBook, with_heals


def row(fault: str, target: int, t: int, effect: bool = True) -> FaultRow:
    return FaultRow(fault, target, "", t, t + 1, {}, effect, 0)


def healed(*rows: FaultRow) -> list[tuple[str, int, int]]:
    return [(each.fault, each.target, each.t_healed) for each in with_heals(rows)]


def test_a_node_that_is_back_ends_what_held_it_whatever_the_order_of_the_rows() -> None:
    rows = [row("start", 1, 30), row("kill", 1, 10), row("pause", 2, 20), row("resume", 2, 40)]
    assert healed(*rows) == [("kill", 1, 31), ("pause", 2, 41), ("start", 1, 0), ("resume", 2, 0)]


def test_a_start_ends_both_the_pause_and_the_kill_before_it() -> None:
    assert healed(row("pause", 1, 1), row("kill", 1, 2), row("start", 1, 3))[:2] == [("pause", 1, 4), ("kill", 1, 4)]


def test_what_hit_nothing_neither_ends_nor_is_ended() -> None:
    rows = [row("kill", 1, 1), row("start", 1, 2, effect=False), row("kill", 1, 3, effect=False), row("start", 1, 4)]
    assert healed(*rows) == [("kill", 1, 5), ("start", 1, 0), ("kill", 1, 0), ("start", 1, 0)]


def test_a_node_that_never_came_back_is_not_healed() -> None:
    assert healed(row("kill", 1, 1), row("start", 2, 2)) == [("kill", 1, 0), ("start", 2, 0)]


def test_an_instantaneous_fault_is_healed_when_it_is_done() -> None:
    book = FaultBook(iter((5, 6)).__next__)
    book.begin("reset", 0).write({}, True, over=True)
    assert [(each.t, each.t_done, each.t_healed) for each in with_heals(book.rows)] == [(5, 6, 6)]


def test_a_power_loss_with_nothing_to_lose_has_no_effect_and_is_healed_by_a_start_all_the_same() -> None:
    lost = FaultRow("power_loss", 1, "", 10, 11, {"exit": -9, "lost_bytes": 0}, False, 0)
    assert healed(lost, row("start", 1, 30))[:1] == [("power_loss", 1, 31)]


def test_a_row_whose_meaning_no_fault_has_set_is_an_error_of_the_lab() -> None:
    with pytest.raises(AssertionError, match="no fault says what a row of eclipse means"):
        FaultBook(lambda: 1).begin("eclipse", 0)


# ---- the same evidence in virtual time -----------------------------------------------------------


def simulated(tmp_path: Path, steps: str, nodes: int = 3) -> tuple[list[FaultRow], Verdict]:
    """The rows and the verdict of a simulated run with these steps."""
    text = f"name: story\ndescription: A story.\ncluster: {{nodes: {nodes}}}\nsubscribers: 0\nsteps:\n"
    if "load:" in steps:
        text = text.replace("steps:", "load: {clients: 2, rate: 100}\nsteps:")
    text += f"  - send: {{client: 1, via: 1, messages: [a]}}\n  - sleep: 2s\n{steps}"
    run = RunDir.create(tmp_path, "story", "stamp")
    simulator.run(plan.load("story.yml", text=text), run, seed=7)
    return run.read_faults(), check(run, None)


def result(verdict: Verdict, name: str) -> tuple[str, str]:
    answer = next(each for each in verdict.checks if each.name == name)
    return answer.result, answer.detail


def test_power_that_is_not_lost_in_a_write_has_no_effect_as_on_real_processes(tmp_path: Path) -> None:
    rows, verdict = simulated(tmp_path, "  - power_loss: {target: follower, mid_write: true}\n  - sleep: 3s\n")
    assert (rows[0].effect, rows[0].evidence["in_a_write"], rows[0].evidence["exit"]) == (False, False, -9)
    assert result(verdict, "faults")[0] == "UNKNOWN"


def test_power_that_is_lost_in_a_write_has_effect(tmp_path: Path) -> None:
    steps = "  - load: start\n  - sleep: 1s\n  - power_loss: {target: 1, mid_write: true}\n  - load: stop\n"
    rows, verdict = simulated(tmp_path, steps)
    assert (rows[0].effect, rows[0].evidence["in_a_write"]) == (True, True)
    assert result(verdict, "faults")[0] == "PASS"


def test_a_resume_of_a_dead_node_brings_nobody_back(tmp_path: Path) -> None:
    steps = "  - kill: [1, 2]\n  - send: {client: 1, messages: [b], wait: false}\n  - resume: 1\n  - sleep: 10s\n"
    rows, verdict = simulated(tmp_path, steps + "  - start: [1, 2]\n  - wait: {for: caught_up, on: all}\n")
    assert [(each.fault, each.effect) for each in rows if each.fault == "resume"] == [("resume", False)]
    assert result(verdict, "A9")[0] != "FAIL"


def test_a_clock_that_nobody_reads_has_no_effect(tmp_path: Path) -> None:
    steps = "  - clock: {on: 1, jump: 5s}\n  - kill: 2\n  - clock: {on: 2, drift: 0.1}\n  - start: 2\n"
    rows, _ = simulated(tmp_path, steps)
    clocks = [(each.effect, each.evidence["misread"] > 0, each.t_healed > 0) for each in rows if each.fault == "clock"]
    assert clocks == [(False, False, True), (True, True, True)]


def test_a_slow_disk_is_slow_in_one_way_at_a_time(tmp_path: Path) -> None:
    steps = "  - disk: {on: 1, slow: 5ms}\n  - disk: {on: 1, slow: 9ms}\n  - send: {client: 1, messages: 3}\n"
    rows, _ = simulated(tmp_path, steps)
    assert [(each.effect, each.evidence["slowed"] > 0) for each in rows] == [(False, False), (True, True)]


def test_an_empty_disk_that_is_lost_has_no_effect(tmp_path: Path) -> None:
    rows, _ = simulated(tmp_path, "  - rebuild: 1\n  - wait: {for: caught_up, on: all}\n")
    assert [(each.fault, each.effect, each.evidence.get("lost_bytes", 0) > 0) for each in rows[:1]] == [
        ("rebuild", True, True)
    ]


def test_killed_are_all_that_were_taken_down_and_not_started(tmp_path: Path) -> None:
    steps = "  - kill: 1\n  - stop: 2\n  - power_loss: 3\n  - start: [2]\n  - kill: [4, 2]\n  - start: killed\n"
    rows, _ = simulated(tmp_path, steps, nodes=5)
    assert [each.target for each in rows if each.fault == "start" and each.step == 7] == [1, 2, 3, 4]
