"""What nodes said to each other in a simulation, kept for those who want to read its story."""

from __future__ import annotations

from typing import Any

from lab.rows import FrameRow
from nodeproc.core.messages import Append, Batch, Known, NodeId, PeerMessage, Position, Promised, Record, Submit


class Frames:
    """Every frame that was sent, and when it arrived."""

    def __init__(self) -> None:
        self._sent: list[tuple[int, NodeId, NodeId, PeerMessage, list[int]]] = []
        self._latest: dict[tuple[NodeId, NodeId, int], list[int]] = {}
        """(from, to, identity of the message, which is kept alive above) -> its arrivals."""

    def sent(self, now: float, source: NodeId, to: NodeId, message: PeerMessage) -> None:
        arrivals = self._latest[source, to, id(message)] = []
        self._sent.append((_ns(now), source, to, message, arrivals))

    def arrived(self, now: float, source: NodeId, to: NodeId, message: PeerMessage) -> None:
        self._latest[source, to, id(message)].append(_ns(now))

    def rows(self) -> list[FrameRow]:
        """In the order in which they were sent."""
        return [
            FrameRow(t, source, to, str(message.__struct_config__.tag), text(message), tuple(arrivals))
            for t, source, to, message, arrivals in self._sent
        ]


def _ns(now: float) -> int:
    return round(now * 1e9)


def text(message: PeerMessage) -> str:
    """What a frame says, for people: `term 2, position 1:5`. Numbers that tie answers to questions are left out."""
    if isinstance(message, Append):
        records = ", ".join(map(_record, message.records))
        return f"term {message.term}, {records} behind {_position(message.previous)}, commit {message.commit_seq}"
    if isinstance(message, Submit):
        last = message.first + len(message.payloads) - 1
        return f"n {message.first}..{last} of client {message.client_id}"
    names = [name for name in message.__struct_fields__ if name not in ("poll", "request")]
    return ", ".join(f"{name.replace('_', ' ')} {_value(getattr(message, name))}" for name in names)


def _value(value: Any) -> str:
    if isinstance(value, Position):
        return _position(value)
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_value(each)}" for key, each in value.items()) + "}"
    if isinstance(value, Known):
        return f"{value.identity[:4]}… of term {value.term}"
    if isinstance(value, Promised):
        return f"term {value.term}, {_position(value.position)}"
    if isinstance(value, tuple):
        return "[" + ", ".join(f"{term}:{after}" for term, after in value) + "]"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _position(position: Position) -> str:
    return f"{position.term}:{position.seq_no}"


def _record(record: Record) -> str:
    header = record.header
    if not isinstance(header, Batch):
        return f"mark {_position(header.position)}"
    return f"{header.first}..{header.last} of term {header.term}"
