"""The processes of a load, as the harness holds them."""

from __future__ import annotations

import asyncio
import math
import os
import time
from collections.abc import Callable

import msgspec

from lab.course.clients import START_DELAY_S, Addresses
from lab.course.load import Answer, Go, Halt, Prepare, Ready, Tally
from lab.live.children import Child
from lab.plan.scenario import Load
from lab.plan.workload import ClientPlan, client_plans, share
from lab.rundir import RunDir
from nodeproc.core.messages import NodeId

WORKER_RATE = 400_000.0
"""Messages a second that one worker is asked for. It was seen to spend 1.1 µs of CPU a message, payload included."""


def worker_count(load: Load) -> int:
    """Processes that a load gets: what the scenario says, or what its rate needs, but no more than clients."""
    needed = load.workers or math.ceil((load.rate or 1.0) / WORKER_RATE)
    return max(1, min(needed, load.clients, load.workers or (os.cpu_count() or 1)))


class LoadWorkers:
    """The load of a run. It may be started again after it was stopped or has come to its end.

    Args:
        count: worker processes.
        client_token: what their clients show to the nodes.
    """

    def __init__(self, load: Load, run: RunDir, seed: int, count: int, client_token: str = "") -> None:
        self._load, self._run, self._seed, self._count = load, run, seed, count
        self._client_token = client_token
        self._children: list[Child] = []
        self._readers: list[asyncio.Task[None]] = []
        self._tallies: list[Tally] = []
        self._ready: list[asyncio.Event] = []
        self._news = asyncio.Event()
        self._used: list[bool] = []
        """Workers that have a plan in the present load."""

    async def spawn(self) -> None:
        """Start the processes, so that a later start is quick."""
        for number in range(1, self._count + 1):
            log = self._run.path / f"load-{number}.log"
            child = await Child.spawn(f"load worker {number}", "lab.live.load_worker", log)
            self._children.append(child)
            self._tallies.append(Tally(finished=True))
            self._ready.append(asyncio.Event())
            self._readers.append(asyncio.create_task(self._read(number - 1, child)))
        self._used = [False] * self._count

    async def _read(self, index: int, child: Child) -> None:
        decode = msgspec.json.Decoder(Answer).decode
        try:
            while True:
                match decode(await child.answer()):
                    case Ready():
                        self._ready[index].set()
                    case Tally() as tally:
                        self._tallies[index] = tally
                self._news.set()
        finally:
            self._news.set()

    async def start(self, via: tuple[NodeId, ...], addresses: Addresses) -> None:
        """Connect all clients, then let all workers begin at one moment.

        Raises:
            RunFailed: a worker ended.
        """
        assert self.finished
        shares = share(client_plans(self._load, via, self._seed), self._count)
        self._used = [index < len(shares) for index in range(self._count)]
        for index, plans in enumerate(shares):
            self._ready[index].clear()
            self._tallies[index] = msgspec.structs.replace(self._tallies[index], finished=False)
            self._children[index].order(msgspec.json.encode(self._prepare(index, plans, addresses)))
        await self._until(lambda: all(self._ready[index].is_set() for index in range(len(shares))))
        go = msgspec.json.encode(Go(time.monotonic() + START_DELAY_S))
        for index in range(len(shares)):
            self._children[index].order(go)

    def _prepare(self, index: int, plans: tuple[ClientPlan, ...], addresses: Addresses) -> Prepare:
        return Prepare(
            history=str(self._run.history_part(index + 1)),
            addresses=addresses,
            plans=plans,
            duration=None if self._load.duration is None else float(self._load.duration),
            deadline=float(self._load.deadline),
            client_token=self._client_token,
        )

    def halt(self) -> None:
        """Send nothing new."""
        for index, child in enumerate(self._children):
            if self._used[index]:
                child.order(msgspec.json.encode(Halt()))

    async def settled(self) -> None:
        """Wait until every message has its outcome.

        Raises:
            RunFailed: a worker ended.
        """
        await self._until(lambda: self.finished)

    @property
    def finished(self) -> bool:
        """No worker sends any more, and every message has its outcome."""
        return all(tally.finished for tally in self._tallies)

    @property
    def total(self) -> Tally:
        """All workers added up, as they told last."""
        tallies = self._tallies
        return Tally(
            sent=sum(each.sent for each in tallies),
            acknowledged=sum(each.acknowledged for each in tallies),
            rejected=sum(each.rejected for each in tallies),
            unknown=sum(each.unknown for each in tallies),
            cpu_s=round(sum(each.cpu_s for each in tallies), 3),
            finished=self.finished,
        )

    async def _until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            self.check()
            self._news.clear()
            await self._news.wait()

    def check(self) -> None:
        """Raises what ended a worker's reader, if one has ended."""
        for reader in self._readers:
            if reader.done():
                reader.result()

    async def close(self) -> None:
        """End the processes; what they have written is whole then."""
        for reader in self._readers:
            reader.cancel()
        await asyncio.gather(*self._readers, return_exceptions=True)
        await asyncio.gather(*(child.close() for child in self._children))

    def kill(self) -> None:
        for child in self._children:
            child.kill()

    async def gone(self) -> None:
        """Wait for the end of processes that were killed."""
        await asyncio.gather(*self._readers, return_exceptions=True)
        await asyncio.gather(*(child.process.wait() for child in self._children))
