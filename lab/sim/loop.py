"""An event loop in virtual time: asyncio code runs on it unchanged, and nothing ever waits.

When nothing is left to do at the present time, the time jumps to the next action that is due. Actions that are due at
the same time run in the order in which they were requested, so that a run is determined by its inputs.
"""

from __future__ import annotations

import asyncio
from asyncio import events
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine
from contextvars import Context
from heapq import heappop, heappush, heappushpop
from typing import Any, Final, TypeAlias, TypeVar, cast

T = TypeVar("T")
_Due: TypeAlias = tuple[float, int, Callable[..., object], tuple[Any, ...]]
"""(time, order of the request, action, arguments)."""
Dialer: TypeAlias = Callable[[Callable[[], asyncio.BaseProtocol], int], Awaitable[tuple[Any, Any]]]
"""(protocol factory, port) -> (transport, protocol); raises OSError if nobody listens on the port."""


GRAIN_S: Final = 1e-6
"""The shortest sleep. A shorter one could be lost in rounding, and a loop that waits for its time would never end."""


class Deadlock(Exception):
    """The program waits, and no action is due that could end the waiting."""


class Call:
    """A scheduled callback, in place of asyncio.Handle. It has no context: nothing in a simulation uses one."""

    __slots__ = ("args", "callback")

    def __init__(self, callback: Callable[..., object], args: tuple[Any, ...]) -> None:
        self.callback: Callable[..., object] | None = callback
        self.args = args

    def cancel(self) -> None:
        self.callback = None

    def cancelled(self) -> bool:
        return self.callback is None


START_S: Final = 1000.0


class VirtualLoop:
    """See the module's docstring. `now` is the virtual time in seconds.

    It is no subclass of asyncio.AbstractEventLoop, because the attributes of compiled classes with a base of another
    kind are looked up by name. asyncio asks for the methods only.
    """

    def __init__(self) -> None:
        self.now = START_S
        self.dialer: Dialer | None = None
        self.failure: BaseException | None = None
        """An exception that a callback raised; ends the run."""
        self.fatal: tuple[type[Exception], ...] = ()
        """Errors that end the run even if the task that raises them is not awaited."""
        self._due: list[_Due] = []
        self._posted: _Due | None = None
        """The latest post: it is often the next action to run, and then never enters the heap."""
        self._ready: deque[Call] = deque()
        self._posts = 0
        """Number of posts so far; those that are due at the same time run in its order."""
        self._not_begun: dict[Coroutine[Any, Any, Any], None] = {}
        """Of tasks that have not begun to run."""

    # ---- for the simulation itself -------------------------------------------------------------------

    def post(self, when: float, action: Callable[..., object], *args: Any) -> None:
        """Run an action at that time. Cheaper than call_at; cannot be cancelled."""
        posted = self._posted
        if posted is not None:
            heappush(self._due, posted)
        self._posted = (when, self._posts, action, args)
        self._posts += 1

    def run(self, main: Coroutine[Any, Any, T]) -> T:
        """Run until `main` returns, then cancel the tasks that are left.

        Raises:
            Deadlock: `main` waits and nothing is due.
        """
        before = events._get_running_loop()
        events._set_running_loop(self.for_asyncio)
        try:
            task = self.create_task(main)
            self._run_until(task)
            return cast(T, task.result())
        finally:
            self._end_tasks()
            events._set_running_loop(before)

    def _end_tasks(self) -> None:
        """Cancel the tasks that still wait. The run has ended, so that their results do not matter."""
        failure = self.failure
        for task in asyncio.all_tasks(self.for_asyncio):
            task.cancel()
        while self._ready:
            self._do(self._ready.popleft())
        for coro in self._not_begun:
            coro.close()  # Or Python would warn that nobody awaits it.
        self.failure = failure

    def _run_until(self, task: asyncio.Task[Any]) -> None:
        ready, due, done, push_and_pop = self._ready, self._due, task.done, heappushpop
        while not done():
            if self.failure is not None:
                raise self.failure
            if ready:
                self._do(ready.popleft())
            else:
                posted = self._posted
                if posted is not None:
                    self._posted = None
                    when, _, action, args = push_and_pop(due, posted)
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

    # ---- the interface of asyncio's loops ---------------------------------------------------------------

    @property
    def for_asyncio(self) -> asyncio.AbstractEventLoop:
        """This loop, as asyncio's functions declare their arguments."""
        return cast(asyncio.AbstractEventLoop, self)

    def time(self) -> float:
        return self.now

    def get_debug(self) -> bool:
        return False

    def is_running(self) -> bool:
        return True

    def is_closed(self) -> bool:
        return False

    def call_soon(self, callback: Callable[..., object], *args: Any, context: Context | None = None) -> Call:
        call = Call(callback, args)
        self._ready.append(call)
        return call

    def call_later(
        self, delay: float, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> Call:
        return self.call_at(self.now + max(delay, GRAIN_S), callback, *args, context=context)

    def call_at(self, when: float, callback: Callable[..., object], *args: Any, context: Context | None = None) -> Call:
        """See asyncio. A cancelled timer stays in the queue and does nothing."""
        call = Call(callback, args)
        self.post(when, self._do, call)
        return call

    def create_future(self) -> asyncio.Future[Any]:
        return asyncio.Future(loop=self.for_asyncio)

    def create_task(
        self, coro: Any, *, name: str | None = None, context: Context | None = None, **_: Any
    ) -> asyncio.Task[Any]:
        self._not_begun[coro] = None
        return asyncio.Task(self._watched(coro), loop=self.for_asyncio, name=name or "simulated", context=context)

    async def _watched(self, coro: Coroutine[Any, Any, T]) -> T:
        del self._not_begun[coro]
        try:
            return await coro
        except self.fatal as error:
            self.failure = self.failure or error
            raise

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        """End the run with the error of a callback; a cancellation is no error."""
        error = context.get("exception") or RuntimeError(context.get("message"))
        if not isinstance(error, asyncio.CancelledError):
            self.failure = self.failure or error

    async def create_connection(self, protocol_factory: Any, host: Any = None, port: Any = None, **_: Any) -> Any:
        assert self.dialer is not None, "nobody listens in this simulation"
        return await self.dialer(protocol_factory, port)
