"""The links' rules: order kept, order broken where asked, frames lost whole."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lab.run.links import AT_ONCE, NEVER, DeliverAfter, Drop, Duplicate, HoldBack, Link, Rule, decide


def link(rule: Rule | None = None) -> Link[int]:
    return Link(random.Random(1), rule)


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
    shaky: Link[int] = Link(random.Random(seed), Rule(delay=0.1, jitter=0.5))
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
    shaky: Link[int] = Link(random.Random(seed), Rule(loss=loss, duplicate=duplicate, jitter=0.2, every=3))
    sent = [shaky.enter("APPEND", number, number / 100) for number in range(50)]
    left = shaky.leave(100.0)
    assert [left.count(number) for number in range(50)] == sent
    assert len(left) == 50 - shaky.counts.lost + shaky.counts.duplicated


def test_a_broken_connection_takes_its_frames_along() -> None:
    slow = link(Rule(delay=1))
    slow.enter("APPEND", 1, 0.0)
    slow.clear()
    assert slow.next_due() == NEVER


@pytest.mark.parametrize(
    ("rule", "number", "wanted"),
    [
        (Rule(), 1, AT_ONCE),
        (Rule(delay=0.2), 1, DeliverAfter(0.2)),
        (Rule(every=3, behind=2, at_most=1), 3, HoldBack(2, 1)),
        (Rule(every=3), 4, AT_ONCE),
        (Rule(loss=1), 1, Drop()),
        (Rule(loss=1, duplicate=1), 1, Drop()),
        (Rule(duplicate=1, delay=0.2, every=1), 1, Duplicate(0.2)),
    ],
)
def test_a_decision_follows_from_rule_and_number(rule: Rule, number: int, wanted: object) -> None:
    assert decide(rule, number, random.Random(1)) == wanted
