"""Read a whole data directory while its node is down, and report all damage: python -m nodeproc verify DATA_DIR

Nothing is changed. A torn tail that a crash has left is not damage: the next start drops it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

from nodeproc.core.messages import START, NodeId, Position
from nodeproc.disk import archive, checkpoint, recovery, wal
from nodeproc.disk.archive import Archive
from nodeproc.disk.checkpoint import ArchiveEnd
from nodeproc.disk.files import File, Files, RealFile, RealFiles, Source, read_named
from nodeproc.disk.recovery import Found, Survey, lines_name
from nodeproc.errors import ConfigError, CorruptionError, ReadFailed, Unreadable

PIECE_BYTES: Final = 1 << 20


class Damage(NamedTuple):
    """A place whose bytes differ from what was written, or can't be read."""

    file: str
    at: int
    what: str
    """With the seq_nos of the messages concerned, if they are known."""

    def __str__(self) -> str:
        return f"{self.file}: offset {self.at}: {self.what}"


class Untouched:
    """The files of a data directory, for reading only; see Source. A file that a start would create reads as empty."""

    def __init__(self, inner: Files) -> None:
        self._inner = inner
        self.names, self.where = inner.names, inner.where

    def open(self, name: str, *, create: bool = False) -> File:
        try:
            return self._inner.open(name)
        except FileNotFoundError:
            if not create:
                raise
            return RealFile(Path(os.devnull), create=False)

    def make_folder(self, folder: str) -> None:
        pass


def existing(root: Path) -> RealFiles:
    """Open and lock the data directory of a node that is down.

    Raises:
        ConfigError: this is no node's data directory, or another process has locked it.
    """
    if not (root / wal.FOLDER).is_dir():
        raise ConfigError(f"{root}: not a node's data directory: it has no folder {wal.FOLDER}")
    return RealFiles(root)


def verify(root: Path) -> Iterator[Damage]:
    """Yield all damage, in the order in which it is read: WAL and checkpoint, archive, message log.

    Raises:
        ConfigError: see existing().
    """
    files = existing(root)
    try:
        with recovery.reading(files):
            yield from _all(Untouched(files))
    finally:
        files.close()


def _all(files: Source) -> Iterator[Damage]:
    node = recovery.node_of(files)
    survey = Survey(files, node)
    try:
        if survey.empty():
            return
        found = survey.run()
    except CorruptionError as error:
        yield from _refused(files, node, Damage(error.file, error.at, error.what))
    except ReadFailed as error:
        yield from _refused(files, node, Damage(error.file, 0, error.what))
    except OSError as error:
        yield Damage(files.where("."), 0, f"can't be read: {error.strerror or error}")
    else:
        yield from _archived(found.archive)
        yield from _lines(files, node, found)
    finally:
        survey.close()


def _refused(files: Source, node: NodeId, first: Damage) -> Iterator[Damage]:
    """Yield the damage for which a start refuses the directory, then all other damage that can be found despite it."""
    yield first
    names = files.names(wal.FOLDER)
    for number in wal.segment_numbers(names):
        for damage in _segment(files, wal.segment_name(number), number):
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


def _segment(files: Source, name: str, number: int) -> Iterator[Damage]:
    """Yield the damage in a WAL file: a broken entry counts if an intact one follows it."""
    file = files.open(name)
    try:
        scan = wal.scan(number, files.where(name), read_named(files.where(name), file, file.size(), 0))
        follow = next(wal.behind(scan), None)
        if follow is not None:
            yield Damage(scan.where, scan.end, f"{scan.broken}, but an intact entry follows at offset {follow.start}")
    except CorruptionError as error:
        yield Damage(error.file, error.at, error.what)
    except ReadFailed as error:
        yield Damage(error.file, 0, error.what)
    finally:
        file.close()


def _archived(kept: Archive) -> Iterator[Damage]:
    """Yield the damage in the records that are in the archive only: row, header or lines."""
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


def _lines(files: Source, node: NodeId, found: Found) -> Iterator[Damage]:
    """Yield the damage in the message log, as far as the WAL holds the same lines."""
    segments = {segment.number: segment for segment in found.segments}
    file, where = found.lines_file, files.where(lines_name(node))
    for place, record in zip(found.replay.index.places, found.replay.records, strict=True):
        if record is not None:
            break  # The survey has compared all lines after those that the checkpoint covers.
        name = files.where(wal.segment_name(place.segment))
        try:
            size = place.size - place.body_at
            body = read_named(name, segments[place.segment].file, size, place.at + place.body_at)
            same = read_named(where, file, size, place.lines_at) == body
        except ReadFailed as error:
            yield Damage(error.file, 0, error.what)
            continue
        if not same:
            messages = f"messages from seq_no {place.first} to {place.position.seq_no}"
            yield Damage(where, place.lines_at, f"{messages}: the lines are not those that were delivered")
    kept = found.checkpoint.lines_bytes + found.lines.kept_bytes
    if file.size() > kept:
        what = "the lines are not those of the WAL; the next start writes them again"
        yield Damage(where, kept, f"messages from seq_no {found.lines.kept_seq + 1} on: {what}")
