"""A session by hand: ordered steps are checked, done and recorded, and what was recorded can be run again."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from msgspec import structs

from lab import cli, hands
from lab.course.by_hand import Answer, ByHand, Order
from lab.live.children import child_environment
from lab.plan import scenario as plan
from lab.plan.scenario import Scenario, read_step
from lab.plan.sense import load_checked
from lab.rundir import RunDir
from lab.sim.simulator import Outcome, Simulation, simulate
from lab.steps import Step
from nodeproc.errors import ConfigError
from tests import TOO_LONG_S


class Script:
    """A person who orders these steps, each so many seconds after the answer to the one before."""

    def __init__(self, *orders: tuple[float, str]) -> None:
        self._orders, self.answers = list(orders), list[Answer]()

    def begin(self, run: RunDir) -> None:
        raise AssertionError("a simulation has no directory yet")

    async def order(self, patience_s: float) -> Order | None:
        if not self._orders:
            return None
        after_s, words = self._orders[0]
        if after_s > patience_s:
            await asyncio.sleep(patience_s)
            self._orders[0] = (after_s - patience_s, words)
            raise TimeoutError
        del self._orders[0]
        await asyncio.sleep(after_s)
        return Order(words, self.answers.append)


class Played:
    """A session in virtual time."""

    def __init__(self, *orders: tuple[float, str], planned: Scenario | None = None) -> None:
        person, kept = Script(*orders), list[Sequence[Step]]()
        self.scenario = planned or hands.planned()
        simulation = Simulation(self.scenario, 1)
        simulation.runner._by_hand = ByHand(self.scenario, person, lambda steps: kept.append(tuple(steps)))
        self.outcome: Outcome = simulation.carry_out()
        self.kept, self.answers = kept, person.answers
        self.steps = kept[-1]

    @property
    def words(self) -> list[str]:
        return [step.words for step in self.steps]


BEGUN = ("load: start", "wait: {for: acknowledged, count: 20}")
TEN_KINDS = (
    (0.4, "kill: 3"),
    (0.8, "send: {client: 9999, messages: [hello], wait: false}"),
    (0.5, "start: 3"),
    (0.6, "pause: 1"),
    (0.7, "resume: 1"),
    (0.5, "partition: {kind: isolate, node: 2}"),
    (0.9, "heal: links"),
    (0.5, "link: {from: leader, to: 1, loss: 0.2}"),
    (0.8, "cut: {from: leader, to: 1, both: true}"),
    (0.6, "heal: all"),
    (0.7, "power_loss: {target: 2, mid_write: true}"),
    (0.6, "heal: all"),
)


def test_ten_kinds_of_orders_become_a_scenario_that_passes_again(tmp_path: Path) -> None:
    played = Played(*TEN_KINDS)
    assert [answer.problem + answer.warning for answer in played.answers] == [""] * len(TEN_KINDS)
    assert (played.outcome.invariant, played.outcome.missed) == ("", [])
    faults = [word for word in played.words if not word.startswith(("sleep", "load", "wait", "send"))]
    assert faults == [words for _, words in TEN_KINDS if not words.startswith("send")]
    sleeps = [step for step in played.words if step.startswith("sleep")]
    assert sleeps[:2] == ["sleep: 400ms", "sleep: 800ms"] and len(sleeps) == len(TEN_KINDS)
    kept = structs.replace(played.scenario, steps=played.steps)
    (tmp_path / "by_hand.yml").write_text(plan.encode_brief(kept))
    again = load_checked(tmp_path / "by_hand.yml")
    assert again == kept and again.sim_refusals() == []
    for seed in range(5):
        outcome = simulate(again, seed)
        assert (outcome.invariant, outcome.missed) == ("", []), seed


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        ("kill: n9", 'step:1:7: kill: found "n9", allowed leader, follower'),
        ("kill: [1, 9]", "step:1:11: kill[1]: found 9, allowed leader"),
        ("kil: 1", "step:1:1: kil: no such step (did you mean kill?); allowed: start, stop"),
        ("kill", "step:1:1: kill needs a value"),
        ("", "step: empty"),
        ("- kill: 1", "step:1:1: found a list, allowed a mapping with one of start, stop"),
        ("kill: 1\npause: 2", "step:1:1: found kill and pause, allowed exactly one of"),
        ("kill: 1\n---\nkill: 2", "step:2:1: a second document"),
        ("kill: !!int 1", "step:1:7: a tag"),
        ("{", "step:1:2: the file ends where a value is expected"),
        ("start: 1", "start: 1: node 1 is up; allowed: a node that is down"),
        ("start: all", "start: all: node 1 is up"),
        ("resume: 2", "resume: 2: node 2 is up; allowed: a node that is paused"),
        ("kill: paused", "paused means nobody here: no step before pauses a node"),
        ("load: start", "load: start: the load runs already"),
        ("wait: load_done", "step:1:1: never comes true: the load has neither count nor duration"),
        ("hands: 1m", "hands: has no meaning by hand"),
        ("hold: 1m", "hold: has no meaning by hand"),
        ("repeat: {times: 2, steps: [{kill: leader}, {hold: 1m}]}", "hold: has no meaning by hand"),
        ("repeat: {times: 10000, steps: [{sleep: 1s}]}", "the session has 2 steps, allowed 10000"),
        ("disk: {on: 1, rot: wal}", "the node could not start any more; allowed in a scenario file only"),
        ('send: {client: 1, messages: ["\\ud800"]}', "half of a character"),
    ],
)
def test_an_order_that_could_not_be_done_is_refused_and_changes_nothing(words: str, problem: str) -> None:
    played = Played((0.2, words), (0.2, "kill: 1"))
    refused, done = played.answers
    assert problem in refused.problem and not refused.step
    assert done.step == "kill: 1"
    assert played.words == [*BEGUN, "sleep: 400ms", "kill: 1"]
    assert (played.outcome.invariant, played.outcome.missed) == ("", [])


def test_a_node_that_is_down_is_refused_what_needs_a_process() -> None:
    orders = ("kill: 1", "kill: 1", "pause: 1", "power_loss: 1", "restart: 1", "stop: [1, 2]", "start: 1")
    problems = [answer.problem for answer in Played(*((0.2, words) for words in orders)).answers]
    wanted = "node 1 is down; allowed: a node that is paused or up"
    assert problems == [
        "",
        f"kill: 1: {wanted}",
        "pause: 1: node 1 is down; allowed: a node that is up",
        f"power_loss: 1: {wanted}",
        f"restart: 1: {wanted}",
        f"stop: [1, 2]: {wanted}",
        "",
    ]


def test_repeated_steps_are_recorded_one_by_one() -> None:
    played = Played((0.2, "repeat: {times: 2, steps: [{kill: 1}, {start: 1}]}"))
    assert played.answers[0].step == "kill: 1; start: 1; kill: 1; start: 1"
    assert played.words == [*BEGUN, "sleep: 200ms", "kill: 1", "start: 1", "kill: 1", "start: 1"]


def test_a_missed_step_is_recorded_and_ends_the_session() -> None:
    played = Played((0.2, "wait: {for: event, is: failed, within: 1s}"), (0.2, "kill: 1"))
    (answer,) = played.answers
    assert answer.problem.startswith("not within 1s: 1 follower of 3")
    assert played.words[-1].startswith("wait: ") and len(played.outcome.missed) == 1


def test_a_step_without_effect_is_reported_at_once() -> None:
    played = Played((0.2, "partition: {kind: isolate, node: 1}"), (1.0, "power_loss: {target: 1, mid_write: true}"))
    assert played.answers[1].warning == "power_loss of node 1 had no effect, so that the verdict will be UNDECIDED"


def test_a_session_ends_when_its_time_is_over() -> None:
    text = "name: x\ndescription: x\nload: {rate: 10}\nsteps: [{load: start}, {hands: 2s}, {kill: 1}]"
    played = Played((0.5, "kill: 2"), (9.0, "kill: 3"), planned=plan.load("x.yml", text=text))
    assert [step.words for step in played.kept[0]] == ["load: start", "sleep: 500ms", "kill: 2"]
    assert played.words == ["load: start", "sleep: 500ms", "kill: 2", "sleep: 1500ms"]
    assert played.outcome.missed == []


def test_where_nobody_orders_steps_the_step_is_over_at_once() -> None:
    outcome = simulate(hands.planned(), 1)
    assert (outcome.invariant, outcome.missed) == ("", [])


def test_a_session_needs_the_labs_own_nodes_and_its_proxy() -> None:
    for cluster, why in (('command: "run {config}"', "the lab's own nodes"), ("network: kernel", "drops packets")):
        with pytest.raises(ConfigError, match=why):
            plan.load("x.yml", text=f"name: x\ndescription: x\ncluster: {{{cluster}}}\nsteps: [{{hands: 2s}}]")


def test_one_step_is_read_for_the_scenario_that_runs() -> None:
    with pytest.raises(ConfigError, match="needs a load, and this scenario has none"):
        read_step("load: stop", structs.replace(hands.planned(), load=None))


# ---- the command -------------------------------------------------------------------------------------


def started(out: Path, *options: str, stdin: Any = subprocess.PIPE) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "lab", "hands", "--seed", "1", "--out", str(out), *options]
    return subprocess.Popen(
        command, stdin=stdin, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=child_environment()
    )


def test_a_live_session_is_judged_and_kept_as_a_scenario(tmp_path: Path) -> None:
    # The recovery is judged by the message that is sent after the fault.
    steps = ("kill: leader", 4, "start: killed", "send: {client: 1, messages: 1}")
    orders = "".join(f"{json.dumps({'step': step})}\n" for step in steps)
    with started(tmp_path, "--json") as process:
        said, _ = process.communicate(orders.encode(), TOO_LONG_S)
    first, *answers = map(json.loads, said.splitlines())
    run = RunDir.open(Path(first["run"]))
    assert process.returncode == 0 and run.path.parent == tmp_path / "by_hand"
    assert [answer.get("step", answer.get("problem")) for answer in answers] == [
        "kill: leader",
        "Expected `str`, got `int` - at `$.step`",
        "start: killed",
        "send: 1 message of client 1",
    ]
    again = load_checked(run.by_hand)
    assert (again.name, again.seed, again.sim_refusals()) == ("by_hand", 1, [])
    assert again == load_checked(run.scenario) and run.report.is_file()
    words = [step.words for step in again.steps]
    done = ["kill: leader", "start: killed", "send: 1 message of client 1"]
    assert [each for each in words if not each.startswith("sleep")] == [*BEGUN, *done]
    assert cli.main(["check", "--no-report", str(run.path)]) == 0


def test_a_session_reads_a_file_of_plain_lines_and_says_what_it_did(tmp_path: Path) -> None:
    orders = tmp_path / "orders"
    steps = ("send: {client: 1, messages: 1}", "pause: 1", "resume: 1", "wait: {for: acknowledged, count: 200}")
    orders.write_text("\n".join(("", "kill: n9", *steps, "end", "kill: 2", "")))
    with orders.open("rb") as file, started(tmp_path, stdin=file) as process:
        out, _ = process.communicate(timeout=TOO_LONG_S)
    lines = out.decode().splitlines()
    assert process.returncode == 0
    assert [line.split(" in ")[0] for line in lines if "done in" in line] == [
        "send: 1 message of client 1: done",
        "pause: 1: done",
        "resume: 1: done",
        "wait: {for: acknowledged, count: 200}: done",
    ]
    assert 'step:1:7: kill: found "n9"' in out.decode() and lines[-1].endswith("by_hand.yml")


def test_a_session_whose_reader_is_gone_ends_in_order(tmp_path: Path) -> None:
    with started(tmp_path, "--json") as process:
        assert process.stdout is not None and process.stdin is not None
        run = RunDir(Path(json.loads(process.stdout.readline())["run"]))
        process.stdout.close()
        process.stdin.write(b'{"step":"pause: 1"}\n{"step":"wait: {for: acknowledged, count: 200}"}\n')
        process.stdin.close()
        assert process.wait(TOO_LONG_S) == 0
        process.stdin = process.stdout = None
    assert "pause: 1" in run.by_hand.read_text() and json.loads(run.verdict.read_bytes())["outcome"] == "pass"


def test_a_session_begins_with_the_steps_of_any_scenario() -> None:
    begun = hands.planned("leader_failure", nodes=5, rate=30)
    assert begun.load is not None
    assert (begun.name, begun.cluster.nodes, begun.load.rate) == ("by_hand", 5, 30.0)
    assert begun.steps[-1].word == "hands" and len(begun.steps) > 3
    assert begun.description.endswith(", after those of leader_failure.")


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        (["no_such_scenario"], "no_such_scenario"),
        (["total_order_from_one_client", "--rate=5"], "--rate: scenarios/total_order_from_one_client.yml has no load"),
        (["ring_of_five_keeps_its_leader", "--nodes=2"], "allowed"),
    ],
)
def test_a_beginning_that_does_not_fit_is_refused(
    given: list[str], problem: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["hands", *given]) == 64
    assert problem in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--nodes=0", "--nodes=10", "--rate=0", "--rate=fast"])
def test_a_size_that_is_not_allowed_is_refused(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main(["hands", option])
    assert stopped.value.code == 64 and "allowed 1.." in capsys.readouterr().err
