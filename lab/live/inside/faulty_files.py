"""A node's files on a disk that orders control (lab.steps.orders), with a ledger of what is durable.

FaultyFiles replaces the product's RealFiles, as SimFiles does in a simulation. It obeys the Orders of its ledger
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
from nodeproc.disk.files import Buffer, RealFile, RealFiles

HANG_POLL_S = 0.002


class FaultyFile(RealFile):
    """One open file; see nodeproc.disk.files.File."""

    number: Number

    def __init__(self, files: FaultyFiles, name: str, create: bool) -> None:
        super().__init__(Path(files.where(name)), create)
        self._files, self._name = files, name

    def append(self, buffers: Sequence[Buffer]) -> None:
        size = sum(map(len, buffers))
        orders = self._files.begin(appended=size)
        if orders.fail_append:
            raise self._files.fault(errno.EIO, self._name, failed=1)
        if self._files.dies(orders):
            super().append([b"".join(buffers)[: size // 2]])
            die()
        room = size if orders.room == NEVER else orders.room - (self._files.counts.appended - size)
        if room < size:
            if room > 0:
                super().append([b"".join(buffers)[:room]])
            raise self._files.fault(errno.ENOSPC, self._name, refused=1)
        super().append(buffers)

    def sync(self) -> None:
        files = self._files
        orders = files.begin(synced=1)
        if orders.fail_sync:
            files.failed_to_sync(self.number, self.size())
            raise files.fault(errno.EIO, self._name, failed=1)
        if files.dies(orders):
            die()
        if orders.slow_s:
            files.count(slowed=1)
            until = time.monotonic() + orders.slow_s
            while (left := until - time.monotonic()) > 0 and files.orders().slow_s:  # Healed, it answers at once.
                time.sleep(min(left, HANG_POLL_S))
        self._hang()
        size = self.size()  # What comes behind it while the system writes may or may not be durable.
        super().sync()
        self._hang()  # An fdatasync that was under way when the order came does not return either.
        files.became_durable(self.number, size)

    def _hang(self) -> None:
        while self._files.orders().hang:
            time.sleep(HANG_POLL_S)

    def truncate(self, size: int) -> None:
        if self._files.dies(self._files.begin()):
            die()
        self._files.about_to_cut(self, size)
        super().truncate(size)


class FaultyFiles(RealFiles):
    """A data directory; see nodeproc.disk.files.Files.

    Args:
        ledger: of the same directory; no other process writes it while this one is open.
    """

    def __init__(self, root: Path, ledger: Ledger) -> None:
        super().__init__(root)
        self._ledger = ledger
        self._guard = threading.RLock()
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
        with self._guard:
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
        with self._guard:
            self._ledger.write_synced(number, size)
            self._ledger.drop_cut(number)

    def failed_to_sync(self, number: Number, size: int) -> None:
        """Record bytes that a failed fdatasync left unwritten: the system marks them clean and never writes them."""
        with self._guard:
            synced = self._ledger.synced(number)
            if synced < size:
                self._ledger.write_unwritten(number, [*self._ledger.unwritten(number), (synced, size)])

    def about_to_cut(self, file: FaultyFile, size: int) -> None:
        """Save the bytes that a truncation will remove, as long as a power loss may bring them back."""
        number = file.number
        with self._guard:
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
        with self._guard:
            if create and not self._exists(name):
                self._about_to()
                self._ledger.note_new(name)
            file = FaultyFile(self, name, create)
            if name not in self._ledger.names:
                self._ledger.note_found(name, file.size())
            file.number = self._ledger.names[name]
            return file

    def sync_folder(self, folder: str) -> None:
        with self._guard:
            self._about_to()
            super().sync_folder(folder)
            self._ledger.note_synced(folder)

    def rename(self, old: str, new: str) -> None:
        with self._guard:
            self._about_to()
            self._keep(new)
            self._ledger.note(NameChange("rename", new, old=old))
            super().rename(old, new)

    def unlink(self, name: str) -> None:
        with self._guard:
            self._about_to()
            self._keep(name)
            if name in self._ledger.names:
                self._ledger.note(NameChange("unlink", name))
            super().unlink(name)

    def rewrite(self, name: str, at: int, data: Buffer) -> None:
        orders = self.begin()
        if orders.fail_append:
            raise self.fault(errno.EIO, name, failed=1)
        if self.dies(orders):
            super().rewrite(name, at, memoryview(data)[: len(data) // 2])
            die()
        super().rewrite(name, at, data)

    # ---- names -------------------------------------------------------------------------------------

    def _about_to(self) -> None:
        if self.dies(self.begin()):
            die()

    def _exists(self, name: str) -> bool:
        return name.rpartition("/")[2] in self.names(folder_of(name))

    def _keep(self, name: str) -> None:
        """Keep a file whose name will be removed, by another hard link."""
        number = self._ledger.names.get(name)
        if number is not None:
            with contextlib.suppress(FileExistsError):
                self._ledger.kept(number).hardlink_to(Path(self.where(name)))


def die() -> None:
    """Kill this process with SIGKILL, so that it ends as abruptly as in a power loss."""
    os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(60)  # The signal comes at the next moment at which the system looks.
    raise AssertionError("survived SIGKILL")
