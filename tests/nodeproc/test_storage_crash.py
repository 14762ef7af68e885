"""Power losses and kills at any file operation: what sync() covered is always recovered. Rules: K2, K3, K5."""

from __future__ import annotations

import contextlib
import errno
import sys
import threading
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lab.course.simfiles import PowerLost, SimFile, SimFiles
from nodeproc.core.effects import Met, PersistOp, Promise, Truncate
from nodeproc.core.messages import Batch, Known
from nodeproc.disk import wal
from nodeproc.disk.storage import Storage
from nodeproc.errors import CorruptionError, WriteFailed
from tests.nodeproc.disks import LINES, Meaning, Scribe, all_lines, everything, opened

SEGMENT_BYTES = 900


class Life:
    """A node's disk that lives through random work and crashes, beside the plain meaning of what was written.

    written: operations whose write() returned. handed: those that a write() was called with.
    settled: how many of `written` are in files that have their own names.
    synced: how many of `written` a sync() that returned had covered.
    noted: delivered when write() was last called, so the WAL says it. sure: delivered, and durably known to be.
    """

    def __init__(self, rng: Random) -> None:
        self.rng = rng
        self.files = SimFiles(rng)
        self.scribe = Scribe()
        self.written: list[PersistOp] = []
        self.handed: list[PersistOp] = []
        self.settled = self.synced = 0
        self.delivered = 0
        self.noted = self.sure = 0
        self.storage: Storage | None = None

    def work(self, steps: int) -> None:
        """Raises PowerLost where the crash was placed."""
        if self.storage is None:
            self.storage = opened(self.files, SEGMENT_BYTES)[0]
        for _ in range(steps):
            step = self.rng.choices(
                (self.write, self.sync, self.deliver, self.truncate, self.checkpoint, self.restart),
                (12, 6, 6, 2, 1, 1),
            )[0]
            step(self.storage)

    def write(self, storage: Storage) -> None:
        rng, scribe = self.rng, self.scribe
        ops: list[PersistOp] = []
        for _ in range(rng.randint(1, 3)):
            kind = rng.random()
            meaning = scribe.meaning
            if meaning.end.term == 0 or kind < 0.1:
                term = max(meaning.term, meaning.end.term) + 1
                ops += [scribe.add(Promise(term, rng.randint(0, 3))), scribe.mark(term)]
            elif kind < 0.2:
                ops.append(
                    scribe.add(Met(rng.randint(2, 4), Known(f"identity {rng.randint(1, 9)}", rng.randint(0, 9))))
                )
            else:
                ops.append(
                    scribe.batch(*["x" * rng.randint(0, 90)] * rng.randint(1, 3), session=f"s{rng.randint(1, 3)}")
                )
        self.hand(storage, ops)

    def hand(self, storage: Storage, ops: list[PersistOp]) -> None:
        self.handed = self.written + ops
        storage.write(ops)
        self.written, self.noted = self.handed, self.delivered
        if not any(name.endswith(wal.NEXT) for name in self.files.names("wal")):
            self.settled = len(self.written)

    def sync(self, storage: Storage) -> None:
        storage.sync()
        self.all_is_synced()
        self.sure = max(self.sure, self.noted)

    def all_is_synced(self) -> None:
        self.settled = self.synced = len(self.written)

    def deliver(self, storage: Storage) -> None:
        """The next batches that are durable here."""
        durable = {record.position for record in Meaning.of(self.written[: self.synced]).log}
        log = [r for r in self.scribe.meaning.log if isinstance(r.header, Batch) and r.header.last > self.delivered]
        some = [record for record in log[: self.rng.randint(0, 4)] if record.position in durable]
        storage.deliver(some)
        self.delivered = storage.delivered_seq

    def truncate(self, storage: Storage) -> None:
        """A new leader's fork, anywhere behind what was delivered, then its mark."""
        meaning = self.scribe.meaning
        base = meaning.base(self.delivered)
        ends = [base, *(record.position for record in meaning.log if record.position > base)]
        keep, term = self.rng.choice(ends), max(meaning.term, meaning.end.term) + 1
        self.hand(storage, [self.scribe.add(Promise(term, 0)), self.scribe.add(Truncate(keep)), self.scribe.mark(term)])

    def checkpoint(self, storage: Storage) -> None:
        snapshot = self.scribe.meaning.snapshot(self.delivered)
        storage.checkpoint(snapshot)
        self.all_is_synced()
        self.sure = snapshot.delivered_seq

    def restart(self, storage: Storage) -> None:
        """Stop cleanly and start again."""
        storage.close(self.scribe.meaning.snapshot(self.delivered) if self.rng.random() < 0.5 else None)
        self.all_is_synced()
        self.sure = self.delivered
        self.storage, recovered, _ = opened(self.files, SEGMENT_BYTES)
        assert recovered == self.scribe.meaning.recovered(self.delivered)

    def come_back(self, files: SimFiles, least: int, least_delivered: int) -> None:
        """Recover and check: some prefix of what was handed over, all that had to survive, and its lines."""
        self.files = files
        self.storage, recovered, _ = opened(files, SEGMENT_BYTES)
        log = everything(self.storage, self.rng.choice((1, 500, 1 << 20)))
        found = [
            count
            for count in range(len(self.handed), least - 1, -1)
            if (meaning := Meaning.of(self.handed[:count])).log == log
            and recovered == meaning.recovered(recovered.delivered_seq)
        ]
        assert found, (least, len(self.handed), recovered)
        assert least_delivered <= recovered.delivered_seq
        meaning = Meaning.of(self.handed[: found[0]])
        assert files.contents()[LINES] == all_lines(self.storage) == meaning.lines(recovered.delivered_seq)
        self.written = self.handed = self.handed[: found[0]]
        self.settled = self.synced = found[0]
        self.delivered = recovered.delivered_seq
        self.noted = self.sure = self.delivered
        self.scribe.ops, self.scribe.meaning = list(self.written), meaning


def crash_on_the_way(life: Life, operations: int, steps: int) -> bool:
    """Work until the file operation of that number from now; False where there are not so many."""
    life.files.crash_at = life.files.operations + operations
    try:
        life.work(steps)
    except PowerLost:
        return True
    return False


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 2**32), st.lists(st.integers(1, 150), min_size=1, max_size=5))
def test_what_sync_covered_survives_every_power_loss(seed: int, crashes: list[int]) -> None:
    life = Life(Random(seed))
    for operations in crashes:
        crash_on_the_way(life, operations, steps=60)
        life.come_back(life.files.crash(life.rng), life.synced, life.sure)


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**32), st.lists(st.integers(1, 150), min_size=1, max_size=5))
def test_a_kill_loses_nothing_that_was_written(seed: int, kills: list[int]) -> None:
    life = Life(Random(seed))
    for operations in kills:
        crash_on_the_way(life, operations, steps=60)
        life.files.crash_at = life.files.operations + life.rng.randint(1, 40)
        with contextlib.suppress(PowerLost):
            opened(life.files, SEGMENT_BYTES)  # Killed again on its way up.
        life.files.crash_at = None
        life.come_back(life.files, life.settled, life.delivered)
        life.come_back(life.files.crash(life.rng), life.synced, life.sure)


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 2**32), st.lists(st.integers(1, 40), min_size=1, max_size=5))
def test_what_a_failed_sync_left_in_the_cache_is_durable_once_a_restart_has_found_it(
    seed: int, failures: list[int]
) -> None:
    """One sync fails, of whatever file and perhaps at a start, and all later ones succeed."""
    life = Life(Random(seed))
    for number in failures:
        left = number

        def fail(what: str, name: str) -> None:
            nonlocal left
            left -= what == "sync"
            if what == "sync" and left == 0:
                raise OSError(errno.EIO, "Input/output error", name)

        life.files.on_operation = fail
        with contextlib.suppress(WriteFailed):
            life.work(60)
            if life.rng.random() < 0.5:
                life.storage = opened(life.files, SEGMENT_BYTES)[0]
        life.files.on_operation = None
        life.come_back(life.files, life.settled, life.delivered)
        if life.rng.random() < 0.5:
            life.work(life.rng.randint(0, 20))
        life.come_back(life.files.crash(life.rng), life.synced, life.sure)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 40), st.integers(1, 40))
def test_a_power_loss_during_recovery_changes_nothing_about_it(seed: int, first: int, second: int) -> None:
    life = Life(Random(seed))
    life.work(40)
    life.files = life.files.crash(life.rng)
    life.storage = None
    for operations in (first, second):
        life.files.crash_at = life.files.operations + operations
        try:
            opened(life.files, SEGMENT_BYTES)
        except PowerLost:
            life.files = life.files.crash(life.rng)
        life.files.crash_at = None
    life.come_back(life.files, life.synced, life.sure)


def test_a_power_loss_at_every_operation_of_a_first_start_leaves_a_directory_that_starts() -> None:
    for crash_at in range(1, 40):
        for seed in range(5):
            files = SimFiles()
            files.crash_at = crash_at
            try:
                opened(files)
            except PowerLost:
                files = files.crash(Random(seed))
            files.crash_at = None
            assert opened(files)[1].position == (0, 0)


def test_a_disk_that_lies_about_sync_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """The checks above must fail where durability does: here fdatasync does nothing."""
    caught = 0
    for seed in range(40):
        life = Life(Random(seed))
        opened(life.files, SEGMENT_BYTES)
        life.work(3)
        assert life.storage is not None
        with monkeypatch.context() as patch:
            patch.setattr(SimFile, "sync", lambda file: None)
            life.work(5)
            life.sync(life.storage)
        try:
            life.come_back(life.files.crash(life.rng), life.synced, 0)
        except (AssertionError, CorruptionError):
            caught += 1
    assert caught > 5


def test_a_file_can_be_read_in_one_thread_while_another_appends() -> None:
    """A scrub reads in a thread of its own."""
    file, before = SimFiles().open("a", create=True), sys.getswitchinterval()
    file.append([bytes(1 << 16)])
    reading = threading.Event()

    def read() -> None:
        while not reading.is_set():
            file.pread(1 << 16, 0)

    reader = threading.Thread(target=read)
    sys.setswitchinterval(1e-6)
    try:
        reader.start()
        for _ in range(50_000):
            file.append([b"x"])
    finally:
        reading.set()
        reader.join()
        sys.setswitchinterval(before)
    assert file.size() == (1 << 16) + 50_000
