"""Events that strangers cause come in bounded numbers, and none is forgotten."""

from __future__ import annotations

from nodeproc.core.events import BadInput, ClientConnected, ClientLeft, PeerRefused, Stopping
from nodeproc.net.complaints import ALL, BURST_S, MAX_ADDRESSES, Complaints

BURST = int(BURST_S)


def bad(reason: str = "garbage") -> BadInput:
    return BadInput("a client", reason)


def test_one_address_causes_a_burst_and_then_so_many_a_second() -> None:
    complaints = Complaints(1)
    said = [complaints.passed(bad(), 5.0, "a") for _ in range(BURST + 4)]
    assert said == [bad()] * BURST + [None] * 4
    assert complaints.passed(bad(), 5.9, "a") is None
    assert complaints.passed(bad(), 6.0, "a") == bad("garbage (and 5 more events left out before it)")
    assert complaints.passed(bad(), 6.0, "a") is None
    assert complaints.passed(bad(), 1000.0, "a") == bad("garbage (and 1 more events left out before it)")
    assert complaints.passed(bad(), 1000.0, "a") == bad()
    assert (complaints.total, complaints.left_out) == (BURST + 9, 6)


def test_clients_that_come_and_go_are_limited_too() -> None:
    complaints = Complaints(1)
    events = [ClientConnected(1, "s"), ClientLeft(1, "s")] * BURST
    assert [complaints.passed(event, 1.0, "a") for event in events][-2:] == [None, None]
    assert complaints.total == 0 and complaints.left_out == BURST


def test_one_address_takes_no_others_share_and_all_have_a_limit() -> None:
    complaints = Complaints(1)
    passed = [complaints.passed(bad(), 1.0, "a") for _ in range(1000)]
    assert passed.count(bad()) == BURST
    assert complaints.passed(PeerRefused(2, "no"), 1.0, "b") is not None
    others = [complaints.passed(bad(), 1.0, f"address {n}") for n in range(1000)]
    assert sum(event is not None for event in others) == BURST * ALL - BURST - 1


def test_addresses_that_come_once_take_a_bounded_memory() -> None:
    complaints = Complaints(1)
    for n in range(10 * MAX_ADDRESSES):
        complaints.passed(bad(), n / 1000, str(n))
    assert len(complaints._of) <= MAX_ADDRESSES + 1


def test_events_of_the_node_itself_always_pass() -> None:
    complaints = Complaints(1)
    for _ in range(2 * BURST):
        complaints.passed(bad(), 1.0)
    assert complaints.passed(Stopping("x"), 1.0) == Stopping("x")
