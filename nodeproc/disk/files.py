"""The few file operations that the storage needs, as protocols, and their implementation on a real disk.

Files are appended to and read at an offset. Bytes in the middle are only overwritten to repair damage, with the bytes
that were there before it. A new name is durable once its folder was synced, a new length once the file was synced.
Names are relative to the data directory and use forward slashes. All functions except pread() and read_named() raise
OSError as the system does; the storage turns it into its own errors.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Final, Protocol, TypeAlias

from nodeproc.errors import ConfigError, ReadFailed

Buffer: TypeAlias = bytes | bytearray | memoryview

IOV_MAX: Final = 1024
"""The largest number of buffers in one writev (Linux)."""


class File(Protocol):
    """One open file. One thread may append while others read and sync."""

    def append(self, buffers: Sequence[Buffer]) -> None:
        """Write all buffers at the end, or raise. After a failure the end of the file is unknown."""

    def pread(self, size: int, at: int) -> bytes:
        """Return `size` bytes from offset `at`, or fewer if the file ends before."""

    def size(self) -> int: ...

    def sync(self) -> None:
        """fdatasync: everything that was appended before the call is durable when it returns."""

    def truncate(self, size: int) -> None: ...

    def close(self) -> None: ...


class Source(Protocol):
    """A data directory, as recovery reads it."""

    def open(self, name: str, *, create: bool = False) -> File:
        """Open for reading and appending.

        Raises:
            FileNotFoundError: the file does not exist and `create` is false.
        """

    def names(self, folder: str) -> list[str]:
        """Return the names of the files in a folder, without the folder, ascending; empty if there is no folder."""

    def make_folder(self, folder: str) -> None:
        """Create the folder durably, unless it exists."""

    def where(self, name: str) -> str:
        """Return the file's path, for messages."""


class Files(Source, Protocol):
    """A data directory."""

    def sync_folder(self, folder: str) -> None:
        """Names created, renamed and removed in the folder before the call are durable when it returns."""

    def rename(self, old: str, new: str) -> None:
        """Rename a file in one step; a file called `new` is replaced."""

    def unlink(self, name: str) -> None: ...

    def rewrite(self, name: str, at: int, data: Buffer) -> None:
        """Overwrite bytes inside a file, durably. If a crash interrupts it, each byte is the old or the new one."""

    def close(self) -> None:
        """Release the directory's lock."""


def pread(file: File, size: int, at: int) -> bytes:
    """Read as File.pread does.

    Raises:
        ReadFailed: the system reported an error.
    """
    try:
        return file.pread(size, at)
    except OSError as error:
        raise ReadFailed(f"can't be read: {error.strerror or error}") from error


def read_named(where: str, file: File, size: int, at: int) -> bytes:
    """Read as pread() does; the error's text begins with the file's name `where`."""
    try:
        return pread(file, size, at)
    except ReadFailed as error:
        raise ReadFailed(error.what, where) from error


def sync_file(fd: int, is_folder: bool = False) -> None:
    """Return when everything written to this file or folder is on the disk.

    macOS has no fdatasync, and its fsync leaves the bytes in the drive's cache: there only F_FULLFSYNC makes them
    durable.
    """
    full = getattr(fcntl, "F_FULLFSYNC", None)
    if full is not None:
        fcntl.fcntl(fd, full)
    elif is_folder or not hasattr(os, "fdatasync"):
        os.fsync(fd)
    else:
        os.fdatasync(fd)


def sync_folder(path: Path) -> None:
    """Make the names in this folder durable."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        sync_file(fd, is_folder=True)
    finally:
        os.close(fd)


def make_folders(path: Path) -> None:
    """Create a folder and its missing parents, durably."""
    if not path.is_dir():
        make_folders(path.parent)
        path.mkdir(exist_ok=True)
        sync_folder(path.parent)


class RealFile:
    """A file on the disk; see File."""

    def __init__(self, path: Path, create: bool) -> None:
        flags = os.O_RDWR | os.O_APPEND | os.O_CLOEXEC | (os.O_CREAT if create else 0)
        self._fd = os.open(path, flags, 0o644)

    def append(self, buffers: Sequence[Buffer]) -> None:
        if len(buffers) > IOV_MAX:
            buffers = [b"".join(buffers)]
        written = os.writev(self._fd, buffers)
        if written < sum(map(len, buffers)):  # A nearly full disk writes a part; the next try reports the error.
            rest = memoryview(b"".join(buffers))[written:]
            while rest:
                written = os.write(self._fd, rest)
                rest = rest[written:]

    def pread(self, size: int, at: int) -> bytes:
        data = os.pread(self._fd, size, at)
        while len(data) < size:
            more = os.pread(self._fd, size - len(data), at + len(data))
            if not more:
                break
            data += more
        return data

    def size(self) -> int:
        return os.fstat(self._fd).st_size

    def sync(self) -> None:
        sync_file(self._fd)

    def truncate(self, size: int) -> None:
        os.ftruncate(self._fd, size)

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class RealFiles:
    """A data directory on the disk, locked for this process; see Files.

    Args:
        root: created if it is missing.

    Raises:
        ConfigError: the directory can't be created, written to or locked, or another process has locked it.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._lock = -1
        try:
            make_folders(root)
            self._lock = os.open(root / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self.close()
            reason = f"{error.strerror}; it must be a writable directory"
            if isinstance(error, BlockingIOError):
                reason = "in use by another process; each node needs its own"
            raise ConfigError(f"data directory {root}: {reason}") from None

    def open(self, name: str, *, create: bool = False) -> RealFile:
        return RealFile(self._root / name, create)

    def names(self, folder: str) -> list[str]:
        path = self._root / folder
        return sorted(each.name for each in path.iterdir() if each.is_file()) if path.is_dir() else []

    def make_folder(self, folder: str) -> None:
        make_folders(self._root / folder)

    def sync_folder(self, folder: str) -> None:
        sync_folder(self._root / folder)

    def rename(self, old: str, new: str) -> None:
        (self._root / old).rename(self._root / new)

    def unlink(self, name: str) -> None:
        (self._root / name).unlink()

    def rewrite(self, name: str, at: int, data: Buffer) -> None:
        # Not the file's own descriptor: it has O_APPEND, with which Linux writes at the end whatever the offset.
        fd = os.open(self._root / name, os.O_WRONLY | os.O_CLOEXEC)
        try:
            rest = memoryview(data)
            while rest:
                written = os.pwrite(fd, rest, at)
                rest, at = rest[written:], at + written
            sync_file(fd)
        finally:
            os.close(fd)

    def where(self, name: str) -> str:
        return str(self._root / name)

    def close(self) -> None:
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1
