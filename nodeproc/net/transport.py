"""Links between nodes: two TCP connections between any two nodes, one for each direction.

A node dials every peer again and again. It sends its frames on the connection that it dialled and receives on those
that it accepted. So each link has one owner, which reopens it, and the core gets LinkUp and LinkDown in order with the
frames.

A closed port shows that a process has ended. When a link is lost, or the peer's own connection to this node closes, the
node dials the peer at once. The core gets LinkDown only if that fails. Failover starts there (F2).

A network that drops packets closes no connection. If the peer's system acknowledges nothing, the node dials a second
connection. The first one stays until the peer is proven on the second, so that a peer whose process is stopped loses
nothing (L1).

The members are dialled all the time. Other nodes are dialled only while a connection from them is open: a newcomer that
is not added yet, and a removed node, which must be able to hear that it was removed (G5).
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import socket
import time
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from dataclasses import replace
from random import Random
from typing import Any, Final, TypeAlias, cast, get_args

from nodeproc.config import Limits
from nodeproc.core.events import BadInput, PeerConnected, PeerLost, PeerRefused, UnknownMemberRefused
from nodeproc.core.messages import Input, LinkDown, LinkUp, NodeId
from nodeproc.core.recovered import MAX_MEMBERS
from nodeproc.errors import FrameError, LinkRefused, brief
from nodeproc.frames import (
    PREAMBLE,
    FrameDecoder,
    Handshake,
    PeerChallenge,
    PeerHello,
    PeerProof,
    PeerRefusal,
    PeerWelcome,
    encode_frame,
)
from nodeproc.net.handshake import NONCE_BYTES, Accepting, Credentials, Dialling, Proven
from nodeproc.net.silence import LOOKS, Silence
from nodeproc.net.sockets import (
    WILDCARDS,
    address_of,
    connect,
    hand_over,
    is_host,
    probe_when_silent,
    reason_of,
    send_at_once,
    unacknowledged,
)
from nodeproc.records import MAX_HEADER
from nodeproc.tls import NodeTls, channel_of, shown_certificate

Address: TypeAlias = tuple[str, int]
"""(host, port)"""

_HANDSHAKE: Final = frozenset(get_args(Handshake))
UNPROVEN_HEADER_BYTES: Final = 4096
"""The longest header before the proof; such frames have no body."""
PAUSE_FIRST_S: Final = 0.02
PAUSE_MAX_S: Final = 0.25
SHORT_LIFE_S: Final = 1.0
"""A link that was open for less time counts as a failed attempt, except once: otherwise a node could dial endlessly
without a pause."""
PROBE_S: Final = 1
"""The kernel probes a link after this idle time. So a link to a machine that vanished or was restarted is lost."""
MAX_HOST: Final = 256
"""Characters of a host, as in the configuration."""
MEETING_MAX_S: Final = 32.0
"""The longest handshake on a second connection: the peer's system accepts it even if the peer's process is stopped."""


class UnknownMember(LinkRefused):
    """A proven peer has another data directory than the one known for this member. Rule: M4."""


class NotNeeded(LinkRefused):
    """The first connection works again, so the second is not needed."""


class Links:
    """All links of a node.

    Args:
        credentials: returns what the node says about itself; called for every link.
        addresses: where to dial each peer; all of them are members until dial() names others.
        take: gets every input for the core, in order.
        report: gets every event, and the address of the host that caused it, if known.
        tls: for the links and the port; None: no TLS.
        unknown_member: returns the event if a proven peer must be refused, else None; called before a link is opened.
        silence_s: a second connection is dialled when nothing was acknowledged for this time.
    """

    def __init__(
        self,
        credentials: Callable[[], Credentials],
        addresses: Mapping[NodeId, Address],
        take: Callable[[NodeId, Input], None],
        report: Callable[..., None],
        rng: Random,
        limits: Limits,
        tls: NodeTls | None = None,
        unknown_member: Callable[[Proven], UnknownMemberRefused | None] = lambda who: None,
        silence_s: float = 1.0,
    ) -> None:
        self.credentials, self.take, self.report, self.limits = credentials, take, report, limits
        self.tls, self._unknown_member, self.silence_s = tls, unknown_member, silence_s
        self._refusals: dict[NodeId, str] = {}
        self._accepted: dict[NodeId, Accepted] = {}
        self._unproven: dict[Accepted, None] = {}
        self._rng, self._dials = rng, False
        self._addresses: dict[NodeId, Address] = {}
        """Where to dial each node, as far as known."""
        self._members: frozenset[NodeId] = frozenset()
        self._dialled: dict[NodeId, Outgoing] = {}
        """To the members, and to other nodes from which a connection is open."""
        self._ending: set[asyncio.Task[None]] = set()
        self.frames_in = 0
        self.bytes_in = self.bytes_out = 0
        self.dial(addresses, addresses)

    def start(self) -> None:
        """Begin to dial."""
        self._dials = True
        for outgoing in self._dialled.values():
            outgoing.start()

    def dial(self, members: Iterable[NodeId], addresses: Mapping[NodeId, Address]) -> None:
        """Dial these members from now on, and other nodes only while a connection from them is open. Rule: G1, G5.

        Args:
            members: those without an address are dialled once they have said where they listen.
            addresses: where to dial each node, also of nodes that are no members; other nodes say it themselves.
        """
        self._members, self._addresses = frozenset(members), dict(addresses)
        for peer, address in sorted(addresses.items()):
            if peer in self._members:
                self._dial(peer, address)
        for peer in [*self._dialled]:
            self._end_if_alone(peer)

    def _dial(self, peer: NodeId, address: Address) -> None:
        """Dial a peer at this address, or at this one from the next attempt on."""
        outgoing = self._dialled.get(peer)
        if outgoing is not None:
            outgoing.address = address
            return
        outgoing = self._dialled[peer] = Outgoing(self, peer, address, self._rng)
        if self._dials:
            outgoing.start()

    def _end_if_alone(self, peer: NodeId) -> None:
        """Stop dialling a node that is no member and from which no connection is open."""
        is_wanted = peer in self._members or peer in self._accepted
        if self._dials and not is_wanted and peer in self._dialled:
            self._refusals.pop(peer, None)
            outgoing = self._dialled.pop(peer)
            outgoing.end()
            task = asyncio.ensure_future(outgoing.close())
            self._ending.add(task)
            task.add_done_callback(self._ending.discard)

    def accept(self) -> Accepted:
        """Return the protocol for a new connection of a node."""
        return Accepted(self)

    def send(self, peer: NodeId, buffers: Sequence[bytes]) -> None:
        """Send whole frames. Without a link they are lost."""
        outgoing = self._dialled.get(peer)
        if outgoing is not None:
            outgoing.send(buffers)

    async def close(self) -> None:
        """Stop dialling and close all links."""
        self._dials = False
        await asyncio.gather(*(outgoing.close() for outgoing in self._dialled.values()), *self._ending)
        for accepted in [*self._accepted.values(), *self._unproven]:
            accepted.drop()

    # ---- from connections ---------------------------------------------------------------------------

    @property
    def unproven(self) -> int:
        """Number of accepted connections that are not proven yet."""
        return len(self._unproven)

    def arrived(self, accepted: Accepted) -> None:
        """Add an unproven connection. If there are too many, close the oldest, so that members can still connect."""
        if len(self._unproven) >= self.limits.max_unproven:
            oldest = next(iter(self._unproven))
            del self._unproven[oldest]
            oldest.drop()
        self._unproven[accepted] = None

    def examine(self, who: Proven) -> None:
        """Refuse a proven peer with another data directory than the member's, before the member's links are closed.

        Raises:
            UnknownMember: reported already. Rule: M4.
        """
        refused = self._unknown_member(who)
        if refused is not None:
            if self._is_news(who.peer, refused.line()):
                self.report(refused)
            raise UnknownMember(refused.line())

    def examine_arrived(self, who: Proven) -> None:
        """Also refuse a node that is no member if there are too many, and a rebuild under the id of a living member,
        whose links must not be closed.

        The process at the member's address is the member: once it has ended, this node's link to it is lost, or leads
        to the rebuilding process.

        Raises:
            LinkRefused: see above, and examine(). Rule: M4.
        """
        self.examine(who)
        others = self._accepted.keys() - self._members - {who.peer}
        if who.peer not in self._members and len(others) >= MAX_MEMBERS:
            raise LinkRefused(f"{len(others) + 1} nodes that are no members, allowed {MAX_MEMBERS}")
        known = self._dialled[who.peer].known_identity if who.peer in self._dialled else ""
        if who.rebuilding and known not in ("", who.shown.identity):
            raise LinkRefused(
                f"node_{who.peer} is alive with data directory {known}: end that process before a --rebuild"
            )

    def proven(self, accepted: Accepted, who: Proven, host: str) -> None:
        """Add a proven connection of a peer. It replaces an older one, which the peer must have lost.

        Args:
            host: the address from which the connection comes.
        """
        self._unproven.pop(accepted, None)
        older = self._accepted.get(who.peer)
        self._accepted[who.peer] = accepted
        if older is not None:
            older.drop()
        self._refusals.pop(who.peer, None)
        address = self._addresses.get(who.peer) or address_to_dial(who.address, host)
        if address is not None:
            self._dial(who.peer, address)
        if who.peer in self._dialled:
            self._dialled[who.peer].hurry()
        self.take(who.peer, LinkUp(who.shown, who.rebuilding, False, who.promised, who.knows_lists))

    def gone(self, accepted: Accepted, peer: NodeId | None) -> None:
        self._unproven.pop(accepted, None)
        if peer is not None and self._accepted.get(peer) is accepted:
            del self._accepted[peer]
            self._end_if_alone(peer)
            if peer in self._dialled:
                self._dialled[peer].doubt()

    def refused_by_peer(self, peer: NodeId, reason: str) -> None:
        """Report that the link to a peer was refused at its address, by either end: the configuration is wrong."""
        if self._is_news(peer, f"to {reason}"):
            self.report(PeerRefused(peer, reason))

    def refused_peer(self, claimed: NodeId, reason: str, address: str) -> None:
        """Report that a connection claiming to be this peer was refused. Any program can claim that."""
        if self._is_news(claimed, f"from {reason}"):
            known = claimed in self._dialled
            self.report(
                BadInput(f"a link that claims to be from node_{claimed}" if known else "a link", reason), address
            )

    def _is_news(self, peer: NodeId, refusal: str) -> bool:
        """Return whether this refusal differs from the last one of the peer: a refused node tries again and again."""
        key = peer if peer in self._dialled else 0
        known = self._refusals.get(key)
        self._refusals[key] = refusal
        return known != refusal


def address_to_dial(said: Address, host: str) -> Address | None:
    """Return where to dial a node that is no known member; None if it has not said it, or what it says is no address.

    Args:
        said: the address on which it listens, as it says itself.
        host: the address from which its connection comes; used if it listens on all of its addresses.
    """
    listens_on, port = said
    if len(listens_on) > MAX_HOST or not is_host(listens_on) or not 1 <= port <= 65535:
        return None
    return (host if listens_on in WILDCARDS else listens_on), port


# ---- dialled connections: frames go out ------------------------------------------------------------


class Dialled(asyncio.Protocol):
    """One connection to a peer.

    Attributes:
        met: set to the peer once both ends are proven.
        lost: set to the reason when the connection is lost.
    """

    def __init__(self, handshake: Dialling, tls: NodeTls | None, examine: Callable[[Proven], None]) -> None:
        loop = asyncio.get_running_loop()
        self._handshake, self._tls, self._examine = handshake, tls, examine
        self._channel = ""
        self._decoder = FrameDecoder(UNPROVEN_HEADER_BYTES, 0)
        self.transport: asyncio.Transport
        self._proven: Proven | None = None
        self.met: asyncio.Future[Proven] = loop.create_future()
        self.lost: asyncio.Future[str] = loop.create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's is no subclass
        send_at_once(self.transport)
        probe_when_silent(self.transport, PROBE_S)
        if self._tls is not None:
            self._channel = channel_of(shown_certificate(self.transport), self._tls.own)
        self.transport.write(PREAMBLE + b"".join(encode_frame(self._handshake.hello)))

    def data_received(self, data: bytes) -> None:
        try:
            for message in self._decoder.feed(data):
                if isinstance(message, PeerChallenge) and self._proven is None:
                    proof, who = self._handshake.on_challenge(message, self._channel)
                    self._examine(who)
                    self.transport.writelines(encode_frame(proof))
                    self._proven = who
                elif isinstance(message, PeerWelcome) and self._proven is not None and not self.met.done():
                    self.met.set_result(replace(self._proven, promised=message.promised))
                elif isinstance(message, PeerRefusal):
                    raise LinkRefused(f"it says: {brief(message.reason)}")
                else:
                    raise LinkRefused(f"it sent {type(message).__name__} on a link on which only this node sends")
        except (FrameError, LinkRefused) as error:
            self.reset(error)

    def eof_received(self) -> bool:
        self.reset(ConnectionResetError("closed by the peer"))  # Buffered frames can't be delivered any more.
        return True

    def connection_lost(self, error: Exception | None) -> None:
        self.reset(error or ConnectionResetError("closed by the peer"))

    def reset(self, error: Exception) -> None:
        """Close the connection and drop its buffer, for this reason."""
        if not self.met.done():
            self.met.set_exception(error)
            self.met.exception()  # Otherwise asyncio complains if there is no waiter any more.
        if not self.lost.done():  # It is cancelled together with its waiter if the node is stopping.
            self.lost.set_result(reason_of(error))
        self.transport.abort()


class Outgoing:
    """The link on which this node sends to one peer: dialled, lost, dialled again, until close()."""

    def __init__(self, links: Links, peer: NodeId, address: Address, rng: Random) -> None:
        self._links, self._peer, self.address, self._rng = links, peer, address, rng
        self._buffer_max_bytes = links.limits.link_buffer_bytes  # With more, the link is reset.
        self._handshake_s = links.limits.handshake_ms / 1000
        # The system repeats a lost SYN after a second; a new attempt is sooner.
        self._reach_s = min(links.silence_s / 2, self._handshake_s)
        self._connection: Dialled | None = None
        self._identity = ""
        """Of the peer's data directory, as this connection showed it."""
        self._hurry = asyncio.Event()
        self._up = False
        """Whether the core's latest input about this link was LinkUp."""
        self._complained = False
        """Whether the latest event about this link was PeerLost."""
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self) -> None:
        self._spawn(self._keep())

    @property
    def known_identity(self) -> str:
        """Identity of the peer's data directory; "" without an open connection."""
        connection = self._connection
        return "" if connection is None or connection.transport.is_closing() else self._identity

    def send(self, buffers: Sequence[bytes]) -> None:
        """Send whole frames. Without an open connection they are lost."""
        connection = self._connection
        if connection is None or connection.transport.is_closing():
            return
        connection.transport.writelines(buffers)
        self._links.bytes_out += sum(map(len, buffers))
        waiting = connection.transport.get_write_buffer_size()
        if waiting > self._buffer_max_bytes:
            reason = f"{waiting} bytes unsent, allowed {self._buffer_max_bytes}"
            self._links.report(BadInput(f"link to node_{self._peer}", reason))
            connection.reset(ConnectionResetError(reason))

    def hurry(self) -> None:
        """Dial now: the peer is alive."""
        self._hurry.set()

    def doubt(self) -> None:
        """Check at once whether the peer still listens: its own connection to this node was closed."""
        if self._connection is not None:
            self._spawn(self._verify(self._connection))

    def end(self) -> None:
        """Stop dialling at once; close() waits for the tasks."""
        for task in self._tasks:
            task.cancel()
        self._set_down("it is no member")

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._connection is not None:
            self._connection.transport.abort()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        """Report an exception of a task, which ends the node: without the task, the link would stay down."""
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            what = {"message": f"the link to node_{self._peer}", "exception": error}
            asyncio.get_running_loop().call_exception_handler(what)

    async def _keep(self) -> None:
        """Keep the link open: dial at once after a loss, then with growing pauses."""
        failures = 0
        while True:
            connection = await self._dial()
            if connection is not None:
                opened = time.monotonic()
                reason = await self._stay(connection)
                self._connection = None
                short = time.monotonic() - opened < SHORT_LIFE_S
                failures = failures + 1 if short else 0
                if failures < 2:
                    continue
                self._set_down(reason)
            failures += 1
            self._hurry.clear()
            pause = min(PAUSE_FIRST_S * 2 ** min(failures - 1, 10), PAUSE_MAX_S) * (0.5 + self._rng.random())
            with contextlib.suppress(TimeoutError):
                # Not wait_for(): that of Python 3.11 loses a cancellation by close() that coincides with hurry().
                async with asyncio.timeout(pause):
                    await self._hurry.wait()

    async def _dial(self) -> Dialled | None:
        """Make one attempt; return None if it failed, which is reported then."""
        try:
            sock = await connect(*self.address, self._reach_s)
            connection, who = await self._meet(sock, self._handshake_s, self._links.examine)
        except LinkRefused as error:
            if not isinstance(error, UnknownMember):
                self._links.refused_by_peer(self._peer, str(error))
            self._set_down(str(error))
        except (OSError, FrameError) as error:
            self._set_down(reason_of(error))
        else:
            self._set_up(connection, who)
            return connection
        return None

    async def _meet(
        self, sock: socket.socket, patience_s: float, examine: Callable[[Proven], None]
    ) -> tuple[Dialled, Proven]:
        """Perform the handshake with the peer's process.

        Raises:
            TimeoutError: it does not answer.
            OSError, LinkRefused, FrameError: the peer or `examine` refuses the link.
        """
        tls, connection = self._links.tls, None
        handshake = Dialling(self._links.credentials(), self._peer, secrets.token_hex(NONCE_BYTES))
        try:
            async with asyncio.timeout(patience_s):
                connection = await hand_over(
                    sock,
                    lambda: Dialled(handshake, tls, examine),
                    tls.dialling if tls is not None else None,
                    self.address[0] if tls is not None else None,
                )
                return connection, await connection.met
        except BaseException:
            if connection is not None:
                connection.transport.abort()
            raise

    async def _stay(self, connection: Dialled) -> str:
        """Wait until the connection, and each one that replaces it, is lost; return the reason."""
        watching = self._spawn(self._watch())
        try:
            while True:
                reason = await connection.lost
                if self._connection is connection or self._connection is None:
                    return reason
                connection = self._connection
        finally:
            watching.cancel()

    async def _watch(self) -> None:
        """Examine the connection at equal intervals; if it is silent, dial a second one. Rule: L1."""
        silence, patience_s = Silence(), self._handshake_s
        looked = time.monotonic()
        while (current := self._connection) is not None:
            await asyncio.sleep(self._links.silence_s / LOOKS)
            before, looked = looked, time.monotonic()
            waits, quiet_s = unacknowledged(current.transport)
            if not silence.look(waits, quiet_s <= looked - before):
                if self._complained:  # The first connection works again before a second was open.
                    self._report_connected()
                    patience_s = self._handshake_s
                continue
            self._report_lost(f"nothing acknowledged for {quiet_s:.1f} s")
            try:
                sock = await connect(*self.address, self._reach_s)
            except ConnectionRefusedError as error:
                current.reset(error)  # _keep() dials once more, is refused as well, and reports it.
                return
            except OSError:
                continue
            try:
                fresh, who = await self._meet(sock, patience_s, lambda who: self._examine_beside(current, who))
            except NotNeeded:
                self._report_connected()
                silence, patience_s = Silence(), self._handshake_s
            except TimeoutError:
                patience_s = min(patience_s * 2, MEETING_MAX_S)
            except LinkRefused as error:
                current.reset(error)
                return
            except (OSError, FrameError):
                continue
            else:
                self._set_up(fresh, who)
                current.reset(ConnectionResetError("replaced by a second connection"))
                silence, patience_s = Silence(), self._handshake_s

    def _examine_beside(self, current: Dialled, who: Proven) -> None:
        """Refuse the second link if the first one works again: the peer was stopped, and will read what waits there."""
        _, quiet_s = unacknowledged(current.transport)
        if quiet_s < self._links.silence_s / LOOKS:
            raise NotNeeded("the older connection is heard again")
        self._links.examine(who)

    def _set_up(self, connection: Dialled, who: Proven) -> None:
        self._connection, self._identity = connection, who.shown.identity
        self._up = True
        self._report_connected()
        self._links.take(self._peer, LinkUp(who.shown, who.rebuilding, True, who.promised, who.knows_lists))

    def _report_connected(self) -> None:
        self._complained = False
        self._links.report(PeerConnected(self._peer))

    def _report_lost(self, reason: str) -> None:
        if not self._complained:
            self._complained = True
            self._links.report(PeerLost(self._peer, reason))

    def _set_down(self, reason: str) -> None:
        self._report_lost(reason)
        if self._up:
            self._up = False
            self._links.take(self._peer, LinkDown())

    async def _verify(self, connection: Dialled) -> None:
        try:
            (await connect(*self.address, self._handshake_s)).close()
        except OSError as error:
            connection.reset(error)  # _keep() dials once more, is refused as well, and reports it.


# ---- accepted connections: frames come in ----------------------------------------------------------


class Accepted(asyncio.Protocol):
    """One connection from a peer."""

    def __init__(self, links: Links) -> None:
        self._links = links
        self._handshake: Accepting
        self._decoder = FrameDecoder(UNPROVEN_HEADER_BYTES, 0)
        self._greeting = b""
        self._peer: NodeId | None = None
        """The peer, once it is proven."""
        self._claimed: NodeId = 0
        self._has_certificate = True
        """Also true if no certificate is needed."""
        self._timer: asyncio.TimerHandle | None = None
        self.transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        send_at_once(self.transport)
        channel, tls = "", self._links.tls
        if tls is not None:
            shown = shown_certificate(self.transport)
            self._has_certificate = bool(shown)
            channel = channel_of(tls.own, shown)
        self._handshake = Accepting(self._links.credentials(), secrets.token_hex(NONCE_BYTES), channel)
        self._links.arrived(self)
        self._timer = asyncio.get_running_loop().call_later(self._links.limits.handshake_ms / 1000, self.drop)

    def data_received(self, data: bytes) -> None:
        self._links.bytes_in += len(data)
        try:
            if len(self._greeting) < len(PREAMBLE):
                data = self._take_greeting(data)
            self._take_frames(self._decoder.feed(data))
        except LinkRefused as error:
            self._refuse(error)
        except FrameError as error:
            if self._peer is None:
                self._refuse(error)
            else:
                self._links.report(BadInput(f"link from node_{self._peer}", str(error)))
                self.transport.abort()

    def connection_lost(self, error: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._links.gone(self, self._peer)

    def drop(self) -> None:
        self.transport.abort()

    def _take_greeting(self, data: bytes) -> bytes:
        """Check and remove the preamble; return the rest, which is frames."""
        greeting = self._greeting + data
        self._greeting = greeting[: len(PREAMBLE)]
        if not PREAMBLE.startswith(self._greeting):
            raise FrameError(f"a connection that opens with {self._greeting!r}, allowed {PREAMBLE!r}")
        return greeting[len(PREAMBLE) :]

    def _take_frames(self, messages: Iterable[Any]) -> None:
        links, peer = self._links, self._peer
        for message in messages:
            if peer is not None and type(message) not in _HANDSHAKE:
                links.frames_in += 1
                links.take(peer, message)
            elif peer is None and isinstance(message, PeerHello):
                self._claimed = message.node
                if not self._has_certificate:
                    raise LinkRefused("it shows no certificate, and links between these nodes are TLS both ways")
                self.transport.writelines(encode_frame(self._handshake.on_hello(message)))
            elif peer is None and isinstance(message, PeerProof):
                who = self._handshake.on_proof(message)
                links.examine_arrived(who)
                peer = self._peer = who.peer
                longest = links.limits.max_frame_bytes
                self._decoder.max_header, self._decoder.max_body = min(MAX_HEADER, longest), longest
                if self._timer is not None:
                    self._timer.cancel()
                self.transport.writelines(encode_frame(self._handshake.welcome(who)))
                links.proven(self, who, address_of(self.transport))
            else:
                raise FrameError(f"{type(message).__name__} out of turn")

    def _refuse(self, error: LinkRefused | FrameError) -> None:
        """Send the reason and close."""
        reason = brief(error)
        if not isinstance(error, UnknownMember):
            self._links.refused_peer(self._claimed, reason, address_of(self.transport))
        self.transport.writelines(encode_frame(PeerRefusal(reason)))
        self.transport.close()
