"""Rows of faults: when each was over, and that a fault which does nothing is never taken for one that did."""

from __future__ import annotations

from lab.rows import FaultRow
from lab.run.evidence import with_heals


def row(fault: str, target: int, t: int, effect: bool = True) -> FaultRow:
    return FaultRow(fault, target, "", t, t + 1, {}, effect, 0)


def healed(*rows: FaultRow) -> list[tuple[str, int, int]]:
    return [(each.fault, each.target, each.t_healed) for each in with_heals(rows)]


def test_a_node_that_is_back_ends_what_held_it_whatever_the_order_of_the_rows() -> None:
    rows = [row("start", 1, 30), row("kill", 1, 10), row("pause", 2, 20), row("resume", 2, 40)]
    assert healed(*rows) == [("kill", 1, 31), ("pause", 2, 41), ("start", 1, 0), ("resume", 2, 0)]


def test_a_start_ends_both_the_pause_and_the_kill_before_it() -> None:
    assert healed(row("pause", 1, 1), row("kill", 1, 2), row("start", 1, 3))[:2] == [("pause", 1, 4), ("kill", 1, 4)]


def test_what_hit_nothing_neither_ends_nor_is_ended() -> None:
    rows = [row("kill", 1, 1), row("start", 1, 2, effect=False), row("kill", 1, 3, effect=False), row("start", 1, 4)]
    assert healed(*rows) == [("kill", 1, 5), ("start", 1, 0), ("kill", 1, 0), ("start", 1, 0)]


def test_a_node_that_never_came_back_is_not_healed() -> None:
    assert healed(row("kill", 1, 1), row("start", 2, 2)) == [("kill", 1, 0), ("start", 2, 0)]


def test_a_reset_is_over_when_it_is_done() -> None:
    assert healed(row("reset", 1, 5)) == [("reset", 1, 6)]
