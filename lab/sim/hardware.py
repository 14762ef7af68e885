"""The disk and the clock of a simulated machine. Both outlive its processes; orders control them (lab.steps.orders)."""

from __future__ import annotations

import errno
import random
from collections.abc import Callable
from typing import Any, Final

from lab.course.damage import draw_tear, lose_power
from lab.course.simfiles import SimFiles
from lab.sim.loop import VirtualLoop
from lab.steps.damage import Loss
from lab.steps.orders import NEVER, Counts, Orders
from nodeproc.disk.storage import Storage
from nodeproc.errors import WriteFailed

EPOCH: Final = 1_700_000_000.0
"""The wall clock at virtual time 0, seconds."""
SYNC_LEAST_S: Final = 0.0002
SYNC_MOST_S: Final = 0.002
HANGS_S: Final = 1e6
"""Duration of a sync on a disk that does not answer."""


class SimClock:
    """The clock that a process reads: it may run fast or slow, and stands still while the process is paused."""

    def __init__(self, loop: VirtualLoop) -> None:
        self._loop = loop
        self._base = self._at = loop.now
        self._stopped = False
        self.drift = self.ahead_s = 0.0
        self.misread = 0
        """Readings while the clock was wrong."""

    def now(self) -> float:
        """Return monotonic seconds, as the process reads them."""
        self.misread += self.drift != 0.0
        return self._now()

    def wall(self) -> float:
        """Return seconds since 1970, as the process reads them."""
        self.misread += self.ahead_s != 0.0
        return EPOCH + self._loop.now + self.ahead_s

    def lasts(self, span: float) -> float:
        """Return how long a time span of this clock takes in virtual time."""
        return span / (1.0 + self.drift)

    def _now(self) -> float:
        return self._base if self._stopped else self._base + (self._loop.now - self._at) * (1.0 + self.drift)

    def set(self, drift: float, forward_s: float) -> None:
        """From now on, run fast or slow by this share; set the wall clock forward once."""
        self._rebase()
        self.drift = drift
        self.ahead_s += forward_s

    def stop(self) -> None:
        """Stand still: the process is paused."""
        self._rebase()
        self._stopped = True

    def go_on(self) -> None:
        """Run: the process is resumed, or another one has started."""
        self._rebase()
        self._stopped = False

    def _rebase(self) -> None:
        self._base, self._at = self._now(), self._loop.now


class SimDisk:
    """The files of a node, and the faults of the disk below them.

    Args:
        rng: draws what a power loss leaves, and how long a sync takes.
        seed: for what a crash in the middle of a write leaves.
    """

    def __init__(self, rng: random.Random, seed: str) -> None:
        self._rng = rng
        self.files = SimFiles(random.Random(seed))
        self.orders = Orders()
        self._slowed = self._refused = self._failed = 0
        self.loss: Loss | None = None
        """What a power loss took since the latest start; None: there was none."""

    def obey(self, orders: Orders) -> None:
        """Apply these orders from now on."""
        self.orders, files = orders, self.files
        files.capacity = None if orders.room == NEVER else orders.room
        files.crash_at = None if orders.die_at == NEVER else orders.die_at
        files.on_operation = self._fail if orders.fail_sync or orders.fail_append else None

    def _fail(self, operation: str, name: str) -> None:
        if (operation == "sync" and self.orders.fail_sync) or (operation == "append" and self.orders.fail_append):
            self._failed += 1
            raise OSError(errno.EIO, "Input/output error", name)

    def count_full(self, error: BaseException) -> None:
        """Count a write that failed because the disk is full: a full disk has no other fault."""
        self._refused += isinstance(error, WriteFailed) and self.files.capacity is not None

    def counts(self, misread: int) -> Counts:
        """Return how often the orders took effect so far. misread: see SimClock."""
        files = self.files
        return Counts(files.operations, files.used(), 0, self._refused, self._failed, self._slowed, misread)

    def sync_s(self) -> float:
        """Return how long a sync that begins now takes, seconds."""
        orders = self.orders
        self._slowed += orders.slow_s > 0
        slower = HANGS_S if orders.hang else orders.slow_s
        return SYNC_LEAST_S + self._rng.random() * (SYNC_MOST_S - SYNC_LEAST_S) + slower

    def tearable(self) -> bool:
        """Return whether an entry of the WAL is not durable yet."""
        return draw_tear(self.files.contents(), self.files.synced(), random.Random(0)) is not None

    def lose_power(self, torn: bool) -> Loss:
        """Lose what is not durable, in part or whole; after the first loss since a start there is no more to lose.

        torn: see lab.course.damage.lose_power.
        """
        if self.loss is None:
            before = self.files
            before.crash_at = None
            self.files, self.loss = lose_power(before, self._rng, torn=torn)
            self.files.on_operation = before.on_operation  # Orders stay in force.
        return self.loss

    def replace(self) -> None:
        """Replace the disk by an empty one."""
        self.files = SimFiles(random.Random(self._rng.getrandbits(64)))


class Syncing:
    """The syncs of one process: one at a time, and each covers what was written before it began.

    Args:
        post: runs an action so many seconds later, if the process still runs then.
        returned: called with the ticket of a sync that has succeeded.
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
        """What the sync under way covers: of the storage's segments, of the files."""

    def begin(self, ticket: int) -> None:
        """Begin a sync, if none is under way."""
        if not self._is_under_way:
            self._is_under_way, self._ticket = True, ticket
            self._begun = self._storage.written(), self._disk.files.sizes()
            self._post(self._disk.sync_s(), self._return, ticket)

    def quicken(self) -> None:
        """Let the sync under way, if there is one, return at once."""
        if self._is_under_way:
            self._post(SYNC_LEAST_S, self._return, self._ticket)

    def _return(self, ticket: int) -> None:
        if self._is_under_way and ticket == self._ticket:
            self.finish()
            self._is_under_way = False
            self._returned(ticket)

    def finish(self) -> None:
        """Do the work of the sync under way; raises the error with which it fails."""
        if self._begun is not None:
            (written, self._disk.files.began), self._begun = self._begun, None
            try:
                self._storage.sync(written)
            finally:
                self._disk.files.began = None
