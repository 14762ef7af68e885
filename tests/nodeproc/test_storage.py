"""Writing, delivering, reading back, checkpoints, identity, and failures of the disk."""

from __future__ import annotations

import errno
import os
import threading
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

import msgspec
import pytest

from lab.course.simfiles import SimFiles
from nodeproc.core.effects import Met, Promise, Readmitted, Truncate
from nodeproc.core.events import CheckpointWritten, Loaded, TailWrittenAnew
from nodeproc.core.messages import START, Batch, Known, Mark, MemberAddress, MemberList, MembersMark, Position
from nodeproc.core.recovered import Recovered
from nodeproc.disk import wal
from nodeproc.disk.files import RealFiles
from nodeproc.disk.storage import Storage
from nodeproc.entries import Committed
from nodeproc.errors import ConfigError, CorruptionError, ReadFailed, Unreadable, WriteFailed
from nodeproc.records import decode_entry
from tests.nodeproc.disks import (
    FIRST,
    IDENTITY,
    LINES,
    SECOND,
    Scribe,
    a_short_life,
    all_lines,
    everything,
    opened,
    write_and_deliver,
)

TIMEOUT_S = 20.0


def a_long_life(batches: int, segment_bytes: int = 2000) -> tuple[SimFiles, Storage, Scribe]:
    """Several segments, all delivered, no checkpoint."""
    files, scribe = SimFiles(), Scribe()
    storage, _, _ = opened(files, segment_bytes)
    storage.write([scribe.add(Promise(1, 1)), scribe.mark(1)])
    write_and_deliver(storage, scribe, batches)
    return files, storage, scribe


def segments(files: SimFiles) -> list[str]:
    return [name for name in files.names("wal") if ".wal" in name]


# ---- first start, restart ---------------------------------------------------------------------------


def test_a_first_start_makes_an_identity_and_an_empty_log() -> None:
    files = SimFiles()
    _, recovered, events = opened(files)
    assert recovered == Recovered(IDENTITY)
    assert events == [Loaded(0)]


def test_the_identity_stays_over_restarts() -> None:
    files = SimFiles()
    opened(files)
    _, recovered, _ = Storage.open(files, 1, new_identity=lambda: "another")
    assert recovered.identity == IDENTITY


def test_two_first_starts_draw_different_identities() -> None:
    identities = {Storage.open(SimFiles(), 1)[1].identity for _ in range(3)}
    assert len(identities) == 3


def test_a_restart_finds_what_was_written() -> None:
    files, scribe = a_short_life()
    _, recovered, events = opened(files)
    assert recovered == scribe.meaning.recovered(4)
    assert isinstance(events[0], TailWrittenAnew) and events[1:] == [Loaded(4)]


def test_a_clean_stop_proves_all_that_was_written() -> None:
    files, scribe = a_short_life()
    storage, _, _ = opened(files)
    storage.close(scribe.meaning.snapshot(4))
    before = files.contents()
    assert opened(files)[2] == [Loaded(4)]
    assert files.contents() == before


def test_a_clean_stop_keeps_what_was_delivered_without_a_note() -> None:
    files, scribe = SimFiles(), Scribe()
    storage, _, _ = opened(files)
    storage.write([scribe.mark(1), scribe.batch("one")])
    storage.deliver(scribe.meaning.log)
    storage.close(scribe.meaning.snapshot(1))
    _, recovered, _ = opened(files)
    assert recovered == scribe.meaning.recovered(1)


def test_another_nodes_directory_is_refused() -> None:
    files, _ = a_short_life()
    before = files.contents()
    with pytest.raises(ConfigError, match="node 1's, not node 2's"):
        Storage.open(files, 2)
    assert files.contents() == before


def with_members(files: SimFiles, *members: int) -> Storage:
    return Storage.open(files, 1, members=members, segment_bytes=500)[0]


@pytest.mark.parametrize("checkpointed", [False, True])
def test_a_directory_made_for_other_members_is_refused(checkpointed: bool) -> None:
    """Rule: M5."""
    files, scribe = SimFiles(), Scribe()
    storage = with_members(files, 1, 2, 3)
    storage.write([scribe.mark(1)])
    storage.close(scribe.meaning.snapshot(0) if checkpointed else None)
    before = files.contents()
    with pytest.raises(ConfigError, match="found members 1, 4, 5, allowed 1, 2, 3, which data directory"):
        with_members(files, 1, 4, 5)
    assert files.contents() == before
    with_members(files, 1, 2, 3).close()


def test_a_directory_older_than_its_list_of_members_takes_it_over() -> None:
    """Rule: M5."""
    files, scribe = SimFiles(), Scribe()
    with_members(files).close()
    with_members(files, 1, 2, 3).close(scribe.meaning.snapshot(0))
    with pytest.raises(ConfigError, match="allowed 1, 2, 3"):
        with_members(files, 1, 2)


def test_a_list_of_members_outlives_checkpoints_restarts_and_truncations() -> None:
    """Rule: G1."""
    files, storage, scribe = a_long_life(2)
    first = MemberList(1, (1, 2, 3), learners=(4,), addresses=(MemberAddress(4, "h", 5004),))
    second = MemberList(2, (1, 2, 3, 4), addresses=first.addresses)
    storage.write([scribe.mark(2, first)])
    write_and_deliver(storage, scribe, 30)
    storage.checkpoint(scribe.meaning.snapshot(64))
    assert FIRST not in files.contents()
    assert everything(storage) == scribe.meaning.log, "the archive has the mark too"
    storage, recovered, _ = opened(files)
    assert members_of(recovered.marks[-1]) == first and recovered == scribe.meaning.recovered(64)
    storage.write([scribe.mark(3, second)])
    storage.sync()
    storage, recovered, _ = opened(files)
    assert members_of(recovered.marks[-1]) == second
    storage.write([scribe.add(Truncate(Position(2, 64)))])
    storage.close(scribe.meaning.snapshot(64))
    assert members_of(opened(files)[1].marks[-1]) == first


def test_a_version_without_lists_refuses_a_mark_that_has_one() -> None:
    """Rule: G1, K2."""
    raw = Scribe().mark(1, MemberList(1, (1, 2, 3))).raw
    entry = decode_entry(raw, 0)
    assert entry is not None and isinstance(entry.header, MembersMark)
    older = msgspec.json.Decoder(Mark | Batch)
    with pytest.raises(msgspec.ValidationError):
        older.decode(raw[12:])


def members_of(mark: Mark) -> MemberList | None:
    return mark.members if isinstance(mark, MembersMark) else None


def test_sessions_past_the_limit_are_dropped_at_recovery_too() -> None:
    files, scribe = SimFiles(), Scribe()
    storage, _, _ = opened(files)
    storage.write([scribe.mark(1), *(scribe.batch("x", session=f"s{number}") for number in range(5))])
    storage.deliver(scribe.meaning.log)
    _, recovered, _ = Storage.open(files, 1, max_sessions=2)
    assert list(recovered.sessions.items()) == [("s3", (1, 4)), ("s4", (1, 5))]
    assert recovered.horizon == 3


# ---- M4: rebuilding ---------------------------------------------------------------------------------


def test_a_rebuild_starts_in_an_empty_directory_and_lasts_until_readmitted() -> None:
    files = SimFiles()
    storage, recovered, _ = opened(files, rebuild=True)
    assert recovered.rebuilding
    assert opened(files, rebuild=True)[1].rebuilding
    assert opened(files)[1].rebuilding
    storage.write([Promise(3, 0), Readmitted(3)])
    storage.sync()
    assert not opened(files)[1].rebuilding


def test_a_checkpoint_remembers_a_rebuild() -> None:
    files, scribe = SimFiles(), Scribe()
    storage, _, _ = opened(files, 300, rebuild=True)
    storage.write([scribe.mark(1)])
    write_and_deliver(storage, scribe, 5)
    storage.close(scribe.meaning.snapshot(10))
    assert FIRST not in files.contents()
    assert opened(files)[1].rebuilding


def test_a_rebuild_of_a_members_directory_is_refused() -> None:
    files, _ = a_short_life()
    before = files.contents()
    with pytest.raises(ConfigError, match="holds a member's data"):
        opened(files, rebuild=True)
    assert files.contents() == before


# ---- R2: logical truncation ---------------------------------------------------------------------------


def test_a_truncation_hides_records_and_takes_nothing_from_the_file() -> None:
    files, scribe = SimFiles(), Scribe()
    storage, _, _ = opened(files)
    storage.write([scribe.mark(1), scribe.batch("one"), scribe.batch("two"), scribe.batch("three")])
    size = len(files.contents()[FIRST])
    storage.write([scribe.add(Truncate(Position(1, 1)))])
    assert everything(storage) == scribe.meaning.log
    assert len(files.contents()[FIRST]) > size
    storage.write([scribe.mark(3), scribe.batch("other two")])
    assert everything(storage) == scribe.meaning.log
    assert opened(files)[1] == scribe.meaning.recovered(0)


def test_a_truncation_drops_marks_at_the_same_seq_no() -> None:
    files, scribe = SimFiles(), Scribe()
    storage, _, _ = opened(files)
    storage.write([scribe.mark(1), scribe.batch("one"), scribe.mark(2), scribe.mark(4)])
    storage.write([scribe.add(Truncate(Position(1, 1))), scribe.mark(5)])
    assert [record.position for record in everything(storage)] == [(1, 0), (1, 1), (5, 1)]
    assert opened(files)[1] == scribe.meaning.recovered(0)


def test_a_truncation_reaches_back_over_segments_and_a_checkpoint() -> None:
    files, storage, scribe = a_long_life(6, segment_bytes=500)
    storage.write([scribe.mark(2)])
    for _ in range(6):
        storage.write([scribe.batch("to be lost", "x" * 200)])
        storage.sync()
    storage.checkpoint(scribe.meaning.snapshot(12))
    storage.write([scribe.add(Truncate(Position(1, 12)))])
    storage.write([scribe.mark(3), scribe.batch("kept")])
    storage.sync()
    assert everything(storage) == scribe.meaning.log
    storage, recovered, _ = opened(files, 500)
    assert recovered == scribe.meaning.recovered(12)
    assert everything(storage) == scribe.meaning.log


# ---- R1, S6: reading ----------------------------------------------------------------------------------


@pytest.mark.parametrize("max_bytes", [1, 700, 5000, 1 << 20])
def test_records_are_read_across_the_border_of_archive_and_wal(max_bytes: int) -> None:
    files, storage, scribe = a_long_life(40)
    storage.write([scribe.mark(2), scribe.batch("not delivered")])
    event = storage.checkpoint(scribe.meaning.snapshot(60))
    assert isinstance(event, CheckpointWritten)
    assert event.segments > 2
    assert everything(storage, max_bytes) == scribe.meaning.log
    assert everything(opened(files)[0], max_bytes) == scribe.meaning.log


def test_records_are_read_behind_every_position() -> None:
    _, storage, scribe = a_long_life(20)
    storage.checkpoint(scribe.meaning.snapshot(40))
    log = scribe.meaning.log
    for number, record in enumerate(log):
        found = storage.read_records(record.position, 1)
        assert found == log[number + 1 : number + 2]


def test_reads_keep_to_max_bytes() -> None:
    _, storage, scribe = a_long_life(20)
    sizes = [len(record.raw) for record in scribe.meaning.log]
    for _ in range(2):
        found = storage.read_records(START, sum(sizes[:4]))
        assert found == scribe.meaning.log[:4]
        storage.checkpoint(scribe.meaning.snapshot(40))


@pytest.mark.parametrize("max_bytes", [1, 150, 333, 1 << 20])
def test_lines_are_read_from_every_seq_no(max_bytes: int) -> None:
    files, storage, scribe = a_long_life(20)
    storage.checkpoint(scribe.meaning.snapshot(20))
    lines = scribe.meaning.lines(40).splitlines(keepends=True)
    for again in (storage, opened(files)[0]):
        for start in range(1, 41):
            found, last = again.read_lines(start, max_bytes)
            assert found == b"".join(lines[start - 1 : last])
            assert start <= last
            assert len(found) <= max_bytes or found.count(b"\n") <= 2, "one batch at least"
        assert all_lines(again, 1, max_bytes) == b"".join(lines)
        assert again.read_lines(41, max_bytes) == (b"", 40)


def test_lines_not_delivered_are_not_read() -> None:
    files, scribe = SimFiles(), Scribe()
    storage, _, _ = opened(files)
    storage.write([scribe.mark(1), scribe.batch("one"), scribe.batch("two")])
    assert storage.read_lines(1, 1000) == (b"", 0)
    storage.deliver(scribe.meaning.log[:2])
    assert storage.delivered_seq == 1
    assert storage.read_lines(1, 1000) == (scribe.meaning.lines(1), 1)


# ---- K4: checkpoints ----------------------------------------------------------------------------------


def test_a_checkpoint_is_due_when_a_segment_was_finished() -> None:
    files, scribe = SimFiles(), Scribe()
    storage, _, _ = opened(files, 1000)
    storage.write([scribe.mark(1)])
    write_and_deliver(storage, scribe, 2)
    assert not storage.checkpoint_due()
    write_and_deliver(storage, scribe, 4)
    assert storage.checkpoint_due()
    storage.checkpoint(scribe.meaning.snapshot(12))
    assert not storage.checkpoint_due()


def test_a_checkpoint_keeps_the_sessions_and_their_horizon() -> None:
    files, storage, scribe = a_long_life(0, segment_bytes=500)
    for number in range(12):
        record = scribe.batch("x" * 100, session=f"s{number}")
        storage.write([record])
        storage.sync()
        storage.deliver([record])
    core = scribe.meaning.recovered(12, max_sessions=3)
    assert core.horizon == 9
    storage.checkpoint(replace(scribe.meaning.snapshot(12), sessions=core.sessions, horizon=core.horizon))
    assert FIRST not in files.contents()
    again = Storage.open(files, 1, max_sessions=3)[1]
    assert (list(again.sessions.items()), again.horizon) == (list(core.sessions.items()), core.horizon)


def test_a_checkpoint_drops_the_segments_before_it_and_no_record() -> None:
    files, storage, scribe = a_long_life(30)
    count = len(segments(files))
    assert count > 4
    event = storage.checkpoint(scribe.meaning.snapshot(60))
    assert event == CheckpointWritten(60, count - 1)
    assert len(segments(files)) == 1
    write_and_deliver(storage, scribe, 5)
    _, recovered, _ = opened(files)
    assert recovered == scribe.meaning.recovered(70)
    assert recovered.term == 1  # Its promise was in a dropped segment.


def test_a_segment_with_records_not_delivered_stays() -> None:
    files, storage, scribe = a_long_life(30)
    storage.write([scribe.mark(2)])
    for _ in range(30):
        storage.write([scribe.batch("x" * 100)])
        storage.sync()
    storage.checkpoint(scribe.meaning.snapshot(20))
    storage.checkpoint(scribe.meaning.snapshot(60))
    storage, recovered, _ = opened(files)
    assert recovered == scribe.meaning.recovered(60)
    assert everything(storage) == scribe.meaning.log


def test_promises_written_after_the_snapshot_outlive_their_segment() -> None:
    files, storage, scribe = a_long_life(3)
    snapshot = scribe.meaning.snapshot(6)
    storage.write([scribe.add(Promise(7, 2)), scribe.add(Met(3, Known("late", 7, 1))), scribe.mark(7)])
    write_and_deliver(storage, scribe, 30)
    storage.checkpoint(snapshot)
    storage.checkpoint(scribe.meaning.snapshot(66))
    assert FIRST not in files.contents()
    assert opened(files)[1] == scribe.meaning.recovered(66)


def test_a_checkpoint_with_nothing_delivered_changes_nothing() -> None:
    files, scribe = SimFiles(), Scribe()
    storage, _, _ = opened(files, 200)
    storage.write([scribe.mark(1)])
    for _ in range(5):
        storage.write([scribe.batch("x" * 100)])
        storage.sync()
    assert storage.checkpoint(scribe.meaning.snapshot(0)) == CheckpointWritten(0, 0)
    assert opened(files)[1] == scribe.meaning.recovered(0)


def restart_cost(batches: int) -> int:
    files, storage, scribe = a_long_life(0, segment_bytes=5000)
    for _ in range(batches // 10):
        write_and_deliver(storage, scribe, 10)
        if storage.checkpoint_due():
            storage.checkpoint(scribe.meaning.snapshot(scribe.meaning.end.seq_no))
    after = files.copy()
    _, recovered, _ = opened(after, 5000)
    assert recovered.delivered_seq == batches * 2
    return after.bytes_read


def test_the_cost_of_a_restart_does_not_grow_with_the_history() -> None:
    short, long = restart_cost(100), restart_cost(1000)
    assert abs(long - short) < 3 * 5000
    assert long < 6 * 5000


# ---- K5: failures of the disk -------------------------------------------------------------------------


def refuse_all(storage: Storage, scribe: Scribe) -> None:
    """Every further use is refused."""
    for use in (
        lambda: storage.write([Promise(9, 9)]),
        storage.sync,
        lambda: storage.deliver(scribe.meaning.log),
        lambda: storage.checkpoint(scribe.meaning.snapshot(0)),
    ):
        with pytest.raises(WriteFailed):
            use()


def test_a_full_disk_stops_the_node_and_a_restart_goes_on() -> None:
    files, scribe = a_short_life()
    storage, _, _ = opened(files)
    files.capacity = files.used() + 50
    with pytest.raises(WriteFailed, match=f"{SECOND}: No space left on device"):
        storage.write([scribe.batch("x" * 200)])
    refuse_all(storage, scribe)
    storage.close(scribe.meaning.snapshot(4))
    files.capacity = None
    scribe.meaning.log.pop()
    assert opened(files)[1] == scribe.meaning.recovered(4)


def test_a_full_disk_at_a_restart_is_a_write_failure_and_harmless() -> None:
    files, scribe = a_short_life()
    files.put(LINES, b"")
    files.capacity = files.used() + 10
    with pytest.raises(WriteFailed, match="No space left"):
        opened(files)
    files.capacity = None
    assert opened(files)[1] == scribe.meaning.recovered(4)


@pytest.mark.parametrize("victim", [FIRST, LINES])
def test_a_directory_that_can_not_be_read_is_refused_by_the_name_of_the_file(victim: str) -> None:
    files, _ = a_short_life()

    def fail(what: str, name: str) -> None:
        if (what, name) == ("pread", victim):
            raise OSError(errno.EIO, "Input/output error")

    before = files.contents()
    files.on_operation = fail
    with pytest.raises(ReadFailed) as refused:
        opened(files)
    assert str(refused.value) == f"{files.where(victim)}: can't be read: Input/output error"
    assert files.contents() == before


def test_a_file_that_can_not_be_opened_is_no_failed_write(monkeypatch: pytest.MonkeyPatch) -> None:
    files, _ = a_short_life()

    def refuse(name: str, *, create: bool = False) -> NoReturn:
        raise OSError(errno.EIO, "Input/output error", name)

    monkeypatch.setattr(files, "open", refuse)
    with pytest.raises(ReadFailed, match="can't be read: Input/output error"):
        opened(files)


@pytest.mark.parametrize("operation", ["append", "sync"])
@pytest.mark.parametrize("victim", [SECOND, LINES])
def test_a_failing_write_or_fdatasync_is_not_tried_again(operation: str, victim: str) -> None:
    files, scribe = a_short_life()
    storage, _, _ = opened(files)
    tries = []

    def fail(what: str, name: str) -> None:
        if what == operation and name.removesuffix(wal.NEXT) == victim:
            tries.append(victim)
            raise OSError(errno.EIO, "Input/output error")

    files.on_operation = fail
    with pytest.raises(WriteFailed, match="Input/output error"):
        storage.write([scribe.add(Promise(3, 3))])
        storage.sync()
        storage.deliver(scribe.meaning.log[3:5])
        storage.checkpoint(scribe.meaning.snapshot(6))
    refuse_all(storage, scribe)
    storage.close()
    assert tries == [victim]


class SeenLock:
    """A lock that tells when somebody has to wait for it."""

    def __init__(self) -> None:
        self._lock, self.waited_for = threading.Lock(), threading.Event()

    def __enter__(self) -> None:
        if not self._lock.acquire(blocking=False):
            self.waited_for.set()
            self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()


def test_who_waits_for_a_sync_that_fails_does_not_repeat_it() -> None:
    # The second fdatasync would succeed, for the kernel has marked clean the pages that it could not write: what a
    # checkpoint's thread and the sync's wait for would count as durable.
    files, scribe = a_short_life()
    storage, _, _ = opened(files)
    storage.write([scribe.add(Promise(3, 3))])
    lock = SeenLock()
    storage._wal._sync_lock = lock  # type: ignore[assignment]
    failing = threading.Event()
    ends: list[str] = []
    synced: list[str] = []

    def fail_once(what: str, name: str) -> None:
        if what == "sync":
            synced.append(name)
            if len(synced) == 1:
                failing.set()
                assert lock.waited_for.wait(TIMEOUT_S)
                raise OSError(errno.EIO, "Input/output error")

    def sync() -> None:
        try:
            storage.sync()
        except WriteFailed as error:
            ends.append(str(error))
        else:
            ends.append("durable")

    files.on_operation = fail_once
    threads = [threading.Thread(target=sync), threading.Thread(target=sync)]
    threads[0].start()
    assert failing.wait(TIMEOUT_S)
    threads[1].start()
    for thread in threads:
        thread.join()
    assert len(synced) == 1 and len(ends) == 2 and all("Input/output error" in end for end in ends)
    storage.close()


def test_a_failing_checkpoint_stops_the_node_and_a_restart_goes_on() -> None:
    for operation in ("rename", "unlink", "sync_folder"):
        files, storage, scribe = a_long_life(30)

        def fail(what: str, name: str, operation: str = operation) -> None:
            if what == operation:
                raise OSError(errno.EIO, "Input/output error")

        files.on_operation = fail
        with pytest.raises(WriteFailed):
            storage.checkpoint(scribe.meaning.snapshot(60))
        files.on_operation = None
        storage, recovered, _ = opened(files)
        assert recovered == scribe.meaning.recovered(60)
        assert everything(storage) == scribe.meaning.log


def test_a_disk_that_can_not_be_read_for_a_while_gives_nothing_up() -> None:
    """Rule: K6"""
    files, scribe = a_short_life()
    storage, _, _ = opened(files)

    def fail(what: str, name: str) -> None:
        if what == "pread":
            raise OSError(errno.EIO, "Input/output error")

    files.on_operation = fail
    for read in (lambda: storage.read_records(START, 1000), lambda: storage.read_lines(1, 1000)):
        with pytest.raises(Unreadable, match=FIRST):
            read()
    storage.write([scribe.batch("more")])
    files.on_operation = None
    assert everything(storage) == scribe.meaning.log


# ---- durability and threads ---------------------------------------------------------------------------


def test_durability_os_never_waits_for_the_disk() -> None:
    files, scribe = SimFiles(), Scribe()
    storage, _, _ = Storage.open(files, 1, durability="os", segment_bytes=500, new_identity=lambda: IDENTITY)

    def no_sync(what: str, name: str) -> None:
        assert what != "sync"

    files.on_operation = no_sync
    storage.write([scribe.mark(1)])
    write_and_deliver(storage, scribe, 10)
    files.on_operation = None
    assert len(segments(files)) > 3
    assert opened(files)[1] == scribe.meaning.recovered(20)


def test_a_write_carries_one_note_and_only_where_something_has_moved() -> None:
    files, scribe = SimFiles(), Scribe()
    storage, _, _ = opened(files)
    storage.write([scribe.mark(1), scribe.batch("one"), scribe.batch("two")])
    storage.write([scribe.batch("three")])
    end = len(files.contents()[FIRST])
    storage.sync()
    storage.write([scribe.batch("four"), scribe.batch("five")])
    storage.write([scribe.batch("six")])
    entries = wal.scan(1, FIRST, files.contents()[FIRST]).entries
    notes = [entry.header for entry in entries if isinstance(entry.header, Committed)]
    assert notes == [Committed(0, 1, entries[0].end), Committed(0, 1, end)]


def test_a_new_segment_gets_its_name_when_the_one_before_it_is_durable() -> None:
    files, scribe = SimFiles(), Scribe()
    storage, _, _ = opened(files, 200)
    storage.write([scribe.mark(1), scribe.batch("x" * 200)])
    for _ in range(3):
        storage.write([scribe.batch("x" * 200)])
    assert segments(files) == ["000000000001.wal", "000000000002.wal.next"]
    storage.sync()
    assert segments(files) == ["000000000001.wal", "000000000002.wal"]


def test_syncs_and_checkpoints_in_other_threads_disturb_no_write(tmp_path: Path) -> None:
    scribe = Scribe()
    storage, _, _ = Storage.open(RealFiles(tmp_path), 1, segment_bytes=4000, new_identity=lambda: IDENTITY)
    stop = threading.Event()

    def keep_syncing() -> None:
        while not stop.is_set():
            storage.sync()

    syncing = threading.Thread(target=keep_syncing)
    syncing.start()
    try:
        storage.write([scribe.mark(1)])
        for number in range(300):
            record = scribe.batch("x" * 50, "y")
            storage.write([record])
            storage.deliver([record])
            if number % 30 == 29:
                snapshot = scribe.meaning.snapshot(storage.delivered_seq)
                checkpointing = threading.Thread(target=storage.checkpoint, args=(snapshot,))
                checkpointing.start()
                assert storage.read_records(START, 1) == scribe.meaning.log[:1]
                assert all_lines(storage, storage.delivered_seq - 3, 100).count(b"\n") == 4
                checkpointing.join()
    finally:
        stop.set()
        syncing.join()
    assert everything(storage) == scribe.meaning.log
    storage.close()
    storage, recovered, _ = Storage.open(RealFiles(tmp_path), 1)
    assert recovered == scribe.meaning.recovered(600)
    assert everything(storage, 3000) == scribe.meaning.log
    assert (tmp_path / LINES).read_bytes() == scribe.meaning.lines(600)


# ---- real files ---------------------------------------------------------------------------------------


def test_a_directory_in_use_is_refused(tmp_path: Path) -> None:
    files = RealFiles(tmp_path)
    with pytest.raises(ConfigError, match="in use by another process"):
        RealFiles(tmp_path)
    files.close()
    RealFiles(tmp_path).close()


def test_a_lock_that_the_system_refuses_is_not_called_another_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(fd: int, how: int) -> NoReturn:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("nodeproc.disk.files.fcntl.flock", refuse)
    with pytest.raises(ConfigError, match="No locks available") as refused:
        RealFiles(tmp_path)
    assert "another process" not in str(refused.value)


def test_a_directory_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("")
    with pytest.raises(ConfigError, match="must be a writable directory"):
        RealFiles(tmp_path / "data")


def test_an_append_that_takes_only_a_part_goes_on_with_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = RealFiles(tmp_path)
    file = files.open("some", create=True)

    def writev(fd: int, buffers: list[bytes]) -> int:
        return os.write(fd, buffers[0][:3])

    monkeypatch.setattr("nodeproc.disk.files.os.writev", writev)
    file.append([b"abcdef", b"ghi"])
    file.append([b"j"] * 3000)
    assert file.pread(9999, 0) == b"abcdefghi" + b"j" * 3000
    file.close()
    files.close()


def test_a_failed_append_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage, _, _ = Storage.open(RealFiles(tmp_path), 1)

    def full(fd: int, buffers: list[bytes]) -> NoReturn:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("nodeproc.disk.files.os.writev", full)
    with pytest.raises(WriteFailed, match=r"000000000001\.wal: No space left on device"):
        storage.write([Promise(1, 1)])
    storage.close()


def test_a_message_log_without_its_wal_is_refused() -> None:
    files = SimFiles.holding({LINES: b'{"seq_no":1}\n'})
    with pytest.raises(CorruptionError, match=r"no WAL beside logs/node_1_messages\.jsonl"):
        opened(files)
