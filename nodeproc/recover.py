"""Make a new cluster from what is left of one that has lost its majority: python -m nodeproc recover --help

Of the surviving data directories the one with the highest position is copied, record by record, into one new directory
for each member. These get fresh identities and know each other's, so that no directory of the old cluster is taken
for a member of the new one (M4), and a term above all that were seen. What was acknowledged and is not in the chosen
directory is lost: nobody but the operator can decide that.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from nodeproc.config import MAX_MEMBERS
from nodeproc.core.effects import Met, Promise
from nodeproc.core.messages import NOBODY, START, Batch, Known, Mark, NodeId, Position, Record, SeqNo, Term
from nodeproc.core.recovered import Recovered, Snapshot
from nodeproc.disk import recovery
from nodeproc.disk.files import RealFiles
from nodeproc.disk.storage import Storage, random_identity
from nodeproc.errors import ConfigError, CorruptionError, Unreadable

AGREED: Final = "--lose-what-only-the-others-had"
CHUNK_BYTES: Final = 4 << 20
WARNING: Final = """\
ACKNOWLEDGED MESSAGES THAT ONLY THE OTHER NODES HAD ARE GIVEN UP FOR GOOD.
MESSAGES THAT WERE NEVER ACKNOWLEDGED MAY APPEAR.
NO NODE OF THE OLD CLUSTER CAN JOIN THE NEW ONE, AND NONE OF IT MUST BE STARTED AGAIN: BOTH WOULD SERVE CLIENTS."""

_LINES_NAME = re.compile(r"node_(\d+)_messages\.jsonl")


@dataclass(frozen=True, slots=True)
class Survivor:
    """A data directory of the old cluster, open."""

    path: Path
    node: NodeId
    storage: Storage
    recovered: Recovered

    def __str__(self) -> str:
        found = self.recovered
        rebuilt = ", its rebuild is not over" if found.rebuilding else ""
        return f"{self.path}: node {self.node}, term {found.term}, log up to {tuple(found.position)}{rebuilt}"


def main(arguments: Sequence[str]) -> int:
    """Returns the exit code.

    Raises:
        ConfigError, StorageError: as for a node.
    """
    parser = argparse.ArgumentParser(
        prog="python -m nodeproc recover", description="Make a new cluster of what is left of one without a majority."
    )
    parser.add_argument("survivors", nargs="+", type=Path, metavar="DATA_DIR", help="data directories that are left")
    parser.add_argument("--members", required=True, type=members, metavar="1,2,3", help="ids of the new cluster")
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="gets node_1, node_2, … as data_dir")
    parser.add_argument(AGREED, action="store_true", dest="agreed", help="do it; without this: only say what is there")
    options = parser.parse_args(arguments)
    survivors = [survivor(path) for path in options.survivors]
    try:
        best = max(survivors, key=lambda each: each.recovered.position)
        for each in survivors:
            print(f"{each}{'  <- the newest' if each is best else ''}")
        print(WARNING)
        if not options.agreed:
            print(f"No new cluster was made. To go on, stop all nodes and give {AGREED}")
            return 2
        term = max(each.recovered.term for each in survivors) + 1
        identities = {member: random_identity() for member in options.members}
        for member in options.members:
            folder = options.out / f"node_{member}"
            last = copy_to(folder, member, identities, best, survivors, term)
            print(f"{folder}: made, {last} messages delivered")
    finally:
        for each in survivors:
            each.storage.close()
    return 0


def members(text: str) -> tuple[NodeId, ...]:
    """Ids as they stand behind --members."""
    found = tuple(sorted({int(each) for each in text.split(",")}))
    if not 1 <= len(found) <= MAX_MEMBERS or found[0] < 1:
        raise ValueError(text)
    return found


def survivor(path: Path) -> Survivor:
    """Open what is left of a node, as its own start would.

    Raises:
        ConfigError: it is no data directory, or a node runs on it.
        CorruptionError: it is damaged.
    """
    names = [_LINES_NAME.fullmatch(each.name) for each in sorted((path / recovery.LINES_FOLDER).glob("*"))]
    nodes = [int(each[1]) for each in names if each]
    if len(nodes) != 1:
        raise ConfigError(f"{path}: not a node's data directory: {len(nodes)} message logs, allowed 1")
    storage, recovered, _ = Storage.open(RealFiles(path), nodes[0])
    return Survivor(path, nodes[0], storage, recovered)


def copy_to(
    folder: Path,
    member: NodeId,
    identities: dict[NodeId, str],
    best: Survivor,
    survivors: Sequence[Survivor],
    term: Term,
) -> SeqNo:
    """Make one data directory of the new cluster; returns its last delivered seq_no.

    Raises:
        ConfigError: the folder is there already.
        CorruptionError: not all of the records can be read.
    """
    unfinished = folder.with_name(f"{folder.name}.unfinished")
    for each in (folder, unfinished):
        if each.exists():
            raise ConfigError(f"{each}: is there already; give another --out")
    storage, _, _ = Storage.open(
        RealFiles(unfinished), member, members=tuple(identities), new_identity=lambda: identities[member]
    )
    others = {peer: Known(identity) for peer, identity in identities.items() if peer != member}
    storage.write([Promise(term, NOBODY), *(Met(peer, known) for peer, known in others.items())])
    found, marks = best.recovered, list[Mark]()

    def snapshot() -> Snapshot:
        delivered = storage.delivered_seq
        return Snapshot(term, NOBODY, False, others, tuple(marks), delivered, dict(found.sessions), found.horizon)

    for records in chunks(best, survivors):
        storage.write(records)
        marks += [record.header for record in records if isinstance(record.header, Mark)]
        storage.deliver([record for record in records if _is_delivered(record, found.delivered_seq)])
        if storage.checkpoint_due():
            storage.checkpoint(snapshot())
    storage.close(snapshot())
    unfinished.rename(folder)
    return storage.delivered_seq


def _is_delivered(record: Record, delivered_seq: SeqNo) -> bool:
    return isinstance(record.header, Batch) and record.header.last <= delivered_seq


def chunks(best: Survivor, survivors: Sequence[Survivor]) -> Iterator[list[Record]]:
    """All records of the best survivor, in order; where it is damaged, another one's: what is delivered is the same."""
    after, end = START, best.recovered.position
    while after != end:
        try:
            records = best.storage.read_records(after, CHUNK_BYTES)
        except Unreadable as error:
            records = next(filter(None, (_delivered_after(after, best, each) for each in survivors)), [])
            if not records:
                raise CorruptionError(f"{error}; no other data directory given has these records") from error
        if not records:
            raise CorruptionError(f"{best.path}: the records behind {tuple(after)} can't be read, up to {tuple(end)}")
        yield records
        after = records[-1].position


def _delivered_after(after: Position, best: Survivor, other: Survivor) -> list[Record]:
    """Records behind a position from another survivor, up to the last batch that both delivered; none if damaged."""
    both = min(best.recovered.delivered_seq, other.recovered.delivered_seq)
    try:
        records = other.storage.read_records(after, CHUNK_BYTES)
    except Unreadable:
        return []
    count = max((at for at, record in enumerate(records, 1) if _is_delivered(record, both)), default=0)
    return records[:count]
