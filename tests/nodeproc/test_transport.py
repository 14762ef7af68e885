"""Links between nodes over real sockets in one event loop."""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from dataclasses import replace
from typing import Any, cast

import pytest
import uvloop

from nodeproc.config import Limits
from nodeproc.core.events import BadInput, Event, PeerConnected, PeerLost, PeerRefused, UnknownMemberRefused
from nodeproc.core.messages import START, Input, Join, Known, LinkDown, LinkUp, NodeId
from nodeproc.core.recovered import MAX_MEMBERS
from nodeproc.errors import ConfigError
from nodeproc.frames import PREAMBLE, FrameDecoder, PeerHello, PeerRefusal, encode_frame
from nodeproc.net import transport
from nodeproc.net.entrance import Entrance, listen
from nodeproc.net.handshake import VERSION, Credentials, Proven
from nodeproc.net.silence import LOOKS
from nodeproc.net.sockets import connect, hand_over, unacknowledged
from nodeproc.net.transport import Links
from nodeproc.tls import NodeTls
from tests import TOO_LONG_S
from tests.nodeproc.nodes import free_ports

QUICK, LONG = 0.08, 1000.0
"""Seconds of silence after which a link is dialled anew. A busy machine may be silent for as long as QUICK."""


class End:
    """One node's links, its port and what they told."""

    def __init__(
        self,
        number: NodeId,
        port: int,
        limits: Limits | None = None,
        tls: NodeTls | None = None,
        silence_s: float = LONG,
        **said: Any,
    ) -> None:
        self.node, self.port = number, port
        self.credentials = replace(Credentials(number, (1, 2), "chat", "s", Known(f"identity-{number}"), False), **said)
        self.inputs: list[tuple[NodeId, Input]] = []
        self.events: list[Event] = []
        self._news = asyncio.Event()
        self._tls = tls
        self.known = ""
        """The identity by which this end knows the other one; "": it takes any."""
        self._silence_s = silence_s
        self._limits = limits or Limits(link_buffer_bytes=1 << 20)
        self.links: Links
        self._entrance: Entrance | None = None

    async def open(self, peer_port: int, peer: NodeId = 0) -> None:
        """Listen and dial."""
        self.links = Links(
            lambda: self.credentials,
            {peer or 3 - self.node: ("127.0.0.1", peer_port)},
            self._take,
            self._report,
            random.Random(1),
            self._limits,
            self._tls,
            self._unknown_member,
            self._silence_s,
        )
        tls = self._tls.accepting if self._tls is not None else None
        self._entrance = Entrance(self.links.accept, asyncio.Protocol, self._limits, tls)
        self._entrance.open(listen("127.0.0.1", self.port))
        self.links.start()

    async def close(self) -> None:
        if self._entrance is not None:
            self._entrance.close()
            self._entrance = None
            await self.links.close()

    def _unknown_member(self, who: Proven) -> UnknownMemberRefused | None:
        refused = self.known and who.shown.identity != self.known
        return UnknownMemberRefused(who.peer, self.known, who.shown.identity) if refused else None

    def _take(self, peer: NodeId, message: Input) -> None:
        self.inputs.append((peer, message))
        self._news.set()

    def _report(self, event: Event, address: str = "") -> None:
        self.events.append(event)
        self._news.set()

    async def until(self, seen: Callable[[], bool]) -> None:
        """Wait until something is so; it is looked at with every news."""
        async with asyncio.timeout(TOO_LONG_S):
            while not seen():
                self._news.clear()
                await self._news.wait()

    async def told(self, message: Input) -> None:
        await self.until(lambda: (3 - self.node, message) in self.inputs)

    async def reported(self, event: Event) -> None:
        await self.until(lambda: event in self.events)


UP_1, UP_2 = LinkUp(Known("identity-1"), False, True), LinkUp(Known("identity-2"), False, True)
IN_1, IN_2 = LinkUp(Known("identity-1"), False, False), LinkUp(Known("identity-2"), False, False)


@contextlib.asynccontextmanager
async def two_ends(first: dict[str, Any] | None = None, second: dict[str, Any] | None = None) -> AsyncIterator[Any]:
    ports = free_ports(2)
    one, two = End(1, ports[0], **(first or {})), End(2, ports[1], **(second or {}))
    try:
        await two.open(ports[0])
        await one.open(ports[1])
        yield one, two
    finally:
        await one.close()
        await two.close()


@pytest.fixture(params=["uvloop", "asyncio"])
def run(request: pytest.FixtureRequest) -> Callable[[Coroutine[Any, Any, None]], None]:
    """Runs a coroutine on both kinds of loop."""

    def run_it(work: Coroutine[Any, Any, None]) -> None:
        factory = uvloop.new_event_loop if request.param == "uvloop" else asyncio.new_event_loop
        with asyncio.Runner(loop_factory=factory) as runner:
            runner.run(work)

    return run_it


Run = Callable[[Awaitable[None]], None]


def test_both_directions_come_up_and_frames_arrive_in_order(run: Run) -> None:
    async def story() -> None:
        async with two_ends() as (one, two):
            await one.told(UP_2)
            await one.told(IN_2)
            await two.told(IN_1)
            frames = [Join(START._replace(seq_no=n)) for n in range(100)]
            for frame in frames:
                one.links.send(2, encode_frame(frame))
            await two.told(frames[-1])
            assert [message for _, message in two.inputs if isinstance(message, Join)] == frames
            assert PeerConnected(2) in one.events

    run(story())


def test_a_peer_that_is_gone_is_told_once_and_comes_back(run: Run) -> None:
    async def story() -> None:
        async with two_ends() as (one, two):
            await one.told(UP_2)
            await one.told(IN_2)
            await two.close()
            await one.told(LinkDown())
            await one.until(lambda: any(isinstance(event, PeerLost) and event.peer == 2 for event in one.events[-2:]))
            one.inputs.clear()
            await two.open(one.port)
            await one.told(UP_2)
            await one.told(IN_2)
            assert [message for _, message in one.inputs].count(LinkDown()) == 0

    run(story())


def test_a_node_that_stops_while_linked_leaves_no_error_behind(run: Run) -> None:
    problems: list[dict[str, Any]] = []

    async def story() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, problem: problems.append(problem))
        async with two_ends() as (one, two):
            await one.told(UP_2)
            await two.told(UP_1)

    run(story())
    assert problems == []


def test_a_node_that_stops_just_as_a_peer_arrives_stops(run: Run) -> None:
    async def story() -> None:
        one = End(1, free_ports(1)[0])
        await one.open(free_ports(1)[0])
        await one.until(lambda: any(isinstance(event, PeerLost) for event in one.events))
        await asyncio.sleep(0)  # It waits for its next attempt.
        one.links._dialled[2].hurry()
        async with asyncio.timeout(TOO_LONG_S):
            await one.close()
        assert not one.links._dialled[2]._tasks

    run(story())


def test_frames_without_a_link_are_lost_and_nothing_else(run: Run) -> None:
    async def story() -> None:
        ports = free_ports(2)
        one, two = End(1, ports[0]), End(2, ports[1])
        await one.open(ports[1])
        await one.until(lambda: any(isinstance(event, PeerLost) for event in one.events))
        one.links.send(2, encode_frame(Join(START)))
        await two.open(ports[0])
        await one.told(UP_2)
        late = Join(START._replace(seq_no=1))
        one.links.send(2, encode_frame(late))
        await two.told(late)
        assert (1, Join(START)) not in two.inputs
        await one.close()
        await two.close()

    run(story())


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ({"secret": "other"}, "it does not know this cluster's secret"),
        ({"cluster": "other"}, "it says: cluster 'chat', allowed 'other'"),
        ({"node": 9}, "node_9 answers there, not node_2"),
        (
            {"members": (1, 2, 3)},
            "it says: members 1, 2 in node_1's configuration, allowed members 1, 2, 3, as in node_2's",
        ),
    ],
)
def test_a_peer_of_another_cluster_is_refused_and_reported(run: Run, said: dict[str, Any], reason: str) -> None:
    async def story() -> None:
        async with two_ends(None, said) as (one, _):
            await one.reported(PeerRefused(2, reason))
            assert not [message for _, message in one.inputs if isinstance(message, LinkUp) and message.outgoing]

    run(story())


def test_a_stranger_under_a_members_id_costs_the_member_no_link(run: Run) -> None:
    """Rule: M4."""

    async def story() -> None:
        async with two_ends() as (one, two):
            await one.told(IN_2)
            await two.told(UP_1)
            one.known = "identity-2"
            refused = UnknownMemberRefused(2, "identity-2", "foreign")
            stranger = End(2, free_ports(1)[0], shown=Known("foreign"))
            await stranger.open(one.port)
            await stranger.reported(PeerRefused(1, f"it says: {refused.line()}"))
            await one.reported(refused)
            assert not stranger.inputs
            two.links.send(1, encode_frame(Join(START)))
            await one.told(Join(START))
            assert (1, LinkDown()) not in two.inputs and one.inputs.count((2, IN_2)) == 1
            assert one.events.count(refused) == 1, "told once, however often it tries"
            await stranger.close()

    run(story())


def test_a_rebuild_under_the_id_of_a_member_that_is_alive_costs_the_member_no_link(run: Run) -> None:
    """Rule: M4."""

    async def story() -> None:
        async with two_ends() as (one, two):
            await one.told(IN_2)
            await one.told(UP_2)
            await two.told(UP_1)
            rebuild = End(2, two.port, shown=Known("fresh"), rebuilding=True)
            rebuild.port = free_ports(1)[0]
            await rebuild.open(one.port)
            await rebuild.until(lambda: any(isinstance(event, PeerRefused) for event in rebuild.events))
            assert "node_2 is alive with data directory identity-2" in str(rebuild.events)
            two.links.send(1, encode_frame(Join(START)))
            await one.told(Join(START))
            assert not rebuild.inputs and (1, LinkDown()) not in two.inputs and one.inputs.count((2, IN_2)) == 1
            await two.close()
            await one.told(LinkUp(Known("fresh"), True, False))
            await rebuild.close()

    run(story())


def test_a_stranger_at_a_members_address_is_no_link(run: Run) -> None:
    """Rule: M4."""

    async def story() -> None:
        ports = free_ports(2)
        one, two = End(1, ports[0]), End(2, ports[1], shown=Known("foreign"))
        one.known = "identity-2"
        await two.open(ports[0])
        await one.open(ports[1])
        await one.reported(UnknownMemberRefused(2, "identity-2", "foreign"))
        await one.until(lambda: any(isinstance(event, PeerLost) for event in one.events))
        assert not one.inputs and not two.inputs
        await one.close()
        await two.close()

    run(story())


def test_a_newcomer_is_dialled_where_it_says_while_its_connection_is_open(run: Run) -> None:
    """Rule: G1, G5."""

    async def story() -> None:
        async with two_ends() as (one, two):
            await two.told(UP_1)
            newcomer = End(4, free_ports(1)[0])
            newcomer.credentials = replace(newcomer.credentials, address=("127.0.0.1", newcomer.port))
            await newcomer.open(one.port, peer=1)
            shown = Known("identity-4")
            await one.until(lambda: (4, LinkUp(shown, False, True)) in one.inputs)
            one.links.send(4, encode_frame(Join(START)))
            await newcomer.until(lambda: (1, Join(START)) in newcomer.inputs)
            await newcomer.close()
            await one.until(lambda: (4, LinkDown()) in one.inputs)
            assert 4 not in one.links._dialled
            one.links.send(4, encode_frame(Join(START)))
            assert one.inputs.count((4, LinkDown())) == 1
            await newcomer.open(one.port, peer=1)
            await one.until(lambda: one.inputs[-1] == (4, LinkUp(shown, False, True)))
            await one.close()
            await newcomer.until(lambda: newcomer.inputs[-1] == (1, LinkDown()))
            assert one.inputs[-1] != (4, LinkDown()), "a node that stops reports no lost link"
            await newcomer.close()

    run(story())


def test_a_new_list_is_dialled_and_one_that_is_removed_only_until_it_goes(run: Run) -> None:
    """Rule: G1, G5."""

    async def story() -> None:
        async with two_ends() as (one, two):
            await one.told(UP_2)
            await one.told(IN_2)
            port = free_ports(1)[0]
            one.links.dial([4], {2: ("127.0.0.1", two.port), 4: ("127.0.0.1", port)})
            newcomer = End(4, port)
            await newcomer.open(free_ports(1)[0], peer=1)
            await one.until(lambda: (4, LinkUp(Known("identity-4"), False, True)) in one.inputs)
            one.links.send(2, encode_frame(Join(START)))
            await two.told(Join(START))
            await two.close()
            await one.told(LinkDown())
            assert sorted(one.links._dialled) == [4]
            await newcomer.close()

    run(story())


def test_nodes_that_are_no_members_have_few_links(run: Run) -> None:
    async def story() -> None:
        one = End(1, free_ports(1)[0])
        await one.open(free_ports(1)[0])
        crowd = [End(node, free_ports(1)[0]) for node in range(10, 11 + MAX_MEMBERS)]
        for each in crowd:
            await each.open(one.port, peer=1)
        reason = f"it says: {MAX_MEMBERS + 1} nodes that are no members, allowed {MAX_MEMBERS}"
        refused = [asyncio.ensure_future(each.reported(PeerRefused(1, reason))) for each in crowd]
        _, others = await asyncio.wait(refused, return_when=asyncio.FIRST_COMPLETED)
        for other in others:
            other.cancel()
        assert len({node for node, _ in one.inputs}) == MAX_MEMBERS
        for each in crowd:
            await each.close()
        await one.close()

    run(story())


@pytest.mark.parametrize(
    ("said", "dialled"),
    [
        (("node4.example", 5004), ("node4.example", 5004)),
        (("0.0.0.0", 5004), ("10.0.0.4", 5004)),
        (("::", 5004), ("10.0.0.4", 5004)),
        (("", 0), None),
        (("10.0.0.4", 65536), None),
        (("10.0.0.4\0", 5004), None),
        (("x" * 257, 5004), None),
    ],
)
def test_where_a_node_is_dialled_that_no_list_knows(said: tuple[str, int], dialled: tuple[str, int] | None) -> None:
    assert transport.address_to_dial(said, "10.0.0.4") == dialled


async def talk(port: int, said: bytes) -> bytes:
    """What a node answers to these bytes until it closes the connection."""
    async with asyncio.timeout(TOO_LONG_S):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(said)
        try:
            return await reader.read()
        except ConnectionResetError:
            return b""
        finally:
            writer.close()


HELLO = encode_frame(PeerHello(VERSION, "chat", 2, "x", False, "0" * 32, (1, 2)))[0]


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (PREAMBLE[:1] + b"nonsense", "a connection that opens with"),
        (PREAMBLE + struct.pack("<III", 5000, 0, 0), "frame lengths 5000 + 0, allowed 1..4096 + 0..0"),
        (PREAMBLE + struct.pack("<III", 10, 1 << 20, 0), "frame lengths 10 + 1048576"),
        (PREAMBLE + b"".join(encode_frame(Join(START))), "Join out of turn"),
        (PREAMBLE + HELLO + HELLO, "PEER_HELLO came twice"),
        (PREAMBLE + encode_frame(PeerHello(10**3900, "c", 2, "x", False, "0" * 32))[0], "version 1000000"),
    ],
)
def test_unproven_connections_get_one_refusal_and_no_memory(run: Run, said: bytes, reason: str) -> None:
    async def story() -> None:
        one = End(1, free_ports(1)[0])
        await one.open(free_ports(1)[0])
        answers = list(FrameDecoder().feed(await talk(one.port, said)))
        assert isinstance(answers[-1], PeerRefusal)
        assert answers[-1].reason.startswith(reason) and len(answers[-1].reason) < 400
        assert not one.inputs
        await one.close()

    run(story())


def test_an_unproven_connection_that_stays_silent_is_dropped(run: Run) -> None:
    async def story() -> None:
        one = End(1, free_ports(1)[0], Limits(handshake_ms=10))
        await one.open(free_ports(1)[0])
        assert await talk(one.port, PREAMBLE) == b""
        await one.close()

    run(story())


def test_connections_that_prove_nothing_lock_out_no_node(run: Run) -> None:
    async def story() -> None:
        limits = Limits(max_unproven=3, handshake_ms=TOO_LONG_S * 1000)
        async with two_ends({"limits": limits}) as (one, two):
            await one.told(IN_2)
            await two.close()
            strangers = [asyncio.ensure_future(talk(one.port, PREAMBLE)) for _ in range(8)]
            while sum(stranger.done() for stranger in strangers) < 5:
                await asyncio.sleep(0.001)
            assert one.links.unproven == 3
            one.inputs.clear()
            await two.open(one.port)
            await one.told(IN_2)
            assert sum(stranger.done() for stranger in strangers) == 6
        await asyncio.wait(strangers)

    run(story())


def test_a_proven_node_may_send_frames_up_to_the_limit_and_no_larger_ones(run: Run) -> None:
    async def story() -> None:
        async with two_ends(None, {"limits": Limits(max_frame_bytes=1 << 20)}) as (one, two):
            await one.told(UP_2)
            await two.told(IN_1)
            one.links.send(2, [struct.pack("<III", 4097, 0, 0)])
            one.links.send(2, [b"x" * 4097])
            await two.until(lambda: any(isinstance(event, BadInput) for event in two.events))
            await one.until(lambda: [message for _, message in one.inputs].count(UP_2) == 2)
            one.links.send(2, [struct.pack("<III", 10, 1 + (1 << 20), 0)])
            reasons = [event.reason for event in two.events if isinstance(event, BadInput)]
            await two.until(lambda: sum(isinstance(event, BadInput) for event in two.events) == 2)
            reasons = [event.reason for event in two.events if isinstance(event, BadInput)]
            assert reasons[0] == "frame header CRC mismatch"
            assert reasons[1] == "frame lengths 10 + 1048577, allowed 1..1048576 + 0..1048576"

    run(story())


def test_a_handshake_may_come_byte_by_byte(run: Run) -> None:
    async def story() -> None:
        one = End(1, free_ports(1)[0])
        await one.open(free_ports(1)[0])
        async with asyncio.timeout(TOO_LONG_S):
            reader, writer = await asyncio.open_connection("127.0.0.1", one.port)
            for byte in PREAMBLE + HELLO:
                writer.write(bytes([byte]))
                await writer.drain()
            # Not up to a brace: one in 64 CRCs in front of the header holds that byte.
            assert b"PEER_CHALLENGE" in await reader.readuntil(b"PEER_CHALLENGE")
            writer.close()
        await one.close()

    run(story())


def test_a_peer_that_reads_nothing_costs_a_bounded_buffer(run: Run) -> None:
    async def story() -> None:
        async with two_ends() as (one, two):
            await one.told(UP_2)
            await one.told(IN_2)
            await two.told(IN_1)
            two.links._accepted[1].transport.pause_reading()
            lost = one.links._dialled[2]._connection.lost
            frame = encode_frame(Join(START)) * 1000
            for _ in range(400):
                one.links.send(2, frame)
                await asyncio.sleep(0)
                if any(isinstance(event, BadInput) for event in one.events):
                    break
            await one.until(lambda: [message for _, message in one.inputs].count(UP_2) == 2)
            bad = [event for event in one.events if isinstance(event, BadInput)]
            assert bad and bad[0].peer == "link to node_2" and "allowed 1048576" in bad[0].reason
            assert lost.result() == bad[0].reason  # Not "closed by the peer".

    run(story())


def test_a_broken_frame_ends_the_link_and_it_is_opened_again(run: Run) -> None:
    async def story() -> None:
        async with two_ends() as (one, two):
            await one.told(UP_2)
            await two.told(IN_1)
            two.inputs.clear()
            one.links.send(2, [b"\xff" * 12])
            await two.told(IN_1)
            assert any(isinstance(event, BadInput) for event in two.events)

    run(story())


class Abrupt(asyncio.Protocol):
    """Ends its connection at once, as a reset does that comes while the first bytes are written."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        cast(asyncio.Transport, transport).abort()


def test_of_a_connection_that_ends_at_once_no_object_is_left_that_would_close_another_file(run: Run) -> None:
    async def story() -> None:
        with socket.create_server(("127.0.0.1", 0)) as peer:
            sock = await connect("127.0.0.1", peer.getsockname()[1], TOO_LONG_S)
            await hand_over(sock, Abrupt)
            await asyncio.sleep(0)
            number = sock.detach()
            assert number == -1, "the loop has closed that descriptor, which may be another file's by now"

    run(story())


def test_a_name_that_can_not_be_one_is_an_address_that_is_not_there(run: Run) -> None:
    async def story() -> None:
        with pytest.raises(OSError):
            await connect("a..b", 1, TOO_LONG_S)

    run(story())


class Open(asyncio.Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)


def test_of_a_closed_connection_nothing_is_unacknowledged(run: Run) -> None:
    async def story() -> None:
        with socket.create_server(("127.0.0.1", 0)) as peer:
            made = await hand_over(await connect("127.0.0.1", peer.getsockname()[1], TOO_LONG_S), Open)
            assert not unacknowledged(made.transport)[0]
            made.transport.abort()
            for _ in range(5):
                assert unacknowledged(made.transport) == (False, 0.0)
                await asyncio.sleep(0)

    run(story())


def test_an_error_of_ours_behind_a_link_is_told_at_once(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """The link would stay down, and nobody would know."""

    async def broken(*_: object) -> socket.socket:
        raise RuntimeError("ours")

    async def story() -> None:
        told: asyncio.Future[BaseException] = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().set_exception_handler(lambda _, what: told.set_result(what["exception"]))
        monkeypatch.setattr(transport, "connect", broken)
        one = End(1, free_ports(1)[0])
        await one.open(free_ports(1)[0])
        held = set(one.links._dialled[2]._tasks)  # Alive, so that it is not for a collection to tell.
        async with asyncio.timeout(TOO_LONG_S):
            assert str(await told) == "ours"
        assert all(task.done() for task in held)
        await one.close()

    run(story())


def test_a_port_in_use_is_one_clear_error() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=rf"can't listen on 127\.0\.0\.1:{port}: Address already in use"):
            listen("127.0.0.1", port)
    with pytest.raises(ConfigError, match=r"can't listen on 192\.0\.2\.1:0: Cannot assign"):
        listen("192.0.2.1", 0)


def test_a_bound_port_that_does_not_listen_can_be_taken() -> None:
    with socket.socket() as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.bind(("127.0.0.1", 0))
        listen("127.0.0.1", holder.getsockname()[1]).close()


# ---- links that the network has cut ---------------------------------------------------------------


def look(monkeypatch: pytest.MonkeyPatch, quiet_s: Callable[[asyncio.Transport], float]) -> None:
    """Let the system say this of every look at a connection on which bytes wait for an acknowledgement."""
    monkeypatch.setattr(transport, "unacknowledged", lambda each: (True, quiet_s(each)))


def heard_from_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a busy machine, the real answer of the system may be QUICK already."""
    look(monkeypatch, lambda _: 0.0)


def test_a_silent_link_is_dialled_anew_and_nobody_is_told_that_it_was_lost(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rule: L1"""

    async def story() -> None:
        heard_from_the_start(monkeypatch)
        async with two_ends({"silence_s": QUICK}) as (one, two):
            await one.told(UP_2)
            await two.told(UP_1)
            silent = one.links._dialled[2]._connection.transport
            look(monkeypatch, lambda each: LONG if each is silent else 0.0)
            await one.until(lambda: [message for _, message in one.inputs].count(UP_2) >= 2)
            assert any(isinstance(event, PeerLost) and "nothing acknowledged" in event.reason for event in one.events)
            frame = Join(START._replace(seq_no=7))
            one.links.send(2, encode_frame(frame))
            await two.told(frame)
            assert LinkDown() not in [message for _, message in one.inputs]

    run(story())


def test_a_link_that_is_heard_again_stays_as_it_is(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """The peer was stopped: it takes up the link beside as soon as it goes on. Rule: L1"""

    async def story() -> None:
        heard_from_the_start(monkeypatch)
        async with two_ends({"silence_s": QUICK}) as (one, _):
            await one.told(UP_2)
            before = one.links._dialled[2]._connection
            quiet = [LONG] * LOOKS
            look(monkeypatch, lambda _: quiet.pop() if quiet else 0.0)
            await one.until(lambda: one.events.count(PeerConnected(2)) >= 2)
            assert one.links._dialled[2]._connection is before
            assert [message for _, message in one.inputs].count(UP_2) == 1

    run(story())


def test_a_link_that_is_heard_again_before_the_peer_can_be_dialled_is_reported_as_connected(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each loss is reported, and ends with a report: the network took up the old connection first. Rule: L1"""

    async def story() -> None:
        heard_from_the_start(monkeypatch)
        async with two_ends({"silence_s": QUICK}) as (one, _):
            await one.told(UP_2)
            before = one.links._dialled[2]._connection

            async def out_of_reach(*_: Any) -> socket.socket:
                raise TimeoutError

            monkeypatch.setattr(transport, "connect", out_of_reach)
            for times in (2, 3):  # A second loss is reported too.
                quiet = [LONG] * LOOKS
                look(monkeypatch, lambda _, quiet=quiet: quiet.pop() if quiet else 0.0)  # type: ignore[misc]
                await one.until(lambda times=times: one.events.count(PeerConnected(2)) == times)
            assert one.events.count(PeerLost(2, f"nothing acknowledged for {LONG} s")) == 2
            assert one.links._dialled[2]._connection is before

    run(story())


def test_the_kernel_probes_an_idle_link(run: Run) -> None:
    """Nothing waits there for an acknowledgement, so that no examination could find it silent. Rule: L1"""

    async def story() -> None:
        async with two_ends() as (one, _):
            await one.told(UP_2)
            sock = one.links._dialled[2]._connection.transport.get_extra_info("socket")
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 1

    run(story())


def test_a_silent_link_to_a_port_that_refuses_is_lost(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rule: L1"""

    async def story() -> None:
        heard_from_the_start(monkeypatch)
        async with two_ends({"silence_s": QUICK}) as (one, two):
            await one.told(UP_2)
            await two.told(UP_1)
            two._entrance.close()
            look(monkeypatch, lambda _: LONG)
            await one.told(LinkDown())

    run(story())
