"""The links' rules: order kept, order broken where asked, frames lost whole."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lab.course.links import (
    NEVER,
    PIECE_GAP_S,
    Decision,
    Handling,
    Link,
    decide,
)
from lab.steps.rules import Rule

NUMBERS: Handling[int] = Handling(size=lambda n: 10, spoil=lambda n, rng: -n, pieces=lambda n, size: [n] * (10 // size))
"""Frames of ten bytes; a spoilt one is negative, and each piece of one looks like the whole."""


def link(rule: Rule | None = None, seed: int = 1) -> Link[int]:
    return Link(random.Random(seed), NUMBERS, rule)


def test_a_straight_link_hands_frames_over_at_once_and_in_order() -> None:
    straight = link()
    for number in range(5):
        straight.enter("APPEND", number, 1.0)
    assert straight.leave(1.0) == [0, 1, 2, 3, 4]
    assert straight.next_due() == NEVER


def test_a_delay_holds_frames_of_its_types_and_all_behind_them() -> None:
    slow = link(Rule(frames=("APPEND",), delay=0.5))
    slow.enter("HEARTBEAT", 1, 1.0)
    slow.enter("APPEND", 2, 1.0)
    slow.enter("HEARTBEAT", 3, 1.1)
    assert slow.leave(1.1) == [1]
    assert slow.next_due() == 1.5
    assert slow.leave(1.49) == []
    assert slow.leave(1.5) == [2, 3]
    assert slow.counts.delayed == 1


@given(st.lists(st.floats(0, 0.3), max_size=30), st.integers(0, 1000))
def test_jitter_never_changes_the_order(gaps: list[float], seed: int) -> None:
    shaky = link(Rule(delay=0.1, jitter=0.5), seed)
    now, left = 0.0, []
    for number, gap in enumerate(gaps):
        now += gap
        shaky.enter("APPEND", number, now)
        left += shaky.leave(now)
    assert left + shaky.leave(now + 10) == list(range(len(gaps)))


def test_every_second_frame_is_overtaken_by_the_next() -> None:
    swapped = link(Rule(frames=("APPEND",), every=2, behind=1, at_most=9))
    left = []
    for number in range(1, 8):
        swapped.enter("APPEND", number, float(number))
        left += swapped.leave(float(number))
    assert left == [1, 3, 2, 5, 4, 7, 6]
    assert swapped.counts.overtaken == 3


def test_other_frames_pass_the_one_held_back_but_do_not_release_it() -> None:
    swapped = link(Rule(frames=("APPEND",), every=1, behind=1, at_most=9))
    swapped.enter("APPEND", 1, 0.0)
    swapped.enter("HEARTBEAT", 2, 0.0)
    assert swapped.leave(0.0) == [2]
    swapped.enter("APPEND", 3, 1.0)
    assert swapped.leave(1.0) == [3, 1]


def test_a_frame_that_nothing_overtakes_is_let_go_in_time_and_not_counted() -> None:
    swapped = link(Rule(every=1, at_most=0.25))
    swapped.enter("APPEND", 1, 1.0)
    assert swapped.next_due() == 1.25
    assert swapped.leave(1.25) == [1]
    assert swapped.counts.overtaken == 0


def test_a_healed_link_delivers_all_that_is_on_its_way_in_order() -> None:
    slow = link(Rule(delay=5))
    slow.enter("APPEND", 1, 0.0)
    slow.enter("APPEND", 2, 0.0)
    slow.set_rule(None, 1.0)
    slow.enter("APPEND", 3, 1.0)
    assert slow.leave(1.0) == [1, 2, 3]


def test_a_healed_link_lets_the_frame_go_that_it_held_back() -> None:
    swapped = link(Rule(every=2, behind=3, at_most=9))
    for number in (1, 2, 3):
        swapped.enter("APPEND", number, 0.0)
    swapped.set_rule(None, 0.5)
    assert swapped.leave(0.5) == [1, 3, 2]


def test_lost_frames_are_counted_and_never_arrive() -> None:
    holed = link(Rule(loss=1.0))
    holed.enter("APPEND", 1, 0.0)
    assert holed.leave(100.0) == [] and holed.counts.lost == 1


def test_a_frame_that_is_duplicated_arrives_twice_in_its_place() -> None:
    doubled = link(Rule(frames=("APPEND",), duplicate=1.0, delay=0.5))
    assert [doubled.enter(frame, n, 0.0) for n, frame in enumerate(("HEARTBEAT", "APPEND", "APPEND"))] == [1, 2, 2]
    assert doubled.leave(0.49) == [0]
    assert doubled.leave(0.5) == [1, 1, 2, 2]
    assert (doubled.counts.entered, doubled.counts.duplicated, doubled.counts.delayed) == (3, 2, 2)


def test_a_duplicate_overtakes_the_frame_held_back_whole() -> None:
    mixed = link(Rule(every=1, behind=1, at_most=9))
    mixed.enter("APPEND", 1, 0.0)
    mixed.set_rule(Rule(duplicate=1.0), 0.0)
    mixed.enter("APPEND", 2, 0.0)
    assert mixed.leave(0.0) == [2, 2, 1]
    assert mixed.counts.overtaken == 1


@given(st.floats(0, 1), st.floats(0, 1), st.integers(0, 1000))
def test_what_enters_is_lost_or_leaves_once_or_twice(loss: float, duplicate: float, seed: int) -> None:
    shaky = link(Rule(loss=loss, duplicate=duplicate, jitter=0.2, every=3), seed)
    sent = [shaky.enter("APPEND", number, number / 100) for number in range(50)]
    left = shaky.leave(100.0)
    assert [left.count(number) for number in range(50)] == sent
    assert len(left) == 50 - shaky.counts.lost + shaky.counts.duplicated


def test_a_corrupted_frame_arrives_spoilt_in_its_place() -> None:
    bad = link(Rule(frames=("APPEND",), corrupt=1.0, every=1, delay=0.5))
    for number, frame in enumerate(("HEARTBEAT", "APPEND", "APPEND")):
        bad.enter(frame, number, 0.0)
    assert bad.leave(0.5) == [0, -1, -2]
    assert (bad.counts.corrupted, bad.counts.delayed, bad.counts.overtaken) == (2, 2, 0)


def test_a_bandwidth_lets_bytes_pass_one_behind_the_other_and_then_delays_them() -> None:
    narrow = link(Rule(bandwidth=20, delay=1.0))
    for number in (1, 2):
        narrow.enter("APPEND", number, 0.0)
    narrow.enter("APPEND", 3, 5.0)
    assert [narrow.leave(at) for at in (1.49, 1.5, 1.99, 2.0, 6.49, 6.5)] == [[], [1], [], [2], [], [3]]
    assert narrow.counts.delayed == 3


def test_an_idle_line_saves_no_bandwidth_for_later_and_a_heal_frees_it() -> None:
    narrow = link(Rule(bandwidth=1))
    narrow.enter("APPEND", 1, 100.0)
    assert narrow.next_due() == 110.0
    narrow.set_rule(None, 101.0)
    narrow.set_rule(Rule(bandwidth=1), 101.0)
    narrow.enter("APPEND", 2, 101.0)
    assert narrow.leave(101.0) == [1] and narrow.next_due() == 111.0


def test_a_frame_in_pieces_arrives_bit_by_bit_and_never_mixed_with_the_next() -> None:
    slow = link(Rule(frames=("APPEND",), chunk=5))
    slow.enter("APPEND", 1, 0.0)
    slow.enter("APPEND", 2, 0.0)
    slow.enter("HEARTBEAT", 3, 0.0)
    assert slow.leave(0.0) == [1]
    assert slow.leave(PIECE_GAP_S) == [1, 2]
    assert slow.leave(1.0) == [2, 3]
    assert slow.counts.cut == 2


def test_a_frame_no_longer_than_a_piece_is_not_counted_as_cut() -> None:
    whole = link(Rule(chunk=10))
    whole.enter("APPEND", 1, 0.0)
    assert whole.leave(0.0) == [1] and whole.counts.cut == 0


def test_exponential_jitter_has_the_mean_that_is_asked_for_and_no_upper_bound() -> None:
    rule, rng = Rule(delay=1.0, jitter=0.1, distribution="exponential"), random.Random(1)
    delays = [each.seconds for each in (decide(rule, n, rng) for n in range(2000)) if each.fate == "deliver"]
    assert len(delays) == 2000 and min(delays) >= 1.0
    assert 1.09 < sum(delays) / 2000 < 1.11 and max(delays) > 1.5


def test_normal_jitter_lies_around_the_delay_and_no_frame_arrives_before_it_was_sent() -> None:
    rule, rng = Rule(delay=1.0, jitter=0.1, distribution="normal"), random.Random(1)
    delays = [each.seconds for each in (decide(rule, n, rng) for n in range(2000)) if each.fate == "deliver"]
    assert 0.99 < sum(delays) / 2000 < 1.01
    assert 0.65 < sum(0.9 <= delay <= 1.1 for delay in delays) / 2000 < 0.72
    wide = Rule(delay=0.01, jitter=1.0, distribution="normal")
    decisions = [decide(wide, n, rng) for n in range(200)]
    assert min(each.seconds for each in decisions if each.fate == "deliver") == 0.0


def test_only_a_rule_that_loses_every_frame_is_silent() -> None:
    assert Rule(loss=1.0).silent
    assert not Rule(loss=0.99).silent and not Rule(loss=1.0, frames=("APPEND",)).silent


def test_a_broken_connection_takes_its_frames_along() -> None:
    slow = link(Rule(delay=1))
    slow.enter("APPEND", 1, 0.0)
    slow.clear()
    assert slow.next_due() == NEVER


@pytest.mark.parametrize(
    ("rule", "number", "wanted"),
    [
        (Rule(), 1, Decision("deliver", 0.0)),
        (Rule(delay=0.2), 1, Decision("deliver", 0.2)),
        (Rule(every=3, behind=2, at_most=1), 3, Decision("hold_back")),
        (Rule(every=3), 4, Decision("deliver", 0.0)),
        (Rule(loss=1), 1, Decision("lose")),
        (Rule(loss=1, duplicate=1), 1, Decision("lose")),
        (Rule(duplicate=1, delay=0.2, every=1), 1, Decision("duplicate", 0.2)),
        (Rule(corrupt=1, delay=0.2, every=1), 1, Decision("corrupt", 0.2)),
        (Rule(duplicate=1, corrupt=1), 1, Decision("duplicate", 0.0)),
    ],
)
def test_a_decision_follows_from_rule_and_number(rule: Rule, number: int, wanted: object) -> None:
    assert decide(rule, number, random.Random(1)) == wanted
