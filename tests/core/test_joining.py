"""JOIN and links that open in any order."""

from __future__ import annotations

from itertools import permutations

import pytest

from nodeproc.core.messages import START, Election, Known, LinkUp, Ok
from tests.core.cluster import Cluster
from tests.core.single import Single, peers_sent, sent

PAIRS = [(a, b) for a in (1, 2, 3) for b in (1, 2, 3) if a != b]


@pytest.mark.parametrize("order", [order for at, order in enumerate(permutations(PAIRS)) if at % 6 == 0])
def test_a_new_cluster_elects_before_its_patience_ends_in_whatever_order_its_links_open(
    order: list[tuple[int, int]],
) -> None:
    """Rule: M1. A JOIN that comes before the way back is open must not stay without its answer."""
    cluster = Cluster(3, start=False)
    for i in cluster.ids:
        cluster.start(i, link=False)
    for a, b in order:
        cluster.link(a, b)
        cluster.settle()
    cluster.run(0.4)  # Less than join_timeout.
    assert cluster.leader() == 3


def test_a_peer_whose_way_to_us_opens_during_our_poll_is_asked_again() -> None:
    """Rule: E1. Its answer to the first question was lost on the way."""
    single = Single(2, (1, 2, 3), links=False)
    for peer, outgoing in ((1, True), (1, False), (3, True)):
        single.give(peer, LinkUp(Known(f"disk-{peer}"), False, outgoing))
    poll = single.poll()
    again = single.give(3, LinkUp(Known("disk-3"), False, False))
    assert [(to, question.poll) for to, question in again.send if isinstance(question, Election)] == [(3, poll)]


def test_a_peer_that_has_answered_our_poll_is_not_asked_again() -> None:
    single = Single(2, (1, 2, 3))
    single.give(3, Ok(single.poll(), True))
    assert sent(single.give(3, LinkUp(Known("disk-3"), False, False)), Election) == []


def test_a_node_that_just_started_asks_the_highest_node_too_before_it_polls() -> None:
    """Rule: E1. Node 1 polls while node 2's link to node 3 is about to open."""
    single = Single(2, (1, 2, 3), links=False)
    single.link(1)
    assert sent(single.give(1, Election(1, START, 1, 7)), Election) == []
    single.link(3)
    assert peers_sent(single.wait(single.state.config.answer_timeout), Election) == [1, 3]
