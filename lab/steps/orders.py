"""What a node's disk and clock are ordered to do, and what came of it: one vocabulary for both worlds."""

from __future__ import annotations

from typing import NamedTuple

NEVER = -1


class Orders(NamedTuple):
    """What a node's disk and clock shall do from now on. A fresh one: nothing wrong.

    slow_s: each fdatasync takes that much longer.
    room: once so many bytes were appended since the ledger's beginning, the disk is full; NEVER.
    die_at: the process is killed in the middle of the disk operation of this number; NEVER.
    hang: no fdatasync returns, until this is taken back.
    drift, since, base: time spans are measured by base + (t - since) * (1 + drift), t being CLOCK_MONOTONIC.
    wall_s: so much the wall clock is ahead.
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
        """What the node's clock shows at CLOCK_MONOTONIC t."""
        return self.base + (t - self.since) * (1.0 + self.drift) if self.since else t


class Counts(NamedTuple):
    """What came of the orders, since the ledger's beginning.

    refused: appends for which there was no room. failed: operations that were made to fail. slowed: fdatasyncs that
    took longer. misread: readings of a clock that was wrong.
    """

    operations: int = 0
    appended: int = 0
    synced: int = 0
    refused: int = 0
    failed: int = 0
    slowed: int = 0
    misread: int = 0
