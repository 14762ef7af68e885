"""Rules S2 to S5 of docs/protocol.md, as far as the core implements them."""

from __future__ import annotations

import pytest

from nodeproc.core.events import SessionExpired
from nodeproc.core.messages import (
    START,
    Appended,
    Batch,
    Commit,
    Heartbeat,
    Position,
    Record,
    Refuse,
    SessionUse,
    Submit,
)
from tests.core.cluster import Cluster
from tests.core.single import Single, appends, events, sent, stretch, written


def leader(**settings: int) -> Single:
    """Node 2 leads term 1; peer 1 has all so far."""
    single = Single(**settings)  # type: ignore[arg-type]
    single.lead()
    single.caught_up(1)
    return single


def commit_all(single: Single) -> None:
    single.give(1, Appended(single.state.term, single.state.log.position))


def ordered(single: Single) -> list[tuple[str, int]]:
    """(session, last n) of each batch that was ordered."""
    headers = [record.header for record in written(single.all, Record)]
    return [(use.session, use.last_n) for header in headers if isinstance(header, Batch) for use in header.sessions]


# ---- S2 order per sender ----------------------------------------------------------------------------


def test_a_follower_passes_messages_of_its_clients_on_to_the_leader_unchanged() -> None:
    """Rule: S2."""
    single = Single()
    single.follow(1, 1)
    fx = single.submit("s", 1, "a", "b", born=7)
    assert sent(fx, Submit, to=1) == [Submit("s", 101, 7, 1, ("a", "b"))]
    assert not fx.reply


def test_without_a_leader_messages_are_refused_and_never_kept() -> None:
    """Rule: S2, S5."""
    assert Single().submit("s", 1, "a").reply == [Refuse("s", 1, "no_leader", 0)]
    assert sent(Single().submit("s", 1, "a", sender=3), Refuse, to=3) == [Refuse("s", 1, "no_leader", 0)]


def test_messages_of_a_peers_clients_are_not_passed_on_a_second_time() -> None:
    """Rule: S2."""
    single = Single()
    single.follow(1, 1)
    fx = single.submit("s", 1, "a", sender=3)
    assert not sent(fx, Submit)
    assert sent(fx, Refuse, to=3)


def test_a_refusal_of_the_leader_goes_to_the_client() -> None:
    """Rule: S2."""
    refusal = Refuse("s", 5, "gap", 2)
    assert Single().give(1, refusal).reply == [refusal]


def test_the_leader_takes_the_next_message_of_a_session_only() -> None:
    """Rule: S2."""
    single = leader()
    single.submit("s", 1, "a", sender=3)
    single.submit("s", 2, "b", "c")
    assert ordered(single) == [("s", 1), ("s", 3)]


def test_a_duplicate_is_dropped_without_an_answer() -> None:
    """Rule: S2."""
    single = leader()
    single.submit("s", 1, "a", "b")
    fx = single.submit("s", 1, "a", "b", sender=3)
    assert (fx.send, fx.persist, fx.reply) == ([], [], [])


def test_a_message_beyond_the_next_is_answered_with_the_n_expected() -> None:
    """Rule: S2."""
    single = leader()
    single.submit("s", 1, "a", "b")
    fx = single.submit("s", 5, "e", sender=3)
    assert sent(fx, Refuse, to=3) == [Refuse("s", 5, "gap", 3)]
    assert single.submit("s", 4, "d").reply == [Refuse("s", 4, "gap", 3)]
    assert ordered(single) == [("s", 2)]


def test_of_messages_that_were_ordered_in_part_the_rest_is_taken() -> None:
    """Rule: S2."""
    single = leader()
    single.submit("s", 1, "a", "b")
    (record,) = written(single.submit("s", 1, "a", "b", "c", "d"), Record)
    assert record.header == Batch(1, 3, 4, (SessionUse("s", 4, 4),))
    assert b'"s-3"' in bytes(record.body)
    assert b'"s-2"' not in bytes(record.body)


def test_retries_through_other_nodes_and_leaders_neither_double_nor_reorder() -> None:
    """Rule: S2, S3."""
    cluster = Cluster(3)
    cluster.run(3)
    for node in (1, 2, 3, 1):
        cluster.submit(node, "s", 1, "a", "b")
        cluster.submit(node, "s", 3, "c")
    cluster.run(0.3)
    cluster.kill(3)
    cluster.run(3)
    for node in (2, 1):
        cluster.submit(node, "s", 1, "a", "b", "c", "d")
    cluster.run(1)
    assert cluster.payloads(1) == cluster.payloads(2) == ["a", "b", "c", "d"]


# ---- S3 the session table ---------------------------------------------------------------------------


def test_a_batchs_header_names_each_session_in_it_once_with_its_last_n_and_its_place() -> None:
    """Rule: S3."""
    cluster = Cluster(1)
    cluster.run(1)
    for session, first, payloads in [("s", 1, "ab"), ("t", 1, "x"), ("s", 3, "c"), ("u", 1, "yz")]:
        cluster.submit(1, session, first, *payloads)
    cluster.settle()
    (batch,) = [r.header for r in cluster.members[1].disk.delivered if isinstance(r.header, Batch)]
    assert batch.sessions == (SessionUse("t", 1, 3), SessionUse("s", 3, 4), SessionUse("u", 2, 6))


def test_a_truncation_rolls_the_table_back() -> None:
    """Rule: S3, R2."""
    single = Single(log=stretch(1, 0, 2, 2))
    assert single.state.sessions.expected("h", 0) == 5
    single.follow(1, 5, Position(1, 2))
    assert single.state.sessions.expected("h", 0) == 3
    single.follow(3, 6, START)
    assert single.state.sessions.expected("h", 0) == 1


def test_a_follower_that_becomes_leader_knows_the_sessions_of_undelivered_records() -> None:
    """Rule: S3, S2."""
    single = Single(term=1)
    single.follow(1, 1)
    for append in appends(1, START, stretch(1, 0, 2)):
        single.give(1, append)
    single.unlink(1)
    single.link(1)
    single.lead()
    assert not single.submit("h", 1, "m1", "m2").persist
    assert single.submit("h", 4, "m4").reply == [Refuse("h", 4, "gap", 3)]


def test_a_leader_that_loses_its_term_forgets_messages_that_it_had_not_put_into_a_batch() -> None:
    """Rule: S3, S5."""
    cluster = Cluster(3)
    cluster.run(3)
    cluster.step(3, 3, Submit("s", 101, 0, 1, ("a",)))
    cluster.step(3, 1, Heartbeat(99, 0, START))
    cluster.sync(3)
    assert cluster.node(3).state.sessions.expected("s", 0) == 1


def test_a_restart_recovers_the_table() -> None:
    """Rule: S3."""
    single = Single(log=stretch(1, 0, 2, 2), delivered=2)
    assert single.node.delivered_session("h") == (2, 2)
    single.lead()
    assert single.submit("h", 9, "x").reply == [Refuse("h", 9, "gap", 5)]


def test_the_session_least_recently_used_in_log_order_is_dropped_and_its_last_use_is_the_horizon() -> None:
    """Rule: S3."""
    single = leader(max_sessions=2)
    for session, n in [("s", 1), ("t", 1), ("s", 2), ("u", 1)]:
        single.submit(session, n, "x")
    commit_all(single)
    assert list(single.state.sessions.table) == ["s", "u"]
    assert single.state.sessions.horizon == 2, "t was last used at 2"


def test_every_node_drops_the_same_sessions() -> None:
    """Rule: S3."""
    cluster = Cluster(3, max_sessions=2)
    cluster.run(3)
    for n, session in enumerate("stuvst", 1):
        cluster.submit(1, session, 1, "x", born=n - 1)
        cluster.run(0.05)
    cluster.run(1)
    tables = [(cluster.node(i).state.sessions.table, cluster.node(i).state.sessions.horizon) for i in cluster.ids]
    assert tables[0] == tables[1] == tables[2]
    assert len(tables[0][0]) == 2


@pytest.mark.parametrize("first", [1, 2])
def test_an_unknown_session_born_before_the_horizon_is_expired(first: int) -> None:
    """Rule: S3."""
    single = leader(max_sessions=2)
    for session in "stuv":
        single.submit(session, 1, "x", born=single.state.delivered_seq)
        commit_all(single)
    assert single.state.sessions.horizon == 2
    fx = single.submit("s", first, "x", born=0)
    assert fx.reply == [Refuse("s", first, "expired", 0)]
    assert events(fx, SessionExpired)
    assert not fx.persist


def test_an_unknown_session_born_at_the_horizon_or_later_begins_with_one() -> None:
    """It was never dropped, for it was never used: asked to begin rather than refused for good. Rule: S3."""
    single = leader(max_sessions=2)
    for session in "stuv":
        single.submit(session, 1, "x", born=single.state.delivered_seq)
        commit_all(single)
    assert single.submit("w", 2, "x", born=2).reply == [Refuse("w", 2, "gap", 1)]
    assert not single.submit("w", 1, "x", born=2).reply


def test_a_session_that_is_in_use_is_known_though_the_table_has_dropped_it() -> None:
    """Rule: S3."""
    single = leader(max_sessions=1)
    single.submit("s", 1, "x")
    commit_all(single)
    single.submit("t", 1, "x")
    reached = single.state.log.position
    single.submit("s", 2, "x")
    single.give(1, Appended(1, reached))
    assert "s" not in single.state.sessions.table
    assert single.submit("s", 3, "x").reply == []


# ---- S4 acknowledgement -----------------------------------------------------------------------------


def test_a_session_counts_as_delivered_here_only_once_its_batch_is() -> None:
    """Rule: S4."""
    single = Single(term=1)
    single.follow(1, 1)
    for append in appends(1, START, stretch(1, 0, 1, 2)):
        single.give(1, append)
    assert single.node.delivered_session("h") is None
    single.give(1, Commit(1, 1))
    assert single.node.delivered_session("h") == (1, 1)
    single.give(1, Commit(1, 3))
    assert single.node.delivered_session("h") == (3, 3), "cumulative: the last n and its seq_no"


# ---- S5 retry ---------------------------------------------------------------------------------------


def test_clients_must_resend_whenever_the_leader_changes() -> None:
    """Rule: S5."""
    single = Single()
    routes = [single.node.route]
    single.follow(1, 1)
    routes.append(single.node.route)
    single.unlink(1)
    routes.append(single.node.route)
    single.give(3, Heartbeat(2, 0, START))
    routes.append(single.node.route)
    assert [route[:2] for route in routes] == [(0, 0), (1, 1), (0, 1), (3, 2)]


def test_clients_must_resend_when_the_link_to_the_leader_is_new() -> None:
    """Rule: S5."""
    single = Single()
    single.follow(1, 1)
    before = single.node.route
    single.link(3)
    assert single.node.route == before
    single.link(1)
    assert single.node.route != before
    assert single.node.route[:2] == before[:2]


def test_nothing_changes_for_clients_while_the_leader_stays() -> None:
    """Rule: S5."""
    cluster = Cluster(3)
    cluster.run(3)
    before = [cluster.node(i).route for i in cluster.ids]
    for n in range(1, 20):
        cluster.submit(1, "s", n, "x")
        cluster.run(0.1)
    assert [cluster.node(i).route for i in cluster.ids] == before
