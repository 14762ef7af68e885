"""The client library: one session of one chat client over asyncio, on the nodes it is given.

    async with ChatClient([("127.0.0.1", 5001), ("127.0.0.1", 5002)], client_id=101) as client:
        outcome = await client.send("hello")

All rules live in nodeproc.session; here are the sockets, the timer and the choice of the next node. One node is used
at a time: the first address that answers; when its connection is lost, or it lets the client wait too long, the next.
With one address alone a node that answers is not left: it tells as soon as there is a leader again.
"""

from __future__ import annotations

import asyncio
import os
import random
import secrets
import ssl
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, Final, TypeAlias, cast

from msgspec import UNSET

from nodeproc.core.messages import NOBODY, SeqNo
from nodeproc.errors import FrameError, Unreachable
from nodeproc.lines import Reject, Status, StatusRequest, decode_node_line, encode_line
from nodeproc.net.nodestream import NodeStream, Shown
from nodeproc.net.sockets import send_at_once
from nodeproc.session import EXPIRED, NEVER, Outcome, Session, SessionSettings
from nodeproc.tls import describe

Address: TypeAlias = tuple[str, int]
"""(host, port)"""

CONNECT_TIMEOUT_S: Final = 3.0
BACKOFF_FIRST_S: Final = 0.02
BACKOFF_MAX_S: Final = 1.0
WRITE_BUFFER_BYTES: Final = 512 << 10
"""Past it no more lines are made: what waits stays in the session, where it can still be packed into larger lines."""
UNREAD_BYTES: Final = 4 << 20
"""A subscriber that has not taken so much makes the client stop reading."""


class _Connection(asyncio.Protocol):
    """One TCP connection to a node, for as long as it lasts."""

    def __init__(self, client: ChatClient) -> None:
        self._client = client
        self._stream = NodeStream()
        self.transport: asyncio.Transport
        self.writable = True
        self.reading = True
        self.lost: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        """The reason, once the connection is gone."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport = cast(asyncio.Transport, transport)  # uvloop's is no subclass
        transport.set_write_buffer_limits(high=WRITE_BUFFER_BYTES)
        send_at_once(transport)

    def data_received(self, data: bytes) -> None:
        session, now = self._client.session, self._client._clock()
        try:
            for line in self._stream.feed(data):
                session.received(line, now)
        except FrameError as error:
            self.give_up(str(error))
        self._client._turn()

    def pause_writing(self) -> None:
        self.writable = False

    def resume_writing(self) -> None:
        self.writable = True
        self._client._turn()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.lost.done():
            self.lost.set_result(why_lost(exc) if exc else self._client.session.problem or "closed by the node")
        self.writable = False
        self._client._turn()

    def give_up(self, reason: str) -> None:
        """Close at once, without sending what is buffered: it will be sent again elsewhere."""
        self.writable = False
        if not self.lost.done():
            self.lost.set_result(reason)
        self.transport.abort()

    def read(self, on: bool) -> None:
        if on != self.reading and not self.transport.is_closing():
            self.reading = on
            if on:
                self._client.session.excuse(self._client._clock())
                self.transport.resume_reading()
            else:
                self.transport.pause_reading()


class ChatClient:
    """A chat client that survives the nodes it talks to.

    Args:
        addresses: the nodes, in order of preference.
        session_token: the session's secret; made up where it is empty. Never one that was used before.
        on_outcome: called with every Outcome, a range of messages each, in no particular order between ranges.
        on_change: called when the connection, the leader or the term changed; without a leader, also when nodes come
            or go, and when a first message waits.
        rng: for the jitter of the back-off.
        clock: monotonic seconds.
        tokens: makes a session's token that nobody else has.
        tls: what nodeproc.tls.client_tls made; None: no TLS.
    """

    def __init__(
        self,
        addresses: Sequence[Address],
        client_id: int,
        *,
        session_token: str = "",
        settings: SessionSettings | None = None,
        on_outcome: Callable[[Outcome], None] | None = None,
        on_change: Callable[[], None] | None = None,
        rng: random.Random | None = None,
        clock: Callable[[], float] = time.monotonic,
        tokens: Callable[[], str] | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        assert addresses, "no address"
        self.addresses = list(addresses)
        self._tls = tls
        self._clock, self._tokens = clock, tokens or new_token
        self.session = self._session(client_id, session_token, settings)
        self.last_error = ""
        """Why the latest connection, or attempt at one, failed."""
        self._on_outcome = on_outcome
        self._on_change = on_change
        self._on_shown: Callable[[Shown], None] | None = None
        self._rng = rng or random.Random()
        self._connection: _Connection | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._at = -1
        """Index of the address in use."""
        self._futures: dict[int, asyncio.Future[Outcome]] = {}
        self._waiters: list[tuple[Callable[[], bool], asyncio.Future[None]]] = []
        self._timer: asyncio.TimerHandle | None = None
        self._turn_due = False
        self._closed = False
        self._known: tuple[object, ...] = ()

    # ---- life ------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin to connect, and stay connected until close(). Messages may be submitted at once."""
        assert self._keeper is None
        self._keeper = asyncio.get_running_loop().create_task(self._keep_connected())

    async def connect(self, timeout_s: float = 10.0) -> None:
        """Start, and wait for the first node's WELCOME.

        Raises:
            Unreachable: none came in time, or the client token is wrong; the client is closed.
        """
        self.start()
        try:
            async with asyncio.timeout(timeout_s):
                await self.until(lambda: self.session.welcomed or bool(self.session.ended))
            if self.session.ended:
                await self.close()
                raise Unreachable(f"not taken as a client: {self.session.ended}")
        except TimeoutError:
            await self.close()
            places = ", ".join(f"{host}:{port}" for host, port in self.addresses)
            raise Unreachable(f"no node answered at {places} within {timeout_s:g} s: {self.last_error}") from None

    async def close(self) -> None:
        """Leave. Messages without an outcome get one: unknown, or rejected where they were never sent."""
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.wait([self._keeper])
            if not self._keeper.cancelled():
                self._keeper.result()  # It never returns: this raises what went wrong in it.
        self._closed = True
        self._drop_connection("closed")
        self.session.close("client closed")
        self._turn()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    async def __aenter__(self) -> ChatClient:
        await self.connect()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def move(self, addresses: Sequence[Address]) -> None:
        """Leave the present node and use these addresses from now on, the first one first; the session goes on."""
        assert addresses, "no address"
        self.addresses = list(addresses)
        self.session.elsewhere = len(addresses) > 1
        self._at = -1
        if self._connection is not None:
            self._connection.give_up("moved to another node")

    def renew(self) -> None:
        """Go on in a fresh session after the old one has ended; a subscription keeps its place."""
        self._turn()  # The outcomes that the old one has still to tell.
        old = self.session
        assert old.ended and not old.unsettled, (old.ended, old.unsettled)
        self.session = self._session(old.client_id, "", old.settings)
        if old.place:
            self.session.subscribe(old.place)
        if self._connection is not None:
            self._connection.give_up("new session")

    def _session(self, client_id: int, token: str, settings: SessionSettings | None) -> Session:
        session = Session(client_id, token or self._tokens(), settings)
        session.elsewhere = len(self.addresses) > 1
        return session

    # ---- messages --------------------------------------------------------------------------------

    def submit_nowait(self, payloads: Sequence[str]) -> int:
        """Send these messages in this order; outcomes come by on_outcome. Cheap: for load.

        Returns:
            The n of the first.

        Raises:
            ValueError: see Session.submit.
        """
        first = self.session.submit(payloads, self._clock())
        self._turn_soon()
        return first

    async def send(self, payload: str) -> Outcome:
        """Send one message and wait for its outcome; one that can't be sent is rejected with n 0."""
        return (await self.send_many([payload]))[0]

    async def send_many(self, payloads: Sequence[str]) -> list[Outcome]:
        """Send messages and wait for the outcome of each; if one of them can't be sent all are rejected with n 0.

        A session that has ended is replaced by a fresh one first. Messages that were not ordered because the cluster
        has forgotten their session are sent again in a fresh one.
        """
        outcomes = await self._send_once(payloads)
        expired = [each.kind == "rejected" and each.reason == EXPIRED for each in outcomes]
        if any(expired):
            at = expired.index(True)  # All behind it are rejected with it.
            outcomes[at:] = await self._send_once(payloads[at:])
        return outcomes

    async def _send_once(self, payloads: Sequence[str]) -> list[Outcome]:
        if self.session.ended and not self.session.unsettled and not self._closed:
            self.renew()
        try:
            first = self.submit_nowait(payloads)
        except ValueError as error:
            return [Outcome("rejected", 0, 0, reason=str(error)) for _ in payloads]
        loop = asyncio.get_running_loop()
        futures = [loop.create_future() for _ in payloads]
        self._futures.update(enumerate(futures, first))
        return list(await asyncio.gather(*futures))

    async def room(self, messages: int) -> None:
        """Wait until fewer than so many messages are without an outcome."""
        await self.until(lambda: self.session.unsettled < messages)

    async def drained(self) -> None:
        """Wait until every message has its outcome."""
        await self.room(1)

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until the condition, a function of the session, holds. It is looked at after each turn."""
        if not condition():
            future = asyncio.get_running_loop().create_future()
            self._waiters.append((condition, future))
            await future

    # ---- the subscription ------------------------------------------------------------------------

    def follow(self, start: SeqNo | None, on_shown: Callable[[Shown], None]) -> None:
        """Call on_shown with every run of delivered messages from `start` on (None: from now on). Once a client."""
        self._on_shown = on_shown
        self.session.subscribe(start)
        self._turn_soon()

    async def subscribe(self, start: SeqNo | None = 1) -> AsyncIterator[Shown]:
        """Every run of delivered messages from `start` on, without gaps, until close(); bounded memory. Once."""
        unread: deque[Shown] = deque()
        size = 0

        def on_shown(shown: Shown) -> None:
            nonlocal size
            unread.append(shown)
            size += len(shown.lines)
            self._read(size < UNREAD_BYTES)

        self.follow(start, on_shown)
        while not self._closed:
            await self.until(lambda: bool(unread) or self._closed)
            while unread:
                shown = unread.popleft()
                size -= len(shown.lines)
                self._read(size < UNREAD_BYTES)
                yield shown

    def _read(self, on: bool) -> None:
        if self._connection is not None:
            self._connection.read(on)

    # ---- connections -----------------------------------------------------------------------------

    async def _keep_connected(self) -> None:
        """Connect to one address after the other, for ever. A round in which no node was of use costs a pause."""
        backoff, failed = BACKOFF_FIRST_S, 0
        while True:
            self._at = (self._at + 1) % len(self.addresses)
            if await self._use(self.addresses[self._at]):
                backoff, failed = BACKOFF_FIRST_S, 0
            else:
                failed += 1
            if failed >= len(self.addresses):
                failed = 0
                await asyncio.sleep(backoff * self._rng.uniform(0.5, 1.0))
                backoff = min(backoff * 2, BACKOFF_MAX_S)

    async def _use(self, address: Address) -> bool:
        """Connect and stay until the connection is gone. True if the node was of use."""
        place = f"{address[0]}:{address[1]}"
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                _, connection = await loop.create_connection(lambda: _Connection(self), *address, ssl=self._tls)
        except OSError as error:  # TimeoutError is one
            self.last_error = f"{place}: {why_not_connected(error)}"
            self._turn()
            return False
        session, since = self.session, loop.time()
        self._connection = connection
        session.connected(self._clock())
        self._turn()
        try:
            self.last_error = f"{place}: {await connection.lost}"
            # A node that says WELCOME and hangs up must not be called again and again without a pause.
            return session.welcomed and not session.problem and loop.time() - since > BACKOFF_MAX_S
        finally:
            self._drop_connection("closed")

    def _drop_connection(self, reason: str) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.give_up(reason)
            self.session.disconnected()
            self._turn()

    # ---- one turn --------------------------------------------------------------------------------

    def _turn_soon(self) -> None:
        """One turn for all that is submitted in this round of the loop."""
        if not self._turn_due:
            self._turn_due = True
            asyncio.get_running_loop().call_soon(self._turn)

    def _turn(self) -> None:
        """Do the duties that the session's docstring lists; what is submitted by those who are told goes with it."""
        self._turn_due = True
        session, connection, now = self.session, self._connection, self._clock()
        if connection is not None and not connection.reading:
            session.excuse(now)
        session.tick(now)
        for shown in session.take_shown():
            if self._on_shown is not None:
                self._on_shown(shown)
        for outcome in session.take_outcomes():
            self._tell(outcome)
        known: tuple[object, ...]
        known = (session.node, session.leader, session.term, session.welcomed, self.last_error)
        if session.leader == NOBODY:
            known += (session.members, session.unsettled > 0)
        if known != self._known:
            self._known = known
            if self._on_change is not None:
                self._on_change()
        self._wake()
        self._turn_due = False
        if connection is not None:
            while connection.writable and (line := session.next_line(now)) is not None:
                connection.transport.write(line)
            if session.gave_up(now):
                connection.give_up("no progress")
        self._arm(session.next_deadline(), now)

    def _tell(self, outcome: Outcome) -> None:
        if self._on_outcome is not None:
            self._on_outcome(outcome)
        if self._futures:
            for n in range(outcome.first, outcome.last + 1):
                future = self._futures.pop(n, None)
                if future is not None and not future.done():
                    future.set_result(outcome)

    def _wake(self) -> None:
        if not self._waiters:
            return
        waiters, self._waiters = self._waiters, []
        for condition, future in waiters:
            if future.done():
                continue
            if condition():
                future.set_result(None)
            else:
                self._waiters.append((condition, future))

    def _arm(self, deadline: float, now: float) -> None:
        """Have a turn at the deadline. A timer that fires too early costs less than one moved at every turn."""
        if self._timer is not None:
            if self._armed_for <= deadline and not self._timer.cancelled():
                return
            self._timer.cancel()
            self._timer = None
        if deadline != NEVER:
            self._armed_for = deadline
            self._timer = asyncio.get_running_loop().call_later(max(0.0, deadline - now), self._on_timer)

    _armed_for = NEVER

    def _on_timer(self) -> None:
        self._timer = None
        self._turn()


def why_not_connected(error: OSError) -> str:
    """The system's words; asyncio's own repeat the address instead."""
    if isinstance(error, ssl.SSLError):
        return describe(error)
    if isinstance(error, TimeoutError):
        return "no answer"
    return os.strerror(error.errno) if error.errno and error.errno > 0 else str(error.strerror or error)


def why_lost(error: Exception) -> str:
    return describe(error) if isinstance(error, ssl.SSLError) else str(error)


def new_token() -> str:
    """A session token that nobody else has."""
    return secrets.token_hex(16)


async def status(
    host: str, port: int, timeout_s: float = 1.0, client_token: str = "", tls: ssl.SSLContext | None = None
) -> Status:
    """What the node at this address knows, over a connection of its own.

    Raises:
        Unreachable: no answer in time, or not a node's.
    """
    try:
        async with asyncio.timeout(timeout_s):
            reader, writer = await asyncio.open_connection(host, port, ssl=tls)
            try:
                writer.write(encode_line(StatusRequest(client_token or UNSET)))
                answer: Any = decode_node_line(await reader.readuntil(b"\n"))
            finally:
                writer.close()
    except TimeoutError:
        raise Unreachable(f"{host}:{port}: no answer within {timeout_s:g} s") from None
    except OSError as error:
        raise Unreachable(f"{host}:{port}: {why_not_connected(error)}") from None
    except (FrameError, asyncio.IncompleteReadError, asyncio.LimitOverrunError) as error:
        raise Unreachable(f"{host}:{port}: {error}") from None
    if isinstance(answer, Reject):
        raise Unreachable(f"{host}:{port}: refused: {answer.reason}")
    if not isinstance(answer, Status):
        raise Unreachable(f"{host}:{port}: answered STATUS with {answer}")
    return answer
