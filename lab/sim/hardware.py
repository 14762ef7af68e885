"""The disk and the clock of a simulated machine; both outlive its processes, and obey orders."""

from __future__ import annotations

import errno
import random
from collections.abc import Callable
from typing import Any

from lab.course.damage import draw_tear, loss_of
from lab.course.simfiles import SimFiles
from lab.sim.loop import VirtualLoop
from lab.steps.damage import Loss
from lab.steps.orders import NEVER, Counts, Orders
from nodeproc.disk.storage import Storage
from nodeproc.errors import WriteFailed

EPOCH = 1_700_000_000.0
"""The wall clock at virtual time 0, seconds."""
SYNC_LEAST_S, SYNC_MOST_S = 0.0002, 0.002
HANGS_S = 1e6
"""What a sync takes on a disk that does not answer."""


class SimClock:
    """What a process reads: it may run fast or slow, and stands still while the process is stopped."""

    def __init__(self, loop: VirtualLoop) -> None:
        self._loop = loop
        self._base = self._at = loop.now
        self._stopped = False
        self.drift = self.ahead_s = 0.0
        self.misread = 0
        """Readings while it was wrong."""

    def now(self) -> float:
        """Monotonic seconds, as the process reads them."""
        self.misread += self.drift != 0.0
        return self._now()

    def wall(self) -> float:
        """Seconds since 1970."""
        self.misread += self.ahead_s != 0.0
        return EPOCH + self._loop.now + self.ahead_s

    def lasts(self, span: float) -> float:
        """How long a span of it is in virtual time."""
        return span / (1.0 + self.drift)

    def _now(self) -> float:
        return self._base if self._stopped else self._base + (self._loop.now - self._at) * (1.0 + self.drift)

    def set(self, drift: float, forward_s: float) -> None:
        """Run fast or slow by this share from now on; the wall clock is set forward, once."""
        self._base, self._at = self._now(), self._loop.now
        self.drift = drift
        self.ahead_s += forward_s

    def stop(self) -> None:
        """The process is stopped."""
        self._base, self._at = self._now(), self._loop.now
        self._stopped = True

    def go_on(self) -> None:
        """It goes on, or another one has started."""
        self._base, self._at = self._now(), self._loop.now
        self._stopped = False


class SimDisk:
    """The files of a node, and what is wrong with the disk beneath them.

    Args:
        rng: draws what a power loss leaves, and how long a sync takes.
        seed: of what a crash in the middle of a write leaves.
    """

    def __init__(self, rng: random.Random, seed: str) -> None:
        self._rng = rng
        self.files = SimFiles(random.Random(seed))
        self.orders = Orders()
        self._slowed = self._refused = self._failed = 0
        self.loss: Loss | None = None
        """What the latest power loss took; None once a process has started since."""

    def obey(self, orders: Orders) -> None:
        """From now on do this."""
        self.orders, files = orders, self.files
        files.capacity = None if orders.room == NEVER else orders.room
        files.crash_at = None if orders.die_at == NEVER else orders.die_at
        files.on_operation = self._fail if orders.fail_sync or orders.fail_append else None

    def _fail(self, operation: str, name: str) -> None:
        if (operation == "sync" and self.orders.fail_sync) or (operation == "append" and self.orders.fail_append):
            self._failed += 1
            raise OSError(errno.EIO, "Input/output error", name)

    def count_full(self, error: BaseException) -> None:
        """A write that failed on a full disk found no room: nothing else fails there."""
        self._refused += isinstance(error, WriteFailed) and self.files.capacity is not None

    def counts(self, misread: int) -> Counts:
        """What came of the orders so far."""
        files = self.files
        return Counts(files.operations, files.used(), 0, self._refused, self._failed, self._slowed, misread)

    def sync_s(self) -> float:
        """How long the sync takes that begins now."""
        orders = self.orders
        self._slowed += orders.slow_s > 0
        slower = HANGS_S if orders.hang else orders.slow_s
        return SYNC_LEAST_S + self._rng.random() * (SYNC_MOST_S - SYNC_LEAST_S) + slower

    def tearable(self) -> bool:
        """An entry of the WAL waits for its sync."""
        return draw_tear(self.files.contents(), self.files.synced(), random.Random(0)) is not None

    def lose_power(self, torn: bool) -> Loss:
        """What was not synced is lost, in part or whole.

        torn: the WAL ends in the middle of an entry, where one is not synced.
        """
        before = self.files
        before.crash_at = None
        contents, synced = before.contents(), before.synced()
        tear = draw_tear(contents, synced, self._rng) if torn else None
        self.files = before.crash(self._rng)
        self.files.on_operation = before.on_operation  # What is in force outlasts the power.
        if tear is not None:
            self.files.put(tear.name, contents[tear.name][: tear.end])
        self.loss = loss_of(contents, synced, self.files.contents(), tear)
        return self.loss

    def replace(self) -> None:
        """An empty disk takes the place of this one."""
        self.files = SimFiles(random.Random(self._rng.getrandbits(64)))


class Syncing:
    """The syncs of one process: one at a time, and each covers what was written before it began.

    Args:
        post: do this so many seconds later, if the process is there then.
        returned: called with its ticket when one has returned; raises what it failed with.
    """

    def __init__(
        self,
        disk: SimDisk,
        storage: Storage,
        post: Callable[[float, Callable[..., None], Any], None],
        returned: Callable[[int], None],
    ) -> None:
        self._disk, self._storage, self._post, self._returned = disk, storage, post, returned
        self._ticket = 0
        self._is_under_way = False
        self._begun: tuple[Any, Any] | None = None
        """What the one under way covers: of the storage's segments, of the files."""

    def begin(self, ticket: int) -> None:
        """Begin one, if none is under way."""
        if not self._is_under_way:
            self._is_under_way, self._ticket = True, ticket
            self._begun = self._storage.written(), self._disk.files.sizes()
            self._post(self._disk.sync_s(), self._return, ticket)

    def quicken(self) -> None:
        """The one under way returns at once."""
        if self._is_under_way:
            self._post(SYNC_LEAST_S, self._return, self._ticket)

    def _return(self, ticket: int) -> None:
        if self._is_under_way and ticket == self._ticket:
            self.finish()
            self._is_under_way = False
            self._returned(ticket)

    def finish(self) -> None:
        """The one under way has done its work, or raises what it failed with."""
        if self._begun is not None:
            (written, self._disk.files.began), self._begun = self._begun, None
            try:
                self._storage.sync(written)
            finally:
                self._disk.files.began = None
