"""The orders for a node's disk and clock, and the counts of their effects, shared by both worlds."""

from __future__ import annotations

from typing import NamedTuple

NEVER = -1


class Orders(NamedTuple):
    """Orders for a node's disk and clock. The defaults order nothing.

    slow_s: each fdatasync takes that much longer.
    room: the disk is full once this many bytes were appended since the ledger's beginning; NEVER: never.
    die_at: the process is killed in the middle of the disk operation with this number; NEVER: never.
    hang: no fdatasync returns until this order is withdrawn.
    drift, since, base: the clock for time spans shows base + (t - since) * (1 + drift), where t is CLOCK_MONOTONIC.
    wall_s: seconds by which the wall clock is ahead.
    """

    slow_s: float = 0.0
    room: int = NEVER
    die_at: int = NEVER
    fail_sync: bool = False
    fail_append: bool = False
    hang: bool = False
    drift: float = 0.0
    since: float = 0.0
    base: float = 0.0
    wall_s: float = 0.0

    def monotonic(self, t: float) -> float:
        """Return the reading of the node's monotonic clock at CLOCK_MONOTONIC t."""
        return self.base + (t - self.since) * (1.0 + self.drift) if self.since else t


class Counts(NamedTuple):
    """Counts of the effects of orders, since the ledger's beginning.

    refused: appends that did not fit on the disk. failed: operations that failed by order. slowed: fdatasyncs that took
    longer. misread: readings of a clock that was wrong.
    """

    operations: int = 0
    appended: int = 0
    synced: int = 0
    refused: int = 0
    failed: int = 0
    slowed: int = 0
    misread: int = 0
