"""The few file operations that storage is built on, as protocols, and their real form.

Files are appended to and read at an offset; only damage is overwritten in place, by what stood there before it. A name
or a length is durable only when the folder or the file was synced after it changed. Names are relative to the data
directory, with forward slashes. Everything here but pread() raises OSError as the system does; storage turns it into
its own errors.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, TypeAlias

from nodeproc.errors import ConfigError, ReadFailed

Buffer: TypeAlias = bytes | bytearray | memoryview

IOV_MAX = 1024
"""Buffers that one writev takes (Linux)."""


class File(Protocol):
    """One open file. append() and everything else may be called from different threads."""

    def append(self, buffers: Sequence[Buffer]) -> None:
        """Write all buffers at the end, or raise; what a failed append left there is unknown."""

    def pread(self, size: int, at: int) -> bytes:
        """Up to `size` bytes from offset `at`; fewer only where the file ends."""

    def size(self) -> int: ...

    def sync(self) -> None:
        """fdatasync: all that was appended before the call is durable when it returns."""

    def truncate(self, size: int) -> None: ...

    def close(self) -> None: ...


class Files(Protocol):
    """A data directory."""

    def open(self, name: str, *, create: bool = False) -> File:
        """Open for reading and appending.

        Raises:
            FileNotFoundError: it is not there and `create` is false.
        """

    def names(self, folder: str) -> list[str]:
        """Names of the files in a folder, without the folder, ascending; empty where there is no folder."""

    def make_folder(self, folder: str) -> None:
        """Make the folder, durably, where it is missing."""

    def sync_folder(self, folder: str) -> None:
        """Names created, renamed and removed in the folder before the call are durable when it returns."""

    def rename(self, old: str, new: str) -> None:
        """Replace `new` by `old` in one step."""

    def unlink(self, name: str) -> None: ...

    def rewrite(self, name: str, at: int, data: Buffer) -> None:
        """Overwrite bytes in the middle of a file, durably. Cut short, each of them may be the old or the new one."""

    def where(self, name: str) -> str:
        """The name as a human finds it, for messages."""

    def close(self) -> None:
        """Let another process have the directory."""


def pread(file: File, size: int, at: int) -> bytes:
    """As File.pread.

    Raises:
        ReadFailed: the disk gave an error.
    """
    try:
        return file.pread(size, at)
    except OSError as error:
        raise ReadFailed(f"can't be read: {error.strerror or error}") from error


def read_named(where: str, file: File, size: int, at: int) -> bytes:
    """As pread; the error begins with the file's name."""
    try:
        return pread(file, size, at)
    except ReadFailed as error:
        raise ReadFailed(f"{where}: {error}") from error


def sync_file(fd: int, is_folder: bool = False) -> None:
    """Return when everything written to this file or folder is on the disk.

    macOS has no fdatasync, and its fsync leaves the bytes in the drive's cache: only F_FULLFSYNC promises something.
    """
    full = getattr(fcntl, "F_FULLFSYNC", None)
    if full is not None:
        fcntl.fcntl(fd, full)
    elif is_folder or not hasattr(os, "fdatasync"):
        os.fsync(fd)
    else:
        os.fdatasync(fd)


class RealFile:
    """A file on the disk; see File."""

    def __init__(self, path: Path, create: bool) -> None:
        flags = os.O_RDWR | os.O_APPEND | os.O_CLOEXEC | (os.O_CREAT if create else 0)
        self._fd = os.open(path, flags, 0o644)

    def append(self, buffers: Sequence[Buffer]) -> None:
        if len(buffers) > IOV_MAX:
            buffers = [b"".join(buffers)]
        written = os.writev(self._fd, buffers)
        if written < sum(map(len, buffers)):  # A nearly full disk takes a part first and says why at the next try.
            rest = memoryview(b"".join(buffers))[written:]
            while rest:
                rest = rest[os.write(self._fd, rest) :]

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
    """A data directory on the disk, held by one process at a time; see Files.

    Raises:
        ConfigError: the directory can't be made, written to, or is in use by another process.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        try:
            root.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(root / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise ConfigError(f"data directory {root}: {error.strerror}; it must be a writable directory") from None
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(self._lock)
            raise ConfigError(f"data directory {root}: in use by another process; each node needs its own") from None

    def open(self, name: str, *, create: bool = False) -> RealFile:
        return RealFile(self._root / name, create)

    def names(self, folder: str) -> list[str]:
        path = self._root / folder
        return sorted(each.name for each in path.iterdir() if each.is_file()) if path.is_dir() else []

    def make_folder(self, folder: str) -> None:
        path = self._root / folder
        if not path.is_dir():
            path.mkdir()
            self.sync_folder(".")

    def sync_folder(self, folder: str) -> None:
        fd = os.open(self._root / folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            sync_file(fd, is_folder=True)
        finally:
            os.close(fd)

    def rename(self, old: str, new: str) -> None:
        (self._root / old).rename(self._root / new)

    def unlink(self, name: str) -> None:
        (self._root / name).unlink()

    def rewrite(self, name: str, at: int, data: Buffer) -> None:
        # A descriptor of its own: with O_APPEND, as the file has, Linux writes at the end whatever the offset.
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
