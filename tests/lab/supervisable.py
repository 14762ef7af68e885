"""Tests that need supervisors are skipped where the system allows none."""

from __future__ import annotations

from functools import cache

import pytest

from lab.live.supervise import missing

_missing = cache(missing)


def needs_supervisor() -> None:
    """Skip the test, with the reason, if this system allows no supervisor."""
    if why := _missing():
        pytest.skip(why)
