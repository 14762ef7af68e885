"""Slow background reading of everything delivered, to find and repair damage before the data is needed. Rule: K6.

A pass reads from the first record to the last, piece by piece, at a limited rate; then it rests. A real node reads in
the thread that writes its checkpoints.
"""

from __future__ import annotations

from typing import Final

from nodeproc.core.messages import START, Position
from nodeproc.disk.storage import Storage
from nodeproc.errors import Unreadable

PIECE_BYTES: Final = 64 << 10
FIRST_S: Final = 1.0
"""From a node's start to the first piece."""
RETRY_S: Final = 0.5
"""A damaged piece is read again after this time. If it is still damaged then, this pass skips it."""


class Scrub:
    """The progress of a pass.

    Args:
        bytes_per_s: above 0.
        rest_s: from the end of a pass to the start of the next.
    """

    def __init__(self, storage: Storage, bytes_per_s: int, rest_s: float) -> None:
        self._storage, self._bytes_per_s, self._rest_s = storage, bytes_per_s, rest_s
        self._after = START
        self._failed: Position | None = None
        self.passes = 0
        """Completed passes."""

    def read(self) -> tuple[Position, int]:
        """Read the next piece; return where it ends and its bytes; 0: the pass is complete. May run in another thread.

        Raises:
            Unreadable: the piece is damaged or can't be read.
        """
        return self._storage.check(self._after, PIECE_BYTES)

    def succeeded(self, end: Position, size: int) -> float:
        """Take the result of read(); return the seconds until the next piece."""
        self._after = end
        return size / self._bytes_per_s if size else self._finish()

    def failed(self, error: Unreadable) -> float:
        """Take the error of read(), whose repair was requested; return the seconds until the next piece."""
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
