"""Each expectation of a scenario's final section: met by a run that shows it, missed by one that does not."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest

from lab.check.history import RunFileError
from lab.check.invariants import check
from lab.check.metrics import measure
from lab.check.verdict import ExpectationResult
from lab.payloads import payload
from lab.rows import Expectation, Gen, HistoryRow, Invoke, Phase, Unknown, encode_row
from lab.rundir import RunDir
from tests.lab.synthetic import MS, NODES, SCENARIO, SEED, T_START, build_run, doctor_lines, doctor_meta


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    return build_run(tmp_path)


def judged(run: RunDir, expectation: str) -> ExpectationResult:
    """What one expectation, as it stands in YAML, comes to."""
    head, _, _ = SCENARIO.partition("expectations:")
    run.scenario.write_text(f"{head}expectations:\n  - {expectation}\n")
    try:
        metrics = measure(run)
    except RunFileError:
        metrics = None
    verdict = check(run, metrics)
    assert len(verdict.expectations) == 2
    return verdict.expectations[1]


def test_without_a_leader_no_growth_of_terms_is_known(run: RunDir) -> None:
    for node in NODES:
        doctor_lines(
            run.events(node), lambda lines: lines.__setitem__(slice(None), [x for x in lines if b"became" not in x])
        )
    assert judged(run, "term_growth: 5").met is None


def first_of(client: int, n: int = 1) -> str:
    return payload(SEED, client, n, 100)


@pytest.mark.parametrize(
    ("expectation", "met", "found"),
    [
        ("last_seq: 200", True, "node 1: 200, node 2: 200, node 3: 200"),
        ("last_seq: 199", False, "node 1: 200"),
        ("last_seq: {at_least: 150, on: [1, 2]}", True, "node 1: 200, node 2: 200"),
        ("last_seq: {at_least: 201, on: 1}", False, "node 1: 200"),
        ("last_seq: {is: 200, on: leader}", None, "role"),
        ("numbering_continues: {over_terms: 2}", True, "term 1 from seq_no 1, term 2 from seq_no 101"),
        ("numbering_continues: {over_terms: 3}", False, "term 2 from seq_no 101"),
        ("term_growth: 1", True, "from term 1 to 2"),
        ("term_growth: {at_most: 0}", False, "from term 1 to 2"),
        ("acknowledged: 200", True, "200 of 200 acknowledged"),
        ("acknowledged: 201", False, "200 of 200 acknowledged"),
        ("event: leader_timeout", True, "2: node 1 1, node 2 1, node 3 0"),
        ("event: {is: leader_timeout, on: [1, 2], where: {leader: 3}}", True, "2: node 1 1, node 2 1"),
        ("event: {is: leader_timeout, where: {leader: 2}}", False, "0: "),
        ("event: {is: became_leader, at_most: 1}", False, "2: "),
        ("event: {is: became_leader, on: 2, at_most: 1}", True, "1: node 2 1"),
        ("unavailable: 200ms", True, "0.101 s without"),
        ("unavailable: 50ms", False, "0.101 s without"),
        ("throughput: 1000", True, "messages/s"),
        ("latency: 1ms", True, "p99 0.5 ms; 200 of 200 messages acknowledged"),
        ("latency: {p50: 0.4ms, p99: 1s}", False, "p50 0.5 ms, p99 0.5 ms"),
        ("latency: {max: 1ms, soft: true}", True, "max 0.5 ms"),
        ("memory: 64", True, "MiB on node"),
        ("memory: {at_most: 0.5}", False, "MiB on node"),
        ("throughput: {at_least: 1000000, soft: false}", False, "messages/s"),
    ],
)
def test_an_expectation_is_met_or_missed(run: RunDir, expectation: str, met: bool | None, found: str) -> None:
    result = judged(run, expectation)
    assert result.met is met, result
    assert found in result.found, result


PART = "latency: {p99: 1ms, between: [from here, to here]}"


def judged_part(run: RunDir, start_ms: float, end_ms: float) -> ExpectationResult:
    """PART, of a run whose two steps began then, counted from its first message."""
    rows = [Phase(T_START + int(ms * MS), "step", name) for ms, name in ((start_ms, "from here"), (end_ms, "to here"))]
    text = SCENARIO.replace("  - load: start\n", "  - {load: start, name: from here}\n")
    text = text.replace("  - kill: leader\n", "  - {kill: leader, name: to here}\n").partition("expectations:")[0]
    run.scenario.write_text(f"{text}expectations:\n  - {PART}\n")
    lines = run.history.read_bytes().splitlines(keepends=True) + [encode_row(row) for row in rows]
    run.history.write_bytes(b"".join(sorted(lines, key=lambda line: int(json.loads(bytes(line))["t"]))))
    return check(run, None).expectations[1]


def test_a_latency_may_be_that_of_a_part_of_the_run(run: RunDir) -> None:
    result = judged_part(run, 9.5, 19.5)
    assert (result.met, result.found) == (True, "p99 0.5 ms; 50 of 50 messages acknowledged")


def test_a_part_in_which_nothing_was_sent_has_no_latency(run: RunDir) -> None:
    result = judged_part(run, 25, 90)
    assert (result.met, result.found) == (None, "no message was sent in this part of the run")


def test_a_step_that_did_not_begin_bounds_no_part(run: RunDir) -> None:
    result = judged_part(run, 20, 10)
    assert (result.met, result.found) == (None, "the step 'to here' did not begin after 'from here'")


def test_a_message_that_was_never_acknowledged_is_slower_than_all_others(run: RunDir) -> None:
    doctor_lines(run.history, lambda lines: lines.__delitem__(118))
    result = judged(run, "latency: {p50: 1ms, p99: 1s}")
    assert (result.met, result.found) == (False, "p50 0.5 ms, p99 not acknowledged; 195 of 200 messages acknowledged")


def test_a_load_that_is_given_up_at_its_end_was_unavailable_until_then(run: RunDir) -> None:
    t, end = T_START + 300 * MS, T_START + 20_300 * MS
    rows: list[HistoryRow] = [
        Invoke(t, 101, "session101", 71, 1, t, gen=Gen(SEED, 100)),
        Unknown(end, "session101", 71, 1),
    ]
    with run.history.open("ab") as file:
        file.write(b"".join(map(encode_row, rows)))
    doctor_meta(run, t_end=end)
    assert judged(run, "unavailable: 10s").met is False
    assert measure(run).availability[0].unavailable_s_max == pytest.approx(20.25, abs=0.1)


def test_the_throughput_of_a_load_counts_until_its_last_message(run: RunDir) -> None:
    assert judged(run, "throughput: {at_least: 500, soft: false}").met
    t = T_START + 20_000 * MS
    with run.history.open("ab") as file:
        file.write(encode_row(Invoke(t, 101, "session101", 71, 1, t, gen=Gen(SEED, 100))))
        file.write(encode_row(Unknown(t, "session101", 71, 1)))
    doctor_meta(run, t_end=t)
    assert judged(run, "throughput: {at_least: 500, soft: false}").met is False


def test_payloads_are_found_in_order(run: RunDir) -> None:
    listed = f"[{first_of(101)!r}, {first_of(103)!r}, {first_of(102, 8)!r}]"
    assert judged(run, f"order: {listed}").found == "at seq_no 1, 11, 23"
    assert judged(run, f"order: {{payloads: {listed}, from: 1}}").met
    assert judged(run, f"order: {{payloads: {listed}, from: 2}}").met is False
    assert judged(run, f"order: {{payloads: {listed}, consecutive: true}}").met is False
    swapped = f"[{first_of(103)!r}, {first_of(101)!r}]"
    assert judged(run, f"order: {swapped}").found.endswith("is not in the log after seq_no 11")


def test_payloads_one_behind_the_other_are_found(run: RunDir) -> None:
    listed = f"[{first_of(101, 4)!r}, {first_of(101, 5)!r}, {first_of(102)!r}]"
    assert judged(run, f"order: {{payloads: {listed}, consecutive: true}}").found == "at seq_no 4..6"
    assert judged(run, f"order: {{payloads: {listed}, consecutive: true, from: 4}}").met
    assert judged(run, f"order: {{payloads: {listed}, consecutive: true, from: 3}}").met is False


def test_order_must_hold_in_every_log_where_they_differ(run: RunDir) -> None:
    doctor_lines(run.message_log(3), lambda lines: lines.reverse())
    assert judged(run, f"order: [{first_of(101)!r}, {first_of(102)!r}]").met is False


def test_unknown_outcomes_are_not_acknowledged(run: RunDir) -> None:
    doctor_lines(run.history, lambda lines: lines.__delitem__(118))
    with run.history.open("ab") as file:
        file.write(encode_row(Unknown(T_START + 300 * MS, "session101", 66, 5)))
    result = judged(run, "acknowledged: 1")
    assert result.met is False
    assert result.found == "195 of 200 acknowledged, 5 unknown but in the log"


def heartbeats(run: RunDir, node: int, *times_ms: int) -> None:
    with run.events(node).open("ab") as file:
        for time_ms in times_ms:
            file.write(b'{"t_ns":%d,"node":%d,"event":"heartbeat_sent","peers":2,"term":2}\n' % (time_ms * MS, node))
    doctor_meta(run, t_end=max(times_ms) * MS)


@pytest.mark.parametrize(
    ("expectation", "met"),
    [
        ("interval: {event: heartbeat_sent, near: 800ms, tolerance: 20ms}", True),
        ("interval: {event: heartbeat_sent, near: 700ms, tolerance: 20ms}", False),
        ("interval: {event: heartbeat_sent, near: 800ms, tolerance: 20ms, at_least: 5}", False),
    ],
)
def test_the_median_interval_of_an_event_is_judged(run: RunDir, expectation: str, met: bool) -> None:
    heartbeats(run, 2, 5000, 5805, 6600, 7420, 9000)
    head, _, _ = SCENARIO.partition("expectations:")
    key = expectation.replace("event:", "is:")
    run.scenario.write_text(head + "cluster: {log_level: DEBUG}\nexpectations:\n  - " + key + "\n")
    result = check(run, None).expectations[1]
    assert result.met is met, result


def test_an_interval_over_a_restart_is_left_out(run: RunDir) -> None:
    heartbeats(run, 2, 5000, 5800, 6600, 7400)
    with run.events(2).open("ab") as file:
        file.write(b'{"t_ns":80000000000,"node":2,"event":"starting","term":2,"last_seq":0}\n')
    nodes = run.read_meta().nodes
    heartbeats(run, 2, 90_000, 90_800)
    doctor_meta(run, nodes={**nodes, 2: msgspec.structs.replace(nodes[2], starts=2, exits=())})
    head, _, _ = SCENARIO.partition("expectations:")
    interval = "interval: {is: heartbeat_sent, near: 800ms, tolerance: 5ms, on: 2}"
    run.scenario.write_text(head + "cluster: {log_level: DEBUG}\nexpectations:\n  - " + interval + "\n")
    assert check(run, None).expectations[1].found == "node 2: median 800 ms of 4"


def test_a_soft_miss_fails_nothing(run: RunDir) -> None:
    result = judged(run, "throughput: 1000000")
    assert (result.met, result.soft) == (False, True)
    assert check(run, measure(run)).outcome == "pass"


def test_a_hard_miss_ends_with_3(run: RunDir) -> None:
    assert judged(run, "unavailable: 50ms").met is False
    assert check(run, measure(run)).exit_code == 3


def test_an_expectation_missed_during_the_run_is_passed_on(run: RunDir) -> None:
    doctor_meta(run, expectations=(Expectation(1, "leader: 2", False, "1 names 3", T_START),))
    verdict = check(run, None)
    assert verdict.expectations[0] == ExpectationResult("step 2: leader: 2", False, "1 names 3")
    assert verdict.exit_code == 3


def test_figures_that_were_not_taken_leave_the_expectation_undecided(run: RunDir) -> None:
    judged(run, "unavailable: 200ms")
    verdict = check(run, None)
    assert verdict.expectations[1].met is None
    assert verdict.exit_code == 2


def test_a_scenario_that_cannot_be_read_leaves_the_run_undecided(run: RunDir) -> None:
    run.scenario.write_text("name: [")
    verdict = check(run, None)
    assert verdict.expectations[-1].met is None
    assert verdict.exit_code == 2


def test_an_empty_log_ends_at_0(run: RunDir) -> None:
    for node in NODES:
        run.message_log(node).write_bytes(b"")
    assert judged(run, "last_seq: 0").met


def test_a_node_without_a_log_leaves_its_last_seq_no_undecided(run: RunDir) -> None:
    run.message_log(2).unlink()
    assert judged(run, "last_seq: 200").met is None
    assert "node 2: no log" in judged(run, "last_seq: 200").found
    assert judged(run, "last_seq: 199").met is False


@pytest.mark.parametrize("expectation", ["event: leader_timeout", "event: {is: failed, at_least: 0, at_most: 0}"])
def test_a_node_without_events_leaves_an_event_undecided(run: RunDir, expectation: str) -> None:
    run.events(2).unlink()
    assert judged(run, expectation).met is None
    assert judged(run, expectation).found == "no events of node 2"


def test_lines_that_are_no_events_leave_an_expectation_of_events_undecided(run: RunDir) -> None:
    with run.events(2).open("ab") as file:
        file.write(b'["event":"leader_timeout"]\n["x", {"event":"leader_timeout"}]\n{"event":"leader_timeout"}\n')
    result = judged(run, "event: leader_timeout")
    assert result.met is None and "events.jsonl:6: not an event" in result.found
