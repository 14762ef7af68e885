"""The client library against fake nodes on real sockets."""

from __future__ import annotations

import asyncio
import gc
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from zlib import crc32

import msgspec
import pytest

from nodeproc.client import Address, ChatClient, status
from nodeproc.config import NodeConfig
from nodeproc.core.messages import Line, MemberAddress
from nodeproc.errors import Unreachable
from nodeproc.lines import Chat, Hello, LeaderLine, Shown, Subscribe
from nodeproc.outcome import Outcome
from nodeproc.session import SessionSettings
from tests import TOO_LONG_S
from tests.nodeproc.fakenode import FakeCluster, FakeNode
from tests.nodeproc.nodes import connected
from tests.nodeproc.test_runtime import running

QUICK = SessionSettings(deadline=20.0, retry_interval=0.05, patience=0.2, keepalive=0.1)


def run(story: Callable[[], Awaitable[None]]) -> None:
    """Run one story to its end, within a minute, leaving nothing behind."""

    async def timed() -> None:
        async with asyncio.timeout(TOO_LONG_S):
            await story()

    asyncio.run(timed())


@asynccontextmanager
async def cluster_of(count: int = 3) -> AsyncIterator[FakeCluster]:
    cluster = FakeCluster()
    await cluster.start(count)
    try:
        yield cluster
    finally:
        await cluster.stop()


def addresses(nodes: list[FakeNode]) -> list[Address]:
    return [("127.0.0.1", node.port) for node in nodes]


@asynccontextmanager
async def client_of(cluster: FakeCluster, settings: SessionSettings = QUICK) -> AsyncIterator[ChatClient]:
    async with connected(ChatClient(addresses(cluster.nodes), 101, settings=settings, rng=random.Random(1))) as client:
        yield client


def test_a_sent_message_is_ok_and_says_where_it_stands() -> None:
    async def story() -> None:
        async with cluster_of() as cluster, client_of(cluster) as client:
            assert await client.send("hello") == Outcome("ok", 1, 1, 1)
            assert [outcome.kind for outcome in await client.send_many(["a", "b"])] == ["ok", "ok"]
            assert cluster.payloads() == ["hello", "a", "b"]
            assert cluster.messages[0].sender_id == 101

    run(story)


def test_messages_submitted_in_one_round_travel_in_one_line() -> None:
    async def story() -> None:
        async with cluster_of() as cluster, client_of(cluster, SessionSettings()) as client:
            for n in range(1, 101):
                assert client.submit_nowait([str(n)]) == n
            await client.drained()
            assert [line for line in cluster.nodes[0].lines if isinstance(line, Chat)] == [
                Chat(1, tuple(map(str, range(1, 101))))
            ]

    run(story)


@pytest.mark.patches
def test_what_an_outcome_makes_the_caller_submit_goes_out_in_the_same_turn() -> None:
    class Counting(ChatClient):
        turns = 0

        def _turn(self) -> None:
            self.turns += 1
            super()._turn()

    never = SessionSettings(deadline=1e6, retry_interval=1e6, patience=1e6, keepalive=1e6)

    async def story() -> None:
        def one_more(outcome: Outcome) -> None:
            if outcome.last < 100:
                client.submit_nowait([str(outcome.last + 1)])

        async with cluster_of() as cluster:
            client = Counting(addresses(cluster.nodes), 101, settings=never, on_outcome=one_more)
            async with client:
                connected = client.turns
                client.submit_nowait(["1"])
                await client.until(lambda: client.session.unsettled == 0 and len(cluster.messages) == 100)
                assert client.turns - connected == 101, "one for the first message and one for each answer"

    run(story)


def test_a_message_that_cannot_be_sent_is_rejected_without_a_number() -> None:
    async def story() -> None:
        async with cluster_of() as cluster, client_of(cluster) as client:
            outcome = await client.send("x" * 70_000)
            assert (outcome.kind, outcome.first) == ("rejected", 0)
            assert "allowed 65536" in outcome.reason
            assert (await client.send("fine")).first == 1

    run(story)


def test_a_dead_node_is_left_for_the_next_and_nothing_is_ordered_twice() -> None:
    async def story() -> None:
        async with cluster_of() as cluster, client_of(cluster) as client:
            cluster.nodes[0].hold_acks = True
            sends = [asyncio.ensure_future(client.send(str(i))) for i in range(10)]
            await cluster.nodes[0].saw(lambda: len(cluster.messages) == 10)
            await cluster.nodes[0].stop()
            assert [outcome.kind for outcome in await asyncio.gather(*sends)] == ["ok"] * 10
            assert cluster.payloads() == [str(i) for i in range(10)]
            assert cluster.nodes[1].lines[0] == hello_of(client)

    run(story)


def test_members_that_were_added_are_used_once_the_known_nodes_are_gone() -> None:
    """Rule: G1."""

    async def story() -> None:
        async with cluster_of() as cluster:
            known, older, newer = cluster.nodes
            known.new_addresses = (MemberAddress(2, "127.0.0.1", older.port),)
            client = ChatClient(addresses([known]), 101, settings=QUICK, rng=random.Random(1))
            async with connected(client):
                assert client.places == addresses([known, older])
                line = LeaderLine(2, 8, (MemberAddress(3, "127.0.0.1", newer.port),))
                known.connections[0].say(line)
                await client.until(lambda: client.session.term == 8)
                await known.stop()
                assert (await client.send("hello")).kind == "ok"
                assert newer.connections and not older.lines

    run(story)


def test_a_client_starts_at_whichever_node_lives() -> None:
    async def story() -> None:
        async with cluster_of() as cluster:
            await cluster.nodes[0].stop()
            async with client_of(cluster, SessionSettings()) as client:
                assert client.session.node == 2
                assert "refused" in client.last_error.lower()

    run(story)


def test_a_node_that_stops_answering_is_left_for_the_next() -> None:
    async def story() -> None:
        async with cluster_of() as cluster, client_of(cluster) as client:
            cluster.nodes[0].deaf = True
            assert (await client.send("hello")).kind == "ok"
            assert client.session.node in (2, 3), "the third if a busy machine made the second slow too"

    run(story)


def test_an_idle_client_leaves_a_node_that_stops_answering() -> None:
    async def story() -> None:
        async with cluster_of() as cluster, client_of(cluster) as client:
            cluster.nodes[0].deaf = True
            await client.until(lambda: client.session.node in (2, 3))

    run(story)


def test_a_line_lost_behind_the_node_is_sent_again() -> None:
    async def story() -> None:
        async with cluster_of(1) as cluster, client_of(cluster) as client:
            cluster.nodes[0].drop_chats = 1
            assert (await client.send("hello")).kind == "ok"
            assert cluster.payloads() == ["hello"]
            assert len([line for line in cluster.nodes[0].lines if isinstance(line, Chat)]) >= 2

    run(story)


def test_a_gap_behind_a_lost_line_is_filled() -> None:
    async def story() -> None:
        async with cluster_of(1) as cluster, client_of(cluster, SessionSettings(line_messages=1)) as client:
            cluster.nodes[0].drop_chats = 1
            texts = [str(i) for i in range(50)]
            assert {outcome.kind for outcome in await client.send_many(texts)} == {"ok"}
            assert cluster.payloads() == texts

    run(story)


def test_messages_wait_while_there_is_no_leader() -> None:
    async def story() -> None:
        async with cluster_of(1) as cluster, client_of(cluster, SessionSettings()) as client:
            cluster.change_leader(0)
            await client.until(lambda: client.session.leader == 0)
            sending = asyncio.ensure_future(client.send("hello"))
            await asyncio.wait([sending], timeout=0)
            assert not any(isinstance(line, Chat) for line in cluster.nodes[0].lines)
            cluster.change_leader(2)
            assert (await sending).kind == "ok"
            assert cluster.messages[0].term == 3

    run(story)


def test_without_any_node_a_message_becomes_unknown_at_its_deadline() -> None:
    async def story() -> None:
        async with cluster_of(1) as cluster, client_of(cluster, SessionSettings(deadline=0.2)) as client:
            await cluster.nodes[0].stop()
            assert (await client.send("hello")).kind == "unknown"

    run(story)


def test_closing_settles_everything() -> None:
    async def story() -> None:
        outcomes: list[Outcome] = []
        async with cluster_of(1) as cluster:
            client = ChatClient(
                addresses(cluster.nodes), 1, settings=SessionSettings(window_messages=2), on_outcome=outcomes.append
            )
            await client.connect(TOO_LONG_S)
            cluster.nodes[0].hold_acks = True
            client.submit_nowait(["a", "b", "c"])
            await cluster.nodes[0].saw(lambda: len(cluster.messages) == 2)
            await client.close()
        assert [(o.kind, o.first, o.last) for o in outcomes] == [("unknown", 1, 2), ("rejected", 3, 3)]

    run(story)


def hello_of(client: ChatClient) -> Hello:
    return Hello(101, client.session.id, 0, session_token=client.session.token)


def test_a_client_recovers_from_a_session_that_another_client_used() -> None:
    """Rule: S1. Its token is known to somebody else, who sent messages in the session."""

    async def story() -> None:
        async with cluster_of(1) as cluster, client_of(cluster) as client:
            await client.send("one")
            session = client.session.id
            cluster.nodes[0].drop_chats = 1
            lost = asyncio.ensure_future(client.send("lost"))
            await cluster.nodes[0].saw(lambda: not cluster.nodes[0].drop_chats)
            cluster.order(7, session, Chat(2, ("by another", "and one more")))
            cluster.nodes[0].reset_connections()
            outcome = await lost
            assert (outcome.kind, outcome.reason) == ("unknown", "another client used this session")
            assert await client.send("two") == Outcome("ok", 1, 1, 4)
            assert client.session.id != session
        assert cluster.payloads() == ["one", "by another", "and one more", "two"]

    run(story)


def test_an_expired_session_is_renewed_and_the_subscription_keeps_its_place() -> None:
    """Rule: S3. What was not ordered for that reason is sent again."""

    async def story() -> None:
        seen = bytearray()
        async with cluster_of(1) as cluster, client_of(cluster) as client:
            client.follow(1, lambda shown: seen.extend(shown.lines))
            await client.send("one")
            old = client.session
            cluster.expired.add(old.id)
            two, more = await asyncio.gather(client.send("two"), client.send_many(["three", "four"]))
            assert [outcome.kind for outcome in (two, *more)] == ["ok"] * 3
            assert client.session.token != old.token
            await client.until(lambda: client.session.place == 5)
        assert [msgspec.json.decode(line)["payload"] for line in seen.splitlines()] == ["one", "two", "three", "four"]

    run(story)


def test_a_subscriber_sees_everything_once_over_any_number_of_reconnects() -> None:
    async def story() -> None:
        runs: list[Shown] = []
        async with cluster_of() as cluster, client_of(cluster) as client:
            client.follow(1, runs.append)
            for i in range(30):
                assert (await client.send(str(i))).kind == "ok"
                if i % 7 == 3:
                    for node in cluster.nodes:
                        node.reset_connections()
            await client.until(lambda: client.session.place == 31)
        lines = b"".join(run.lines for run in runs)
        assert [msgspec.json.decode(line, type=Line).payload for line in lines.splitlines()] == list(
            map(str, range(30))
        )
        assert lines == msgspec.json.Encoder().encode_lines(cluster.messages)

    run(story)


def test_an_iterating_subscriber_gets_every_run_and_ends_with_the_client() -> None:
    async def story() -> None:
        async with cluster_of(1) as cluster:
            cluster.order(7, "other", Chat(1, tuple(map(str, range(1000)))))
            crc, last = 0, 0
            async with client_of(cluster) as client:
                async for shown in client.subscribe(1):
                    crc, last = crc32(shown.lines, crc), shown.last
                    if last == 1000:
                        break
            assert crc == crc32(msgspec.json.Encoder().encode_lines(cluster.messages))
            client = ChatClient(addresses(cluster.nodes), 5)
            await client.connect(TOO_LONG_S)

            async def all_shown() -> list[int]:
                return [shown.last async for shown in client.subscribe(1001)]

            iterating = asyncio.ensure_future(all_shown())
            cluster.order(7, "other", Chat(1001, ("more",)))
            await client.until(lambda: client.session.place == 1002)
            await client.close()
            assert await iterating == [1001]

    run(story)


def test_a_client_moves_to_another_node_when_told_and_its_session_goes_on() -> None:
    async def story() -> None:
        async with cluster_of() as cluster, client_of(cluster) as client:
            await client.send("one")
            client.move(addresses(cluster.nodes[2:]))
            assert await client.send("two") == Outcome("ok", 2, 2, 2)
            assert client.session.node == 3
            assert cluster.nodes[2].lines[0] == hello_of(client)

    run(story)


def test_a_slow_reader_makes_the_client_stop_reading_and_loses_nothing() -> None:
    async def story() -> None:
        async with cluster_of(1) as cluster:
            big = tuple("x" * 50_000 + str(i) for i in range(400))
            cluster.order(7, "other", Chat(1, big))
            async with client_of(cluster) as client:
                last = 0
                connection = client._connection
                assert connection is not None
                async for shown in client.subscribe(1):
                    assert shown.first == last + 1
                    if last == 0:
                        # Not taking anything for a while: the client must stop by itself.
                        await client.until(lambda: not connection.reading)
                    last = shown.last
                    if last == 400:
                        break
                assert connection.reading and client._connection is connection

    run(story)


def test_a_reader_that_stops_leaves_the_client_able_to_send() -> None:
    async def story() -> None:
        async with cluster_of(1) as cluster:
            big = tuple("x" * 50_000 + str(i) for i in range(400))
            cluster.order(7, "other", Chat(1, big))
            async with client_of(cluster) as client:
                connection = client._connection
                assert connection is not None
                async for _ in client.subscribe(1):
                    await client.until(lambda: not connection.reading)
                    break
                assert (await client.send("hello")).kind == "ok"

    run(story)


def test_a_connect_that_is_cancelled_leaves_no_task() -> None:
    async def story() -> None:
        async with cluster_of(1) as cluster:
            await cluster.stop()
            client = ChatClient(addresses(cluster.nodes), 5)
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.01):
                    await client.connect(TOO_LONG_S)
            assert asyncio.all_tasks() == {asyncio.current_task()}

    run(story)


def test_a_node_that_hangs_up_at_once_is_not_called_without_a_pause() -> None:
    async def story() -> None:
        async with cluster_of(1) as cluster:
            node = cluster.nodes[0]
            node.problem = "too many clients"
            client = ChatClient(addresses(cluster.nodes), 5)
            with pytest.raises(Unreachable, match="too many clients"):
                await client.connect(timeout_s=1.5)
            assert 1 <= len([line for line in node.lines if isinstance(line, Hello)]) < 20

    run(story)


def test_connecting_to_nobody_says_where_it_was_tried() -> None:
    async def story() -> None:
        async with cluster_of(2) as cluster:
            await cluster.stop()
            client = ChatClient(addresses(cluster.nodes), 5)
            with pytest.raises(Unreachable, match=f"127.0.0.1:{cluster.nodes[0].port}, 127.0.0.1:.*within 0.1 s"):
                await client.connect(timeout_s=0.1)

    run(story)


def test_a_host_that_is_no_host_name_is_said_and_the_next_address_is_used() -> None:
    async def story() -> None:
        async with cluster_of(1) as cluster:
            client = ChatClient([("a..b", 1), *addresses(cluster.nodes)], 101, settings=QUICK)
            client.start()
            await client.until(lambda: "not a host name" in client.last_error)
            assert (await client.send("hello")).kind == "ok"
            await client.close()
        with pytest.raises(Unreachable, match=r"a\.\.b:1: not a host name"):
            await status("a..b", 1)

    run(story)


def test_a_subscription_asks_from_where_it_was_told_to() -> None:
    async def story() -> None:
        async with cluster_of(1) as cluster:
            cluster.order(7, "other", Chat(1, ("a", "b", "c")))
            async with client_of(cluster) as client:
                runs: list[Shown] = []
                client.follow(2, runs.append)
                await client.until(lambda: client.session.place == 4)
                assert runs[0].first == 2
            async with client_of(cluster) as client:
                client.follow(None, lambda _: None)
                await cluster.nodes[0].saw(lambda: Subscribe(4) in cluster.nodes[0].lines)

    run(story)


def test_status_answers_without_a_session() -> None:
    async def story() -> None:
        async with cluster_of(1) as cluster:
            answer = await status("127.0.0.1", cluster.nodes[0].port, TOO_LONG_S)
            assert (answer.node, answer.leader, answer.term) == (1, 3, 1)
            assert answer.peers[0].node == 2

    run(story)


def test_status_of_a_dead_or_deaf_node_is_unreachable() -> None:
    async def story() -> None:
        async with cluster_of(1) as cluster:
            cluster.nodes[0].deaf = True
            with pytest.raises(Unreachable, match="no answer within"):
                await status("127.0.0.1", cluster.nodes[0].port, timeout_s=0.1)
            await cluster.stop()
            with pytest.raises(Unreachable):
                await status("127.0.0.1", cluster.nodes[0].port)

    run(story)


def test_a_client_without_the_right_token_is_told_so_at_once(tmp_path: Path) -> None:
    async def story() -> None:
        config = NodeConfig(node_id=1, port=0, data_dir="unused", client_token="right")
        async with running(tmp_path, config) as member:
            client = ChatClient([("127.0.0.1", member.port)], 5, settings=SessionSettings(client_token="wrong"))
            with pytest.raises(Unreachable, match="not accepted as a client: the client token is wrong or missing"):
                await client.connect(TOO_LONG_S)
            with pytest.raises(Unreachable, match="refused: client token"):
                await status("127.0.0.1", member.port, TOO_LONG_S)
            settings = SessionSettings(client_token="right")
            async with connected(ChatClient([("127.0.0.1", member.port)], 5, settings=settings)) as client:
                assert (await client.send("hello")).kind == "ok"
            assert (await status("127.0.0.1", member.port, TOO_LONG_S, client_token="right")).node == 1

    run(story)


def test_changes_are_told_once_each() -> None:
    async def story() -> None:
        states: list[tuple[int, int]] = []
        async with cluster_of(1) as cluster:
            client = ChatClient(
                addresses(cluster.nodes),
                1,
                on_change=lambda: states.append((client.session.leader, client.session.term)),
            )
            await client.connect(TOO_LONG_S)
            cluster.change_leader(2)
            await client.until(lambda: client.session.leader == 2)
            await client.send("a")
            assert states == [(0, 0), (3, 1), (2, 2)]
            await client.close()

    run(story)


def test_a_closed_client_leaves_no_task_and_no_socket(recwarn: pytest.WarningsRecorder) -> None:
    gc.collect()  # What earlier tests left must not be taken for this one's.
    recwarn.clear()

    async def story() -> None:
        async with cluster_of(1) as cluster:
            async with client_of(cluster) as client:
                await client.send("a")
            await cluster.nodes[0].saw(lambda: not cluster.nodes[0].connections)
            assert asyncio.all_tasks() == {asyncio.current_task()}

    run(story)
    gc.collect()
    assert [warning for warning in recwarn if issubclass(warning.category, ResourceWarning)] == []
