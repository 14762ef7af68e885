"""The simulator: scenarios pass in it, the same seed gives the same bytes, and each fault has its effect."""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from types import FunctionType

import pytest

from lab.course.frames import TRAFFIC
from lab.course.simfiles import PowerLost
from lab.mutants.catalogue import mutated
from lab.places import near
from lab.plan import scenario as plan
from lab.plan.scenario import Scenario
from lab.rows import FaultRow
from lab.rundir import RunDir
from lab.runs import judge
from lab.sim import simulator
from lab.sim.hardware import Syncing
from lab.sim.loop import Deadlock, VirtualLoop
from lab.sim.node import SimNode
from lab.steps import CHANGES
from nodeproc.core.messages import START, Position
from nodeproc.disk.reading import Reading
from nodeproc.disk.scrub import Scrub
from nodeproc.errors import CorruptionError, Unreadable, WriteFailed

PROJECT = Path(__file__).resolve().parents[2]
SCENARIOS = PROJECT / "scenarios"
LONG = ("nemesis_mixed",)
"""A minute each, in virtual time; their parts are tested below."""
QUICK = [
    path for path in sorted(SCENARIOS.glob("*.yml")) if not plan.load(path).sim_refusals() and path.stem not in LONG
]


def story(
    steps: str, *, nodes: int | str = 3, load: str = "null", more: str = "", founders: int | None = None
) -> Scenario:
    text = f"""
name: story
description: A story.
cluster: {{nodes: {nodes}{"" if founders is None else f", founders: {founders}"}}}
load: {load}
steps:
{steps}
{more}
"""
    return plan.load("story.yml", text=text)


def contents(run: RunDir) -> dict[str, bytes]:
    return {str(path.relative_to(run.path)): path.read_bytes() for path in run.path.rglob("*") if path.is_file()}


def simulate_into(path: Path, scenario: Scenario, seed: int) -> RunDir:
    run = RunDir.create(path, scenario.name, "run")
    simulator.run(scenario, run, seed=seed)
    return run


@pytest.mark.parametrize("path", QUICK, ids=lambda path: path.stem)
def test_a_scenario_passes_in_virtual_time(path: Path) -> None:
    for seed in (1, 2):
        outcome = simulator.simulate(plan.load(path), seed)
        assert (outcome.invariant, outcome.text, outcome.missed) == ("", "", []), seed


def test_the_same_seed_leaves_the_same_bytes_and_the_judges_agree(tmp_path: Path) -> None:
    scenario = plan.load(SCENARIOS / "repeated_leader_kills.yml")
    first = simulate_into(tmp_path / "a", scenario, 7)
    second = simulate_into(tmp_path / "b", scenario, 7)
    other = simulate_into(tmp_path / "c", scenario, 8)
    for run in (first, second, other):
        assert judge(run, scenario.name, None).exit_code == 0
    assert contents(first) == contents(second)
    assert contents(first) != contents(other)


EVERY_KIND = """
name: every_kind
description: Each kind of step that a simulation has, one behind the other.
cluster: {nodes: 5, log_level: DEBUG}
load: {clients: 4, rate: 60, duration: 9s, deadline: 20s}
subscribers: 2
bounds: {recovery: 30s, convergence: 60s}
steps:
  - load: start
  - send: {client: 101, messages: 3}
  - kill: leader
  - wait: new_leader
  - start: killed
  - pause: follower
  - sleep: 300ms
  - resume: paused
  - restart: {target: follower, how: stop, down_for: 200ms}
  - link: {loss: 0.1, duplicate: 0.1, delay: 5ms, jitter: 10ms, distribution: exponential}
  - sleep: 500ms
  - link: {reorder: {every: 3, behind: 2}, corrupt: 0.05}
  - sleep: 500ms
  - heal: links
  - partition: halves
  - sleep: 700ms
  - heal: links
  - reset: {from: 1, to: all}
  - clock: {on: 2, drift: 0.1, jump: 5s}
  - power_loss: {target: follower, mid_write: true}
  - sleep: 500ms
  - start: killed
  - disk: {on: 3, slow: 50ms}
  - sleep: 300ms
  - heal: all
  - disk: {on: 4, full: true}
  - sleep: 500ms
  - heal: all
  - wait: {for: caught_up, on: all}
  - sleep: 1s
  - rebuild: 2
  - wait: {for: caught_up, on: all, within: 30s}
  - full_restart: kill
  - wait: {for: load_done, within: 60s}
  - wait: idle
  - expect: {caught_up: all}
expectations:
  - acknowledged: 500
"""


def test_two_processes_leave_the_same_bytes_whatever_their_hashes_are(tmp_path: Path) -> None:
    """The whole directory, verdict, metrics and tables included: nothing in it follows from the time or a hash."""
    scenario = tmp_path / "every_kind.yml"
    scenario.write_text(EVERY_KIND)
    found = []
    for seed in ("1", "2"):
        out = tmp_path / seed
        command = [sys.executable, "run_lab.py", str(scenario), "--sim", "--frames", "--seed", "7", "--out", str(out)]
        ended = subprocess.run(command, cwd=PROJECT, env={**os.environ, "PYTHONHASHSEED": seed}, capture_output=True)
        assert ended.returncode == 0, ended.stdout.decode()[-3000:] + ended.stderr.decode()
        run = RunDir.open(out / "latest")
        page = run.report.read_text("utf-8")
        run.report.write_text(page.replace(str(near(run.path)), "RUN"), "utf-8")  # It names the directory in commands.
        found.append(contents(run))
    assert set(found[0]) > {"verdict.json", "metrics.json", "summary.txt", "junit.xml", "report.html", "frames.jsonl"}
    assert {name for name, data in found[0].items() if found[1].get(name) != data} == set()
    assert set(found[0]) == set(found[1])


def test_what_nodes_say_is_kept_where_it_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scenario = story("  - send: {client: 1, messages: 1}\n  - cut: {from: 3, to: 1}\n  - sleep: 200ms")
    monkeypatch.setattr("lab.course.frames.TRAFFIC_AFTER", 1)
    chosen = list(simulate_into(tmp_path / "a", scenario, 1).read_frames())
    run = RunDir.create(tmp_path, scenario.name, "run")
    simulator.run(scenario, run, seed=1, frames=True)
    rows = list(run.read_frames())
    assert [row.t for row in rows] == sorted(row.t for row in rows)
    append = next(row for row in rows if row.kind == "APPEND" and "1..1 of term 1 behind 1:0" in row.text)
    assert append.source == 3 and len(append.arrived) == 1 and append.arrived[0] > append.t
    assert any(row.kind == "HEARTBEAT" and not row.arrived and (row.source, row.to) == (3, 1) for row in rows)
    assert run.read_meta().frames == "all"
    news = [row for row in rows if row.kind not in TRAFFIC]
    assert [row for row in chosen if row.kind not in TRAFFIC] == news != []
    assert set(chosen) < set(rows) and len(chosen) <= 2 * len(news)
    assert all("poll" not in row.text and "request" not in row.text for row in rows)


FAULTS = {
    "power_loss": "  - power_loss: leader\n  - sleep: 500ms\n  - start: killed",
    "power_loss in a write": "  - power_loss: {target: 3, mid_write: true}\n  - sleep: 500ms\n  - heal: all",
    "pause": "  - pause: leader\n  - wait: new_leader\n  - resume: paused",
    "reset": "  - reset: {from: 1, to: 3}\n  - sleep: 200ms",
    "clock": "  - clock: {on: 2, drift: 0.2}\n  - clock: {on: 3, jump: 5s}\n  - sleep: 500ms",
    "rebuild": "  - sleep: 200ms\n  - rebuild: 2\n  - sleep: 2s",
    "link": "  - link: {loss: 0.2, duplicate: 0.2}\n  - sleep: 1s\n  - heal: links",
}


@pytest.mark.parametrize("kind", FAULTS)
def test_a_fault_hits_and_is_survived(kind: str) -> None:
    load = "{clients: 3, rate: 200, duration: 3s}"
    steps = f"  - load: start\n  - wait: {{for: acknowledged, count: 20}}\n{FAULTS[kind]}\n  - wait: load_done"
    scenario = story(steps, load=load, more="bounds: {convergence: 60s}")
    for seed in range(1, 6):
        outcome = simulator.simulate(scenario, seed)
        assert (outcome.invariant, outcome.text) == ("", ""), seed
        assert outcome.faults.get(kind, 0) >= 1, (seed, outcome.faults)


def test_a_trigger_fires_in_the_middle_of_other_steps_and_once() -> None:
    steps = """  - when: {so: {for: event, is: became_leader}, do: [{kill: leader}, {sleep: 300ms}, {start: killed}]}
  - when: {so: term_change, do: [{pause: 1}, {sleep: 100ms}, {resume: 1}]}
  - load: start
  - wait: {for: acknowledged, count: 20}
  - kill: leader
  - wait: load_done"""
    for seed in range(1, 4):
        outcome = simulator.simulate(story(steps, nodes=5, load="{rate: 100, duration: 4s}"), seed)
        assert (outcome.invariant, outcome.text, outcome.missed) == ("", "", []), seed
        assert (outcome.faults["kill"], outcome.faults["pause"], outcome.faults["start"]) == (2, 1, 2)


def test_a_trigger_that_does_not_fire_is_missed() -> None:
    outcome = simulator.simulate(story("  - when: {so: term_change, do: [{kill: 1}]}\n  - sleep: 1s"), 1)
    assert [found for _, found in outcome.missed] == ["it did not come true"]
    assert outcome.faults.get("kill", 0) == 0


def test_a_follower_is_caught_in_the_middle_of_its_catch_up(tmp_path: Path) -> None:
    steps = """  - kill: 1
  - load: start
  - wait: {for: acknowledged, count: 2000}
  - when: {so: {for: caught_up, on: 1, share: 0.5}, do: [{kill: 1}, {sleep: 1s}, {start: 1}]}
  - load: stop
  - link: {from: leader, to: 1, bandwidth: 200000}
  - start: 1
  - wait: {for: caught_up, on: 1, within: 30s}"""
    scenario = story(steps, load="{rate: 1000, size: 500}")
    run = simulate_into(tmp_path, scenario, 1)
    assert judge(run, scenario.name, None).exit_code == 0
    (kill,) = [row for row in run.read_faults() if row.fault == "kill" and row.step == 3]
    delivered = [
        event["last_seq"] for event in map(json.loads, run.events(1).open("rb")) if event["event"] == "starting"
    ]
    assert kill.effect and 1000 <= delivered[-1] < 1600


def test_a_newcomer_that_nobody_adds_is_missed_by_no_check(tmp_path: Path) -> None:
    steps = "  - load: start\n  - restart: all\n  - wait: idle"
    scenario = story(steps, nodes="4, founders: 3", load="{rate: 100, count: 50}")
    run = simulate_into(tmp_path, scenario, 1)
    assert judge(run, scenario.name, None).exit_code == 0
    assert [row.target for row in run.read_faults() if row.fault == "start"] == [1, 2, 3]


def test_a_nemesis_does_all_its_faults_before_one_comes_again_and_heals_each(tmp_path: Path) -> None:
    faults = (
        "[{kill: leader}, {pause: follower}, {partition: halves}, {link: {loss: 0.5}}, {chaos: 300ms}, {kill: paused}, "
        "{power_loss: leader}, {disk: {on: leader, failing: sync}}]"
    )
    steps = f"  - load: start\n  - nemesis: {{for: 16s, every: 1s, faults: {faults}}}\n  - wait: leader\n  - load: stop"
    scenario = story(steps, nodes=5, load="{clients: 3, rate: 50}")
    for seed in (1, 2):
        run = simulate_into(tmp_path / str(seed), scenario, seed)
        assert judge(run, scenario.name, None).exit_code == 0
        rounds = {row.round: row.asked for row in run.read_faults() if row.round}
        assert set(rounds.values()) == {
            "kill: leader",
            "pause: follower",
            "partition: halves",
            "link: {loss: 0.5}",
            "chaos: 300ms",
            "power_loss: leader",
            "disk: {on: leader, failing: sync}",
        }
        held = ("kill", "pause", "link", "chaos", "power_loss", "disk")
        assert all(row.t_healed for row in run.read_faults() if row.fault in held)


def test_clients_of_a_minority_are_told_so_and_those_of_a_majority_are_not() -> None:
    steps = """  - partition: {kind: minority, node: 3}
  - wait: {for: event, is: quorum_lost, on: 3}
  - send: {client: 1, via: 3, messages: 1, refused: true}
  - wait: {for: event, is: became_leader, on: [1, 2]}
  - send: {client: 2, via: 1, messages: 1}
  - send: {client: 2, messages: 1, refused: true, within: 2s}
"""
    outcome = simulator.simulate(story(steps), 1)
    assert [found for _, found in outcome.missed] == ["no refusal within 2s: node 1 says: node 2 leads"]


def test_a_nemesis_changes_the_members_while_its_faults_are_in_force(tmp_path: Path) -> None:
    """Rule: G2."""
    changes = (
        "add_node: newcomer",
        "remove_node: follower",
        "replace_node: {target: follower, with: newcomer}",
    )
    faults = ", ".join(f"{{{each}}}" for each in (*changes, "kill: leader", "pause: follower"))
    steps = (
        f"  - load: start\n  - nemesis: {{for: 20s, every: 1s, faults: [{faults}]}}\n  - wait: leader\n  - load: stop"
    )
    scenario = story(steps, nodes=7, load="{clients: 3, rate: 50}", founders=3)
    run = simulate_into(tmp_path, scenario, 1)
    assert judge(run, scenario.name, None).exit_code == 0
    rows = run.read_faults()
    assert {row.asked for row in rows if row.round} == {*changes, "kill: leader", "pause: follower"}
    added = [row.target for row in rows if row.fault == "add_node" and row.effect]
    assert added == [4, 5, 6, 7] and sum(row.fault == "remove_node" and row.effect for row in rows) >= 4
    done = [row for row in rows if row.fault in CHANGES]
    others = [row for row in rows if row.fault in ("kill", "pause")]
    assert any(change.t < other.t < change.t_done for change in done for other in others), "beside each other"


def test_a_lost_node_is_replaced_while_another_one_is_killed(tmp_path: Path) -> None:
    """Rule: G2, M4."""
    steps = """  - load: start
  - wait: {for: acknowledged, count: 50}
  - disk: {on: 1, lose: all}
  - when: {so: {for: event, is: change_started}, do: [kill: 3, sleep: 1s, start: 3]}
  - replace_node: {target: 1, with: 4, within: 20s}
  - replace_node: {target: 1, with: 4}
  - load: stop"""
    scenario = story(steps, nodes=4, load="{clients: 3, rate: 50}", founders=3)
    run = simulate_into(tmp_path, scenario, 1)
    assert judge(run, scenario.name, None).exit_code == 0
    [added, again, *_] = [row for row in run.read_faults() if row.fault == "add_node"]
    removed = [row for row in run.read_faults() if row.fault == "remove_node"]
    kill = next(row for row in run.read_faults() if row.fault == "kill" and row.target == 3)
    assert added.t < kill.t < added.t_done <= removed[0].t, "the new node first, and the kill in the middle"
    assert removed[0].evidence["voters"] == [2, 3, 4] and again.t_done == again.t, "done already"


def test_a_rule_for_no_link_is_over_at_once(tmp_path: Path) -> None:
    """A cluster that has shrunk to one member has no links."""
    steps = "  - remove_node: 1\n  - partition: {kind: isolate, node: 2}\n  - send: {client: 1, via: 2, messages: 1}"
    run = simulate_into(tmp_path, story(steps, nodes=2, founders=2), 1)
    checks = {check.name: check for check in judge(run, "story", None).verdict.checks}  # type: ignore[union-attr]
    assert "had no effect" in checks["faults"].detail, checks["faults"]
    (row,) = [row for row in run.read_faults() if row.fault == "link"]
    assert row.t_healed == row.t_done and not row.effect


def test_a_nemesis_that_finds_nobody_is_missed() -> None:
    outcome = simulator.simulate(story("  - nemesis: {for: 1s, every: 300ms, faults: [{kill: paused}]}"), 1)
    assert [found for _, found in outcome.missed] == ["the targets of all 4 faults meant no node"]


CLIENT_LINKS = {
    "delayed": "  - link: {from: clients, to: all, delay: 20ms, jitter: 30ms}",
    "cut": "  - link: {from: all, to: clients, chunk: 7}",
    "refused": "  - link: {from: clients, to: 2, refuse: true}",
    "reset": "  - link: {from: clients, to: 1, refuse: true}",
}


@pytest.mark.parametrize("effect", CLIENT_LINKS)
def test_links_of_clients_are_treated_and_nothing_is_lost(effect: str, tmp_path: Path) -> None:
    steps = f"""  - load: start
  - wait: {{for: acknowledged, count: 60}}
{CLIENT_LINKS[effect]}
  - send: {{client: 7, via: 2, messages: 5, wait: false}}
  - sleep: 700ms
  - reset: {{from: clients, to: 3}}
  - wait: {{for: acknowledged, count: 60}}
  - heal: links
  - wait: load_done"""
    scenario = story(steps, load="{clients: 3, rate: 100, duration: 3s}")
    for seed in (1, 2):
        run = simulate_into(tmp_path / str(seed), scenario, seed)
        verdict = judge(run, scenario.name, seed)
        assert verdict.exit_code == 0, verdict.text()
        link, reset = (row for row in run.read_faults() if row.fault in ("link", "reset"))
        assert link.evidence[effect] > 0 and reset.evidence["connections"] > 0


@pytest.mark.parametrize(
    ("disk", "event"),
    [("{on: 2, full: true}", "failed"), ("{on: 2, failing: sync}", "failed"), ("{on: 2, slow: 300ms}", "delivered")],
)
def test_a_disk_that_fails_ends_its_node_and_a_slow_one_does_not(disk: str, event: str) -> None:
    steps = f"""  - load: start
  - disk: {disk}
  - wait: {{for: acknowledged, count: 60}}
  - heal: all
  - wait: load_done"""
    scenario = story(steps, load="{clients: 2, rate: 100, duration: 2s}")
    for seed in range(1, 4):
        outcome = simulator.simulate(scenario, seed)
        assert (outcome.invariant, outcome.text, outcome.missed) == ("", "", []), seed
        assert outcome.events.get(event, 0) >= 1


def test_rot_in_the_log_is_noticed_and_a_rebuild_mends_it() -> None:
    steps = """  - load: start
  - wait: {for: acknowledged, count: 100}
  - disk: {on: 2, rot: wal}
  - start: 2
  - wait: {for: event, is: failed, on: 2}
  - rebuild: 2
  - wait: {for: caught_up, on: 2}
  - wait: load_done"""
    scenario = story(steps, load="{clients: 2, rate: 200, duration: 3s}")
    for seed in range(1, 6):
        outcome = simulator.simulate(scenario, seed)
        assert (outcome.invariant, outcome.text, outcome.missed) == ("", "", []), seed


@pytest.mark.parametrize("ends", [PowerLost(), WriteFailed("given up"), CorruptionError("diverged")])
def test_what_ends_a_node_while_it_scrubs_ends_that_node_alone(
    monkeypatch: pytest.MonkeyPatch, ends: BaseException
) -> None:
    """A repair reads and writes: a power loss may come in the middle of that as well."""
    ended: list[int] = []
    read, end = Scrub.read, SimNode.end

    def damaged(scrub: Scrub) -> tuple[Position, int]:
        if not ended:
            raise Unreadable(START, "a file", 0, "damaged")
        return read(scrub)

    def repair(reading: Reading, error: Unreadable) -> bool:
        raise ends

    def note(node: SimNode, code: int, *, asked: bool) -> None:
        ended.append(node.node)
        end(node, code, asked=asked)

    monkeypatch.setattr(Scrub, "read", damaged)
    monkeypatch.setattr(Reading, "repair", repair)
    monkeypatch.setattr(SimNode, "end", note)
    simulator.simulate(story("  - sleep: 3s"), 1)
    assert ended


def test_a_heal_lets_a_sync_return_early_only_on_a_disk_that_was_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    early: list[int] = []
    quicken = Syncing.quicken

    def note(syncing: Syncing) -> None:
        early.append(1)
        quicken(syncing)

    monkeypatch.setattr(Syncing, "quicken", note)
    for fault, expected in (("full: true", 0), ("slow: 50ms", 1)):
        early.clear()
        steps = f"  - disk: {{on: 2, {fault}}}\n  - sleep: 100ms\n  - heal: disks\n  - sleep: 100ms"
        outcome = simulator.simulate(story(steps), 1)
        assert (outcome.text, len(early)) == ("", expected)


def judged_story(path: Path, steps: str) -> tuple[dict[str, str], list[FaultRow]]:
    """Judge a simulated story under load: check -> result, and the rows of its faults."""
    around = f"  - load: start\n  - wait: {{for: acknowledged, count: 60}}\n{steps}\n  - wait: load_done"
    run = simulate_into(path, story(around, load="{clients: 2, rate: 100, duration: 3s}"), 7)
    verdict = judge(run, "story", None).verdict
    assert verdict is not None
    return {each.name: each.result for each in verdict.checks}, run.read_faults()


DISKS = {
    "full": ("{on: 2, full: true}", "  - wait: {for: ended, on: 2}\n  - heal: all", ["exit", "disk"]),
    "failing": ("{on: 2, failing: append}", "  - wait: {for: ended, on: 2}\n  - heal: all", ["exit", "disk"]),
    "slow": ("{on: 2, slow: 50ms}", "  - wait: {for: acknowledged, count: 20}\n  - heal: disks", ["disk"]),
    "lost": ("{on: 2, lose: messages}", "  - start: 2\n  - wait: {for: caught_up, on: 2}", ["kill", "disk"]),
    "rotten": ("{on: 2, rot: messages}", "  - start: 2\n  - wait: {for: caught_up, on: 2}", ["kill", "disk"]),
}


@pytest.mark.parametrize(("disk", "then", "rows"), DISKS.values(), ids=DISKS.keys())
def test_a_fault_of_a_disk_leaves_its_evidence(tmp_path: Path, disk: str, then: str, rows: list[str]) -> None:
    results, faults = judged_story(tmp_path, f"  - disk: {disk}\n{then}")
    assert set(results.values()) == {"PASS"}
    assert {(row.fault, row.effect) for row in faults if row.target == 2 and row.fault != "start"} == {
        (row, True) for row in rows
    }


NO_EFFECT = {
    "a full disk that nobody writes to": "  - wait: load_done\n  - wait: idle\n  - disk: {on: 2, full: true}",
    "a slow disk that nobody syncs": "  - wait: load_done\n  - wait: idle\n  - disk: {on: 2, slow: 9ms}",
    "a checkpoint that is not there": "  - disk: {on: 2, lose: checkpoint}\n  - start: 2",
    "a torn log without a load": "  - wait: load_done\n  - wait: idle\n  - power_loss: {target: 2, tail: torn}",
    "a power loss of a node that is down": "  - kill: 2\n  - power_loss: 2",
}


@pytest.mark.parametrize("steps", NO_EFFECT.values(), ids=NO_EFFECT.keys())
def test_a_fault_of_a_disk_without_effect_leaves_the_run_undecided(tmp_path: Path, steps: str) -> None:
    results, _ = judged_story(tmp_path, steps)
    assert results["faults"] == "UNKNOWN"


def test_a_start_that_should_be_refused_and_is_not_is_missed() -> None:
    outcome = simulator.simulate(story("  - kill: 1\n  - start: {target: 1, refuses: true}"), 1)
    assert outcome.missed == [("start: {target: 1, refuses: true}", "node 1 did not refuse its disk")]


@pytest.mark.filterwarnings("error")
def test_a_task_that_has_not_begun_when_the_run_ends_leaves_no_warning() -> None:
    loop = VirtualLoop()

    async def never() -> None:
        raise AssertionError("it began")

    async def main() -> None:
        loop.create_task(never())

    loop.run(main())
    gc.collect()


def test_a_loop_in_virtual_time_does_not_wait_and_knows_when_nothing_can_come() -> None:
    loop = VirtualLoop()

    async def never() -> None:
        await loop.create_future()

    with pytest.raises(Deadlock):
        loop.run(never())


def test_what_breaks_in_a_simulation_is_in_its_run_directory(tmp_path: Path) -> None:
    scenario = story("  - cut: {from: 3, to: [1, 2], both: true}\n  - pause: leader\n  - sleep: 1s", nodes=4)
    with mutated("classic_bully_without_majority"):
        run = simulate_into(tmp_path, scenario, 1)
    watched = run.read_meta().watched
    verdict = judge(run, scenario.name, 1).verdict
    assert watched.startswith(("A7: ", "assert: ")) and verdict is not None and verdict.exit_code == 1
    assert [check.detail for check in verdict.checks if check.name == "watch"] == [watched]


def test_code_of_a_node_that_fails_is_the_products_failure_and_code_of_the_lab_is_ours(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scenario = story("  - sleep: 1s")

    def wrong(*_: object) -> None:
        raise KeyError("missing")

    monkeypatch.setattr("lab.check.online.OnlineChecks.on_event", wrong)
    with pytest.raises(KeyError):
        simulator.simulate(scenario, 1)
    monkeypatch.undo()
    monkeypatch.setattr(
        "nodeproc.core.election.become_leader", FunctionType(wrong.__code__, {"__name__": "nodeproc.core.election"})
    )
    outcome = simulator.simulate(scenario, 1)
    assert outcome.invariant == "crash" and outcome.text.endswith("wrong: KeyError: 'missing'")


def test_links_that_flap_leave_a_row_for_each_cut_and_are_healed_by_it(tmp_path: Path) -> None:
    results, rows = judged_story(tmp_path, "  - flap: {from: 3, to: 1, times: 3, down_for: 100ms, up_for: 50ms}")
    assert set(results.values()) == {"PASS"}
    flaps = [row for row in rows if row.fault == "link"]
    assert [row.evidence["pairs"] for row in flaps] == [[[1, 3], [3, 1]]] * 3
    assert [round((row.t_healed - row.t) / 1e6) for row in flaps] == [100] * 3
    assert all(row.effect for row in flaps)
    assert [round((later.t - row.t) / 1e6) for row, later in pairwise(flaps)] == [150] * 2
