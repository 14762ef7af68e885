"""The load of a live run: each worker is a process."""

from __future__ import annotations

import asyncio
import math
import os

import msgspec

from lab.course.load import Workers
from lab.course.worker_orders import Answer, Order
from lab.live.children import Child, Children
from lab.plan.scenario import Load
from lab.rundir import RunDir

WORKER_RATE = 400_000.0
"""Messages a second for which one worker is enough. Measured: 1.1 µs of CPU a message, payload included."""


def worker_count(load: Load) -> int:
    """Return the number of processes for a load: as the scenario says, or as its rate needs; at most one a client."""
    needed = load.workers or math.ceil((load.rate or 1.0) / WORKER_RATE)
    return max(1, min(needed, load.clients, load.workers or (os.cpu_count() or 1)))


class LoadWorkers(Workers):
    """See Workers. children: the child processes of the run, to which the workers belong."""

    def __init__(
        self, load: Load, run: RunDir, seed: int, count: int, children: Children, client_token: str = ""
    ) -> None:
        super().__init__(load, seed, count, client_token)
        self._run, self._siblings = run, children
        self._children: list[Child] = []
        self._readers: list[asyncio.Task[None]] = []

    async def spawn(self) -> None:
        for worker in range(self.count):
            number = worker + 1
            log = self._run.path / f"load-{number}.log"
            child = await self._siblings.spawn(f"load worker {number}", "lab.live.load_worker", log)
            self._children.append(child)
            reader = asyncio.create_task(self._read(worker, child))
            reader.add_done_callback(self._on_reader_end)
            self._readers.append(reader)

    async def _read(self, worker: int, child: Child) -> None:
        decode = msgspec.json.Decoder(Answer).decode
        while True:
            self.on_answer(worker, decode(await child.answer()))

    def _on_reader_end(self, reader: asyncio.Task[None]) -> None:
        if not reader.cancelled():
            reader.exception()  # Marks the exception as retrieved; check() raises it.
        self._news.set()

    async def order(self, worker: int, order: Order) -> None:
        self._children[worker].order(msgspec.json.encode(order))

    def history_of(self, worker: int) -> str:
        return str(self._run.history_part(worker + 1))

    def check(self) -> None:
        for reader in self._readers:
            if reader.done():
                reader.result()

    async def close(self) -> None:
        for reader in self._readers:
            reader.cancel()
        await asyncio.gather(*self._readers, return_exceptions=True)
        await asyncio.gather(*(child.close() for child in self._children))
