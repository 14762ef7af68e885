"""Detects that the network has cut a connection that still looks open. Pure. Rule: L1.

TCP retransmits unacknowledged data after 0.2 s, then after twice as long each time, up to two minutes. So a connection
that was cut for a minute may carry nothing for another minute after the network works again; a new connection works at
once. The other end's operating system acknowledges, not its process: a stopped or slow process is not silent, unless it
has not read for so long that its buffers are full.
"""

from __future__ import annotations

from typing import Final

LOOKS: Final = 8
"""Number of examinations in a row, at equal intervals, without an acknowledgement."""
TIMEOUTS: Final = 2.0
"""Duration of these examinations in election timeouts."""


class Silence:
    """Detects silence on one connection, which is examined at equal intervals. A standstill of the own process counts
    as one examination.
    """

    def __init__(self) -> None:
        self._quiet = 0

    def look(self, waits: bool, heard: bool) -> bool:
        """Return whether the other end is silent.

        Args:
            waits: bytes on the connection are not acknowledged.
            heard: the other end's system has acknowledged something since the last examination.
        """
        if not waits or heard:
            self._quiet = 0
        else:
            self._quiet += 1  # hit: L1 nothing was acknowledged between two looks
        return self._quiet >= LOOKS
