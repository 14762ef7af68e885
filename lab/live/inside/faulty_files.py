"""A node's files on a disk that obeys orders, with a ledger of what is durable.

FaultyFiles wraps the product's real files; a simulation has SimFiles in this place. It obeys the Orders of its ledger
and records what a power loss would leave. See lab.live.inside.ledger and lab.live.powerloss.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from lab.course.simfiles import blanked, cut_ranges
from lab.live.inside.ledger import Ledger, NameChange, Number, folder_of
from lab.steps.orders import NEVER, Orders
from nodeproc.disk.files import Buffer, File, Files

HANG_POLL_S = 0.002


class FaultyFile:
    """One open file; see nodeproc.disk.files.File."""

    def __init__(self, files: FaultyFiles, name: str, number: Number, inner: File) -> None:
        self._files, self._name, self._number, self._inner = files, name, number, inner

    def append(self, buffers: Sequence[Buffer]) -> None:
        size = sum(map(len, buffers))
        orders = self._files.begin(appended=size)
        if orders.fail_append:
            raise self._files.fault(errno.EIO, self._name, failed=1)
        if self._files.dies(orders):
            self._inner.append([b"".join(buffers)[: size // 2]])
            die()
        room = size if orders.room == NEVER else orders.room - (self._files.counts.appended - size)
        if room < size:
            if room > 0:
                self._inner.append([b"".join(buffers)[:room]])
            raise self._files.fault(errno.ENOSPC, self._name, refused=1)
        self._inner.append(buffers)

    def pread(self, size: int, at: int) -> bytes:
        return self._inner.pread(size, at)

    def size(self) -> int:
        return self._inner.size()

    def sync(self) -> None:
        files = self._files
        orders = files.begin(synced=1)
        if orders.fail_sync:
            files.failed_to_sync(self._number, self._inner.size())
            raise files.fault(errno.EIO, self._name, failed=1)
        if files.dies(orders):
            die()
        if orders.slow_s:
            files.count(slowed=1)
            until = time.monotonic() + orders.slow_s
            while (left := until - time.monotonic()) > 0 and files.orders().slow_s:  # Healed, it answers at once.
                time.sleep(min(left, HANG_POLL_S))
        while files.orders().hang:
            time.sleep(HANG_POLL_S)
        size = self._inner.size()  # What comes behind it while the system writes may or may not be durable.
        self._inner.sync()
        files.became_durable(self._number, size)

    def truncate(self, size: int) -> None:
        if self._files.dies(self._files.begin()):
            die()
        self._files.about_to_cut(self._number, self._inner, size)
        self._inner.truncate(size)

    def close(self) -> None:
        self._inner.close()


class FaultyFiles:
    """A data directory; see nodeproc.disk.files.Files.

    Args:
        inner: the real files.
        ledger: of the same directory; no other process writes it while this one is open.
    """

    def __init__(self, inner: Files, ledger: Ledger) -> None:
        self._inner, self._ledger = inner, ledger
        self._lock = threading.RLock()
        """Guards the ledger. It is held during changes of names and syncs of folders, so that their order is known."""
        self.counts = ledger.counts()
        ledger.undo_what_did_not_happen(self._exists)

    # ---- what happens at each operation ------------------------------------------------------------

    def orders(self) -> Orders:
        return self._ledger.orders()

    def begin(self, **more: int) -> Orders:
        """Count the beginning of an operation; return the orders for it."""
        self.count(operations=1, **more)
        return self._ledger.orders()

    def count(self, **more: int) -> None:
        with self._lock:
            added = {name: getattr(self.counts, name) + value for name, value in more.items()}
            self.counts = self.counts._replace(**added)
            self._ledger.write_counts(self.counts)

    def dies(self, orders: Orders) -> bool:
        """Return whether to kill the process in the middle of this operation."""
        return orders.die_at != NEVER and self.counts.operations >= orders.die_at

    def fault(self, code: int, name: str, **more: int) -> OSError:
        """Count and return the error of an operation that was ordered to fail."""
        self.count(**more)
        return OSError(code, os.strerror(code), self.where(name))

    def became_durable(self, number: Number, size: int) -> None:
        with self._lock:
            self._ledger.write_synced(number, size)
            self._ledger.drop_cut(number)

    def failed_to_sync(self, number: Number, size: int) -> None:
        """Record bytes that a failed fdatasync left unwritten: the system marks them clean and never writes them."""
        with self._lock:
            synced = self._ledger.synced(number)
            if synced < size:
                self._ledger.write_unwritten(number, [*self._ledger.unwritten(number), (synced, size)])

    def about_to_cut(self, number: Number, file: File, size: int) -> None:
        """Save the bytes that a truncation will remove, as long as a power loss may bring them back."""
        with self._lock:
            synced, unwritten = self._ledger.synced(number), self._ledger.unwritten(number)
            if unwritten:
                self._ledger.write_unwritten(number, cut_ranges(unwritten, size))
            if size < synced:
                earlier = self._ledger.cut(number)
                taken = blanked(file.pread(synced, 0), unwritten)[size:]
                if earlier is not None:
                    taken += earlier[1]
                self._ledger.keep_cut(number, size, taken)
                self._ledger.write_synced(number, size)

    # ---- the interface of nodeproc.disk.files.Files -----------------------------------------------------

    def open(self, name: str, *, create: bool = False) -> FaultyFile:
        with self._lock:
            if not self._exists(name):
                if create:
                    self._about_to()
                    self._ledger.note_new(name)
                return FaultyFile(self, name, self._ledger.names.get(name, 0), self._inner.open(name, create=create))
            inner = self._inner.open(name)
            if name not in self._ledger.names:
                self._ledger.note_found(name, inner.size())
            return FaultyFile(self, name, self._ledger.names[name], inner)

    def names(self, folder: str) -> list[str]:
        return self._inner.names(folder)

    def make_folder(self, folder: str) -> None:
        self._inner.make_folder(folder)

    def sync_folder(self, folder: str) -> None:
        with self._lock:
            self._about_to()
            self._inner.sync_folder(folder)
            self._ledger.note_synced(folder)

    def rename(self, old: str, new: str) -> None:
        with self._lock:
            self._about_to()
            self._keep(new)
            self._ledger.note(NameChange("rename", new, old=old))
            self._inner.rename(old, new)

    def unlink(self, name: str) -> None:
        with self._lock:
            self._about_to()
            self._keep(name)
            if name in self._ledger.names:
                self._ledger.note(NameChange("unlink", name))
            self._inner.unlink(name)

    def rewrite(self, name: str, at: int, data: Buffer) -> None:
        orders = self.begin()
        if orders.fail_append:
            raise self.fault(errno.EIO, name, failed=1)
        if self.dies(orders):
            self._inner.rewrite(name, at, memoryview(data)[: len(data) // 2])
            die()
        self._inner.rewrite(name, at, data)

    def where(self, name: str) -> str:
        return self._inner.where(name)

    def close(self) -> None:
        self._inner.close()

    # ---- names -------------------------------------------------------------------------------------

    def _about_to(self) -> None:
        if self.dies(self.begin()):
            die()

    def _exists(self, name: str) -> bool:
        return name.rpartition("/")[2] in self._inner.names(folder_of(name))

    def _keep(self, name: str) -> None:
        """Keep a file whose name will be removed, by another hard link."""
        number = self._ledger.names.get(name)
        if number is not None:
            with contextlib.suppress(FileExistsError):
                self._ledger.kept(number).hardlink_to(Path(self._inner.where(name)))


def die() -> None:
    """Kill this process with SIGKILL, so that it ends as abruptly as in a power loss."""
    os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(60)  # The signal comes at the next moment at which the system looks.
    raise AssertionError("survived SIGKILL")
