"""Which changes of names a power loss would leave: creations, renames, removals and links below the data directory.

The model is a file system with an ordered journal, as ext4: a sync of any file or folder makes all earlier changes of
names durable. A power loss undoes the changes since then, all of them or all behind a random one.

The supervisor makes each change itself and remembers how to undo it. A removed file is kept under a second name
outside the data directory until its removal is durable.
"""

from __future__ import annotations

import contextlib
import os
import stat
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from random import Random
from typing import NamedTuple

from lab.live.supervise import kernel
from lab.live.supervise.contents import Key, Tail

RENAME_EXCHANGE = 2


class Change(NamedTuple):
    """One change. undo: restores what was before. kept: the second name of a removed file; None: none was removed."""

    since: float
    words: str
    undo: Callable[[], None]
    kept: Path | None = None


class Names:
    """The changes of names that are not durable.

    Args:
        kept: a folder for removed files, on the file system of the data directory.
        on_freed: called with a file whose last name was removed durably.
    """

    def __init__(self, kept: Path, on_freed: Callable[[Key], None]) -> None:
        self._kept, self._on_freed = kept, on_freed
        self._changes: list[Change] = []
        self._number = 0

    @property
    def pending(self) -> int:
        """The number of changes that are not durable."""
        return len(self._changes)

    @property
    def oldest(self) -> float:
        """The monotonic time of the oldest change that is not durable; 0: there is none."""
        return self._changes[0].since if self._changes else 0.0

    # ---- the changes; each raises the OSError of the system --------------------------------------------------------

    def created(self, path: str) -> None:
        """A file was created by opening it."""
        self._note(f"create {path}", partial(os.unlink, path))

    def make_folder(self, path: str, mode: int) -> None:
        os.mkdir(path, mode)
        self._note(f"mkdir {path}", partial(os.rmdir, path))

    def remove_folder(self, path: str) -> None:
        mode = stat.S_IMODE(os.lstat(path).st_mode)
        os.rmdir(path)
        self._note(f"rmdir {path}", partial(os.mkdir, path, mode))

    def remove(self, path: str) -> None:
        kept = self._keep(path)
        try:
            os.unlink(path)
        except OSError:
            self._drop(kept)
            raise
        self._note(f"unlink {path}", partial(_put_back, kept, path), kept)

    def link(self, source: str, path: str, *, follow: bool) -> None:
        os.link(source, path, follow_symlinks=follow)
        self._note(f"link {path}", partial(os.unlink, path))

    def link_symbolically(self, target: str, path: str) -> None:
        os.symlink(target, path)
        self._note(f"symlink {path}", partial(os.unlink, path))

    def rename(self, old: str, new: str, flags: int) -> None:
        """flags: as for renameat2."""
        if flags & RENAME_EXCHANGE:
            kernel.rename(old, new, flags)
            self._note(f"exchange {old} {new}", partial(kernel.rename, old, new, RENAME_EXCHANGE))
            return
        if _is_same(old, new):
            kernel.rename(old, new, flags)  # POSIX: two names of one file both stay.
            return
        folder_mode = _folder_mode(new)
        kept = self._keep(new) if folder_mode is None else None
        try:
            kernel.rename(old, new, flags)
        except OSError:
            self._drop(kept)
            raise
        self._note(f"rename {old} {new}", partial(_rename_back, old, new, kept, folder_mode), kept)

    # ---- durability --------------------------------------------------------------------------------

    def commit(self) -> None:
        """All changes are durable now."""
        changes, self._changes = self._changes, []
        for change in changes:
            self._drop(change.kept)

    def lose(self, tail: Tail, rng: Random) -> list[str]:
        """Undo the changes that a power loss takes, latest first; return their words. The others become durable."""
        survive = 0 if tail == "none" else rng.randint(0, len(self._changes))
        lost, self._changes = self._changes[survive:], self._changes[:survive]
        for change in reversed(lost):
            # The lab may have damaged the disk meanwhile, and a folder may hold what no call was seen to make.
            with contextlib.suppress(OSError):
                change.undo()
        self.commit()
        return [change.words for change in lost]

    def _note(self, words: str, undo: Callable[[], None], kept: Path | None = None) -> None:
        self._changes.append(Change(time.monotonic(), words, undo, kept))

    def _keep(self, path: str) -> Path | None:
        """Give a file that will be removed a second name; return None if there is no such file."""
        self._number += 1
        kept = self._kept / str(self._number)
        try:
            os.link(path, kept, follow_symlinks=False)
        except OSError:  # The change itself will fail with the right error; or the file system has no links.
            return None
        return kept

    def _drop(self, kept: Path | None) -> None:
        if kept is None:
            return
        with contextlib.suppress(FileNotFoundError):
            found = kept.lstat()
            kept.unlink()
            if found.st_nlink == 1:
                self._on_freed((found.st_dev, found.st_ino))


def _is_same(old: str, new: str) -> bool:
    with contextlib.suppress(OSError):
        return os.path.samestat(os.lstat(old), os.lstat(new))
    return False


def _folder_mode(path: str) -> int | None:
    """Return the permissions of a folder; None if this is no folder."""
    with contextlib.suppress(OSError):
        mode = os.lstat(path).st_mode
        return stat.S_IMODE(mode) if stat.S_ISDIR(mode) else None
    return None


def _put_back(kept: Path | None, path: str) -> None:
    if kept is not None:
        kept.rename(path)


def _rename_back(old: str, new: str, kept: Path | None, folder_mode: int | None) -> None:
    os.rename(new, old)
    if folder_mode is not None:
        os.mkdir(new, folder_mode)
    _put_back(kept, new)
