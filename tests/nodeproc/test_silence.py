"""When a connection counts as silent. Rule: L1."""

from __future__ import annotations

from nodeproc.net.silence import LOOKS, Silence


def test_a_connection_is_silent_when_nothing_is_acknowledged_at_all_looks_in_a_row() -> None:
    """Rule: L1"""
    silence = Silence()
    assert [silence.look(True, False) for _ in range(LOOKS + 1)] == [False] * (LOOKS - 1) + [True, True]


def test_an_acknowledgement_or_nothing_to_acknowledge_begins_anew() -> None:
    """Rule: L1"""
    for waits, heard in ((True, True), (False, False), (False, True)):
        silence = Silence()
        for _ in range(LOOKS - 1):
            silence.look(True, False)
        assert not silence.look(waits, heard)
        assert not silence.look(True, False)
