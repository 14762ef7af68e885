"""The bytes of frames between nodes, as the proxy sees them: where one ends, its type, how to spoil or cut one."""

from __future__ import annotations

import random

import msgspec
from msgspec import Struct

from lab.course.links import Handling
from nodeproc.frames import PREAMBLE
from nodeproc.records import MAX_BODY, MAX_HEADER, PREFIX

_TYPE_START = b'{"type":"'
_PREAMBLE_TYPE = "PREAMBLE"


class _Typed(Struct):
    type: str


_decode_typed = msgspec.json.Decoder(_Typed).decode


def frame_type(head: bytes) -> str:
    """The type that a frame's JSON header names; "" where it names none."""
    if head.startswith(_TYPE_START):
        return head[len(_TYPE_START) : head.index(b'"', len(_TYPE_START))].decode()
    try:
        return _decode_typed(head).type
    except msgspec.MsgspecError:
        return ""


class FrameCutter:
    """Cuts what one node sends into whole frames, which stay bytes. One per connection.

    Bytes that can't be frames are passed on as they come, as one frame without type each: to refuse them is the
    receiver's affair.
    """

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._opened = False
        self._strange = False

    def feed(self, data: bytes) -> list[tuple[str, bytes]]:
        """The frames that are complete now, as (type, bytes)."""
        buffer = self._buffer
        buffer += data
        frames: list[tuple[str, bytes]] = []
        at = 0
        if not self._opened and len(buffer) >= len(PREAMBLE):
            self._opened, self._strange = True, not buffer.startswith(PREAMBLE)
            at = 0 if self._strange else len(PREAMBLE)
            frames += [] if self._strange else [(_PREAMBLE_TYPE, PREAMBLE)]
        while self._opened and not self._strange and len(buffer) >= at + PREFIX.size:
            head_len, body_len, _ = PREFIX.unpack_from(buffer, at)
            if not 0 < head_len <= MAX_HEADER or body_len > MAX_BODY:
                self._strange = True
                break
            head_at = at + PREFIX.size
            end = head_at + head_len + body_len
            if len(buffer) < end:
                break
            with memoryview(buffer) as view:
                frames.append((frame_type(bytes(view[head_at : head_at + head_len])), bytes(view[at:end])))
            at = end
        if self._strange and len(buffer) > at:
            frames.append(("", bytes(buffer[at:])))
            at = len(buffer)
        del buffer[:at]
        return frames


LENGTHS_BYTES = PREFIX.size - 4
"""A frame's first bytes, before the CRC."""


def spoil(frame: bytes, rng: random.Random) -> bytes:
    """A frame with one byte changed. Its lengths stay: a receiver told of a longer frame only waits for the rest."""
    at = rng.randrange(LENGTHS_BYTES if len(frame) > PREFIX.size else 0, len(frame))
    return frame[:at] + bytes([frame[at] ^ rng.randrange(1, 256)]) + frame[at + 1 :]


def pieces(frame: bytes, size: int) -> list[bytes]:
    """A frame cut in pieces of so many bytes."""
    return [frame[at : at + size] for at in range(0, len(frame), size)]


BYTES: Handling[bytes] = Handling(len, spoil, pieces)
