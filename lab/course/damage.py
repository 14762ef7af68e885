"""Damage to a disk: which byte rots, where a power loss tears the WAL, and what a power loss takes. Pure.

Both worlds use these functions, so that simulated and real disks are damaged in the same places. `contents` maps the
names of a node's files, as nodeproc.disk.files has them, to their bytes.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Mapping
from itertools import pairwise

from lab.course.simfiles import SimFiles
from lab.steps.damage import Loss, Rot, Tear
from nodeproc.core.messages import NodeId
from nodeproc.disk import archive, checkpoint, recovery, wal
from nodeproc.errors import CorruptionError


def lost_place(name: str) -> str:
    """Return what a node that refuses to start must name if this file is missing: at least its folder."""
    return name.rpartition("/")[0]


def file_name(what: str, node: NodeId, names: Collection[str]) -> str:
    """Return the file that `messages`, `checkpoint` or `wal` (its newest file) means; "" if there is none."""
    if what == "wal":
        numbers = _numbers(names)
        return wal.segment_name(numbers[-1]) if numbers else ""
    name = recovery.lines_name(node) if what == "messages" else checkpoint.NAME
    return name if name in names else ""


def draw_rot(contents: Mapping[str, bytes], what: str, node: NodeId, rng: random.Random) -> Rot | None:
    """Draw a byte to change and its new value. Recovery must notice the change; for `old_*`, a later read must.

    In the WAL the byte is one that was certainly durable, or one of the last delivered message: other damage at the end
    cannot be told from a torn tail (K2). In the message log it is one that no checkpoint covers, or one of the last
    that a checkpoint covers: recovery does not read older ones (K4).

    Args:
        what: as in Disk.rot.

    Returns:
        None if there is nothing to damage, or the data is damaged already.
    """
    try:
        name, start, end = _looked_at(contents, what, node, rng)
    except CorruptionError:
        return None
    if start >= end:
        return None
    return _rot(contents, name, start, end, rng)


def draw_rot_of_data(contents: Mapping[str, bytes], rng: random.Random) -> Rot | None:
    """Draw a bit of another program's data. Files are as likely as their size without zeros at the end.

    Returns:
        None if the files hold nothing but zeros.
    """
    sizes = {name: len(data.rstrip(b"\0")) for name, data in contents.items()}
    if not any(sizes.values()):
        return None
    [name] = rng.choices(list(sizes), list(sizes.values()))
    return _rot(contents, name, 0, sizes[name], rng)


def _rot(contents: Mapping[str, bytes], name: str, start: int, end: int, rng: random.Random) -> Rot:
    at = rng.randrange(start, end)
    before = contents[name][at]
    return Rot(name, at, before, before ^ 1 << rng.randrange(8))


def _looked_at(contents: Mapping[str, bytes], what: str, node: NodeId, rng: random.Random) -> tuple[str, int, int]:
    """Return a file, and the start and end of the bytes from which to draw."""
    if what == "wal":
        numbers = _numbers(contents)
        number = rng.choice(numbers) if numbers else 0
        return wal.segment_name(number), 0, _durable(number, numbers, contents)
    if what == "last":
        return _last_delivered(contents, node)
    known = _known(contents)
    vouched_for = max(0, known.lines_bytes - checkpoint.TAIL_BYTES)
    match what:
        case "old_lines":
            return recovery.lines_name(node), 0, min(known.archive.lines_bytes, vouched_for)
        case "old_headers":
            return archive.HEADERS, 0, known.archive.header_bytes
        case "old_index":
            return archive.INDEX, 0, known.archive.records * archive.ROW_BYTES
    name = file_name(what, node, contents)
    return name, vouched_for if what == "messages" else 0, len(contents.get(name, b""))


def _last_delivered(contents: Mapping[str, bytes], node: NodeId) -> tuple[str, int, int]:
    """Return the place of the last entry of the newest WAL file whose messages are the end of the message log."""
    name, lines = file_name("wal", node, contents), contents.get(recovery.lines_name(node), b"")
    if name:
        found = wal.scan(_number(name), name, contents[name])
        for entry in reversed(found.entries):
            if entry.end > entry.body_at and lines.endswith(found.data[entry.body_at : entry.end]):
                return name, entry.start, entry.end
    return "", 0, 0


def _durable(number: int, numbers: list[int], contents: Mapping[str, bytes]) -> int:
    """Return how many bytes of a WAL file were certainly durable: the next file or a claim says so (K2)."""
    if number == 0:
        return 0
    scans = _scans(numbers, contents)
    first = _known(contents).first_segment
    following = next((each.opening for each in scans if each.number == number + 1), None)
    if following is not None:
        return following.previous_bytes if number >= first else 0
    durable = _claimed(number, scans)
    return durable if durable <= scans[-1].end else 0


def _claimed(number: int, scans: list[wal.Scan]) -> int:
    """Return how many bytes of this WAL file the claims call durable."""
    return max((claim.durable for each in scans for claim in wal.claims(each) if claim.segment == number), default=0)


def _scans(numbers: list[int], contents: Mapping[str, bytes]) -> list[wal.Scan]:
    """Scan these WAL files.

    Raises:
        CorruptionError: one is damaged already.
    """
    names = [wal.segment_name(number) for number in numbers]
    scans = [wal.scan(number, name, contents[name]) for number, name in zip(numbers, names, strict=True)]
    for each, behind in pairwise(scans):
        if behind.opening is not None:
            wal.first_bytes(each, behind.opening.previous_bytes)
    return scans


def _known(contents: Mapping[str, bytes]) -> checkpoint.Checkpoint:
    """Return the checkpoint, or an empty one if there is none."""
    data = contents.get(checkpoint.NAME)
    known = None if data is None else checkpoint.read(SimFiles.holding({checkpoint.NAME: data}))
    return checkpoint.Checkpoint(0, "", False) if known is None else known


def draw_tear(contents: Mapping[str, bytes], synced: Mapping[str, int], rng: random.Random) -> Tear | None:
    """Draw the place, inside an entry that is not durable, at which the newest WAL file ends after a power loss.

    Args:
        synced: file name -> number of durable bytes at its start.

    Returns:
        None if all entries are durable, or the WAL is damaged already.
    """
    names = [wal.segment_name(number) for number in _numbers(contents)]
    names += [wal.segment_name(number) + wal.NEXT for number in _numbers(contents, wal.NEXT)]
    if not names:
        return None
    name = names[-1]
    try:
        found = wal.scan(_number(name), name, contents[name])
    except CorruptionError:
        return None
    if _claimed(found.number, [found]) > found.end:
        return None
    waiting = [entry for entry in found.entries if entry.start >= synced.get(name, 0)]
    if not waiting:
        return None
    entry = rng.choice(waiting)
    return Tear(name, rng.randrange(entry.start + 1, entry.end))


def _numbers(contents: Collection[str], suffix: str = "") -> list[int]:
    folder = wal.FOLDER + "/"
    return wal.segment_numbers([name.removeprefix(folder) for name in contents if name.startswith(folder)], suffix)


def _number(name: str) -> int:
    """Return the number in a WAL file's name."""
    return int(name.rpartition("/")[2].partition(".")[0])


# ---- power loss ----------------------------------------------------------------------------------


def lose_power(disk: SimFiles, rng: random.Random, *, torn: bool) -> tuple[SimFiles, Loss]:
    """Return what a power loss leaves of a disk, and what it took.

    Args:
        torn: the WAL must end in the middle of an entry, if one is not durable.
    """
    before, synced = disk.contents(), disk.synced()
    tear = draw_tear(before, synced, rng) if torn else None
    survivor = disk.crash(rng)
    if tear is not None:
        survivor.put(tear.name, before[tear.name][: tear.end])
    after = survivor.contents()
    unsynced = sum(len(data) - synced[name] for name, data in before.items())
    lost, noise = _compared(before, after)
    return survivor, Loss(unsynced, lost, noise, tuple(sorted(before.keys() ^ after.keys())), tear)


def _compared(before: Mapping[str, bytes], after: Mapping[str, bytes]) -> tuple[int, int]:
    """Return the bytes lost and the bytes of noise in all files."""
    lost = noise = 0
    for name in before.keys() | after.keys():
        old, new = before.get(name, b""), after.get(name, b"")
        same = _same(old, new)
        lost += len(old) - same
        noise += len(new) - same if name in before else 0
    return lost, noise


def _same(old: bytes, new: bytes) -> int:
    """Return the length of the common prefix."""
    low, high = 0, min(len(old), len(new))
    while low < high:
        middle = (low + high + 1) // 2
        if old[low:middle] == new[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low
