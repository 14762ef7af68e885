"""Shrinking: a failing scenario becomes small and still breaks the same invariant."""

from __future__ import annotations

import argparse
from functools import lru_cache
from pathlib import Path

import pytest
from msgspec import structs

from lab import cli
from lab.plan import scenario as plan
from lab.plan.scenario import Cluster, Load, Scenario
from lab.search import search
from lab.search import shrink as shrinking
from lab.search.assumptions import within_assumptions
from lab.search.draw import draw
from lab.search.failure import Failure, failure_of, play
from lab.search.reductions import (
    reduced_cluster,
    reduced_load,
    reduced_steps,
    without_a_node,
    without_slices,
)
from lab.search.shrink import report, shrink, write
from lab.sim.simulator import Outcome
from lab.steps import (
    Cut,
    Disk,
    Heal,
    Kill,
    Link,
    LoadSwitch,
    Nemesis,
    Partition,
    Rebuild,
    Restart,
    Send,
    Sender,
    Sleep,
    Start,
    Step,
    Wait,
    When,
)
from lab.steps.reducing import nice
from lab.steps.wait import UntilAcknowledged
from lab.steps.wait import UntilCaughtUp as CaughtUp
from lab.words import Duration

PROJECT = Path(__file__).resolve().parents[2]
MOST_STEPS = 12


@lru_cache
def failing_seed(mutant: str) -> int:
    """The first seed whose drawn scenario this mutant fails."""
    return next(seed for seed in range(200) if play(draw(seed), seed, mutant) is not None)


@pytest.mark.parametrize("mutant", ["classic_bully_without_majority", "truncation_below_commit_accepted"])
def test_a_planted_bug_becomes_a_short_scenario_that_fails_each_time(mutant: str, tmp_path: Path) -> None:
    seed = failing_seed(mutant)
    first, told = play(draw(seed), seed, mutant), list[str]()
    shrunk = shrink(draw(seed), seed, mutant, tell=told.append)
    assert shrunk is not None and shrunk.minimal and shrunk.failure.like(first)
    assert shrunk.scenario.step_count <= MOST_STEPS < draw(seed).step_count
    assert within_assumptions(shrunk.scenario.steps, shrunk.scenario.cluster.nodes)
    assert told[-1].startswith(f"{shrunk.scenario.step_count} step")
    path = write(shrunk, tmp_path)
    again = plan.load(path)
    assert path.parent == tmp_path / "shrunk" and again.steps == shrunk.scenario.steps and again.seed == seed
    assert play(again, seed, mutant) == play(again, seed, mutant) == shrunk.failure
    assert play(again, seed) is None, "the product itself stands it"


def test_a_scenario_that_does_not_fail_is_not_shrunk() -> None:
    assert shrink(draw(3), 3) is None


def test_simulations_are_counted_and_end() -> None:
    mutant = "classic_bully_without_majority"
    seed = failing_seed(mutant)
    shrunk = shrink(draw(seed), seed, mutant, simulations=10)
    assert shrunk is not None and shrunk.simulations == 10 and not shrunk.minimal
    assert "after 10 simulations, the limit" in report(shrunk, Path("x.yml"))


def test_the_report_has_the_commands_for_both_worlds() -> None:
    live = Scenario(name="a", description="b", steps=(Kill(target=1),), seed=4)
    shrunk = shrinking.Shrunk(live, Failure("A1", "differs"), "two_votes_in_one_term", 7, True)
    told = report(shrunk, Path("x.yml"))
    assert "run_lab.py x.yml --sim --seed 4 --frames --mutant two_votes_in_one_term\n" in told
    assert told.endswith("run_lab.py x.yml --seed 4 --mutant two_votes_in_one_term")


# ---- what a failure is --------------------------------------------------------------------------------------


def test_a_wait_without_success_breaks_a9_and_is_like_itself_only() -> None:
    missed = failure_of(Outcome(missed=[("liveness", "2 messages without an acknowledgement")]))
    assert missed == Failure("A9", "liveness: 2 messages without an acknowledgement", "liveness")
    assert missed.like(Failure("A9", "liveness: 1 message", "liveness"))
    assert not missed.like(Failure("A9", "the nodes did not become the same"))
    assert not missed.like(None)
    assert failure_of(Outcome()) is None


def test_an_assertion_is_like_another_of_the_same_function_only() -> None:
    first = Failure("assert", "nodeproc.core.log.append: position 3")
    assert first.like(Failure("assert", "nodeproc.core.log.append: position 4"))
    assert not first.like(Failure("assert", "nodeproc.disk.storage.deliver: position 3"))


# ---- what is sound ------------------------------------------------------------------------------------------

WHOLE: tuple[Step, ...] = (
    Heal(what="all"),
    Wait(until=CaughtUp(on="all", within=Duration(30))),
    Sleep(time=Duration(1)),
)
SEND = Send(clients=(Sender(client=1, messages=1, via=2),))


@pytest.mark.parametrize(
    ("steps", "sound"),
    [
        ((*WHOLE, Rebuild(target=1)), True),
        ((Heal(what="all"), Rebuild(target=1)), True),
        ((Rebuild(target=1), Kill(target=2), Rebuild(target=1)), True),
        ((Rebuild(target=1), Heal(what="all"), Rebuild(target=2)), False),
        ((Rebuild(target=1), *WHOLE, Rebuild(target=2)), True),
        ((Rebuild(target="leader"),), False),
        ((Rebuild(target=1), WHOLE[1]), False),
        ((Disk(on=2, rot="old_lines"), Rebuild(target=1)), False),
        ((Disk(on=2, rot="old_lines"), Kill(target=(1, 3)), Heal(what="all", on=(2, 3)), SEND), False),
        ((Disk(on=2, rot="old_lines"), *WHOLE[:2], Heal(what="all", on=(2, 3)), SEND), True),
        ((Heal(what="all"), Disk(on=1, rot="wal"), Rebuild(target=1)), False),
        ((*WHOLE, Disk(on=1, rot="wal"), Rebuild(target=1)), True),
        ((Disk(on=1, lose="all"), Restart(target=(2, 3)), Start(target=1), Rebuild(target=1)), True),
        ((Disk(on=1, lose="all"), Heal(what="links"), Rebuild(target=1)), False),
        ((Disk(on=1, lose="all"), Start(target=1)), False),
        ((Disk(on=(1, 2), lose="all"), Rebuild(target=(1, 2))), False),
        ((Rebuild(target=2), Disk(on=1, lose="all"), Rebuild(target=1)), False),
        ((Disk(on=1, lose="wal"), Rebuild(target=1)), False),
        ((*WHOLE, Disk(on=1, lose="wal"), Restart(target=2), Rebuild(target=1)), False),
        ((*WHOLE, Rebuild(target=1), Heal(what="all"), SEND), False),
        ((*WHOLE, Rebuild(target=1), *WHOLE[:2], Heal(what="all"), SEND), True),
        ((Heal(what="all", on=(1, 2)), SEND), True),
        ((Heal(what="all", on=(2,)), SEND), False),
        ((Heal(what="all", on=(1, 3)), SEND), False),
        ((Heal(what="all", on=(1, 2)), Partition(kind="isolate", node=(3,)), SEND), True),
        ((Heal(what="all", on=(1, 2)), Partition(kind="isolate", node=(1,)), SEND), False),
        ((Heal(what="all", on=(1, 2)), Partition(kind="halves"), SEND), False),
        ((Heal(what="all", on=(1, 2)), Cut(source=(3,)), Disk(on=(1, 2), slow=Duration(1)), SEND), True),
        ((Heal(what="all", on=(1, 2)), Cut(source=(3,), frames=("APPEND",)), SEND), False),
        ((Heal(what="all", on=(1, 2)), Cut(to=(3,), frames=("OK", "VOTE")), SEND), True),
        ((Heal(what="all", on=(1, 2)), Cut(to=(3,), frames=("APPEND", "VOTE")), SEND), True),
        ((Heal(what="all", on=(1, 2)), Cut(source=(1, 2), to=(3,), frames=("APPEND",)), SEND), False),
        ((Heal(what="all", on=(1, 2)), Cut(to=(3,), frames=("APPEND",), both=True), SEND), False),
        ((Heal(what="all", on=(1, 2)), Cut(to=(3,), frames=("HEARTBEAT",)), SEND), False),
        ((Heal(what="all", on=(1, 2)), Cut(source="leader"), SEND), False),
        ((Heal(what="all", on=(1, 2)), Disk(on=1, full=True), SEND), False),
        ((Heal(what="links"), SEND), False),
        ((SEND,), False),
        ((structs.replace(SEND, wait=False),), True),
        ((Kill(target=(1, 2, 3)), Start(target="all")), True),
    ],
)
def test_the_protocols_assumptions(steps: tuple[Step, ...], sound: bool) -> None:
    assert within_assumptions(steps, nodes=3) is sound


def test_every_drawn_scenario_keeps_the_assumptions_and_is_written_briefly_the_same() -> None:
    for seed in range(60):
        scenario = draw(seed)
        assert within_assumptions(scenario.steps, scenario.cluster.nodes), seed
        assert plan.load("drawn", text=plan.encode_brief(scenario)) == scenario, seed


@pytest.mark.parametrize("path", sorted((PROJECT / "scenarios").rglob("*.yml")), ids=lambda path: path.stem)
def test_every_scenario_is_written_briefly_the_same(path: Path) -> None:
    scenario = plan.load(path)
    assert plan.load("again", text=plan.encode_brief(scenario)) == scenario


# ---- smaller ones -------------------------------------------------------------------------------------------


def test_a_node_less_leaves_no_trace_of_it() -> None:
    steps = (
        LoadSwitch(switch="start"),
        Kill(target=2),
        Kill(target=(2, 3)),
        Link(source=3, to="all", loss=1.0),
        Wait(until=CaughtUp(on=(1, 2))),
        Heal(what="all"),
        SEND,
    )
    cluster = Cluster(nodes=3, priorities={2: 9, 3: 4}, start=(1, 2))
    scenario = Scenario(name="a", description="b", steps=steps, cluster=cluster, load=Load(rate=1.0, via=(2, 3)))
    without = list(without_a_node(scenario))[1]
    assert without.cluster == Cluster(nodes=2, priorities={2: 4}, start=(1,))
    assert without.load is not None and without.load.via == (2,)
    assert without.steps == (
        LoadSwitch(switch="start"),
        Kill(target=(2,)),
        Link(source=2, to="all", loss=1.0),
        Wait(until=CaughtUp(on=(1,))),
        Heal(what="all"),
        structs.replace(SEND, clients=(Sender(client=1, messages=1),)),
    )
    assert not list(without_a_node(structs.replace(scenario, cluster=Cluster(nodes=1))))


def test_a_node_less_is_taken_out_of_the_steps_inside_others() -> None:
    kills = (Kill(target=1), Kill(target=2), Kill(target=(2, 3)))
    steps = (When(until=CaughtUp(on=3), steps=kills), Nemesis(time=Duration(5), faults=kills))
    without = list(without_a_node(Scenario(name="a", description="b", steps=steps)))[1]
    less = (Kill(target=1), Kill(target=(2,)))
    assert without.steps == (When(until=CaughtUp(on=2), steps=less), Nemesis(time=Duration(5), faults=less))


def test_a_load_is_left_out_with_the_steps_about_it() -> None:
    steps = (LoadSwitch(switch="start"), Wait(until=UntilAcknowledged(count=5)), SEND, LoadSwitch(switch="stop"))
    scenario = Scenario(name="a", description="b", steps=steps, load=Load(rate=1.0))
    without = next(reduced_load(scenario))
    assert (without.steps, without.load) == ((SEND,), None)
    assert plan.load("again.yml", text=plan.encode(without)) == without


def test_steps_that_go_together_are_left_out_together() -> None:
    steps = (*WHOLE, Rebuild(target=1), Kill(target=1))
    assert (Kill(target=1),) in list(without_slices(steps))


@pytest.mark.parametrize(("seconds", "rounder"), [(0.347, 0.3), (1.9, 2.0), (0.0004, 0.0), (9.0, 10.0), (0.05, 0.05)])
def test_a_nice_number(seconds: float, rounder: float) -> None:
    assert nice(seconds) == pytest.approx(rounder)


def test_every_reduced_scenario_differs() -> None:
    for seed in range(30):
        scenario = draw(seed)
        reduced = [
            *reduced_load(scenario),
            *(structs.replace(scenario, steps=s) for s in reduced_steps(scenario.steps)),
        ]
        assert reduced and scenario not in reduced
        assert any(each.cluster == Cluster(nodes=scenario.cluster.nodes) for each in _reductions(scenario))


def _reductions(scenario: Scenario) -> list[Scenario]:
    """Return the scenario and its cluster reductions, each the first new one of the scenario before it."""
    found, left = [scenario], [scenario]
    while left:
        left = [each for each in reduced_cluster(left[0]) if each not in found][:1]
        found += left
    return found


def test_a_cluster_with_newcomers_loses_founders_and_newcomers() -> None:
    steps = "[{replace_node: {target: 1, with: 4}}, {add_node: 5}]"
    text = f"name: story\ndescription: d\ncluster: {{nodes: 5, founders: 3}}\nsteps: {steps}"
    fewer = [
        (each.cluster.nodes, each.cluster.founders, [step.words for step in each.steps])
        for each in without_a_node(plan.load("story", text=text))
    ]
    assert fewer[0] == (4, 3, ["replace_node: {target: 1, with: 4}"])
    assert fewer[1] == (4, 3, ["add_node: 4"])
    assert fewer[2] == fewer[3] == (4, 2, ["replace_node: {target: 1, with: 3}", "add_node: 4"])
    assert fewer[4] == (4, 2, ["add_node: 4"])


def test_sizes_are_drawn_from_in_one_order() -> None:
    """`sim --nodes 5,3` and `shrink SEED --nodes 5,3` mean the same scenario; so does `--changing`."""
    parsers = [argparse.ArgumentParser(), argparse.ArgumentParser()]
    for parser, module in zip(parsers, (search, shrinking), strict=True):
        module.add_arguments(parser)
    given = ["--nodes", "5,3", "--changing", "0.5"]
    found = parsers[0].parse_args(given), parsers[1].parse_args(["7", *given])
    assert [(options.nodes, options.changing) for options in found] == [((3, 5), 0.5)] * 2


# ---- the command --------------------------------------------------------------------------------------------


def test_the_command_writes_the_small_scenario_and_says_how_to_see_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mutant = "classic_bully_without_majority"
    seed = failing_seed(mutant)
    assert cli.main(["shrink", str(seed), "--mutant", mutant, "--out", str(tmp_path)]) == 1
    told = capsys.readouterr().out
    path = tmp_path / "shrunk" / f"{mutant}.yml"
    assert told.startswith(("A4: ", "A7: ", "A10: ", "assert: hear: ")), told
    assert f"run_lab.py {path} --sim --seed {seed} --frames --mutant {mutant}\n" in told
    assert cli.main(["shrink", str(path), "--out", str(tmp_path)]) == 0
    assert "nothing fails" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["missing.yml"], "missing.yml"),
        (["leader_failur"], "did you mean leader_failure?"),
        (["leader_failure"], "so --seed is required"),
        (["all"], "scenarios, allowed is one"),
        (["3", "--mutant", "nothing"], "mutant 'nothing', allowed: "),
        (["3", "--nodes", "3,0"], "found '0', allowed 1..9, joined by commas"),
        (["3", "--seed", "x"], "found 'x', allowed 0.."),
        ([str(PROJECT / "scenarios" / "leader_failure.yml")], "so --seed is required"),
        ([str(PROJECT / "scenarios" / "heavy_load_is_sustained.yml"), "--seed", "1"], "virtual time"),
    ],
)
def test_wrong_usage_is_64(arguments: list[str], complaint: str, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        code: object = cli.main(["shrink", *arguments])
    except SystemExit as ended:
        code = ended.code
    assert code == 64 and complaint in capsys.readouterr().err
