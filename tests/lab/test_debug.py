"""The debugger: any event can be reached, a branch differs only behind its change, and no process is left behind."""

from __future__ import annotations

import io
import random
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from lab import cli
from lab.debug.branch import Branch, as_scenario, begin
from lab.debug.recorder import Change
from lab.debug.shell import Shell, obey
from lab.debug.stepping import SteppingLoop
from lab.debug.views import View, due, views
from lab.plan import scenario as plan
from lab.sim.simulator import Simulation
from lab.steps import Kill, Sleep

SCENARIO = plan.load(
    "stepped.yml",
    text="""
name: stepped
description: A kill under some load.
load: {clients: 2, rate: 100}
steps:
  - load: start
  - sleep: 500ms
  - kill: leader
  - wait: new_leader
  - sleep: 200ms
  - load: stop
""",
)
SEED = 3


@pytest.fixture(scope="module")
def run() -> Iterator[Branch]:
    branch = begin(SCENARIO, SEED)
    yield branch
    branch.close()


def straight(events: set[int]) -> tuple[dict[int, tuple[dict[int, View], list[int]]], int]:
    """Play the run once; return event -> (views, numbers of what is due), and the number of events."""
    found: dict[int, tuple[dict[int, View], list[int]]] = {}

    def on_event(*_: object) -> None:
        if loop.count in events:
            found[loop.count] = views(simulation.cluster), [each.number for each in due(loop)]

    loop = SteppingLoop(on_event)
    simulation = Simulation(SCENARIO, SEED, loop=loop)
    assert simulation.carry_out().invariant == ""
    return found, loop.count


def test_the_state_at_any_event_is_that_of_a_straight_replay(run: Branch) -> None:
    events = set(random.Random(1).sample(range(1, run.recorded.events + 1), 20))
    wanted, count = straight(events)
    assert count == run.recorded.events > 1500
    for event in random.Random(2).sample(sorted(events), 20):
        state = run.go(event)
        assert (state.nodes, [each.number for each in state.due]) == wanted[event]


def test_a_long_run_keeps_few_checkpoints_all_over(run: Branch, monkeypatch: pytest.MonkeyPatch) -> None:
    most = 4
    changed = f"recorder.MOST_CHECKPOINTS, recorder.FIRST_SPACING_S = {most}, 0.002"
    program = f"import sys; from lab.debug import recorder; {changed}; recorder.main(sys.argv[1:])"
    monkeypatch.setattr("lab.debug.branch.RECORDER", (sys.executable, "-c", program))
    other = begin(SCENARIO, SEED)
    assert other.recorded == run.recorded and other.process is not None
    recorder = psutil.Process(other.process.pid)
    while len(checkpoints := recorder.children()) > most:
        psutil.wait_procs(checkpoints, timeout=0.1)
    assert len(checkpoints) > 1
    for event in random.Random(3).sample(range(1, run.recorded.events + 1), 5):
        assert other.go(event) == run.go(event)
    other.close()


def test_the_rows_add_up_to_the_state_at_the_end(run: Branch) -> None:
    shown: dict[int, View] = {}
    rows = run.rows(0, run.recorded.rows)
    assert len(rows) == run.recorded.rows and [row.event for row in rows] == sorted({row.event for row in rows})
    for row in rows:
        for node, changes in row.changes.items():
            shown.setdefault(node, {}).update({name: after for name, (_, after) in changes.items()})
    at_end = run.go(rows[-1].event).nodes
    assert {node: {name: shown[node][name] for name in view} for node, view in at_end.items()} == at_end


def test_a_branch_differs_only_behind_its_change(run: Branch) -> None:
    event = run.recorded.events // 2
    row = run.row_at(event)
    branch = run.branch(Change(event, step="kill: 1"))
    before = run.rows(0, run.recorded.rows)
    assert branch.rows(0, row) == before[: row + 1]
    after = branch.rows(row + 1, branch.recorded.rows)
    assert after[0].changes[1]["role"][1] == "down"
    assert after[0].t_s == pytest.approx(run.go(event).t_s, abs=0.001)
    assert after != before[row + 1 :]
    assert run.rows(0, run.recorded.rows) == before, "the run itself is as it was"
    second = branch.branch(Change(branch.recorded.events, step="sleep: 1s"))
    assert second.rows(0, row) == before[: row + 1]
    second.close()
    branch.close()


def test_a_frame_can_be_lost_or_late_or_early(run: Branch) -> None:
    at = run.rows(run.recorded.rows // 2, run.recorded.rows // 2)[0].event
    state = run.go(at)
    frame = next(each for each in state.due if each.frame)

    def waits(change: Change) -> list[float]:
        """How long that frame is still on its way, in a branch with this change."""
        branch = run.branch(change)
        found = [each.wait_s for each in branch.go(at).due if each.what == frame.what]
        branch.close()
        return found

    assert waits(Change(at, frame=frame.number, drop=True)) == []
    assert waits(Change(at, frame=frame.number, now=True)) == [0.0]
    assert waits(Change(at, frame=frame.number, late_s=0.01)) == [pytest.approx(frame.wait_s + 0.01)]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (Change(900, step="kill: n9"), "allowed leader"),
        (Change(900, step="dance: 1"), "no such step"),
        (Change(900, step="busy: 2"), "a simulation has no processor"),
        (Change(900, step="cut: {from: clients, to: 1}"), "no step about the links of clients"),
        (Change(900, frame=1), "nothing that is due has this number"),
    ],
)
def test_a_change_that_cannot_be_made_is_refused_with_its_reason(run: Branch, change: Change, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        run.branch(change)
    assert run.go(900).event == 900


def test_only_a_frame_can_be_dropped(run: Branch) -> None:
    timer = next(each for each in run.go(900).due if not each.frame)
    with pytest.raises(ValueError, match="allowed: a frame on its way"):
        run.branch(Change(900, frame=timer.number, drop=True))


def test_a_branch_is_saved_as_a_scenario_that_does_its_step_at_the_same_time(run: Branch) -> None:
    state = run.go(run.recorded.events // 4)
    assert state.step == 1, "in the first sleep"
    saved = as_scenario(SCENARIO, [(state, Change(state.event, step="kill: 1"))], "saved")
    first, kill, rest = saved.steps[1:4]
    assert isinstance(first, Sleep) and isinstance(rest, Sleep) and kill == Kill(target=1)
    assert first.time == pytest.approx(state.into_step_s) and first.time + rest.time == pytest.approx(0.5)
    assert plan.load("saved.yml", text=plan.encode(saved)) == saved
    with pytest.raises(ValueError, match="no step for what was done to one frame"):
        as_scenario(SCENARIO, [(state, Change(state.event, frame=1, drop=True))], "saved")


@pytest.mark.parametrize("killed", [False, True])
def test_no_process_is_left_behind(killed: bool) -> None:
    branch = begin(SCENARIO, SEED)
    other = branch.branch(Change(900, step="kill: 1"))
    assert branch.process is not None
    recorder = psutil.Process(branch.process.pid)
    all_of_them = [recorder, *recorder.children(recursive=True)]
    assert len(all_of_them) >= 4, "checkpoints and a branch"
    if killed:
        recorder.kill()
    other.close()
    branch.close()
    assert psutil.wait_procs(all_of_them, timeout=60)[1] == []


# ---- the commands ----------------------------------------------------------------------------------------


def typed(run: Branch, *lines: str) -> list[str]:
    """Return what a new shell writes for these commands."""
    written: list[str] = []
    shell = Shell(SCENARIO, [run], written.append)
    for line in lines:
        assert obey(shell, line)
    for branch in shell.branches[1:]:
        branch.close()
    return written


def test_stepping_forwards_and_backwards_meets_the_same_rows(run: Branch) -> None:
    there = typed(run, "n", "n", "n", "prev 2", "go 0")
    assert there[-1] == "before the first event"
    first = next(line for line in there if "its process starts" in line)
    assert there.count(first) == 2


def test_continue_stops_at_what_was_asked_for_in_both_directions(run: Branch) -> None:
    written = typed(run, "stop becomes", "stop became leader for term 2", "c", "c", "back", "stop -")
    assert sum("Became LEADER for term 2" in line for line in written) == 2
    assert any("the run ends here" in line for line in written) and written[-1] == "stops: none"


def test_where_marks_what_has_changed(run: Branch) -> None:
    row = run.last_row(lambda row: row.t_s < 0.5)
    event = next(each.event for each in run.rows(row, run.recorded.rows) if "term" in str(each.changes))
    table = typed(run, f"go {event}", "where")[-1]
    assert "(was 1)" in table and "node 3" in table


def test_branches_are_listed_and_saved(run: Branch, tmp_path: Path) -> None:
    file = tmp_path / "mine.yml"
    written = typed(run, "go 400ms", "do kill: leader", "tree", f"save {file}", "use 0", "use 7")
    assert any(line.startswith("> 1: from 0 at event") and "kill: leader" in line for line in written)
    assert written[-1] == "found 7, allowed 0..1"
    saved = plan.load(file)
    assert saved.name == "mine" and Kill(target="leader") in saved.steps[:4]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("fly", "found 'fly', allowed next, prev"),
        ("next x", "found 'x', allowed: a whole number"),
        ("go away", "found 'away', allowed: an event, a time"),
        ("drop", "usage: drop NUMBER"),
        ("delay 1 soon", "found 'soon', allowed"),
        ("save x.txt", "found 'x.txt', allowed: a name that ends in .yml"),
        ("do kill: n9", "allowed leader"),
        ("go '", "No closing quotation"),
    ],
)
def test_a_wrong_command_is_told_what_is_allowed(run: Branch, line: str, said: str) -> None:
    assert said in typed(run, line)[0]


def test_a_broken_run_opens_at_its_violation(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    story = Path(cli.__file__).parent / "selftest" / "stories" / "two_votes_in_one_term.yml"
    monkeypatch.setattr("sys.stdin", io.StringIO("where\nquit\nnext\n"))
    assert cli.main(["debug", str(story), "--seed", "1", "--mutant", "two_votes_in_one_term"]) == 0
    out = capsys.readouterr().out
    assert "the run ends here" in out and "A7: " in out and "voted for" in out


def test_a_run_directory_brings_its_seed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "stepped.yml"
    file.write_text(plan.encode(SCENARIO), "utf-8")
    assert cli.main([str(file), "--sim", "--seed", "3", "--out", str(tmp_path)]) == 0
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    assert cli.main(["debug", str(tmp_path / "latest")]) == 0
    assert "stepped, seed 3: " in capsys.readouterr().out


def test_what_is_no_simulated_run_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["debug", str(tmp_path)]) == 64
    assert cli.main(["debug", "no_such_scenario"]) == 64
    err = capsys.readouterr().err
    assert "no_such_scenario" in err and str(tmp_path) in err
