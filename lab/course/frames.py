"""Frames between nodes as bytes: cutting a stream into frames, their types, and how to corrupt a frame or cut it up."""

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
