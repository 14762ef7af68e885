"""Scenario files: what is read, what is refused and where, targets at a moment, and what a load sends."""

from __future__ import annotations

import copy
import json
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lab.payloads import payload, payloads
from lab.plan import workload
from lab.plan.expectation import RUN_EXPECTATIONS, Order
from lab.plan.scenario import Load, Scenario, encode, load
from lab.steps import (
    Busy,
    Chaos,
    Clock,
    Cut,
    Disk,
    Fault,
    Flap,
    Garbage,
    Heal,
    Kill,
    Link,
    Nemesis,
    Partition,
    PowerLoss,
    Rebuild,
    Repeat,
    Reset,
    Send,
    Sender,
    Sleep,
    Start,
    Step,
    Wait,
    When,
    steps_by_word,
)
from lab.steps.chaos import draw_stint
from lab.steps.expect import MOMENT_EXPECTATIONS, CaughtUp, LastSeq, LeaderIs, MomentExpectation, RoleIs, judge
from lab.steps.partition import LEAST_NODES, PartitionKind, partition_pairs
from lab.steps.targets import ClusterView, NodeView, NoSuchTarget, choose
from lab.steps.wait import UNTILS, UntilCaughtUp, UntilNewLeader
from lab.words import EVENTS, TARGET_WORDS, Duration, Target
from nodeproc.errors import ConfigError, FileProblem

SCENARIOS = sorted((Path(__file__).parents[2] / "scenarios").glob("*.yml"))
REFERENCE = Path(__file__).parents[2] / "docs" / "scenarios.md"
CATALOGUE = REFERENCE.with_name("catalogue.md")
HEAD = "name: story\ndescription: what happens\n"


def read(text: str) -> Scenario:
    return load("story.yml", text=HEAD + text)


def complaint(text: str) -> str:
    """The first line of the error that a scenario text gives."""
    with pytest.raises(ConfigError) as caught:
        read(text)
    return str(caught.value).splitlines()[0]


# ---- reading ------------------------------------------------------------------------------------


def test_a_plain_value_stands_for_the_step_s_main_field() -> None:
    short, full = read("steps: [{kill: leader}]"), read("steps: [{kill: {target: leader}}]")
    assert short.steps == full.steps == (Kill(target="leader"),)


def test_a_target_can_be_a_word_an_id_or_a_list() -> None:
    steps = read("steps: [{kill: follower}, {kill: 3}, {kill: [leader, 1]}]").steps
    assert [step.target for step in steps if isinstance(step, Kill)] == ["follower", 3, ("leader", 1)]


def test_a_name_may_stand_beside_a_step() -> None:
    assert read("steps: [{kill: leader, name: the end}]").steps[0].name == "the end"


def test_a_wait_is_a_word_or_a_mapping_that_names_it() -> None:
    steps = read("steps: [{wait: new_leader}, {wait: {for: caught_up, on: 3, within: 2s}}]").steps
    assert steps == (Wait(until=UntilNewLeader()), Wait(until=UntilCaughtUp(on=3, within=Duration(2))))


def test_one_client_s_fields_may_stand_in_the_send_step_itself() -> None:
    step = read("steps: [{send: {client: 101, via: 1, messages: [a, b], within: 3s}}]").steps[0]
    assert step == Send(clients=(Sender(client=101, messages=("a", "b"), via=1),), within=Duration(3))


def test_a_send_may_wait_for_a_refusal() -> None:
    step = read("steps: [{send: {client: 1, messages: [a], refused: true}}]").steps[0]
    assert step == Send(clients=(Sender(client=1, messages=("a",)),), refused=True)


def test_several_clients_send_in_one_step() -> None:
    step = read("steps: [{send: [{client: 1, messages: [a]}, {client: 2, messages: 3}]}]").steps[0]
    assert step == Send(clients=(Sender(client=1, messages=("a",)), Sender(client=2, messages=3)))


def test_a_sleep_is_in_seconds_whatever_its_unit() -> None:
    steps = read("steps: [{sleep: 500ms}, {sleep: 2s}, {sleep: 1.5m}]").steps
    assert [step.time for step in steps if isinstance(step, Sleep)] == [0.5, 2.0, 90.0]


def test_repeat_is_unrolled_and_may_nest() -> None:
    scenario = read("steps: [{repeat: {times: 2, steps: [{sleep: 1s}, {repeat: {times: 2, steps: [{kill: 1}]}}]}}]")
    assert [type(step) for step in scenario.unrolled()] == [Sleep, Kill, Kill] * 2
    assert isinstance(scenario.steps[0], Repeat)


FAULTS = {
    "link: {loss: 0.2, duplicate: 1}": Link(loss=0.2, duplicate=1.0),
    "cut: {}": Cut(),
    "cut: {from: leader, to: [1, 2], frames: [APPEND], both: true}": Cut("leader", (1, 2), ("APPEND",), True),
    "partition: halves": Partition("halves"),
    "partition: {kind: isolate, node: follower}": Partition("isolate", "follower"),
    "partition: {kind: bridge, node: 2}": Partition("bridge", 2),
    "partition: ring": Partition("ring"),
    "partition: {kind: isolate, direction: in}": Partition("isolate", direction="in"),
    "partition: {kind: minority, node: [1]}": Partition("minority", (1,)),
    "partition: majority": Partition("majority"),
    "partition: random": Partition("random"),
    "link: {to: 1, corrupt: 0.1, bandwidth: 5000, chunk: 7}": Link(to=1, corrupt=0.1, bandwidth=5000, chunk=7),
    "link: {jitter: 5ms, distribution: exponential}": Link(jitter=Duration(0.005), distribution="exponential"),
    "link: {from: leader, refuse: true}": Link("leader", refuse=True),
    "reset: {from: 1, to: followers}": Reset(1, "followers"),
    "flap: {from: 1, times: 3, down_for: 2s}": Flap(1, times=3, lasts=Duration(2)),
    "heal: disks": Heal("disks"),
    "heal: clocks": Heal("clocks"),
    "power_loss: leader": PowerLoss("leader"),
    "power_loss: {target: 2, mid_write: true}": PowerLoss(2, True),
    "power_loss: {target: [1, leader], tail: torn}": PowerLoss((1, "leader"), tail="torn"),
    "start: {target: 1, refuses: true}": Start(1, True),
    "disk: {on: 1, slow: 20ms}": Disk(1, slow=Duration(0.02)),
    "disk: {on: all, full: true}": Disk("all", full=True),
    "disk: {on: leader, failing: sync}": Disk("leader", failing="sync"),
    "disk: {on: [1, 2], rot: messages}": Disk((1, 2), rot="messages"),
    "disk: {on: 1, rot: checkpoint}": Disk(1, rot="checkpoint"),
    "disk: {on: 1, lose: checkpoint}": Disk(1, lose="checkpoint"),
    "clock: {on: 1, drift: -0.05}": Clock(1, -0.05),
    "clock: {on: 1, jump: 90s}": Clock(1, jump=Duration(90)),
    "rebuild: follower": Rebuild("follower"),
    "chaos: 5s": Chaos(Duration(5)),
    "chaos: {for: 5s, on: [leader, 1], longest: 100ms}": Chaos(Duration(5), ("leader", 1), Duration(0.1)),
    "busy: 4": Busy(4),
    "busy: {processes: 4, for: 2s}": Busy(4, Duration(2)),
    "heal: busy": Heal("busy"),
    "garbage: 50": Garbage(50),
    "garbage: {half_open: 7, connections: 0, for: 2s, on: leader}": Garbage(0, 7, Duration(2), "leader"),
    "link: {delay: 5ms, jitter: 2ms, distribution: normal}": Link(
        delay=Duration(0.005), jitter=Duration(0.002), distribution="normal"
    ),
}


@pytest.mark.parametrize(("text", "step"), FAULTS.items(), ids=FAULTS.keys())
def test_a_fault_is_read_shown_and_written_back(text: str, step: Step) -> None:
    scenario = read(f"cluster: {{nodes: 4}}\nsteps:\n  - {text}")
    assert scenario.steps == (step,)
    assert isinstance(step, Fault)
    assert load("scenario.yml", text=encode(scenario)) == scenario
    assert read(f"cluster: {{nodes: 4}}\nsteps:\n  - {scenario.steps[0].show()}") == scenario


def test_a_trigger_holds_faults_and_is_read_shown_and_written_back() -> None:
    text = "when: {so: {for: caught_up, on: 1, share: 0.5}, do: [{kill: 1}, {sleep: 1s}, {start: 1}]}"
    scenario = read(f"steps:\n  - {text}")
    half = UntilCaughtUp(on=1, share=0.5)
    assert scenario.steps == (When(until=half, steps=(Kill(target=1), Sleep(time=Duration(1)), Start(target=1))),)
    assert load("scenario.yml", text=encode(scenario)) == scenario
    assert read(f"steps:\n  - {scenario.steps[0].show()}") == scenario


def test_a_nemesis_is_read_and_written_back_and_what_it_may_do_counts() -> None:
    scenario = read("steps: [{nemesis: {for: 10s, every: 500ms, faults: [{kill: leader}, {link: {loss: 0.1}}]}}]")
    faults = (Kill(target="leader"), Link(loss=0.1))
    assert scenario.steps == (Nemesis(time=Duration(10), faults=faults, every=Duration(0.5)),)
    assert load("scenario.yml", text=encode(scenario)) == scenario
    assert scenario.proxied and scenario.step_count == 1
    assert read("steps: [{nemesis: {for: 10s, faults: [{clock: {on: 1, drift: 0.1}}]}}]").layered
    assert read("steps: [{when: {so: leader, do: [{busy: 1}]}}]").sim_refusals()


@pytest.mark.parametrize("step", ["power_loss: 1", "disk: {on: 1, slow: 1s}", "clock: {on: 1, jump: 1s}"])
def test_power_disks_that_fail_and_clocks_need_the_layer_beneath_real_nodes(step: str) -> None:
    assert read(f"steps: [{{repeat: {{times: 1, steps: [{step}]}}}}]".replace(step, f"{{{step}}}")).layered
    assert read(f"steps: [{{{step}}}]").layered


def test_what_is_done_to_dead_nodes_needs_no_layer() -> None:
    assert not read("steps: [{disk: {on: 1, rot: wal}}, {disk: {on: 1, lose: messages}}, {rebuild: 1}]").layered
    assert not read("steps: [{kill: leader}, {start: {target: 1, refuses: true}}, {heal: disks}]").layered


def test_supervisors_stand_in_place_of_the_layer_but_not_for_clocks() -> None:
    supervised = "cluster: {disks: supervised}\n"
    scenario = read(supervised + "steps: [{power_loss: 1}]")
    assert (scenario.disks, scenario.layered) == ("supervised", False)
    assert scenario.sim_refusals() == ["cluster.disks: supervised: a simulated node makes no system calls"]
    assert read("steps: [{power_loss: 1}]").disks == "layered"
    assert read("steps: [{kill: 1}]").disks == "direct"
    assert read(supervised.replace("}", ", writeback: 3s}") + "steps: [{power_loss: 1}]").cluster.writeback == 3.0
    with pytest.raises(ConfigError, match=r"cluster.writeback: needs `disks: supervised`"):
        read("cluster: {writeback: 3s}\nsteps: [{power_loss: 1}]")
    with pytest.raises(ConfigError, match=r"steps\[0\]\.repeat\.steps\[0\].*disks: supervised does not change clocks"):
        read(supervised + "steps: [{repeat: {times: 2, steps: [{clock: {on: 1, drift: 0.1}}]}}]")


def test_a_supervisor_takes_the_power_from_any_program() -> None:
    program = "cluster: {command: [my_node, '{config}'], disks: supervised}\n"
    assert read(program + "steps: [{power_loss: 1}, {disk: {on: 1, failing: sync}}]").disks == "supervised"
    with pytest.raises(ConfigError, match=r"needs `cluster: \{disks: supervised\}`"):
        read(program.replace(", disks: supervised", "") + "steps: [{power_loss: 1}]")
    with pytest.raises(ConfigError, match="is for the lab's own nodes"):
        read(program + "steps: [{power_loss: {target: 1, tail: torn}}]")


START = "steps: [{load: start}]\n"
KERNEL = "cluster: {network: kernel}\n"
NO_SIMULATION = {
    "a throughput": (
        START + "load: {rate: 5}\nexpectations: [{acknowledged: 1}, {throughput: 5}]",
        "expectations[1].throughput: measures the machine",
    ),
    "a high count": (START + "load: {rate: 5, count: 200001}", "load: 200001 are too many messages"),
    "a long load": (START + "load: {rate: 20000, duration: 11s}", "load: 220000 are too many messages"),
    "an immense load": (START + "load: {rate: 10000000, duration: 60m}", "36000000000 are too many messages"),
    "two loads": ("steps: [{repeat: {times: 2, steps: [{load: start}]}}]\nload: {rate: 1, count: 150000}", "300000"),
    "too much in flight": (START + "load: {in_flight: 2001}", "load.in_flight: 2001 are too many"),
    "frames in pieces": (
        "steps: [{repeat: {times: 1, steps: [{link: {chunk: 5}}]}}]",
        "steps[0].repeat.steps[0].link.chunk: simulated frames are not made of bytes",
    ),
    "packets": (
        KERNEL + "steps: [{cut: {larger_than: 1000}}]",
        "steps[0].cut.larger_than: simulated frames are not made of packets",
    ),
    "clients' packets": (
        KERNEL + "steps: [{link: {from: clients, loss: 0.5}}]",
        "steps[0].link.loss: the simulator's clients lose no bytes",
    ),
    "garbage": ("steps: [{kill: 1}, {garbage: 5}]", "steps[1].garbage: a simulation has no sockets"),
    "a token": ("cluster: {client_token: x}\nsteps: [{kill: 1}]", "cluster.client_token: nobody can come"),
    "memory": ("steps: [{kill: 1}]\nexpectations: [{memory: 64}]", "expectations[0].memory: measures the machine"),
    "busy processes": ("steps: [{kill: 1}, {busy: 2}]", "steps[1].busy: a simulation has no processor"),
    "a large send": ("steps: [{send: {client: 1, messages: 300000}}]", "steps: 300000 are too many messages"),
}


@pytest.mark.parametrize(("text", "words"), NO_SIMULATION.values(), ids=NO_SIMULATION.keys())
def test_what_makes_no_sense_in_virtual_time_is_refused(text: str, words: str) -> None:
    (reason,) = read(text).sim_refusals()
    assert words in reason


def test_a_moderate_load_can_be_simulated() -> None:
    assert read(START + "load: {rate: 5000, duration: 40s}\nexpectations: [{unavailable: 1s}]").sim_refusals() == []
    assert read(START + "load: {in_flight: 2000, clients: 9}").sim_refusals() == []


def test_only_steps_on_links_need_the_proxy() -> None:
    assert read("steps: [{cut: {from: 1}}]").proxied
    assert read("steps: [{partition: halves}]").proxied
    assert read("steps: [{reset: {}}]").proxied
    assert not read("steps: [{kill: leader}]").proxied
    assert read("steps: [{repeat: {times: 1, steps: [{link: {from: 1, to: 2, delay: 5ms}}]}}]").proxied


ONLY_BY_THE_PROXY = {
    "cut: {frames: [APPEND]}": "cut.frames",
    "link: {loss: 0.5, frames: [APPEND]}": "link.frames",
    "link: {delay: 5ms}": "link.delay",
    "link: {loss: 0.5, jitter: 5ms}": "link.jitter",
    "link: {from: clients, bandwidth: 5}": "link.bandwidth",
    "link: {reorder: {}}": "link.reorder",
    "link: {duplicate: 0.5}": "link.duplicate",
    "link: {corrupt: 0.5}": "link.corrupt",
    "link: {chunk: 5}": "link.chunk",
    "link: {refuse: true}": "link.refuse",
    "reset: {}": "reset",
}


@pytest.mark.parametrize(("step", "place"), ONLY_BY_THE_PROXY.items(), ids=ONLY_BY_THE_PROXY.keys())
def test_the_kernel_drops_packets_and_does_nothing_else(step: str, place: str) -> None:
    text = f"steps: [{{repeat: {{times: 1, steps: [{{{step}}}]}}}}]"
    (reason,) = read(text).kernel_refusals()
    assert reason.startswith(f"steps[0].repeat.steps[0].{place}: network: kernel drops packets")
    assert f"repeat.steps[0].{place}: network: kernel drops packets" in complaint(KERNEL + text)


def test_what_drops_packets_needs_no_proxy_and_knows_no_frames() -> None:
    steps = "steps: [cut: {from: 1, larger_than: 1000}, partition: halves, flap: {from: 1}, link: {loss: 0.5}]"
    scenario = read(KERNEL + steps)
    assert not scenario.proxied and scenario.kernel_refusals() == []
    assert load("scenario.yml", text=encode(scenario)) == scenario
    assert not read(KERNEL + "steps: [link: {from: clients, loss: 0.5}]").proxied
    own = "cluster: {network: kernel, command: 'node {port}'}\n"
    assert not read(own + "steps: [link: {loss: 0.5}]").proxied


def test_a_size_of_packets_is_for_the_kernel_only() -> None:
    assert "cut.larger_than: is about packets; it needs cluster: {network: kernel}" in complaint(
        "steps: [cut: {larger_than: 1000}]"
    )
    assert "larger_than: found 65535" in complaint(KERNEL + "steps: [cut: {larger_than: 65535}]")


def test_expectations_stand_for_moments_in_steps_and_for_the_run_at_the_end() -> None:
    scenario = read("steps: [{expect: [{leader: 2}, {caught_up: all}]}]\nexpectations: [{order: [a, b]}]")
    assert scenario.expectations == (Order(payloads=("a", "b")),)
    assert "order" in complaint("steps: [{expect: {order: [a]}}]")
    assert "leader" in complaint("steps: [{kill: 1}]\nexpectations: [{leader: 2}]")


# ---- refusing -----------------------------------------------------------------------------------

REFUSED = {
    "a target that is no word": (
        "steps:\n  - kill: n9",
        "4:11: steps[0].kill: found",
        '"n9", allowed leader, follower',
    ),
    "a node beyond the cluster": ("steps:\n  - kill: 4", "4:11: steps[0].kill: found 4", "1..3"),
    "a node beyond the cluster in a list": ("steps:\n  - stop: [1, 9]", "4:15: steps[0].stop[1]", "found 9"),
    "a target of true": ("steps:\n  - kill: true", "4:11: steps[0].kill", "found true"),
    "an unknown step": ("steps:\n  - kil: leader", "4:5: steps[0].kil", "allowed: start, stop, kill"),
    "two steps in one": ("steps:\n  - {kill: 1, stop: 2}", "4:5: steps[0]", "found kill and stop"),
    "a name inside the step's value": (
        'steps:\n  - kill: {target: 1, name: "a\\nb"}',
        "4:23: steps[0].kill.name: unknown key",
        "allowed: target",
    ),
    "a step without value": ("steps:\n  - kill", "4:5: steps[0]", "kill needs a value"),
    "a duration without unit": ("steps:\n  - sleep: 5", "4:12: steps[0].sleep", "500ms, 2s"),
    "an unknown thing to wait for": ("steps:\n  - wait: newleader", "4:11: steps[0].wait", "new_leader"),
    "a wait that lacks its count": ("steps:\n  - wait: delivered", "4:11: steps[0].wait", "also needs count"),
    "an unknown key": ("steps:\n  - wait: {for: leader, whitin: 3s}", "4:25: steps[0].wait.whitin", "mean within?"),
    "an unknown top-level key": ("stepz: []\nsteps: []", "3:1: stepz", "did you mean steps?"),
    "no steps": ("steps: []", "3:8: steps", "at least one"),
    "a send through no node": (
        "steps:\n  - send: {client: 1, messages: [a], via: 9}",
        "4:43: steps[0].send.via",
        "1..3",
    ),
    "a send of nothing": (
        "steps:\n  - send: {client: 1, messages: []}",
        "4:33: steps[0].send.messages",
        "found an empty list",
    ),
    "a link that does nothing": ("steps:\n  - link: {from: 1, to: 2}", "4:11: steps[0].link", "does nothing"),
    "an unknown frame": ("steps:\n  - link: {frames: [APEND], delay: 5ms}", "4:21: steps[0].link.frames[0]", "APPEND"),
    "a share above 1": ("steps:\n  - link: {loss: 1.5}", "4:18: steps[0].link.loss: found 1.5", "0..1"),
    "a share that is no number": (
        "steps:\n  - link: {duplicate: .nan}",
        "4:23: steps[0].link.duplicate",
        "allowed finite numbers",
    ),
    "a cut of unknown frames": ("steps:\n  - cut: {frames: [APEND]}", "4:20: steps[0].cut.frames[0]", "APPEND"),
    "a cut to nobody": ("steps:\n  - cut: {to: 7}", "4:15: steps[0].cut.to", "1..3"),
    "a partition of no kind": ("steps:\n  - partition: thirds", "4:16: steps[0].partition", "thirds"),
    "a ring of three": ("steps:\n  - partition: ring", "4:16: steps[0].partition: ring cuts nothing", "4 nodes"),
    "halves of a node": (
        "steps:\n  - partition: {kind: halves, node: 1}",
        "4:37: steps[0].partition.node: halves is about no node",
        "isolate, majority, minority and bridge",
    ),
    "a direction of halves": (
        "steps:\n  - partition: {kind: halves, direction: in}",
        "4:42: steps[0].partition.direction: halves has no direction",
        "direction is for isolate",
    ),
    "a minority of two": (
        "steps:\n  - partition: minority\ncluster: {nodes: 2}",
        "4:16: steps[0].partition",
        "3 nodes",
    ),
    "a negative bandwidth": (
        "steps:\n  - link: {bandwidth: -1}",
        "4:23: steps[0].link.bandwidth: found -1",
        "0..1000000000",
    ),
    "a negative chunk": ("steps:\n  - link: {chunk: -1}", "4:19: steps[0].link.chunk: found -1", "0..1000000000"),
    "a link that refuses and delays": (
        "steps:\n  - link: {refuse: true, delay: 5ms}",
        "4:20: steps[0].link.refuse: lets nothing through",
        "no other field",
    ),
    "a distribution of nothing": (
        "steps:\n  - link: {delay: 5ms, distribution: exponential}",
        "4:38: steps[0].link.distribution",
        "needs jitter",
    ),
    "an unknown distribution": (
        "steps:\n  - link: {jitter: 5ms, distribution: pareto}",
        "4:39: steps[0].link.distribution",
        "pareto",
    ),
    "a power loss of no node": ("steps:\n  - power_loss: {mid_write: true}", "4:17: steps[0].power_loss", "target"),
    "a disk that is well": ("steps:\n  - disk: {on: 1}", "4:11: steps[0].disk: give exactly one of slow", "rot"),
    "a disk that is full and fails": (
        "steps:\n  - disk: {on: 1, full: true, failing: sync}",
        "4:11: steps[0].disk",
        "exactly one",
    ),
    "a disk that rots and loses": (
        "steps:\n  - disk: {on: 1, rot: wal, lose: messages}",
        "4:11: steps[0].disk: give exactly one of slow",
        "rot, lose, copy and restore",
    ),
    "a rot in data of another program": (
        "steps:\n  - disk: {on: 1, rot: data}",
        "4:24: steps[0].disk.rot: data is of other programs",
        "own nodes",
    ),
    "a file that does not rot": (
        "steps:\n  - disk: {on: 1, full: true, file: '*.blk'}",
        "4:37: steps[0].disk.file: is for",
        "rot: data",
    ),
    "a log that is lost": ("steps:\n  - disk: {on: 1, lose: archive}", "4:25: steps[0].disk.lose", "checkpoint"),
    "a tear in the middle of a write": (
        "steps:\n  - power_loss: {target: 1, mid_write: true, tail: torn}",
        "4:52: steps[0].power_loss.tail: mid_write draws what it leaves",
        "no other tail",
    ),
    "a disk that fails strangely": (
        "steps:\n  - disk: {on: 1, failing: read}",
        "4:28: steps[0].disk.failing",
        "append",
    ),
    "a disk of nobody": ("steps:\n  - disk: {full: true}", "4:11: steps[0].disk", "on"),
    "a disk for short": (
        "steps:\n  - disk: 1",
        "4:11: steps[0].disk: found 1",
        "keys on, slow, full, failing, rot, lose",
    ),
    "a clock that is right": ("steps:\n  - clock: {on: 1}", "4:12: steps[0].clock: does nothing", "drift or jump"),
    "a clock that runs wild": (
        "steps:\n  - clock: {on: 1, drift: 0.6}",
        "4:27: steps[0].clock.drift: found 0.6",
        "-0.5..0.5",
    ),
    "a clock that jumps back": ("steps:\n  - clock: {on: 1, jump: -5s}", "4:26: steps[0].clock.jump", "500ms"),
    "a rebuild of nobody": ("steps:\n  - rebuild: 9", "4:14: steps[0].rebuild: found 9", "1..3"),
    "a healing of what can't be hurt": ("steps:\n  - heal: nodes", "4:11: steps[0].heal", "clocks"),
    "an error inside repeat": (
        "steps:\n  - repeat: {times: 2, steps: [{kill: 9}]}",
        "4:39: steps[0].repeat.steps[0].kill",
        "found 9",
    ),
    "an unknown event": (
        "steps: [{kill: 1}]\nexpectations:\n  - event: bufered",
        "5:12: expectations[0].event",
        "became_leader",
    ),
    "an event field that is not there": (
        "steps: [{kill: 1}]\nexpectations:\n  - event: {is: became_leader, where: {trm: 1}}",
        "5:40: expectations[0].event.where.trm",
        "allowed: term, last_seq",
    ),
    "an event below the log level": (
        "steps: [{kill: 1}]\nexpectations:\n  - event: buffered",
        "5:12: expectations[0].event",
        "reported at DEBUG",
    ),
    "too many nodes": ("steps: [{kill: 1}]\ncluster: {nodes: 12}", "4:18: cluster.nodes", "1..9"),
    "timeouts that contradict": (
        "steps: [{kill: 1}]\ncluster: {election_timeout: 50ms}",
        "4:29: cluster.election_timeout",
        "twice heartbeat_interval (100ms) or more",
    ),
    "a timeout that no node takes": (
        "steps: [{kill: 1}]\ncluster: {heartbeat_interval: 300ms}",
        "4:10: cluster.election_timeout",
        "twice heartbeat_interval (300ms) or more",
    ),
    "a limit that no node knows": (
        "steps: [{kill: 1}]\ncluster: {limits: {max_client: 5}}",
        "4:20: cluster.limits.max_client",
        "did you mean max_clients?",
    ),
    "a limit out of bounds": (
        "steps: [{kill: 1}]\ncluster: {limits: {batch_max_messages: 0}}",
        "4:40: cluster.limits.batch_max_messages",
        "1..65536",
    ),
    "a priority that no node takes": (
        "steps: [{kill: 1}]\ncluster: {priorities: {1: -1}}",
        "4:27: cluster.priorities",
        "found -1",
    ),
    "a seed that --seed would not take": ("steps: [{kill: 1}]\nseed: 2147483648", "4:7: seed", "0..2147483647"),
    "a tag that is no word": ("steps: [{kill: 1}]\ntags: [slow, 2nd-try]", "4:14: tags[1]", "small letters"),
    "a tag twice": ("steps: [{kill: 1}]\ntags: [slow, slow]", "4:14: tags[1]", "each tag once"),
    "a negative seed": ("steps: [{kill: 1}]\nseed: -1", "4:7: seed", "0..2147483647"),
    "a repeat without end": (
        "steps:\n  - repeat: {times: 10000, steps: [{repeat: {times: 10000, steps: [{kill: 1}]}}]}",
        "4:3: steps",
        "100000000 steps",
    ),
    "a repeat of nothing": ("steps:\n  - repeat: {times: 2, steps: []}", "4:31: steps[0].repeat.steps", "at least one"),
    "an infinite rate": ("steps: [{load: start}]\nload: {rate: .inf}", "4:14: load.rate", "finite"),
    "a rate that is no number": ("steps: [{load: start}]\nload: {rate: .nan}", "4:14: load.rate", "finite"),
    "a load step without load": ("steps:\n  - load: start", "4:5: steps[0]", "needs a load"),
    "a load that never starts": ("steps: [{kill: 1}]\nload: {rate: 5}", "4:7: load", "never started"),
    "open and closed loop at once": (
        "steps: [{load: start}]\nload: {rate: 5, in_flight: 3}",
        "4:7: load",
        "exactly one",
    ),
    "waiting for an endless load": (
        "steps:\n  - load: start\n  - wait: load_done\nload: {rate: 5}",
        "5:5: steps[1]",
        "never comes true",
    ),
    "chaos for no time": ("steps:\n  - chaos: 0s", "4:12: steps[0].chaos", "above 0"),
    "chaos of less than a millisecond": (
        "steps:\n  - chaos: {for: 1s, longest: 0.5ms}",
        "4:31: steps[0].chaos.longest",
        "1ms or more",
    ),
    "nobody at the door": (
        "steps:\n  - garbage: {connections: 0, half_open: 0}",
        "4:14: steps[0].garbage",
        "does nothing",
    ),
    "fewer than no garbage connections": ("steps:\n  - garbage: -1", "4:14: steps[0].garbage: found -1", "0..1000000"),
    "garbage in no time": ("steps:\n  - garbage: {for: 0s}", "4:20: steps[0].garbage.for", "above 0"),
    "no busy process": ("steps:\n  - busy: 0", "4:11: steps[0].busy: found 0", "1..1000"),
    "a refusal that is not waited for": (
        "steps:\n  - send: {client: 1, messages: [a], refused: true, wait: false}",
        "4:59: steps[0].send.wait",
        "cannot stand beside refused: true",
    ),
    "a trigger with a time": (
        "steps:\n  - when: {so: {for: leader, within: 5s}, do: [{kill: 1}]}",
        "4:30: steps[0].when.so.within",
        "until the steps are over",
    ),
    "a trigger that does nothing": ("steps:\n  - when: {so: leader, do: []}", "4:28: steps[0].when.do", "at least one"),
    "a trigger that waits": (
        "steps:\n  - when: {so: leader, do: [{wait: leader}]}",
        "4:30: steps[0].when.do[0].wait",
        "allowed: start, stop, kill",
    ),
    "a trigger without a load": (
        "steps:\n  - when: {so: {for: acknowledged, count: 1}, do: [{kill: 1}]}",
        "4:5: steps[0]",
        "needs a load",
    ),
    "a nemesis that heals": (
        "steps:\n  - nemesis: {for: 5s, faults: [{kill: 1}, {heal: all}]}",
        "4:45: steps[0].nemesis.faults[1].heal",
        "allowed: stop, kill, pause",
    ),
    "a replacement by a founder": (
        "cluster: {nodes: 5, founders: 3}\nsteps:\n  - replace_node: {target: 1, with: 2}",
        "5:37: steps[0].replace_node.with",
        "found 2, allowed the ids of nodes that are no founders: newcomer, 4, 5",
    ),
    "a replacement by itself": (
        "cluster: {nodes: 5, founders: 3}\nsteps:\n  - replace_node: {target: 4, with: 4}",
        "5:37: steps[0].replace_node.with",
        "found 4, which is the target",
    ),
    "a newcomer where there are none": (
        "steps:\n  - add_node: newcomer",
        "4:15: steps[0].add_node",
        "found newcomer, allowed the ids of nodes that are no founders: none, for all nodes are founders",
    ),
    "a nemesis that ruins": (
        "steps:\n  - nemesis: {for: 5s, faults: [{disk: {on: 1, rot: wal}}]}",
        "4:40: steps[0].nemesis.faults[0].disk",
        "rot, loss and copies are healed by nothing",
    ),
    "a nemesis in no time": (
        "steps:\n  - nemesis: {for: 5s, every: 0s, faults: [{kill: 1}]}",
        "4:31: steps[0].nemesis.every",
        "above 0",
    ),
    "a share of nothing": (
        "steps:\n  - wait: {for: caught_up, share: 0}",
        "4:35: steps[0].wait.share",
        "above 0, up to 1",
    ),
    "a period of nothing": ("steps:\n  - wait: {for: leader, within: 0s}", "4:33: steps[0].wait.within", "above 0"),
    "a period of more than a day": ("steps:\n  - sleep: 1441m", "4:12: steps[0].sleep", "up to 1440m"),
    "a node twice": ("steps:\n  - kill: [1, 1]", "4:15: steps[0].kill[1]", "stands here twice"),
    "a started node twice": ("steps: [{kill: 1}]\ncluster: {start: [1, 1]}", "4:22: cluster.start[1]", "twice"),
    "a frame twice": ("steps:\n  - cut: {frames: [VOTE, VOTE]}", "4:26: steps[0].cut.frames[1]", "twice"),
    "a misspelt value": ("steps:\n  - kill: leadr", '4:11: steps[0].kill: found "leadr" (did you mean', "leader?"),
    "a misspelt step": ("steps:\n  - kil: leader", "4:5: steps[0].kil: no such step (did you mean", "kill?"),
    "a misspelt choice": ("steps:\n  - heal: link", '4:11: steps[0].heal: found "link" (did you mean links', "clocks"),
    "a misspelt event": (
        "steps: [{kill: 1}]\nexpectations:\n  - event: became_leadr",
        '5:12: expectations[0].event: found "became_leadr"',
        "did you mean became_leader?",
    ),
    "a size that no client sends": ("steps: [{load: start}]\nload: {size: 70000}", "4:14: load.size", "1..65536"),
    "a rate that never sends": ("steps: [{load: start}]\nload: {rate: 1e-300}", "4:14: load.rate", "0.001..1"),
    "a host full of clients": ("steps: [{load: start}]\nload: {clients: 100000}", "4:17: load.clients", "1..20000"),
    "a message that no client sends": (
        f"steps:\n  - send: {{client: 1, messages: [a, {'ü' * 40000}]}}",
        "4:37: steps[0].send.messages[1]: found 80000 bytes",
        "allowed 65536",
    ),
    "half a character": (
        'steps:\n  - send: {client: 1, messages: ["\\ud800"]}',
        "4:34: steps[0].send.messages[0]: found \\ud800",
        "half of a character",
    ),
    "an escape sequence in a name": ('steps: [{kill: 1, name: "\\e[2J"}]', "3:25: steps[0].name", "\\x1b"),
    "limits that contradict": (
        "steps: [{kill: 1}]\ncluster: {limits: {max_line_bytes: 5000}}",
        "4:36: cluster.limits.max_line_bytes: found a max_line_bytes of 5000",
        "six times max_payload_bytes",
    ),
    "a heartbeat that no node takes": (
        "steps: [{kill: 1}]\ncluster: {heartbeat_interval: 0.5ms}",
        "4:31: cluster.heartbeat_interval: found 0.5ms",
        "1ms..3600s",
    ),
    "an event that never is so rare": (
        "steps: [{kill: 1}]\nexpectations:\n  - event: {is: failed, at_most: 0}",
        "5:12: expectations[0].event: never holds",
        "at_least is 1",
    ),
    "a latency without time": (
        "steps: [{load: start}]\nload: {rate: 5}\nexpectations:\n  - latency: {soft: true}",
        "6:14: expectations[0].latency: no time is given",
        "p50, p90, p99",
    ),
    "a part from a step that is not there": (
        "steps: [{load: start, name: begin}]\nload: {rate: 5}\nexpectations:\n"
        "  - latency: {p99: 1s, between: [begin, begn]}",
        '6:41: expectations[0].latency.between[1]: found "begn" (did you mean begin?)',
        "the name of a step: begin",
    ),
    "a part with one end": (
        "steps: [{load: start, name: begin}]\nload: {rate: 5}\nexpectations:\n  - latency: {p99: 1s, between: [begin]}",
        "6:33: expectations[0].latency.between",
        "a list of 2",
    ),
    "last_seq without number": (
        "steps: [{kill: 1}]\nexpectations:\n  - last_seq: {on: 1}",
        "5:15: expectations[0].last_seq",
        "at_least",
    ),
}


@pytest.mark.parametrize(("text", "place", "words"), REFUSED.values(), ids=REFUSED.keys())
def test_refused_with_its_place_and_what_is_allowed(text: str, place: str, words: str) -> None:
    found = complaint(text)
    assert found.startswith(f"story.yml:{place}"), found
    assert words in found


STORY: Final[dict[str, Any]] = {
    "name": "story",
    "description": "what happens",
    "tags": ["slow"],
    "seed": 5,
    "subscribers": 1,
    "bounds": {"recovery": "5s", "convergence": "15s"},
    "cluster": {
        "nodes": 4,
        "start": "all",
        "priorities": {"1": 5},
        "heartbeat_interval": "100ms",
        "election_timeout": "500ms",
        "answer_timeout": "100ms",
        "coordinator_timeout": "100ms",
        "join_timeout": "1s",
        "durability": "fsync",
        "log_level": "INFO",
        "limits": {"max_sessions": 5},
        "client_token": "abc",
        "command": ["run", "{port}"],
        "directory": "here",
    },
    "load": {
        "clients": 2,
        "first_client": 1001,
        "via": "all",
        "rate": 100,
        "in_flight": 5,
        "size": 10,
        "count": 100,
        "duration": "5s",
        "deadline": "5s",
        "workers": 1,
    },
    "steps": [
        {"load": {"do": "start"}},
        {"start": {"target": 1, "refuses": False}},
        *({word: {"target": 1}} for word in ("stop", "transfer_leader", "kill", "pause", "resume", "rebuild")),
        {"add_node": {"target": 4, "within": "1s", "must": True}},
        {"remove_node": {"target": 1, "within": "1s", "must": False}},
        {"replace_node": {"target": 1, "with": 4, "within": "1s", "must": True}},
        {"restart": {"target": 1, "how": "stop", "down_for": "1s"}},
        {"full_restart": {"how": "kill", "down_for": "1s"}},
        {"link": {"from": 1, "to": "all", "frames": ["APPEND"], "reorder": {"every": 2, "behind": 1, "at_most": "1s"}}},
        {"link": {"delay": "1s", "jitter": "1s", "distribution": "normal", "loss": 0.1, "duplicate": 0.1}},
        {"link": {"corrupt": 0.1, "bandwidth": 10, "chunk": 5}},
        {"link": {"refuse": True}},
        {"cut": {"from": 1, "to": "all", "frames": ["APPEND"], "both": True}},
        {"partition": {"kind": "isolate", "node": 1, "direction": "in"}},
        {"reset": {"from": 1, "to": 2}},
        {"flap": {"from": 1, "times": 2, "down_for": "100ms", "up_for": "50ms"}},
        {"heal": {"what": "all", "on": "all"}},
        {"power_loss": {"target": 1, "mid_write": False, "tail": "drawn"}},
        *({"disk": {"on": 1, how: value}} for how, value in {"slow": "1s", "full": True, "failing": "sync"}.items()),
        {"disk": {"on": 1, "rot": "wal"}},
        {"disk": {"on": 1, "lose": "messages"}},
        {"clock": {"on": 1, "drift": 0.1, "jump": "1s"}},
        {"chaos": {"for": "1s", "on": 1, "longest": "1s"}},
        {"busy": {"processes": 1, "for": "1s"}},
        {"garbage": {"connections": 5, "half_open": 5, "for": "1s", "on": 1}},
        {
            "send": {
                "client": 1,
                "messages": ["a"],
                "via": 1,
                "fresh": True,
                "within": "1s",
                "wait": True,
                "refused": True,
            }
        },
        {"send": {"clients": [{"client": 1, "messages": 5}], "within": "1s"}},
        {"sleep": {"for": "1s"}},
        {"hold": {"within": "1s"}, "name": "wait for the presenter", "say": "look at node 3"},
        {"hands": {"within": "1s"}},
        {"wait": {"for": "caught_up", "on": 1, "share": 0.5, "within": "1s"}},
        {"wait": {"for": "delivered", "on": 1, "count": 5}},
        {"wait": {"for": "acknowledged", "count": 5}},
        {"wait": {"for": "ended", "on": 1}},
        {"wait": {"for": "event", "is": "became_leader", "on": 1, "where": {"term": 1}, "count": 1}},
        {"when": {"so": {"for": "leader"}, "do": [{"kill": {"target": 1}}]}},
        {"nemesis": {"for": "5s", "every": "1s", "faults": [{"kill": {"target": 1}}]}},
        {"repeat": {"times": 2, "steps": [{"sleep": {"for": "1s"}, "name": "rest"}]}},
        {"expect": [{"leader": {"is": 1, "on": 1}}, {"role": {"of": 1, "is": "leader"}}, {"caught_up": {"on": 1}}]},
        {"expect": {"last_seq": {"is": 5, "at_least": 5, "on": 1}}},
    ],
    "expectations": [
        {"last_seq": {"is": 5, "at_least": 5, "on": 1}},
        {"order": {"payloads": ["a"], "consecutive": True, "from": 1}},
        {"numbering_continues": {"over_terms": 2}},
        {"event": {"is": "became_leader", "on": 1, "where": {"term": 1}, "at_least": 1, "at_most": 5}},
        {"interval": {"is": "became_leader", "near": "1s", "tolerance": "1s", "on": 1, "at_least": 3}},
        {"acknowledged": {"at_least": 1}},
        {"throughput": {"at_least": 1, "soft": True}},
        {"unavailable": {"at_most": "1s", "soft": True}},
        {"latency": {"p50": "1s", "p90": "1s", "p99": "1s", "p999": "1s", "max": "1s", "between": None, "soft": True}},
        {"memory": {"at_most": 5}},
        {"term_growth": {"at_most": 5}},
    ],
}
"""Every key of the format; not all of them go together."""
ABSURD: Final[tuple[Any, ...]] = (
    *(0, -1, 1, 2.5, -0.0, 1e-300, 1e300, 2**63 - 1, True, False, None, "", " ", "x", "-1s", "0s", "0.0001ms"),
    *(
        "9999m",
        "9" * 400 + "s",
        "leader",
        "nobody",
        "clients",
        "\x1b[2J",
        "\u202e",
        "\u0661s",
        "a\nb",
        [],
        {},
    ),
    *(
        [[]],
        [{}],
        [None],
        ["x"],
        [1, 1],
        [1, True],
        ["all", "all"],
        {"x": 1},
        {"for": 1},
        {"": ""},
        {"is": None},
        10**6,
    ),
)


def places_of(value: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The places of all values inside a value."""
    for key in value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield (*place, key)
        yield from places_of(value[key], (*place, key))


def with_value(value: Any, place: tuple[Any, ...], new: Any) -> Any:
    if not place:
        return new
    changed = copy.copy(value)
    changed[place[0]] = with_value(value[place[0]], place[1:], new)
    return changed


def stories() -> dict[str, tuple[dict[str, Any], tuple[Any, ...]]]:
    """Scenarios that are good, each with a few keys of STORY, and the place of these."""
    base = {"name": "story", "description": "d", "load": {"rate": 5, "count": 9}, "steps": [{"load": "start"}]}
    found: dict[str, tuple[dict[str, Any], tuple[Any, ...]]] = {}
    for key in sorted(STORY.keys() - {"steps", "expectations", "load", "cluster"}):
        found[key] = ({**base, key: STORY[key]}, (key,))
    for key in sorted(STORY["cluster"].keys() - {"directory"}):
        found[f"cluster {key}"] = ({**base, "cluster": {key: STORY["cluster"][key]}}, ("cluster", key))
    for key in sorted(STORY["load"].keys() - {"rate", "count"}):
        pace = {} if key == "in_flight" else {"rate": 100}
        found[f"load {key}"] = ({**base, "load": {**pace, key: STORY["load"][key]}}, ("load", key))
    for number, step in enumerate(STORY["steps"]):
        more = {**base, "cluster": {"nodes": 4, "founders": 3}, "steps": [*base["steps"], step]}
        found[f"step {number} {next(iter(step))}"] = (more, ("steps", 1))
    for each in STORY["expectations"]:
        found[f"expectation {next(iter(each))}"] = ({**base, "expectations": [each]}, ("expectations", 0))
    return found


@pytest.mark.parametrize(("story", "inside"), stories().values(), ids=stories().keys())
def test_an_absurd_value_is_taken_or_refused_with_its_place_and_never_a_crash(
    story: dict[str, Any], inside: tuple[Any, ...]
) -> None:
    """What is taken can be written, read again and planned."""
    load("story.yml", text=json.dumps(story))
    for place in (each for each in places_of(story) if each[: len(inside)] == inside):
        for absurd in ABSURD:
            text = json.dumps(with_value(story, place, absurd))
            try:
                scenario = load("story.yml", text=text)
            except FileProblem as problem:
                assert problem.line == 1 and problem.column > 1, problem
                assert "Object" not in problem.message and "Expected" not in problem.message, problem
                continue
            assert load("scenario.yml", text=encode(scenario)) == scenario
            assert all(step.show().isprintable() for step in scenario.every_step())
            if scenario.load is not None and scenario.load.clients < 100:
                workload.client_plans(scenario.load, (1, 2, 3), 7)
            scenario.sim_refusals()


def test_no_scenario_is_named_like_the_link_to_the_newest_run() -> None:
    with pytest.raises(ConfigError, match=r"story\.yml:1:7: name: latest is the link"):
        load("story.yml", text="name: latest\ndescription: d\nsteps: [{kill: 1}]")


def test_an_error_shows_the_source_line() -> None:
    with pytest.raises(ConfigError) as caught:
        read("steps:\n  - kill: n9")
    assert str(caught.value).endswith("\n    4 |   - kill: n9\n      |           ^")


# ---- the scenarios of the project -----------------------------------------------------------------


@pytest.mark.parametrize("path", SCENARIOS, ids=lambda path: path.stem)
def test_every_scenario_reads_and_is_named_after_its_file(path: Path) -> None:
    assert load(path).name == path.stem


@pytest.mark.parametrize("path", SCENARIOS, ids=lambda path: path.stem)
def test_a_resolved_scenario_reads_back_equal(path: Path) -> None:
    scenario = load(path)
    assert load("scenario.yml", text=encode(scenario)) == scenario


@pytest.mark.parametrize("path", SCENARIOS, ids=lambda path: path.stem)
def test_every_step_and_expectation_can_be_shown_in_a_line(path: Path) -> None:
    scenario = load(path)
    shown = [step.show() for step in scenario.unrolled()]
    shown += [each.show() for each in scenario.expectations]
    assert all(line and "\n" not in line for line in shown)


def test_the_reference_names_every_word_and_the_catalogue_every_scenario() -> None:
    text = REFERENCE.read_text()
    words = [*steps_by_word(), *UNTILS, *MOMENT_EXPECTATIONS, *RUN_EXPECTATIONS, *TARGET_WORDS]
    words += Scenario.__struct_fields__ + Load.__struct_fields__
    assert [word for word in words if f"`{word}`" not in text] == []
    scenarios = [*SCENARIOS, *(SCENARIOS[0].parent / "perf").glob("*.yml")]
    catalogue = CATALOGUE.read_text()
    assert [path.stem for path in scenarios if f"`{path.stem}`" not in catalogue] == []


def test_the_yaml_examples_of_the_reference_are_valid() -> None:
    examples = re.findall(r"```yaml\n(.*?)```", REFERENCE.read_text(), re.DOTALL)
    assert examples
    for example in examples:
        load("docs/scenarios.md", text=example)


def test_a_short_field_is_shown_even_when_it_is_the_default() -> None:
    scenario = read("steps: [{heal: all}]\nexpectations: [{acknowledged: 1}, {numbering_continues: 2}]")
    shown = [scenario.steps[0].show(), *(each.show() for each in scenario.expectations)]
    assert shown == ["heal: all", "acknowledged: 1", "numbering_continues: 2"]


def test_a_defaulted_step_is_shown_short() -> None:
    steps = read(
        "steps: [{kill: leader}, {wait: new_leader}, {wait: {for: caught_up, on: 3}}, {expect: {leader: 2}}]"
    ).steps
    assert [step.show() for step in steps] == [
        "kill: leader",
        "wait: new_leader",
        "wait: {for: caught_up, on: 3}",
        "expect: [leader: 2]",
    ]


# ---- durations ----------------------------------------------------------------------------------


@given(st.integers(min_value=0, max_value=10_000_000))
def test_a_duration_reads_back_as_written(milliseconds: int) -> None:
    duration = Duration(milliseconds / 1000)
    assert Duration.parse(str(duration)) == duration


@pytest.mark.parametrize("text", ["", "5", "s", "-1s", "1 s", "1e3s", "٣s", 5, None])
def test_what_is_no_duration_is_refused(text: object) -> None:
    with pytest.raises(ValueError, match="500ms"):
        Duration.parse(text)


# ---- targets at a moment ------------------------------------------------------------------------


def node(role: str, delivered: int = 5, leader: int = 3, term: int = 2) -> NodeView:
    return NodeView(True, False, role, term, leader, delivered, delivered)


DOWN = NodeView(False)
HEALTHY = ClusterView({1: node("follower"), 2: node("follower"), 3: node("leader")})
HURT = ClusterView(
    {1: node("leader", leader=1), 2: NodeView(True, True), 3: DOWN, 4: node("follower", leader=1), 5: DOWN}, (3,)
)


@pytest.mark.parametrize(
    ("target", "nodes"),
    [
        ("leader", (1,)),
        ("follower", (4,)),
        ("followers", (4,)),
        ("all", (1, 2, 3, 4, 5)),
        ("running", (1, 4)),
        ("killed", (3,)),
        ("paused", (2,)),
        ("down", (3, 5)),
        (4, (4,)),
        (("leader", 1, 2), (1, 2)),
    ],
)
def test_a_target_means_these_nodes(target: Target, nodes: tuple[int, ...]) -> None:
    assert choose(target, HURT, random.Random(1)) == nodes


@pytest.mark.parametrize("target", ["killed", "paused", "down", 9, ("leader", "paused")])
def test_a_target_that_means_nobody_is_an_error_that_shows_the_roles(target: Target) -> None:
    with pytest.raises(NoSuchTarget, match="1 follower, 2 follower, 3 leader"):
        choose(target, HEALTHY, random.Random(1))


def test_a_follower_is_drawn_with_the_seed() -> None:
    drawn = {choose("follower", HEALTHY, random.Random(seed)) for seed in range(50)}
    assert drawn == {(1,), (2,)}
    assert choose("follower", HEALTHY, random.Random(7)) == choose("follower", HEALTHY, random.Random(7))


FIVE = ClusterView({1: node("follower"), 2: node("follower"), 3: node("leader"), 4: DOWN, 5: node("follower")})


def heard(step: Partition, seed: int = 1) -> dict[int, set[int]]:
    """Node -> nodes of FIVE that it still hears, itself left out."""
    cut = partition_pairs(step, FIVE, random.Random(seed))
    assert list(cut) == sorted(set(cut))
    assert all(source != to for source, to in cut)
    return {to: {source for source in FIVE.ids if source != to and (source, to) not in cut} for to in FIVE.ids}


def test_an_isolated_node_hears_nobody_and_nobody_hears_it() -> None:
    assert heard(Partition("isolate")) == {1: {2, 4, 5}, 2: {1, 4, 5}, 3: set(), 4: {1, 2, 5}, 5: {1, 2, 4}}
    assert heard(Partition("isolate", (1, 2))) == {1: set(), 2: set(), 3: {4, 5}, 4: {3, 5}, 5: {3, 4}}
    with pytest.raises(NoSuchTarget):
        heard(Partition("isolate", "paused"))


@pytest.mark.parametrize(
    ("direction", "into", "out"), [("both", set(), set()), ("in", set(), {3}), ("out", {1, 2, 4, 5}, set())]
)
def test_an_isolated_node_may_still_be_heard_or_hear(direction: str, into: set[int], out: set[int]) -> None:
    known = heard(Partition("isolate", direction=direction))  # type: ignore[arg-type]
    assert known.pop(3) == into
    assert all(others & {3} == out and len(others - {3}) == 3 for others in known.values())


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize(("kind", "size"), [("majority", 3), ("minority", 2)])
def test_a_node_is_on_the_side_that_is_asked_for(kind: str, size: int, seed: int) -> None:
    known = heard(Partition(kind), seed)  # type: ignore[arg-type]
    sides = {frozenset(others | {each}) for each, others in known.items()}
    assert len(sides) == 2
    assert len(known[3]) == size - 1


def test_several_nodes_are_on_one_side_if_it_has_room() -> None:
    assert heard(Partition("minority", (1, 4)))[1] == {4}
    with pytest.raises(NoSuchTarget, match="3 nodes are no part of a minority, which has 2 of 5"):
        heard(Partition("minority", (1, 2, 4)))


def test_random_links_are_some_but_not_all_and_follow_from_the_seed() -> None:
    cuts = [partition_pairs(Partition("random"), FIVE, random.Random(seed)) for seed in range(200)]
    assert all(cut == tuple(sorted(set(cut))) and 1 <= len(cut) <= 19 for cut in cuts)
    assert {len(cut) for cut in cuts} == set(range(1, 20))
    assert any((a, b) in cut and (b, a) not in cut for cut in cuts for a, b in cut)
    assert cuts[7] == partition_pairs(Partition("random"), FIVE, random.Random(7))


def test_a_stint_is_a_millisecond_to_the_longest_and_each_order_of_magnitude_is_alike() -> None:
    rng = random.Random(1)
    stints = [draw_stint(1.0, rng) for _ in range(3000)]
    assert min(stints) >= 0.001 and max(stints) <= 1.0
    for low in (0.001, 0.01, 0.1):
        assert 900 <= sum(low <= stint < 10 * low for stint in stints) <= 1100
    assert draw_stint(0.001, rng) == 0.001


def test_in_a_ring_each_node_hears_its_two_neighbours() -> None:
    assert heard(Partition("ring")) == {1: {2, 5}, 2: {1, 3}, 3: {2, 4}, 4: {3, 5}, 5: {1, 4}}


@pytest.mark.parametrize("seed", range(20))
def test_halves_are_a_majority_and_the_rest(seed: int) -> None:
    sides = {frozenset(known | {each}) for each, known in heard(Partition("halves"), seed).items()}
    assert sorted(map(len, sides)) == [2, 3]
    assert heard(Partition("halves"), seed) == heard(Partition("halves"), seed)


@pytest.mark.parametrize("seed", range(20))
def test_a_bridge_hears_both_banks_which_do_not_hear_each_other(seed: int) -> None:
    known = heard(Partition("bridge", 3), seed)
    assert known.pop(3) == {1, 2, 4, 5}
    banks = {frozenset(others - {3} | {each}) for each, others in known.items()}
    assert sorted(map(len, banks)) == [2, 2]
    assert all(3 in others for others in known.values())


@pytest.mark.parametrize(("kind", "least"), LEAST_NODES.items())
def test_a_partition_cuts_links_in_the_smallest_cluster_that_may_have_it(kind: PartitionKind, least: int) -> None:
    view = ClusterView({each: node("leader" if each == 1 else "follower") for each in range(1, least + 1)})
    assert all(partition_pairs(Partition(kind, "leader"), view, random.Random(seed)) for seed in range(20))


def test_halves_are_drawn_with_the_seed() -> None:
    assert len({partition_pairs(Partition("halves"), FIVE, random.Random(seed)) for seed in range(60)}) == 10


def test_of_two_that_say_they_lead_the_higher_term_is_the_leader() -> None:
    view = ClusterView({1: node("leader", term=3), 2: node("follower"), 3: node("leader", term=2)})
    assert view.leader == 1
    assert view.agreed_leader() is None


def test_a_leader_is_agreed_only_when_all_running_nodes_name_it() -> None:
    assert HEALTHY.agreed_leader() == (3, 2)
    assert ClusterView({1: node("follower", leader=2), 3: node("leader")}).agreed_leader() is None
    assert ClusterView({1: node("follower"), 2: node("follower"), 3: DOWN}).agreed_leader() is None


def test_a_majority_s_leader_needs_neither_the_others_nor_more_votes() -> None:
    cut_off = {1: node("follower", leader=2, term=3), 2: node("leader", leader=2, term=3), 3: node("leader")}
    view = ClusterView(cut_off)
    assert (view.agreed_leader(), view.majority_leader()) == (None, (2, 3))
    assert HEALTHY.majority_leader() == (3, 2)
    silent = {1: node("follower"), 2: node("follower"), 3: DOWN}
    assert ClusterView(silent).majority_leader() is None
    assert ClusterView(silent | {3: node("follower", leader=0)}).majority_leader() is None
    assert ClusterView(silent | {3: node("leader", term=3)}).majority_leader() is None
    assert ClusterView({1: node("follower", leader=0), 2: node("follower", leader=0)}).majority_leader() is None


@pytest.mark.parametrize(
    ("expectation", "met"),
    [
        (LeaderIs(3), True),
        (LeaderIs(2), False),
        (RoleIs(3, "leader"), True),
        (RoleIs((1, 2), "follower"), True),
        (RoleIs((1, 3), "follower"), False),
        (RoleIs("killed", "follower"), False),
        (CaughtUp("all"), True),
        (LastSeq(seq_no=5), True),
        (LastSeq(seq_no=6), False),
        (LastSeq(at_least=6), False),
        (LastSeq(at_least=4), True),
    ],
    ids=lambda value: str(value) if isinstance(value, bool) else value.show(),
)
def test_a_moment_is_judged(expectation: MomentExpectation, met: bool) -> None:
    finding = judge(expectation, HEALTHY, random.Random(1))
    assert finding.met is met
    assert finding.found


def test_a_node_that_lags_or_is_down_is_not_caught_up() -> None:
    lagging = ClusterView({1: node("follower", 4), 2: node("follower"), 3: node("leader")})
    assert not judge(CaughtUp(1), lagging, random.Random(1)).met
    assert judge(CaughtUp(2), lagging, random.Random(1)).met
    assert not judge(CaughtUp(3), HURT, random.Random(1)).met


# ---- load ---------------------------------------------------------------------------------------


@given(st.integers(0, 2**31), st.integers(1, 10**6), st.integers(1, 10**7), st.integers(1, 3000))
def test_a_payload_has_its_size_and_needs_no_escape(seed: int, client: int, n: int, size: int) -> None:
    made = payload(seed, client, n, size)
    assert len(made) == size
    assert made.isascii()
    assert made.isprintable()
    assert not set(made) & {'"', "\\"}


def test_payloads_repeat_with_the_seed_and_differ_without() -> None:
    assert payload(1, 1001, 5, 100) == payload(1, 1001, 5, 100)
    made = {payload(1, client, n, 20) for client in range(1001, 1004) for n in range(1, 100)}
    assert len(made) == 3 * 99
    assert payload(1, 1001, 5, 100) != payload(2, 1001, 5, 100)


def test_payloads_at_once_are_the_same_as_one_by_one() -> None:
    for size in (1, 5, 100):
        assert payloads(3, 1001, 98, 5, size) == [payload(3, 1001, n, size) for n in range(98, 103)]


def test_plans_add_up_to_the_load_and_start_on_the_nodes_in_turn() -> None:
    plans = workload.client_plans(Load(clients=4, rate=200, count=10), (1, 2, 3), 7)
    assert [plan.client for plan in plans] == [1001, 1002, 1003, 1004]
    assert [plan.addresses for plan in plans] == [(1, 2, 3), (2, 3, 1), (3, 1, 2), (1, 2, 3)]
    assert [plan.count for plan in plans] == [3, 3, 2, 2]
    assert sum(1 / plan.interval_s for plan in plans) == pytest.approx(200)
    assert [plan.phase_s for plan in plans] == pytest.approx([0, 0.005, 0.01, 0.015])


def test_as_many_messages_are_due_as_their_times_say() -> None:
    plan = workload.client_plans(Load(clients=2, rate=200), (1,), 7)[1]
    assert plan.due_count(0) == 0
    for n in (1, 2, 3, 1000):
        assert plan.due_count(plan.due_s(n)) == n
        assert plan.due_count(plan.due_s(n) - 0.001) == n - 1


def test_a_plan_with_a_count_is_due_no_more_often() -> None:
    plan = workload.client_plans(Load(rate=100, count=5), (1,), 7)[0]
    assert plan.due_count(60) == 5


def test_clients_are_shared_out_among_workers_without_an_empty_one() -> None:
    plans = workload.client_plans(Load(clients=3, in_flight=1), (1,), 7)
    assert [[plan.client for plan in part] for part in workload.share(plans, 2)] == [[1001, 1003], [1002]]
    assert len(workload.share(plans, 8)) == 3


def test_every_event_has_a_name_and_a_level() -> None:
    assert {"became_leader", "buffered", "heartbeat_sent", "loaded"} <= EVENTS.keys()
    assert all(each.level for each in EVENTS.values())
