"""What reads make of damage while a node runs, and how a copy from a peer repairs it. Rule: K6."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from pathlib import Path

import pytest

from lab.course.simfiles import PowerLost, SimFiles
from nodeproc.core.effects import Copied, Fetch
from nodeproc.core.events import DamageFound, DamageLeft, DamageRepaired, Event
from nodeproc.core.messages import START, Batch, Damaged, Input, NodeId, Position, Record
from nodeproc.disk import checkpoint
from nodeproc.disk.archive import ROW_BYTES
from nodeproc.disk.files import RealFiles
from nodeproc.disk.reading import NOBODY_HAS_IT, Reading
from nodeproc.disk.scrub import Scrub
from nodeproc.disk.storage import Storage
from nodeproc.errors import ReadFailed, Unreadable
from tests.nodeproc.disks import CHECKPOINT, LINES, Scribe, all_lines, everything, opened
from tests.nodeproc.test_storage_damage import HEADERS, INDEX, with_a_checkpoint

DELIVERED = 22


def behind(scribe: Scribe, after: Position, count: int = 3) -> list[Record]:
    """What a healthy peer sends."""
    return [record for record in scribe.meaning.log if record.position > after][:count]


def repaired(storage: Storage, scribe: Scribe, found: set[str]) -> None:
    """Read everything as a follower and as a subscriber, with copies where that fails; nothing wrong is handed out."""
    after, start = START, 1
    while after < scribe.meaning.end:
        try:
            records = storage.read_records(after, 400)
            assert records == behind(scribe, after, len(records)) and records
            after = records[-1].position
        except Unreadable as error:
            assert Position(*error.after) == after
            found.add(error.file)
            assert storage.restore(after, behind(scribe, after))
    while start <= DELIVERED:
        try:
            lines, last = storage.read_lines(start, 400)
            assert lines == scribe.meaning.lines(DELIVERED)[len(scribe.meaning.lines(start - 1)) :][: len(lines)]
            start = last + 1
        except Unreadable as error:
            place = Position(*error.after)
            assert storage.restore(place, behind(scribe, place))


def wal_name(files: SimFiles) -> str:
    return next(name for name, data in files.contents().items() if name.endswith(".wal") and b"behind" in data)


@pytest.mark.parametrize("name", [HEADERS, INDEX, LINES])
def test_a_byte_that_changes_under_a_running_node_is_never_handed_out_and_is_repaired(name: str) -> None:
    files, scribe = with_a_checkpoint()
    whole = files.contents()
    cold = len(scribe.meaning.lines(opened(files)[0]._archive.end.position.seq_no))
    places = set[str]()
    for at in range(0, cold if name == LINES else len(whole[name]), 3):
        damaged = files.copy()
        storage, _, _ = opened(damaged)
        whole = damaged.contents()
        damaged.rot(name, at, whole[name][at] ^ 8)
        repaired(storage, scribe, places)
        assert damaged.contents() == whole, at
    assert places


def test_a_byte_that_changes_in_the_wal_is_never_handed_out_and_is_repaired() -> None:
    files, scribe = with_a_checkpoint()
    storage, _, _ = opened(files)
    whole, name = files.contents(), wal_name(files)
    at = whole[name].index(b"behind")
    files.rot(name, at, whole[name][at] ^ 8)
    with pytest.raises(Unreadable, match=name):
        storage.read_lines(21, 1000)
    repaired(storage, scribe, set())
    assert files.contents() == whole


def test_whole_stretches_that_are_lost_are_repaired_piece_by_piece() -> None:
    files, scribe = with_a_checkpoint()
    storage, _, _ = opened(files)
    whole = files.contents()
    for name in (HEADERS, INDEX):
        for at in range(len(whole[name])):
            files.rot(name, at, 0)
    repaired(storage, scribe, set())
    assert files.contents() == whole


def test_a_row_that_is_damaged_does_not_hide_the_intact_ones_before_it() -> None:
    files, scribe = with_a_checkpoint()
    storage, _, _ = opened(files)
    files.rot(INDEX, 5 * 52 + 3, 255)
    assert storage.read_records(START, 1 << 20) == scribe.meaning.log[:5]
    assert all_lines_until_damage(storage) == scribe.meaning.lines(8)


def all_lines_until_damage(storage: Storage) -> bytes:
    pieces: list[bytes] = []
    start = 1
    while True:
        try:
            piece, last = storage.read_lines(start, 1)
        except Unreadable:
            return b"".join(pieces)
        pieces.append(piece)
        start = last + 1


def test_a_sector_that_can_not_be_read_is_unreadable_and_the_rest_is_served() -> None:
    files, scribe = with_a_checkpoint()
    storage, _, _ = opened(files)
    bad = len(scribe.meaning.lines(6)) + 5
    file = storage._archive.lines
    right = file.pread

    def pread(size: int, at: int) -> bytes:
        if at <= bad < at + size:
            raise OSError(errno.EIO, "Input/output error")
        return right(size, at)

    file.pread = pread  # type: ignore[method-assign]
    assert storage.read_records(START, 1 << 20)[0] == scribe.meaning.log[0]
    assert all_lines_until_damage(storage) == scribe.meaning.lines(6)
    with pytest.raises(Unreadable, match="Input/output error"):
        storage.read_records(Position(1, 6), 1 << 20)
    assert storage.read_records(Position(1, 8), 1) == scribe.meaning.log[5:6]


@pytest.mark.parametrize("name", [HEADERS, INDEX, LINES])
def test_power_lost_at_any_moment_of_a_repair_leaves_what_can_be_repaired(name: str) -> None:
    files, scribe = with_a_checkpoint(600)  # The first lines are none of those that the checkpoint vouches for.
    whole = files.contents()
    for crash in range(1, 60):
        damaged = files.copy()
        storage, _, _ = opened(damaged)
        for at in range(60, 160):
            damaged.rot(name, at, 0)
        damaged.crash_at = damaged.operations + crash
        try:
            repaired(storage, scribe, set())
        except PowerLost:
            damaged = damaged.crash(damaged.rng)
            repaired(opened(damaged)[0], scribe, set())
        else:
            assert crash > 5
        assert damaged.contents()[name] == whole[name]


def test_a_copy_of_other_lengths_is_not_taken() -> None:
    files, scribe = with_a_checkpoint()
    storage, _, _ = opened(files)
    files.rot(LINES, 3, 0)
    before = files.contents()
    mark, batch = scribe.meaning.log[:2]
    assert isinstance(batch.header, Batch)
    foreign = Scribe()
    foreign.mark(1)
    other = foreign.batch("message of another length", "y")
    with pytest.raises(ReadFailed, match="other lengths"):
        storage.restore(START, [mark, other])
    assert files.contents() == before


def test_real_files_are_overwritten_in_place(tmp_path: Path) -> None:
    files = RealFiles(tmp_path)
    try:
        file = files.open("some", create=True)
        file.append([b"abcdef"])
        files.rewrite("some", 2, b"XY")
        file.append([b"g"])
        assert file.pread(100, 0) == b"abXYefg"
        file.close()
    finally:
        files.close()


def test_a_copy_is_not_put_in_the_place_of_another_record_whose_row_rots_meanwhile() -> None:
    """A record's damage is found; before its copy comes, the index row of the record before it rots. Rule: K6."""
    files, scribe = with_a_checkpoint()
    storage, _, _ = opened(files)
    after = scribe.meaning.log[4].position
    files.rot(INDEX, 4 * ROW_BYTES + 9, 255)
    before = files.contents()
    with pytest.raises(ReadFailed, match="damaged too"):
        storage.restore(after, behind(scribe, after))
    assert storage.own_copy(after) is None
    assert files.contents() == before
    repaired(storage, scribe, set())
    assert storage.read_records(after, 400) == behind(scribe, after, len(storage.read_records(after, 400)))


# ---- checkpoints --------------------------------------------------------------------------------------


def test_a_checkpoint_vouches_for_what_was_delivered_not_for_what_has_rotted() -> None:
    files, scribe = with_a_checkpoint()
    storage, _, _ = opened(files)
    whole = files.contents()[LINES]
    files.rot(LINES, len(whole) - 20, 0)
    storage.checkpoint(scribe.meaning.snapshot(DELIVERED))
    known = checkpoint.read(files)
    assert known is not None and storage.restore(Position(1, 20), behind(scribe, Position(1, 20)))
    assert files.contents()[LINES] == whole
    assert opened(files)[1] == scribe.meaning.recovered(DELIVERED)


def test_a_checkpoint_that_can_not_be_read_for_is_put_off_and_changes_nothing() -> None:
    files, scribe = SimFiles(), Scribe()
    storage, _, _ = opened(files, 600)
    storage.write([scribe.mark(1)])
    for number in range(10):
        record = scribe.batch(f"message {number}", "y" * 50)
        storage.write([record])
        storage.sync()
        storage.deliver([record])
    before = files.contents()

    def fail(what: str, name: str) -> None:
        if what == "pread" and name.endswith(".wal"):
            raise OSError(errno.EIO, "Input/output error")

    files.on_operation = fail
    with pytest.raises(ReadFailed):
        storage.checkpoint(scribe.meaning.snapshot(20))
    assert {name: data for name, data in files.contents().items() if name in before} == before
    files.on_operation = None
    storage.checkpoint(scribe.meaning.snapshot(20))
    assert everything(storage) == scribe.meaning.log
    assert all_lines(opened(files)[0]) == scribe.meaning.lines(20)


@pytest.mark.parametrize("name", [HEADERS, INDEX, LINES])
def test_a_clean_end_with_damaged_old_records_is_clean_all_the_same(name: str) -> None:
    files, scribe = with_a_checkpoint()
    storage, _, _ = opened(files)
    for at in range(100, min(800, len(files.contents()[name]))):
        files.rot(name, at, 0)
    storage.write([scribe.batch("the last one")])
    storage.deliver(scribe.meaning.log[-1:])
    storage.close(scribe.meaning.snapshot(23))
    if name != LINES:  # Some of its lines are among those that the checkpoint vouches for.
        assert opened(files)[1] == scribe.meaning.recovered(23)


# ---- who waits ----------------------------------------------------------------------------------------


class Seat:
    """A Reading whose core and log are played."""

    def __init__(self) -> None:
        self.files, self.scribe = with_a_checkpoint()
        self.storage, _, _ = opened(self.files)
        self.inputs: list[Input] = []
        self.events: list[Event] = []
        self.reading = Reading(self.storage, 1, self.take, self.events.append)

    def take(self, sender: NodeId, message: Input) -> None:
        assert sender == 1
        self.inputs.append(message)

    def copied(self, after: Position, records: Sequence[Record] = ()) -> tuple[str, list[Fetch]]:
        return self.reading.take_copy(Copied(after, tuple(records)))


def test_a_read_that_fails_asks_the_core_for_a_copy_and_says_so_once() -> None:
    seat = Seat()
    seat.files.rot(LINES, 3, 0)
    for _ in range(3):
        with pytest.raises(Unreadable):
            seat.reading.lines(1, 1000)
    assert set(seat.inputs) == {Damaged(Position(1, 0))}
    (found,) = seat.events
    assert isinstance(found, DamageFound) and (found.file, found.seq_no) == (LINES, 1)
    assert seat.copied(Position(1, 0), behind(seat.scribe, Position(1, 0))) == ("", [])
    assert isinstance(seat.events[-1], DamageRepaired) and seat.events[-1].places == f"{LINES}: offset 0"
    assert seat.reading.lines(1, 1000)[0].startswith(b'{"seq_no":1,')


def test_what_a_node_has_twice_it_puts_together_by_itself() -> None:
    seat = Seat()
    whole = seat.files.contents()
    rows = range(4 * 52, 9 * 52)
    for at in rows:
        seat.files.rot(INDEX, at, 0)
    name = wal_name(seat.files)
    seat.files.rot(name, whole[name].index(b"behind"), 0)
    start = 1
    while start <= DELIVERED:
        start = seat.reading.lines(start, 100)[1] + 1
    assert seat.files.contents() == whole and not seat.inputs
    assert [type(event) for event in seat.events] == [DamageFound, DamageRepaired] * 2


def test_a_disk_that_loses_what_is_written_is_not_written_to_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    seat = Seat()
    monkeypatch.setattr(SimFiles, "rewrite", lambda self, name, at, data: None)
    seat.files.rot(INDEX, 60, 1)
    for _ in range(3):
        with pytest.raises(Unreadable):
            seat.reading.lines(1, 1000)
    assert seat.inputs == [Damaged(Position(1, 0))] * 3


def test_a_peer_waits_for_the_copy_and_then_gets_its_records() -> None:
    seat = Seat()
    seat.files.rot(LINES, 3, 0)
    fetch, other = Fetch(3, Position(1, 0), 1000, 7), Fetch(2, Position(1, 0), 1000, 8)
    assert seat.reading.records(fetch) is None and seat.reading.records(other) is None
    assert seat.copied(Position(1, 0), behind(seat.scribe, Position(1, 0))) == ("", [fetch, other])
    assert seat.reading.records(fetch) == seat.scribe.meaning.log[1 : 1 + len(seat.reading.records(fetch) or ())]


def test_where_nobody_has_a_copy_a_peer_gets_nothing_and_nothing_is_said_twice() -> None:
    seat = Seat()
    seat.files.rot(LINES, 3, 0)
    fetch = Fetch(3, Position(1, 0), 1000, 7)
    for _ in range(3):
        assert seat.reading.records(fetch) is None
        assert seat.copied(Position(1, 0)) == (NOBODY_HAS_IT, [fetch])
        assert seat.reading.records(fetch) == []
    assert [type(event) for event in seat.events] == [DamageFound, DamageLeft]


def test_a_copy_that_does_not_fit_repairs_nothing() -> None:
    seat = Seat()
    seat.files.rot(LINES, 3, 0)
    with pytest.raises(Unreadable):
        seat.reading.lines(1, 1000)
    scribe = Scribe()
    scribe.mark(1)
    reason, _ = seat.copied(Position(1, 0), [scribe.batch("of another length")])
    assert "other lengths" in reason and isinstance(seat.events[-1], DamageLeft)


# ---- the slow pass over everything --------------------------------------------------------------------


def scrubbed(scrub: Scrub, most: int = 1000) -> tuple[list[Position], float]:
    """Play one pass: the places that it found damaged, and the seconds that it waited."""
    found, waited = list[Position](), 0.0
    for _ in range(most):
        try:
            waited += scrub.succeeded(*scrub.read())
        except Unreadable as error:
            found.append(Position(*error.after))
            waited += scrub.failed(error)
        if scrub.passes:
            return found, waited
    raise AssertionError("no end")


def test_a_pass_reads_everything_at_its_rate_and_rests() -> None:
    files, scribe = with_a_checkpoint()
    storage, _, _ = opened(files)
    size = sum(len(record.raw) for record in scribe.meaning.log)
    found, waited = scrubbed(Scrub(storage, bytes_per_s=1000, rest_s=60.0))
    assert found == [] and waited == pytest.approx(60.0 + size / 1000)


@pytest.mark.parametrize("name", [HEADERS, INDEX, LINES])
def test_a_pass_finds_a_changed_byte_wherever_it_is(name: str) -> None:
    files, _ = with_a_checkpoint()
    storage, _, _ = opened(files)
    data = files.contents()[name]
    for at in range(0, len(data), 11):
        files.rot(name, at, data[at] ^ 8)
        found, _ = scrubbed(Scrub(storage, 1 << 20, 1.0))
        assert len(set(found)) == 1, at
        files.rot(name, at, data[at])
    assert scrubbed(Scrub(storage, 1 << 20, 1.0))[0] == []


def test_a_pass_holds_no_lock_that_a_write_needs_while_it_waits_for_the_disk() -> None:
    files, _ = with_a_checkpoint()
    storage, _, _ = opened(files)
    held: list[bool] = []
    files.on_operation = lambda what, name: held.append(storage._wal.lock.locked()) if what == "pread" else None
    scrubbed(Scrub(storage, 1 << 20, 1.0))
    assert len(held) > 10 and not any(held)


def test_a_damaged_checkpoint_is_written_anew_before_a_restart_needs_it() -> None:
    files, scribe = with_a_checkpoint()
    storage, _, _ = opened(files)
    storage.checkpoint(scribe.meaning.snapshot(DELIVERED))
    scrubbed(Scrub(storage, 1 << 20, 1.0))
    assert not storage.checkpoint_due()
    files.rot(CHECKPOINT, 40, 0)
    scrubbed(Scrub(storage, 1 << 20, 1.0))
    assert storage.checkpoint_due()
    storage.checkpoint(scribe.meaning.snapshot(DELIVERED))
    assert opened(files)[1] == scribe.meaning.recovered(DELIVERED)


def test_a_pass_goes_on_behind_what_stays_damaged() -> None:
    files, scribe = with_a_checkpoint()
    storage, _, _ = opened(files)
    first, second = len(scribe.meaning.lines(2)), len(scribe.meaning.lines(18))
    files.rot(LINES, first, 0)
    files.rot(LINES, second, 0)
    found, _ = scrubbed(Scrub(storage, 1 << 20, 1.0))
    assert found == [Position(1, 2)] * 2 + [Position(1, 18)] * 2
