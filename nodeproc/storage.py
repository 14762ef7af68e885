"""What a node keeps on its disk: the write-ahead log, the message log made from it, and checkpoints. Rules: K1 to K5."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, TypeAlias

from nodeproc.core.effects import PersistOp
from nodeproc.core.events import Event
from nodeproc.core.messages import NodeId, Position, Record, SeqNo
from nodeproc.core.recovered import Recovered, Snapshot
from nodeproc.files import Files

Durability: TypeAlias = Literal["fsync", "os"]

SEGMENT_BYTES = 16 << 20


def random_identity() -> str:
    """A fresh identity of a data directory. Rule: M4."""
    raise NotImplementedError


class Storage:
    """One node's disk. write, deliver and the reads belong to one thread; sync and checkpoint may run in others."""

    delivered_seq: SeqNo

    @classmethod
    def open(
        cls,
        files: Files,
        node_id: NodeId,
        *,
        durability: Durability = "fsync",
        segment_bytes: int = SEGMENT_BYTES,
        max_sessions: int = 100_000,
        rebuild: bool = False,
        new_identity: Callable[[], str] = random_identity,
    ) -> tuple[Storage, Recovered, list[Event]]:
        """Recover what the directory holds; make it where it is empty. Rule: K2, K3, K4, M4.

        Args:
            segment_bytes: a WAL file is finished once it is that long.
            max_sessions: as in CoreConfig.
            rebuild: the directory must be empty, or hold a rebuild that is not over.

        Raises:
            CorruptionError: what is there is not what was written; nothing was changed.
            ConfigError: `rebuild` of a directory that holds a full member's data, or another node's data.
            WriteFailed: repairing or making it failed.
        """
        raise NotImplementedError

    def write(self, ops: Sequence[PersistOp]) -> None:
        """Append the operations to the WAL, in order; durable only after sync().

        Raises:
            WriteFailed: the node must stop. Rule: K5.
        """
        raise NotImplementedError

    def sync(self) -> None:
        """Make all that was written before the call durable. May run in another thread.

        Raises:
            WriteFailed: the node must stop. Rule: K5.
        """
        raise NotImplementedError

    def deliver(self, records: Sequence[Record]) -> None:
        """Append the bodies of the next delivered records to the message log. Rule: D1.

        Raises:
            WriteFailed: the node must stop. Rule: K5.
        """
        raise NotImplementedError

    def read_records(self, after: Position, max_bytes: int) -> list[Record]:
        """Consecutive records behind a position, up to max_bytes but at least one if there is any. Rule: R1, P1.

        Raises:
            CorruptionError: they are not what was written.
        """
        raise NotImplementedError

    def read_lines(self, start: SeqNo, max_bytes: int) -> tuple[bytes, SeqNo]:
        """Delivered lines from seq_no `start` on, whole ones, and the last seq_no in them; (b"", start - 1) for none."""
        raise NotImplementedError

    def checkpoint_due(self) -> bool:
        """A WAL segment was finished since the last checkpoint."""
        raise NotImplementedError

    def checkpoint(self, snapshot: Snapshot) -> Event:
        """Keep the snapshot, extend the archive and drop what is not needed behind it. May run in another thread. Rule: K4.

        Raises:
            WriteFailed: the node must stop. Rule: K5.
        """
        raise NotImplementedError

    def synced_offsets(self) -> dict[str, int]:
        """File name -> bytes known to be durable, for every WAL segment."""
        raise NotImplementedError

    def close(self, snapshot: Snapshot | None = None) -> None:
        """Make everything durable, with a last checkpoint where a snapshot is given, and close all files."""
        raise NotImplementedError
