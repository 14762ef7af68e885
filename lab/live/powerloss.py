"""A simulated power loss of a real disk: a dead node's files are cut back to what could be left of them.

The ledger's changes are replayed on the simulation's disk (lab.course.simfiles), which then loses its power; what it
leaves replaces the real files. So real and simulated disks lose data in the same ways.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

from lab.course import damage
from lab.course.simfiles import Range, SimFile, SimFiles, cut_ranges
from lab.live.inside.ledger import Ledger, Number
from lab.steps.damage import Loss
from nodeproc.disk import wal


def lose_power(data_dir: Path, ledger_path: Path, rng: random.Random, *, torn: bool = False) -> Loss:
    """Replace a dead node's files by what a power loss leaves of them. torn: see lab.course.damage.lose_power."""
    ledger = Ledger(ledger_path)
    try:
        ledger.undo_what_did_not_happen(lambda name: (data_dir / name).is_file())
        disk = as_simulated(data_dir, ledger)
        survivor, loss = damage.lose_power(disk, rng, torn=torn)
        after = survivor.contents()
        _write(data_dir, disk.contents(), after)
        ledger.begin_anew()
        for name, data in after.items():
            ledger.note_found(name, len(data))
    finally:
        ledger.close()
    return loss


def tearable(data_dir: Path, ledger_path: Path, rng: random.Random) -> bool:
    """Return whether an entry of a node's WAL is not durable yet. The node may run."""
    ledger = Ledger(ledger_path)
    try:
        paths = {name: data_dir / name for name in ledger.names if name.startswith(wal.FOLDER)}
        contents = {name: path.read_bytes() for name, path in paths.items() if path.is_file()}
        synced = {name: ledger.synced(ledger.names[name]) for name in contents}
    finally:
        ledger.close()
    return damage.draw_tear(contents, synced, rng) is not None


def as_simulated(data_dir: Path, ledger: Ledger) -> SimFiles:
    """Return a simulated disk with the same bytes and names, of which the same are durable."""
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
