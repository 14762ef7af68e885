"""What recovery makes of a cut, a changed or a missing file. Rules: K2, K3."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from zlib import crc32

import msgspec
import pytest

from lab.course.simfiles import PowerLost, SimFiles
from nodeproc.core.effects import Met, Promise
from nodeproc.core.events import Loaded, MessageLogRepaired, TailWrittenAnew, TornTailDropped
from nodeproc.core.messages import Record
from nodeproc.disk import wal
from nodeproc.entries import WAL_VERSION, Committed, Opening
from nodeproc.errors import CorruptionError
from nodeproc.records import PREFIX, encode_entry
from tests.nodeproc.disks import (
    CHECKPOINT,
    FIRST,
    IDENTITY,
    LINES,
    SECOND,
    Meaning,
    Scribe,
    a_short_life,
    all_lines,
    everything,
    opened,
)

HEADERS, INDEX = "wal/archive.headers", "wal/archive.index"


def refused(files: SimFiles, *words: str) -> None:
    """Recovery refuses the directory with a text that holds these words, and changes nothing."""
    before = files.contents()
    with pytest.raises(CorruptionError) as caught:
        opened(files)
    for word in (*words, "offset ", "nothing was changed", "--rebuild"):
        assert word in str(caught.value)
    assert files.contents() == before


def entry_ends(data: bytes, name: str = FIRST) -> list[int]:
    number = int(name.rpartition("/")[2].partition(".")[0])
    return [entry.end for entry in wal.scan(number, name, data).entries]


def durable_end(data: bytes) -> int:
    """What the notes of a first WAL file call durable of it."""
    return max(claim.durable for claim in wal.claims(wal.scan(1, FIRST, data)))


def of_the_first_version() -> tuple[SimFiles, Scribe]:
    """A short life, as the version before this one wrote it; the message log was not written yet."""
    files, scribe = SimFiles(), Scribe()
    storage, _, _ = opened(files)
    storage.write(
        [scribe.add(Promise(1, 1)), scribe.mark(1), scribe.batch("one", "two"), scribe.batch("three", "four")]
    )
    storage.write([scribe.batch("five")])
    opening = {
        "kind": "opening",
        "number": 1,
        "previous_bytes": 0,
        "node": 1,
        "identity": IDENTITY,
        "rebuilding": False,
    }
    head = msgspec.json.encode(opening)
    raws = [op.raw if isinstance(op, Record) else encode_entry(op) for op in scribe.ops if not isinstance(op, Met)]
    note = b'{"kind":"committed","seq_no":4}'
    parts = [
        PREFIX.pack(len(head), 0, crc32(head)),
        head,
        *raws,
        PREFIX.pack(len(note), 0, crc32(note)),
        note,
    ]
    files.put(FIRST, b"".join(parts))
    return files, scribe


def meaning_until(scribe: Scribe, data: bytes, cut: int) -> Meaning:
    """What a first WAL file cut there amounts to; notes of delivery are entries, but no operations."""
    whole = [entry for entry in wal.scan(1, FIRST, data).entries if entry.end <= cut]
    return Meaning.of(scribe.ops[: sum(not isinstance(entry.header, Opening | Committed) for entry in whole)])


# ---- K2: the WAL --------------------------------------------------------------------------------------


def test_a_wal_cut_at_any_byte_recovers_its_longest_whole_prefix() -> None:
    files, scribe = a_short_life()
    data = files.contents()[FIRST]
    ends = entry_ends(data)
    for cut in range(ends[0], len(data)):
        torn = files.copy()
        torn.put(FIRST, data[:cut])
        expected = meaning_until(scribe, data, cut)
        if expected.end.seq_no < 4:
            refused(torn, FIRST, LINES, f"the WAL ends at {expected.end}", "the delivered line")
            continue
        storage, recovered, events = opened(torn)
        assert recovered == expected.recovered(4), cut
        assert torn.contents()[LINES] == expected.lines(4), cut
        lost = cut - max(end for end in ends if end <= cut)
        dropped = [event for event in events if isinstance(event, TornTailDropped)]
        assert dropped == ([TornTailDropped(FIRST, lost)] if lost else [])
        assert everything(storage) == expected.log
        assert opened(torn)[1:] == (recovered, [Loaded(recovered.delivered_seq)])


def test_a_wal_cut_inside_its_first_entry_is_refused() -> None:
    files, _ = a_short_life()
    data = files.contents()[FIRST]
    for cut in range(entry_ends(data)[0]):
        torn = files.copy()
        torn.put(FIRST, data[:cut])
        refused(torn, FIRST, "first entry")


@pytest.mark.parametrize("flip", [0x01, 0x80, 0xFF])
def test_a_wal_changed_at_any_byte_is_refused_or_loses_what_no_note_calls_durable(flip: int) -> None:
    files, scribe = a_short_life()
    data = files.contents()[FIRST]
    durable = durable_end(data)
    ends = entry_ends(data)
    without_last = Meaning.of(scribe.ops[:-1]).recovered(4)
    for at in range(len(data)):
        damaged = files.copy()
        damaged.put(FIRST, data[:at] + bytes([data[at] ^ flip]) + data[at + 1 :])
        if at < durable:
            refused(damaged, FIRST)
        else:
            _, recovered, events = opened(damaged)
            assert recovered == without_last, at
            assert events[0] == TornTailDropped(FIRST, len(data) - max(end for end in ends if end <= at))


def test_any_change_in_a_segment_that_another_one_continues_is_refused() -> None:
    files, _ = a_short_life(segment_bytes=700)
    first, second = files.contents()[FIRST], files.contents()[SECOND]
    assert wal.segment_numbers(files.names("wal")) == [1, 2, 3]
    opened_by = wal.scan(2, SECOND, second).opening
    assert opened_by is not None
    for at in range(opened_by.previous_bytes):
        damaged = files.copy()
        damaged.put(FIRST, first[:at] + bytes([first[at] ^ 0x20]) + first[at + 1 :])
        refused(damaged, FIRST)
        damaged.put(FIRST, first[:at])
        refused(damaged, FIRST)
    opening = wal.scan(2, SECOND, second).entries[0].end
    for at in range(opening):
        damaged = files.copy()
        damaged.put(SECOND, second[:at] + bytes([second[at] ^ 0x20]) + second[at + 1 :])
        refused(damaged, SECOND)


@pytest.mark.parametrize("tail", [bytes(12), bytes(5000), b"\xff" * 40, b'{"kind":"mark"' * 50, b"\x01"])
def test_zeros_or_noise_behind_the_last_entry_are_a_torn_tail(tail: bytes) -> None:
    files, scribe = a_short_life()
    data = files.contents()[FIRST]
    files.put(FIRST, data + tail)
    _, recovered, events = opened(files)
    assert recovered == scribe.meaning.recovered(4)
    anew = TailWrittenAnew(SECOND, len(data) - durable_end(data))
    assert events == [TornTailDropped(FIRST, len(tail)), anew, Loaded(4)]
    assert opened(files)[2] == [Loaded(4)]


def test_an_entry_behind_a_hole_that_no_note_calls_durable_goes_with_it() -> None:
    """Pages reach the disk in any order: what was not synced may leave its end and not its beginning."""
    files, scribe = a_short_life()
    data = files.contents()[FIRST]
    torn = bytes(50) + scribe.batch("x").raw
    files.put(FIRST, data + torn)
    scribe.meaning.log.pop()
    _, recovered, events = opened(files)
    assert recovered == scribe.meaning.recovered(4)
    assert events[0] == TornTailDropped(FIRST, len(torn))


def test_a_hole_below_what_a_note_behind_it_calls_durable_is_refused() -> None:
    files, scribe = a_short_life()
    data = files.contents()[FIRST]
    lost = scribe.batch("synced").raw
    files.put(FIRST, data + bytes(len(lost)) + encode_entry(Committed(4, 1, len(data) + len(lost))))
    refused(files, FIRST, f"offset {len(data)}", f"{FIRST} says that {len(data) + len(lost)} bytes were durable")


def test_a_segment_of_the_first_version_with_an_entry_behind_a_hole_is_refused() -> None:
    """Its notes say nothing of what was durable."""
    files, scribe = of_the_first_version()
    data = files.contents()[FIRST]
    files.put(FIRST, data + b"noise" + scribe.batch("x").raw)
    refused(files, FIRST, f"offset {len(data)}", f"intact entry follows at offset {len(data) + 5}")


def test_a_directory_of_the_first_version_is_read_and_all_of_its_last_segment_written_anew() -> None:
    files, scribe = of_the_first_version()
    data = files.contents()[FIRST]
    storage, recovered, events = opened(files)
    assert recovered == scribe.meaning.recovered(4)
    assert events == [TailWrittenAnew(SECOND, len(data) - entry_ends(data)[0]), MessageLogRepaired(0, 4), Loaded(4)]
    assert everything(storage) == scribe.meaning.log


@pytest.mark.parametrize(
    "entry",
    [b'{"kind":"shrug","why":1}', b'{"kind":"promise","term":"many"}'],
    ids=["unknown kind", "unknown field type"],
)
def test_an_intact_entry_that_is_not_understood_is_refused(entry: bytes) -> None:
    """Another version wrote it, and may have promised something with it: it is no torn tail."""
    files, _ = a_short_life()
    data = files.contents()[FIRST]
    files.put(FIRST, data + PREFIX.pack(len(entry), 0, crc32(entry)) + entry)
    refused(files, FIRST, f"offset {len(data)}", "its CRC is right: another version wrote it")


def test_a_segment_of_a_later_version_is_refused() -> None:
    files, _ = a_short_life()
    files.put(FIRST, encode_entry(Opening(1, 0, 1, IDENTITY, False, version=WAL_VERSION + 1)))
    refused(files, FIRST, f"WAL version {WAL_VERSION + 1}, allowed: up to {WAL_VERSION}")


def test_a_record_out_of_place_is_refused() -> None:
    files, scribe = a_short_life()
    data = files.contents()[FIRST]
    scribe.batch("left out")
    files.put(FIRST, data + scribe.batch("behind it").raw)
    refused(files, FIRST, f"offset {len(data)}", "does not follow")


def test_a_note_of_delivery_beyond_the_log_is_refused() -> None:
    files, _ = a_short_life()
    files.put(FIRST, files.contents()[FIRST] + encode_entry(Committed(99)))
    refused(files, FIRST, "99 was delivered")


def test_a_missing_segment_is_refused() -> None:
    files, _ = a_short_life(segment_bytes=300)
    numbers = wal.segment_numbers(files.names("wal"))
    assert len(numbers) > 3
    for number in numbers:
        damaged = files.copy()
        damaged.remove(wal.segment_name(number))
        refused(damaged, "wal", "missing" if number > 1 else "needs 1")


def test_a_missing_newest_segment_is_refused_where_a_checkpoint_alone_names_it() -> None:
    files, scribe = SimFiles(), Scribe()
    storage, _, _ = opened(files, 600)
    storage.write([scribe.mark(1), scribe.batch("x" * 600)])
    storage.write([scribe.batch("behind it")])
    storage.checkpoint(scribe.meaning.snapshot(0))
    data = files.contents()[FIRST]
    files.put(FIRST, data[: entry_ends(data)[-2]])  # Without the note that names the next one.
    assert opened(files.copy())[1] == scribe.meaning.recovered(0)
    files.remove(SECOND)
    refused(files, SECOND, f"is missing; {CHECKPOINT} says")


def test_a_missing_segment_that_was_written_anew_is_refused() -> None:
    files, scribe = a_short_life()
    opened(files)
    files.remove(SECOND)
    refused(files, SECOND, f"is missing; {FIRST} says")
    operations = 0
    while SECOND not in files.contents():  # A kill as soon as it has its name, before the file before it says so.
        operations += 1
        files, scribe = a_short_life()
        files.crash_at = files.operations + operations
        with contextlib.suppress(PowerLost):
            opened(files)
    files.crash_at = None
    assert opened(files)[1] == scribe.meaning.recovered(4)
    files.remove(SECOND)
    refused(files, "wal", "are missing")


def test_a_segment_of_another_node_is_refused() -> None:
    files, _ = a_short_life()
    size = len(files.contents()[FIRST])
    files.put(SECOND, encode_entry(Opening(2, size, 1, "another identity", False)))
    refused(files, SECOND, "another identity")


def test_a_segment_under_the_wrong_name_is_refused() -> None:
    files, _ = a_short_life(segment_bytes=700)
    files.put(FIRST, files.contents()[SECOND])
    refused(files, FIRST, "allowed: the opening of segment 1")


def test_a_begun_segment_goes_with_the_torn_tail_before_it() -> None:
    files, scribe = a_short_life()
    data = files.contents()[FIRST]
    files.put(FIRST, data[:-3])
    begun = encode_entry(Opening(2, len(data), 1, "the-first-one", False)) + scribe.batch("x").raw
    files.put(SECOND + wal.NEXT, begun)
    _, recovered, events = opened(files)
    assert recovered == Meaning.of(scribe.ops[:-2]).recovered(4)
    assert TornTailDropped(SECOND + wal.NEXT, len(begun)) in events
    assert begun not in files.contents().values()


def test_a_begun_segment_counts_for_nothing_behind_a_whole_one_either() -> None:
    """Nothing in it was promised: that waits for its name."""
    files, scribe = a_short_life()
    size = len(files.contents()[FIRST])
    opening = encode_entry(Opening(2, size, 1, "the-first-one", False))
    files.put(SECOND + wal.NEXT, opening + scribe.batch("eight").raw)
    scribe.meaning.log.pop()
    storage, recovered, _ = opened(files)
    assert recovered == scribe.meaning.recovered(4)
    storage.write([scribe.batch("another eight")])
    assert opened(files)[1] == scribe.meaning.recovered(4)


def test_a_begun_segment_still_says_what_was_durable_before_it() -> None:
    files, _ = a_short_life()
    data = files.contents()[FIRST]
    begun = Opening(2, len(data), 1, "the-first-one", False, version=WAL_VERSION)
    note = encode_entry(Committed(4, 1, len(data)))
    files.put(SECOND + wal.NEXT, encode_entry(begun) + note)
    files.put(FIRST, data[:-3])
    refused(files, FIRST, f"{SECOND + wal.NEXT} says that {len(data)} bytes were durable")


# ---- K3: the message log ------------------------------------------------------------------------------


def test_a_message_log_cut_at_any_byte_is_written_again() -> None:
    files, scribe = a_short_life()
    lines = files.contents()[LINES]
    for cut in range(len(lines)):
        torn = files.copy()
        torn.put(LINES, lines[:cut])
        _, recovered, events = opened(torn)
        assert recovered == scribe.meaning.recovered(4)
        assert torn.contents()[LINES] == lines
        assert events[-2:] == [MessageLogRepaired(lines[:cut].count(b"\n"), 4), Loaded(4)]


def test_a_message_log_changed_at_any_byte_is_written_again() -> None:
    files, scribe = a_short_life()
    lines = files.contents()[LINES]
    for at in range(len(lines)):
        damaged = files.copy()
        damaged.put(LINES, lines[:at] + bytes([lines[at] ^ 1]) + lines[at + 1 :])
        storage, recovered, events = opened(damaged)
        assert recovered == scribe.meaning.recovered(4)
        assert all_lines(storage) == damaged.contents()[LINES] == lines
        assert events[-2] == MessageLogRepaired(lines[:at].count(b"\n"), 4)


def test_a_deleted_message_log_is_made_again_from_the_wal() -> None:
    files, scribe = a_short_life()
    lines = files.contents()[LINES]
    files.remove(LINES)
    _, recovered, events = opened(files)
    assert recovered == scribe.meaning.recovered(4)
    assert files.contents()[LINES] == lines
    assert events[-2:] == [MessageLogRepaired(0, 4), Loaded(4)]


def test_lines_that_the_wal_knows_are_delivered_without_a_note() -> None:
    files, scribe = a_short_life()
    lines = files.contents()[LINES]
    more = scribe.meaning.lines(6)[len(lines) :]
    files.put(LINES, lines + more)
    assert opened(files)[1] == scribe.meaning.recovered(6)


def test_one_line_of_a_batch_proves_all_of_it_delivered() -> None:
    files, scribe = a_short_life()
    lines, whole = files.contents()[LINES], scribe.meaning.lines(6)
    for cut in range(len(lines) + 1, len(whole)):
        torn = files.copy()
        torn.put(LINES, whole[:cut])
        recovered = opened(torn)[1]
        delivered = 6 if b"\n" in whole[len(lines) : cut] else 4
        assert recovered == scribe.meaning.recovered(delivered)
        assert torn.contents()[LINES] == scribe.meaning.lines(delivered)


def test_lines_that_the_wal_does_not_know_are_cut() -> None:
    files, scribe = a_short_life()
    lines = files.contents()[LINES]
    files.put(LINES, lines + b'{"seq_no":5,"term":1,"sender_id":9,"msg_id":"s-5"}\n')
    _, recovered, events = opened(files)
    assert recovered == scribe.meaning.recovered(4)
    assert files.contents()[LINES] == lines
    assert events[-2:] == [MessageLogRepaired(4, 4), Loaded(4)]


def test_a_delivered_line_that_the_wal_has_lost_is_refused_wherever_it_stands_behind_the_wals_last() -> None:
    files, scribe = a_short_life()
    whole = scribe.meaning.lines(7)
    lost = bytes(scribe.batch("eight", "nine").body)
    for noise in (b"", b"noise", bytes(3) + b"\n"):
        damaged = files.copy()
        damaged.put(LINES, whole + noise + lost)
        refused(damaged, FIRST, LINES, "the WAL ends at", "the delivered line")
    files.put(LINES, whole + lost[: lost.index(b"\n") - 1])  # A line without its end proves nothing.
    assert opened(files)[1].delivered_seq == 7


# ---- checkpoint and archive ---------------------------------------------------------------------------


def with_a_checkpoint(padding: int = 50) -> tuple[SimFiles, Scribe]:
    """Segments dropped, everything delivered up to 20, two more messages behind the checkpoint."""
    files, scribe = SimFiles(), Scribe()
    storage, _, _ = opened(files, 600)
    storage.write([scribe.mark(1)])
    for number in range(10):
        record = scribe.batch(f"message {number}", "y" * padding)
        storage.write([record])
        storage.sync()
        storage.deliver([record])
    storage.checkpoint(scribe.meaning.snapshot(20))
    record = scribe.batch("behind", "the checkpoint")
    storage.write([record])
    storage.sync()
    storage.deliver([record])
    assert FIRST not in files.contents()
    return files, scribe


def test_lines_behind_the_checkpoint_are_mended_and_those_before_it_are_not_read() -> None:
    files, scribe = with_a_checkpoint()
    whole = files.contents()[LINES]
    trusted = len(scribe.meaning.lines(20))
    for cut in range(trusted, len(whole)):
        torn = files.copy()
        torn.put(LINES, whole[:cut])
        recovered = opened(torn)[1]
        delivered = 22 if b"\n" in whole[trusted:cut] else 20
        assert recovered == scribe.meaning.recovered(delivered)
        assert torn.contents()[LINES] == scribe.meaning.lines(delivered)


def test_a_message_log_shorter_than_the_checkpoint_is_refused() -> None:
    files, scribe = with_a_checkpoint()
    whole = files.contents()[LINES]
    trusted = len(scribe.meaning.lines(20))
    for cut in range(0, trusted, 7):
        torn = files.copy()
        torn.put(LINES, whole[:cut])
        refused(torn, LINES, f"offset {cut}", f"{trusted} bytes of it are needed")
    files.remove(LINES)
    refused(files, LINES, "is missing")


@pytest.mark.parametrize(
    "change",
    [
        lambda lines: b"".join(lines[1:]),
        lambda lines: b"".join([lines[0], *lines]),
        lambda lines: b"".join(lines[:19]) + lines[18] + b"".join(lines[20:]),
    ],
    ids=["a line deleted", "a line doubled", "the last trusted line replaced"],
)
def test_a_message_log_with_shifted_lines_is_refused(change: Callable[[list[bytes]], bytes]) -> None:
    files, _ = with_a_checkpoint()
    files.put(LINES, change(files.contents()[LINES].splitlines(keepends=True)))
    refused(files, LINES)


def test_a_checkpoint_changed_at_any_byte_is_refused() -> None:
    files, _ = with_a_checkpoint()
    data = files.contents()[CHECKPOINT]
    for at in range(len(data)):
        damaged = files.copy()
        damaged.put(CHECKPOINT, data[:at] + bytes([data[at] ^ 4]) + data[at + 1 :])
        refused(damaged, CHECKPOINT)
        damaged.put(CHECKPOINT, data[:at])
        refused(damaged, CHECKPOINT)


def test_a_missing_checkpoint_is_refused_when_segments_were_dropped() -> None:
    files, _ = with_a_checkpoint()
    files.remove(CHECKPOINT)
    refused(files, "the start without a checkpoint needs 1")


def test_a_missing_checkpoint_costs_nothing_when_no_segment_was_dropped() -> None:
    files, scribe = a_short_life()
    storage, _, _ = opened(files)
    storage.close(scribe.meaning.snapshot(4))
    files.remove(CHECKPOINT)
    assert opened(files)[1] == scribe.meaning.recovered(4)


def test_a_checkpoint_without_segments_is_refused() -> None:
    files, _ = with_a_checkpoint()
    for name in files.names("wal"):
        if name.endswith(".wal"):
            files.remove(f"wal/{name}")
    refused(files, "no WAL file")


def test_a_wal_that_ends_before_the_checkpoint_is_refused() -> None:
    files, scribe = a_short_life()
    storage, _, _ = opened(files)
    storage.deliver(scribe.meaning.log[-3:])
    storage.close(scribe.meaning.snapshot(7))
    data = files.contents()[SECOND]
    for end in entry_ends(data, SECOND)[:-1]:
        files.put(SECOND, data[:end])
        refused(files, SECOND, f"{CHECKPOINT} says that {len(data)} bytes were durable")


def test_leftovers_of_a_checkpoint_are_cleared_away() -> None:
    files, scribe = with_a_checkpoint()
    clean = files.copy()
    files.put(FIRST, b"left behind")
    files.put("wal/checkpoint.new", b"half")
    for name in (HEADERS, INDEX):
        files.put(name, clean.contents()[name] + b"more")
    storage, recovered, _ = opened(files)
    assert recovered == opened(clean)[1] == scribe.meaning.recovered(22)
    assert files.contents() == clean.contents()
    assert everything(storage) == scribe.meaning.log


@pytest.mark.parametrize("name", [HEADERS, INDEX])
def test_an_archive_too_short_is_refused(name: str) -> None:
    files, _ = with_a_checkpoint()
    size = len(files.contents()[name])
    files.put(name, files.contents()[name][:-1])
    refused(files, name, f"offset {size - 1}")
    files.remove(name)
    refused(files, name)
