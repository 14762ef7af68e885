"""Reads of a node's own log for peers and subscribers, and the repair of records that can't be read. Rule: K6.

Damaged data is never passed on, and a failed read never ends the node. If a read fails, the record is first assembled
from redundant data of this node. If that is impossible, the core is asked for a peer's copy (nodeproc.core.repair), and
the reader waits. The copy then overwrites the damaged record.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Final

from nodeproc.core.effects import Copied, Fetch
from nodeproc.core.events import DamageFound, DamageLeft, DamageRepaired, Event
from nodeproc.core.messages import Damaged, Input, NodeId, Position, Record, SeqNo
from nodeproc.disk.storage import Storage
from nodeproc.errors import ReadFailed, Unreadable

NOBODY_HAS_IT: Final = "no node within reach has a copy"
REPAIRED_AT_ONCE: Final = 64
"""Records that are repaired in one call; it blocks the event loop."""


class Reading:
    """All reads from one node's storage.

    Args:
        take: passes an input to the core.
        report: gets one event for each damaged place, and one for its repair.
    """

    def __init__(
        self,
        storage: Storage,
        node_id: NodeId,
        take: Callable[[NodeId, Input], None],
        report: Callable[[Event], None],
    ) -> None:
        self._storage, self._node_id, self._take, self._report = storage, node_id, take, report
        self._damaged: dict[Position, str] = {}
        """Position after which a record is damaged -> the reported reason why it stays so; "": not known yet."""
        self._waiting: list[tuple[Position, Fetch]] = []
        self._refused: set[Fetch] = set()

    def lines(self, start: SeqNo, max_bytes: int) -> tuple[bytes, SeqNo]:
        """Read as Storage.read_lines does.

        Raises:
            Unreadable: they can't be read now. A copy was requested; take_copy() gets it, or the news that there is
                none.
        """
        try:
            return self._storage.read_lines(start, max_bytes)
        except Unreadable as error:
            if not self.repair(error):
                raise  # hit: K6 a subscriber waits for what can't be read
        return self.lines(start, max_bytes)

    def records(self, fetch: Fetch) -> list[Record] | None:
        """Return records for a peer, [] if there is no copy of them; None if the fetch must be repeated later."""
        if fetch in self._refused:
            self._refused.remove(fetch)
            return []
        try:
            return self._storage.read_records(fetch.after, fetch.max_bytes)
        except Unreadable as error:
            if not self.repair(error):
                self._waiting.append((Position(*error.after), fetch))
                return None
        return self.records(fetch)

    def repair(self, error: Unreadable) -> bool:
        """Repair the place of a failed read with this node's own data, or request a copy; True if it is repaired."""
        after = Position(*error.after)
        if after not in self._damaged:
            self._damaged[after] = ""
            self._report(DamageFound(error.file, error.at, after.seq_no + 1, error.what))
            if self._repair_here(after):  # Only once: the disk may lose whatever is written there.
                return True
        self._take(self._node_id, Damaged(after))
        return False

    def _repair_here(self, after: Position) -> bool:
        """Repair some records with redundant data of this node; False if not even the first can be repaired."""
        rewritten: list[str] = []
        end = after
        with contextlib.suppress(ReadFailed):
            for _ in range(REPAIRED_AT_ONCE):
                record = self._storage.own_copy(end)
                more = self._storage.restore(end, (record,)) if record is not None else []
                if record is None or not more:
                    break
                rewritten += more
                end = record.position
        if rewritten:
            self._report_repaired(after, end, rewritten)  # hit: K6 a node repairs what it has twice
        return bool(rewritten)

    def _report_repaired(self, after: Position, end: Position, rewritten: list[str]) -> None:
        places = ", ".join(rewritten[:3])
        self._report(DamageRepaired(after.seq_no + 1, end.seq_no, places, len(rewritten)))

    def take_copy(self, copied: Copied) -> tuple[str, list[Fetch]]:
        """Repair with the records that a peer has sent.

        Returns:
            Why the damage remains, "" if it is repaired; and the fetches to repeat now.
        """
        after = copied.after
        reason = self._restore(copied) if copied.records else NOBODY_HAS_IT
        if not reason:
            self._damaged.pop(after, None)
        elif self._damaged.get(after) != reason:
            self._damaged[after] = reason
            self._report(DamageLeft(after.seq_no + 1, reason))
        waiting, self._waiting = self._waiting, []
        if reason:
            self._refused.update(fetch for place, fetch in waiting if place == after)
        return reason, [fetch for _, fetch in waiting]

    def _restore(self, copied: Copied) -> str:
        try:
            rewritten = self._storage.restore(copied.after, copied.records)
        except ReadFailed as error:
            return str(error)
        if not rewritten:
            return "nothing here differs from the copy"
        self._report_repaired(copied.after, copied.records[-1].position, rewritten)
        return ""
