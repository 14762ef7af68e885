"""Rule K6 of docs/protocol.md: a node fetches unreadable records from a peer."""

from __future__ import annotations

from nodeproc.core.effects import Copied, Effects
from nodeproc.core.messages import START, CatchUp, Copy, CopyRequest, Damaged, HeartbeatAck, Position
from tests.core.single import Single, sent, stretch

LOG = stretch(1, 0, 2, 2, 2)
AFTER = Position(1, 2)


def lacking(**settings: object) -> tuple[Single, Effects]:
    """Node 2, follower, has just found that it can't read what stands behind seq_no 2."""
    single = Single(log=LOG, delivered=6, **settings)  # type: ignore[arg-type]
    return single, single.give(2, Damaged(AFTER))


def test_a_node_asks_one_peer_after_the_other_for_records_it_cannot_read() -> None:
    """Rule: K6."""
    single, fx = lacking()
    (request,) = sent(fx, CopyRequest, to=1)
    assert request.after == AFTER and not sent(fx, CopyRequest, to=3) and not fx.copied
    (again,) = sent(single.give(1, Copy(request.number, ())), CopyRequest, to=3)
    assert again == request
    assert single.give(3, Copy(request.number, tuple(LOG[2:]))).copied == [Copied(AFTER, tuple(LOG[2:]))]


def test_a_peer_that_does_not_answer_is_not_waited_for_longer_than_an_election_timeout() -> None:
    """Rule: K6."""
    single, fx = lacking(election_timeout=0.5)
    assert sent(fx, CopyRequest, to=1)
    assert not sent(single.wait(0.4), CopyRequest)
    (request,) = sent(single.wait(0.2), CopyRequest, to=3)
    assert single.give(1, Copy(request.number, tuple(LOG[2:]))).copied, "late is better than never"
    assert not single.give(3, Copy(request.number, tuple(LOG[2:]))).copied, "but one copy is enough"


def test_a_reader_is_notified_that_no_peer_has_a_copy_and_asks_again_later() -> None:
    """Rule: K6."""
    single, fx = lacking()
    (request,) = sent(fx, CopyRequest, to=1)
    single.give(1, Copy(request.number, ()))
    assert single.give(3, Copy(request.number, ())).copied == [Copied(AFTER, ())]
    fx = single.give(2, Damaged(AFTER))
    assert fx.copied == [Copied(AFTER, ())] and not sent(fx, CopyRequest), "asked a moment ago"
    assert sent(single.give(2, Damaged(Position(1, 4))), CopyRequest), "another stretch may be had"


def test_a_new_link_may_bring_records_that_no_peer_had() -> None:
    """Rule: K6."""
    single = Single(log=LOG, delivered=6, links=False)
    assert single.give(2, Damaged(AFTER)).copied == [Copied(AFTER, ())]
    single.link(3)
    assert sent(single.give(2, Damaged(AFTER)), CopyRequest, to=3)


def test_one_stretch_is_asked_for_at_a_time() -> None:
    """Rule: K6."""
    single, _ = lacking()
    fx = single.give(2, Damaged(Position(1, 4)))
    assert not fx.send and not fx.copied


def test_a_node_without_peers_finds_no_copy() -> None:
    """Rule: K6."""
    single = Single(1, (1,), log=LOG, delivered=6)
    assert single.give(1, Damaged(AFTER)).copied == [Copied(AFTER, ())]


def test_any_node_sends_copies_of_delivered_records_only() -> None:
    """Rule: K6."""
    single = Single(log=LOG, delivered=4)
    (fetch,) = single.give(3, CopyRequest(AFTER, 9)).fetch
    assert fetch.after == AFTER
    (copy,) = sent(single.node.fetched(3, fetch.token, LOG[2:], single.now), Copy, to=3)
    assert copy == Copy(9, (LOG[2],)), "seq_no 5 and 6 are not delivered here and may be dropped yet"
    assert sent(single.give(3, CopyRequest(Position(1, 4), 10)), Copy, to=3) == [Copy(10, ())]


def test_an_unknown_member_neither_gets_nor_gives_a_copy() -> None:
    """Rule: K6, M4."""
    single, fx = lacking()
    (request,) = sent(fx, CopyRequest, to=1)
    single.link(3, "another-disk")
    assert not single.give(3, CopyRequest(AFTER, 9)).fetch
    assert not single.give(3, Copy(request.number, tuple(LOG[2:]))).copied


def test_a_leader_serves_the_others_while_one_follower_waits_for_unreadable_records() -> None:
    """Rule: K6, P1."""
    single = Single(log=LOG, delivered=6)
    single.lead()
    (fetch,) = single.give(1, CatchUp(single.state.term, (), 0, 5)).fetch
    assert fetch.after == START
    assert not single.node.fetched(1, fetch.token, [], single.now).send, "it can't be had now"
    assert single.node.role_name == "leader" and single.submit("s", 1, "hello").persist
    (again,) = single.give(1, HeartbeatAck(single.state.term, START)).fetch
    assert again.after == START, "tried again with the follower's next answer"
