"""Properties of the log in memory: append, truncate, delivery, fork, records_after."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from nodeproc.core.log import Log
from nodeproc.core.messages import START, Batch, Mark, Position, Record
from tests.core.single import SEALER

Shape = list[tuple[int, list[int]]]
"""For each leader's stretch: how much its term exceeds the one before, and the sizes of its batches."""

shapes = st.lists(st.tuples(st.integers(1, 3), st.lists(st.integers(1, 3), max_size=4)), max_size=5)


def build(shape: Shape, term: int = 0, after: int = 0) -> list[Record]:
    """Marks and batches without bodies; term and seq_no go on from those given."""
    records: list[Record] = []
    for step, sizes in shape:
        term += step
        records.append(SEALER.mark(Mark(term, 1, after)))
        for size in sizes:
            header = Batch(term, after + 1, after + size, ())
            records.append(Record(header, bytes(10 * size), 10 * size))
            after += size
    return records


def log_of(records: Sequence[Record]) -> Log:
    log = Log()
    for record in records:
        log.append(record)
    return log


def positions(records: Sequence[Record]) -> list[Position]:
    return [record.position for record in records]


def marks_of(log: Log) -> list[tuple[int, int]]:
    return [(mark.term, mark.after) for mark in log.marks]


@st.composite
def two_logs(draw: st.DrawFn) -> tuple[list[Record], list[Record], int]:
    """Two logs that Raft can bring about: a common prefix, then stretches of different terms. And the prefix's length.

    A term is one leader's: both have a prefix of its stretch. So where they part, they part within a term that one of
    them leaves early, or at a mark, and no later term is in both.
    """
    common = build(draw(shapes))
    common = common[: draw(st.integers(0, len(common)))]
    term, seq_no = common[-1].position if common else START
    mine, theirs = build(draw(shapes), term + 100, seq_no), build(draw(shapes), term + 200, seq_no)
    more = [
        Record(Batch(term, seq_no + n, seq_no + n, ()), bytes(10), 10) for n in range(1, 1 + draw(st.integers(0, 2)))
    ]
    if more and common:  # One of the two has more of the last common term.
        mine = more + build(draw(shapes), term + 100, seq_no + len(more))
    return common + mine, common + theirs, len(common)


@given(shapes)
def test_the_position_is_that_of_the_last_record_and_positions_ascend(shape: Shape) -> None:
    records = build(shape)
    log = log_of(records)
    assert log.position == (records[-1].position if records else START)
    assert positions(records) == sorted(set(positions(records)))


@given(shapes, st.data())
def test_a_truncated_log_equals_one_that_never_had_more(shape: Shape, data: st.DataObject) -> None:
    """Rule: R2."""
    records = build(shape)
    keep = data.draw(st.sampled_from([START, *positions(records)]))
    kept = [record for record in records if record.position <= keep]
    log = log_of(records)
    assert log.truncate(keep) == len(records) - len(kept)
    assert log == log_of(kept)


@given(shapes, st.tuples(st.integers(0, 20), st.integers(0, 20)))
def test_a_truncation_keeps_the_longest_prefix_that_is_not_above_any_position_at_all(
    shape: Shape, at: tuple[int, int]
) -> None:
    """Rule: R2."""
    records = build(shape)
    log = log_of(records)
    log.truncate(Position(*at))
    assert positions(log.tail) == [p for p in positions(records) if p <= at]


@given(shapes, st.integers(0, 40))
def test_delivery_takes_whole_batches_up_to_commit_seq_in_order_and_nothing_twice(shape: Shape, commit: int) -> None:
    """Rule: D1."""
    records = build(shape)
    log = log_of(records)
    taken = log.delivered_up_to(commit)
    assert taken + log.tail == records
    batches = [record.header for record in taken if isinstance(record.header, Batch)]
    assert all(batch.last <= commit for batch in batches)
    assert log.base == (batches[-1].position if batches else START)
    assert not [r for r in log.tail if isinstance(r.header, Batch) and r.header.last <= commit]
    assert log.delivered_up_to(commit) == []


@given(shapes, st.integers(0, 40), st.data())
def test_delivered_records_survive_every_allowed_truncation(shape: Shape, commit: int, data: st.DataObject) -> None:
    """Rule: R2, D1."""
    log = log_of(build(shape))
    taken = log.delivered_up_to(commit)
    keep = data.draw(st.sampled_from([log.base, *positions(log.tail)]))
    log.truncate(keep)
    assert log.position == keep
    assert [m for m in marks_of(log) if m <= log.base] == [
        tuple(record.position) for record in taken if isinstance(record.header, Mark)
    ]


@given(shapes, st.integers(0, 40), st.data(), st.integers(1, 60))
def test_records_after_a_position_are_the_next_ones_bounded_and_at_least_one(
    shape: Shape, commit: int, data: st.DataObject, max_bytes: int
) -> None:
    """Rule: R1, P1."""
    records = build(shape)
    log = log_of(records)
    log.delivered_up_to(commit)
    after = data.draw(st.sampled_from([START, *positions(records)]))
    behind = [record for record in records if record.position > after]
    taken = log.records_after(after, max_bytes)
    if after < log.base:
        assert taken is None, "they are on the disk only"
        return
    assert taken is not None
    assert taken == behind[: len(taken)]
    assert bool(taken) == bool(behind)
    assert len(taken) <= 1 or sum(len(record.raw) for record in taken) <= max_bytes
    if len(taken) < len(behind):
        assert sum(len(record.raw) for record in behind[: len(taken) + 1]) > max_bytes


@given(two_logs())
def test_the_fork_is_the_end_of_the_common_prefix(logs: tuple[list[Record], list[Record], int]) -> None:
    """Rule: R1."""
    mine, theirs, common = logs
    ours, other = log_of(mine), log_of(theirs)
    expected = mine[common - 1].position if common else START
    assert ours.fork(marks_of(other), other.position.seq_no) == expected
    assert other.fork(marks_of(ours), ours.position.seq_no) == expected


@given(two_logs())
def test_logs_are_equal_after_truncation_to_the_fork_and_appending_the_rest(
    logs: tuple[list[Record], list[Record], int],
) -> None:
    """Rule: R1, R2, R4."""
    mine, theirs, _ = logs
    leader, follower = log_of(mine), log_of(theirs)
    fork = leader.fork(marks_of(follower), follower.position.seq_no)
    follower.truncate(fork)
    assert follower.position == fork
    for record in leader.records_after(fork, 10**9) or []:
        follower.append(record)
    assert follower == leader


@given(shapes)
def test_a_log_forks_from_itself_at_its_end_and_from_nothing_at_the_start(shape: Shape) -> None:
    """Rule: R1."""
    log = log_of(build(shape))
    assert log.fork(marks_of(log), log.position.seq_no) == log.position
    assert log.fork([], 0) == START


@given(two_logs(), st.integers(2, 4), st.data())
def test_a_few_marks_at_a_time_down_to_the_last_delivered_message_find_the_same_fork(
    logs: tuple[list[Record], list[Record], int], most: int, data: st.DataObject
) -> None:
    """Rule: R1."""
    mine, theirs, common = logs
    leader, follower = log_of(mine), log_of(theirs)
    expected = leader.fork(marks_of(follower), follower.position.seq_no)
    delivered = theirs[data.draw(st.integers(0, common)) - 1].position.seq_no if common else 0
    follower.delivered_up_to(min(delivered, expected.seq_no))
    marks, older = follower.catch_up_marks(None, most)
    assert len(marks) <= most
    while older and not any(leader.has_mark(term) for term, _ in marks):
        up_to = marks[0][0]
        marks, older = follower.catch_up_marks(up_to, most)
        assert marks[0][0] < up_to
    assert leader.fork(marks, follower.position.seq_no) == expected
