"""The surroundings of node 1 of three, for tests of drivers: its directories do not exist."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from lab.engines.engine import Place

HOSTS: Final = {node: f"127.64.0.{node}" for node in (1, 2, 3)}
PLACE: Final = Place(
    1, (1, 2, 3), HOSTS, Path("/data"), Path("/conf"), 100, 500, lambda node, port: (HOSTS[node], port)
)
