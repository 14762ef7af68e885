"""The slow reader of all that is delivered: damage is found and repaired before somebody needs it. Rule: K6.

A pass reads from the first record to the last, a piece at a time and no faster than a rate; then it rests. A real node
reads in the thread that writes its checkpoints.
"""

from __future__ import annotations

from typing import Final

from nodeproc.core.messages import START, Position
from nodeproc.disk.storage import Storage
from nodeproc.errors import Unreadable

PIECE_BYTES: Final = 64 << 10
FIRST_S: Final = 1.0
"""From a node's start to its first piece."""
RETRY_S: Final = 0.5
"""What is damaged is read again after so long: repaired by then, or passed over until the next time."""


class Scrub:
    """Where a pass is.

    Args:
        bytes_per_s: above 0.
        rest_s: from the end of a pass to the beginning of the next one.
    """

    def __init__(self, storage: Storage, bytes_per_s: int, rest_s: float) -> None:
        self._storage, self._bytes_per_s, self._rest_s = storage, bytes_per_s, rest_s
        self._after = START
        self._failed: Position | None = None
        self.passes = 0
        """That have come to their end."""

    def read(self) -> tuple[Position, int]:
        """The next piece: where it ends and its bytes; 0: the pass is over. May run in another thread.

        Raises:
            Unreadable: it is damaged.
        """
        return self._storage.check(self._after, PIECE_BYTES)

    def succeeded(self, end: Position, size: int) -> float:
        """Seconds until the next piece is due."""
        self._after = end
        return size / self._bytes_per_s if size else self._finish()

    def failed(self, error: Unreadable) -> float:
        """Seconds until the next piece is due; who calls this has asked for a copy."""
        place = Position(*error.after)
        if place != self._failed:
            self._failed = place
            return RETRY_S
        self._failed, before = None, self._after
        self._after = self._storage.behind(place)
        return RETRY_S if self._after > before else self._finish()

    def _finish(self) -> float:
        self._after, self._failed = START, None
        self.passes += 1
        return self._rest_s
