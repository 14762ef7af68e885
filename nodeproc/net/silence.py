"""Whether the network has cut a connection that looks open. Pure. Rule: L1.

TCP repeats what is not acknowledged after 0.2 s, then after twice as long each time, up to two minutes. So a connection
that was cut for a minute carries nothing for up to another minute once the network is whole again; a connection that is
dialled anew works at once. Only the other end's system acknowledges, not its process: a stopped or slow process is not
silent, unless it has not read for so long that its buffers are full.
"""

from __future__ import annotations

from typing import Final

LOOKS: Final = 8
"""Looks in a row, at equal intervals, without an acknowledgement."""
TIMEOUTS: Final = 2.0
"""Election timeouts that they take."""


class Silence:
    """Judges one connection by looks at equal intervals. A process that stood still has looked once meanwhile."""

    def __init__(self) -> None:
        self._quiet = 0

    def look(self, waits: bool, heard: bool) -> bool:
        """Whether the other end is silent.

        Args:
            waits: bytes on the connection are not acknowledged.
            heard: the other end's system has acknowledged something since the last look.
        """
        if not waits or heard:
            self._quiet = 0
        else:
            self._quiet += 1  # hit: L1 nothing was acknowledged between two looks
        return self._quiet >= LOOKS
