"""An event loop whose time is a number: asyncio code runs on it unchanged, and nothing ever waits.

When nothing is left to do at this moment, the time jumps to the next thing that is due. What is due at the same
time is done in the order in which it was asked for, so that a run follows from its inputs alone.
"""

from __future__ import annotations

import asyncio
import heapq
from asyncio import events
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine
from contextvars import Context
from typing import Any, TypeAlias, TypeVar, cast

T = TypeVar("T")
Dialer: TypeAlias = Callable[[Callable[[], asyncio.BaseProtocol], int], Awaitable[tuple[Any, Any]]]
"""(protocol factory, port) -> (transport, protocol); raises OSError where nobody listens."""


GRAIN_S = 1e-6
"""The shortest sleep: one that is lost in rounding would let a loop that waits for its time spin for ever."""


class Deadlock(Exception):
    """The program waits for something that can never come."""


class VirtualLoop(asyncio.AbstractEventLoop):
    """See the module's docstring.

    Args:
        start: the first moment, seconds.
    """

    def __init__(self, start: float = 1000.0) -> None:
        self.now = start
        self.dialer: Dialer | None = None
        self.failure: BaseException | None = None
        """What a callback raised; ends the run."""
        self.fatal: tuple[type[Exception], ...] = ()
        """Errors that end the run also where a task raises them that nobody waits for."""
        self._due: list[tuple[float, int, Callable[..., object], tuple[Any, ...]]] = []
        self._ready: deque[asyncio.Handle] = deque()
        self._order = 0

    # ---- for the simulation itself -------------------------------------------------------------------

    def post(self, when: float, action: Callable[..., object], *args: Any) -> None:
        """Do this at that time; cheaper than call_at, and not to be taken back."""
        self._order += 1
        heapq.heappush(self._due, (when, self._order, action, args))

    def run(self, main: Coroutine[Any, Any, T]) -> T:
        """Run until `main` returns, then end what it left behind.

        Raises:
            Deadlock: it waits and nothing is due.
        """
        before = events._get_running_loop()
        events._set_running_loop(self)
        try:
            task = self.create_task(main)
            self._run_until(task)
            return cast(T, task.result())
        finally:
            self._end_tasks()
            events._set_running_loop(before)

    def _end_tasks(self) -> None:
        """Cancel what still waits: the run is over, and nobody asks any more how these end."""
        failure = self.failure
        for task in asyncio.all_tasks(self):
            task.cancel()
        while self._ready:
            handle = self._ready.popleft()
            if not handle._cancelled:
                handle._run()
        self.failure = failure

    def _run_until(self, task: asyncio.Task[Any]) -> None:
        ready, due = self._ready, self._due
        while not task.done():
            if self.failure is not None:
                raise self.failure
            if ready:
                handle = ready.popleft()
                if not handle._cancelled:
                    handle._run()
            elif due:
                when, _, action, args = heapq.heappop(due)
                if when > self.now:
                    self.now = when
                action(*args)
            else:
                raise Deadlock("nothing is due, and the run has not come to its end")

    # ---- what asyncio asks of a loop -------------------------------------------------------------------

    def time(self) -> float:
        return self.now

    def get_debug(self) -> bool:
        return False

    def is_running(self) -> bool:
        return True

    def is_closed(self) -> bool:
        return False

    def call_soon(  # type: ignore[override]
        self, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> asyncio.Handle:
        handle = asyncio.Handle(callback, args, self, context)
        self._ready.append(handle)
        return handle

    def call_later(  # type: ignore[override]
        self, delay: float, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> asyncio.TimerHandle:
        return self.call_at(self.now + max(delay, GRAIN_S), callback, *args, context=context)

    def call_at(  # type: ignore[override]
        self, when: float, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> asyncio.TimerHandle:
        handle = asyncio.TimerHandle(when, callback, args, self, context)
        self.post(when, self._fire, handle)
        return handle

    def _fire(self, handle: asyncio.TimerHandle) -> None:
        if not handle.cancelled():
            handle._run()

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        """asyncio's timers tell their loop; a cancelled one stays in the queue and does nothing."""

    def create_future(self) -> asyncio.Future[Any]:
        return asyncio.Future(loop=self)

    def create_task(
        self, coro: Any, *, name: str | None = None, context: Context | None = None, **_: Any
    ) -> asyncio.Task[Any]:
        return asyncio.Task(self._watched(coro), loop=self, name=name or "simulated", context=context)

    async def _watched(self, coro: Coroutine[Any, Any, T]) -> T:
        try:
            return await coro
        except self.fatal as error:
            self.failure = self.failure or error
            raise

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        """An error in a callback ends the run; that something was cancelled is none."""
        error = context.get("exception") or RuntimeError(context.get("message"))
        if not isinstance(error, asyncio.CancelledError):
            self.failure = self.failure or error

    async def create_connection(self, protocol_factory: Any, host: Any = None, port: Any = None, **_: Any) -> Any:
        assert self.dialer is not None, "nobody listens in this world"
        return await self.dialer(protocol_factory, port)
