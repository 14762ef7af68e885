"""Frames between nodes: cut a stream of bytes into frames, corrupt a frame or cut it in pieces, and record frames."""

from __future__ import annotations

import random
from typing import Any, Final

import msgspec
from msgspec import Struct

from lab.course.links import Handling
from nodeproc.core.messages import Append, Batch, Known, NodeId, PeerMessage, Position, Promised, Record, Submit
from nodeproc.frames import PREAMBLE
from nodeproc.records import MAX_BODY, MAX_HEADER, PREFIX

_TYPE_START = b'{"type":"'
_PREAMBLE_TYPE = "PREAMBLE"


class _Typed(Struct):
    type: str


_decode_typed = msgspec.json.Decoder(_Typed).decode


def frame_type(head: bytes) -> str:
    """Return the type in a frame's JSON header; "" if there is none."""
    if head.startswith(_TYPE_START):
        return head[len(_TYPE_START) : head.index(b'"', len(_TYPE_START))].decode()
    try:
        return _decode_typed(head).type
    except msgspec.MsgspecError:
        return ""


class FrameCutter:
    """Cuts the bytes that one node sends into whole frames. One for each connection.

    Bytes that cannot be frames are passed on unchanged, as frames of type "". The receiver has to refuse them.
    """

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._opened = False
        self._is_not_frames = False

    def feed(self, data: bytes) -> list[tuple[str, bytes]]:
        """Add bytes; return the frames that are complete now, as (type, bytes)."""
        buffer = self._buffer
        buffer += data
        frames: list[tuple[str, bytes]] = []
        at = 0
        if not self._opened and len(buffer) >= len(PREAMBLE):
            self._opened, self._is_not_frames = True, not buffer.startswith(PREAMBLE)
            at = 0 if self._is_not_frames else len(PREAMBLE)
            frames += [] if self._is_not_frames else [(_PREAMBLE_TYPE, PREAMBLE)]
        while self._opened and not self._is_not_frames and len(buffer) >= at + PREFIX.size:
            head_len, body_len, _ = PREFIX.unpack_from(buffer, at)
            if not 0 < head_len <= MAX_HEADER or body_len > MAX_BODY:
                self._is_not_frames = True
                break
            head_at = at + PREFIX.size
            end = head_at + head_len + body_len
            if len(buffer) < end:
                break
            with memoryview(buffer) as view:
                frames.append((frame_type(bytes(view[head_at : head_at + head_len])), bytes(view[at:end])))
            at = end
        if self._is_not_frames and len(buffer) > at:
            frames.append(("", bytes(buffer[at:])))
            at = len(buffer)
        del buffer[:at]
        return frames


LENGTHS_BYTES = PREFIX.size - 4
"""Size of the two lengths at the start of a frame, before the CRC."""


def spoil(frame: bytes, rng: random.Random) -> bytes:
    """Return a frame with one byte changed, but not its lengths: a longer frame would only make the receiver wait."""
    at = rng.randrange(LENGTHS_BYTES if len(frame) > PREFIX.size else 0, len(frame))
    return frame[:at] + bytes([frame[at] ^ rng.randrange(1, 256)]) + frame[at + 1 :]


def pieces(frame: bytes, size: int) -> list[bytes]:
    """Return a frame cut into pieces of `size` bytes."""
    return [frame[at : at + size] for at in range(0, len(frame), size)]


BYTES: Handling[bytes] = Handling(len, spoil, pieces)


# ---- frames.jsonl ---------------------------------------------------------------------------------

TRAFFIC: Final = frozenset({"SUBMIT", "APPEND", "APPENDED", "COMMIT", "HEARTBEAT", "HEARTBEAT_ACK", "PROMISES"})
"""Kinds of frames that are sent all the time; the others are sent when something happens."""
TRAFFIC_AFTER: Final = 10
"""Number of frames of traffic that are recorded on a link after each frame of another kind."""


class Chosen:
    """Chooses the frames that tell what happened, whatever the load: all but traffic, and some traffic after each."""

    def __init__(self) -> None:
        self._left: dict[tuple[NodeId, NodeId], int] = {}
        """Link -> number of frames of traffic that are still taken."""

    def takes(self, source: NodeId, to: NodeId, kind: str) -> bool:
        """Return whether the next frame on this link is recorded."""
        if kind not in TRAFFIC:
            self._left[source, to] = TRAFFIC_AFTER
            return True
        left = self._left.get((source, to), 0)
        if left:
            self._left[source, to] = left - 1
        return left > 0


def told_fields(message: PeerMessage) -> list[str]:
    """Return the names of the fields that tell a reader something.

    Numbers of requests are left out, and what is seldom true (of a transfer, E7; of lists of members, G5) if it is not.
    """
    untrue = {name for name in ("stand", "transfer", "settled") if not getattr(message, name, True)}
    return [name for name in message.__struct_fields__ if name not in {"poll", "request"} | untrue]


def frame_text(message: PeerMessage) -> str:
    """Return a frame's content in human-readable form, of its told_fields: `term 2, position 1:5`."""
    if isinstance(message, Append):
        records = ", ".join(map(_record, message.records))
        return f"term {message.term}, {records} behind {position_text(message.previous)}, commit {message.commit_seq}"
    if isinstance(message, Submit):
        last = message.first + len(message.payloads) - 1
        return f"n {message.first}..{last} of client {message.client_id}"
    return ", ".join(f"{name.replace('_', ' ')} {_value(getattr(message, name))}" for name in told_fields(message))


def _value(value: Any) -> str:
    if isinstance(value, Position):
        return position_text(value)
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_value(each)}" for key, each in value.items()) + "}"
    if isinstance(value, Known):
        return f"{value.identity[:4]}… of term {value.term}"
    if isinstance(value, Promised):
        return f"term {value.term}, {position_text(value.position)}"
    if isinstance(value, tuple):
        return f"[{', '.join(map(_entry, value))}]"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _entry(value: Any) -> str:
    """Return an entry of a list: a record, or a mark as (term, seq_no)."""
    return _record(value) if isinstance(value, Record) else f"{value[0]}:{value[1]}"


def position_text(position: Position) -> str:
    """Return a position as people read it: `term:seq_no`."""
    return f"{position.term}:{position.seq_no}"


def _record(record: Record) -> str:
    header = record.header
    if not isinstance(header, Batch):
        return f"mark {position_text(header.position)}"
    return f"{header.first}..{header.last} of term {header.term}"
