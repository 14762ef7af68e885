"""Random walks over the real core: the right rules stand them, broken ones don't."""

from __future__ import annotations

import pytest

from tests.core.broken import BREAKAGES
from tests.core.walks import Walk

RIGHT = range(150)
"""Seeds of the walks that the protocol has to stand in every run of the tests."""
BOUND = 60
"""Seeds within which a broken rule has to be noticed; most are within ten."""


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


@pytest.mark.parametrize("name", BREAKAGES)
def test_the_walks_notice(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    BREAKAGES[name](monkeypatch)
    for seed in range(BOUND):
        try:
            Walk(seed).run()
        except AssertionError:
            return
        except Exception as error:  # A broken core may break in any way.
            assert not isinstance(error, TypeError | AttributeError), "the breakage itself is wrong"
            return
    raise AssertionError(f"{name}: not noticed in {BOUND} walks")
