"""What a power loss leaves of a dead node's files: they are cut back to what its ledger calls durable, and some more.

The ledger's changes are played again on the simulation's disk (simfiles.py), which then loses its power; what it
would leave is written over the real files. So a real disk and a simulated one forget in the same ways: a prefix of the
bytes that were not synced stays, sometimes with zeros or noise behind it, and a prefix of the names that were changed
and not synced.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

from lab.course.damage import draw_tear, loss_of
from lab.course.simfiles import Range, SimFile, SimFiles, cut_ranges
from lab.live.inside.ledger import Ledger, Number
from lab.steps.damage import Loss
from nodeproc.disk import wal


def lose_power(data_dir: Path, ledger_path: Path, rng: random.Random, *, torn: bool = False) -> Loss:
    """Cut a dead node's files back, as draws decide.

    Args:
        torn: its log shall end in the middle of an entry, where one is not synced.
    """
    ledger = Ledger(ledger_path)
    try:
        ledger.undo_what_did_not_happen(lambda name: (data_dir / name).is_file())
        disk = as_simulated(data_dir, ledger)
        before, synced = disk.contents(), disk.synced()
        tear = draw_tear(before, synced, rng) if torn else None
        survivor = disk.crash(rng)
        if tear is not None:
            survivor.put(tear.name, before[tear.name][: tear.end])
        after = survivor.contents()
        _write(data_dir, before, after)
        ledger.begin_anew()
        for name, data in after.items():
            ledger.note_found(name, len(data))
    finally:
        ledger.close()
    return loss_of(before, synced, after, tear)


def tearable(data_dir: Path, ledger_path: Path, rng: random.Random) -> bool:
    """Whether an entry of a node's log waits for its fdatasync. The node may run, and write on."""
    ledger = Ledger(ledger_path)
    try:
        paths = {name: data_dir / name for name in ledger.names if name.startswith(wal.FOLDER)}
        contents = {name: path.read_bytes() for name, path in paths.items() if path.is_file()}
        synced = {name: ledger.synced(ledger.names[name]) for name in contents}
    finally:
        ledger.close()
    return draw_tear(contents, synced, rng) is not None


def as_simulated(data_dir: Path, ledger: Ledger) -> SimFiles:
    """A simulated disk that holds the same bytes and names, durable and not."""
    disk = SimFiles()
    files: dict[Number, SimFile] = {}
    for change in ledger.changes:
        match change.do:
            case "make":
                files[change.number] = disk.open(change.name, create=True)
            case "found":
                disk.put(change.name, b"")
                files[change.number] = disk.open(change.name)
            case "rename":
                disk.rename(change.old, change.name)
            case "unlink":
                disk.unlink(change.name)
            case "folder":
                disk.sync_folder(change.name)
            case "lost":
                disk.remove(change.name)
    places = {number: data_dir / name for name, number in ledger.names.items()}
    for number, file in files.items():
        path = places.get(number, ledger.kept(number))
        if path.is_file():
            _fill(file, path.read_bytes(), ledger.synced(number), ledger.cut(number), ledger.unwritten(number))
    return disk


def _fill(file: SimFile, data: bytes, synced: int, cut: tuple[int, bytes] | None, unwritten: Sequence[Range]) -> None:
    if cut is None:
        file.append([data[:synced]])
        file.sync()
    else:
        synced, taken = cut
        file.append([data[:synced], taken])
        file.sync()
        file.never_written(cut_ranges(unwritten, synced))
        file.truncate(synced)
    file.append([data[synced:]])
    file.never_written(unwritten)


def _write(data_dir: Path, before: dict[str, bytes], after: dict[str, bytes]) -> None:
    for name in before:
        if name not in after:
            (data_dir / name).unlink()
    for name, data in after.items():
        if before.get(name) != data:
            # A new file: the old one may be the content of a name that is kept elsewhere.
            (data_dir / name).unlink(missing_ok=True)
            (data_dir / name).write_bytes(data)
