"""Read all of a data directory while its node is down, and say what is damaged: python -m nodeproc verify DATA_DIR

Changes nothing. A torn tail that a crash has left is no damage: the next start drops it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from nodeproc.core.messages import START, NodeId, Position
from nodeproc.disk import archive, checkpoint, recovery, wal
from nodeproc.disk.archive import Archive, ArchiveEnd
from nodeproc.disk.files import Buffer, File, Files, RealFiles, read_named
from nodeproc.disk.recovery import Found, Survey, lines_name
from nodeproc.errors import ConfigError, CorruptionError, ReadFailed, Unreadable

PIECE_BYTES: Final = 1 << 20
_LINES_NAME = re.compile(r"node_(\d+)_messages\.jsonl")


class Damage(NamedTuple):
    """One place that is not what was written."""

    file: str
    at: int
    what: str
    """With the seq_nos that are concerned, where they are known."""

    def __str__(self) -> str:
        return f"{self.file}: offset {self.at}: {self.what}"


class Absent:
    """A file that is not there, which a start would make: reads show nothing. See nodeproc.disk.files.File."""

    def pread(self, size: int, at: int) -> bytes:
        return b""

    def size(self) -> int:
        return 0

    def close(self) -> None:
        pass

    def append(self, buffers: Sequence[Buffer]) -> None:
        raise AssertionError(buffers)

    def sync(self) -> None:
        raise AssertionError("sync")

    def truncate(self, size: int) -> None:
        raise AssertionError(size)


class Untouched:
    """Files that can be read and not written; a file that would be made is Absent. See nodeproc.disk.files.Files."""

    def __init__(self, inner: Files) -> None:
        self._inner = inner
        self.names, self.where, self.close = inner.names, inner.where, inner.close

    def open(self, name: str, *, create: bool = False) -> File:
        try:
            return self._inner.open(name)
        except FileNotFoundError:
            if not create:
                raise
            return Absent()

    def make_folder(self, folder: str) -> None:
        pass

    def sync_folder(self, folder: str) -> None:
        raise AssertionError(folder)

    def rename(self, old: str, new: str) -> None:
        raise AssertionError(old)

    def unlink(self, name: str) -> None:
        raise AssertionError(name)

    def rewrite(self, name: str, at: int, data: Buffer) -> None:
        raise AssertionError(name)


def verify(root: Path) -> Iterator[Damage]:
    """Everything that is damaged, in the order in which it is read: WAL and checkpoint, archive, message log.

    Raises:
        ConfigError: no node's data directory, or one in use.
    """
    if not (root / wal.FOLDER).is_dir():
        raise ConfigError(f"{root}: no data directory of a node: it has no folder {wal.FOLDER}")
    files = RealFiles(root)
    try:
        yield from _all(Untouched(files))
    finally:
        files.close()


def _all(files: Files) -> Iterator[Damage]:
    node = _node_of(files)
    survey = Survey(files, node)
    try:
        if survey.empty():
            return
        found = survey.run()
    except CorruptionError as error:
        yield from _refused(files, node, _first_said(str(error)))
    except ReadFailed as error:
        yield from _refused(files, node, _unreadable(error))
    except OSError as error:
        yield Damage(files.where("."), 0, f"can't be read: {error.strerror or error}")
    else:
        yield from _archived(found.archive)
        yield from _lines(files, node, found)
    finally:
        survey.close()


def _node_of(files: Files) -> NodeId:
    """Whose directory it is: the message log's name tells."""
    nodes = [int(match[1]) for match in map(_LINES_NAME.fullmatch, files.names(recovery.LINES_FOLDER)) if match]
    if len(nodes) != 1:
        found = f"of nodes {nodes}" if nodes else "none"
        raise ConfigError(f"{files.where(recovery.LINES_FOLDER)}: one message log is needed, found: {found}")
    return nodes[0]


def _first_said(reason: str) -> Damage:
    """What a start that refuses the directory says."""
    match = re.fullmatch(r"(.*?): offset (\d+): (.*?)(; nothing was changed.*)?", reason)
    assert match is not None, reason
    return Damage(match[1], int(match[2]), match[3])


def _unreadable(error: ReadFailed) -> Damage:
    """The damage that read_named() tells of."""
    file, what, why = str(error).partition(": can't be read")
    return Damage(file, 0, what.removeprefix(": ") + why)


def _refused(files: Files, node: NodeId, first: Damage) -> Iterator[Damage]:
    """What a start says first, and all else that can be read without what it refuses."""
    yield first
    names = files.names(wal.FOLDER)
    for number in wal.segment_numbers(names):
        name = wal.segment_name(number)
        for damage in _segment(files, name, number):
            if damage[:2] != first[:2]:
                yield damage
    try:
        known = checkpoint.read(files)
    except (CorruptionError, ReadFailed):
        known = None
    if {Path(archive.HEADERS).name, Path(archive.INDEX).name} <= {*names}:
        opened = [files.open(name) for name in (archive.HEADERS, archive.INDEX, lines_name(node))]
        headers, index, lines = opened
        records = index.size() // archive.ROW_BYTES
        end = known.archive if known is not None else ArchiveEnd(records, headers.size(), START, lines.size())
        yield from _archived(Archive(headers, index, lines, lines_name(node), files.where, end))
        for file in opened:
            file.close()


def _segment(files: Files, name: str, number: int) -> Iterator[Damage]:
    """The broken entry of a WAL file, if intact ones follow it."""
    file = files.open(name)
    try:
        scan = wal.scan(number, files.where(name), read_named(files.where(name), file, file.size(), 0))
        follow = next(wal.behind(scan), None)
        if follow is not None:
            yield Damage(scan.where, scan.end, f"{scan.broken}, but an intact entry follows at offset {follow.start}")
    except CorruptionError as error:
        yield Damage(files.where(name), 0, str(error).partition("; nothing was changed")[0])
    except ReadFailed as error:
        yield _unreadable(error)
    finally:
        file.close()


def _archived(kept: Archive) -> Iterator[Damage]:
    """Every record that is in no WAL file any more: row, header, lines."""
    after = START
    while after < kept.end.position or kept.end.position == START:
        try:
            records = kept.read(after, PIECE_BYTES)
            if not records:
                return
            after = records[-1].position
        except Unreadable as error:
            place = Position(*error.after)
            behind = kept.behind(place)
            last = f"to {behind.seq_no}" if behind.seq_no > place.seq_no else "on"
            yield Damage(error.file, error.at, f"messages from seq_no {place.seq_no + 1} {last}: {error.what}")
            if behind <= place:
                return
            after = behind


def _lines(files: Files, node: NodeId, found: Found) -> Iterator[Damage]:
    """The message log, as far as the WAL holds what must stand in it."""
    segments = {segment.number: segment for segment in found.segments}
    file, where = found.lines_file, files.where(lines_name(node))
    for place, record in zip(found.replay.index.places, found.replay.records, strict=True):
        if record is not None:
            break  # What no checkpoint vouches for was compared by the survey.
        name = files.where(wal.segment_name(place.segment))
        try:
            size = place.size - place.body_at
            body = read_named(name, segments[place.segment].file, size, place.at + place.body_at)
            same = read_named(where, file, size, place.lines_at) == body
        except ReadFailed as error:
            yield _unreadable(error)
            continue
        if not same:
            what = "the lines are not those that were delivered"
            yield Damage(
                where, place.lines_at, f"messages from seq_no {place.first} to {place.position.seq_no}: {what}"
            )
    kept = found.checkpoint.lines_bytes + found.lines.kept_bytes
    if file.size() > kept:
        what = "the lines are not those of the WAL; the next start writes them again"
        yield Damage(where, kept, f"messages from seq_no {found.lines.kept_seq + 1} on: {what}")
