"""For the tests of nodes: ports that a test was given are its own until its module is done."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.nodeproc.nodes import release_ports


@pytest.fixture(autouse=True, scope="module")
def _ports() -> Iterator[None]:
    yield
    release_ports()
