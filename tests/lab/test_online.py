"""Online checks: an honest history passes, and each kind of broken one is noticed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from zlib import crc32

import pytest

from lab.check.online import Broken, OnlineChecks
from lab.plan import scenario as plan
from lab.plan.workload import FIRST_SUBSCRIBER
from lab.rows import Acked, Convergence, Failed, FaultRow, Invoke, Meta, NodeExit, NodeUse, Shown
from nodeproc.core.events import (
    BecameLeader,
    Event,
    HeartbeatReceived,
    HeartbeatSent,
    NewCoordinator,
    Starting,
    UnknownMemberRefused,
)
from nodeproc.core.events import Failed as NodeFailed
from nodeproc.core.messages import Batch, Record, SessionUse, Submit
from nodeproc.records import Sealer

NODES = (1, 2, 3)


def batch(first: int, n: int, *payloads: str, term: int = 1, session: str = "s") -> Record:
    """Messages n, n + 1, … of a session, ordered at first, first + 1, …"""
    last, last_n = first + len(payloads) - 1, n + len(payloads) - 1
    header = Batch(term, first, last, (SessionUse(session, last_n, last),))
    return Sealer(lambda: 1.5).batch(header, [Submit(session, 7, 0, n, payloads)])


def sent(n: int, *payloads: str, session: str = "s", t: int = 0) -> Invoke:
    return Invoke(t, 7, session, n, len(payloads), t, payloads=payloads)


def shown(*records: Record) -> Shown:
    first, last = records[0].header, records[-1].header
    assert isinstance(first, Batch) and isinstance(last, Batch)
    return Shown(0, FIRST_SUBSCRIBER, first.first, last.last, crc32(b"".join(bytes(record.body) for record in records)))


A, B, C = batch(1, 1, "a", "b"), batch(3, 3, "c"), batch(4, 1, "x", session="t")
OTHER = batch(5, 2, "y", session="t")


def whole(*records: Record) -> bytes:
    return b"".join(record.body for record in records)


def online(subscribers: int = 1, secrets: Sequence[str] = ()) -> OnlineChecks:
    text = f"name: online\ndescription: as told\nsubscribers: {subscribers}\nsteps:\n  - sleep: 1s\n"
    scenario = plan.load("online.yml", text=text)
    return OnlineChecks(scenario, lambda: 0, set(secrets))


def finish(checks: OnlineChecks, log: bytes, *faults: FaultRow, **logs: bytes) -> None:
    """End the run: every node has this log, but for those named, as n1=b"...", and delivered as many lines."""
    delivered = dict.fromkeys(NODES, log.count(b"\n"))
    end = NodeExit(9, 0, True)
    checks.finish(
        Meta(
            scenario="online",
            kind="sim",
            links="direct",
            seed=1,
            started_utc="2023-11-14T22:13:20Z",
            versions={},
            interpreter="",
            host={},
            cluster={},
            t_start=0,
            t_end=9,
            t_healed=0,
            recovery_bound_s=5.0,
            convergence=Convergence(15.0, True, 0.01, delivered, 9),
            nodes=dict.fromkeys(NODES, NodeUse(1, 0.0, 0, (end,))),
            samples=(),
            expectations=(),
            load={},
            proxy={},
        ),
        faults,
        {node: logs.get(f"n{node}", log) for node in NODES},
    )


def honest(subscribers: int = 1, secrets: Sequence[str] = ()) -> OnlineChecks:
    """Three batches of two sessions, on all three nodes, acknowledged and shown."""
    checks = online(subscribers, secrets)
    checks.on_event(1, Starting(0, 0))
    checks.on_event(2, Starting(0, 0))
    checks.on_event(3, BecameLeader(1, 0))
    for node in (1, 2):
        checks.on_event(node, NewCoordinator(1, 3))
    checks.on_row(sent(1, "a", "b"))
    checks.on_row(sent(3, "c"))
    checks.on_delivered(3, [A])
    checks.on_row(Acked(0, "s", 2, 2))
    checks.on_row(sent(1, "x", session="t"))
    checks.on_delivered(3, [B, C])
    checks.on_delivered(1, [A, B, C])
    checks.on_delivered(2, [A, B, C])
    checks.on_row(shown(A))
    checks.on_row(shown(B, C))
    return checks


def test_an_honest_history_passes() -> None:
    checks = honest()
    finish(checks, whole(A, B, C))
    assert checks.sent == 4


def deliver_otherwise(checks: OnlineChecks) -> None:
    checks.on_started(1, 0)
    checks.on_delivered(1, [batch(1, 1, "a", "B")])


def show_otherwise(checks: OnlineChecks) -> None:
    checks.on_delivered(1, [OTHER])
    checks.on_row(shown(batch(5, 2, "Y", session="t")))


def deliver_and_acknowledge(checks: OnlineChecks, *records: Record) -> None:
    """The numbers of what was delivered are judged when something behind it is acknowledged."""
    checks.on_delivered(1, records)
    checks.on_row(Acked(0, "t", 9, 9))


def exceed(checks: OnlineChecks) -> None:
    checks.on_excess(1, "more than P1 allows")


def break_a_promise(invariant: str) -> Callable[[OnlineChecks], None]:
    return lambda checks: checks.on_broken_promise(invariant, "a broken promise")


WHILE_IT_RUNS: dict[str, tuple[str, Callable[[OnlineChecks], None]]] = {
    "a record that is not on a majority": ("A4", break_a_promise("A4")),
    "two votes in a term": ("A7", break_a_promise("A7")),
    "two orders": ("A1", deliver_otherwise),
    "back with less than was delivered": ("A1", lambda checks: checks.on_started(1, 1)),
    "back with more than was ordered": ("A1", lambda checks: checks.on_started(1, 9)),
    "a hole": ("A2", lambda checks: deliver_and_acknowledge(checks, batch(6, 2, "y", session="t"))),
    "a term that falls in the log": (
        "A2",
        lambda checks: deliver_and_acknowledge(
            checks, batch(5, 2, "y", term=2, session="t"), batch(6, 3, "z", session="t")
        ),
    ),
    "acknowledged and not in the log": ("A4", lambda checks: checks.on_row(Acked(0, "t", 2, 5))),
    "acknowledged in an unknown session": ("A4", lambda checks: checks.on_row(Acked(0, "u", 1, 5))),
    "acknowledged in no place": ("A4", lambda checks: checks.on_row(Acked(0, "t", 1, 0))),
    "acknowledged in another place": ("A4", lambda checks: checks.on_row(Acked(0, "s", 3, 4))),
    "two leaders of a term": ("A7", lambda checks: checks.on_event(2, BecameLeader(1, 4))),
    "a follower of another leader": ("A7", lambda checks: checks.on_event(2, HeartbeatReceived(1, 1))),
    "a term that falls": ("A7", lambda checks: checks.on_event(3, Starting(0, 4))),
    "a leader whose term falls": ("A7", lambda checks: checks.on_event(3, HeartbeatSent(2, 0))),
    "shown twice": ("A8", lambda checks: checks.on_row(shown(C))),
    "shown with a hole": ("A8", lambda checks: checks.on_row(Shown(0, FIRST_SUBSCRIBER, 6, 6, 0))),
    "shown before delivery": ("A8", lambda checks: checks.on_row(shown(OTHER))),
    "shown other bytes": ("A8", show_otherwise),
    "a process that ends by itself": ("A10", lambda checks: checks.on_exit(1, NodeExit(3, 70, False), "why")),
    "more held than the limits allow": ("A10", exceed),
}


@pytest.mark.parametrize("what", WHILE_IT_RUNS)
def test_what_breaks_an_invariant_while_it_runs_is_noticed(what: str) -> None:
    invariant, happens = WHILE_IT_RUNS[what]
    with pytest.raises(Broken) as broken:
        happens(honest())
    assert broken.value.invariant == invariant, broken.value.text


def test_a_node_that_lost_its_disk_may_show_an_older_term() -> None:
    checks = honest()
    checks.on_fault(FaultRow("rebuild", 3, "leader", 0, 0, {}, True, 0))
    checks.on_event(3, Starting(0, 0))
    with pytest.raises(Broken, match="node 1 shows term 0 after term 1"):
        checks.on_event(1, Starting(0, 0))


def ordered(*records: Record, rows: tuple[Invoke | Acked | Failed, ...]) -> None:
    """Look at the end of a run with this log, which all nodes delivered before all rows."""
    checks = online(subscribers=0)
    checks.on_event(3, BecameLeader(1, 0))
    for node in NODES:
        checks.on_delivered(node, records)
    for row in rows:
        checks.on_row(row)
    finish(checks, whole(*records))


AT_THE_END: dict[str, tuple[str, Callable[[], None]]] = {
    "a message twice": ("A3", lambda: ordered(A, batch(3, 2, "b"), rows=(sent(1, "a", "b"),))),
    "a message left out": ("A5", lambda: ordered(batch(1, 2, "b"), rows=(sent(1, "a", "b"),))),
    "never sent at all": ("A3", lambda: ordered(A, rows=())),
    "never sent so far": ("A3", lambda: ordered(A, B, rows=(sent(1, "a", "b"),))),
    "another payload": ("A3", lambda: ordered(A, rows=(sent(1, "a", "B"),))),
    "another payload in the second row": ("A3", lambda: ordered(A, B, rows=(sent(1, "a", "b"), sent(3, "C")))),
    "rejected and ordered": ("A3", lambda: ordered(A, rows=(sent(1, "a", "b"), Failed(0, "s", 2, 1, "gap")))),
    "sent after a later one was acknowledged": (
        "A6",
        lambda: ordered(
            A,
            batch(3, 1, "x", session="t"),
            rows=(sent(1, "x", session="t"), Acked(1, "t", 1, 3), sent(1, "a", "b", t=2)),
        ),
    ),
}


@pytest.mark.parametrize("what", AT_THE_END)
def test_what_breaks_an_invariant_shows_at_the_end(what: str) -> None:
    invariant, happens = AT_THE_END[what]
    with pytest.raises(Broken) as broken:
        happens()
    assert broken.value.invariant == invariant, broken.value.text


def test_a_subscriber_that_is_not_shown_all_is_noticed() -> None:
    """Rule: A8. It may have been shown nothing at all."""
    for subscribers, last in ((1, 4), (2, 0)):
        checks = honest(subscribers)
        for node in NODES:
            checks.on_delivered(node, [OTHER])
        checks.on_row(sent(2, "y", session="t"))
        if subscribers == 2:
            checks.on_row(shown(OTHER))
        text = f"client 90000{subscribers} was shown lines up to {last}; all nodes had delivered 5"
        with pytest.raises(Broken, match=text) as broken:
            finish(checks, whole(A, B, C, OTHER))
        assert broken.value.invariant == "A8"


def test_a_secret_in_the_log_is_noticed() -> None:
    """Rule: A3, S1."""
    finish(honest(secrets=("another",)), whole(A, B, C))
    with pytest.raises(Broken, match="session s show its secret") as broken:
        finish(honest(secrets=("another", "s")), whole(A, B, C))
    assert broken.value.invariant == "A3"


def test_a_message_log_that_is_not_what_was_delivered_is_noticed() -> None:
    log = whole(A, B, C)
    for data in (log[:-1], log + OTHER.body, log.replace(b'"c"', b'"d"')):
        with pytest.raises(Broken) as broken:
            finish(honest(), log, n2=data)
        assert broken.value.invariant == "A1"


@pytest.mark.parametrize(
    ("event", "fault", "invariant"),
    [
        (NodeFailed("it broke"), FaultRow("link", 1, "", 0, 0, {}, True, 0), "A10"),
        (UnknownMemberRefused(2, "old", "new"), FaultRow("rebuild", 3, "", 0, 0, {}, True, 0), "A10"),
        (UnknownMemberRefused(2, "old", "new"), FaultRow("rebuild", 2, "", 0, 0, {}, True, 0), ""),
    ],
)
def test_an_error_that_no_fault_explains_is_noticed(event: Event, fault: FaultRow, invariant: str) -> None:
    checks = honest()
    checks.on_event(1, event)
    try:
        finish(checks, whole(A, B, C), fault)
    except Broken as broken:
        assert broken.invariant == invariant, broken.text
    else:
        assert not invariant
