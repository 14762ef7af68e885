"""The selftest: stories catch their mutants and the product passes them; a mutant that escapes ends with 1."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from lab import cli, runs
from lab.check.invariants import check
from lab.check.online import OnlineChecks
from lab.check.verdict import Findings
from lab.mutants.catalogue import MUTANTS, Mutant, mutated
from lab.mutants.patch import Patch
from lab.plan import scenario as plan
from lab.rundir import RunDir
from lab.search.failure import Failure, play
from lab.search.shrink import shrink
from lab.selftest import selftest
from lab.selftest.selftest import LIVE, counts
from lab.selftest.stories import SEEDS, mutants_with_story, story, story_path
from lab.sim.simulator import Simulation
from nodeproc.core import failure as product_failure

MOST_STEPS = 12
each_story = pytest.mark.parametrize("name", mutants_with_story())
PROMISE_ALONE = {
    "rebuilt_node_trusts_whom_it_met",
    "change_right_after_an_election",
    "newcomer_counted",
    "old_majority_for_the_new_mark",
    "members_not_sent_with_a_list",
}
"""Mutants whose stories end at a broken promise, before it does harm."""


def harmless(patch: Patch) -> None:
    """Changes something that nothing depends on."""
    patch.set(product_failure, "__doc__", "changed")


@pytest.fixture
def nothing_broken(monkeypatch: pytest.MonkeyPatch) -> str:
    """A mutant that no check can notice."""
    name = "nothing_is_broken"
    monkeypatch.setitem(MUTANTS, name, Mutant(name, "E1", "Nothing.", harmless))
    return name


def test_every_story_has_a_mutant() -> None:
    assert set(mutants_with_story()) <= set(MUTANTS)
    assert set(LIVE) <= set(mutants_with_story())


@each_story
def test_the_product_passes_a_story_and_its_mutant_does_not(name: str) -> None:
    scenario, mutant = story(name), MUTANTS[name]
    assert scenario is not None and scenario.name == name
    for seed in SEEDS[:3]:
        assert play(scenario, seed) is None, seed
    found = [failure for seed in SEEDS if (failure := play(scenario, seed, name)) is not None][:1]
    assert found and counts(mutant, found[0].invariant), found


def seen_online_only(failure: Failure) -> bool:
    """What a node holds in memory at one moment stands in no file."""
    return failure.invariant == "A10" and ("P1 allows" in failure.text or "S7 allows" in failure.text)


@pytest.mark.parametrize("name", [name for name in mutants_with_story() if name not in PROMISE_ALONE])
def test_the_judges_name_the_same_fed_from_memory_and_from_files(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run that was stopped at its first violation is played again to its end, and judged in both ways.

    Without the promises of nodes to each other, which no file shows.
    """
    monkeypatch.setattr(OnlineChecks, "on_broken_promise", lambda self, invariant, text: None)
    scenario = story(name)
    assert scenario is not None
    seed, stopped = next((seed, failure) for seed in SEEDS if (failure := play(scenario, seed, name)) is not None)
    run = RunDir(tmp_path)
    with mutated(name):
        simulation = Simulation(scenario, seed, mutant=name, findings=Findings)
        simulation.write(run, simulation.carry_out())
    verdict = check(run, None)
    by_files = [each.name for each in verdict.checks if each.result == "FAIL" and each.name != "watch"]
    in_memory = [each.name for each in simulation.checks if each.result == "FAIL"]
    if stopped.step:
        assert any(each.met is False and each.text.endswith(stopped.step) for each in verdict.expectations)
    elif seen_online_only(stopped):
        assert (in_memory, by_files) == (["A10"], [])
    else:
        assert stopped.invariant in by_files
        assert not in_memory or in_memory == by_files


def test_a_liveness_mutant_counts_as_caught_by_a9_only() -> None:
    assert counts(MUTANTS["ok_vetoes"], "A9") and not counts(MUTANTS["ok_vetoes"], "A7")
    assert counts(MUTANTS["minority_elects"], "A7")


def test_caught_mutants_end_with_0_and_their_scenarios_are_small(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ["two_votes_in_one_term", "client_counts_sent_as_acknowledged"]
    assert cli.main(["selftest", "--only", *names, "--jobs", "1", "--out", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert "two_votes_in_one_term " in shown and "2 of 2 mutants caught; median 1 seeds" in shown
    for name in names:
        small = plan.load(tmp_path / "shrunk" / f"{name}.yml")
        assert small.step_count <= MOST_STEPS and small.seed is not None
        first, second = (play(small, small.seed, name) for _ in range(2))
        assert first is not None and first == second and play(small, small.seed) is None


def test_a_mutant_that_escapes_ends_with_1(
    nothing_broken: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(selftest, "story", lambda name: story("two_votes_in_one_term"))
    assert cli.main(["selftest", "--only", nothing_broken, "--out", str(tmp_path)]) == 1
    shown = capsys.readouterr().out
    assert "NOTHING" in shown and f"ESCAPED: {nothing_broken}" in shown and "0 of 1 mutants caught" in shown


def test_drawn_seeds_that_catch_nothing_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--only", "stale_resume_obeyed", "--drawn", "--seeds", "2", "--jobs", "1", "--out", str(tmp_path)]
    assert cli.main(["selftest", *arguments]) == 1
    assert "stale_resume_obeyed: ESCAPED, 2 seeds" in capsys.readouterr().err


def test_an_unknown_mutant_is_64(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["selftest", "--only", "nothing"])
    assert ended.value.code == 64
    assert "mutant 'nothing', allowed: " in capsys.readouterr().err


# ---- on real nodes --------------------------------------------------------------------------------------


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., int]:
    return lambda *arguments: cli.main([*arguments, "--out", str(tmp_path), "--seed", "1"])


@pytest.mark.parametrize("name", LIVE[:2])
def test_real_nodes_that_are_mutants_are_caught_and_others_are_not(name: str, run: Callable[..., int]) -> None:
    assert run(str(story_path(name)), "--mutant", name) in (runs.BROKEN, runs.MISSED)
    assert run(str(story_path(name))) not in (runs.BROKEN, runs.MISSED, runs.HARNESS)


def test_a_story_becomes_smaller_too() -> None:
    scenario = story("vote_without_the_position_check")
    assert scenario is not None
    shrunk = shrink(scenario, 1, scenario.name, simulations=60)
    assert shrunk is not None and shrunk.scenario.step_count < scenario.step_count
