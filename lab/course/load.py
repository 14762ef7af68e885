"""The load: many clients that send by plan and write down what happens. lab.live.load_worker is a process of them.

Open loop: message n of a client is due at a time fixed before the run, whatever the answers do; that intended time is
written into the history, and latency counts from there, so a stalled cluster can't hide by slowing the load down.
Closed loop: each client keeps so many messages without outcome.

A worker obeys orders: Prepare is answered by Ready, Go starts, Halt ends the sending;
Tally tells how far the worker is, from Go on until nothing is under way any more.
"""

from __future__ import annotations

import asyncio
import math
import os
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from msgspec import Struct

from lab.course.environment import REAL, Environment, History
from lab.course.recording import HistoryWriter
from lab.payloads import payloads
from lab.plan.workload import ClientPlan
from lab.rows import Gen, Invoke
from nodeproc.client import Address, ChatClient
from nodeproc.core.messages import NodeId
from nodeproc.session import Outcome, SessionSettings

CONNECT_PATIENCE_S = 5.0
TALLY_EVERY_S = 0.025
MOST_UNSETTLED = 1_000_000
"""Messages without outcome in one worker; past it even an open loop waits, its intended times do not."""
MOST_AT_ONCE = 8192
"""Messages that one client is handed at once, so that acknowledgements are read in between."""

LEAST_PAUSE_S = 1e-6
"""A message may be due now and, a rounding error later, not be due yet: time must pass before the next look."""
EXACT_RATE, FINE_RATE = 1000.0, 10_000.0
FINE_TICK_S, COARSE_TICK_S = 0.002, 0.005


def tick_s(rate: float) -> float:
    """How long an open loop gathers due messages, seconds; 0: each one is sent when it is due.

    A tick for every message would make the load cost more than the cluster. On average half a tick is added to each
    latency.
    """
    return 0.0 if rate <= EXACT_RATE else FINE_TICK_S if rate <= FINE_RATE else COARSE_TICK_S


# ---- orders and answers --------------------------------------------------------------------------


class Prepare(Struct, frozen=True, tag_field="do", tag="prepare"):
    """Make these clients and connect them.

    history: the part that this worker appends to. duration: of sending, seconds; None: as the plans' counts say.
    deadline, client_token: see SessionSettings.
    """

    history: str
    addresses: dict[NodeId, Address]
    plans: tuple[ClientPlan, ...]
    duration: float | None
    deadline: float
    client_token: str = ""


class Go(Struct, frozen=True, tag_field="do", tag="go"):
    """Begin; `at` is CLOCK_MONOTONIC seconds, the zero of all plans."""

    at: float


class Halt(Struct, frozen=True, tag_field="do", tag="halt"):
    """Send nothing new."""


Order: TypeAlias = Prepare | Go | Halt


class Ready(Struct, frozen=True, tag_field="say", tag="ready"):
    """All clients are connected, or have tried for CONNECT_PATIENCE_S."""

    connected: int


class Tally(Struct, frozen=True, tag_field="say", tag="tally"):
    """Messages of this worker, over all its loads. finished: this load sends no more and all have their outcome."""

    sent: int = 0
    acknowledged: int = 0
    rejected: int = 0
    unknown: int = 0
    cpu_s: float = 0.0
    finished: bool = False

    @property
    def pending(self) -> int:
        return self.sent - self.acknowledged - self.rejected - self.unknown


Answer: TypeAlias = Ready | Tally


# ---- one client ----------------------------------------------------------------------------------


class Counts:
    """What a Tally tells, while it grows."""

    def __init__(self) -> None:
        self.sent = self.ok = self.rejected = self.unknown = 0

    @property
    def pending(self) -> int:
        return self.sent - self.ok - self.rejected - self.unknown


class LoadClient:
    """One client of the load, its plan and its rows."""

    def __init__(
        self, plan: ClientPlan, order: Prepare, history: History, counts: Counts, environment: Environment
    ) -> None:
        self.plan, self._environment = plan, environment
        self.sent = 0
        """Messages of the plan handed out so far, over all sessions."""
        self._n = 0
        """Last n of the present session."""
        self._history, self._counts = history, counts
        self._gen = Gen(plan.seed, plan.size)
        self._over = False
        self._zero: float | None = None
        """Of a closed loop that is on."""
        self.all_sent = asyncio.Event()
        self.client = environment.chat(
            [order.addresses[node] for node in plan.addresses],
            plan.client,
            settings=SessionSettings(deadline=order.deadline, client_token=order.client_token),
            on_outcome=self._on_outcome,
        )

    @property
    def finished(self) -> bool:
        """Nothing of the plan is left to be sent."""
        return self._over or (self.plan.count is not None and self.sent >= self.plan.count)

    def finish(self) -> None:
        """Send nothing more."""
        self._over = True

    def keep_in_flight(self, zero: float) -> None:
        """Closed loop: from now on replace every message that has its outcome."""
        self._zero = zero
        self._refill()

    def _refill(self) -> None:
        assert self._zero is not None
        if not self.finished:
            self.send(self.plan.in_flight - self.client.session.unsettled, self._zero)
        if self.finished:
            self.all_sent.set()

    def send(self, count: int, zero: float) -> None:
        """Hand the next messages of the plan to the client.

        Args:
            zero: when the load began, monotonic seconds.
        """
        if self.plan.count is not None:
            count = min(count, self.plan.count - self.sent)
        if count <= 0 or not self._usable():
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
        self._counts.sent += count
        first = self.client.submit_nowait(texts)
        assert first == n, (first, n)

    def _usable(self) -> bool:
        """A session that the cluster ended makes room for a fresh one once all its outcomes are told."""
        session = self.client.session
        if session.ended and not session.unsettled:
            self.client.renew()
            self._n = 0
        return not self.client.session.ended

    def _on_outcome(self, outcome: Outcome) -> None:
        self._history.outcome(self.client.session.id, outcome)
        count = outcome.last - outcome.first + 1
        match outcome.kind:
            case "ok":
                self._counts.ok += count
            case "rejected":
                self._counts.rejected += count
            case "unknown":
                self._counts.unknown += count
        if self._zero is None:
            return
        if self.client.session.ended:
            # Not from here: the session is still telling its outcomes, and has ended with them.
            asyncio.get_running_loop().call_soon(self._refill)
        else:
            self._refill()


# ---- the worker ----------------------------------------------------------------------------------


class Worker:
    """Obeys orders; one load at a time.

    Args:
        say: gets every answer.
        open_history: makes the part that the worker appends to.
        tell_every: seconds between two tallies of a load; None: one at its end, for a caller that can read `tally`.
    """

    def __init__(
        self,
        say: Callable[[Answer], None],
        open_history: Callable[[str], History] = lambda path: HistoryWriter(Path(path)),
        environment: Environment = REAL,
        tell_every: float | None = TALLY_EVERY_S,
    ) -> None:
        self._say, self._open_history, self._environment = say, open_history, environment
        self._tell_every = tell_every
        self._counts = Counts()
        self._clients: list[LoadClient] = []
        self._history: History | None = None
        self._duration: float | None = None
        self._halted = False
        self._pause: asyncio.Future[None] | None = None
        """Until the next message is due, or a halt."""
        self._run: asyncio.Task[None] | None = None
        self._teller: asyncio.Task[None] | None = None

    async def obey(self, order: Order) -> None:
        match order:
            case Prepare():
                await self._prepare(order)
            case Go():
                self._run = asyncio.create_task(self._load(order.at))
                self._teller = asyncio.create_task(self._tell_regularly(self._run))
                self._teller.add_done_callback(_die_of_errors)
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
        self._clients = [LoadClient(plan, order, history, self._counts, self._environment) for plan in order.plans]
        connected = await asyncio.gather(*(_connect(each.client) for each in self._clients))
        self._say(Ready(sum(connected)))

    async def _load(self, zero: float) -> None:
        """Send by plan until halted or done, then wait for the last outcomes and leave."""
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
        """Send what is due, and sleep until the next message is."""
        clients, duration = self._clients, math.inf if self._duration is None else self._duration
        tick = tick_s(sum(1 / each.plan.interval_s for each in clients))
        while not self._halted:
            elapsed = self._environment.now() - zero
            next_due = self._send_due(clients, min(elapsed, duration), zero)
            if elapsed >= duration or next_due == math.inf:
                break
            await self._sleep(max(zero + next_due - self._environment.now(), tick, LEAST_PAUSE_S))

    def _send_due(self, clients: Sequence[LoadClient], elapsed: float, zero: float) -> float:
        """Returns when the next message is due, seconds after zero; inf when none is left."""
        next_due = math.inf
        for each in clients:
            if each.finished:
                continue
            due = each.plan.due_count(elapsed) - each.sent
            if due > 0 and self._counts.pending < MOST_UNSETTLED:
                each.send(min(due, MOST_AT_ONCE), zero)
            if not each.finished:
                next_due = min(next_due, each.plan.due_s(each.sent + 1))
        return next_due

    async def _closed_loop(self, zero: float) -> None:
        """Let every client keep its messages in flight, until halted, done or out of time."""
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
        """Until then, or until a halt. inf: until a halt."""
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

    async def _tell_regularly(self, run: asyncio.Task[None]) -> None:
        """Say how far it is, until this load is over."""
        told = (-1, -1)
        while not run.done():
            counts = self._counts
            if (counts.sent, counts.pending) != told:
                told = (counts.sent, counts.pending)
                self._say(self.tally(finished=False))
                self._flush()
            await asyncio.wait((run,), timeout=self._tell_every)
        run.result()
        self._say(self.tally(finished=True))

    def tally(self, finished: bool) -> Tally:
        counts = self._counts
        return Tally(counts.sent, counts.ok, counts.rejected, counts.unknown, self._environment.cpu_s(), finished)


async def _connect(client: ChatClient) -> bool:
    """Start the client, and give it a while to be welcomed; it goes on trying after that."""
    client.start()
    try:
        async with asyncio.timeout(CONNECT_PATIENCE_S):
            await client.until(lambda: client.session.welcomed)
    except TimeoutError:
        return False
    return True


def _end_pause(pause: asyncio.Future[None] | None) -> None:
    if pause is not None and not pause.done():
        pause.set_result(None)


def _die_of_errors(task: asyncio.Task[None]) -> None:
    """An error in a task of ours must not leave a worker that only looks alive."""
    if not task.cancelled() and (error := task.exception()) is not None:
        traceback.print_exception(error)
        os._exit(70)
