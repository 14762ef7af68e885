"""The checkpoint file: the state up to the oldest WAL segment. Rule: K4.

    8 bytes LCCHKPT1 | u32 length | u32 CRC-32 | JSON

The file is written under another name, synced and renamed. So it is never incomplete; a broken file is damage.
"""

from __future__ import annotations

import struct
from zlib import crc32

import msgspec
from msgspec import Struct

from nodeproc.core.messages import NOBODY, START, Known, Mark, MembersMark, NodeId, Position, Promised, SeqNo, Term
from nodeproc.disk.files import File, Files, Source, read_named
from nodeproc.disk.wal import FOLDER, damaged

NAME = f"{FOLDER}/checkpoint"
ASIDE = f"{FOLDER}/checkpoint.new"

_MAGIC = b"LCCHKPT1"
_PREFIX = struct.Struct("<8sII")
TAIL_BYTES = 4096
"""A checkpoint holds the CRC of the message log's last bytes: of this many."""


class ArchiveEnd(Struct, frozen=True):
    """The end of the archive, as a checkpoint stores it."""

    records: int = 0
    header_bytes: int = 0
    position: Position = START
    lines_bytes: int = 0
    """Bytes of the message log up to the end of the last record."""


class Checkpoint(Struct, frozen=True, forbid_unknown_fields=True):
    """The state after the record at `delivered`, and the promises when the checkpoint was made.

    lines_bytes, lines_crc: length of the message log up to `delivered`, and the CRC of its last 4096 bytes.
    first_segment: the oldest WAL segment that is still needed.
    members: the founders of the cluster; empty: written by a version that did not record them.
    newest_segment, durable: the WAL was durable up to this byte of this segment; 0: unknown (version 1).
    """

    node: NodeId
    identity: str
    rebuilding: bool
    term: Term = 0
    voted_for: NodeId = NOBODY
    identities: dict[NodeId, Known] = {}
    marks: tuple[Mark | MembersMark, ...] = ()
    delivered: Position = START
    sessions: dict[str, tuple[int, SeqNo]] = {}
    horizon: SeqNo = 0
    lines_bytes: int = 0
    lines_crc: int = 0
    archive: ArchiveEnd = ArchiveEnd()
    first_segment: int = 1
    members: tuple[NodeId, ...] = ()
    promised: dict[NodeId, Promised] = {}
    newest_segment: int = 0
    durable: int = 0


_decode = msgspec.json.Decoder(Checkpoint).decode


def lines_crc(where: str, lines: File, end: int) -> int:
    """Return the CRC of the last bytes of the message log before `end`, to compare it with the checkpoint's.

    Raises:
        ReadFailed: the disk reported an error.
    """
    start = max(0, end - TAIL_BYTES)
    return crc32(read_named(where, lines, end - start, start))


def read(files: Source) -> Checkpoint | None:
    """Return the checkpoint, or None if there is none.

    Raises:
        CorruptionError: it is damaged.
        ReadFailed: the disk reported an error.
    """
    try:
        file = files.open(NAME)
    except FileNotFoundError:
        return None
    try:
        data = read_named(files.where(NAME), file, file.size(), 0)
    finally:
        file.close()
    body = data[_PREFIX.size :]
    if len(data) < _PREFIX.size or _PREFIX.unpack_from(data) != (_MAGIC, len(body), crc32(body)):
        raise damaged(files.where(NAME), 0, "the checkpoint's length or CRC is wrong")
    try:
        return _decode(body)
    except msgspec.MsgspecError as error:
        raise damaged(files.where(NAME), _PREFIX.size, f"not a checkpoint: {error}") from None


def write(files: Files, checkpoint: Checkpoint) -> None:
    """Replace the checkpoint in one step, durably."""
    body = msgspec.json.encode(checkpoint)
    file = files.open(ASIDE, create=True)
    try:
        file.truncate(0)
        file.append([_PREFIX.pack(_MAGIC, len(body), crc32(body)), body])
        file.sync()
    finally:
        file.close()
    files.rename(ASIDE, NAME)
    files.sync_folder(FOLDER)
