"""Group commit: one sync at a time; everything written meanwhile shares the next one.

A sync runs in a thread of its own, so that the event loop continues meanwhile. But passing the work to the thread and
back takes the interpreter's lock a dozen times, and costs as much as a sync on a quick disk. So while the disk is
quick, the loop itself syncs, as the last action of its turn. If the disk stalls, it blocks the loop for one sync, as a
slow write would; if it becomes slow, for a few. From then on the thread syncs, until the disk is quick again.
"""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections.abc import Callable
from typing import Final

QUICK_S: Final = 0.001
"""With a longer average the thread syncs: 1 % of the shortest time within which others must hear from a node."""
LATELY: Final = 16
"""The average is over about this many syncs; later ones count more."""
NOT_BLOCKED: Final = -1.0


class Syncing:
    """Turns "written up to this ticket" into "durable up to this ticket".

    Args:
        sync: makes everything durable that was written before the call; called in the thread or in the loop.
        durable: called in the loop, never from inside another call, with the ticket up to which everything is durable.
            It runs a turn, which ends with end_turn().
        failed: called in the loop with the exception of `sync`; nothing is synced after it (K5).
        held_up: called in the loop after a sync in the loop, with its seconds.
        stalled: called in the thread, with the seconds so far, once for each sync that blocks the loop for more than
            one to two times `patience_s`.
        clock: seconds.
    """

    def __init__(
        self,
        sync: Callable[[], None],
        durable: Callable[[int], None],
        failed: Callable[[BaseException], None],
        held_up: Callable[[float], None] = lambda seconds: None,
        stalled: Callable[[float], None] = lambda seconds: None,
        patience_s: float = 1.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._sync, self._durable, self._failed, self._clock = sync, durable, failed, clock
        self._held_up, self._stalled, self._patience_s = held_up, stalled, patience_s
        self._loop = asyncio.get_running_loop()
        self._tickets: queue.SimpleQueue[int | None] = queue.SimpleQueue()
        self._written = self._begun = 0
        self._busy = False
        self._blocked_since = self._seen = self._reported = NOT_BLOCKED
        """When the sync began that runs in the loop now; the same as of the thread's last look, and of its report."""
        self._usual_s = 2 * QUICK_S
        """The average."""
        self.count = self.in_loop = 0
        """Syncs that have ended, and how many of them ran in the loop."""
        self._failure: BaseException | None = None
        self._syncer = threading.Thread(target=self._run, name="fdatasync", daemon=True)
        self._syncer.start()

    def wrote(self, ticket: int) -> None:
        """Everything up to this ticket is written. The thread begins at once, the loop with end_turn()."""
        self._written = ticket
        if not self._busy and self._usual_s > QUICK_S:
            self._begin()

    def end_turn(self) -> None:
        """Sync in the loop if that is due: everything else of the turn is done. Raises what `sync` raises."""
        if self._busy or self._written == self._begun:
            return
        self._busy, self._begun = True, self._written
        self._blocked_since = began = self._clock()
        try:
            self._sync()
        finally:
            self._blocked_since = NOT_BLOCKED
        took = self._clock() - began
        self.in_loop += 1
        self._held_up(took)
        self._loop.call_soon(self._on_synced, self._begun, took)

    def close(self) -> BaseException | None:
        """Wait for the sync under way; no callback comes after it. Return the exception of `sync`, if there was one."""
        self._busy = True
        self._tickets.put(None)
        self._syncer.join()
        return self._failure

    def _begin(self) -> None:
        self._busy, self._begun = True, self._written
        self._tickets.put(self._begun)

    def _run(self) -> None:
        while (ticket := self._next_ticket()) is not None:
            began = self._clock()
            try:
                self._sync()
            except BaseException as error:
                self._failure = error
                self._call_in_loop(self._failed, error)
                return
            self._call_in_loop(self._on_synced, ticket, self._clock() - began)

    def _next_ticket(self) -> int | None:
        """Wait for work, and meanwhile watch the syncs in the loop."""
        while True:
            try:
                return self._tickets.get(timeout=self._patience_s)
            except queue.Empty:
                self.look()

    def look(self) -> None:
        """Report the sync in the loop if the last look saw the same one: a process that was stopped looks once."""
        since, before = self._blocked_since, self._seen
        self._seen = since
        if since not in (NOT_BLOCKED, self._reported) and since == before:
            self._reported = since
            self._stalled(self._clock() - since)

    def _call_in_loop(self, callback: Callable[..., None], *args: object) -> None:
        try:
            self._loop.call_soon_threadsafe(callback, *args)
        except RuntimeError:
            return  # The loop is closed: the node has stopped meanwhile.

    def _on_synced(self, ticket: int, took: float) -> None:
        self.count += 1
        self._busy = False
        self._usual_s += (took - self._usual_s) / LATELY
        if self._written > ticket and self._usual_s > QUICK_S:
            self._begin()
        self._durable(ticket)
