"""When each fault of a run was over, for its row in faults.jsonl. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import structs

from lab.rows import FaultRow
from nodeproc.core.messages import NodeId

_HOLDS = ("kill", "stop", "pause", "power_loss", "exit", "rebuild")
"""What is done to a node until it is started or resumed."""
_AT_ONCE = ("reset", "chaos")
"""Over when they are done."""


def with_heals(rows: Sequence[FaultRow]) -> list[FaultRow]:
    """The rows by ascending time, t_healed filled in where another row tells it.

    A node that is killed while it is paused is healed of both by what brings it back.
    """
    ordered = sorted(rows, key=lambda row: row.t)
    healed = list(ordered)
    down: dict[NodeId, list[int]] = {}
    """Node -> places of the faults that hold it."""
    for at, row in enumerate(ordered):
        if not row.moved:
            continue
        if row.fault in _HOLDS:
            down.setdefault(row.target, []).append(at)
        elif row.fault in ("start", "resume"):
            for place in down.pop(row.target, ()):
                healed[place] = structs.replace(ordered[place], t_healed=row.t_done)
        elif row.fault in _AT_ONCE:
            healed[at] = structs.replace(row, t_healed=row.t_done)
    return healed
