"""One turn with a host that only writes down what it is asked for: no event loop, no clock, files in memory."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import pytest

from lab.course.simfiles import SimFiles
from nodeproc import turn as module
from nodeproc.config import Limits
from nodeproc.core.effects import Effects, Fetch
from nodeproc.core.events import Event
from nodeproc.core.messages import START, MemberAddress, NodeId, PeerMessage, Record, Submit
from nodeproc.core.node import Node
from nodeproc.core.recovered import CoreConfig
from nodeproc.core.state import Leader, Successor
from nodeproc.disk.storage import Storage
from nodeproc.errors import CorruptionError
from nodeproc.lines import AddRequest, ChangeIs, MembersStatus, RemoveRequest, TransferRequest
from nodeproc.records import Sealer
from nodeproc.turn import Turn


class Notes:
    """A host: `asked` holds what it was asked for, in order."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.tickets: list[int] = []

    def turn_soon(self) -> None:
        self.asked.append("turn")

    def sync_soon(self, ticket: int) -> None:
        self.asked.append("sync")
        self.tickets.append(ticket)

    def emit(self, events: Sequence[Event]) -> None:
        self.asked.append("emit")

    def send(self, messages: Sequence[tuple[NodeId, PeerMessage]]) -> None:
        self.asked.append("send")

    def deliver(self, records: Sequence[Record]) -> None:
        self.asked.append("deliver")

    def checkpoint_soon(self) -> None:
        self.asked.append("checkpoint")

    def report(self, event: Event, address: str = "") -> None:
        self.asked.append("report")

    def route_changed(self) -> None:
        self.asked.append("route changed")

    def stop(self, reason: str) -> None:
        self.asked.append(f"stop: {reason}")

    def vitals(self) -> tuple[float, int, dict[str, int]]:
        return 1.5, 77, {"turns": 3}

    def addresses(self) -> dict[NodeId, tuple[str, int]]:
        return {1: ("127.0.0.1", 5001)}


def made(members: tuple[NodeId, ...] = (1,)) -> tuple[Turn, Notes]:
    storage, recovered, _ = Storage.open(SimFiles(), 1, durability="fsync", segment_bytes=1 << 20)
    config = CoreConfig(1, 1, members)
    node = Node.recover(config, recovered, 0.0, random.Random(1), Sealer(lambda: 0.0))
    host = Notes()
    return Turn(node, storage, Limits(), host), host


def leading() -> tuple[Turn, Notes]:
    """The only node of its cluster, which has synced all it wrote and leads."""
    turn, host = made()
    now = turn.begin(0.0)
    while turn.node.role_name != "leader" or turn.due:
        if host.tickets:
            turn.durable = host.tickets.pop()
        now = max(now, turn.run(now))
    host.asked.clear()
    return turn, host


def test_an_operator_hears_how_far_a_change_is() -> None:
    """Rule: G2, G3."""
    turn, host = leading()
    now = 0.0

    def members() -> MembersStatus:
        found = turn.status().members
        assert found is not None
        return found

    def asked_until(request: AddRequest | RemoveRequest, wanted: ChangeIs) -> None:
        nonlocal now
        while turn.administer(request) != wanted:
            turn.durable = host.tickets[-1]
            now = max(now, turn.run(now))

    assert members() == MembersStatus(0, False, (1,), (1,), (), (), (MemberAddress(1, "127.0.0.1", 5001),))
    assert turn.new_addresses() is None
    add, remove = AddRequest(node=2, host="127.0.0.1", port=5002), RemoveRequest(node=2)
    reason = "the mark of term 1 is not committed yet; ask again"
    assert turn.administer(add) == ChangeIs("refused", reason, True, 1)
    asked_until(add, ChangeIs("begun", leader=1))
    moved = AddRequest(node=2, host="127.0.0.1", port=5009)
    asked_until(moved, ChangeIs("refused", "node_2 is a member already", leader=1))
    assert turn.new_addresses() == (MemberAddress(2, "127.0.0.1", 5002),)
    assert turn.administer(add) == ChangeIs("begun", leader=1), "a learner has no vote yet"
    assert turn.administer(TransferRequest(to=1)) == ChangeIs("done", leader=1)
    assert turn.administer(RemoveRequest(node=1)) == ChangeIs("refused", "it is the only voter", leader=1)
    asked_until(remove, ChangeIs("done", leader=1))
    assert members().removed == (2,) and members().committed


def test_a_newcomer_is_no_member_before_a_list_has_it() -> None:
    """Rule: G1, S6."""
    assert made((1,))[0].is_member() and not made((2, 3))[0].is_member()


def test_an_operator_is_sent_on_to_the_leader() -> None:
    turn, _ = made((1, 2, 3))
    turn.begin(0.0)
    refused = ChangeIs("refused", "this node knows no leader", True, 0)
    for request in (RemoveRequest(node=2), TransferRequest(), AddRequest(node=4, host="h", port=1)):
        assert turn.administer(request) == refused


def test_an_operator_asks_again_after_a_transfer() -> None:
    turn, _ = leading()
    role = turn.node.state.role
    assert isinstance(role, Leader)
    role.successor = Successor(2, 1e6)
    reason = "the leadership is being transferred to node_2"
    assert turn.administer(TransferRequest()) == ChangeIs("refused", reason, True, 1)


def test_a_message_is_written_then_delivered_in_the_turn_that_hears_of_the_sync() -> None:
    turn, host = leading()
    turn.submit(Submit("s", 101, 0, 1, ("a",)))
    assert host.asked == ["turn"]
    turn.run(1.0)
    assert host.asked[:2] == ["turn", "sync"] and "deliver" not in host.asked
    host.asked.clear()
    turn.durable = host.tickets[-1]
    turn.run(1.0)
    assert "deliver" in host.asked and turn.status().delivered_seq == 1


@pytest.mark.patches
def test_duties_are_done_in_their_order(monkeypatch: pytest.MonkeyPatch) -> None:
    turn, host = leading()
    monkeypatch.setattr(turn.storage, "write", lambda ops: host.asked.append("write"))
    monkeypatch.setattr(turn.storage, "checkpoint_due", lambda: True)
    monkeypatch.setattr(turn.clients, "delivered", lambda records: host.asked.append("acknowledge"))
    monkeypatch.setattr(turn.clients, "refused", lambda refusals: host.asked.append("reply"))
    anything: list[Any] = [object()]
    monkeypatch.setattr(
        turn.node, "tick", lambda now, fx: fx.merge(Effects(anything, anything, anything, anything, anything))
    )
    turn.run(1e6)
    order = ["write", "sync", "emit", "send", "deliver", "acknowledge", "checkpoint", "reply"]
    assert [each for each in host.asked if each != "turn"] == order


@pytest.mark.patches
def test_a_halt_leaves_all_other_duties_undone(monkeypatch: pytest.MonkeyPatch) -> None:
    turn, host = leading()
    anything: list[Any] = [object()]
    monkeypatch.setattr(turn.node, "tick", lambda now, fx: fx.merge(Effects(anything, anything, halt="diverged")))
    with pytest.raises(CorruptionError, match="diverged"):
        turn.run(1e6)
    assert host.asked == ["emit"]


@pytest.mark.patches
def test_a_turn_takes_a_flood_in_pieces_and_loses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TURN_MESSAGES", 5)
    turn, host = leading()
    seen: list[int] = []
    monkeypatch.setattr(turn.node, "step", lambda envelope, now, fx: seen.append(envelope.message.first))
    for first in range(1, 14):
        turn.submit(Submit("s", 101, 0, first, ("x",)))
    sizes = []
    while turn.due:
        before = len(seen)
        turn.run(1.0)
        sizes.append(len(seen) - before)
    assert seen == list(range(1, 14)) and sizes == [5, 5, 3]
    assert host.asked.count("turn") == 3


@pytest.mark.patches
def test_each_turn_reads_once_for_a_peer(monkeypatch: pytest.MonkeyPatch) -> None:
    turn, _ = leading()
    first, second, third = (Fetch(2, START, 1000, token) for token in (1, 2, 3))
    asked = {1: [first]}
    then = {first: [second], second: [third], third: []}
    read: list[list[Fetch]] = [[]]

    def records(fetch: Fetch) -> list[Record]:
        read[-1].append(fetch)
        return []

    monkeypatch.setattr(turn.reading, "records", records)
    monkeypatch.setattr(turn.node, "tick", lambda now, fx: fx.merge(Effects(fetch=asked.get(len(read), []))))
    monkeypatch.setattr(turn.node, "fetched", lambda *of: Effects(fetch=then[read[-1][-1]]))
    for _ in range(4):
        turn.run(1e6)
        read.append([])
    assert read == [[], [first], [second], [third], []]


def test_a_turn_is_asked_for_once_until_it_is_run() -> None:
    turn, host = leading()
    for first in (1, 2, 3):
        turn.submit(Submit("s", 101, 0, first, ("x",)))
    turn.ask()
    assert host.asked == ["turn"]


def test_status_joins_what_the_core_and_the_host_know() -> None:
    turn, _ = made((1, 2))
    status = turn.status()
    assert (status.node, status.role, status.uptime_s, status.pid) == (1, "follower", 1.5, 77)
    assert [peer.node for peer in status.peers] == [2] and status.counters == {"turns": 3}
