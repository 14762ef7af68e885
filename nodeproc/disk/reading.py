"""What a node reads of its own log for others, and what becomes of what can't be read. Rule: K6.

Nothing damaged is handed out, and no read ends the node. Where a read fails, what the node has twice is put together
again; else the core is asked for a copy from a peer (nodeproc.core.repair), and whoever wanted to read waits. The copy
takes the place of what is damaged.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable

from nodeproc.core.effects import Copied, Fetch
from nodeproc.core.events import DamageFound, DamageLeft, DamageRepaired, Event
from nodeproc.core.messages import Damaged, Input, NodeId, Position, Record, SeqNo
from nodeproc.disk.storage import Storage
from nodeproc.errors import ReadFailed, Unreadable

NOBODY_HAS_IT = "no node within reach has a copy"
MENDED_AT_ONCE = 64
"""Records; the loop waits for the disk meanwhile."""


class Reading:
    """The readers of one node's storage.

    Args:
        take: hands the core an input.
        report: gets an event once for each damaged place, and once for what became of it.
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
        """Position behind which something is damaged -> why it stays so, as reported; "": not known yet."""
        self._waiting: list[tuple[Position, Fetch]] = []
        self._refused: set[Fetch] = set()

    def lines(self, start: SeqNo, max_bytes: int) -> tuple[bytes, SeqNo]:
        """As Storage.read_lines.

        Raises:
            Unreadable: not now; a copy is on its way, or it turns out that there is none: take_copy is told.
        """
        try:
            return self._storage.read_lines(start, max_bytes)
        except Unreadable as error:
            if not self.mend(error):
                raise  # hit: K6 a subscriber waits for what can't be read
        return self.lines(start, max_bytes)

    def records(self, fetch: Fetch) -> list[Record] | None:
        """What a peer is to get: none where it can't be had. None: it waits for a copy and comes again."""
        if fetch in self._refused:
            self._refused.remove(fetch)
            return []
        try:
            return self._storage.read_records(fetch.after, fetch.max_bytes)
        except Unreadable as error:
            if not self.mend(error):
                self._waiting.append((Position(*error.after), fetch))
                return None
        return self.records(fetch)

    def mend(self, error: Unreadable) -> bool:
        """A read has failed: repair it with what is here, which is done when this is true, or look for a copy."""
        after = Position(*error.after)
        if after not in self._damaged:
            self._damaged[after] = ""
            self._report(DamageFound(error.file, error.at, after.seq_no + 1, error.what))
            if self._mend_here(after):  # Once: a disk that loses what is written is not written to for ever.
                return True
        self._take(self._node_id, Damaged(after))
        return False

    def _mend_here(self, after: Position) -> bool:
        """Put together what this node has twice, a few records at once; False where it has not even the first."""
        rewritten: list[str] = []
        end = after
        with contextlib.suppress(ReadFailed):
            for _ in range(MENDED_AT_ONCE):
                record = self._storage.own_copy(end)
                more = self._storage.restore(end, (record,)) if record is not None else []
                if record is None or not more:
                    break
                rewritten += more
                end = record.position
        if rewritten:
            self._tell_repaired(after, end, rewritten)  # hit: K6 a node repairs what it has twice
        return bool(rewritten)

    def _tell_repaired(self, after: Position, end: Position, rewritten: list[str]) -> None:
        places = ", ".join(rewritten[:3])
        self._report(DamageRepaired(after.seq_no + 1, end.seq_no, places, len(rewritten)))

    def take_copy(self, copied: Copied) -> tuple[str, list[Fetch]]:
        """Repair with what a peer has sent.

        Returns:
            Why what is damaged stays so, "" where it is repaired; the reads that are to be done again now.
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
            return "the disk has it and can't give it"
        self._tell_repaired(copied.after, copied.records[-1].position, rewritten)
        return ""
