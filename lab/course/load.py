"""The load: many clients that send by plan and record what happens. lab.live.load_worker runs a worker as a process.

Open loop: message n of a client is due at a time fixed before the run, independent of any answer. The history contains
this intended time, and latency counts from it, so that a stalled cluster cannot hide by slowing the load down.
Closed loop: each client keeps a fixed number of messages without outcome.

A worker obeys orders: it answers Prepare with Ready, Go starts the sending, Halt ends it. From Go on the worker reports
its progress in a Tally, until all its messages have an outcome.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from msgspec import structs

from lab.course.environment import REAL, Environment
from lab.course.recording import History, HistoryWriter
from lab.course.worker_orders import Answer, Go, Halt, Order, Prepare, Ready, Tally
from lab.payloads import payloads
from lab.plan.scenario import Load
from lab.plan.workload import ClientPlan, client_plans, share
from lab.rows import Gen, Invoke
from nodeproc.client import Address, ChatClient
from nodeproc.core.messages import NodeId
from nodeproc.outcome import Outcome
from nodeproc.session import SessionSettings

CONNECT_PATIENCE_S: Final = 5.0
START_DELAY_S: Final = 0.02
"""Time from the order Go to the start of the sending, so that all workers start at the same moment."""
REPORT_EVERY_S: Final = 0.025
MOST_UNSETTLED: Final = 1_000_000
"""Limit of messages without outcome in one worker. Beyond it an open loop waits too; its intended times do not."""
MOST_AT_ONCE: Final = 8192
"""Messages that a client gets at once; after each such portion the worker can read acknowledgements."""

LEAST_PAUSE_S: Final = 1e-6
"""Shortest sleep: rounding may make a message that is due now appear not to be due."""
EXACT_RATE: Final = 1000.0
FINE_RATE: Final = 10_000.0
FINE_TICK_S: Final = 0.002
COARSE_TICK_S: Final = 0.005


def tick_s(rate: float) -> float:
    """Return for how long an open loop gathers due messages, seconds; 0: each message is sent when it is due.

    A wake-up for every message would make the load cost more than the cluster. On average half a tick is added to each
    latency.
    """
    return 0.0 if rate <= EXACT_RATE else FINE_TICK_S if rate <= FINE_RATE else COARSE_TICK_S


# ---- one client ----------------------------------------------------------------------------------


class LoadClient:
    """One client of the load, its plan and its rows.

    Args:
        tally: of the worker; the client adds its messages.
    """

    def __init__(
        self, plan: ClientPlan, order: Prepare, history: History, tally: Tally, environment: Environment
    ) -> None:
        self.plan, self._environment = plan, environment
        self.sent = 0
        """Messages of the plan sent so far, in all sessions."""
        self._n = 0
        """Last n of the present session."""
        self._history, self._tally = history, tally
        self._gen = Gen(plan.seed, plan.size)
        self._over = False
        self._zero: float | None = None
        """Start of a closed loop that is running; None in an open loop."""
        self.all_sent = asyncio.Event()
        self.client = environment.chat(
            [order.addresses[node] for node in plan.addresses],
            plan.client,
            settings=SessionSettings(deadline=order.deadline, client_token=order.client_token),
            on_outcome=self._on_outcome,
        )

    @property
    def finished(self) -> bool:
        """True if nothing of the plan is left to be sent."""
        return self._over or (self.plan.count is not None and self.sent >= self.plan.count)

    def finish(self) -> None:
        """Send no new messages."""
        self._over = True

    def keep_in_flight(self, zero: float) -> None:
        """Closed loop: from now on send a new message for each one that gets its outcome."""
        self._zero = zero
        self._refill()

    def _refill(self) -> None:
        assert self._zero is not None
        if not self.finished:
            self.send(self.plan.in_flight - self.client.session.unsettled, self._zero)
            if not self.finished:
                return
        self.all_sent.set()

    def send(self, count: int, zero: float) -> None:
        """Hand the next messages of the plan to the client library.

        Args:
            zero: when the load began, monotonic seconds.
        """
        if self.plan.count is not None:
            count = min(count, self.plan.count - self.sent)
        if count <= 0 or (self.client.session.ended and not self._usable()):
            return
        n, plan = self._n + 1, self.plan
        texts = payloads(plan.seed, plan.client, n, count, plan.size)
        now = self._environment.now_ns()
        intended, every = now, 0
        if plan.interval_s:
            intended = int((zero + plan.due_s(self.sent + 1)) * 1e9)
            every = int(plan.interval_s * 1e9)
        session = self.client.session.id
        self._history.write(Invoke(now, plan.client, session, n, count, intended, every, gen=self._gen))
        self._n += count
        self.sent += count
        self._tally.sent += count
        first = self.client.submit_nowait(texts)
        assert first == n, (first, n)

    def _usable(self) -> bool:
        """Replace a session that has ended, if it has reported all its outcomes; return whether it did so."""
        if self.client.session.unsettled:
            return False
        self.client.renew()
        self._n = 0
        return True

    def _on_outcome(self, outcome: Outcome) -> None:
        self._history.outcome(self.client.session.id, outcome)
        count = outcome.last - outcome.first + 1
        if outcome.kind == "ok":
            self._tally.acknowledged += count
        elif outcome.kind == "rejected":
            self._tally.rejected += count
        else:
            self._tally.unknown += count
        if self._zero is None:
            return
        if self.client.session.ended:
            # Not from here: the session has ended, and is still reporting its last outcomes.
            asyncio.get_running_loop().call_soon(self._refill)
        else:
            self._refill()


# ---- the worker ----------------------------------------------------------------------------------


class Worker:
    """Obeys orders; one load at a time.

    Args:
        say: called with every answer.
        open_history: opens the file to which the worker appends.
        report_every: seconds between two tallies of a load; None: only one at its end, for a caller that reads `tally`.
    """

    def __init__(
        self,
        say: Callable[[Answer], None],
        open_history: Callable[[str], History] = lambda path: HistoryWriter(Path(path)),
        environment: Environment = REAL,
        report_every: float | None = REPORT_EVERY_S,
    ) -> None:
        self._say, self._open_history, self._environment = say, open_history, environment
        self._report_every = report_every
        self._tally = Tally()
        self._clients: list[LoadClient] = []
        self._history: History | None = None
        self._duration: float | None = None
        self._halted = False
        self._pause: asyncio.Future[None] | None = None
        """Ends when the next message is due, or at a halt."""
        self._run: asyncio.Task[None] | None = None
        self._reporter: asyncio.Task[None] | None = None

    async def obey(self, order: Order) -> None:
        """Carry out an order."""
        match order:
            case Prepare():
                await self._prepare(order)
            case Go():
                self._run = asyncio.create_task(self._load(order.at))
                self._reporter = asyncio.create_task(self._report(self._run))
                self._reporter.add_done_callback(_die_of_errors)
            case Halt():
                self._halted = True
                _end_pause(self._pause)

    async def _prepare(self, order: Prepare) -> None:
        if self._run is not None:
            await self._run
        self._run = None
        self._halted = False
        self._duration = order.duration
        history = self._history = self._history or self._open_history(order.history)
        self._clients = [LoadClient(plan, order, history, self._tally, self._environment) for plan in order.plans]
        await asyncio.gather(*(_connect(each.client) for each in self._clients))
        self._say(Ready())

    async def _load(self, zero: float) -> None:
        """Send by plan until halted or done, wait for the last outcomes, and close the clients."""
        await asyncio.sleep(max(zero - self._environment.now(), 0.0))
        if self._clients[0].plan.in_flight:
            await self._closed_loop(zero)
        else:
            await self._open_loop(zero)
        await asyncio.gather(*(each.client.drained() for each in self._clients))
        await asyncio.gather(*(each.client.close() for each in self._clients))
        self._flush()

    def _flush(self) -> None:
        assert self._history is not None
        self._history.flush()

    async def _open_loop(self, zero: float) -> None:
        """Send all messages that are due, sleep until the next one is, and repeat."""
        clients, duration = self._clients, math.inf if self._duration is None else self._duration
        tick = tick_s(sum(1 / each.plan.interval_s for each in clients))
        while not self._halted:
            elapsed = self._environment.now() - zero
            next_due = self._send_due(clients, min(elapsed, duration), zero)
            if elapsed >= duration or next_due == math.inf:
                break
            await self._sleep(max(zero + next_due - self._environment.now(), tick, LEAST_PAUSE_S))

    def _send_due(self, clients: Sequence[LoadClient], elapsed: float, zero: float) -> float:
        """Send what is due; return when the next message is due, seconds after zero, inf if none is left."""
        next_due = math.inf
        for each in clients:
            if each.finished:
                continue
            due = each.plan.due_count(elapsed) - each.sent
            if due > 0 and self._tally.pending < MOST_UNSETTLED:
                each.send(min(due, MOST_AT_ONCE), zero)
            if not each.finished:
                next_due = min(next_due, each.plan.due_s(each.sent + 1))
        return next_due

    async def _closed_loop(self, zero: float) -> None:
        """Let every client keep its messages in flight, until the load is halted, done or out of time."""
        until = math.inf if self._duration is None else zero + self._duration
        for each in self._clients:
            each.keep_in_flight(zero)
        ends: list[asyncio.Future[Any]] = [
            asyncio.ensure_future(self._sleep(until - self._environment.now())),
            asyncio.gather(*(each.all_sent.wait() for each in self._clients)),
        ]
        await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        for end in ends:
            end.cancel()
        for each in self._clients:
            each.finish()

    async def _sleep(self, seconds: float) -> None:
        """Sleep this long, or until a halt. inf: until a halt."""
        if self._halted:
            return
        loop = asyncio.get_running_loop()
        pause = self._pause = loop.create_future()
        timer = loop.call_later(max(seconds, 0.0), _end_pause, pause) if seconds != math.inf else None
        try:
            await pause
        finally:
            if timer is not None:
                timer.cancel()

    async def _report(self, run: asyncio.Task[None]) -> None:
        """Report the progress until this load has ended."""
        reported = (-1, -1)
        while not run.done():
            progress = (self._tally.sent, self._tally.pending)
            if progress != reported:
                reported = progress
                self._say(self.tally(finished=False))
                self._flush()
            await asyncio.wait((run,), timeout=self._report_every)
        run.result()
        self._say(self.tally(finished=True))

    def tally(self, finished: bool) -> Tally:
        """Return the tally as it is now."""
        return structs.replace(self._tally, cpu_s=self._environment.cpu_s(), finished=finished)


async def _connect(client: ChatClient) -> None:
    """Start the client and wait for its WELCOME, at most CONNECT_PATIENCE_S; the client goes on trying after that."""
    client.start()
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(CONNECT_PATIENCE_S):
            await client.until(lambda: client.session.welcomed)


def _end_pause(pause: asyncio.Future[None] | None) -> None:
    if pause is not None and not pause.done():
        pause.set_result(None)


def _die_of_errors(task: asyncio.Task[None]) -> None:
    """End the process if one of its tasks failed; otherwise the worker would only look alive."""
    if not task.cancelled() and (error := task.exception()) is not None:
        traceback.print_exception(error)
        os._exit(70)


# ---- all workers of a run ------------------------------------------------------------------------


class Workers:
    """The load of a run: its workers, in processes of their own or in this one. It may be started again after its end.

    Args:
        count: number of workers.
        client_token: the token that their clients send to the nodes; "": none.
    """

    def __init__(
        self, load: Load, seed: int, count: int, client_token: str = "", environment: Environment = REAL
    ) -> None:
        self.count = count
        self._load, self._seed, self._client_token, self._environment = load, seed, client_token, environment
        self._tallies = [Tally(finished=True) for _ in range(count)]
        self._ready: set[int] = set()
        self._used = range(0)
        """The workers that have a plan in the present load."""
        self._news = asyncio.Event()

    async def spawn(self) -> None:
        """Start the processes, if there are any, so that a later start is quick."""

    async def order(self, worker: int, order: Order) -> None:
        """Give an order to a worker (from 0); its answers come to `on_answer`."""
        raise NotImplementedError

    def on_answer(self, worker: int, answer: Answer) -> None:
        """Handle the answer of a worker."""
        match answer:
            case Ready():
                self._ready.add(worker)
            case Tally():
                self._tallies[worker] = answer
        self._news.set()

    async def start(self, via: tuple[NodeId, ...], addresses: dict[NodeId, Address]) -> None:
        """Connect all clients, then let all workers start at the same moment.

        Raises:
            RunFailed: a worker has ended.
        """
        assert self.finished
        load, shares = self._load, share(client_plans(self._load, via, self._seed), self.count)
        duration = None if load.duration is None else float(load.duration)
        self._used = range(len(shares))
        self._ready.clear()
        for worker, plans in enumerate(shares):
            self._tallies[worker] = structs.replace(self._tallies[worker], finished=False)
            history = self.history_of(worker)
            prepare = Prepare(history, addresses, plans, duration, float(load.deadline), self._client_token)
            await self.order(worker, prepare)
        await self._until(lambda: len(self._ready) == len(shares))
        go = Go(self._environment.now() + START_DELAY_S)
        for worker in self._used:
            await self.order(worker, go)

    def history_of(self, worker: int) -> str:
        """Return the path to which a worker writes its history; "" in a simulation."""
        return ""

    async def halt(self) -> None:
        """Send no new messages."""
        for worker in self._used:
            await self.order(worker, Halt())

    async def settled(self) -> None:
        """Wait until every message has its outcome.

        Raises:
            RunFailed: a worker has ended.
        """
        await self._until(lambda: self.finished)

    @property
    def finished(self) -> bool:
        """True if no worker sends any more, and every message has its outcome."""
        return all(tally.finished for tally in self._tallies)

    @property
    def total(self) -> Tally:
        """The sum over all workers, by their latest reports."""
        tallies = self.tallies()
        return Tally(
            sent=sum(each.sent for each in tallies),
            acknowledged=sum(each.acknowledged for each in tallies),
            rejected=sum(each.rejected for each in tallies),
            unknown=sum(each.unknown for each in tallies),
            cpu_s=round(sum(each.cpu_s for each in tallies), 3),
            finished=self.finished,
        )

    def tallies(self) -> Sequence[Tally]:
        """Return the latest tally of each worker."""
        return self._tallies

    async def _until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            self.check()
            self._news.clear()
            await self._news.wait()

    def check(self) -> None:
        """Raise the error with which a worker has ended, if one has."""

    async def close(self) -> None:
        """End the processes, if there are any; afterwards everything they wrote is complete."""
