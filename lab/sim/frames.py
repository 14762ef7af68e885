"""The frames between the nodes of a simulation, recorded for frames.jsonl."""

from __future__ import annotations

from typing import Any

from lab.rows import FrameRow
from nodeproc.core.messages import Append, Batch, Known, NodeId, PeerMessage, Position, Promised, Record, Submit


class Frames:
    """All frames that were sent, with the times of their arrivals."""

    def __init__(self) -> None:
        self._sent: list[tuple[int, NodeId, NodeId, PeerMessage, list[int]]] = []
        self._latest: dict[tuple[NodeId, NodeId, int], list[int]] = {}
        """(from, to, id() of the message, which `_sent` keeps alive) -> its arrivals."""

    def sent(self, now: float, source: NodeId, to: NodeId, message: PeerMessage) -> None:
        arrivals = self._latest[source, to, id(message)] = []
        self._sent.append((_ns(now), source, to, message, arrivals))

    def arrived(self, now: float, source: NodeId, to: NodeId, message: PeerMessage) -> None:
        self._latest[source, to, id(message)].append(_ns(now))

    def rows(self) -> list[FrameRow]:
        """Return the rows in the order in which the frames were sent."""
        return [
            FrameRow(t, source, to, str(message.__struct_config__.tag), text(message), tuple(arrivals))
            for t, source, to, message, arrivals in self._sent
        ]


def _ns(now: float) -> int:
    return round(now * 1e9)


def text(message: PeerMessage) -> str:
    """Return a frame's content in human-readable form: `term 2, position 1:5`. Numbers of requests are left out."""
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
        return (
            "["
            + ", ".join(_record(each) if isinstance(each, Record) else f"{each[0]}:{each[1]}" for each in value)
            + "]"
        )
    return str(value).lower() if isinstance(value, bool) else str(value)


def _position(position: Position) -> str:
    return f"{position.term}:{position.seq_no}"


def _record(record: Record) -> str:
    header = record.header
    if not isinstance(header, Batch):
        return f"mark {_position(header.position)}"
    return f"{header.first}..{header.last} of term {header.term}"
