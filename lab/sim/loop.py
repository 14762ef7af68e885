"""An event loop whose time is a number: asyncio code runs on it unchanged, and nothing ever waits.

When nothing is left to do at this moment, the time jumps to the next thing that is due. What is due at the same
time is done in the order in which it was asked for, so that a run follows from its inputs alone.
"""

from __future__ import annotations

import asyncio
from asyncio import events
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine
from contextvars import Context
from heapq import heappop, heappush, heappushpop
from itertools import count
from typing import Any, TypeAlias, TypeVar, cast

T = TypeVar("T")
_Due: TypeAlias = tuple[float, int, Callable[..., object], tuple[Any, ...]]
"""(when, order in which it was asked for, what, with what)."""
Dialer: TypeAlias = Callable[[Callable[[], asyncio.BaseProtocol], int], Awaitable[tuple[Any, Any]]]
"""(protocol factory, port) -> (transport, protocol); raises OSError where nobody listens."""


GRAIN_S = 1e-6
"""The shortest sleep: one that is lost in rounding would let a loop that waits for its time spin for ever."""


class Deadlock(Exception):
    """The program waits for something that can never come."""


class Call:
    """A callback to come, in place of asyncio.Handle: without a context, as nothing in this world has one."""

    __slots__ = ("args", "callback")

    def __init__(self, callback: Callable[..., object], args: tuple[Any, ...]) -> None:
        self.callback: Callable[..., object] | None = callback
        self.args = args

    def cancel(self) -> None:
        self.callback = None

    def cancelled(self) -> bool:
        return self.callback is None


START_S = 1000.0


class VirtualLoop(asyncio.AbstractEventLoop):
    """See the module's docstring.

    Args:
        start: the first moment, seconds.
    """

    def __init__(self, start: float = START_S) -> None:
        self.now = start
        self.dialer: Dialer | None = None
        self.failure: BaseException | None = None
        """What a callback raised; ends the run."""
        self.fatal: tuple[type[Exception], ...] = ()
        """Errors that end the run also where a task raises them that nobody waits for."""
        self._due: list[_Due] = []
        self._posted: _Due | None = None
        """What was posted last: it is often the next thing to be done, and then needs no place in the heap."""
        self._ready: deque[Call] = deque()
        self._order = count()

    # ---- for the simulation itself -------------------------------------------------------------------

    def post(self, when: float, action: Callable[..., object], *args: Any) -> None:
        """Do this at that time; cheaper than call_at, and not to be taken back."""
        posted = self._posted
        if posted is not None:
            heappush(self._due, posted)
        self._posted = (when, next(self._order), action, args)

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
            self._do(self._ready.popleft())
        self.failure = failure

    def _run_until(self, task: asyncio.Task[Any]) -> None:
        ready, due, done = self._ready, self._due, task.done
        while not done():
            if self.failure is not None:
                raise self.failure
            if ready:
                self._do(ready.popleft())
            else:
                posted = self._posted
                if posted is not None:
                    self._posted = None
                    when, _, action, args = heappushpop(due, posted)
                elif due:
                    when, _, action, args = heappop(due)
                else:
                    raise Deadlock("nothing is due, and the run has not come to its end")
                if when > self.now:
                    self.now = when
                action(*args)

    def _do(self, call: Call) -> None:
        callback = call.callback
        if callback is not None:
            try:
                callback(*call.args)
            except Exception as error:
                self.failure = self.failure or error

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
    ) -> Call:
        call = Call(callback, args)
        self._ready.append(call)
        return call

    def call_later(  # type: ignore[override]
        self, delay: float, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> Call:
        return self.call_at(self.now + max(delay, GRAIN_S), callback, *args, context=context)

    def call_at(  # type: ignore[override]
        self, when: float, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> Call:
        """A timer that is cancelled stays in the queue and does nothing."""
        call = Call(callback, args)
        self.post(when, self._do, call)
        return call

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
