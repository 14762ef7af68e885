"""Group commit: one sync at a time; what is written meanwhile shares the next one.

A sync runs in a thread of its own, so that the loop goes on meanwhile. But the hand-over there and back takes the
interpreter's lock a dozen times and costs as much as a quick disk needs: where the disk has been quick of late, the
loop syncs by itself, as the last thing of its turn. A disk that stalls holds the loop up once, for one sync, as a
slow write would, and one that turns slow for a few; from then on the thread has it, until it is quick again.
"""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections.abc import Callable
from typing import Final

QUICK_S: Final = 0.001
"""A disk that usually takes longer is the thread's: a hundredth of the shortest time in which a node must be heard."""
LATELY: Final = 16
"""What is usual is the average over about so many syncs, the later ones counting for more."""


class Syncing:
    """Turns "written up to this ticket" into "durable up to this ticket".

    Args:
        sync: makes durable all that was written before it is called; called in the thread or in the loop.
        durable: gets, in the loop and never from inside a call, the ticket up to which all is durable; makes a turn of
            it, which ends with end_turn().
        failed: gets, in the loop, what `sync` raised; nothing is synced after it (K5).
        held_up: gets, in the loop, the seconds that a sync in the loop took.
        clock: seconds.
    """

    def __init__(
        self,
        sync: Callable[[], None],
        durable: Callable[[int], None],
        failed: Callable[[BaseException], None],
        held_up: Callable[[float], None] = lambda seconds: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._sync, self._durable, self._failed, self._clock = sync, durable, failed, clock
        self._held_up = held_up
        self._loop = asyncio.get_running_loop()
        self._tickets: queue.SimpleQueue[int | None] = queue.SimpleQueue()
        self._written = self._begun = 0
        self._busy = False
        self._usual_s = 2 * QUICK_S
        """What a sync has taken of late."""
        self.count = self.in_loop = 0
        """Syncs that have ended, and how many of them the loop did."""
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="fdatasync", daemon=True)
        self._thread.start()

    def wrote(self, ticket: int) -> None:
        """All up to this ticket is written. The thread begins at once, the loop with end_turn()."""
        self._written = ticket
        if not self._busy and self._usual_s > QUICK_S:
            self._begin()

    def end_turn(self) -> None:
        """All else of this turn is done, what had to be sent is sent. What `sync` raises is raised here."""
        if self._busy or self._written == self._begun:
            return
        self._busy, self._begun = True, self._written
        took = self._timed_sync()
        self.in_loop += 1
        self._held_up(took)
        self._loop.call_soon(self._on_synced, self._begun, took)

    def close(self) -> BaseException | None:
        """Wait for the sync under way; no callback comes any more. Returns what `sync` raised, if it did."""
        self._busy = True
        self._tickets.put(None)
        self._thread.join()
        return self._failure

    def _begin(self) -> None:
        self._busy, self._begun = True, self._written
        self._tickets.put(self._begun)

    def _timed_sync(self) -> float:
        """Returns the seconds that it took."""
        began = self._clock()
        self._sync()
        return self._clock() - began

    def _run(self) -> None:
        while (ticket := self._tickets.get()) is not None:
            try:
                took = self._timed_sync()
            except BaseException as error:
                self._failure = error
                self._call_in_loop(self._on_failed, error)
                return
            self._call_in_loop(self._on_synced, ticket, took)

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

    def _on_failed(self, error: BaseException) -> None:
        self._failed(error)
