"""A restart after a failed fdatasync counts nothing that only the cache has, on a real kernel. Rule: K5."""

from __future__ import annotations

import pytest

from tests.kernel.failing_disk import LARGE, measure, missing

TRIES = 4
"""Pages that could not be written are clean: on a busy machine the kernel may drop them before a restart reads."""


def test_what_a_real_disk_failed_to_write_survives_a_power_loss_once_a_restart_has_found_it() -> None:
    if problem := missing():
        pytest.skip(problem)
    for _ in range(TRIES):
        plain, node = measure()
        if node["restart"]["seq_no"]:
            break
    if not (plain["sync"].startswith("failed") and plain["sync_again"] == "returned" and plain["read"] == LARGE):
        pytest.skip(f"this kernel keeps no pages that it failed to write: {plain}")
    assert plain["left"] < LARGE
    assert "start it again" in node["sync"]
    assert node["restart"]["seq_no"] == 1 and "tail_written_anew" in node["restart"]["events"]
    assert node["after_power_loss"]["seq_no"] == 1
