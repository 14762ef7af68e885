"""The frames between the nodes of a simulation, recorded for frames.jsonl."""

from __future__ import annotations

from bisect import bisect_left
from itertools import takewhile
from typing import Final

from lab.course.frames import Chosen, frame_text
from lab.rows import FrameRow
from nodeproc.core.messages import NodeId, PeerMessage

FOREVER: Final = 1 << 63


class Frames:
    """The frames that were sent, with the times of their arrivals.

    Args:
        chosen: those that are recorded; None: all.
    """

    def __init__(self, chosen: Chosen | None = None) -> None:
        self._chosen = chosen
        self._sent: list[tuple[int, NodeId, NodeId, PeerMessage, list[int]]] = []
        self._latest: dict[tuple[NodeId, NodeId, int], list[int]] = {}
        """(from, to, id() of the message, which `_sent` keeps alive) -> its arrivals."""

    @property
    def takes_all(self) -> bool:
        return self._chosen is None

    def sent(self, now: float, source: NodeId, to: NodeId, message: PeerMessage) -> None:
        kind = str(message.__struct_config__.tag)
        if self._chosen is not None and not self._chosen.takes(source, to, kind):
            # A node may send the same object again, as its heartbeat: this arrival is not that of the frame before.
            self._latest.pop((source, to, id(message)), None)
            return
        arrivals = self._latest[source, to, id(message)] = []
        self._sent.append((_ns(now), source, to, message, arrivals))

    def arrived(self, now: float, source: NodeId, to: NodeId, message: PeerMessage) -> None:
        if (arrivals := self._latest.get((source, to, id(message)))) is not None:
            arrivals.append(_ns(now))

    def rows(self, since: int = 0, until: int = FOREVER) -> list[FrameRow]:
        """Return the frames that were sent from `since` to `until`, ns, in the order in which they were sent."""
        first = bisect_left(self._sent, since, key=lambda sent: sent[0])
        return [
            FrameRow(t, source, to, str(message.__struct_config__.tag), frame_text(message), tuple(arrivals))
            for t, source, to, message, arrivals in takewhile(lambda sent: sent[0] <= until, self._sent[first:])
        ]


def _ns(now: float) -> int:
    return round(now * 1e9)
