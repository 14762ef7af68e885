"""System calls that make data files durable, and the ends of those that a slow disk delays."""

from __future__ import annotations

import errno
import os
import stat
import time
from dataclasses import dataclass

from lab.live.supervise.contents import Content
from lab.live.supervise.kernel import Call
from lab.live.supervise.openfiles import INT
from lab.live.supervise.processes import mapped_at
from lab.live.supervise.state import State, open_to_read

SWEEP_S = 0.5
"""Interval of the search for data that is old enough to be durable."""
_MS_SYNC = 4


@dataclass(slots=True, eq=False)
class Sync:
    """A sync under way. fd: the file, open for reading; -1: of a folder, or of everything. part: (offset, size)."""

    call: Call
    content: Content | None
    fd: int
    part: tuple[int, int] | None = None
    everything: bool = False
    due: float = 0.0
    """Monotonic time at which a slow disk finishes it."""


class Syncing:
    """See the module. writeback_s: what was not synced for this long is durable, as if the kernel had written it; 0:
    never.
    """

    def __init__(self, state: State, writeback_s: float) -> None:
        self._state, self._writeback_s = state, writeback_s
        self._swept = 0.0
        self._held: list[Sync] = []

    def sync_file(self, call: Call) -> None:
        """fsync and fdatasync."""
        handle = self._state.files.of(call, call.arguments[0])
        if handle is not None:
            self._sync(Sync(call, handle.content, handle.readable))
            return
        path = f"/proc/{call.thread}/fd/{call.arguments[0] & INT}"
        found = os.stat(path)
        if stat.S_ISDIR(found.st_mode) and self._state.paths.has_folder(os.readlink(path)):
            self._sync(Sync(call, None, -1))
        elif self._state.files.known(found) is not None:
            self._sync_path(call, path)
        else:
            call.pass_on()

    def sync_all(self, call: Call) -> None:
        """sync and syncfs."""
        self._sync(Sync(call, None, -1, everything=True))

    def msync(self, call: Call) -> None:
        address, size, flags, *_ = call.arguments
        place = mapped_at(call.thread, address) if self._state.has_mappings and flags & _MS_SYNC else None
        if place is None or not self._state.paths.has_content(place[0]):
            call.pass_on()
        else:
            self._sync_path(call, place[0], (place[1], size))

    def _sync_path(self, call: Call, path: str, part: tuple[int, int] | None = None) -> None:
        with open_to_read(path) as fd:
            self._sync(Sync(call, self._state.files.content(os.fstat(fd)), fd, part))

    def _sync(self, sync: Sync) -> None:
        """Handle a sync. Its file descriptor is only borrowed."""
        orders, tally = self._state.orders, self._state.tally
        tally.operations += 1
        tally.synced += 1
        if self._state.dies():
            self._state.die()
        elif orders.fail_sync:
            tally.failed += 1
            if sync.content is not None:
                sync.content.fail_to_sync(sync.fd)
            sync.call.finish(-errno.EIO)
        elif orders.hang or orders.slow_s:
            tally.slowed += orders.slow_s > 0
            sync.due = time.monotonic() + orders.slow_s
            sync.fd = os.dup(sync.fd) if sync.fd >= 0 else -1
            self._held.append(sync)
        else:
            self._finish(sync)

    def _finish(self, sync: Sync) -> None:
        """What the sync covers is durable from now on; the kernel writes it as well."""
        if sync.everything:
            for path, content in self._state.known_files():
                with open_to_read(path) as fd:
                    content.sync(fd)
        elif sync.content is not None and sync.part is not None:
            at, size = sync.part
            sync.content.sync_range(sync.fd, at, min(size, os.fstat(sync.fd).st_size - at))
        elif sync.content is not None:
            sync.content.sync(sync.fd)
        self._state.names.commit()
        sync.call.pass_on()

    @property
    def wakes_after_s(self) -> float | None:
        """Seconds until tick() has something to do; None: never."""
        waits = [sync.due - time.monotonic() for sync in self._held if not self._state.orders.hang]
        if waits and not self._state.orders.slow_s:
            return 0.0
        if self._writeback_s:
            waits.append(SWEEP_S)
        return max(0.0, min(waits)) if waits else None

    def tick(self) -> None:
        """Finish the syncs that are due, and make durable what is old."""
        now = time.monotonic()
        if not self._state.orders.hang:
            due = [sync for sync in self._held if sync.due <= now or not self._state.orders.slow_s]
            self._held = [sync for sync in self._held if sync not in due]
            for sync in due:
                self._finish(sync)
                if sync.fd >= 0:
                    os.close(sync.fd)
        if self._writeback_s and now - self._swept >= SWEEP_S:
            self._swept = now
            self._write_back(now - self._writeback_s)

    def _write_back(self, before: float) -> None:
        """What was changed before this time and not synced is durable, as if the kernel had written it."""
        for path, content in self._state.known_files():
            if content.dirty_since and content.dirty_since < before:
                with open_to_read(path) as fd:
                    content.sync(fd)
        if self._state.names.oldest and self._state.names.oldest < before:
            self._state.names.commit()

    def forget(self) -> None:
        """The program is dead: no sync waits any more."""
        for sync in self._held:
            if sync.fd >= 0:
                os.close(sync.fd)
        self._held.clear()
