"""The watch of a simulation: an honest history passes, and each kind of broken one is noticed."""

from __future__ import annotations

from collections.abc import Callable
from zlib import crc32

import pytest

from lab.plan.workload import FIRST_SUBSCRIBER
from lab.rows import Acked, Failed, Invoke, Shown
from lab.sim.watch import Violation, Watch
from nodeproc.core.events import BecameLeader, HeartbeatReceived, NewCoordinator, Starting
from nodeproc.core.messages import Batch, Record, SessionUse, Submit
from nodeproc.records import Sealer


def batch(first: int, n: int, *payloads: str, term: int = 1, session: str = "s") -> Record:
    """Messages n, n + 1, … of a session, ordered at first, first + 1, …"""
    last, last_n = first + len(payloads) - 1, n + len(payloads) - 1
    header = Batch(term, first, last, (SessionUse(session, last_n, last),))
    return Sealer(lambda: 1.5).batch(header, [Submit(session, 7, 0, n, payloads)])


def sent(n: int, *payloads: str, session: str = "s") -> Invoke:
    return Invoke(0, 7, session, n, len(payloads), 0, payloads=payloads)


def shown(*records: Record) -> Shown:
    first, last = records[0].header, records[-1].header
    assert isinstance(first, Batch) and isinstance(last, Batch)
    return Shown(0, FIRST_SUBSCRIBER, first.first, last.last, crc32(b"".join(bytes(record.body) for record in records)))


A, B, C = batch(1, 1, "a", "b"), batch(3, 3, "c"), batch(4, 1, "x", session="t")


def honest() -> Watch:
    """Three batches of two sessions, on all three nodes, acknowledged and shown."""
    watch = Watch((1, 2, 3))
    watch.on_event(1, Starting(0, 0))
    watch.on_event(3, BecameLeader(1, 0))
    watch.on_event(1, NewCoordinator(1, 3))
    watch.on_row(sent(1, "a", "b"))
    watch.on_row(sent(3, "c"))
    watch.on_delivered(3, [A])
    watch.on_row(Acked(0, "s", 2, 2))
    watch.on_row(sent(1, "x", session="t"))
    watch.on_delivered(3, [B, C])
    watch.on_delivered(1, [A, B, C])
    watch.on_delivered(2, [A, B, C])
    watch.on_row(shown(A))
    watch.on_row(shown(B, C))
    return watch


def test_an_honest_history_passes() -> None:
    watch = honest()
    watch.at_end(dict.fromkeys((1, 2, 3), b"".join(bytes(record.body) for record in (A, B, C))))
    assert (watch.last_seq, watch.sent, watch.acknowledged, watch.elections) == (4, 4, 1, 1)


OTHER = batch(5, 2, "y", session="t")


def deliver_otherwise(watch: Watch) -> None:
    watch.forget(1)
    watch.on_delivered(1, [batch(1, 1, "a", "B")])


def show_otherwise(watch: Watch) -> None:
    watch.on_delivered(1, [OTHER])
    watch.on_row(shown(batch(5, 2, "Y", session="t")))


WHILE_IT_RUNS: dict[str, tuple[str, Callable[[Watch], None]]] = {
    "two orders": ("A1", deliver_otherwise),
    "a hole": ("A2", lambda watch: watch.on_delivered(1, [batch(6, 2, "y", session="t")])),
    "a term that falls in the log": (
        "A2",
        lambda watch: watch.on_delivered(1, [batch(5, 2, "y", term=2, session="t"), batch(6, 3, "z", session="t")]),
    ),
    "back with less than was delivered": ("A1", lambda watch: watch.recovered(1, 1)),
    "back with more than was ordered": ("A1", lambda watch: watch.recovered(1, 9)),
    "acknowledged and not in the log": ("A4", lambda watch: watch.on_row(Acked(0, "t", 2, 5))),
    "acknowledged in an unknown session": ("A4", lambda watch: watch.on_row(Acked(0, "u", 1, 5))),
    "two leaders of a term": ("A7", lambda watch: watch.on_event(2, BecameLeader(1, 4))),
    "a follower of another leader": ("A7", lambda watch: watch.on_event(2, HeartbeatReceived(1, 1))),
    "a term that falls": ("A7", lambda watch: watch.on_event(3, Starting(0, 4))),
    "shown twice": ("A8", lambda watch: watch.on_row(shown(C))),
    "shown with a hole": ("A8", lambda watch: watch.on_row(Shown(0, 9001, 6, 6, 0))),
    "shown before delivery": ("A8", lambda watch: watch.on_row(shown(OTHER))),
    "shown other bytes": ("A8", show_otherwise),
}


@pytest.mark.parametrize("what", WHILE_IT_RUNS)
def test_what_breaks_an_invariant_while_it_runs_is_noticed(what: str) -> None:
    invariant, happens = WHILE_IT_RUNS[what]
    with pytest.raises(Violation) as broken:
        happens(honest())
    assert broken.value.invariant == invariant, broken.value.text


def ordered(*records: Record, rows: tuple[Invoke | Acked | Failed, ...]) -> None:
    """Look at the end of a run with this log, which one node delivered before all rows and two after them."""
    watch = Watch((1,))
    watch.on_delivered(1, records)
    for row in rows:
        watch.on_row(row)
    watch.at_end({1: b"".join(bytes(record.body) for record in records)})


LATER = batch(3, 1, "x", session="t")
AT_THE_END: dict[str, tuple[str, Callable[[], None]]] = {
    "a message twice": ("A5", lambda: ordered(A, batch(3, 2, "b"), rows=(sent(1, "a", "b"),))),
    "a message left out": ("A5", lambda: ordered(batch(1, 2, "b"), rows=(sent(1, "a", "b"),))),
    "never sent at all": ("A3", lambda: ordered(A, rows=())),
    "never sent so far": ("A3", lambda: ordered(A, B, rows=(sent(1, "a", "b"),))),
    "another payload": ("A3", lambda: ordered(A, rows=(sent(1, "a", "B"),))),
    "another payload in the second row": ("A3", lambda: ordered(A, B, rows=(sent(1, "a", "b"), sent(3, "C")))),
    "rejected and ordered": ("A3", lambda: ordered(A, rows=(sent(1, "a", "b"), Failed(0, "s", 2, 1, "gap")))),
    "sent after a later one was acknowledged": (
        "A6",
        lambda: ordered(
            A, batch(3, 1, "x", session="t"), rows=(sent(1, "x", session="t"), Acked(0, "t", 1, 3), sent(1, "a", "b"))
        ),
    ),
}


@pytest.mark.parametrize("what", AT_THE_END)
def test_what_breaks_an_invariant_shows_at_the_end(what: str) -> None:
    invariant, happens = AT_THE_END[what]
    with pytest.raises(Violation) as broken:
        happens()
    assert broken.value.invariant == invariant, broken.value.text


def test_a_subscriber_that_is_not_shown_all_is_noticed() -> None:
    """Rule: A8. It may have been shown nothing at all."""
    watch = honest()
    watch.all_shown(1)
    watch.on_delivered(3, [OTHER])
    for subscribers, text in ((1, "subscriber 900001 was shown up to 4, delivered is 5"), (2, "was shown up to 4")):
        with pytest.raises(Violation, match=text) as broken:
            watch.all_shown(subscribers)
        assert broken.value.invariant == "A8"
    watch.on_row(shown(OTHER))
    with pytest.raises(Violation, match="subscriber 900002 was shown up to 0, delivered is 5"):
        watch.all_shown(2)


def test_a_secret_in_the_log_is_noticed() -> None:
    """Rule: A3, S1."""
    whole = b"".join(bytes(record.body) for record in (A, B, C))
    honest().at_end({1: whole}, {"another"})
    with pytest.raises(Violation, match="s-1 shows the secret of its session") as broken:
        honest().at_end({1: whole}, {"another", "s"})
    assert broken.value.invariant == "A3"


def test_a_message_log_that_is_not_what_was_delivered_is_noticed() -> None:
    whole = b"".join(bytes(record.body) for record in (A, B, C))
    for data in (whole[:-1], whole + bytes(OTHER.body), whole.replace(b'"c"', b'"d"')):
        with pytest.raises(Violation) as broken:
            honest().at_end({1: whole, 2: data})
        assert broken.value.invariant == "A1"
