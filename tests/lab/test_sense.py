"""Scenarios whose steps can't work together are refused before they run; those that may work are not."""

from __future__ import annotations

from pathlib import Path

import pytest

from lab.plan.sense import load_checked, mistakes
from lab.search.draw import draw
from nodeproc.errors import FileProblem

PROJECT = Path(__file__).parents[2]
HEAD = "name: story\ndescription: what happens\n"
SEND = "{send: {client: 1, messages: [a]}}"
LOAD = "load: {rate: 10}\n"


def complaint(text: str) -> str:
    """What is wrong with a scenario, place first; "" if nothing is."""
    try:
        load_checked("story.yml", text=HEAD + text)
    except FileProblem as problem:
        assert problem.line > 2 and problem.column > 0
        return problem.message
    return ""


def steps(*each: str) -> str:
    return "steps: [" + ", ".join(f"{{{step}}}" for step in each) + f", {SEND}]\n"


WRONG = {
    "nothing is sent": ("steps: [{kill: 1}]", "steps: nothing is sent"),
    "rot without rebuild": (
        steps("disk: {on: 1, rot: wal}"),
        "steps[0].disk: the node can't start on its damaged disk",
    ),
    "a rotten checkpoint without rebuild": (
        steps("disk: {on: 1, rot: checkpoint}", "start: {target: 1, refuses: true}"),
        "steps[0].disk: the node can't start",
    ),
    "a rebuild before the rot": (steps("rebuild: 1", "disk: {on: 1, rot: wal}"), "steps[1].disk"),
    "a start that has no reason to refuse": (
        steps("kill: 1", "start: {target: 1, refuses: true}"),
        "steps[1].start: no step before damages a disk",
    ),
    "killed without a kill": (steps("start: killed"), "steps[0].start: killed means nobody here"),
    "killed after all are started": (steps("kill: 1", "start: 1", "start: killed"), "steps[2].start: killed means"),
    "down without a kill": (steps("start: down"), "steps[0].start: down means nobody here"),
    "paused after a resume": (steps("pause: 1", "resume: paused", "resume: paused"), "steps[2].resume: paused means"),
    "paused after a heal": (steps("pause: 1", "heal: all", "wait: {for: caught_up, on: paused}"), "steps[2].wait"),
    "a leader of nobody": (steps("kill: all", "kill: leader"), "steps[1].kill: leader means nobody here: no node runs"),
    "a send to a minority": (steps("kill: [1, 2]"), "steps[1].send: never comes true: at most 1 of 3 nodes run"),
    "a leader of a minority": (steps("kill: [1, 2]", "wait: leader"), "steps[1].wait: never comes true"),
    "a leader of the paused": (steps("pause: all", "wait: new_leader"), "steps[1].wait: never comes true"),
    "a send before anybody is started": ("cluster: {start: none}\n" + steps("sleep: 1s"), "steps[1].send: never"),
    "a dead leader": (steps("kill: 3", "expect: {leader: 3}"), "steps[1].expect: never holds: node 3"),
    "a load that runs already": (
        LOAD + steps("load: start", "load: start"),
        "steps[1].load: the load runs already",
    ),
    "a load started anew in a repeat": (
        LOAD + steps("repeat: {times: 2, steps: [{load: start}]}"),
        "steps[0].repeat.steps[0].load: the load runs already",
    ),
    "a stop before the start": (LOAD + steps("load: stop", "load: start"), "steps[0].load: the load was not started"),
    "waiting before the start": (
        LOAD + steps("wait: {for: acknowledged, count: 1}", "load: start"),
        "steps[0].wait: never comes true: the load is not started",
    ),
    "waiting after the stop": (
        LOAD + steps("load: start", "load: stop", "wait: {for: acknowledged, count: 1}"),
        "steps[2].wait: never comes true: the load is stopped",
    ),
    "waiting for more than is sent": (
        "load: {rate: 10, count: 50}\n" + steps("load: start", "wait: {for: acknowledged, count: 51}"),
        "steps[1].wait: never comes true: the load sends 50",
    ),
    "delivering more than is sent": (
        steps("wait: {for: delivered, count: 2}"),
        "steps[0].wait: never comes true: the scenario sends 1 message",
    ),
    "acknowledging more than is sent": (
        steps("sleep: 1s") + "expectations: [{acknowledged: 2}]",
        "expectations[0].acknowledged: never holds: 2 are expected",
    ),
    "a log longer than what is sent": (
        steps("sleep: 1s") + "expectations: [{last_seq: 2}]",
        "expectations[0].last_seq: never holds",
    ),
    "a role in the files of a run": (
        steps("sleep: 1s") + "expectations: [{last_seq: {is: 1, on: leader}}]",
        "expectations[0].last_seq: on: leader is a role of one moment",
    ),
    "an order of what nobody sends": (
        steps("sleep: 1s") + "expectations: [{order: [a, b]}]",
        "expectations[0].order: never holds: no step sends 'b'",
    ),
    "messages that no node takes": (
        "cluster: {limits: {max_payload_bytes: 50}}\nload: {rate: 1, size: 51}\n" + steps("load: start"),
        "load.size: found 51, and the nodes take 50 bytes",
    ),
    "more clients than the nodes take": (
        "load: {rate: 1, clients: 1537}\n" + steps("load: start"),
        "load.clients: found 1537, and all 3 nodes together take 1536",
    ),
}


@pytest.mark.parametrize(("text", "words"), WRONG.values(), ids=WRONG.keys())
def test_what_cannot_work_is_refused_with_its_place(text: str, words: str) -> None:
    assert complaint(text).startswith(words), complaint(text)


RIGHT = {
    "rot and rebuild": steps("disk: {on: 1, rot: wal}", "start: {target: 1, refuses: true}", "rebuild: 1"),
    "a message log that is written again": steps("disk: {on: 1, lose: messages}", "start: down"),
    "whoever is down after a disk failed": steps("disk: {on: 1, failing: sync}", "sleep: 1s", "start: down"),
    "a slow disk takes nobody down": steps("disk: {on: all, slow: 1s}", "kill: leader", "start: killed"),
    "a follower is killed": steps("kill: follower", "kill: follower", "start: down"),
    "all are killed and started": steps("kill: all", "start: killed", "wait: leader"),
    "a majority comes back": steps("kill: [1, 2]", "start: 1", "wait: leader"),
    "a refusal of a minority": "steps: [{kill: [1, 2]}, {send: {client: 1, messages: [a], refused: true}}]",
    "a send that does not wait": "steps: [{kill: all}, {send: {client: 1, messages: [a], wait: false}}]",
    "a nemesis may kill": steps("nemesis: {for: 1s, faults: [{kill: 1}]}", "start: down", "resume: paused"),
    "a trigger may kill": steps("when: {so: leader, do: [{kill: 1}]}", "sleep: 1s", "start: killed"),
    "a power loss in a write": steps("power_loss: {target: all, mid_write: true}", "wait: {for: ended, on: all}"),
    "halves have no node": steps("kill: all", "partition: halves", "heal: all"),
    "a load again": LOAD + steps("load: start", "load: stop", "load: start"),
    "a load that ends": "load: {rate: 9, count: 9}\n" + steps("load: start", "wait: load_done", "load: start"),
    "an order of made messages": "steps: [{send: {client: 7, messages: 2}}]\n"
    "expectations: [{order: [message 1 of client 7, message 2 of client 7]}]",
}


@pytest.mark.parametrize("text", RIGHT.values(), ids=RIGHT.keys())
def test_what_may_work_is_taken(text: str) -> None:
    assert complaint(text) == ""


@pytest.mark.parametrize("path", sorted((PROJECT / "scenarios").rglob("*.yml")), ids=lambda path: path.stem)
def test_the_project_s_scenarios_are_taken(path: Path) -> None:
    load_checked(path)


def test_drawn_scenarios_are_taken() -> None:
    assert [(seed, found) for seed in range(150) if (found := list(mistakes(draw(seed))))] == []


def test_elections_alone_are_worth_a_simulation() -> None:
    assert load_checked("story.yml", text=HEAD + "steps: [{kill: 1}]", simulated=True).step_count == 1
