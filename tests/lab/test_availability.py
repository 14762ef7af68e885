"""What is put down to which fault: silence, elections, terms."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from lab.check.availability import Silence, TermCount, Window, add_elections, explains, fault_kinds, windows_of
from lab.check.history import EventLine
from lab.check.invariants import check
from lab.check.metrics import measure
from lab.rows import FaultRow
from lab.show.table import render
from tests.lab.synthetic import MS, T_START, build_run, doctor_lines

S = 1_000_000_000


def row(fault: str, t: int, step: int, asked: str = "", effect: bool = True, number: int = 0) -> FaultRow:
    return FaultRow(fault, 1, "leader", t, t + 1, {}, effect, step, asked=asked, round=number)


def test_a_window_goes_from_fault_to_fault_whatever_heals_in_between() -> None:
    rows = [
        row("start", 5 * S, 2),
        row("kill", 1 * S, 0, "kill: leader"),
        row("link", 7 * S, 3, "cut: {}"),
        row("heal", 8 * S, 4),
        row("resume", 9 * S, -1),
        row("exit", 6 * S, 1),
    ]
    windows = windows_of(rows)
    assert [(each.asked, each.start, each.end) for each in windows[:1]] == [("kill: leader", 1 * S, 7 * S)]
    assert (windows[1].asked, windows[1].start) == ("cut: {}", 7 * S) and windows[1].end > 100 * S


def test_the_rows_of_one_step_are_one_fault_and_those_of_two_rounds_are_two() -> None:
    one_step = [row("kill", S, 0, "kill: all"), row("kill", S + 1, 0, "kill: all")]
    assert len(windows_of(one_step)) == 1
    rounds = [row("kill", S, 0, "kill: leader", number=1), row("kill", 2 * S, 0, "kill: leader", number=2)]
    assert len(windows_of(rounds)) == 2


def test_what_had_no_effect_opens_no_window() -> None:
    assert windows_of([row("kill", S, 0, effect=False)]) == []


def test_a_silence_over_two_windows_counts_in_each_as_far_as_it_lies_in_it() -> None:
    windows = [Window("a", 10, 20), Window("b", 20)]
    silence = Silence(windows)
    silence.end(5, 8, by_ack=True)
    assert [each.silent for each in windows] == [-1, -1]
    silence.end(8, 27, by_ack=True)
    silence.end(27, 29, by_ack=True)
    assert [each.silent for each in windows] == [10, 7]


def test_the_first_acknowledgement_counts_behind_the_new_leader_only() -> None:
    window = Window("a", 10, led=15)
    silence = Silence([window])
    silence.end(9, 12, by_ack=True)
    assert window.acked == 0
    silence.end(12, 18, by_ack=True)
    silence.end(18, 19, by_ack=True)
    assert window.acked == 18


def test_an_election_is_put_down_to_the_fault_before_it() -> None:
    windows = [Window("a", 10, 20, faults=[row("kill", 10, 0)]), Window("b", 20, faults=[row("kill", 20, 1)])]
    events = [
        EventLine(5, 1, "became_leader", term=1),
        EventLine(12, 1, "leader_timeout"),
        EventLine(14, 2, "became_leader", term=2),
        EventLine(15, 1, "leader_timeout"),
        EventLine(25, 3, "became_leader", term=3),
        EventLine(26, 3, "became_leader", term=4),
    ]
    add_elections(windows, events)
    assert [(each.suspected, each.led, each.elections) for each in windows] == [(12, 14, 1), (0, 25, 2)]


def test_kinds_are_the_faults_in_the_same_words() -> None:
    windows = [
        Window("kill: leader", 0, 10 * S, silent=S, suspected=4 * 10**6, led=6 * 10**6, elections=1, acked=8 * 10**6),
        Window("cut: {}", 10 * S, 20 * S),
        Window("kill: leader", 20 * S, 30 * S, silent=3 * S, led=20 * S + 8 * 10**6, elections=2),
    ]
    kill, cut = fault_kinds(windows)
    assert (kill.asked, kill.times, kill.unavailable_s_median, kill.unavailable_s_max) == ("kill: leader", 2, 2.0, 3.0)
    assert (kill.elections, kill.detected_ms_median, kill.elected_ms_median) == (3, 4.0, 7.0)
    assert kill.acknowledged_ms_median == 8.0
    assert (cut.times, cut.unavailable_s_median, cut.unavailable_s_max, cut.elections) == (1, None, None, 0)


def test_terms_go_from_the_first_leader_s_to_the_highest_that_anybody_showed() -> None:
    count = TermCount()
    for event in (
        EventLine(1, 1, "starting", term=0),
        EventLine(2, 3, "became_leader", term=1),
        EventLine(3, 2, "election_started", term=9),  # proposed only
        EventLine(4, 2, "became_candidate", term=4),
        EventLine(5, 2, "became_leader", term=3),
    ):
        count.on_event(event)
    terms = count.terms()
    assert (terms.first, terms.last, terms.elections, terms.growth) == (1, 4, 2, 3)


def test_a_run_is_measured_and_shown(tmp_path: Path) -> None:
    run = build_run(tmp_path)
    metrics = measure(run)
    (kind,) = metrics.availability
    assert (kind.asked, kind.times, kind.elections) == ("kill: leader", 1, 1)
    assert kind.unavailable_s_max == pytest.approx(0.1005)
    assert (kind.detected_ms_median, kind.elected_ms_median, kind.acknowledged_ms_median) == (20, 40, 100.5)
    assert (metrics.terms.first, metrics.terms.last, metrics.terms.elections) == (1, 2, 2)
    text = render(run, check(run, metrics), metrics)
    line = next(line for line in text.splitlines() if line.startswith("kill: leader"))
    assert line.split()[2:] == ["1", "0.101", "0.101", "1", "20.0", "40.0", "100.5"]
    assert "1 to 2, 2 times a node became leader" in text


def test_a_nemesis_is_one_part_of_the_run_however_many_faults_it_did(tmp_path: Path) -> None:
    run = build_run(tmp_path)
    rows = [row("pause", T_START + at * MS, 1, "pause: leader", number=at) for at in range(1, 15)]
    run.write_faults(rows)
    metrics = measure(run)
    assert [part.name for part in metrics.segments] == ["before the nemesis", "during the nemesis"]
    assert metrics.availability[0].times == 14 and len(metrics.failovers) == 14


def test_a_suspicion_belongs_to_the_fault_that_explains_it_and_not_to_the_latest() -> None:
    """Node 1, the leader, stands still; while it does a follower is killed, and only then is node 1 suspected."""
    pause = row("pause", 10, 0)
    kill = FaultRow("kill", 2, "follower", 20, 21, {}, True, 1)
    timeout = EventLine(30, 3, "leader_timeout", leader=1)
    assert explains(pause, timeout) and not explains(kill, timeout)
    windows = windows_of([pause, kill])
    add_elections(windows, [timeout, EventLine(31, 3, "became_leader", term=2)])
    assert [each.suspected for each in windows] == [0, 0]


@pytest.mark.parametrize(("pairs", "expected"), [(((1, 3), (3, 1)), True), (((1, 2),), False), (((3, 1),), True)])
def test_a_rule_on_links_explains_a_suspicion_between_their_ends(
    pairs: tuple[tuple[int, int], ...], expected: bool
) -> None:
    cut = FaultRow("link", 0, "", 1, 2, {"pairs": pairs}, True, 0)
    assert explains(cut, EventLine(3, 3, "leader_timeout", leader=1)) is expected


def test_a_failover_counts_only_suspicions_of_the_node_that_was_hit(tmp_path: Path) -> None:
    run = build_run(tmp_path)
    other = {"t_ns": T_START + 25 * MS, "node": 1, "event": "leader_timeout", "leader": 2, "reason": "an older fault"}
    doctor_lines(run.events(1), lambda lines: lines.insert(2, msgspec.json.encode(other) + b"\n"))
    assert [each.suspected_ms for each in measure(run).failovers] == [20]
