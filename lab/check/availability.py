"""Unavailable time after each kind of fault, and the growth of terms: parts of metrics.json.

The faults divide the run into windows, from one fault to the next, whatever heals in between. The findings of a window
are attributed to the fault that opened it. So they may be effects of an earlier fault that is still in force.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from msgspec import Struct

from lab.check.elections import SHOWS_TERM
from lab.check.history import EventLine
from lab.rows import FaultRow
from lab.steps import EFFECTS, OF_ITSELF
from lab.steps.step import Effect

NS_PER_S = 1_000_000_000
_CONSEQUENCES = {*OF_ITSELF, *(word for word, effect in EFFECTS.items() if effect in (Effect.UP, Effect.HEALED))}
"""Rows that are not faults: heals, and consequences of faults."""


class FaultKind(Struct, frozen=True):
    """Figures of all faults that the scenario requests in the same words. None: it did not happen."""

    asked: str
    times: int
    unavailable_s_median: float | None
    """Longest time without an acknowledgement of the load after one such fault; the median over all of them."""
    unavailable_s_max: float | None
    elections: int
    """Number of nodes that became leader after these faults."""
    detected_ms_median: float | None
    """From the fault to the first leader timeout that a node reports."""
    elected_ms_median: float | None
    """From the fault to the first new leader."""
    acknowledged_ms_median: float | None
    """From the fault to the first acknowledgement after that new leader was elected."""


class Terms(Struct, frozen=True):
    """Growth of terms in the run."""

    first: int
    """Of the first leader; 0: there was none."""
    last: int
    """The highest that any node showed."""
    elections: int
    """How often a node became leader."""

    @property
    def growth(self) -> int:
        return self.last - self.first


@dataclass(slots=True)
class Window:
    """From one fault to the next, ns."""

    asked: str
    start: int
    end: int = 1 << 63
    silent: int = -1
    """Longest time without an acknowledgement in it; -1: no load ran."""
    suspected: int = 0
    led: int = 0
    elections: int = 0
    acked: int = 0
    """First acknowledgement from `led` on."""
    faults: list[FaultRow] = field(default_factory=list)
    """The rows that opened it."""


def windows_of(faults: Iterable[FaultRow]) -> list[Window]:
    """Return a window for each fault of the scenario with an effect, by ascending time; the rows of one step are one
    fault.
    """
    windows: list[Window] = []
    latest: tuple[int, int, str] | None = None
    for row in sorted(faults, key=lambda row: row.t):
        if row.step < 0 or not row.effect or row.fault in _CONSEQUENCES:
            continue
        cause = (row.step, row.round, row.asked)
        if cause != latest:
            if windows:
                windows[-1].end = row.t
            windows.append(Window(row.asked or row.fault, row.t))
        windows[-1].faults.append(row)
        latest = cause
    return windows


def add_elections(windows: Sequence[Window], events: Iterable[EventLine]) -> None:
    """Set the times of the first suspicion and the first election of each window.

    Args:
        events: of all nodes by ascending time; those other than leader_timeout and became_leader do not count.
    """
    at = 0
    for event in events:
        while at < len(windows) and windows[at].end <= event.t_ns:
            at += 1
        if at == len(windows) or event.t_ns < windows[at].start:
            continue
        window = windows[at]
        if event.event == "became_leader":
            window.elections += 1
            window.led = window.led or event.t_ns
        elif event.event == "leader_timeout" and not window.led and any(explains(row, event) for row in window.faults):
            window.suspected = window.suspected or event.t_ns


def explains(fault: FaultRow, timeout: EventLine) -> bool:
    """Return whether a fault can be the reason why this node suspected that leader, or an earlier fault that is still
    in force.

    Args:
        timeout: a leader_timeout.
    """
    ends = {timeout.node, timeout.leader}
    if pairs := fault.evidence.get("pairs"):
        return any(ends == set(pair) for pair in pairs)
    return not fault.target or not timeout.leader or fault.target in ends


class Silence:
    """Follows the load's acknowledgements through the windows."""

    def __init__(self, windows: Sequence[Window]) -> None:
        self._windows = windows
        self._at = 0

    def end(self, before: int, t: int, *, by_ack: bool) -> None:
        """Take a time without acknowledgement, from `before` to t.

        Args:
            by_ack: an acknowledgement ended it; otherwise a client gave up its message.
        """
        windows = self._windows
        while self._at < len(windows) and windows[self._at].end <= before:
            self._at += 1
        for at in range(self._at, len(windows)):
            window = windows[at]
            if window.start > t:
                break
            window.silent = max(window.silent, min(t, window.end) - max(before, window.start))
            if by_ack and window.led and not window.acked and window.led <= t < window.end:
                window.acked = t


def fault_kinds(windows: Sequence[Window]) -> tuple[FaultKind, ...]:
    """Combine the windows of each kind of fault, in the order in which the kinds first occur."""
    kinds: dict[str, list[Window]] = {}
    for window in windows:
        kinds.setdefault(window.asked, []).append(window)
    return tuple(_kind(asked, each) for asked, each in kinds.items())


def _kind(asked: str, windows: Sequence[Window]) -> FaultKind:
    silent = [window.silent / NS_PER_S for window in windows if window.silent >= 0]
    return FaultKind(
        asked=asked,
        times=len(windows),
        unavailable_s_median=_median(silent),
        unavailable_s_max=max(silent, default=None),
        elections=sum(window.elections for window in windows),
        detected_ms_median=_median([(each.suspected - each.start) / 1e6 for each in windows if each.suspected]),
        elected_ms_median=_median([(each.led - each.start) / 1e6 for each in windows if each.led]),
        acknowledged_ms_median=_median([(each.acked - each.start) / 1e6 for each in windows if each.acked]),
    )


def _median(values: Sequence[float]) -> float | None:
    return statistics.median(values) if values else None


class TermCount:
    """Follows the terms through all nodes' events, in any order."""

    def __init__(self) -> None:
        self._leaders: list[int] = []
        self._last = 0

    def on_event(self, event: EventLine) -> None:
        if event.event in SHOWS_TERM:
            self._last = max(self._last, event.term)
        if event.event == "became_leader":
            self._leaders.append(event.term)

    def terms(self) -> Terms:
        return Terms(min(self._leaders, default=0), self._last, len(self._leaders))
