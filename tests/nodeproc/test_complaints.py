"""Complaints about strangers come in bounded numbers, and none is forgotten."""

from __future__ import annotations

from nodeproc.complaints import Complaints
from nodeproc.core.events import BadInput, Event, PeerRefused, Stopping


def bad(reason: str = "garbage") -> Event:
    return BadInput("a client", reason)


def test_a_flood_of_complaints_is_counted_and_told_with_the_next_one() -> None:
    complaints = Complaints(2)
    assert [complaints.passed(bad(), 5.0) for _ in range(5)] == [bad(), bad(), None, None, None]
    assert complaints.passed(bad(), 5.9) is None
    assert complaints.passed(bad(), 6.0) == bad("garbage (and 4 more complaints before it)")
    assert complaints.passed(bad(), 6.0) == bad()
    assert complaints.total == 8


def test_refused_peers_count_as_complaints_and_other_events_always_pass() -> None:
    complaints = Complaints(1)
    assert complaints.passed(PeerRefused(2, "no"), 1.0) == PeerRefused(2, "no")
    assert complaints.passed(PeerRefused(2, "no"), 1.0) is None
    assert complaints.passed(Stopping("x"), 1.0) == Stopping("x")
