"""Client connections against a node that is played by the test."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import pytest

from nodeproc.config import Limits
from nodeproc.core.events import BadInput, Event
from nodeproc.core.messages import (
    Batch,
    MemberAddress,
    NodeId,
    Position,
    Record,
    Refuse,
    RefuseReason,
    SeqNo,
    SessionUse,
    Submit,
    Term,
)
from nodeproc.errors import Unreadable
from nodeproc.lines import AddRequest, AdminRequest, ChangeIs, RemoveRequest, Status, TransferRequest, session_of
from nodeproc.net import clients as module
from nodeproc.net.clients import ClientConnection, Clients
from nodeproc.records import Sealer
from tests import TOO_LONG_S

HELLO = b'{"type":"HELLO","client_id":101,"session_token":"the.own.token.of.s1"}\n'


def named(name: str) -> str:
    """The session of a client that says HELLO with this name in its token."""
    return session_of(f"the.own.token.of.{name}")


class Wire(asyncio.Transport):
    """A transport that keeps what is written; full() and empty() play a client that reads slowly."""

    def __init__(self, extra: dict[str, Any] | None = None) -> None:
        super().__init__(extra)
        self.written = b""
        self.reading = True
        self.closed = False
        self.protocol: ClientConnection

    def write(self, data: Any) -> None:
        assert not self.closed
        self.written += bytes(data)

    def writelines(self, list_of_data: Any) -> None:
        for data in list_of_data:
            self.write(data)

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        pass

    def is_closing(self) -> bool:
        return self.closed

    def pause_reading(self) -> None:
        assert self.reading
        self.reading = False

    def resume_reading(self) -> None:
        assert not self.reading
        self.reading = True

    def close(self) -> None:
        self.abort()

    def abort(self) -> None:
        if not self.closed:
            self.closed = True
            self.protocol.connection_lost(None)

    def says(self, data: bytes) -> list[Any]:
        """Let the client say something; returns the node's answer, parsed."""
        before = len(self.written)
        self.protocol.data_received(data)
        return [json.loads(line) for line in self.written[before:].splitlines()]

    def lines(self) -> list[Any]:
        """All that was written since the last call."""
        written, self.written = self.written, b""
        return [json.loads(line) for line in written.splitlines()]


class Node:
    """The backend, with a message log of its own."""

    def __init__(self) -> None:
        self.submitted: list[Submit] = []
        self.events: list[Event] = []
        self.records: list[Record] = []
        self.reads = 0
        self.damaged_from: SeqNo = 0
        self.place = Position(7, 2)
        self.undelivered = 0
        """Messages in the log that are not delivered."""
        self.listed = True
        self.added: tuple[MemberAddress, ...] | None = None
        self.requests: list[AdminRequest] = []

    def submit(self, message: Submit) -> None:
        self.submitted.append(message)

    def delivered_session(self, session: str) -> tuple[int, SeqNo] | None:
        known = [use for record in self.records for use in batch_of(record).sessions if use.session == session]
        return (known[-1].last_n, known[-1].seq_no) if known else None

    def route(self) -> tuple[NodeId, Term]:
        return (3, 7)

    def delivered_seq(self) -> SeqNo:
        return batch_of(self.records[-1]).last if self.records else 0

    def last_seq(self) -> SeqNo:
        return self.delivered_seq() + self.undelivered

    def read_lines(self, start: SeqNo, max_bytes: int) -> tuple[bytes, SeqNo]:
        self.reads += 1
        if self.damaged_from and self.damaged_from <= start <= self.delivered_seq():
            raise Unreadable(self.place, "the message log", 17, "CRC mismatch")
        lines = b"".join(bytes(record.body) for record in self.records).splitlines(keepends=True)
        return b"".join(lines[start - 1 :][:2]), min(start + 1, len(lines))

    def status(self) -> Status:
        return Status(1, "leader", 7, 1, 5, 4, 3, False, 1.5, 42, (), {})

    def is_member(self) -> bool:
        return self.listed

    def new_addresses(self) -> tuple[MemberAddress, ...] | None:
        return self.added

    def administer(self, request: AdminRequest) -> ChangeIs:
        self.requests.append(request)
        return ChangeIs("begun", leader=1)

    def report(self, event: Event, address: str = "") -> None:
        self.events.append(event)

    def order(self, *submits: Submit) -> Record:
        """The next delivered batch, one message or more of each submit."""
        first = seq_no = self.delivered_seq() + 1
        uses = []
        for submit in submits:
            seq_no += len(submit.payloads)
            uses.append(SessionUse(submit.session, submit.first + len(submit.payloads) - 1, seq_no - 1))
        self.records.append(Sealer(lambda: 0.0).batch(Batch(7, first, seq_no - 1, tuple(uses)), submits))
        return self.records[-1]


def batch_of(record: Record) -> Batch:
    assert isinstance(record.header, Batch)
    return record.header


class Hall:
    """Clients of one played node."""

    def __init__(self, client_token: str = "", admin_token: str = "", **limits: int) -> None:
        self.node = Node()
        self.clients = Clients(1, self.node, Limits(**limits), client_token, admin_token)

    def connect(self, said: bytes = HELLO, address: str = "") -> Wire:
        wire = Wire({"peername": (address, 1)} if address else None)
        wire.protocol = self.clients.accept()
        wire.protocol.connection_made(wire)
        if said:
            wire.protocol.data_received(said)
            wire.written = b""
        return wire

    def deliver(self, *submits: Submit) -> None:
        self.clients.delivered([self.node.order(*submits)])


def in_loop(story: Callable[[], Any]) -> Callable[[], None]:
    """Run the test inside a loop: timers and call_soon work, nothing is waited for."""

    def run() -> None:
        async def inside() -> None:
            await story()

        asyncio.run(inside())

    run.__name__ = story.__name__
    return run


def submit(session: str, first: int, *payloads: str) -> Submit:
    return Submit(named(session), 101, 0, first, payloads)


def chat(first: int, *payloads: str) -> bytes:
    return json.dumps({"type": "CHAT", "first": first, "payloads": payloads}).encode() + b"\n"


@in_loop
async def test_hello_is_welcomed_with_all_that_a_client_needs_to_go_on() -> None:
    hall = Hall()
    hall.deliver(submit("s1", 1, "a", "b"), submit("other", 1, "c"))
    [welcome] = hall.connect(b"").says(HELLO)
    assert welcome == {
        "type": "WELCOME", "node": 1, "session": named("s1"), "born": 3, "acknowledged": 2, "last_seq": 3,
        "leader": 3, "term": 7, "acknowledged_seq": 2,
    }  # fmt: skip


@in_loop
async def test_a_client_without_a_session_gets_one() -> None:
    wire = Hall().connect(b"")
    [welcome] = wire.says(b'{"type":"HELLO","client_id":1}\n')
    assert len(welcome["session"]) == 24


@in_loop
async def test_what_every_subscriber_sees_takes_no_session_over() -> None:
    """Rule: S1. A msg_id names the session; only its token opens it."""
    hall = Hall()
    owner = hall.connect(HELLO + chat(1, "a"))
    hall.deliver(*hall.node.submitted)
    session = json.loads(bytes(hall.node.records[0].body))["msg_id"].removesuffix("-1")
    assert session == named("s1") and b"own.token" not in bytes(hall.node.records[0].raw)
    owner.lines()
    for said in ({"session": session}, {"session": session, "session_token": session}):
        thief = hall.connect(b"")
        [answer] = thief.says(json.dumps({"type": "HELLO", "client_id": 1, **said}).encode() + b"\n")
        assert answer["type"] == "ERROR" and thief.closed
    thief = hall.connect(HELLO.replace(b"the.own.token.of.s1", session.encode()))
    assert thief.protocol.session != session
    assert thief.says(chat(2, "not by the owner")) == [] and hall.node.submitted[-1].session != session
    assert not owner.closed and owner.lines() == []


@in_loop
async def test_a_session_may_be_named_beside_its_token() -> None:
    """Rule: S1. Nodes of other makes take the name; this one works it out."""
    line = HELLO.replace(b'"session_', f'"session":"{named("s1")}","session_'.encode())
    [welcome] = Hall().connect(b"").says(line)
    assert (welcome["type"], welcome["session"]) == ("WELCOME", named("s1"))


@in_loop
async def test_one_address_begins_no_more_sessions_than_allowed_and_those_that_are_known_go_on() -> None:
    """Rule: S3."""
    hall = Hall(new_sessions=2)
    known = hall.connect(address="192.0.2.1")
    for name in (b"s1", b"s2", b"s2"):
        hall.connect(HELLO.replace(b"s1", name) + chat(1, "m"), "192.0.2.1")
    hall.deliver(hall.node.submitted[0])
    refused = hall.connect(HELLO.replace(b"s1", b"s3"), "192.0.2.1")
    for first in (1, 1):
        reason = "new sessions from 192.0.2.1: allowed 2 within 10 minutes"
        rejection = {"type": "REJECT", "session": named("s3"), "first": first, "reason": reason, "retry": False}
        assert refused.says(chat(first, "m")) == [rejection | {"expected": 0}]
    assert len(hall.node.submitted) == 3 and not refused.closed
    known = hall.connect(address="192.0.2.1")
    assert known.says(chat(2, "m")) == [] and len(hall.node.submitted) == 4
    elsewhere = hall.connect(HELLO.replace(b"s1", b"s4"), "192.0.2.2")
    assert elsewhere.says(chat(1, "m")) == [] and len(hall.node.submitted) == 5
    hall.clients._counting_since -= module.NEW_SESSIONS_S
    assert refused.says(chat(1, "m")) == [] and len(hall.node.submitted) == 6


@in_loop
async def test_a_session_is_born_when_it_sends_its_first_message() -> None:
    """Rule: S3. Else it would expire without having sent anything, where others make the table forget much."""
    hall = Hall()
    silent, resumed = hall.connect(), hall.connect(HELLO.replace(b'"client_id"', b'"born":0,"client_id"'))
    hall.deliver(submit("other", 1, "a", "b"))
    silent = hall.connect()
    hall.deliver(submit("other", 3, "c"))
    for n in (1, 2):
        silent.says(chat(n, "m"))
        hall.deliver(submit("other", 3 + n, "d"))
    resumed = hall.connect(HELLO.replace(b"s1", b"s2").replace(b'"client_id"', b'"born":1,"client_id"') + chat(1, "m"))
    assert [each.born for each in hall.node.submitted] == [3, 3, 1] and not resumed.closed


@in_loop
async def test_messages_go_to_the_core_and_are_acknowledged_when_delivered() -> None:
    hall = Hall()
    wire = hall.connect()
    assert wire.says(chat(1, "a", "b")) == []
    assert hall.node.submitted == [submit("s1", 1, "a", "b")]
    hall.deliver(*hall.node.submitted)
    assert wire.lines() == [{"type": "ACK", "session": named("s1"), "n": 2, "seq_no": 2}]


@in_loop
async def test_lines_of_one_read_that_continue_each_other_are_one_submission() -> None:
    hall = Hall()
    wire = hall.connect()
    assert wire.says(chat(1, "a") + chat(2, "b", "c") + chat(4, "d")) == []
    assert hall.node.submitted == [submit("s1", 1, "a", "b", "c", "d")]
    hall.deliver(*hall.node.submitted)
    assert wire.lines() == [{"type": "ACK", "session": named("s1"), "n": 4, "seq_no": 4}]
    assert hall.clients.intake_bytes == 0
    assert wire.says(chat(3, "c") + chat(4, "d") + chat(5, "e")) == []  # Only some of them are known.
    assert hall.node.submitted[-1] == submit("s1", 3, "c", "d", "e")
    assert wire.says(chat(2, "b", "c") + chat(4, "d")) == [{"type": "ACK", "session": named("s1"), "n": 4, "seq_no": 4}]
    assert len(hall.node.submitted) == 2


@pytest.mark.parametrize(
    ("lines", "firsts"),
    [
        ([chat(1, "a"), chat(3, "c"), chat(4, "d")], [1, 3]),  # A gap.
        ([chat(1, "a"), chat(1, "a"), chat(2, "b")], [1, 1]),  # Sent again.
        ([chat(1, *"abcde"), chat(6, *"fgh"), chat(9, "i")], [1, 9]),  # As many as one line may have.
        (
            [chat(1, "a"), chat(2, "b" * 90, "c" * 90), chat(4, "d")],
            [1, 2, 4],
        ),  # A line that may be refused for its size.
        ([chat(n, "x" * 80) for n in range(1, 10)], [1, 9]),  # As many bytes as one line may have.
        ([chat(1, "a"), b'{"type":"SUBSCRIBE","from":9}\n', chat(2, "b")], [1, 2]),  # Another line between them.
    ],
)
def test_other_lines_of_one_read_are_submitted_in_their_order(lines: list[bytes], firsts: list[int]) -> None:
    async def story() -> None:
        hall = Hall(max_payload_bytes=160, max_line_messages=8, max_line_bytes=1024)
        wire = hall.connect()
        assert wire.says(b"".join(lines)) == []
        assert [each.first for each in hall.node.submitted] == firsts
        assert all(len(each.payloads) <= 8 for each in hall.node.submitted)

    asyncio.run(story())


@in_loop
async def test_lines_before_a_malformed_one_are_submitted_and_a_refused_line_takes_none_with_it() -> None:
    hall = Hall(max_payload_bytes=100)
    wire = hall.connect()
    [answer] = wire.says(chat(1, "a") + chat(2, "x" * 101) + chat(3, "c"))
    assert (answer["type"], answer["first"]) == ("REJECT", 2)
    assert [each.payloads for each in hall.node.submitted] == [("a",), ("c",)]  # The leader will refuse the second.
    [answer] = wire.says(chat(4, "d") + b"{}\n" + chat(5, "never taken"))
    assert answer["type"] == "ERROR" and wire.closed
    assert hall.node.submitted[-1] == submit("s1", 4, "d") and len(hall.node.submitted) == 3
    assert hall.clients.intake_bytes == 0


@in_loop
async def test_what_one_turn_delivers_is_one_acknowledgement() -> None:
    hall = Hall()
    wire = hall.connect()
    records = [hall.node.order(submit("s1", n, "x"), submit("s2", n, "y")) for n in (1, 2, 3)]
    hall.clients.delivered(records)
    assert wire.lines() == [{"type": "ACK", "session": named("s1"), "n": 3, "seq_no": 5}]


@in_loop
async def test_a_message_delivered_before_is_acknowledged_at_once() -> None:
    hall = Hall()
    wire = hall.connect()
    hall.deliver(submit("s1", 1, "a", "b"))
    wire.lines()
    assert wire.says(chat(1, "a")) == [{"type": "ACK", "session": named("s1"), "n": 2, "seq_no": 2}]
    assert hall.node.submitted == []


@in_loop
async def test_refusals_reach_their_client() -> None:
    hall = Hall()
    wire = hall.connect()
    cases: list[tuple[RefuseReason, bool]] = [
        ("gap", True), ("no_leader", True), ("no_quorum", True), ("expired", False), ("invalid", False),
    ]  # fmt: skip
    for reason, retry in cases:
        hall.clients.refused([Refuse(named("s1"), 4, reason, 2), Refuse("nobody", 1, reason, 0)])
        assert wire.lines() == [
            {"type": "REJECT", "session": named("s1"), "first": 4, "reason": reason, "retry": retry, "expected": 2}
        ]


@in_loop
async def test_a_new_way_to_the_leader_is_told_to_all_that_said_hello() -> None:
    hall = Hall()
    greeted, silent = hall.connect(), hall.connect(b"")
    hall.clients.route_changed(2, 8)
    assert greeted.lines() == [{"type": "LEADER", "leader": 2, "term": 8}]
    assert silent.lines() == []


@in_loop
async def test_clients_hear_where_members_listen_that_were_added() -> None:
    """Rule: G1."""
    hall = Hall()
    greeted = hall.connect()
    hall.node.added = (MemberAddress(4, "10.0.0.4", 5001),)
    hall.clients.route_changed(2, 8)
    added = {"addresses": [[4, "10.0.0.4", 5001]]}
    assert greeted.lines() == [{"type": "LEADER", "leader": 2, "term": 8} | added]
    [welcome] = hall.connect(b"").says(HELLO)
    assert added.items() <= welcome.items()


@in_loop
async def test_a_node_that_is_no_member_sends_its_clients_to_others() -> None:
    """A newcomer that is not added yet gets no messages. Rule: G5, S6."""
    hall = Hall()
    hall.node.listed = False
    for said in (HELLO, b'{"type":"SUBSCRIBE"}\n'):
        wire = hall.connect(b"")
        reason = "this node is no member of the cluster; use another node"
        assert wire.says(said) == [{"type": "ERROR", "reason": reason}] and wire.closed
    assert not hall.node.events, "nobody has made a mistake"
    assert hall.connect(b"").says(b'{"type":"STATUS"}\n')[0]["type"] == "STATUS_IS"
    hall.node.listed = True
    assert hall.connect(b"").says(HELLO)[0]["type"] == "WELCOME"


ADD = b'{"type":"ADD_NODE","node":4,"host":"10.0.0.4","port":5001}\n'
REQUESTS = [
    (ADD, AddRequest(node=4, host="10.0.0.4", port=5001)),
    (b'{"type":"REMOVE_NODE","node":2}\n', RemoveRequest(node=2)),
    (b'{"type":"TRANSFER"}\n', TransferRequest()),
    (b'{"type":"TRANSFER","to":2}\n', TransferRequest(to=2)),
]


@pytest.mark.parametrize(("said", "request_"), REQUESTS, ids=lambda each: "")
def test_an_operator_on_the_same_machine_is_answered(said: bytes, request_: AdminRequest) -> None:
    """Rule: G2, E7."""

    @in_loop
    async def story() -> None:
        hall = Hall()
        answer = {"type": "CHANGE_IS", "state": "begun", "reason": "", "retry": False, "leader": 1}
        assert hall.connect(b"", "127.0.0.1").says(said) == [answer]
        assert hall.node.requests == [request_]

    story()


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (ADD.replace(b"10.0.0.4", b"0.0.0.0"), "found host '0.0.0.0', allowed one at which the members reach the node"),
        (ADD.replace(b"10.0.0.4", rb"127.0.0.1\u0000"), r"found host '127.0.0.1\x00', allowed one at which"),
        (ADD.replace(b"10.0.0.4", b"10.0.0..4"), "found host '10.0.0..4', allowed one at which"),
        (ADD.replace(b"10.0.0.4", b"10.0.0.4 "), "found host '10.0.0.4 ', allowed one at which"),
        (ADD.replace(b"5001", b"0"), "not a line of the client protocol: Expected `int` >= 1 - at `$.port`"),
        (ADD.replace(b'"node":4', b'"node":0'), "not a line of the client protocol: Expected `int` >= 1 - at `$.node`"),
        (ADD.replace(b"10.0.0.4", b""), "not a line of the client protocol: Expected `str` of length >= 1"),
        (b'{"type":"REMOVE_NODE","node":-1}\n', "not a line of the client protocol: Expected `int` >= 1 - at `$.node`"),
        (
            b'{"type":"REMOVE_NODE","node":%s}\n' % (b"9" * 4300),
            "not a line of the client protocol: Expected `int` <=",
        ),
        (b'{"type":"TRANSFER","to":-1}\n', "not a line of the client protocol: Expected `int` >= 0 - at `$.to`"),
    ],
)
def test_an_address_that_no_member_can_dial_is_refused(said: bytes, reason: str) -> None:
    @in_loop
    async def story() -> None:
        hall = Hall()
        [problem] = hall.connect(b"", "127.0.0.1").says(said)
        assert problem["type"] == "ERROR" and problem["reason"].startswith(reason)
        assert not hall.node.requests

    story()


@in_loop
async def test_operators_elsewhere_need_the_admin_token() -> None:
    hall = Hall()
    [problem] = hall.connect(b"", "10.0.0.9").says(ADD)
    wanted = "an operator's request from 10.0.0.9, allowed from this machine (no admin_token)"
    assert (problem["type"], problem["reason"]) == ("ERROR", wanted) and not hall.node.requests
    hall = Hall(admin_token=TOKEN)
    for address in ("127.0.0.1", "10.0.0.9"):
        for shown in (b"", b',"admin_token":""', b',"admin_token":"x"', b',"client_token":"%s"' % TOKEN.encode()):
            [problem] = hall.connect(b"", address).says(ADD.replace(b"}", shown + b"}"))
            assert (problem["type"], problem["reason"]) == ("ERROR", "a wrong admin_token, or none")
        assert not hall.node.requests
    shown = b',"admin_token":"%s"}' % TOKEN.encode()
    assert hall.connect(b"", "10.0.0.9").says(ADD.replace(b"}", shown))[0]["type"] == "CHANGE_IS"


@in_loop
async def test_status_needs_no_hello() -> None:
    [status] = Hall().connect(b"").says(b'{"type":"STATUS"}\n')
    assert (status["type"], status["role"], status["pid"]) == ("STATUS_IS", "leader", 42)


BAD_LINES = [
    (b"hello\n", "not a line of the client protocol"),
    (b"\xff\xfe\n", "not a line of the client protocol"),
    (b'{"type":"NOPE"}\n', "not a line of the client protocol"),
    (b'{"type":"HELLO","client_id":1,"extra":2}\n', "not a line of the client protocol"),
    (chat(1, "a"), "CHAT before HELLO"),
    (HELLO + HELLO, "HELLO twice"),
    (b'{"type":"HELLO","client_id":-1}\n', "client_id -1, allowed 0.."),
    (b'{"type":"HELLO","client_id":1,"born":-1}\n', "born -1, allowed 0.."),
    (b'{"type":"HELLO","client_id":1,"session":"a b"}\n', "session 'a b' without its session_token, allowed with"),
    (HELLO.replace(b"the.own.token.of.s1", b"only.15.letters"), "session_token of 15 characters, allowed 16"),
    (HELLO.replace(b"s1", b"x" * 65), "session_token of 82 characters, allowed 16 to 64 of A-Z"),
    (HELLO.replace(b'"session_', b'"session":"other","session_'), "session 'other', allowed"),
    (HELLO + chat(0, "a"), "CHAT of 1 messages from n=0"),
    (HELLO + chat(1), "CHAT of 0 messages from n=1"),
    (HELLO + chat(2**53, "a"), "CHAT of 1 messages from n=9007199254740992"),
    (HELLO + b'{"type":"CHAT","first":1,"payloads":["\\ud800"]}\n', "not a line of the client protocol"),
    (HELLO + b'{"type":"CHAT","first":1,"payloads":["\\udc00x"]}\n', "not a line of the client protocol"),
    (b'{"type":"SUBSCRIBE","from":0}\n', "SUBSCRIBE from 0, allowed 1.."),
    (b'{"type":"SUBSCRIBE"}\n' * 2, "SUBSCRIBE twice"),
    (b"x" * 100_000, "a line of 100057 bytes, allowed 4096"),
]


@pytest.mark.parametrize(("said", "reason"), BAD_LINES)
def test_what_cannot_be_understood_gets_one_error_and_the_end(said: bytes, reason: str) -> None:
    async def story() -> None:
        hall = Hall(max_line_bytes=4096)
        bystander, wire = hall.connect(HELLO.replace(b"s1", b"s2")), hall.connect(b"")
        answers = wire.says(said + chat(1, "never taken"))
        assert answers[-1]["type"] == "ERROR"
        assert answers[-1]["reason"].startswith(reason)
        assert wire.closed and not bystander.closed
        assert hall.node.submitted == []
        assert any(isinstance(event, BadInput) for event in hall.node.events)

    asyncio.run(story())


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (chat(1, "ok", "é" * 60), "message of 120 bytes, allowed 100"),
        (chat(1, "x" * 101), "message of 101 bytes, allowed 100"),
        (chat(1, *["a"] * 9), "CHAT of 9 messages, allowed 8"),
    ],
)
def test_a_message_that_is_too_large_is_rejected_and_the_connection_lives(said: bytes, reason: str) -> None:
    async def story() -> None:
        hall = Hall(max_payload_bytes=100, max_line_messages=8)
        wire = hall.connect()
        [answer] = wire.says(said)
        assert (answer["type"], answer["reason"], answer["retry"]) == ("REJECT", reason, False)
        assert wire.says(chat(1, "é" * 50, "x" * 100)) == []
        assert len(hall.node.submitted) == 1

    asyncio.run(story())


@in_loop
async def test_lines_may_come_in_pieces() -> None:
    hall = Hall()
    wire = hall.connect(b"")
    for byte in HELLO + chat(1, "a"):
        wire.protocol.data_received(bytes([byte]))
    assert hall.node.submitted == [submit("s1", 1, "a")]


@in_loop
async def test_more_clients_than_allowed_are_turned_away() -> None:
    hall = Hall(max_clients=1)
    first, second = hall.connect(), hall.connect(b"")
    assert second.closed and second.lines()[0]["reason"] == "2 clients, allowed 1"
    first.abort()
    assert not hall.connect().closed


@in_loop
async def test_a_session_that_is_opened_again_belongs_to_the_newer_connection() -> None:
    hall = Hall()
    older = hall.connect()
    newer = hall.connect()
    assert older.closed and not newer.closed
    hall.deliver(submit("s1", 1, "a"))
    assert [line["type"] for line in newer.lines()] == ["ACK"]
    assert not [event for event in hall.node.events if isinstance(event, BadInput)]


@in_loop
async def test_clients_are_not_read_while_too_much_is_taken_in() -> None:
    hall = Hall(intake_window_bytes=1024)
    eager, modest = hall.connect(), hall.connect(HELLO.replace(b"s1", b"s2"))
    eager.says(chat(1, "x" * 600))
    assert eager.reading
    eager.says(chat(2, "x" * 600))
    assert not eager.reading and modest.reading
    modest.says(chat(1, "y"))
    assert not modest.reading
    hall.deliver(submit("s1", 1, "x"), submit("s1", 2, "x"))
    assert eager.reading and modest.reading
    assert 0 < hall.clients.intake_bytes < 100
    hall.deliver(submit("s2", 1, "y"))
    assert hall.clients.intake_bytes == 0


@in_loop
async def test_a_new_route_a_refusal_or_a_lost_client_forgets_what_was_taken_in() -> None:
    hall = Hall(intake_window_bytes=1024)
    forget: list[Callable[[Wire], None]] = [
        lambda wire: hall.clients.route_changed(2, 8),
        lambda wire: hall.clients.refused([Refuse(named("s1"), 1, "gap", 1)]),
        lambda wire: wire.abort(),
    ]
    for what in forget:
        wire = hall.connect()
        wire.says(chat(1, "x" * 1200))
        assert hall.clients.intake_bytes > 1024
        what(wire)
        assert hall.clients.intake_bytes == 0


@in_loop
async def test_clients_are_read_again_when_nothing_is_delivered_any_more() -> None:
    module.STUCK_S, before = 0.001, module.STUCK_S  # type: ignore[misc]
    try:
        hall = Hall(intake_window_bytes=1024)
        wire = hall.connect()
        wire.says(chat(1, "x" * 1200))
        assert not wire.reading
        async with asyncio.timeout(TOO_LONG_S):
            while not wire.reading:
                await asyncio.sleep(0)
    finally:
        module.STUCK_S = before  # type: ignore[misc]


@pytest.mark.patches
@in_loop
async def test_clients_are_not_read_again_while_the_log_holds_more_than_the_disks_let_through() -> None:
    """A majority whose disks hang and whose heartbeats go on must not make this node take in more and more."""
    module.STUCK_S, before = 0.001, module.STUCK_S  # type: ignore[misc]
    try:
        hall = Hall(intake_window_bytes=1024)
        hall.node.undelivered = 1
        wire = hall.connect()
        wire.says(chat(1, "x" * 1200))
        looks = 0
        look_again = hall.clients._look_again

        def counted(deliveries: int) -> None:
            nonlocal looks
            looks += 1
            look_again(deliveries)

        hall.clients._look_again = counted  # type: ignore[method-assign]
        hall.clients._watch()
        async with asyncio.timeout(TOO_LONG_S):
            while looks < 3:
                await asyncio.sleep(0)
        assert not wire.reading
        hall.node.undelivered = 0
        async with asyncio.timeout(TOO_LONG_S):
            while not wire.reading:
                await asyncio.sleep(0)
    finally:
        module.STUCK_S = before  # type: ignore[misc]


@in_loop
async def test_a_client_that_does_not_read_its_answers_is_not_read_either() -> None:
    wire = Hall().connect()
    wire.protocol.pause_writing()
    assert not wire.reading
    wire.protocol.resume_writing()
    assert wire.reading


async def settled() -> None:
    """Let everything that was asked for soon happen."""
    for _ in range(50):
        await asyncio.sleep(0)


def shown(wire: Wire) -> list[SeqNo]:
    return [line["seq_no"] for line in wire.lines()]


@in_loop
async def test_a_subscriber_gets_the_past_from_the_disk_and_then_the_present() -> None:
    hall = Hall()
    for n in range(1, 6):
        hall.deliver(submit("s9", n, "m"))
    wire = hall.connect(b"")
    wire.says(b'{"type":"SUBSCRIBE","from":2}\n')
    await settled()
    assert shown(wire) == [2, 3, 4, 5]
    reads = hall.node.reads
    hall.deliver(submit("s9", 6, "m"), submit("s9", 7, "m"))
    assert shown(wire) == [6, 7]
    assert hall.node.reads == reads


@in_loop
async def test_a_subscriber_that_does_not_keep_up_is_served_from_the_disk() -> None:
    hall = Hall()
    wire = hall.connect(b'{"type":"SUBSCRIBE"}\n')
    await settled()
    wire.protocol.pause_writing()
    for n in range(1, 8):
        hall.deliver(submit("s9", n, "m"))
    await settled()
    assert wire.written == b""
    wire.protocol.resume_writing()
    await settled()
    hall.deliver(submit("s9", 8, "m"))
    assert shown(wire) == [1, 2, 3, 4, 5, 6, 7, 8]


@in_loop
async def test_a_delivery_between_two_chunks_neither_skips_nor_repeats() -> None:
    hall = Hall()
    for n in range(1, 4):
        hall.deliver(submit("s9", n, "m"))
    wire = hall.connect(b'{"type":"SUBSCRIBE"}\n')
    wire.protocol.data_received(b"")
    hall.deliver(submit("s9", 4, "m"))
    await settled()
    hall.deliver(submit("s9", 5, "m"))
    assert shown(wire) == [3, 4, 5]  # 1 and 2 went out with SUBSCRIBE itself.


@in_loop
async def test_a_subscriber_waits_for_what_can_not_be_read_and_then_goes_on() -> None:
    hall = Hall()
    hall.deliver(*(submit("s9", n, "m") for n in range(1, 6)))
    hall.node.damaged_from = 3
    wire = hall.connect(b"")
    wire.protocol.data_received(b'{"type":"SUBSCRIBE"}\n')
    await settled()
    assert shown(wire) == [1, 2]
    hall.deliver(submit("s9", 6, "m"))
    hall.clients.read_again(Position(7, 4), "another place")
    wire.protocol.pause_writing()
    wire.protocol.resume_writing()
    assert shown(wire) == []
    hall.node.damaged_from = 0
    hall.clients.read_again(hall.node.place, "")
    await settled()
    assert shown(wire) == [3, 4, 5, 6]


@in_loop
async def test_a_subscriber_never_gets_a_gap_but_hears_what_is_missing() -> None:
    hall = Hall()
    hall.deliver(*(submit("s9", n, "m") for n in range(1, 6)))
    hall.node.damaged_from = 3
    wire, other = hall.connect(b""), hall.connect(b'{"type":"SUBSCRIBE","from":6}\n')
    wire.protocol.data_received(b'{"type":"SUBSCRIBE"}\n')
    await settled()
    assert shown(wire) == [1, 2]
    hall.clients.read_again(hall.node.place, "no node within reach has a copy")
    [problem] = wire.lines()
    assert problem["type"] == "ERROR" and "from seq_no 3 on" in problem["reason"] and wire.closed
    hall.deliver(submit("s9", 6, "m"))
    assert wire.written == b"" and shown(other) == [6]


@in_loop
async def test_a_subscription_may_start_in_the_future_even_inside_a_batch() -> None:
    hall = Hall()
    wire = hall.connect(b'{"type":"SUBSCRIBE","from":3}\n')
    await settled()
    hall.deliver(submit("s9", 1, "m"))
    hall.deliver(submit("s9", 2, "m", "m", "m"))
    await settled()
    assert shown(wire) == [3, 4]


@in_loop
async def test_a_client_that_closed_its_half_still_gets_its_acknowledgement() -> None:
    hall = Hall()
    wire = hall.connect()
    wire.says(chat(1, "last words"))
    assert wire.protocol.eof_received()
    hall.deliver(submit("s1", 1, "last words"))
    assert wire.lines()[0]["type"] == "ACK"
    assert wire.closed
    assert not hall.connect().protocol.eof_received()


@in_loop
async def test_a_line_that_the_end_of_the_input_cuts_gets_its_error() -> None:
    hall = Hall()
    wire = hall.connect()
    wire.says(chat(1, "last words").rstrip(b"\n"))
    assert not wire.protocol.eof_received()
    reason = "the input ends in the middle of a line: a newline is missing"
    assert wire.lines() == [{"type": "ERROR", "reason": reason}] and wire.closed
    assert hall.node.submitted == []


@in_loop
async def test_a_connection_that_is_being_closed_fails_no_second_time() -> None:
    hall = Hall()
    wire = hall.connect()
    wire.says(chat(1, "last words").rstrip(b"\n"))
    wire.protocol.supersede()
    events = list(hall.node.events)
    assert not wire.protocol.eof_received()
    assert hall.node.events == events and len(wire.lines()) == 1


@in_loop
async def test_subscribers_that_may_be_gone_make_room_for_new_clients() -> None:
    hall = Hall(max_clients=2)
    gone = hall.connect(b'{"type":"SUBSCRIBE"}\n')
    waiting = hall.connect(HELLO + chat(1, "m"))
    assert gone.protocol.eof_received() and waiting.protocol.eof_received()
    [welcome] = hall.connect(b"").says(b'{"type":"HELLO","client_id":1}\n')
    assert welcome["type"] == "WELCOME"
    assert gone.closed and not waiting.closed
    assert hall.connect(b"").lines() == [{"type": "ERROR", "reason": "3 clients, allowed 2"}]


# ---- who may come, and stay ---------------------------------------------------------------------


@in_loop
async def test_a_client_without_a_whole_line_is_closed_and_one_that_said_one_is_not() -> None:
    hall = Hall(first_line_ms=10)
    half_open, greeted = hall.connect(b'{"type":'), hall.connect()
    while not half_open.closed:
        await asyncio.sleep(0.001)
    assert half_open.lines() == [{"type": "ERROR", "reason": "no complete line within 0.01 s"}]
    assert not greeted.closed


@in_loop
async def test_clients_whose_first_line_is_overdue_make_room_for_new_ones() -> None:
    hall = Hall(max_clients=2)
    overdue, _ = hall.connect(b'{"type":'), hall.connect(HELLO.replace(b"s1", b"s2"))
    assert hall.connect().closed  # Nobody is overdue yet.
    overdue.protocol._since -= module.OVERDUE_S * 2
    assert not hall.connect().closed
    assert overdue.closed
    assert len(hall.clients.connections) == 2


@in_loop
async def test_one_address_has_no_more_than_its_share_of_the_clients() -> None:
    hall = Hall(max_per_address=1)
    first, other = hall.connect(address="192.0.2.1"), hall.connect(HELLO.replace(b"s1", b"s2"), "192.0.2.2")
    second = hall.connect(b"", "192.0.2.1")
    assert second.lines() == [{"type": "ERROR", "reason": "2 clients from 192.0.2.1, allowed 1"}]
    assert not first.closed and not other.closed
    first.abort()
    assert not hall.connect(address="192.0.2.1").closed


@in_loop
async def test_of_one_address_who_may_be_gone_makes_room_for_who_comes_from_there() -> None:
    hall = Hall(max_per_address=2)
    gone, elsewhere = (hall.connect(b'{"type":"SUBSCRIBE"}\n', f"192.0.2.{n}") for n in (1, 2))
    overdue = hall.connect(b"{", "192.0.2.1")
    overdue.protocol._since -= module.OVERDUE_S * 2
    assert gone.protocol.eof_received() and elsewhere.protocol.eof_received()
    assert not hall.connect(b"", "192.0.2.1").closed and overdue.closed and not gone.closed
    assert not hall.connect(b"", "192.0.2.1").closed and gone.closed
    assert hall.connect(b"", "192.0.2.1").closed and not elsewhere.closed


@in_loop
async def test_a_first_line_is_short_and_what_comes_behind_it_may_be_long() -> None:
    hall = Hall()
    stranger = hall.connect(b"")
    assert stranger.says(b"x" * 5000)[0]["reason"] == "a first line of over 4096 bytes, the longest allowed"
    greeted = hall.connect(HELLO + b'{"type":"CHAT","first":1,"payloads":["' + b"x" * 5000)
    assert not greeted.closed


@in_loop
async def test_lines_without_an_end_fill_no_memory_and_only_the_longest_ones_client_goes() -> None:
    hall = Hall(unfinished_bytes=10_000)
    wires = [hall.connect(HELLO.replace(b"s1", name)) for name in (b"short", b"long", b"last")]
    wires[0].protocol.data_received(b"x" * 100)
    wires[1].protocol.data_received(b"x" * 6000)
    wires[2].protocol.data_received(b"x" * 4000)
    assert [wire.closed for wire in wires] == [False, True, False]
    reason = "10100 bytes of unfinished lines, allowed 10000 for all clients"
    assert wires[1].lines() == [{"type": "ERROR", "reason": reason}]
    assert hall.clients.unfinished_bytes == 4100
    wires[0].protocol.data_received(b"\n")
    wires[2].abort()
    assert hall.clients.unfinished_bytes == 0


@in_loop
async def test_an_idle_client_is_left_and_one_that_waits_or_listens_is_not() -> None:
    hall = Hall(idle_ms=10)
    idle, waiting = hall.connect(), hall.connect(HELLO.replace(b"s1", b"s2") + chat(1, "m"))
    listening = hall.connect(b'{"type":"SUBSCRIBE"}\n')
    while not idle.closed:
        await asyncio.sleep(0.001)
    assert idle.lines() == [{"type": "ERROR", "reason": "nothing received for 0.01 s"}]
    for _ in range(3):
        waiting.protocol.leave_if_idle()
        listening.protocol.leave_if_idle()
    assert not waiting.closed and not listening.closed


@in_loop
async def test_a_client_that_speaks_now_and_then_is_not_idle() -> None:
    wire = Hall().connect()
    for _ in range(3):
        wire.says(b'{"type":"STATUS"}\n')
        wire.protocol.leave_if_idle()
    assert not wire.closed
    wire.protocol.leave_if_idle()
    assert wire.closed


@pytest.mark.parametrize(
    "line", [{"type": "HELLO", "client_id": 1, "x" * 100_000: 1}, {"type": "HELLO", "client_id": 10**4000}]
)
def test_a_complaint_quotes_little_of_what_a_stranger_said(line: dict[str, Any]) -> None:
    @in_loop
    async def story() -> None:
        hall = Hall()
        wire = hall.connect(b"")
        [problem] = wire.says(json.dumps(line).encode() + b"\n")
        assert problem["type"] == "ERROR" and len(problem["reason"]) < 400
        [event] = hall.node.events
        assert isinstance(event, BadInput) and len(event.reason) < 400

    story()


@in_loop
async def test_a_flood_of_questions_makes_no_flood_of_answers_wait() -> None:
    class Slow(Wire):
        """Nobody reads at the other end."""

        def write(self, data: Any) -> None:
            super().write(data)
            if len(self.written) > 2048 and not self.closed:
                self.protocol.pause_writing()

    for question, what in ((b'{"type":"STATUS"}\n', "STATUS"), (b'{"type":"TRANSFER"}\n', "an operator's request")):
        hall = Hall(subscriber_buffer_bytes=2048)
        wire = Slow({"peername": ("127.0.0.1", 40_000)})
        wire.protocol = hall.clients.accept()
        wire.protocol.connection_made(wire)
        said = wire.says(question * 10_000)
        assert said[-1]["reason"] == f"{what} while over 2048 bytes of answers are not read"
        assert len(wire.written) < 4096 and wire.closed


# ---- the client token ---------------------------------------------------------------------------

TOKEN = "a token that nobody guesses"
REFUSED = ("REJECT", 0, "client token", False)
FIRST_LINES: list[dict[str, Any]] = [
    {"type": "HELLO", "client_id": 1},
    {"type": "SUBSCRIBE"},
    {"type": "STATUS"},
    {"type": "TRANSFER"},
]


@pytest.mark.parametrize("line", FIRST_LINES, ids=lambda line: str(line["type"]))
def test_the_first_line_of_a_connection_must_show_the_token(line: dict[str, Any]) -> None:
    @in_loop
    async def story() -> None:
        hall = Hall(TOKEN)
        for shown in ({}, {"client_token": ""}, {"client_token": TOKEN[:-1]}, {"client_token": TOKEN + "\ud7ff"}):
            wire = hall.connect(b"")
            heard = wire.says(json.dumps(line | shown).encode() + b"\n" + HELLO)
            assert [(said["type"], said["first"], said["reason"], said["retry"]) for said in heard] == [REFUSED]
            assert wire.closed
        assert not hall.clients.sessions and not hall.clients.connections
        wire = hall.connect(json.dumps(line | {"client_token": TOKEN}).encode() + b"\n", "127.0.0.1")
        assert wire.says(b'{"type":"STATUS"}\n')[0]["type"] == "STATUS_IS"

    story()


@in_loop
async def test_without_the_token_no_message_is_taken() -> None:
    hall = Hall(TOKEN)
    assert hall.connect(b"").says(chat(1, "m"))[0]["type"] == "REJECT"
    refused = hall.connect(b"").says(HELLO)
    assert (refused[0]["session"], refused[0]["first"]) == ("", 0)
    assert not hall.node.submitted
    assert hall.node.events == [BadInput("a client", "a wrong client token, or none")] * 2


@in_loop
async def test_a_token_that_nobody_asks_for_does_no_harm() -> None:
    assert Hall().connect(b"").says(b'{"type":"HELLO","client_id":1,"client_token":"x"}\n')[0]["type"] == "WELCOME"
