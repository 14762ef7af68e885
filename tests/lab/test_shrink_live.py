"""Shrinking by live runs: decisions hold their error rates, and what remains fails as often as before."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from msgspec import structs

from lab import cli, runs
from lab.check.verdict import Check, ExpectationResult, Outcomes, Verdict
from lab.plan import scenario as plan
from lab.plan.scenario import NAME_MAX, Cluster, Load, Scenario
from lab.runs import How, Result
from lab.search import shrink_live as live
from lab.search.rates import ERROR, FAILURES_MAX, LEAST_FACTOR, Rate, SequentialTest
from lab.search.shrink_live import LiveRuns, LiveShrunk, Measured, Runs, report, shrink_live, write
from lab.steps import Kill, LoadSwitch, Pause, Resume, Sleep, Start
from lab.steps.machine import RunFailed
from lab.words import Duration

# ---- statistics -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("failed", "count", "low", "high"),
    [
        (0, 10, 0.0, 0.3085),
        (10, 10, 0.6915, 1.0),
        (5, 20, 0.0866, 0.4910),
        (1, 1, 0.025, 1.0),
        (30, 100, 0.2124, 0.3998),
    ],
)
def test_the_interval_is_that_of_clopper_and_pearson(failed: int, count: int, low: float, high: float) -> None:
    assert Rate(failed, count).interval() == pytest.approx((low, high), abs=1e-4)


def test_the_interval_covers_the_rate_as_often_as_it_says() -> None:
    rng, covered = random.Random(1), 0
    for _ in range(1000):
        low, high = Rate(sum(rng.random() < 0.2 for _ in range(40)), 40).interval()
        covered += low <= 0.2 <= high
    assert covered >= 950


def test_a_rate_is_shown_with_its_interval() -> None:
    assert str(Rate(5, 20)) == "5 of 20 runs: 25%, 95% interval 9% to 49%"


@pytest.mark.parametrize("kept", [0.1, 0.2, 0.5, 1.0])
def test_a_sequential_test_is_rarely_wrong(kept: float) -> None:
    rng = random.Random(f"{kept}")
    right = {True: 0, False: 0}
    for truth, rate in ((True, kept), (False, kept * LEAST_FACTOR)):
        for _ in range(1000):
            test = SequentialTest(kept)
            while test.decision is None:
                test.add(rng.random() < rate)
            right[truth] += test.decision is truth
    assert right[True] >= 1000 * (1 - ERROR) - 25 and right[False] >= 1000 * (1 - ERROR) - 25


def test_a_failure_that_always_shows_is_decided_in_a_few_runs_and_never_seen_one_is_lost_at_last() -> None:
    always, never, between = SequentialTest(1.0), SequentialTest(0.2), SequentialTest(0.2)
    while always.decision is None:
        always.add(True)
    while never.decision is None:
        never.add(False)
    while between.decision is None:
        between.add(between.runs % 10 == 0)
    assert (always.decision, always.runs) == (True, 3)
    assert (never.decision, never.runs) == (False, 18)
    assert (between.decision, between.runs) == (False, FAILURES_MAX / 0.2), "neither rate explains one failure in ten"


# ---- the reduction --------------------------------------------------------------------------------------

MUTANT = "some_mutant"
LARGE = Scenario(
    name="large",
    description="A race between a kill and a pause, with other steps around.",
    steps=(
        LoadSwitch(switch="start"),
        Sleep(time=Duration(1)),
        Pause(target=1),
        Sleep(time=Duration(2)),
        Resume(target=1),
        Kill(target=2),
        Sleep(time=Duration(0.7)),
        Pause(target=3),
        Sleep(time=Duration(0.3)),
        Start(target=2),
        Resume(target=3),
        Sleep(time=Duration(1)),
    ),
    cluster=Cluster(nodes=3),
    load=Load(clients=3, rate=40.0, count=400),
)


class Machine:
    """Fails with a probability if a node is killed and a pause follows; time passes with every run."""

    def __init__(self, rate: float, product: float = 0.0, seed: int = 1) -> None:
        self.rng, self.rate, self.product, self.now = random.Random(seed), rate, product, 0.0

    def __call__(self, scenario: Scenario, mutant: str) -> frozenset[str]:
        self.now += 5.0
        words = [step.word for step in scenario.steps]
        race = "kill" in words and "pause" in words[words.index("kill") :] and scenario.load is not None
        other = {"A8"} if self.rng.random() < 0.02 else set()
        shows = race and self.rng.random() < (self.rate if mutant else self.product)
        return frozenset({"A4"} | other if shows else other)

    def runs(self, budget_s: float = 1e6) -> Runs:
        return Runs(self, budget_s, lambda: self.now)


def test_a_failure_of_one_run_in_five_is_shrunk_and_keeps_its_rate() -> None:
    kept = 0
    for seed in range(10):
        told: list[str] = []
        shrunk = shrink_live(LARGE, 1, MUTANT, Machine(0.2, seed=seed).runs(), told.append)
        assert isinstance(shrunk, LiveShrunk), seed
        assert shrunk.invariant == "A4" and told[0].startswith("A4 breaks in ")
        assert shrunk.last.scenario.step_count <= LARGE.step_count // 2
        low, high = shrunk.last.rate.interval()
        kept += low <= 0.2 <= high
        words = [step.word for step in shrunk.last.scenario.steps]
        assert words.index("kill") < words.index("pause")
        assert shrunk.product == Rate(0, shrunk.last.rate.runs) and shrunk.minimal
    assert kept >= 8


def test_a_failure_that_always_shows_takes_few_runs() -> None:
    shrunk = shrink_live(LARGE, 1, MUTANT, Machine(1.0).runs())
    assert isinstance(shrunk, LiveShrunk) and shrunk.last.rate == Rate(10, 10)
    assert [step.word for step in shrunk.last.scenario.steps] == ["load", "kill", "pause"]
    assert shrunk.runs < 5 * shrunk.candidates


def test_the_budget_ends_the_reduction_and_leaves_time_to_measure_the_result() -> None:
    machine = Machine(0.5)
    shrunk = shrink_live(LARGE, 1, MUTANT, machine.runs(500.0))
    assert isinstance(shrunk, LiveShrunk) and not shrunk.minimal
    assert machine.now <= 500.0 and shrunk.runs <= 100
    assert shrunk.last.scenario.step_count < LARGE.step_count and shrunk.last.rate.runs >= 10


def test_without_a_failure_the_number_of_runs_is_returned() -> None:
    assert shrink_live(LARGE, 1, "", Runs(lambda scenario, mutant: frozenset(), 1e6)) == Rate(0, live.FIRST_RUNS)


def test_a_candidate_that_the_product_fails_too_is_not_accepted() -> None:
    """A step that waits for the load misses it in every run as soon as the load is gone."""

    def observe(scenario: Scenario, mutant: str) -> frozenset[str]:
        return frozenset({"A4"} if mutant or scenario.load is None else ())

    shrunk = shrink_live(LARGE, 1, MUTANT, Runs(observe, 1e6))
    assert isinstance(shrunk, LiveShrunk)
    assert shrunk.last.scenario.load is not None and shrunk.product == Rate(0, 10)


def test_what_was_accepted_by_luck_is_taken_back() -> None:
    class Lucky(Machine):
        """Shows the failure without the pause too, but only until the reduction has accepted that."""

        lost = False

        def __call__(self, scenario: Scenario, mutant: str) -> frozenset[str]:
            if "pause" not in [step.word for step in scenario.steps] and not self.lost:
                return frozenset({"A4"} if mutant else ())
            return super().__call__(scenario, mutant)

    machine = Lucky(1.0)
    told: list[str] = []

    def tell(text: str) -> None:
        told.append(text)
        machine.lost = machine.lost or text.startswith("1 step")

    shrunk = shrink_live(LARGE, 1, MUTANT, machine.runs(), tell)
    assert isinstance(shrunk, LiveShrunk)
    assert any(text.endswith("too few, back to the scenario before") for text in told)
    assert "pause" in [step.word for step in shrunk.last.scenario.steps] and shrunk.last.rate.value == 1.0


def test_without_time_for_the_last_measurement_the_rate_is_that_of_the_test_that_accepted_the_result() -> None:
    machine = Machine(1.0)

    def observe(scenario: Scenario, mutant: str) -> frozenset[str]:
        if scenario.step_count < 5:  # A candidate that waits for something.
            machine.now += 1e6
        return machine(scenario, "m")

    shrunk = shrink_live(LARGE, 1, "", Runs(observe, 1e6, lambda: machine.now))
    assert isinstance(shrunk, LiveShrunk) and not shrunk.minimal
    assert shrunk.last.scenario.step_count < LARGE.step_count and shrunk.last.rate == Rate(3, 3)


def test_an_interrupt_keeps_what_was_reached() -> None:
    machine, left = Machine(1.0), 40

    def observe(scenario: Scenario, mutant: str) -> frozenset[str]:
        nonlocal left
        left -= 1
        if not left:
            raise KeyboardInterrupt
        return machine(scenario, mutant)

    shrunk = shrink_live(LARGE, 1, MUTANT, Runs(observe, 1e6))
    assert isinstance(shrunk, LiveShrunk) and shrunk.interrupted and not shrunk.minimal
    assert shrunk.last.scenario.step_count < LARGE.step_count and shrunk.last.rate.failed


# ---- runs and output ------------------------------------------------------------------------------------


class Live:
    """Stands in for live runs: each leaves a directory and the next of the given results."""

    def __init__(self, *found: Verdict | None) -> None:
        self.found, self.directories = list(found), list[Path]()

    def run_once(self, scenario: Scenario, seed: int, out: Path, how: How) -> Result:
        assert not how.sim
        directory = out / scenario.name / f"run_{len(self.directories)}"
        directory.mkdir(parents=True)
        self.directories.append(directory)
        verdict = self.found.pop(0)
        code = runs.HARNESS if verdict is None else verdict.exit_code
        return Result(scenario.name, seed, directory, code, verdict, problem="" if verdict else "no port is free")


PASSES = Verdict("pass", (Check("A4", "no loss", "PASS", ""),), (), Outcomes())
BREAKS = Verdict("broken", (Check("A4", "no loss", "FAIL", "1 lost"),), (), Outcomes())
MISSES = Verdict("missed", (), (ExpectationResult("wait: 5s", False, "7s"),), Outcomes())


def test_only_the_last_run_that_shows_the_result_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lab = Live(BREAKS, PASSES, BREAKS, MISSES, BREAKS, BREAKS)
    monkeypatch.setattr(runs, "run_once", lab.run_once)
    observe = LiveRuns(tmp_path, 7)
    small = structs.replace(LARGE, steps=LARGE.steps[:1])
    asked = [(small, MUTANT)] * 4 + [(LARGE, MUTANT), (small, "")]
    assert [set(observe(*each)) for each in asked[:4]] == [{"A4"}, set(), {"A4"}, {"expected wait: 5s"}]
    assert [set(observe(*each)) for each in asked[4:]] == [{"A4"}] * 2, "a rejected candidate, and the product"
    first, last = Measured(LARGE, Rate(1, 1)), Measured(structs.replace(small), Rate(3, 4))
    assert observe.keep(LiveShrunk("A4", MUTANT, first, last, None, 1, 5, True)) == lab.directories[2]
    assert [directory.exists() for directory in lab.directories] == [False, False, True, False, False, False]


def test_a_run_that_the_lab_fails_is_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lab = Live(None, None, BREAKS, None, None, None)
    monkeypatch.setattr(runs, "run_once", lab.run_once)
    observe = LiveRuns(tmp_path, 7)
    assert observe(LARGE, "") == {"A4"}
    with pytest.raises(RunFailed, match="no port is free"):
        observe(LARGE, "")


def test_the_result_is_a_scenario_file_that_says_its_rate(tmp_path: Path) -> None:
    shrunk = shrink_live(LARGE, 7, MUTANT, Machine(1.0).runs())
    assert isinstance(shrunk, LiveShrunk)
    path = write(shrunk, tmp_path)
    written = plan.load(path)
    assert path.name == f"large_{MUTANT}_live.yml" and written.seed == 7
    assert written.steps == shrunk.last.scenario.steps
    assert written.description.endswith(
        f"Breaks A4 as the mutant {MUTANT} in 10 of 10 runs: 100%, 95% interval 69% to 100%."
    )
    shown = report(shrunk, path, tmp_path / "run")
    assert "\nshrunk:  3 steps, 1 nodes, " in shown or "\nshrunk:  3 steps, " in shown
    assert shown.endswith(f"_live.yml --mutant {MUTANT} --repeat 10"), "without --seed, each run has that of the file"


def test_a_result_that_is_no_smaller_has_the_seed_of_its_runs_and_a_name_that_is_allowed(tmp_path: Path) -> None:
    given = structs.replace(LARGE, name="n" * NAME_MAX, seed=5)
    only = lambda scenario, mutant: frozenset({"A4"} if scenario.steps == given.steps else ())  # noqa: E731
    shrunk = shrink_live(given, 7, MUTANT, Runs(only, 1e6))
    assert isinstance(shrunk, LiveShrunk) and shrunk.last.scenario.steps == LARGE.steps
    path = write(shrunk, tmp_path)
    assert plan.load(path).seed == 7 and len(path.stem) == NAME_MAX and path.stem.endswith(f"_{MUTANT}_live")
    assert report(shrunk, path, None).endswith(f".yml --mutant {MUTANT} --repeat 5")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["7", "--seed", "8"], "--seed: only with a scenario"),
        (["99999999999", "--live"], "seed: found '99999999999', allowed 0..2147483647"),
        (["7", "--live", "--simulations", "9"], "--simulations: not with --live, which has --budget"),
        (["7", "--budget", "9s"], "--budget: only with --live"),
    ],
)
def test_options_without_a_use_are_refused(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["shrink", *words]) == runs.USAGE
    assert capsys.readouterr().err == f"{said}\n"


def test_a_result_that_could_not_be_written_is_refused_before_the_first_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "shrunk").touch()
    assert command_line(monkeypatch, tmp_path, lambda scenario, mutant: pytest.fail("a run")) == runs.USAGE
    assert (
        capsys.readouterr().err
        == f"--out: found {tmp_path}/shrunk, allowed a directory that can be written: File exists\n"
    )


def test_an_interrupted_command_writes_its_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    count = iter(range(1, 30))

    def observe(scenario: Scenario, mutant: str) -> frozenset[str]:
        if next(count) == 20:
            raise KeyboardInterrupt
        return frozenset({"A4"})

    assert command_line(monkeypatch, tmp_path, observe) == runs.INTERRUPTED
    assert "; you ended the reduction, a smaller scenario may exist" in capsys.readouterr().out
    assert plan.load(tmp_path / "shrunk" / "leader_failure_live.yml").seed is not None


def command_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, observe: Callable[[Scenario, str], frozenset[str]], *words: str
) -> int:
    class Fake(LiveRuns):
        def __call__(self, scenario: Scenario, mutant: str) -> frozenset[str]:
            return observe(scenario, mutant)

    monkeypatch.setattr(live, "LiveRuns", Fake)
    return cli.main(["shrink", "--live", "leader_failure", "--out", str(tmp_path), *words])


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert command_line(monkeypatch, tmp_path, lambda scenario, mutant: frozenset()) == runs.PASS
    assert "leader_failure, seed " in capsys.readouterr().out
    assert (
        command_line(monkeypatch, tmp_path, lambda scenario, mutant: frozenset({"A4"}), "--budget", "1h") == runs.BROKEN
    )
    told = capsys.readouterr()
    assert told.out.startswith("A4 breaks:\ngiven: ") and "A4 breaks in 5 of 5 runs" in told.err

    clock = itertools.count()
    with monkeypatch.context() as patch:
        patch.setattr(live, "Runs", partial(Runs, clock=lambda: next(clock)))
        code = command_line(monkeypatch, tmp_path, lambda scenario, mutant: frozenset(), "--budget", "9s")
    assert code == runs.UNDECIDED
    assert "nothing fails in 4 runs; the budget ended before 60" in capsys.readouterr().out

    def no_lab(scenario: Scenario, mutant: str) -> frozenset[str]:
        raise RunFailed("no port is free")

    assert command_line(monkeypatch, tmp_path, no_lab) == runs.HARNESS
    assert "the lab failed: no port is free" in capsys.readouterr().err
