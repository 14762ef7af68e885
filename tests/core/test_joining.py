"""JOIN and links that open in any order."""

from __future__ import annotations

from itertools import permutations

import pytest

from tests.core.cluster import Cluster

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
