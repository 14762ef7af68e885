"""Work on the disk beside the turns of a real node, in a thread of its own: checkpoints (K4) and the scrub (K6)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from nodeproc.config import Limits
from nodeproc.core.events import CheckpointPutOff, Event
from nodeproc.core.messages import Position
from nodeproc.core.recovered import Snapshot
from nodeproc.disk.scrub import FIRST_S, Scrub
from nodeproc.disk.storage import Storage
from nodeproc.errors import ReadFailed, Unreadable


class Upkeep:
    """Made inside the event loop; all callbacks run there.

    Args:
        snapshot: returns the core's state for a checkpoint.
        report: called with events.
        repair: called with each damage that the scrub finds.
        failed: called with errors that must end the node.
    """

    def __init__(
        self,
        storage: Storage,
        limits: Limits,
        snapshot: Callable[[], Snapshot],
        report: Callable[[Event], None],
        repair: Callable[[Unreadable], object],
        failed: Callable[[BaseException], None],
    ) -> None:
        self._storage, self._limits, self._snapshot = storage, limits, snapshot
        self._report, self._repair, self._failed = report, repair, failed
        self._loop = asyncio.get_running_loop()
        self._executor = ThreadPoolExecutor(1, "upkeep")
        self._work: set[asyncio.Future[Any]] = set()
        self._checkpointing = self._closed = False
        self.scrub = Scrub(storage, limits.scrub_bytes_per_s or 1, limits.scrub_rest_ms / 1000)
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Begin to scrub, if the limits ask for it."""
        if self._limits.scrub_bytes_per_s:
            self._scrub_after(FIRST_S)

    async def close(self) -> None:
        """Wait for the work under way; its errors are reported before this returns."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        if self._work:
            await asyncio.wait(self._work)
        self._executor.shutdown()

    def checkpoint_soon(self) -> None:
        """Write a checkpoint, unless one is under way."""
        if not self._checkpointing and not self._closed:
            self._checkpointing = True
            self._run(self._storage.checkpoint, self._on_checkpoint, self._snapshot())

    def _run(self, work: Callable[..., Any], done: Callable[[asyncio.Future[Any]], None], *args: Any) -> None:
        future = self._loop.run_in_executor(self._executor, work, *args)
        self._work.add(future)
        future.add_done_callback(self._work.discard)
        future.add_done_callback(done)

    def _on_checkpoint(self, work: asyncio.Future[Event]) -> None:
        self._checkpointing = False
        error = work.exception()
        if isinstance(error, ReadFailed | Unreadable):
            self._report(CheckpointPutOff(str(error)))
        elif error is not None:
            self._failed(error)
        else:
            self._report(work.result())

    def _scrub_after(self, seconds: float) -> None:
        if not self._closed:
            self._timer = self._loop.call_later(seconds, self._run, self.scrub.read, self._on_scrubbed)

    def _on_scrubbed(self, work: asyncio.Future[tuple[Position, int]]) -> None:
        error = work.exception()
        if isinstance(error, Unreadable):
            self._repair(error)
            self._scrub_after(self.scrub.failed(error))
        elif error is not None:
            self._failed(error)
        else:
            self._scrub_after(self.scrub.succeeded(*work.result()))
