"""A fault that does nothing is noticed: its row has no effect, and the run is undecided, never passed."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from lab.check.invariants import check
from lab.check.metrics import measure
from lab.live import links, live, processes
from lab.live.busy import BusyProcesses
from lab.live.children import Children
from lab.live.proxy import Break, SetRule
from lab.plan import scenario as plan
from lab.rundir import RunDir
from lab.steps.rules import Rule
from tests.lab.patient import patient

NoOp = Callable[[pytest.MonkeyPatch], None]
SEED = 7


def swallow(*signals: signal.Signals) -> NoOp:
    """The nodes don't get these signals."""

    def patch(monkeypatch: pytest.MonkeyPatch) -> None:
        send = os.killpg
        monkeypatch.setattr(processes, "STATE_PATIENCE_S", 0.1)
        monkeypatch.setattr(processes, "KILL_PATIENCE_S", 0.2)
        monkeypatch.setattr(os, "killpg", lambda group, how: None if how in signals else send(group, how))

    return patch


def rules_do_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(links, "SetRule", lambda pairs, rule: SetRule(pairs, rule and Rule()))


def resets_break_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(links, "Break", lambda pairs: Break(()))


def nobody_is_busy(monkeypatch: pytest.MonkeyPatch) -> None:
    async def begin(self: BusyProcesses, processes: int, children: Children, log: Path) -> None:
        pass

    monkeypatch.setattr(BusyProcesses, "begin", begin)


NO_STOP, NO_KILL = swallow(signal.SIGSTOP), swallow(signal.SIGKILL)
FAULTS: dict[str, tuple[str, NoOp]] = {
    "kill": ("{kill: 1}", NO_KILL),
    "restart": ("{restart: {target: 1, how: kill}}", NO_KILL),
    "full restart": ("{full_restart: kill}", NO_KILL),
    "power loss": (
        "{disk: {on: 1, slow: 9s}}, {send: {client: 1, messages: 9, wait: false}}, {sleep: 300ms}, "  # Not synced yet.
        "{power_loss: 1}, {heal: all}",
        NO_KILL,
    ),
    "pause": ("{pause: 1}, {resume: 1}", NO_STOP),
    "chaos": ("{chaos: {for: 300ms, longest: 20ms}}", NO_STOP),
    "busy": ("{busy: {processes: 1, for: 300ms}}", nobody_is_busy),
    "link": ("{link: {delay: 5ms}}, {sleep: 300ms}", rules_do_nothing),
    "cut": ("{cut: {from: 2}}, {sleep: 300ms}, {heal: links}", rules_do_nothing),
    "partition": ("{partition: isolate}, {sleep: 300ms}, {heal: links}", rules_do_nothing),
    "flap": ("{flap: {from: 2, times: 2}}", rules_do_nothing),
    "clients' links": (
        "{link: {from: clients, to: 1, delay: 5ms}}, {send: {client: 9, messages: 1}}",
        rules_do_nothing,
    ),
    "reset": ("{reset: {}}, {sleep: 300ms}", resets_break_nothing),
    "nemesis": ("{nemesis: {for: 600ms, every: 300ms, faults: [{kill: 1}]}}", NO_KILL),
    "a trigger": ("{when: {so: leader, do: [{kill: 1}]}}, {sleep: 1s}", NO_KILL),
}


def run_story(directory: Path, steps: str, nodes: int) -> tuple[RunDir, str]:
    """Run the steps; returns where, and what became of it."""
    text = f"""
name: story
description: A story.
cluster: {{nodes: {nodes}}}
steps: [{{send: {{client: 1, messages: 1}}}}, {steps}, {{wait: leader}}, {{send: {{client: 1, messages: 1}}}}]
"""
    planned = plan.load("story.yml", text=text)
    run = RunDir.create(directory, planned.name, "stamp")
    live.run(patient(planned), run, seed=SEED, progress=lambda _: None)
    return run, check(run, measure(run)).outcome


@pytest.mark.parametrize(("steps", "no_op"), FAULTS.values(), ids=FAULTS.keys())
def test_a_fault_that_does_nothing_leaves_the_run_undecided(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, steps: str, no_op: NoOp
) -> None:
    no_op(monkeypatch)
    run, outcome = run_story(tmp_path, steps, nodes=1 if no_op in (NO_STOP, NO_KILL, nobody_is_busy) else 2)
    verdict = check(run, measure(run))
    faults = next(each for each in verdict.checks if each.name == "faults")
    assert (outcome, faults.result) == ("undecided", "UNKNOWN")
    assert "had no effect" in faults.detail


def test_the_same_faults_with_effect_pass(tmp_path: Path) -> None:
    steps = ", ".join(f"{steps}, {{heal: all}}, {{wait: leader}}" for steps, _ in FAULTS.values())
    run, outcome = run_story(tmp_path, steps.replace("300ms", "1s"), nodes=2)  # a busy machine has time for an effect
    assert outcome == "pass", check(run, measure(run))


def test_a_full_restart_of_a_cluster_that_is_down_shows_that_it_killed_no_node(tmp_path: Path) -> None:
    run, outcome = run_story(tmp_path, "{kill: all}, {full_restart: kill}", nodes=2)
    faults = next(each for each in check(run, measure(run)).checks if each.name == "faults")
    assert (outcome, faults.result) == ("undecided", "UNKNOWN")
    assert faults.detail.startswith("faults.jsonl:3: kill of node 1 had no effect: found did not run"), faults.detail


def test_a_node_that_does_not_stop_when_asked_breaks_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    swallow(signal.SIGTERM)(monkeypatch)
    monkeypatch.setattr(processes, "STOP_PATIENCE_S", 0.2)
    run, outcome = run_story(tmp_path, "{stop: 1}, {start: 1}", nodes=1)
    assert outcome == "broken"
    assert [row.effect for row in run.read_faults() if row.fault == "stop"] == [True]
