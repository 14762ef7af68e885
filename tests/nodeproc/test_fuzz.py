"""Any bytes at every decoder, and at a running node: no crash, no hang, no memory that grows, nobody else notices."""

from __future__ import annotations

import asyncio
import contextlib
import random
import tracemalloc
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import pytest
import uvloop
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nodeproc.config import Limits
from nodeproc.core.messages import Known
from nodeproc.errors import FrameError, LinkRefused
from nodeproc.frames import PREAMBLE, FrameDecoder, PeerChallenge, PeerHello, PeerProof, encode_frame
from nodeproc.lines import (
    Chat,
    ClientLine,
    Hello,
    LineDecoder,
    StatusRequest,
    Subscribe,
    decode_client_line,
    encode_line,
    session_of,
)
from nodeproc.net.handshake import VERSION, Accepting, Credentials, Dialling
from nodeproc.net.nodestream import NodeStream
from nodeproc.records import decode_entry, decode_records
from nodeproc.session import Session
from tests import TOO_LONG_S
from tests.fuzz import decoders
from tests.nodeproc.test_runtime import Chatter, Member, single
from tests.nodeproc.test_wire import ENTRIES, FRAMES, NODE_LINES

FEW = settings(max_examples=100, deadline=None)

LARGE = 10**4299
"""About as many digits as Python itself puts into words."""
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.sampled_from([LARGE, -LARGE, 2**63, 1e308]) | st.text(max_size=20),
    lambda inside: st.lists(inside, max_size=4) | st.dictionaries(st.text(max_size=8), inside, max_size=4),
    max_leaves=8,
)


@st.composite
def damaged(draw: st.DrawFn, originals: list[bytes]) -> bytes:
    """Good bytes, changed in a few places: bytes replaced, put in, left out or said again."""
    data = bytearray(draw(st.sampled_from(originals)))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(data)))
        piece = draw(st.binary(max_size=6))
        match draw(st.sampled_from(["replace", "insert", "cut", "repeat"])):
            case "replace":
                data[at : at + len(piece)] = piece
            case "insert":
                data[at:at] = piece
            case "cut":
                del data[at : at + draw(st.integers(1, 30))]
            case "repeat":
                data[at:at] = data[at : at + draw(st.integers(1, 30))]
    return bytes(data)


def in_pieces(data: bytes, cuts: list[int]) -> list[bytes]:
    places = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    return [data[a:b] for a, b in pairwise(places)]


GOOD_FRAMES = [b"".join(encode_frame(frame)) for frame in FRAMES]
GOOD_ENTRIES = ENTRIES
GOOD_NODE_LINES = [encode_line(line) for line in NODE_LINES]
GREETINGS = [
    PREAMBLE + b"".join(encode_frame(PeerHello(VERSION, "chat", 2, "x", False, "0" * 32, (1, 2)))),
    PREAMBLE
    + b"".join(
        encode_frame(PeerHello(VERSION, "chat", 1, "x", False, "0" * 32, (1, 2))) + encode_frame(PeerProof("0" * 64))
    ),
]
CLIENT_LINES: list[ClientLine] = [
    Hello(101, "", 7, session_token="0123456789abcdef"),
    Chat(1, ("a", "b")),
    Subscribe(3),
    StatusRequest(),
]
GOOD_CLIENT_LINES = [encode_line(line) for line in CLIENT_LINES]
FIELDS = (
    *("client_id", "session", "session_token", "born", "first", "payloads", "from", "n", "seq_no", "leader", "term"),
    *("reason", "retry", "expected", "node", "acknowledged", "acknowledged_seq", "last_seq", "client_token"),
)
odd_objects = st.fixed_dictionaries(
    {"type": st.sampled_from(["HELLO", "CHAT", "SUBSCRIBE", "STATUS", "ACK", "WELCOME", "REJECT", "LEADER", "ERROR"])},
    optional=dict.fromkeys(FIELDS, json_values),
)
odd_lines = odd_objects.map(lambda value: msgspec.json.encode(value, enc_hook=str) + b"\n")
cuts = st.lists(st.integers(0, 1 << 20), max_size=6)


# ---- decoders -----------------------------------------------------------------------------------


@FEW
@given(st.binary(max_size=2000) | damaged(GOOD_FRAMES), cuts, st.booleans())
def test_frames_of_any_bytes_are_taken_or_refused(data: bytes, cuts: list[int], proven: bool) -> None:
    decoder = FrameDecoder() if proven else FrameDecoder(4096, 0)
    longest = 0
    with contextlib.suppress(FrameError):
        for piece in in_pieces(data, cuts):
            longest = max(longest, len(piece))
            for message in decoder.feed(piece):
                assert type(message) in {type(frame) for frame in FRAMES}
            if not proven:
                assert len(decoder._buffer) <= 4096 + 12 + longest


@FEW
@given(st.binary(max_size=500) | damaged(GOOD_ENTRIES))
def test_entries_and_records_of_any_bytes_are_taken_or_refused(data: bytes) -> None:
    with contextlib.suppress(FrameError):
        entry = decode_entry(data, 0)
        assert entry is None or entry.end <= len(data)
    with contextlib.suppress(FrameError):
        assert sum(len(record.raw) for record in decode_records(data)) == len(data)


@FEW
@given(st.binary(max_size=2000) | damaged(GOOD_CLIENT_LINES) | odd_lines, cuts)
def test_lines_of_any_bytes_are_taken_or_refused(data: bytes, cuts: list[int]) -> None:
    decoder = LineDecoder(1024)
    with contextlib.suppress(FrameError):
        for piece in in_pieces(data, cuts):
            lines = decoder.feed(piece)
            assert decoder.unfinished <= 1024
            for line in lines:
                assert isinstance(decode_client_line(line), Hello | Chat | Subscribe | StatusRequest)


@FEW
@given(st.lists(damaged(GOOD_NODE_LINES) | st.sampled_from(GOOD_NODE_LINES) | odd_lines, max_size=8), cuts)
def test_a_client_takes_or_refuses_whatever_a_node_says(said: list[bytes], cuts: list[int]) -> None:
    stream, session = NodeStream(4096), Session(101, "5f0c")
    session.subscribe(1)
    session.submit(["a", "b"], 0.0)
    session.connected(0.0)
    now = 0.0
    with contextlib.suppress(FrameError):
        for piece in in_pieces(b"".join(said), cuts):
            for line in stream.feed(piece):
                now += 0.1
                session.received(line, now)
                while session.next_line(now) is not None:
                    pass
                session.tick(now)
    session.disconnected()
    session.close("over")
    outcomes = session.take_outcomes()
    assert sum(outcome.last - outcome.first + 1 for outcome in outcomes) == 2


words = st.text(max_size=40)
hellos = st.builds(
    PeerHello,
    st.sampled_from([VERSION, 0, -1, LARGE]),
    st.sampled_from(["chat", ""]) | words,
    st.sampled_from([1, 2, 3, LARGE]),
    words,
    st.booleans(),
    st.sampled_from(["0" * 32, ""]) | words,
    st.just((1, 2)) | st.lists(st.sampled_from([1, 2, 0, LARGE]), max_size=20).map(tuple),
    st.sampled_from([0, VERSION, -1, LARGE]),
)
challenges = st.builds(PeerChallenge, st.sampled_from([1, 2]), words, st.booleans(), st.just("1" * 32) | words, words)
NEVER_SAID = Credentials(1, (1, 2), "chat", "a secret that nobody says", Known("one"), False)


@FEW
@given(st.lists(hellos | st.builds(PeerProof, words), max_size=4), challenges)
def test_nobody_gets_through_a_handshake_by_trying(said: list[PeerHello | PeerProof], challenge: PeerChallenge) -> None:
    accepting = Accepting(NEVER_SAID, "1" * 32)
    with contextlib.suppress(LinkRefused):
        for message in said:
            if isinstance(message, PeerHello):
                assert accepting.on_hello(message).proof
            else:
                accepting.on_proof(message)
                raise AssertionError("proven without the secret")
    with pytest.raises(LinkRefused):
        Dialling(NEVER_SAID, 2, "0" * 32).on_challenge(challenge)


def test_bytes_led_by_coverage_reach_the_decoder_that_they_name(monkeypatch: pytest.MonkeyPatch) -> None:
    reached: list[tuple[int, bytes]] = []

    def target(number: int) -> Callable[[bytes], None]:
        def decoder(data: bytes) -> None:
            reached.append((number, data))
            raise (FrameError if data else ValueError)("what is wrong")

        return decoder

    good = [*GREETINGS, *GOOD_FRAMES, *GOOD_ENTRIES, *GOOD_CLIENT_LINES, *GOOD_NODE_LINES]
    for number in range(len(decoders.TARGETS)):
        for data in good:
            decoders.one_input(bytes([number]) + data)
    monkeypatch.setattr(decoders, "TARGETS", tuple(map(target, range(5))))
    decoders.one_input(b"")
    decoders.one_input(b"\x03abc")
    with pytest.raises(ValueError, match="what is wrong"):
        decoders.one_input(b"\x07")
    assert reached == [(3, b"abc"), (2, b"")]


# ---- a running node -----------------------------------------------------------------------------

TIGHT = Limits(max_clients=50, max_silent=20, max_unproven=10, unfinished_bytes=50_000, max_payload_bytes=512)


class Besieged:
    """A node in a loop that stands still between two calls of run()."""

    def __init__(self, root: Path) -> None:
        self.runner = asyncio.Runner(loop_factory=uvloop.new_event_loop)
        self.n = 0
        self._root = root
        self.runner.run(self._start())

    async def _start(self) -> None:
        self.member = Member(single(secret="s", limits=TIGHT), self._root)
        self.member.start()
        self.friend = await Chatter.open(self.member.port, "friend")

    async def strangers_say(self, strangers: list[tuple[list[bytes], bool]]) -> None:
        """Each says its pieces, then closes or not; a friend chats on and is answered, and nothing is left."""
        async with asyncio.timeout(TOO_LONG_S):
            writers = await asyncio.gather(*(self._say(*stranger) for stranger in strangers))
            for _ in range(3):
                self.n += 1
                await self.friend.chat(self.n, f"message {self.n}")
            for writer in writers:
                writer.transport.abort()
            runtime = self.member.runtime
            while self._strangers() > 0:
                await asyncio.sleep(0)
        assert not self.member.exit.done()
        clients = runtime.turn.clients
        listening = [each for each in clients.connections if each.only_listens]
        assert clients.unfinished_bytes == sum(each.unfinished for each in listening)
        assert clients.intake_bytes == 0
        heard = {each.session.id for each in listening if each.session is not None}
        assert set(clients.sessions) - heard == {session_of("token.of.session.friend")}
        assert (await self.friend.status())["role"] == "leader"

    def _strangers(self) -> int:
        """Those that are left. Of a subscriber that closed its sending half TCP does not tell when it is gone."""
        runtime = self.member.runtime
        clients = [each for each in runtime.turn.clients.connections if not each.only_listens]
        return len(clients) - 1 + runtime.links.unproven + runtime._entrance.silent

    async def _say(self, pieces: list[bytes], ends: bool) -> asyncio.StreamWriter:
        _, writer = await asyncio.open_connection("127.0.0.1", self.member.port)
        with contextlib.suppress(OSError):
            for piece in pieces:
                writer.write(piece)
                await writer.drain()
                await asyncio.sleep(0)
            if ends:
                writer.write_eof()
        return writer

    def close(self) -> None:
        async def end() -> None:
            self.friend.close()
            assert await self.member.stop() == 0

        self.runner.run(end())
        self.runner.close()


@pytest.fixture(scope="module")
def besieged(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Besieged]:
    node = Besieged(tmp_path_factory.mktemp("besieged"))
    yield node
    node.close()


a_stranger = st.tuples(
    st.one_of(
        st.binary(max_size=6000),
        st.binary(max_size=300).map(lambda data: PREAMBLE + data),
        damaged(GREETINGS),
        damaged([PREAMBLE + frame for frame in GOOD_FRAMES]),
        damaged([b"".join(GOOD_CLIENT_LINES)]),
        st.lists(odd_lines, min_size=1, max_size=5).map(b"".join),
        st.lists(st.sampled_from(GOOD_CLIENT_LINES) | odd_lines, max_size=5).map(lambda lines: b"".join(lines) + b'{"'),
        st.integers(5000, 70_000).map(lambda size: b"x" * size),
        st.integers(5000, 70_000).map(lambda size: b"[" * size + b"\n"),
        st.integers(5000, 30_000).map(lambda size: b'{"type":"HELLO","client_id":1}\n' + b"x" * size),
    ),
    cuts,
    st.booleans(),
).map(lambda drawn: (in_pieces(drawn[0], drawn[1]), drawn[2]))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(strangers=st.lists(a_stranger, max_size=8))
def test_a_running_node_stands_any_bytes(besieged: Besieged, strangers: list[tuple[list[bytes], bool]]) -> None:
    besieged.runner.run(besieged.strangers_say(strangers))


def test_strangers_leave_no_memory_behind(besieged: Besieged) -> None:
    rng = random.Random(1)

    def crowd() -> list[tuple[list[bytes], bool]]:
        kinds: list[Any] = [
            lambda: PREAMBLE + rng.randbytes(5000),
            lambda: rng.randbytes(20_000),
            lambda: b'{"type":"HELLO","client_id":1}\n' + b"x" * 20_000,
            lambda: GREETINGS[0],
        ]
        return [([rng.choice(kinds)()], rng.random() < 0.5) for _ in range(40)]

    besieged.runner.run(besieged.strangers_say(crowd()))
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for _ in range(10):
            besieged.runner.run(besieged.strangers_say(crowd()))
        grown = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert grown < 1 << 20, f"{grown} bytes after 400 strangers who said 12,000 each on average"
