"""Damage to disks: it is drawn where recovery has to notice it, and it explains the ends that it brings about."""

from __future__ import annotations

import asyncio
import random
import time
from types import SimpleNamespace
from typing import cast

import pytest

from lab.course.damage import draw_rot, draw_tear, file_name, lost_place
from lab.course.machine import MachineDisk
from lab.course.simfiles import SimFiles
from lab.steps import Disk, power_loss
from lab.steps.damage import Causes
from lab.steps.machine import Machine, Run
from lab.words import Duration
from nodeproc.core.events import MessageLogRepaired, TornTailDropped
from nodeproc.disk import wal
from nodeproc.disk.storage import Storage
from nodeproc.errors import CorruptionError, Unreadable
from tests.nodeproc.disks import CHECKPOINT, FIRST, LINES, SECOND, Scribe, everything, opened, write_and_deliver

SEEDS = range(40)


def a_disk(*, checkpoint: bool, batches: int = 120) -> tuple[SimFiles, Storage, Scribe]:
    """A node's disk with so many delivered batches, the log synced, the checkpoint in front of the last ten."""
    files, scribe = SimFiles(), Scribe()
    storage, _, _ = opened(files)
    storage.write([scribe.mark(1)])
    for number in range(batches):
        record = scribe.batch(f"message {number}")
        storage.write([record])
        storage.deliver([record])
        if checkpoint and number == batches - 10:
            storage.checkpoint(scribe.meaning.snapshot(number + 1))
    storage.sync()
    return files, storage, scribe


def rotten(files: SimFiles, what: str, seed: int) -> tuple[SimFiles, str]:
    """The disk with a rotten byte, and the file that it is in."""
    contents = files.contents()
    rot = draw_rot(contents, what, 1, random.Random(seed))
    assert rot is not None and contents[rot.name][rot.at] == rot.before != rot.after
    damaged = bytearray(contents[rot.name])
    damaged[rot.at] = rot.after
    return SimFiles.holding({**contents, rot.name: bytes(damaged)}), rot.name


def an_archived_disk() -> SimFiles:
    """A node's disk with 240 messages, the older ones only in the message log and the archive."""
    files, scribe = SimFiles(), Scribe()
    storage, _, _ = opened(files, 4096)
    storage.write([scribe.mark(1)])
    write_and_deliver(storage, scribe, 120)
    storage.checkpoint(scribe.meaning.snapshot(240))
    return files


class ADisk(MachineDisk):
    def __init__(self) -> None:
        super().__init__(1)
        self._files = an_archived_disk()

    @property
    def files(self) -> SimFiles:
        return self._files


def test_rot_that_undoes_rot_leaves_nothing_to_repair() -> None:
    disk = ADisk()
    first = disk.rot("old_lines", random.Random(1))
    assert disk.rotten == [str(first)]
    again = disk.rot("old_lines", random.Random(1))
    assert first is not None and again == first._replace(before=first.after, after=first.before)
    assert disk.rotten == []
    assert disk.rot("old_lines", random.Random(1)) == first
    assert disk.rotten == [str(first)]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("what", ["wal", "checkpoint"])
def test_rot_of_the_log_or_the_checkpoint_is_refused_and_named(what: str, seed: int) -> None:
    files, name = rotten(a_disk(checkpoint=True)[0], what, seed)
    with pytest.raises(CorruptionError, match=name):
        opened(files)


@pytest.mark.parametrize("seed", SEEDS)
def test_rot_of_the_last_delivered_message_is_refused_and_named(seed: int) -> None:
    """No note calls it durable yet; the message log knows that it was."""
    files, name = rotten(a_disk(checkpoint=False, batches=3)[0], "last", seed)
    with pytest.raises(CorruptionError, match=name):
        opened(files)


@pytest.mark.parametrize("seed", SEEDS)
def test_rot_of_the_message_log_is_mended_where_no_checkpoint_vouches_for_it(seed: int) -> None:
    files, name = rotten(a_disk(checkpoint=False)[0], "messages", seed)
    _, _, events = opened(files)
    assert name == LINES and any(isinstance(event, MessageLogRepaired) for event in events)


@pytest.mark.parametrize("seed", SEEDS)
def test_rot_of_the_message_log_is_noticed_beside_a_checkpoint_too(seed: int) -> None:
    files, _ = rotten(a_disk(checkpoint=True)[0], "messages", seed)
    try:
        _, _, events = opened(files)
    except CorruptionError as error:
        assert LINES in str(error)
    else:
        assert any(isinstance(event, MessageLogRepaired) for event in events)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("what", ["old_lines", "old_headers", "old_index"])
def test_old_rot_is_where_no_restart_looks_and_a_read_finds_it(what: str, seed: int) -> None:
    files = an_archived_disk()
    damaged, _ = rotten(files, what, seed)
    found, recovered, _ = opened(damaged, 4096)
    assert recovered.delivered_seq == 240
    with pytest.raises(Unreadable):
        everything(found)


def test_no_node_may_end_of_old_rot() -> None:
    assert Disk(on=1, rot="old_lines").cause(3) is None
    assert not Disk(on=1, rot="old_index").needs_dead_node and Disk(on=1, rot="messages").needs_dead_node


@pytest.mark.parametrize("what", ["wal", "messages", "checkpoint", "old_lines", "old_headers", "old_index"])
def test_where_there_is_nothing_nothing_rots(what: str) -> None:
    assert draw_rot({}, what, 1, random.Random(1)) is None
    short, _, _ = a_disk(checkpoint=False, batches=1)
    assert what != "checkpoint" or draw_rot(short.contents(), what, 1, random.Random(1)) is None


def test_what_is_damaged_already_does_not_rot_again() -> None:
    files, _ = rotten(a_disk(checkpoint=True)[0], "wal", 1)
    assert draw_rot(files.contents(), "wal", 1, random.Random(2)) is None


@pytest.mark.parametrize("seed", SEEDS)
def test_a_tear_is_in_an_entry_that_waited_for_its_sync(seed: int) -> None:
    files, storage, scribe = a_disk(checkpoint=False, batches=5)
    synced = files.synced()
    assert draw_tear(files.contents(), synced, random.Random(seed)) is None
    storage.write([scribe.batch("eight"), scribe.batch("nine")])
    contents = files.contents()
    tear = draw_tear(contents, synced, random.Random(seed))
    assert tear is not None and tear.name == FIRST and synced[FIRST] < tear.end < len(contents[FIRST])
    entries = wal.scan(1, FIRST, contents[FIRST]).entries
    assert tear.end not in {entry.start for entry in entries}
    _, _, events = opened(SimFiles.holding({**contents, FIRST: contents[FIRST][: tear.end]}))
    assert any(isinstance(event, TornTailDropped) for event in events)


def test_a_damaged_log_is_not_torn() -> None:
    files, _ = rotten(a_disk(checkpoint=False)[0], "wal", 1)
    assert draw_tear(files.contents(), {}, random.Random(1)) is None


def test_a_file_that_was_begun_is_torn_where_there_is_one() -> None:
    files, scribe = SimFiles(), Scribe()
    storage, _, _ = opened(files, segment_bytes=4096)
    storage.write([scribe.mark(1), scribe.batch("x" * 5000)])
    storage.sync()
    synced = files.synced()
    storage.write([scribe.batch("behind")])
    begun = SECOND + wal.NEXT
    for seed in SEEDS:
        tear = draw_tear(files.contents(), synced, random.Random(seed))
        assert tear is not None and tear.name == begun and 0 < tear.end < len(files.contents()[begun])
        left = {**files.contents(), begun: files.contents()[begun][: tear.end]}
        _, recovered, events = opened(SimFiles.holding(left))
        assert any(isinstance(event, TornTailDropped) for event in events) and recovered.position.seq_no == 1


def test_a_node_has_to_name_the_damaged_file_or_the_folder_of_a_lost_one() -> None:
    names = [LINES, CHECKPOINT, FIRST, SECOND, SECOND.replace("2", "3") + wal.NEXT]
    assert [file_name(what, 1, names) for what in ("messages", "checkpoint", "wal")] == [LINES, CHECKPOINT, SECOND]
    assert [file_name(what, 1, ()) for what in ("messages", "checkpoint", "wal")] == ["", "", ""]
    assert lost_place(LINES) == "logs"


# ---- ends that a disk brings about ---------------------------------------------------------------

WRITE_FAILED, CORRUPTION = 4, 3


def causes(**disk: object) -> Causes:
    """Of node 1 after one step."""
    found, cause = Causes(), Disk(on=1, **disk).cause(5)  # type: ignore[arg-type]
    assert cause is not None and cause.step == 5
    found.add(1, cause)
    return found


@pytest.mark.parametrize(
    ("disk", "code", "what"),
    [
        ({"full": True}, WRITE_FAILED, "full"),
        ({"failing": "sync"}, WRITE_FAILED, "failing sync"),
        ({"rot": "wal"}, CORRUPTION, "rot of wal"),
        ({"lose": "checkpoint"}, CORRUPTION, "loss of checkpoint"),
    ],
)
def test_a_fault_explains_the_end_with_its_own_code_only(disk: dict[str, object], code: int, what: str) -> None:
    found = causes(**disk)
    cause = found.why(1, code, 1)
    assert cause is not None and cause.what == what
    assert [other for other in range(-9, 128) if found.why(1, other, 1)] == [code]
    assert found.why(2, code, 1) is None


def test_a_slow_disk_explains_no_end() -> None:
    assert Disk(on=1, slow=Duration(1)).cause(0) is None


def test_a_mended_disk_explains_the_end_of_the_process_that_it_had_failed_and_of_no_later_one() -> None:
    found = causes(full=True)
    found.mended(1, process=2)
    found.mended(1, process=3)
    assert found.why(1, WRITE_FAILED, 2) is not None
    assert found.why(1, WRITE_FAILED, 3) is None


def test_damage_stays_when_writes_work_again_and_goes_with_a_start_or_the_disk() -> None:
    found = causes(rot="wal")
    found.mended(1, process=1)
    assert found.why(1, CORRUPTION, 2) is not None
    found.survived(1)
    assert found.why(1, CORRUPTION, 2) is None
    found = causes(rot="wal")
    found.forget(1)
    assert found.why(1, CORRUPTION, 2) is None


class Hanging:
    """A machine whose log has an entry without its fdatasync only from the second time on that fdatasyncs stop."""

    def __init__(self) -> None:
        self.stops = 0

    def order(self, *, hang: bool) -> None:
        self.stops += hang

    def tearable(self) -> bool:
        return self.stops > 1


def test_a_torn_power_loss_tries_again_if_a_log_has_nothing_to_tear(monkeypatch: pytest.MonkeyPatch) -> None:
    """A leader that hangs sends nothing more, so a follower that has synced everything would wait in vain."""
    monkeypatch.setattr(power_loss, "TORN_TRY_S", 0.0)
    machine, run = Hanging(), SimpleNamespace(now=time.monotonic)
    asyncio.run(power_loss._wait_for_tears(cast(Run, run), [cast(Machine, machine)]))
    assert machine.stops == 2
