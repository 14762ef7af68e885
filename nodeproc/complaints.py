"""What strangers do wrong is written down, but not so often that they fill the disk with it. Pure."""

from __future__ import annotations

from msgspec import structs

from nodeproc.core.events import BadInput, Event, PeerRefused


class Complaints:
    """Lets at most so many complaints a second through, and counts the others.

    Args:
        per_s: in each second from the first one on.
    """

    def __init__(self, per_s: int) -> None:
        self._per_s = per_s
        self._since = 0.0
        self._count = 0
        self._left_out_now = 0
        self.total = 0
        """Complaints, written down or not."""

    def passed(self, event: Event, now: float) -> Event | None:
        """The event, None where it is one too many. The first one after a gap says how many were left out.

        Args:
            now: monotonic seconds.
        """
        if not isinstance(event, BadInput | PeerRefused):
            return event
        self.total += 1
        if now - self._since >= 1.0:
            self._since, self._count = now, 0
        self._count += 1
        if self._count > self._per_s:
            self._left_out_now += 1
            return None
        left_out, self._left_out_now = self._left_out_now, 0
        if not left_out:
            return event
        return structs.replace(event, reason=f"{event.reason} (and {left_out} more complaints before it)")
