"""When each fault of a run was healed, for its row in faults.jsonl. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import structs

from lab.rows import FaultRow
from lab.steps import AT_ONCE, effect_of
from lab.steps.step import Effect
from nodeproc.core.messages import NodeId


def with_heals(rows: Sequence[FaultRow]) -> list[FaultRow]:
    """Return the rows by ascending time, with t_healed filled in where a later row implies it.

    For example, the start of a node that was paused and then killed heals both faults.
    """
    ordered = sorted(rows, key=lambda row: row.t)
    healed = list(ordered)
    down: dict[NodeId, list[int]] = {}
    """Node -> indices of the faults from which it is still down."""
    for at, row in enumerate(ordered):
        if not row.moved:
            continue
        effect = effect_of(row.fault)
        if effect is Effect.DOWN:
            down.setdefault(row.target, []).append(at)
        elif effect is Effect.UP:
            for place in down.pop(row.target, ()):
                healed[place] = structs.replace(ordered[place], t_healed=row.t_done)
        elif row.fault in AT_ONCE:
            healed[at] = structs.replace(row, t_healed=row.t_done)
    return healed
