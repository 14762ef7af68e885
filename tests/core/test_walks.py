"""Random walks over the real core: the product keeps all invariants, mutants break them."""

from __future__ import annotations

import pytest

from lab.mutants.catalogue import mutated
from tests.core.walks import Walk

RIGHT = range(150)
"""Seeds of the walks that the protocol has to stand in every run of the tests."""
BOUND = 90
"""Seeds within which a broken rule has to be noticed; most are within ten."""
NOTICED = (
    "vote_without_the_position_check",
    "two_votes_in_one_term",
    "vote_not_durable",
    "minority_elects",
    "duplicate_not_dropped",
    "gap_in_n_accepted",
    "session_table_not_rolled_back",
    "gap_in_the_log_accepted",
    "resume_truncates_a_log_of_this_term",
    "fork_is_a_bare_seq_no",
    "acknowledge_before_durable",
    "commit_without_the_terms_mark_on_a_majority",
    "commit_seq_used_before_the_own_mark",
)
"""Mutants of the core that the walks find by themselves; the others need a search that heads for them."""


@pytest.mark.parametrize("first", RIGHT[::25])
def test_the_protocol_holds_on_random_walks(first: int) -> None:
    """Rule: A1, A2, A3, A4, A5, A7, A9."""
    for seed in range(first, first + 25):
        try:
            Walk(seed).run()
        except AssertionError as error:
            raise AssertionError(f"seed {seed}: {error}") from error


@pytest.mark.parametrize(
    "seed",
    [
        pytest.param(59, id="a candidate whose requests were lost with their link waited half a minute"),
        pytest.param(12371, id="a follower and its leader each waited for the other after a stranger was vouched for"),
    ],
)
def test_a_walk_that_once_found_a_bug(seed: int) -> None:
    Walk(seed).run()


@pytest.mark.patches
@pytest.mark.parametrize("name", NOTICED)
def test_the_walks_notice(name: str) -> None:
    with mutated(name):
        for seed in range(BOUND):
            try:
                Walk(seed).run()
            except AssertionError:
                return
            except Exception as error:  # A broken core may break in any way.
                assert not isinstance(error, TypeError | AttributeError), "the mutant itself is wrong"
                return
    raise AssertionError(f"{name}: not noticed in {BOUND} walks")
