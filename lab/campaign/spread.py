"""Spread a campaign's orders over the workers of a Dask cluster, and collect the answers.

Dask moves orders and answers and knows the workers; the state of the campaign is in its store alone. So nothing that
dies takes a result with it: the orders of a worker that is gone are given to another one, and after the loss of the
scheduler the campaign waits for it and starts the unanswered orders again.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

from lab.campaign import work
from lab.campaign.orders import Lost, Order, decode_answer, encode
from lab.campaign.queue import Queue

TASK_SEEDS: Final = 8
"""Maximum number of seeds in one Dask task; Dask costs a task about 3 ms of CPU time."""
AHEAD: Final = 2
"""Tasks for each thread of the workers, so that none waits for the campaign."""
ANY_PORT: Final = {"dashboard": False, "dashboard_address": "127.0.0.1:0"}
"""Of the HTTP server that a Dask scheduler always starts."""
POLL_S: Final = 1.0
ANSWER_S: Final = 5.0
"""A scheduler that does not answer within this time counts as lost."""
ADMIT_S: Final = 60.0
"""So does one whose workers do not say within this time which code they have."""
PATIENCE_S: Final = 120.0
"""Time without any worker after which the campaign stops; `resume` continues it."""


T = TypeVar("T")


class NoWorkers(Exception):
    """The campaign cannot go on; the text says why."""


class _Disconnected(Exception):
    """The connection to the scheduler is lost."""


@dataclass(frozen=True, slots=True)
class Cluster:
    """Where a campaign runs.

    scheduler: address of a Dask scheduler, such as tcp://host:8786; "" to start workers in this process.
    jobs: number of those workers.
    patience_s: as PATIENCE_S.
    """

    scheduler: str = ""
    jobs: int = 1
    patience_s: float = PATIENCE_S


async def play_all(queue: Queue, cluster: Cluster, progress: Callable[[str], None]) -> None:
    """Carry out all orders of a campaign.

    Args:
        progress: called with a line about what happens to the cluster.

    Raises:
        NoWorkers: no worker of the campaign's code was there for patience_s.
    """
    seen_at = time.monotonic()
    if not (some := queue.next(1)):
        return
    queue.put_back(some)
    while True:
        try:
            async with _connected(cluster) as client:
                session = _Session(client, queue, cluster, progress, seen_at)
                try:
                    await session.run()
                    return
                except asyncio.CancelledError:
                    progress("interrupted: closing the connection to the workers")
                    raise
                finally:
                    seen_at = session.seen_at
                    queue.store.spend(queue.spent_s)
        except _Disconnected as error:
            if time.monotonic() - seen_at >= cluster.patience_s:
                raise NoWorkers(f"no connection to {cluster.scheduler} for {cluster.patience_s:g} s: {error}") from None
            progress(f"waiting for the scheduler {cluster.scheduler}")
            await asyncio.sleep(POLL_S)


@contextlib.asynccontextmanager
async def _connected(cluster: Cluster) -> AsyncIterator[Any]:
    """Connect to the scheduler, or start one with its workers in this process."""
    from distributed import Client, LocalCluster

    for name in ("distributed", "distributed.client"):  # The campaign itself reports what concerns the user.
        logging.getLogger(name).setLevel(logging.CRITICAL)
    if cluster.scheduler:
        made = Client(cluster.scheduler, asynchronous=True, timeout=f"{ANSWER_S}s", name="chatlab campaign")
        try:
            client = await _answered(made, 2 * ANSWER_S)  # By then it says itself why it could not connect.
            yield client
        finally:
            with contextlib.suppress(_Disconnected):
                await _answered(made.close())
        return
    work.open_children()
    async with (
        LocalCluster(
            n_workers=cluster.jobs,
            threads_per_worker=1,
            processes=False,  # The seeds run in processes of their own, see lab.campaign.work.
            scheduler_kwargs=ANY_PORT,
            memory_limit=None,
            silence_logs=logging.CRITICAL,
            asynchronous=True,
        ) as local,
        Client(local, asynchronous=True) as client,
    ):
        try:
            yield client
        finally:
            work.close_children()


async def _answered(request: Awaitable[T], within_s: float = ANSWER_S) -> T:
    """Return the scheduler's answer.

    Raises:
        _Disconnected: it does not answer in this time, or the connection is lost.
    """
    try:
        async with asyncio.timeout(within_s):
            return await request
    except OSError as error:  # TimeoutError is one.
        raise _Disconnected(str(error) or "no answer") from None


@dataclass(slots=True)
class _Task:
    """Orders that a Dask task carries out. workers: the addresses that may do so."""

    orders: list[Order]
    future: Any
    workers: frozenset[str]


@dataclass(slots=True)
class _Session:
    """The work during one connection to a scheduler.

    seen_at: when there was last a worker that may play, in seconds of time.monotonic().
    """

    client: Any
    queue: Queue
    cluster: Cluster
    progress: Callable[[str], None]
    seen_at: float
    _threads: dict[str, int] = field(default_factory=dict)
    """Address -> number of threads, of the workers that may play."""
    _refused: dict[str, str] = field(default_factory=dict)
    """Address -> why this worker may not play."""
    _running: dict[asyncio.Task[tuple[str, list[bytes]] | None], _Task] = field(default_factory=dict)
    _polled_at: float = float("-inf")

    async def run(self) -> None:
        """Carry out orders until none is left.

        Raises:
            _Disconnected, NoWorkers
        """
        try:
            while True:
                await self._poll()
                self._fill()
                if not self._running and self._threads:
                    return
                await self._collect()
        finally:
            for waiting, task in self._running.items():
                waiting.cancel()
                self.queue.put_back(task.orders)

    # ---- workers -------------------------------------------------------------------------------------

    async def _poll(self) -> None:
        """Once a second: notice workers that came or went, and save the running time."""
        now = time.monotonic()
        if now < self._polled_at + POLL_S:
            return
        self._polled_at = now
        self.queue.store.spend(self.queue.spent_s)
        if self.client.status != "running":
            raise _Disconnected("the scheduler has closed the connection")
        found: dict[str, int] = await _answered(self.client.nthreads())
        new = found.keys() - self._threads.keys() - self._refused.keys()
        if new:
            await self._admit({address: found[address] for address in sorted(new)})
        self._threads = {address: count for address, count in self._threads.items() if address in found}
        self._refused = {address: why for address, why in self._refused.items() if address in found}
        if self._threads:
            self.seen_at = now
        elif now - self.seen_at >= self.cluster.patience_s:
            refused = "".join(f"\n  {why}" for why in self._refused.values())
            raise NoWorkers(f"no worker with code {self._code} for {self.cluster.patience_s:g} s{refused}")
        for task in self._running.values():
            if not task.workers & self._threads.keys():
                await _answered(task.future.cancel())

    @property
    def _root(self) -> str:
        directory = self.queue.store.code_directory
        return "" if directory is None else str(directory)

    @property
    def _code(self) -> str:
        return self.queue.store.settings.code

    async def _admit(self, new: dict[str, int]) -> None:
        """Ask new workers for their code; accept those that have the campaign's."""
        answers = await _answered(
            self.client.run(work.describe, self._root, workers=list(new), on_error="return"), ADMIT_S
        )
        for address, answer in answers.items():
            if isinstance(answer, tuple) and answer[0] == self._code:
                self._threads[address] = new[address]
                continue
            found = (
                f"on {answer[1]}: found code {answer[0]}" if isinstance(answer, tuple) else f"has no code: {answer!r}"
            )
            self._refused[address] = f"worker {address} {found}, allowed {self._code}"
            self.progress(f"refused: {self._refused[address]}")

    # ---- tasks ---------------------------------------------------------------------------------------

    def _fill(self) -> None:
        """Give the workers work, until each of them has some in reserve."""
        threads = sum(self._threads.values())
        while len(self._running) < threads * AHEAD and (orders := self.queue.next(self._size(threads))):
            future = self.client.submit(
                work.carry_out,
                self._root,
                self._code,
                not any(self.queue.store.settings.mutants),
                [encode(order) for order in orders],
                workers=list(self._threads),
                pure=False,  # So each task has a name of its own; Dask takes tasks of one name for one task.
            )
            self._running[asyncio.create_task(_ended(future))] = _Task(orders, future, frozenset(self._threads))

    def _size(self, threads: int) -> int:
        """Return the number of seeds of the next task: fewer in a small campaign, so that all workers have some."""
        count = self.queue.store.settings.count
        return max(1, min(TASK_SEEDS, count // (4 * threads))) if count else TASK_SEEDS

    async def _collect(self) -> None:
        """Wait for the next answers, for POLL_S at most, and record them."""
        if not self._running:
            await asyncio.sleep(POLL_S)
            return
        done, _ = await asyncio.wait(self._running, timeout=POLL_S, return_when=asyncio.FIRST_COMPLETED)
        for each in done:
            await self._take(self._running[each], each.result())
            del self._running[each]

    async def _take(self, task: _Task, ended: tuple[str, list[bytes]] | None) -> None:
        if ended is not None:
            worker, answers = ended
            for order, answer in zip(task.orders, answers, strict=True):
                self.queue.take(order, decode_answer(answer), worker)
        elif task.future.status == "error":
            await self._take_error(task)
        else:  # The connection is lost, or none of the task's workers is left.
            self.queue.put_back(task.orders)

    async def _take_error(self, task: _Task) -> None:
        from distributed import KilledWorker

        error = await _answered(task.future.exception())
        if not isinstance(error, KilledWorker):
            raise NoWorkers(f"a worker or the scheduler, which both need this lab, cannot play: {error}")
        if len(task.orders) > 1:  # One by one, only the order that ends its worker is lost.
            self.queue.put_back(task.orders, alone=True)
        else:
            self.queue.take(task.orders[0], Lost(f"several workers ended: {error}"), "")


async def _ended(future: Any) -> tuple[str, list[bytes]] | None:
    """Wait for the end of a task; return the worker and its answers, or None if there are none."""
    try:
        result: tuple[str, list[bytes]] = await future
    except Exception:  # The future's status says why.
        return None
    return result
