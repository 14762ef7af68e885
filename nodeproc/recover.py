"""Make a new cluster from what is left of one that has lost its majority: python -m nodeproc recover --help

The surviving data directory with the highest position is copied, record by record, into one new directory for each
member. The new directories get fresh identities and know each other's, so that no directory of the old cluster is taken
for a member of the new one (M4), and a term above all terms that were seen. Acknowledged messages that are not in the
chosen directory are lost; only an operator can decide to accept that.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Final

from nodeproc.config import MAX_MEMBERS
from nodeproc.core.effects import Met, Promise
from nodeproc.core.messages import (
    NOBODY,
    START,
    Batch,
    Known,
    Mark,
    MemberList,
    MembersMark,
    NodeId,
    Position,
    Record,
    SeqNo,
    Term,
)
from nodeproc.core.recovered import Recovered, Snapshot
from nodeproc.disk import recovery
from nodeproc.disk.files import RealFiles, sync_folder
from nodeproc.disk.recovery import Survey
from nodeproc.disk.storage import MAX_SESSIONS, Storage, random_identity
from nodeproc.disk.verify import Untouched, existing
from nodeproc.errors import EXIT_CLEAN, EXIT_CONFIG, ConfigError, CorruptionError, Unreadable
from nodeproc.importing import usage_name
from nodeproc.records import Sealer

AGREED: Final = "--lose-what-only-the-others-had"
CHUNK_BYTES: Final = 4 << 20
WARNING: Final = """\
ACKNOWLEDGED MESSAGES THAT ONLY THE OTHER NODES HAD ARE GIVEN UP FOR GOOD.
MESSAGES THAT WERE NEVER ACKNOWLEDGED MAY APPEAR.
NO NODE OF THE OLD CLUSTER CAN JOIN THE NEW ONE, AND NONE OF THEM MUST BE STARTED AGAIN: BOTH WOULD SERVE CLIENTS."""


@dataclass(frozen=True, slots=True)
class Survivor:
    """A data directory of the old cluster, locked, and what it holds."""

    path: Path
    node: NodeId
    files: RealFiles
    recovered: Recovered

    def __str__(self) -> str:
        found = self.recovered
        rebuilt = ", its rebuild is not complete" if found.rebuilding else ""
        return f"{self.path}: node {self.node}, term {found.term}, log up to {tuple(found.position)}{rebuilt}"


def main(arguments: Sequence[str]) -> int:
    """Run the command; return the exit code.

    Raises:
        ConfigError, StorageError: as for a node.
    """
    parser = argparse.ArgumentParser(
        prog=usage_name("nodeproc", "node") + " recover",
        description="Make a new cluster from what is left of one that has lost its majority.",
    )
    parser.add_argument("survivors", nargs="+", type=Path, metavar="DATA_DIR", help="a remaining data directory")
    parser.add_argument("--members", required=True, type=members, metavar="1,2,3", help="node ids of the new cluster")
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="create data directories DIR/node_1, …")
    parser.add_argument(AGREED, action="store_true", dest="agreed", help="without this flag, nothing is changed")
    options = parser.parse_args(arguments)
    survivors = [survey(path) for path in options.survivors]
    best = max(survivors, key=lambda each: each.recovered.position)
    for each in survivors:
        print(f"{each}{'  <- the newest' if each is best else ''}")
    print(WARNING)
    if not options.agreed:
        print(f"No new cluster was made. To go on, stop all nodes and give {AGREED}")
        return EXIT_CONFIG
    term = max(each.recovered.term for each in survivors) + 1
    identities = {member: random_identity() for member in options.members}
    # As a start of the node does, opening repairs a torn tail.
    storages = [Storage.open(each.files, each.node)[0] for each in survivors]
    source = Source(best.recovered, storages[survivors.index(best)], storages)
    for member in options.members:
        folder = options.out / f"node_{member}"
        last = copy_to(folder, member, identities, source, term)
        print(f"{folder}: made, {last} messages delivered")
    for storage in storages:
        storage.close()
    return EXIT_CLEAN


def members(text: str) -> tuple[NodeId, ...]:
    """Parse the value of --members."""
    found = tuple(sorted({int(each) for each in text.split(",")}))
    if not 1 <= len(found) <= MAX_MEMBERS or found[0] < 1:
        raise ValueError(text)
    return found


def survey(path: Path) -> Survivor:
    """Lock and read the data directory of a node that is down; nothing is changed.

    Raises:
        ConfigError: this is no node's data directory, or a process uses it.
        CorruptionError, ReadFailed: it is damaged or can't be read.
    """
    files = existing(path)
    node = recovery.node_of(files)
    reader = Survey(Untouched(files), node)
    try:
        return Survivor(path, node, files, reader.run().recovered(MAX_SESSIONS))
    finally:
        reader.close()


@dataclass(frozen=True, slots=True)
class Source:
    """The records of the new cluster: those of the newest survivor. `storages` are those of all survivors."""

    recovered: Recovered
    storage: Storage
    storages: Sequence[Storage]

    def chunks(self) -> Iterator[list[Record]]:
        """Yield all records in order. Damaged ones come from another survivor: delivered records are the same there.

        Raises:
            CorruptionError: no survivor can read some of the records.
        """
        after, end = START, self.recovered.position
        while after != end:
            try:
                records = self.storage.read_records(after, CHUNK_BYTES)
            except Unreadable as error:
                records = next(filter(None, (self._delivered_after(after, each) for each in self.storages)), [])
                if not records:
                    raise CorruptionError(f"{error}; no other data directory given has these records") from error
            assert records, (after, end)
            yield records
            after = records[-1].position

    def founding(self, members: Sequence[NodeId], term: Term) -> list[Record]:
        """Return the mark, of a term without a leader, after which the members count and no list before. Rule: G1."""
        last = self.recovered.marks[-1] if self.recovered.marks else None
        if not isinstance(last, MembersMark):
            return []
        before = last.members
        removed = {*before.voters, *before.learners, *before.removed}.difference(members)
        kept = MemberList(before.version + 1, tuple(sorted(members)), removed=tuple(sorted(removed)))
        return [Sealer(lambda: 0.0).mark(MembersMark(term, NOBODY, self.recovered.position.seq_no, kept))]

    def _delivered_after(self, after: Position, other: Storage) -> list[Record]:
        """Read records from another survivor, up to the last batch that both have delivered; none if damaged."""
        both = min(self.storage.delivered_seq, other.delivered_seq)
        try:
            records = other.read_records(after, CHUNK_BYTES)
        except Unreadable:
            return []
        count = max((at for at, record in enumerate(records, 1) if is_delivered(record, both)), default=0)
        return records[:count]


def copy_to(folder: Path, member: NodeId, identities: dict[NodeId, str], source: Source, term: Term) -> SeqNo:
    """Make one data directory of the new cluster; return its last delivered seq_no.

    Raises:
        ConfigError: the folder exists already.
        CorruptionError: see Source.chunks.
    """
    unfinished = folder.with_name(f"{folder.name}.unfinished")
    for each in (folder, unfinished):
        if each.exists():
            raise ConfigError(f"{each}: exists already; give another --out")
    storage, _, _ = Storage.open(
        RealFiles(unfinished), member, members=tuple(identities), new_identity=lambda: identities[member]
    )
    others = {peer: Known(identity) for peer, identity in identities.items() if peer != member}
    storage.write([Promise(term, NOBODY), *(Met(peer, known) for peer, known in others.items())])
    found, marks = source.recovered, list[Mark]()

    def snapshot() -> Snapshot:
        delivered = storage.delivered_seq
        return Snapshot(term, NOBODY, False, others, tuple(marks), delivered, dict(found.sessions), found.horizon)

    for records in chain(source.chunks(), [source.founding(tuple(identities), term)]):
        storage.write(records)
        marks += [record.header for record in records if isinstance(record.header, Mark)]
        storage.deliver([record for record in records if is_delivered(record, found.delivered_seq)])
        if storage.checkpoint_due():
            storage.checkpoint(snapshot())
    storage.close(snapshot())
    unfinished.rename(folder)
    sync_folder(folder.parent)
    return storage.delivered_seq


def is_delivered(record: Record, delivered_seq: SeqNo) -> bool:
    return isinstance(record.header, Batch) and record.header.last <= delivered_seq
