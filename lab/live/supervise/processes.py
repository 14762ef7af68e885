"""What the supervisor reads of a supervised process from /proc, and where its data files stand."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from lab.live.supervise.kernel import read_path

AT_FDCWD = 0xFFFFFF9C
"""-100 as an unsigned 32 bit number."""


def status_of(thread: int) -> dict[str, str]:
    """Return the fields of /proc/THREAD/status.

    Raises:
        OSError: the thread is gone.
    """
    lines = Path(f"/proc/{thread}/status").read_text().splitlines()
    return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}


def mapped_at(thread: int, address: int) -> tuple[str, int] | None:
    """Return the file that is mapped at an address, and the offset in it; None if none is."""
    for line in Path(f"/proc/{thread}/maps").read_text().splitlines():
        area, _, offset, _, _, *path = line.split(maxsplit=5)
        start, end = (int(number, 16) for number in area.split("-"))
        if start <= address < end:
            return (path[0], int(offset, 16) + address - start) if path else None
    return None


@contextlib.contextmanager
def umask_of(thread: int) -> Iterator[None]:
    """Create files with the permissions that the program would give them."""
    before = os.umask(int(status_of(thread)["Umask"], 8))
    try:
        yield
    finally:
        os.umask(before)


class Paths:
    """Finds out which paths of a process name data files.

    Args:
        root: the data directory.
        exempt: beginnings of names below it that are no data files, such as `events.jsonl` or `logs/`.
    """

    def __init__(self, root: Path, exempt: Sequence[str] = ()) -> None:
        self.root = os.path.realpath(root)
        self._prefix = self.root + "/"
        self._exempt = tuple(self._prefix + name for name in exempt)

    def is_data(self, path: str) -> bool:
        """Return whether an absolute path without symbolic links names a data file."""
        return path.startswith(self._prefix) and not f"{path}/".startswith(self._exempt)

    def argument(self, thread: int, folder_fd: int, address: int) -> str:
        """Return the absolute path that a system call names, with links and dots as they are."""
        path = read_path(thread, address)
        if path.startswith("/proc/self/"):
            return f"/proc/{thread}/{path.removeprefix('/proc/self/')}"
        if path.startswith("/"):
            return path
        number = folder_fd & 0xFFFFFFFF
        folder = f"/proc/{thread}/" + ("cwd" if number == AT_FDCWD else f"fd/{number}")
        return f"{os.readlink(folder)}/{path}" if path else os.readlink(folder)

    def has_content(self, path: str) -> bool:
        """Return whether a path, with symbolic links followed, names a data file."""
        return self.is_data(path if self._is_plain(path) else os.path.realpath(path))

    def has_folder(self, path: str) -> bool:
        """Return whether a folder is the data directory, or holds data files below it."""
        real = os.path.realpath(path)
        return real == self.root or self.is_data(real)

    def has_name(self, path: str) -> bool:
        """Return whether the name itself, a symbolic link or not, is one of a data file."""
        folder, _, name = path.rstrip("/").rpartition("/")
        return self.is_data(path if self._is_plain(path) else f"{os.path.realpath(folder)}/{name}")

    def _is_plain(self, path: str) -> bool:
        """Return whether a path stands below the data directory as it is written."""
        return path.startswith(self._prefix) and "/." not in path
