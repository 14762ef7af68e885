"""The headers of entries (nodeproc.records), and the entries of the WAL that are no records of the log."""

from __future__ import annotations

from typing import TypeAlias

from msgspec import Struct

from nodeproc.core.effects import Met, Promise, Readmitted, Truncate
from nodeproc.core.messages import Batch, Mark, MembersMark, NodeId, SeqNo
from nodeproc.errors import FrameError


class Committed(Struct, frozen=True, gc=False, tag_field="kind", tag="committed"):
    """A note in the WAL of the delivered seq_no and the durable end of the WAL at that moment. Rule: K2, K3.

    The WAL was durable up to byte `durable` of file number `segment`; 0 in both: unknown.
    """

    seq_no: SeqNo
    segment: int = 0
    durable: int = 0


WAL_VERSION = 2
"""Version of the WAL's format. In version 1, notes had no durable end."""


class Opening(Struct, frozen=True, gc=False, tag_field="kind", tag="opening"):
    """The first entry of each WAL file: its owner, and its place in the WAL. Rule: K2, M4."""

    number: int
    """1, 2, 3, …, as in the file's name."""
    previous_bytes: int
    """How many bytes of the previous file count; 0 for the first file."""
    node: NodeId
    identity: str
    rebuilding: bool
    """Whether the node was being rebuilt when the file was opened."""
    members: tuple[NodeId, ...] = ()
    """The founders of the cluster; empty: written by a version that did not record them."""
    version: int = 1


EntryHeader: TypeAlias = Mark | MembersMark | Batch | Promise | Truncate | Met | Readmitted | Committed | Opening


class Entry(Struct, frozen=True, gc=False):
    """A decoded entry: its header and its place in the buffer."""

    header: EntryHeader
    start: int
    body_at: int
    end: int


class Broken(FrameError):
    """Bytes that are not an entry: wrong CRC, impossible length or unknown header."""


class NotUnderstood(Broken):
    """The CRC is right and the header is unknown: another version wrote these bytes."""
