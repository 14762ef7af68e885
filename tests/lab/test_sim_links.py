"""What rules do to links in virtual time: each has its effect, tells it in its row, and is survived."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lab.plan import scenario as plan
from lab.rundir import RunDir
from lab.runs import judge
from lab.sim import simulator

STORY = """
name: story
description: A story.
load: {{clients: 3, rate: 200, duration: 3s}}
steps:
  - load: start
  - wait: {{for: acknowledged, count: 20}}
  - {fault}
  - sleep: 500ms
  - heal: links
  - wait: load_done
"""

EFFECTS = {
    "corrupted": "link: {corrupt: 0.05}",
    "delayed": "link: {bandwidth: 200000}",
    "reset": "link: {from: 1, to: 3, refuse: true}",
    "refused": "link: {from: leader, refuse: true}",
    "lost": "partition: {kind: isolate, direction: in, node: follower}",
    "connections": "reset: {from: leader}",
}


@pytest.mark.parametrize(("effect", "fault"), EFFECTS.items(), ids=EFFECTS.keys())
def test_a_rule_has_its_effect_and_is_survived(effect: str, fault: str, tmp_path: Path) -> None:
    scenario = plan.load("story.yml", text=STORY.format(fault=fault))
    for seed in (1, 2, 3):
        run = RunDir.create(tmp_path, "story", f"seed {seed}")
        simulator.run(scenario, run, seed=seed)
        assert judge(run, scenario.name, seed).exit_code == 0
        (row,) = (row for row in run.read_faults() if row.step == 2)
        assert row.effect and row.evidence[effect] > 0, row


def test_a_fault_without_effect_leaves_the_run_undecided(tmp_path: Path) -> None:
    text = STORY.format(fault="link: {from: 1, to: 2, frames: [JOIN], loss: 1}")
    run = RunDir.create(tmp_path, "story", "run")
    simulator.run(plan.load("story.yml", text=text), run, seed=1)
    result = judge(run, "story", 1)
    assert result.exit_code == 2 and result.verdict is not None
    (faults,) = (check for check in result.verdict.checks if check.name == "faults")
    assert faults.result == "UNKNOWN"
    assert faults.detail.endswith("link of node 2 had no effect: 1→2; frames JOIN, loss 1")


def test_a_spoilt_frame_breaks_its_link_which_is_opened_again(tmp_path: Path) -> None:
    text = STORY.format(fault="link: {from: 3, to: 1, frames: [HEARTBEAT], corrupt: 1}")
    run = RunDir.create(tmp_path, "story", "run")
    simulator.run(plan.load("story.yml", text=text), run, seed=1)
    (row,) = (row for row in run.read_faults() if row.step == 2)
    evidence: dict[str, Any] = row.evidence
    assert evidence["corrupted"] > 1, "a link that was not opened again carries one frame only"
