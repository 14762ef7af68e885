"""The turn: real cores, storage in memory and real sockets, all in one event loop."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import random
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any

import msgspec
import pytest
import uvloop

from lab.course.simfiles import SimFiles
from nodeproc import runtime as module
from nodeproc import turn, upkeep
from nodeproc.config import Limits, NodeConfig, PeerAddress
from nodeproc.core.effects import Effects
from nodeproc.core.messages import Envelope, Submit
from nodeproc.core.node import Node
from nodeproc.disk import checkpoint
from nodeproc.disk.storage import Storage
from nodeproc.eventlog import EventLog
from nodeproc.net.entrance import listen
from nodeproc.records import Sealer
from nodeproc.runtime import Runtime
from tests import TOO_LONG_S
from tests.nodeproc.nodes import free_ports


class Member:
    """One running node; `files` outlives it."""

    def __init__(self, config: NodeConfig, root: Path, files: SimFiles | None = None) -> None:
        self.config, self.root = config, root
        self.files = files or SimFiles()
        self.node: Node
        self.runtime: Runtime
        self.exit: asyncio.Task[int]

    def start(self) -> None:
        config = self.config
        self.storage, recovered, _ = Storage.open(
            self.files, config.node_id, durability=config.durability, segment_bytes=config.limits.segment_bytes
        )
        self.root.mkdir(exist_ok=True)
        events = self.root / f"events_{config.node_id}.jsonl"
        log = EventLog(config.node_id, level="DEBUG", events=events, console=None, show_delivered=False)
        rng = random.Random(config.node_id)
        self.node = Node.recover(config.core(), recovered, time.monotonic(), rng, Sealer(time.time))
        sock = listen(config.host, config.port)
        self.port = sock.getsockname()[1]
        self.runtime = Runtime(config, self.node, self.storage, log, sock, rng)
        self.exit = asyncio.ensure_future(self.runtime.run())

    async def stop(self) -> int:
        self.runtime.stop("test")
        return await self.exit

    def events(self) -> list[str]:
        rows = (self.root / f"events_{self.config.node_id}.jsonl").read_bytes().splitlines()
        return [json.loads(row)["event"] for row in rows]

    def log_lines(self) -> list[dict[str, Any]]:
        name = f"logs/node_{self.config.node_id}_messages.jsonl"
        return [json.loads(line) for line in self.files.contents()[name].splitlines()]


class Chatter:
    """A client of JSON lines."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    @classmethod
    async def open(cls, port: int, session: str = "s") -> Chatter:
        """Connected, greeted and told a leader."""
        chatter = cls(*await asyncio.open_connection("127.0.0.1", port))
        chatter.say({"type": "HELLO", "client_id": 101, "session_token": f"token.of.session.{session}", "born": 0})
        heard = await chatter.hear()
        while not heard.get("leader"):
            heard = await chatter.hear()
        return chatter

    def say(self, *lines: dict[str, Any]) -> None:
        self._writer.write(b"".join(json.dumps(line).encode() + b"\n" for line in lines))

    async def hear(self) -> dict[str, Any]:
        line = await self._reader.readline()
        if not line:
            raise ConnectionError("closed")
        heard: dict[str, Any] = json.loads(line)
        return heard

    async def chat(self, first: int, *payloads: str) -> int:
        """Send until acknowledged. Returns the seq_no of the last."""
        message = {"type": "CHAT", "first": first, "payloads": payloads}
        self.say(message)
        while True:
            heard = await self.hear()
            if heard["type"] == "ACK" and heard["n"] >= first + len(payloads) - 1:
                return int(heard["seq_no"])
            if heard["type"] == "LEADER" and heard["leader"]:
                self.say(message)

    async def status(self) -> dict[str, Any]:
        self.say({"type": "STATUS"})
        heard = await self.hear()
        while heard["type"] != "STATUS_IS":
            heard = await self.hear()
        return heard

    def close(self) -> None:
        self._writer.close()


def single(**changed: Any) -> NodeConfig:
    return NodeConfig(node_id=1, port=0, data_dir="unused", **changed)


@contextlib.asynccontextmanager
async def running(root: Path, config: NodeConfig | None = None) -> AsyncIterator[Member]:
    member = Member(config or single(), root)
    member.start()
    try:
        async with asyncio.timeout(TOO_LONG_S):
            yield member
    finally:
        await member.stop()


@contextlib.asynccontextmanager
async def cluster(root: Path, count: int = 3, **changed: Any) -> AsyncIterator[list[Member]]:
    ports = free_ports(count)
    members = []
    for node in range(1, count + 1):
        peers = tuple(PeerAddress(peer, ports[peer - 1]) for peer in range(1, count + 1) if peer != node)
        config = NodeConfig(node_id=node, port=ports[node - 1], data_dir="unused", peers=peers, **changed)
        members.append(Member(config, root))
    try:
        for member in members:
            member.start()
        async with asyncio.timeout(TOO_LONG_S):
            yield members
    finally:
        for member in members:
            await member.stop()


def run(work: Coroutine[Any, Any, None]) -> None:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(work)


def leading(members: list[Member]) -> Member | None:
    return next((member for member in members if member.node.role_name == "leader"), None)


async def until(seen: Callable[[], bool]) -> None:
    """Let the loop go round until something is so; the caller's timeout ends it."""
    while not seen():
        await asyncio.sleep(0)


def fails_behind_a_stop(member: Member, chosen: Callable[[str, str], bool]) -> tuple[threading.Event, threading.Event]:
    """Let the chosen disk operations, in a thread, begin (the first event), wait for the second event, and fail."""
    began, stopped = threading.Event(), threading.Event()

    def fail(what: str, name: str) -> None:
        if chosen(what, name):
            began.set()
            stopped.wait(TOO_LONG_S)
            raise OSError(errno.EIO, "Input/output error")

    member.files.on_operation = fail
    return began, stopped


@pytest.mark.parametrize("durability", ["fsync", "os"])
def test_a_message_is_ordered_delivered_and_acknowledged(tmp_path: Path, durability: str) -> None:
    async def story() -> None:
        async with running(tmp_path, single(durability=durability)) as member:
            client = await Chatter.open(member.port)
            assert await client.chat(1, "a", "b") == 2
            assert await client.chat(3, "c") == 3
            assert [line["payload"] for line in member.log_lines()] == ["a", "b", "c"]
            status = await client.status()
            assert (status["role"], status["term"], status["leader"]) == ("leader", 1, 1)
            assert (status["last_seq"], status["commit_seq"], status["delivered_seq"]) == (3, 3, 3)
            assert status["counters"]["clients"] == 1
            client.close()

    run(story())


def test_the_same_on_asyncios_own_loop(tmp_path: Path) -> None:
    async def story() -> None:
        async with running(tmp_path) as member:
            client = await Chatter.open(member.port)
            assert await client.chat(1, "a") == 1
            client.close()

    asyncio.run(story())


def test_three_nodes_deliver_the_same_bytes(tmp_path: Path) -> None:
    async def story() -> None:
        async with cluster(tmp_path) as members:
            clients = [await Chatter.open(member.port, f"s{member.config.node_id}") for member in members]
            sent = [client.chat(1, *(f"m{n}" for n in range(200))) for client in clients]
            await asyncio.gather(*sent)
            await until(lambda: len({member.storage.delivered_seq for member in members}) == 1)
            logs = [member.log_lines() for member in members]
            assert len(logs[0]) == 600
            assert logs[0] == logs[1] == logs[2]
            assert sorted(node.node.role_name for node in members) == ["follower", "follower", "leader"]
            for client in clients:
                client.close()

    run(story())


def test_a_stopped_leader_is_replaced_and_comes_back_as_follower(tmp_path: Path) -> None:
    async def story() -> None:
        async with cluster(tmp_path) as members:
            await until(lambda: leading(members) is not None)
            first = leading(members)
            assert first is not None
            others = [member for member in members if member is not first]
            client = await Chatter.open(others[0].port)
            assert await client.chat(1, "before") == 1
            assert await first.stop() == 0
            assert await client.chat(2, "after") == 2
            # On a busy machine the one that has heard of the stop first may win, whatever its rank.
            assert sorted(member.node.role_name for member in others) == ["follower", "leader"]
            first.start()
            assert await client.chat(3, "all three") == 3
            await until(lambda: first.storage.delivered_seq == 3)
            assert [line["seq_no"] for line in first.log_lines()] == [1, 2, 3]
            assert first.node.role_name == "follower"
            client.close()

    run(story())


def test_a_leader_transfers_its_leadership_when_it_is_asked_and_before_it_stops(tmp_path: Path) -> None:
    async def story() -> None:
        async with cluster(tmp_path, election_timeout_ms=20_000) as members:
            await until(lambda: leading(members) is not None)
            first = leading(members)
            assert first is not None
            client = await Chatter.open(first.port)
            assert await client.chat(1, "a") == 1
            first.runtime.transfer()
            await until(lambda: first.node.role_name == "follower" and first.node.state.leader_id != 0)
            assert await client.chat(2, "b") == 2
            client.close()
            second = leading(members)
            assert second is not None and second is not first
            assert "asked_to_stand" in second.events() and "leader_timeout" not in second.events()
            second.runtime.stop("test", transfer=True)
            assert await second.exit == 0
            third = next(member for member in members if "asked_to_stand" in member.events() and member is not second)
            await until(lambda: third.node.role_name == "leader")

    run(story())


def test_a_second_signal_stops_a_leader_whose_transfer_waits(tmp_path: Path) -> None:
    async def story() -> None:
        async with cluster(tmp_path, election_timeout_ms=20_000) as members:
            await until(lambda: leading(members) is not None)
            first = leading(members)
            assert first is not None
            client = await Chatter.open(first.port)
            assert await client.chat(1, "a") == 1
            first.runtime.send = lambda messages: None  # type: ignore[method-assign]
            first.runtime.stop("test", transfer=True)
            await until(lambda: first.node.transferring)
            assert not first.exit.done()
            first.runtime.stop("test", transfer=True)
            assert await first.exit == 0
            client.close()

    run(story())


def test_a_node_that_does_not_lead_reports_that_it_can_transfer_nothing(tmp_path: Path) -> None:
    async def story() -> None:
        async with running(tmp_path) as member:
            client = await Chatter.open(member.port)
            member.runtime.transfer()
            await client.status()
            assert "transfer_failed" in member.events(), "no follower"
            member.runtime.stop("test", transfer=True)
            assert await member.exit == 0
            client.close()

    run(story())


def test_a_subscriber_sees_the_past_and_the_present(tmp_path: Path) -> None:
    async def story() -> None:
        async with running(tmp_path) as member:
            client, watcher = await Chatter.open(member.port), await Chatter.open(member.port, "w")
            await client.chat(1, *(f"m{n}" for n in range(10)))
            watcher.say({"type": "SUBSCRIBE", "from": 3})
            assert [(await watcher.hear())["seq_no"] for _ in range(8)] == [3, 4, 5, 6, 7, 8, 9, 10]
            await client.chat(11, "live")
            assert (await watcher.hear())["payload"] == "live"
            client.close()
            watcher.close()

    run(story())


def test_a_standstill_costs_no_leader_its_office(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Clock:
        ahead = 0.0

        @classmethod
        def monotonic(cls) -> float:
            return time.monotonic() + cls.ahead

    monkeypatch.setattr(module, "time", Clock)

    async def story() -> None:
        async with cluster(tmp_path) as members:
            client = await Chatter.open(members[0].port)
            await client.chat(1, "before")
            leader, term = leading(members), members[0].node.state.term
            follower = next(member for member in members if member is not leader)
            Clock.ahead = 60.0  # As if all three had been stopped for a minute: far beyond every timeout.
            heartbeats = follower.events().count("heartbeat_received")
            await until(lambda: follower.events().count("heartbeat_received") >= heartbeats + 3)
            await client.chat(2, "after")
            assert {member.node.state.term for member in members} == {term}
            assert leader is not None and leading(members) is leader
            assert (await client.status())["counters"]["stood_still_us"] > 59_000_000
            client.close()

    run(story())


def test_the_cores_clock_never_falls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Clock:
        now = time.monotonic()

        @classmethod
        def monotonic(cls) -> float:
            return cls.now

    monkeypatch.setattr(module, "time", Clock)

    async def story() -> None:
        async with running(tmp_path) as member:
            await until(lambda: member.node.role_name == "leader")
            seen: list[float] = []
            take = member.node.step

            def step(envelope: Envelope, now: float, fx: Effects) -> Effects:
                seen.append(now)
                return take(envelope, now, fx)

            monkeypatch.setattr(member.node, "step", step)
            submit = Submit("s", 101, 0, 2, ("x",))  # Refused: the turn asks for nothing else.
            Clock.now = member.node.next_deadline() + 0.015
            for _ in range(3):  # Late by little, then by more; the loop's timer has not come yet.
                count = len(seen)
                member.runtime.turn.submit(submit)
                await until(lambda: len(seen) > count)  # noqa: B023
                Clock.now += 0.015
            assert seen == sorted(seen)

    run(story())


@pytest.mark.parametrize("operation", ["append", "sync"])
def test_a_disk_that_fails_stops_the_node_with_code_4(tmp_path: Path, operation: str) -> None:
    async def story() -> None:
        async with running(tmp_path) as member:
            client = await Chatter.open(member.port)
            await client.chat(1, "kept")

            def fail(what: str, name: str) -> None:
                if what == operation and name.startswith("wal/"):
                    raise OSError(errno.ENOSPC, "No space left on device")

            member.files.on_operation = fail
            client.say({"type": "CHAT", "first": 2, "payloads": ["lost"]})
            assert await member.exit == 4
            with pytest.raises(ConnectionError):
                while True:
                    assert (await client.hear())["type"] != "ACK"
            assert member.events()[-1] == "failed"
            member.files.on_operation = None
            member.files = member.files.copy()
            member.start()
            assert [line["payload"] for line in member.log_lines()] == ["kept"]

    run(story())


def test_a_sync_for_which_the_loop_itself_waited_too_long_is_reported(tmp_path: Path) -> None:
    async def story() -> None:
        async with running(tmp_path) as member:
            timeout_s = member.runtime._config.election_timeout_ms / 1000
            member.runtime._syncing._held_up(timeout_s)
            member.runtime._syncing._held_up(2 * timeout_s)
            await until(lambda: "disk_answered" in member.events())
            assert member.events().count("disk_answered") == 1

    run(story())


def test_a_sync_that_blocks_the_loop_is_in_the_log_before_it_ends(tmp_path: Path) -> None:
    async def story() -> None:
        async with running(tmp_path) as member:
            stalls = threading.Thread(target=member.runtime._syncing._stalled, args=[0.7])
            stalls.start()
            stalls.join()  # The loop stands still meanwhile.
            assert member.events()[-1] == "disk_stalled"

    run(story())


def test_a_checkpoint_that_fails_behind_the_stop_is_no_clean_end(tmp_path: Path) -> None:
    async def story() -> None:
        async with running(tmp_path) as member:
            client = await Chatter.open(member.port)
            await client.chat(1, "kept")
            began, stopped = fails_behind_a_stop(member, lambda what, name: name == checkpoint.ASIDE)
            member.runtime.checkpoint_soon()
            await until(began.is_set)
            member.runtime.stop("test")
            stopped.set()
            assert await member.exit == 4
            assert member.events()[-1] == "failed"

    run(story())


def test_a_disk_that_fails_at_the_end_is_no_clean_end(tmp_path: Path) -> None:
    async def story() -> None:
        async with running(tmp_path) as member:
            client = await Chatter.open(member.port)
            await client.chat(1, "kept")

            def fail(what: str, name: str) -> None:
                if what == "sync":
                    raise OSError(errno.EIO, "Input/output error")

            member.files.on_operation = fail
            member.runtime.stop("test")
            assert await member.exit == 4
            assert member.events()[-1] == "failed"

    run(story())


def test_a_sync_that_fails_behind_the_stop_is_no_clean_end(tmp_path: Path) -> None:
    async def story() -> None:
        async with running(tmp_path) as member:
            client = await Chatter.open(member.port)
            await client.chat(1, "kept")
            began, stopped = fails_behind_a_stop(member, lambda what, name: what == "sync")
            client.say({"type": "CHAT", "first": 2, "payloads": ["lost"]})
            await until(began.is_set)
            member.runtime.stop("test")
            stopped.set()
            assert await member.exit == 4
            assert member.events()[-1] == "failed"

    run(story())


def test_a_broken_invariant_stops_the_node_with_code_70(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async def story() -> None:
        async with running(tmp_path) as member:
            client = await Chatter.open(member.port)

            def broken(*_: object) -> Effects:
                raise AssertionError("impossible")

            monkeypatch.setattr(member.node, "step", broken)
            client.say({"type": "CHAT", "first": 1, "payloads": ["x"]})
            assert await member.exit == 70

    run(story())
    assert "AssertionError: impossible" in capsys.readouterr().err


def test_diverged_logs_stop_the_node_with_code_3(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def story() -> None:
        async with running(tmp_path) as member:
            client = await Chatter.open(member.port)
            monkeypatch.setattr(member.node, "step", lambda envelope, now, fx: fx.merge(Effects(halt="diverged")))
            client.say({"type": "CHAT", "first": 1, "payloads": ["x"]})
            assert await member.exit == 3
            assert member.events()[-1] == "failed"

    run(story())


def test_checkpoints_are_written_while_messages_flow_and_a_restart_goes_on(tmp_path: Path) -> None:
    async def story() -> None:
        config = single(limits=Limits(segment_bytes=4096))
        async with running(tmp_path, config) as member:
            client = await Chatter.open(member.port)
            for n in range(0, 200, 10):
                await client.chat(n + 1, *["x" * 100] * 10)
            await until(lambda: "checkpoint_written" in member.events())
            await member.stop()
            member.start()
            client = await Chatter.open(member.port)
            assert await client.chat(201, "x") == 201
            assert len(member.log_lines()) == 201
            client.close()

    run(story())


def test_a_flood_is_taken_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turn, "TURN_MESSAGES", 5)

    async def story() -> None:
        async with running(tmp_path, single(limits=Limits(max_line_messages=1))) as member:
            client = await Chatter.open(member.port)
            turns = (await client.status())["counters"]["turns"]
            client.say(*({"type": "CHAT", "first": n, "payloads": ["x"]} for n in range(1, 100)))
            assert await client.chat(100, "x") == 100
            assert (await client.status())["counters"]["turns"] >= turns + 20
            client.close()

    run(story())


def test_a_follower_far_behind_is_served_from_the_leaders_disk(tmp_path: Path) -> None:
    async def story() -> None:
        limits = Limits(segment_bytes=4096, fetch_max_bytes=1024, inflight_max_bytes=4096)
        async with cluster(tmp_path, limits=limits) as members:
            client = await Chatter.open(members[0].port)
            await client.chat(1, "first")
            await members[0].stop()
            client.close()
            client = await Chatter.open(members[1].port)
            for n in range(2, 200, 9):
                await client.chat(n, *["x" * 100] * 9)
            members[0].start()
            await until(lambda: members[0].storage.delivered_seq == members[1].storage.delivered_seq == 199)
            assert members[0].log_lines() == members[1].log_lines()
            client.close()

    run(story())


OLD_ROT = Limits(segment_bytes=4096, scrub_bytes_per_s=0)


async def grown_old(member: Member, client: Chatter, *others: Member) -> None:
    """200 messages are there, on the other members too, the first ones in no WAL file of this member any more."""
    for n in range(0, 200, 10):
        await client.chat(n + 1, *["x" * 100] * 10)
    await until(lambda: member.storage._archive.end.records > 0)
    await until(lambda: all(other.storage.delivered_seq == 200 for other in others))


def rot(member: Member, name: str, at: int) -> None:
    member.files.rot(name, at, member.files.contents()[name][at] ^ 8)


@pytest.mark.parametrize("name", ["logs/node_1_messages.jsonl", "wal/archive.headers", "wal/archive.index"])
def test_a_subscriber_is_shown_the_right_lines_where_the_disk_has_rotted(tmp_path: Path, name: str) -> None:
    """Rule: K6"""

    async def story() -> None:
        async with cluster(tmp_path, limits=OLD_ROT) as members:
            client = await Chatter.open(members[0].port)
            await grown_old(members[0], client, *members[1:])
            whole = members[0].files.contents()[name]
            rot(members[0], name, 60)
            watcher = await Chatter.open(members[0].port, "w")
            watcher.say({"type": "SUBSCRIBE", "from": 1})
            shown = [await watcher.hear() for _ in range(200)]
            assert shown == members[1].log_lines()[:200]
            assert members[0].files.contents()[name][: len(whole)] == whole
            assert {"damage_found", "damage_repaired"} <= {*members[0].events()}
            assert not any(member.exit.done() for member in members)
            client.close()
            watcher.close()

    run(story())


@pytest.mark.parametrize("name", ["logs/node_1_messages.jsonl", "wal/archive.headers"])
def test_without_a_copy_a_subscriber_hears_what_is_missing_and_the_node_goes_on(tmp_path: Path, name: str) -> None:
    """Rule: K6"""

    async def story() -> None:
        async with running(tmp_path, single(limits=OLD_ROT)) as member:
            client = await Chatter.open(member.port)
            await grown_old(member, client)
            rot(member, name, 60)
            for _ in range(2):
                watcher = await Chatter.open(member.port, "w")
                watcher.say({"type": "SUBSCRIBE", "from": 1})
                heard = await watcher.hear()
                assert heard["type"] == "ERROR" and "from seq_no 1 on can't be read here" in heard["reason"]
                watcher.close()
            assert await client.chat(201, "on and on") == 201
            client.say({"type": "SUBSCRIBE", "from": 200})
            assert [(await client.hear())["seq_no"] for _ in range(2)] == [200, 201]
            client.close()

    run(story())


def test_the_slow_pass_of_a_node_finds_and_repairs_what_nobody_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rule: K6"""
    monkeypatch.setattr(upkeep, "FIRST_S", 0.0)

    async def story() -> None:
        async with cluster(tmp_path, limits=Limits(segment_bytes=4096, scrub_rest_ms=100)) as members:
            client = await Chatter.open(members[0].port)
            await grown_old(members[0], client, *members[1:])
            rot(members[0], "logs/node_1_messages.jsonl", 60)
            await until(lambda: "damage_repaired" in members[0].events())
            assert members[0].log_lines() == members[1].log_lines()
            client.close()

    run(story())


def test_the_configuration_reaches_the_core() -> None:
    config = msgspec.structs.replace(single(), priority=7, heartbeat_interval_ms=800, election_timeout_ms=2500)
    assert (config.core().priority, config.core().heartbeat_interval, config.core().election_timeout) == (7, 0.8, 2.5)
