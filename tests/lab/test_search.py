"""The search: it finds broken rules only, repeats its report exactly, and leaves no process behind."""

from __future__ import annotations

import asyncio
import json
import shlex
import signal
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil
import pytest

from lab import cli
from lab.course.simfiles import PowerLost
from lab.live.children import Child
from lab.plan import scenario as plan
from lab.search import failure, search, worker
from lab.search.assumptions import within_assumptions
from lab.search.draw import CHANGING_SHARE, draw
from lab.search.search import Search, Tally, record_finding
from lab.search.worker import Played, play
from lab.sim import simulator
from lab.steps import AddNode, Rebuild, RemoveNode, ReplaceNode

MUTANT = "term_not_durable"


def sim(*options: str, out: Path) -> int:
    return cli.main(["sim", *options, "--out", str(out)])


def sim_json(capsys: pytest.CaptureFixture[str], *options: str, out: Path) -> tuple[int, dict[str, Any]]:
    code = sim("--json", *options, out=out)
    return code, json.loads(capsys.readouterr().out)


# ---- the whole of it --------------------------------------------------------------------------------


def test_the_product_holds_in_a_short_search(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert sim("--seeds", "80", out=tmp_path) == 0
    told = capsys.readouterr()
    assert "seeds 1..80: 80 played, nodes 3,5: " in told.out and "\nfindings: none\n" in told.out
    assert "\nrules without a hit: none\n" in told.out
    assert "sim: 80 of 80 seeds, " in told.err
    assert list(tmp_path.iterdir()) == [], "nothing broke, so nothing is left"


def test_a_broken_rule_is_found_and_its_seed_breaks_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ("--seeds", "60", "--mutant", MUTANT, "-x")
    code, told = sim_json(capsys, *options, out=tmp_path)
    (finding,) = told["findings"]
    assert code == told["exit_code"] == 1
    assert told["played"] == finding["seed"] < 60, "it stopped there"
    run = Path(finding["run"])
    assert run.parent.name == f"drawn_{finding['seed']}"
    assert json.loads((run / "verdict.json").read_text())["outcome"].lower() in finding["verdict"].lower()
    python, lab, command, *again = shlex.split(finding["replay"])
    assert (python, lab, command) == ("python3", "run_lab.py", "sim")
    code, replayed = sim_json(capsys, *again, "--no-shrink", out=tmp_path)
    assert code == 1
    assert [each["text"] for each in replayed["findings"]] == [finding["text"]]
    assert finding["small_steps"] <= 12 and replayed["findings"][0]["small"] is None
    small = plan.load(Path(finding["small"]))
    again_small = failure.play(small, finding["seed"], MUTANT)
    assert again_small is not None and again_small.invariant == finding["invariant"]
    assert small.seed == finding["seed"] and finding["small_replay"].startswith("python")


def test_one_process_and_two_say_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = []
    for jobs in ("1", "2"):
        assert sim("--seeds", "8", "--no-shrink", "--mutant", MUTANT, "--jobs", jobs, out=tmp_path) == 1
        told.append(capsys.readouterr().out)
    assert told[0] == told[1]
    assert "\nfindings: none" not in told[0] and "\n  again: " in told[0]


def test_other_sizes_and_another_first_seed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, told = sim_json(capsys, "--seeds", "4", "--seed", "100", "--nodes", "1", out=tmp_path)
    assert (code, told["first"], told["played"], told["nodes"]) == (0, 100, 4, [1])
    assert {"F2", "R4"} <= set(told["rules_never_hit"]), "a node alone has no leader to suspect and no hole to fill"
    assert "heartbeat_received" in told["events_never_reported"]
    assert any(mark.startswith("R4 ") for mark in told["marks_never_hit"])


def test_the_time_is_limited(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, told = sim_json(capsys, "--time-limit", "1ms", "--jobs", "2", out=tmp_path)
    assert (code, told["asked"], told["played"]) == (0, None, 1)
    code, told = sim_json(capsys, "--time-limit", "1ms", "--seeds", "5", out=tmp_path)
    assert (code, told["asked"], told["played"]) == (0, 5, 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--seeds", "0"], "found '0', allowed 1..2147483647"),
        (["--jobs", "65"], "found '65', allowed 1..64"),
        (["--nodes", "3,10"], "found '10', allowed 1..9, joined by commas"),
        (["--nodes", ""], "found '', allowed 1..9, joined by commas"),
        (["--changing", "50%"], "found '50%', allowed a number from 0 to 1 such as 0.5"),
        (["--changing", "1.5"], "found '1.5', allowed a number from 0 to 1 such as 0.5"),
        (["--seed", "-1"], "allowed 0..2147483647"),
        (["--time-limit", "5"], "found '5', allowed a duration such as 500ms, 2s or 1.5m"),
        (["--mutant", "nothing"], "mutant 'nothing', allowed: "),
    ],
)
def test_a_wrong_option_is_reported_with_the_allowed_values(
    options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        code = cli.main(["sim", *options])
    except SystemExit as end:
        code = int(str(end.code))
    assert code == 64
    assert message in capsys.readouterr().err


# ---- ends before the end ------------------------------------------------------------------------------


def test_an_interrupted_search_reports_its_results_and_leaves_no_process(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    spawn, take = Child.spawn, Tally.take
    pids: list[int] = []

    async def noted(name: str, module: str, log: Path) -> Child:
        child = await spawn(name, module, log)
        pids.append(child.process.pid)
        return child

    def interrupting(tally: Tally, played: Played) -> list[Played]:
        news = take(tally, played)
        if tally.done >= 3:
            signal.raise_signal(signal.SIGINT)
        return news

    monkeypatch.setattr(Child, "spawn", noted)
    monkeypatch.setattr(Tally, "take", interrupting)
    assert sim("--seeds", "1000", "--jobs", "2", out=tmp_path) == 130
    assert " played of 1000 asked for, " in capsys.readouterr().out
    assert len(pids) == 2 and not any(map(psutil.pid_exists, pids))


def test_a_worker_that_ends_fails_the_lab(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search, "encode", lambda order: b"not JSON")
    assert sim("--seeds", "3", "--jobs", "1", out=tmp_path) == 70
    out = capsys.readouterr().out
    assert "no seed: 0 played of 3 asked for" in out
    assert "\nthe lab failed: search worker 1 ended with exit code 1: msgspec.DecodeError" in out


def test_a_worker_that_the_kernel_stops_is_replaced_by_a_plain_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search, "WORKER", "tests.lab.hungworker")
    assert sim("--seeds", "3", "--jobs", "1", "--no-shrink", out=tmp_path) == 1
    out = capsys.readouterr().out
    assert "3 played" in out and "findings: 1\nseed 1: A9: no end within 0 s" in out


# ---- one seed -----------------------------------------------------------------------------------------


def test_a_seed_without_end_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    def endless(*_: object) -> simulator.Outcome:
        while True:
            time.process_time()

    monkeypatch.setattr(simulator, "simulate", endless)
    played = play(1, (3,), 0.1, limit_s=0.05)
    assert (played.invariant, played.text) == ("A9", "no end within 0.05 s of CPU time")
    assert played.endless and record_finding(Search(1, 1, 1), played, Path("nowhere")).run is None


@pytest.mark.parametrize("error", [RuntimeError("the lab is ill"), PowerLost("that no node caught")])
def test_an_error_of_the_lab_is_no_finding_and_ends_no_search(
    monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    def failing(*_: object) -> simulator.Outcome:
        raise error

    monkeypatch.setattr(simulator, "simulate", failing)
    played = play(1, (3,), 0.1)
    assert not played.invariant and played.trouble.endswith(f"{type(error).__name__}: {error}\n")


def test_a_wait_without_success_breaks_recovery(monkeypatch: pytest.MonkeyPatch) -> None:
    outcome = simulator.Outcome(missed=[("send: liveness", "2 messages without an acknowledgement")])
    monkeypatch.setattr(simulator, "simulate", lambda *_: outcome)
    played = play(1, (3,), 0.1)
    assert (played.invariant, played.text) == ("A9", "send: liveness: 2 messages without an acknowledgement")


# ---- what came of them --------------------------------------------------------------------------------


def tally(*, exitfirst: bool = False) -> Tally:
    return Tally(Search(first=5, count=10, jobs=1, exitfirst=exitfirst))


def test_seeds_count_in_their_order() -> None:
    counted = tally()
    assert counted.take(Played(6, invariant="A1", faults={"kill": 2}, marks=("E1 x",))) == []
    assert (counted.done, counted.faults.total()) == (0, 0)
    assert [each.seed for each in counted.take(Played(5, faults={"kill": 1}, marks=("E1 x", "E2 y")))] == [6]
    assert (counted.done, counted.faults["kill"], counted.marks) == (2, 3, {"E1 x": 2, "E2 y": 1})


def test_behind_the_first_finding_nothing_counts_where_it_is_to_stop() -> None:
    counted = tally(exitfirst=True)
    counted.take(Played(6, invariant="A2"))
    counted.take(Played(5, invariant="A1"))
    assert counted.over
    assert (counted.done, [each.seed for each in counted.findings]) == (1, [5])


def test_a_progress_line_has_the_figures() -> None:
    counted = tally()
    counted.take(Played(5, elections=3, messages=40, faults={"kill": 2, "reset": 5}, cpu_s=0.2))
    line = search.progress_line(counted, 0.5)
    assert (
        line
        == "1 of 10 seeds, 2.0/s, 5.0/s a core, plain, findings 0, elections 3, messages 40, faults 7: reset 5, kill 2"
    )


def test_an_error_of_the_lab_is_reported_with_its_exit_code(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def troubled(counted: Tally, tell: object, found: Any) -> None:
        for news in counted.take(Played(1, trouble="Traceback\n  …\nRuntimeError: the lab is ill\n")):
            found(news)
        await asyncio.sleep(0)

    monkeypatch.setattr(search, "play_all", troubled)
    assert sim("--seeds", "1", out=tmp_path) == 70
    assert "\nseed 1: the lab failed: RuntimeError: the lab is ill\n  again: " in capsys.readouterr().out


# ---- what was found ------------------------------------------------------------------------------------

FOUND = sorted((Path(__file__).parent / "found").glob("*.yml"))


@pytest.mark.parametrize("path", FOUND, ids=lambda path: path.stem)
def test_scenarios_of_earlier_findings_pass(path: Path) -> None:
    scenario = plan.load(path)
    assert scenario.seed is not None and scenario.name == path.stem
    for seed in (scenario.seed, *range(1, 6)):
        assert failure.play(scenario, seed) is None, seed


# ---- what is drawn ------------------------------------------------------------------------------------


@pytest.mark.parametrize("nodes", range(1, 10))
def test_a_drawn_scenario_can_be_simulated(nodes: int) -> None:
    for seed in range(30):
        scenario = draw(seed, (nodes,))
        assert scenario.cluster.nodes == nodes and within_assumptions(scenario.steps, nodes)
        assert plan.load("drawn.yml", text=plan.encode(scenario)) == scenario
        assert scenario.sim_refusals() == []
        assert draw(seed, (nodes,)) == scenario


def test_drawn_changes_replace_members_and_rebuild_disks_within_the_assumptions() -> None:
    """Rule: G2, M4."""
    kinds = set()
    for seed in range(100):
        scenario = draw(seed, changing=1.0)
        cluster = scenario.cluster
        assert within_assumptions(scenario.steps, cluster.nodes, cluster.founders), seed
        assert plan.load("drawn.yml", text=plan.encode(scenario)) == scenario and scenario.sim_refusals() == []
        kinds |= {type(step) for step in scenario.steps}
    assert kinds >= {AddNode, RemoveNode, ReplaceNode, Rebuild}


def test_the_share_of_changing_seeds_is_as_asked_for_and_the_other_seeds_stay_as_they_are() -> None:
    drawn = {share: [draw(seed, changing=share) for seed in range(60)] for share in (0.0, CHANGING_SHARE, 0.5, 1.0)}
    grow = {share: {each.name for each in of if each.cluster.founders} for share, of in drawn.items()}
    assert not grow[0.0] and len(grow[1.0]) == 60
    assert grow[CHANGING_SHARE] < grow[0.5] and 20 <= len(grow[0.5]) <= 40
    for small, large in pairwise(drawn.values()):
        assert all(a == b for a, b in zip(small, large, strict=True) if a.cluster.founders or not b.cluster.founders)
    assert drawn[CHANGING_SHARE] == [draw(seed) for seed in range(60)]


def test_a_search_with_another_share_names_it_in_its_commands(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, told = sim_json(capsys, "--seeds", "6", "--changing", "1", "--nodes", "3", out=tmp_path)
    assert (code, told["changing"]) == (0, 1.0) and told["faults"].keys() & {"add_node", "remove_node"}
    assert " --changing 1" in Search(1, 1, 1, changing=1.0).replay(7)
    assert "--changing" not in Search(1, 1, 1).replay(7)


def test_a_worker_knows_its_orders() -> None:
    for order in (worker.Begin((3, 5), 0.1, MUTANT), worker.Seed(7)):
        assert worker.decode_order(worker.encode(order)) == order
