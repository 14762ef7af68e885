"""Links that drop packets are dialled anew. The times are for tests/kernel/cut_links.py to measure."""

from __future__ import annotations

import pytest

from tests.kernel.cut_links import measure, missing


def test_links_that_the_network_has_cut_are_dialled_anew() -> None:
    if problem := missing():
        pytest.skip(problem)
    rows = measure(["3"])
    assert [row["cut"] for row in rows] == ["leader", "all"]
    assert all(row["links_lost"] > 0 for row in rows)
