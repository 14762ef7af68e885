"""Data directories of nodes with a long history, written directly with the product's storage."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from lab.payloads import payloads
from nodeproc.core.effects import Promise
from nodeproc.core.messages import NOBODY, Batch, Mark, NodeId, Record, SeqNo, SessionUse, Submit
from nodeproc.core.recovered import Snapshot
from nodeproc.disk.files import RealFiles
from nodeproc.disk.storage import Storage
from nodeproc.records import Sealer

TERM = 1
SEED = 7
STAMP = 1_732_300_000.0
BATCH = 1000
"""Messages of one batch."""


def fill(folder: Path, node: NodeId, messages: int, *, size: int = 100, sessions: int = 1) -> None:
    """Create the data directory of a node that has delivered `messages` messages and was stopped.

    Args:
        size: bytes of each payload.
        sessions: number of sessions that have sent the messages, in turn.
    """
    storage, _, _ = Storage.open(RealFiles(folder), node, durability="os")
    mark = Sealer(lambda: STAMP).mark(Mark(TERM, 1, 0))
    storage.write([Promise(TERM, NOBODY), mark])
    table: dict[str, tuple[int, SeqNo]] = {}
    done = 0
    for record in batches(messages, size, sessions):
        header = record.header
        assert isinstance(header, Batch)
        storage.write([record])
        storage.deliver([record])
        for use in header.sessions:
            table.pop(use.session, None)
            table[use.session] = (use.last_n, use.seq_no)
        done = header.last
        if storage.checkpoint_due():
            storage.checkpoint(_snapshot(mark, table, done))
    storage.close(_snapshot(mark, table, done))


def _snapshot(mark: Record, table: dict[str, tuple[int, SeqNo]], delivered: SeqNo) -> Snapshot:
    assert isinstance(mark.header, Mark)
    marks = (mark.header,) if delivered else ()
    return Snapshot(TERM, NOBODY, False, {}, marks, delivered, table, 0)


def batches(messages: int, size: int, sessions: int) -> Iterator[Record]:
    """Yield batches in which the sessions take turns, with several messages in a row each."""
    sealer = Sealer(lambda: STAMP)
    run = max(1, min(BATCH, messages // sessions))
    texts = tuple(payloads(SEED, 1, 1, run, size))
    sent = [0] * sessions
    first, turn = 1, 0
    while first <= messages:
        submits, uses, at = [], [], first
        while at <= messages and at - first + run <= BATCH:
            count = min(run, messages - at + 1)
            submits.append(Submit(f"session-{turn}", 1, 0, sent[turn] + 1, texts[:count]))
            sent[turn] += count
            at += count
            uses.append(SessionUse(f"session-{turn}", sent[turn], at - 1))
            turn = (turn + 1) % sessions
        yield sealer.batch(Batch(TERM, first, at - 1, _last_uses(uses)), submits)
        first = at


def _last_uses(uses: list[SessionUse]) -> tuple[SessionUse, ...]:
    """Return the last use of each session, in the order of these uses."""
    latest: dict[str, SessionUse] = {}
    for use in uses:
        latest.pop(use.session, None)
        latest[use.session] = use
    return tuple(latest.values())
