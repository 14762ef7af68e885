"""Damage to a disk: where a byte rots, where a log is torn, and which ends of nodes it brings about. Pure.

Both worlds draw from here, so that a disk of the simulation and one of a real process are hurt in the same places.
`contents` maps the names of a node's files, as nodeproc.disk.files has them, to their bytes.
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
    """What a refusal names where a file is missing: at least its folder."""
    return name.rpartition("/")[0]


def file_name(what: str, node: NodeId, names: Collection[str]) -> str:
    """The file that `messages`, `checkpoint` or `wal` (the newest of the log) means; "" where it is not there."""
    if what == "wal":
        numbers = _numbers(names)
        return wal.segment_name(numbers[-1]) if numbers else ""
    name = recovery.lines_name(node) if what == "messages" else checkpoint.NAME
    return name if name in names else ""


def draw_rot(contents: Mapping[str, bytes], what: str, node: NodeId, rng: random.Random) -> Rot | None:
    """Choose a byte that recovery has to look at, or an old one at which only reads look, and what becomes of it.

    Of the log it is one of those that were durable for certain, or of the last message that was delivered: other damage
    at the end can't be told from a torn tail (K2).
    Of the message log it is one of those that no checkpoint vouches for, or of the last that it vouches for: older ones
    are read only when somebody asks for them (K4).

    Args:
        what: as in Disk.rot.

    Returns:
        None where there is too little to damage, or damage already.
    """
    try:
        name, start, end = _looked_at(contents, what, node, rng)
    except CorruptionError:
        return None
    if start >= end:
        return None
    at = rng.randrange(start, end)
    before = contents[name][at]
    return Rot(name, at, before, before ^ 1 << rng.randrange(8))


def _looked_at(contents: Mapping[str, bytes], what: str, node: NodeId, rng: random.Random) -> tuple[str, int, int]:
    """A file, and from where to where recovery looks at its bytes."""
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
    """The last entry of the newest WAL file whose messages the message log holds."""
    name, lines = file_name("wal", node, contents), contents.get(recovery.lines_name(node), b"")
    if name:
        found = wal.scan(_number(name), name, contents[name])
        for entry in reversed(found.entries):
            if entry.end > entry.body_at and lines.endswith(found.data[entry.body_at : entry.end]):
                return name, entry.start, entry.end
    return "", 0, 0


def _durable(number: int, numbers: list[int], contents: Mapping[str, bytes]) -> int:
    """Bytes of a live WAL file that were durable for certain: all that the next one continues, or that a note says."""
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
    """What notes say of this file."""
    return max((claim.durable for each in scans for claim in wal.claims(each) if claim.segment == number), default=0)


def _scans(numbers: list[int], contents: Mapping[str, bytes]) -> list[wal.Scan]:
    """Of these WAL files.

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
    """The checkpoint, or what one would say that was made at the very start."""
    data = contents.get(checkpoint.NAME)
    known = None if data is None else checkpoint.read(SimFiles.holding({checkpoint.NAME: data}))
    return checkpoint.Checkpoint(0, "", False) if known is None else known


def draw_tear(contents: Mapping[str, bytes], synced: Mapping[str, int], rng: random.Random) -> Tear | None:
    """Choose where the log ends, in an entry that was not synced.

    Args:
        synced: bytes of each file that are durable.

    Returns:
        None where all entries are synced, or the log is damaged already.
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
    """Of a WAL file."""
    return int(name.rpartition("/")[2].partition(".")[0])


# ---- ends that a disk brings about ---------------------------------------------------------------


def loss_of(
    before: Mapping[str, bytes], synced: Mapping[str, int], after: Mapping[str, bytes], tear: Tear | None
) -> Loss:
    """What a power loss took, by the files before and after it.

    Args:
        synced: file name -> bytes at its start that were durable.
    """
    unsynced = sum(len(data) - synced[name] for name, data in before.items())
    lost, noise = _compared(before, after)
    return Loss(unsynced, lost, noise, tuple(sorted(before.keys() ^ after.keys())), tear)


def _compared(before: Mapping[str, bytes], after: Mapping[str, bytes]) -> tuple[int, int]:
    """Bytes lost and bytes of noise, over all files."""
    lost = noise = 0
    for name in before.keys() | after.keys():
        old, new = before.get(name, b""), after.get(name, b"")
        same = _same(old, new)
        lost += len(old) - same
        noise += len(new) - same if name in before else 0
    return lost, noise


def _same(old: bytes, new: bytes) -> int:
    """Length of the beginning that is the same."""
    low, high = 0, min(len(old), len(new))
    while low < high:
        middle = (low + high + 1) // 2
        if old[low:middle] == new[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low
