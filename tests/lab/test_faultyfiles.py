"""The layer beneath a node's files: it fails as ordered, and its ledger knows what a power loss would leave."""

from __future__ import annotations

import errno
import random
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from lab.course.simfiles import SimFiles
from lab.live.children import child_environment
from lab.live.inside.faulty_files import FaultyFiles
from lab.live.inside.ledger import Ledger, NameChange
from lab.live.powerloss import as_simulated, lose_power, tearable
from lab.steps.orders import NEVER, Counts, Orders
from nodeproc.core.events import TornTailDropped
from nodeproc.disk.files import File, Files, RealFile
from nodeproc.disk.storage import Storage
from nodeproc.errors import WriteFailed
from tests.nodeproc.disks import CHECKPOINT, FIRST, IDENTITY, LINES, Scribe, all_lines, everything


class Disk:
    """A real directory and its ledger."""

    def __init__(self, path: Path) -> None:
        self.data, self.path, self.alive = path / "data", path / "ledger", True
        self.ledger = Ledger(self.path)
        self.files = FaultyFiles(self.data, self.ledger)

    def order(self, **orders: Any) -> None:
        lab = Ledger(self.path)
        lab.order(lab.orders()._replace(**orders))
        lab.close()

    def die(self) -> None:
        """The process is killed: what it has written stays, and nothing is open any more."""
        if self.alive:
            self.files.close()
            self.ledger.close()
            self.alive = False

    def restart(self) -> None:
        self.die()
        self.alive = True
        self.ledger = Ledger(self.path)
        self.files = FaultyFiles(self.data, self.ledger)

    def opened(self, segment_bytes: int = 1 << 20) -> Storage:
        return Storage.open(self.files, 1, segment_bytes=segment_bytes, new_identity=lambda: IDENTITY)[0]


@pytest.fixture
def disk(tmp_path: Path) -> Disk:
    return Disk(tmp_path)


# ---- orders --------------------------------------------------------------------------------------


def test_a_fresh_ledger_orders_nothing_and_has_counted_nothing(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    assert (ledger.orders(), ledger.counts(), ledger.names) == (Orders(), Counts(), {})


def test_orders_and_counts_pass_from_one_side_to_the_other(tmp_path: Path) -> None:
    lab, node = Ledger(tmp_path), Ledger(tmp_path)
    orders = Orders(0.25, 7, 8, True, False, True, -0.5, 3.0, 4.0, 90.0)
    lab.order(orders)
    node.write_counts(Counts(1, 2, 3, 4, 5, 6, 7))
    assert (node.orders(), lab.counts()) == (orders, Counts(1, 2, 3, 4, 5, 6, 7))


def test_a_full_disk_takes_what_fits_and_refuses_the_rest_until_there_is_room(disk: Disk) -> None:
    file = disk.files.open("a", create=True)
    file.append([b"12345"])
    disk.order(room=disk.ledger.counts().appended + 3)
    with pytest.raises(OSError) as full:
        file.append([b"67", b"89"])
    assert full.value.errno == errno.ENOSPC and str(disk.data / "a") in str(full.value)
    with pytest.raises(OSError):
        file.append([b"x"])
    assert (disk.data / "a").read_bytes() == b"12345678"
    assert disk.ledger.counts().refused == 2
    disk.order(room=NEVER)
    file.append([b"!"])
    assert file.size() == 9


@pytest.mark.parametrize("operation", ["sync", "append"])
def test_an_operation_that_is_to_fail_does_nothing(disk: Disk, operation: str) -> None:
    file = disk.files.open("a", create=True)
    file.append([b"1"])
    disk.order(**{f"fail_{operation}": True})
    with pytest.raises(OSError) as failed:
        file.sync() if operation == "sync" else file.append([b"2"])
    assert failed.value.errno == errno.EIO
    assert disk.ledger.counts().failed == 1
    assert (disk.data / "a").read_bytes() == b"1" and disk.ledger.synced(disk.ledger.names["a"]) == 0


def test_the_storage_gives_up_on_a_full_disk_and_goes_on_once_there_is_room(disk: Disk) -> None:
    scribe, storage = Scribe(), disk.opened()
    storage.write([scribe.mark(1), scribe.batch("one")])
    storage.sync()
    disk.order(room=disk.ledger.counts().appended + 10)
    with pytest.raises(WriteFailed, match="No space left"):
        storage.write([scribe.batch("two")])
    disk.order(room=NEVER)
    disk.restart()
    again, recovered, events = Storage.open(disk.files, 1)
    assert recovered.position.seq_no == 1 and any(isinstance(event, TornTailDropped) for event in events)
    assert [record.raw for record in everything(again)] == [op.raw for op in scribe.meaning.log[:-1]]


def test_a_slow_sync_is_counted_and_comes_to_its_end(disk: Disk) -> None:
    file = disk.files.open("a", create=True)
    file.append([b"1"])
    disk.order(slow_s=0.001)
    file.sync()
    assert disk.ledger.counts().slowed == 1 and disk.ledger.synced(disk.ledger.names["a"]) == 1


def test_a_disk_that_hangs_makes_nothing_durable_until_it_answers(disk: Disk) -> None:
    file = disk.files.open("a", create=True)
    file.append([b"1"])
    disk.order(hang=True)
    syncing = threading.Thread(target=file.sync)
    syncing.start()
    while disk.files.counts.synced < 1:
        pass
    file.append([b"2"])
    assert syncing.is_alive() and disk.ledger.synced(disk.ledger.names["a"]) == 0
    disk.order(hang=False)
    syncing.join()
    assert disk.ledger.synced(disk.ledger.names["a"]) == 2


def test_a_sync_that_was_under_way_when_the_disk_began_to_hang_does_not_return(
    disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else an entry could become durable between the moment it is found waiting and the power loss."""
    file = disk.files.open("a", create=True)
    file.append([b"1"])
    number = disk.ledger.names["a"]
    seen: list[int] = []

    def look(_: float) -> None:
        seen.append(disk.ledger.synced(number))
        disk.order(hang=False)

    monkeypatch.setattr(RealFile, "sync", lambda self: disk.order(hang=True))
    monkeypatch.setattr("lab.live.inside.faulty_files.time.sleep", look)
    file.sync()
    assert (seen, disk.ledger.synced(number)) == ([0], 1)


DIES = """
import sys
from pathlib import Path
from lab.live.inside.faulty_files import FaultyFiles
from lab.live.inside.ledger import Ledger

path = Path(sys.argv[1])
files = FaultyFiles(path / "data", Ledger(path / "ledger"))
file = files.open("a", create=True)
while True:
    file.append([b"1234567890"])
    file.sync()
"""


@pytest.mark.parametrize(("at", "left", "synced"), [(1, 0, 0), (2, 5, 0), (3, 10, 0), (4, 15, 10)])
def test_a_process_that_is_to_die_does_so_in_the_middle_of_that_operation(
    disk: Disk, tmp_path: Path, at: int, left: int, synced: int
) -> None:
    disk.order(die_at=at)
    disk.die()
    done = subprocess.run([sys.executable, "-c", DIES, str(tmp_path)], env=child_environment(), check=False)
    assert done.returncode == -9
    ledger = Ledger(disk.path)
    path = disk.data / "a"
    assert (path.stat().st_size if path.exists() else 0) == left
    assert ledger.counts().operations == at
    assert ledger.synced(1) == synced
    lose_power(disk.data, disk.path, random.Random(1))
    assert not path.exists()  # Its folder was never synced.


# ---- what is durable ------------------------------------------------------------------------------

Operation = tuple[str, int, int]
NAMES = ("wal/a", "wal/b", "logs/c")
FOLDERS = ("wal", "logs")
OPERATIONS: SearchStrategy[list[Operation]] = st.lists(
    st.tuples(
        st.sampled_from(("append", "append", "sync", "fail", "truncate", "rename", "unlink", "folder", "restart")),
        st.integers(0, 2),
        st.integers(0, 9),
    ),
    max_size=40,
)


def carry_out(files: Files, operation: Operation) -> None:
    """One operation, the same on every kind of disk; where there is no such file, it is made."""
    what, which, amount = operation
    name = NAMES[which]
    if what == "folder":
        files.sync_folder(FOLDERS[which % 2])
        return
    file: File = files.open(name, create=True)
    if what == "append":
        file.append([b"%d" % amount * amount, b"!"])
    elif what == "sync":
        file.sync()
    elif what == "truncate":
        file.truncate(max(file.size() - amount, 0))
    file.close()
    if what == "unlink":
        files.unlink(name)
    elif what == "rename" and which < 2:
        files.rename(name, NAMES[1 - which])


def fail_to_sync(real: Disk, simulated: SimFiles, name: str) -> None:
    def fail(what: str, name: str) -> None:
        if what == "sync":
            raise OSError(errno.EIO, "Input/output error", name)

    real.order(fail_sync=True)
    simulated.on_operation = fail
    for files in (real.files, simulated):
        with pytest.raises(OSError):
            files.open(name, create=True).sync()
    real.order(fail_sync=False)
    simulated.on_operation = None


@settings(max_examples=200, deadline=None)
@given(operations=OPERATIONS, seed=st.integers(0, 2**32))
def test_the_ledger_knows_of_a_real_disk_what_a_simulated_one_knows_of_itself(
    operations: list[Operation], seed: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    real, simulated = Disk(tmp_path_factory.mktemp("disk")), SimFiles()
    for folder in FOLDERS:
        real.files.make_folder(folder)
    for operation in operations:
        if operation[0] == "restart":
            real.restart()
            continue
        if operation[0] == "fail":
            fail_to_sync(real, simulated, NAMES[operation[1]])
            continue
        carry_out(real.files, operation)
        carry_out(simulated, operation)
    real.die()
    ledger = Ledger(real.path)
    disk = as_simulated(real.data, ledger)
    assert (disk.contents(), disk.synced()) == (simulated.contents(), simulated.synced())
    assert disk.crash(random.Random(seed)).contents() == simulated.crash(random.Random(seed)).contents()
    left = simulated.crash(random.Random(seed)).contents()
    lose_power(real.data, real.path, random.Random(seed))
    assert {str(path.relative_to(real.data)): path.read_bytes() for path in real.data.glob("*/*")} == left
    again = as_simulated(real.data, Ledger(real.path))
    assert again.crash(random.Random(seed + 1)).contents() == left  # All that is left is durable.


def a_life(disk: Disk, checkpoint: bool) -> tuple[Scribe, int]:
    """Batches, some of them synced and delivered, small WAL files; returns the last seq_no that is synced."""
    scribe, storage = Scribe(), disk.opened(segment_bytes=4096)
    storage.write([scribe.mark(1)])
    for number in range(60):
        record = scribe.batch(f"message {number} " + "x" * 200)
        storage.write([record])
        storage.sync()
        storage.deliver([record])
        if checkpoint and number % 20 == 19:
            storage.checkpoint(scribe.meaning.snapshot(number + 1))
    storage.write([scribe.batch("never"), scribe.batch("synced")])
    return scribe, 60


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("checkpoint", [False, True])
def test_what_sync_covered_survives_a_power_loss_of_a_real_disk(disk: Disk, checkpoint: bool, seed: int) -> None:
    scribe, synced = a_life(disk, checkpoint)
    disk.die()
    loss = lose_power(disk.data, disk.path, random.Random(seed))
    assert loss.effect and loss.unsynced_bytes > 0
    disk.restart()
    storage, recovered, _ = Storage.open(disk.files, 1)
    assert recovered.position.seq_no >= synced
    records = everything(storage)
    assert [record.raw for record in records] == [record.raw for record in scribe.meaning.log[: len(records)]]
    assert all_lines(storage) == scribe.meaning.lines(storage.delivered_seq)


@pytest.mark.parametrize("seed", range(12))
def test_a_torn_log_ends_in_the_middle_of_an_entry(disk: Disk, seed: int) -> None:
    storage, scribe = disk.opened(), Scribe()
    storage.write([scribe.mark(1), scribe.batch("one")])
    storage.sync()
    assert not tearable(disk.data, disk.path, random.Random(0))
    storage.write([scribe.batch("two"), scribe.batch("three")])
    assert tearable(disk.data, disk.path, random.Random(0))
    disk.die()
    loss = lose_power(disk.data, disk.path, random.Random(seed), torn=True)
    assert loss.tear is not None and loss.evidence()["torn"].startswith(FIRST)
    disk.restart()
    _, recovered, events = Storage.open(disk.files, 1)
    assert any(isinstance(event, TornTailDropped) for event in events) and 1 <= recovered.position.seq_no <= 2


def test_a_disk_on_which_all_is_synced_loses_nothing(disk: Disk) -> None:
    scribe, storage = Scribe(), disk.opened()
    storage.write([scribe.mark(1), scribe.batch("one")])
    storage.close()
    disk.ledger.close()
    loss = lose_power(disk.data, disk.path, random.Random(1))
    assert not loss.effect and loss.unsynced_bytes == 0


def test_what_the_lab_has_taken_does_not_come_back(disk: Disk) -> None:
    a_life(disk, checkpoint=True)
    disk.die()
    (disk.data / CHECKPOINT).unlink()
    lab = Ledger(disk.path)
    lab.note(NameChange("lost", CHECKPOINT))
    lab.close()
    for seed in range(8):
        lose_power(disk.data, disk.path, random.Random(seed))
        assert not (disk.data / CHECKPOINT).exists() and (disk.data / LINES).exists()


KILLED: dict[str, tuple[NameChange, Callable[[Disk], None]]] = {
    "make": (NameChange("make", "b", 2), lambda disk: None),
    "rename": (NameChange("rename", "b", old="a"), lambda disk: None),
    "unlink": (NameChange("unlink", "a"), lambda disk: disk.ledger.kept(1).hardlink_to(disk.data / "a")),
}


@pytest.mark.parametrize(("change", "meanwhile"), KILLED.values(), ids=KILLED.keys())
def test_a_change_that_was_noted_and_not_done_is_taken_back(
    disk: Disk, change: NameChange, meanwhile: Callable[[Disk], None]
) -> None:
    file = disk.files.open("a", create=True)
    file.append([b"1"])
    file.sync()
    disk.files.sync_folder(".")
    meanwhile(disk)
    disk.ledger.note(change)
    disk.restart()
    assert disk.ledger.names == {"a": 1}
    disk.die()
    loss = lose_power(disk.data, disk.path, random.Random(1))
    assert not loss.effect and (disk.data / "a").read_bytes() == b"1"
