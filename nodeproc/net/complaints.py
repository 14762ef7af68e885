"""Limits the rate of events that anybody who reaches the port can cause. Pure."""

from __future__ import annotations

from typing import Final

from msgspec import structs

from nodeproc.core.events import BadInput, ClientConnected, ClientLeft, Event, PeerRefused

BURST_S: Final = 20.0
"""The events of this many seconds may come at once."""
ALL: Final = 10.0
"""Limit of all addresses together, as a multiple of the limit of one."""
MAX_ADDRESSES: Final = 1024
"""Number of addresses with a count of their own; further addresses share one count."""
OTHERS: Final = "others"


class _Allowance:
    """A token bucket: it grows by `per_s` a second up to the burst, and each event takes one token."""

    def __init__(self, per_s: float, now: float) -> None:
        self._per_s, self._since, self._left = per_s, now, per_s * BURST_S

    def left(self, now: float) -> float:
        most = self._per_s * BURST_S
        self._since, self._left = now, min(most, self._left + (now - self._since) * self._per_s)
        return self._left

    def take(self) -> None:
        self._left -= 1

    def is_whole(self, now: float) -> bool:
        return self.left(now) >= self._per_s * BURST_S


class Complaints:
    """Passes events up to the limits of one address and of all addresses; counts the others.

    It limits events about bad input, refused links, and clients that connect and disconnect.

    Args:
        per_s: events a second that one address may cause, on average.
    """

    def __init__(self, per_s: int) -> None:
        self._per_s = per_s
        self._of: dict[str, _Allowance] = {}
        self._all: _Allowance | None = None
        self._left_out_now = 0
        self.total = 0
        """Number of such events, logged or not."""
        self.left_out = 0
        """Number of events that were not logged."""

    def passed(self, event: Event, now: float, address: str = "") -> Event | None:
        """Return the event, or None if it is above the limit. The next event that passes says how many were left out.

        Args:
            now: monotonic seconds.
            address: the host that caused it; "" if it is not known.
        """
        if not isinstance(event, BadInput | PeerRefused | ClientConnected | ClientLeft):
            return event
        self.total += isinstance(event, BadInput | PeerRefused)
        if self._all is None:
            self._all = _Allowance(self._per_s * ALL, now)
        own = self._allowance_of(address, now)
        if min(own.left(now), self._all.left(now)) < 1:
            self._left_out_now += 1
            self.left_out += 1
            return None
        own.take()
        self._all.take()
        if not isinstance(event, BadInput | PeerRefused) or not self._left_out_now:
            return event
        left_out, self._left_out_now = self._left_out_now, 0
        return structs.replace(event, reason=f"{event.reason} (and {left_out} more events left out before it)")

    def _allowance_of(self, address: str, now: float) -> _Allowance:
        if address not in self._of and len(self._of) >= MAX_ADDRESSES:
            self._of = {each: own for each, own in self._of.items() if not own.is_whole(now)}
            if len(self._of) >= MAX_ADDRESSES:
                address = OTHERS
        return self._of.setdefault(address, _Allowance(self._per_s, now))
