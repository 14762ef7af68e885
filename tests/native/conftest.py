"""A build for the tests of native mode; without a compiler they are skipped."""

from __future__ import annotations

from pathlib import Path

import pytest

from lab import native


@pytest.fixture(scope="session")
def build() -> Path:
    """Return the directory of the present sources' build. It is made if there is none, which takes a minute or two."""
    if why := native.unavailable():
        pytest.skip(why)
    return native.build()[0]
