"""Group commit: one fdatasync at a time, in a thread of its own; what is written meanwhile shares the next one."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable


class Syncing:
    """Turns "written up to this ticket" into "durable up to this ticket".

    Args:
        sync: makes durable all that was written before it is called; called in the thread.
        durable: gets, in the loop, the ticket up to which all is durable.
        failed: gets, in the loop, what `sync` raised; nothing is synced after it (K5).
    """

    def __init__(
        self, sync: Callable[[], None], durable: Callable[[int], None], failed: Callable[[BaseException], None]
    ) -> None:
        self._sync, self._durable, self._failed = sync, durable, failed
        self._loop = asyncio.get_running_loop()
        self._tickets: queue.SimpleQueue[int | None] = queue.SimpleQueue()
        self._written = 0
        self._busy = False
        self.count = 0
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="fdatasync", daemon=True)
        self._thread.start()

    def wrote(self, ticket: int) -> None:
        """All up to this ticket is written."""
        self._written = ticket
        if not self._busy:
            self._begin()

    def close(self) -> BaseException | None:
        """Wait for the fdatasync under way; no callback comes any more. Returns what `sync` raised, if it did."""
        self._busy = True
        self._tickets.put(None)
        self._thread.join()
        return self._failure

    def _begin(self) -> None:
        self._busy = True
        self._tickets.put(self._written)

    def _run(self) -> None:
        while (ticket := self._tickets.get()) is not None:
            try:
                self._sync()
            except BaseException as error:
                self._failure = error
                self._call_in_loop(self._on_failed, error)
                return
            self._call_in_loop(self._on_synced, ticket)

    def _call_in_loop(self, callback: Callable[..., None], *args: object) -> None:
        try:
            self._loop.call_soon_threadsafe(callback, *args)
        except RuntimeError:
            return  # The loop is closed: the node has stopped meanwhile.

    def _on_synced(self, ticket: int) -> None:
        self.count += 1
        self._busy = False
        if self._written > ticket:
            self._begin()
        self._durable(ticket)

    def _on_failed(self, error: BaseException) -> None:
        self._failed(error)
