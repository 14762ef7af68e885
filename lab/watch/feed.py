"""What the pages of one run are sent: one watcher reads the run for all of them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import traceback
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any, Final

from lab.watch.watcher import Watcher

LOOK_EVERY_S: Final = 0.1
PING_EVERY_S: Final = 15.0


class Feed:
    """One run, looked at ten times a second. Must be made inside the event loop.

    Args:
        speed: see Watcher. A replay has one viewer.
    """

    def __init__(self, path: Path, speed: float = 0.0) -> None:
        self._watcher = Watcher(path, speed)
        self._picture, self._version, self._told = "", 0, 0
        self._news: Sequence[dict[str, Any]] = ()
        self._is_over = self._has_failed = False
        self._changed, self._hurry = asyncio.Event(), asyncio.Event()
        self._looking = asyncio.create_task(self._look_regularly())
        self.viewers = 0

    def hurry(self) -> None:
        """Look at once: something has happened."""
        self._hurry.set()

    async def close(self) -> None:
        self._looking.cancel()
        await asyncio.wait([self._looking])  # A look that is under way in its thread has ended then.
        self._watcher.close()

    async def _look_regularly(self) -> None:
        try:
            while not self._is_over:
                look = asyncio.get_running_loop().run_in_executor(None, self._look)
                try:
                    self._is_over = await asyncio.shield(look)
                except asyncio.CancelledError:
                    await asyncio.wait([look])
                    raise
                self._tell()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._hurry.wait(), LOOK_EVERY_S)
                self._hurry.clear()
        except Exception:  # The pages ask again; meanwhile the cause is on standard error.
            traceback.print_exc()
        finally:
            self._has_failed = not self._is_over
            self._tell()

    def _look(self) -> bool:
        """Read what is new; return whether the run has been judged."""
        watcher = self._watcher
        watcher.look()
        picture, told = json.dumps(watcher.plain()), watcher.picture.told
        if told != self._told:
            self._news = watcher.news_after(0)
        if picture != self._picture or told != self._told:
            self._picture, self._told, self._version = picture, told, self._version + 1
        return watcher.picture.ended and bool(watcher.picture.outcome)

    def _tell(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    async def events(self, sent: int) -> AsyncIterator[bytes]:
        """Yield server-sent events: `news` since number `sent`, `picture` when it has changed, `over` at the end."""
        version, loop = 0, asyncio.get_running_loop()
        pinged = loop.time()
        while True:
            changed, is_over, has_failed = self._changed, self._is_over, self._has_failed
            if version != self._version:
                version, picture, pinged = self._version, self._picture, loop.time()
                if news := [each for each in self._news if each["id"] > sent]:
                    sent = max(each["id"] for each in news)
                    yield f"id: {sent}\nevent: news\ndata: {json.dumps(news)}\n\n".encode()
                yield f"event: picture\ndata: {picture}\n\n".encode()
            if is_over:
                yield b"event: over\ndata: {}\n\n"
                return
            if has_failed:
                return
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(changed.wait(), PING_EVERY_S)
            if loop.time() - pinged >= PING_EVERY_S:
                pinged = loop.time()
                yield b": still here\n\n"
