"""The client library: one chat client over asyncio, which uses the given nodes.

    async with ChatClient([("127.0.0.1", 5001), ("127.0.0.1", 5002)], client_id=101) as client:
        outcome = await client.send("hello")

nodeproc.session implements the protocol; this module adds the sockets, the timer and the choice of the next node. The
client uses one node at a time: the first address that answers. If the connection is lost, or the node makes no progress
for too long, it tries the next address. If there is only one address, the client stays with a node that answers: that
node sends LEADER as soon as it knows a leader again. The nodes also report where the members listen that were added
while the cluster ran; the client tries those addresses after the given ones.
"""

from __future__ import annotations

import asyncio
import random
import secrets
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any, Final, TypeAlias, cast

from msgspec import UNSET

from nodeproc.core.messages import NOBODY, MemberAddress, SeqNo
from nodeproc.errors import FrameError, Unreachable
from nodeproc.following import runs
from nodeproc.lines import (
    AdminRequest,
    ChangeIs,
    Problem,
    Reject,
    Shown,
    Status,
    StatusRequest,
    decode_node_line,
    encode_line,
)
from nodeproc.net.nodestream import NodeStream
from nodeproc.net.sockets import reach, reason_of, send_at_once
from nodeproc.outcome import Outcome
from nodeproc.session import EXPIRED, NEVER, Session, SessionSettings

Address: TypeAlias = tuple[str, int]
"""(host, port)"""

CONNECT_TIMEOUT_S: Final = 3.0
BACKOFF_FIRST_S: Final = 0.02
BACKOFF_MAX_S: Final = 1.0
WRITE_BUFFER_BYTES: Final = 512 << 10
"""With more bytes in the buffer, messages stay in the session, where they can still be packed into larger lines."""


class _Connection(asyncio.Protocol):
    """One TCP connection to a node."""

    def __init__(self, client: ChatClient) -> None:
        self._client = client
        self._stream = NodeStream()
        self.transport: asyncio.Transport
        self.writable = True
        self.reading = True
        self.lost: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        """Set to the reason when the connection is lost."""

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
        if session.new_addresses is not self._client._new_addresses:
            self._client._learn(session.new_addresses)
        self._client._turn()

    def pause_writing(self) -> None:
        self.writable = False

    def resume_writing(self) -> None:
        self.writable = True
        self._client._turn()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.lost.done():
            self.lost.set_result(reason_of(exc) if exc else self._client.session.problem or "closed by the node")
        self.writable = False
        self._client._turn()

    def give_up(self, reason: str) -> None:
        """Close at once and drop all buffered bytes: the messages are sent again to another node."""
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
    """A chat client that continues on another node when its node fails.

    Args:
        addresses: the nodes, in order of preference.
        session_token: the session's secret, which must not have been used before; empty: a new one is made.
        on_outcome: called with every Outcome. Each is for a range of messages; the ranges come in any order.
        on_change: called when the connection, the leader or the term changes. Without a leader, also when nodes start
            or end, and when a first message waits.
        rng: for the jitter of the back-off.
        clock: monotonic seconds.
        tokens: returns a new, unique session token.
        tls: made by nodeproc.tls.client_tls; None: no TLS.
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
        self._new_addresses: tuple[MemberAddress, ...] = ()
        self._tls = tls
        self._clock, self._tokens = clock, tokens or (lambda: secrets.token_hex(16))
        self.session = self._session(client_id, session_token, settings)
        self.last_error = ""
        """Why the latest connection or attempt failed."""
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
        self._alarm = Alarm(self._turn)
        self._turn_due = False
        self._closed = False
        self._known: tuple[object, ...] = ()

    # ---- life ------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin to connect; the client stays connected until close(). Messages may be submitted at once."""
        assert self._keeper is None
        self._keeper = asyncio.get_running_loop().create_task(self._keep_connected())

    async def connect(self, timeout_s: float = 10.0) -> None:
        """Start, and wait for the first WELCOME.

        Raises:
            Unreachable: none came in time, or the client token is wrong; the client is closed then.
        """
        self.start()
        try:
            async with asyncio.timeout(timeout_s):
                await self.until(lambda: self.session.welcomed or bool(self.session.ended))
            if self.session.ended:
                raise Unreachable(f"not accepted as a client: {self.session.ended}")
        except BaseException as error:  # Also if the caller is cancelled.
            await self.close()
            if not isinstance(error, TimeoutError):
                raise
            places = ", ".join(f"{host}:{port}" for host, port in self.addresses)
            raise Unreachable(f"no node answered at {places} within {timeout_s:g} s: {self.last_error}") from None

    async def close(self) -> None:
        """End the session. Messages without an outcome become unknown, or rejected if they were never sent."""
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.wait([self._keeper])
            if not self._keeper.cancelled():
                self._keeper.result()  # It never returns, so this raises its exception.
        self._closed = True
        self._drop_connection("closed")
        self.session.close("client closed")
        self._turn()
        self._alarm.cancel()

    async def __aenter__(self) -> ChatClient:
        await self.connect()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def move(self, addresses: Sequence[Address]) -> None:
        """Disconnect and use these addresses from now on, beginning with the first. The session continues."""
        assert addresses, "no address"
        self.addresses = list(addresses)
        self.session.addresses = len(self.places)
        self._at = -1
        if self._connection is not None:
            self._connection.give_up("moved to another node")

    def renew(self) -> None:
        """Continue in a new session after the old one has ended. A subscription keeps its place."""
        self._turn()  # Report the remaining outcomes of the old session.
        old = self.session
        assert old.ended and not old.unsettled, (old.ended, old.unsettled)
        self.session = self._session(old.client_id, "", old.settings)
        if old.place:
            self.session.subscribe(old.place)
        if self._connection is not None:
            self._connection.give_up("new session")

    def _session(self, client_id: int, token: str, settings: SessionSettings | None) -> Session:
        session = Session(client_id, token or self._tokens(), settings)
        session.addresses, session.new_addresses = len(self.places), self._new_addresses
        return session

    @property
    def places(self) -> list[Address]:
        """The given addresses, then those of the members that were added while the cluster ran. Rule: G1."""
        new = ((each.host, each.port) for each in self._new_addresses)
        return self.addresses + [address for address in new if address not in self.addresses]

    def _learn(self, addresses: tuple[MemberAddress, ...]) -> None:
        self._new_addresses = addresses
        self.session.addresses = len(self.places)

    # ---- messages --------------------------------------------------------------------------------

    def submit_nowait(self, payloads: Sequence[str]) -> int:
        """Send these messages in this order; on_outcome gets the outcomes. The cheapest way, for load.

        Returns:
            The number n of the first message.

        Raises:
            ValueError: see Session.submit.
        """
        first = self.session.submit(payloads, self._clock())
        self._turn_soon()
        return first

    async def send(self, payload: str) -> Outcome:
        """Send one message and wait for its outcome. If it can't be sent, it is rejected with n 0."""
        return (await self.send_many([payload]))[0]

    async def send_many(self, payloads: Sequence[str]) -> list[Outcome]:
        """Send messages and wait for the outcome of each. If one of them can't be sent, all are rejected with n 0.

        If the session has ended, a new one is opened first. Messages that were not ordered because their session has
        expired are sent again in a new one.
        """
        outcomes = await self._send_once(payloads)
        expired = [each.kind == "rejected" and each.reason == EXPIRED for each in outcomes]
        if any(expired):
            at = expired.index(True)  # All later ones are rejected as well.
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
        """Wait until fewer than `messages` messages are without an outcome."""
        await self.until(lambda: self.session.unsettled < messages)

    async def drained(self) -> None:
        """Wait until all messages have an outcome."""
        await self.room(1)

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until the condition holds. It must depend on the session only, and is evaluated after each turn."""
        if not condition():
            future = asyncio.get_running_loop().create_future()
            self._waiters.append((condition, future))
            await future

    # ---- the subscription ------------------------------------------------------------------------

    def follow(self, start: SeqNo | None, on_shown: Callable[[Shown], None]) -> None:
        """Call on_shown with every run of delivered messages from `start` on (None: from now on). Once per client."""
        self._on_shown = on_shown
        self.session.subscribe(start)
        self._turn_soon()

    def subscribe(self, start: SeqNo | None = 1) -> AsyncIterator[Shown]:
        """Yield every run of delivered messages from `start` on, without gaps, until close(). Once per client.

        Memory is bounded: the client stops reading while too much is not consumed.
        """
        return runs(self, start)

    def unfollow(self) -> None:
        """Ignore further delivered messages, and go on reading."""
        self._on_shown = None
        self.read(True)

    def read(self, on: bool) -> None:
        """Read from the present connection, or pause."""
        if self._connection is not None:
            self._connection.read(on)

    @property
    def closed(self) -> bool:
        return self._closed

    # ---- connections -----------------------------------------------------------------------------

    async def _keep_connected(self) -> None:
        """Connect to one address after the other, forever. Pause after each round in which no node was useful."""
        backoff, failed = BACKOFF_FIRST_S, 0
        while True:
            places = self.places
            self._at = (self._at + 1) % len(places)
            if await self._use(places[self._at]):
                backoff, failed = BACKOFF_FIRST_S, 0
            else:
                failed += 1
            if failed >= len(places):
                failed = 0
                await asyncio.sleep(backoff * self._rng.uniform(0.5, 1.0))
                backoff = min(backoff * 2, BACKOFF_MAX_S)

    async def _use(self, address: Address) -> bool:
        """Connect, and wait until the connection is lost; return whether the node was useful."""
        host, port = address
        place = f"{host}:{port}"
        loop = asyncio.get_running_loop()
        name = host if self._tls is not None else None

        def dial(found: str) -> Awaitable[tuple[asyncio.Transport, _Connection]]:
            return loop.create_connection(lambda: _Connection(self), found, port, ssl=self._tls, server_hostname=name)

        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                _, connection = await reach(host, dial)
        except OSError as error:  # TimeoutError is one.
            self.last_error = f"{place}: {reason_of(error)}"
            self._turn()
            return False
        session, since = self.session, loop.time()
        self._connection = connection
        session.connected(self._clock())
        self._turn()
        try:
            self.last_error = f"{place}: {await connection.lost}"
            # A node that sends WELCOME and disconnects must not be dialled again and again without a pause.
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
        """Run one turn for everything that is submitted in this pass of the event loop."""
        if not self._turn_due:
            self._turn_due = True
            asyncio.get_running_loop().call_soon(self._turn)

    def _turn(self) -> None:
        """Do the duties that Session's module lists. Messages that callbacks submit are sent in the same turn."""
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
        if self._on_change is not None:
            self._report_change(self._on_change)
        if self._waiters:
            self._wake()
        self._turn_due = False
        if connection is not None:
            while connection.writable and (line := session.next_line(now)) is not None:
                connection.transport.write(line)
            if session.gave_up(now):
                connection.give_up("no progress")
        self._alarm.set(session.next_deadline(), now)

    def _report_change(self, on_change: Callable[[], None]) -> None:
        session = self.session
        known: tuple[object, ...]
        known = (session.node, session.leader, session.term, session.welcomed, self.last_error)
        if session.leader == NOBODY:
            known += (session.members, session.unsettled > 0)
        if known != self._known:
            self._known = known
            on_change()

    def _tell(self, outcome: Outcome) -> None:
        if self._on_outcome is not None:
            self._on_outcome(outcome)
        if self._futures:
            for n in range(outcome.first, outcome.last + 1):
                future = self._futures.pop(n, None)
                if future is not None and not future.done():
                    future.set_result(outcome)

    def _wake(self) -> None:
        waiters, self._waiters = self._waiters, []
        for condition, future in waiters:
            if future.done():
                continue
            if condition():
                future.set_result(None)
            else:
                self._waiters.append((condition, future))


class Alarm:
    """Calls a function at a deadline, or earlier: a timer that fires too early costs less than one moved every turn."""

    def __init__(self, function: Callable[[], None]) -> None:
        self._function = function
        self._timer: asyncio.TimerHandle | None = None
        self._deadline = NEVER

    def set(self, deadline: float, now: float) -> None:
        """See to it that the function is called no later than this; NEVER: no call is needed."""
        if deadline < self._deadline:
            self.cancel()
            self._deadline = deadline
            self._timer = asyncio.get_running_loop().call_later(max(0.0, deadline - now), self._fire)

    def cancel(self) -> None:
        self._deadline = NEVER
        if self._timer is not None:
            self._timer.cancel()

    def _fire(self) -> None:
        self._deadline = NEVER
        self._function()


async def status(
    host: str,
    port: int,
    timeout_s: float = 1.0,
    client_token: str = "",
    tls: ssl.SSLContext | None = None,
    source: str = "",
) -> Status:
    """Ask the node at this address for its STATUS, over a new connection.

    Args:
        source: the own address to connect from; "": any.

    Raises:
        Unreachable: no answer in time, or not the answer of a node.
    """
    answer = await _ask((host, port), StatusRequest(client_token or UNSET), timeout_s, tls, source)
    if not isinstance(answer, Status):
        raise Unreachable(f"{host}:{port}: answered STATUS with {answer}")
    return answer


async def administer(
    address: Address,
    request: AdminRequest,
    timeout_s: float = 1.0,
    tls: ssl.SSLContext | None = None,
    source: str = "",
) -> ChangeIs:
    """Send an operator's request to the node at this address, over a new connection.

    Args:
        request: contains the tokens.
        source: the own address to connect from; "": any.

    Raises:
        Unreachable: no answer in time, or not the answer of a node. The request may have been carried out.
    """
    answer = await _ask(address, request, timeout_s, tls, source)
    if not isinstance(answer, ChangeIs):
        raise Unreachable(f"{address[0]}:{address[1]}: answered with {answer}")
    return answer


async def _ask(
    address: Address,
    request: StatusRequest | AdminRequest,
    timeout_s: float,
    tls: ssl.SSLContext | None = None,
    source: str = "",
) -> Any:
    """Send one line over a new connection and return the first line of the answer. Raises: Unreachable."""
    host, port = address

    def dial(found: str) -> Awaitable[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
        return asyncio.open_connection(
            found,
            port,
            ssl=tls,
            server_hostname=host if tls is not None else None,
            local_addr=(source, 0) if source else None,
        )

    try:
        async with asyncio.timeout(timeout_s):
            reader, writer = await reach(host, dial)
            try:
                writer.write(encode_line(request))
                answer: Any = decode_node_line(await reader.readuntil(b"\n"))
            finally:
                writer.close()
    except TimeoutError:
        raise Unreachable(f"{host}:{port}: no answer within {timeout_s:g} s") from None
    except OSError as error:
        raise Unreachable(f"{host}:{port}: {reason_of(error)}") from None
    except (FrameError, asyncio.IncompleteReadError, asyncio.LimitOverrunError) as error:
        raise Unreachable(f"{host}:{port}: {error}") from None
    if isinstance(answer, Reject | Problem):
        raise Unreachable(f"{host}:{port}: refused: {answer.reason}")
    return answer
