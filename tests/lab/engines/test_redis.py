"""The driver of Redis with Sentinel: what each answer means."""

from __future__ import annotations

from typing import Any

import pytest

from lab.engines.engine import EngineStatus, Entry, Refused, Unknown
from tests.lab.engines.surroundings import HOSTS, PLACE
from tests.lab.inloop import in_loop

pytest.importorskip("redis", reason="the extra `engines` is not installed")

from redis import exceptions

from lab.engines import redis


class Server:
    """Stands for the library's client: each command gives its answer, or raises it."""

    def __init__(self, **answers: object) -> None:
        self.answers, self.asked = answers, list[tuple[str, tuple[object, ...]]]()

    def __getattr__(self, name: str) -> Any:
        async def command(*arguments: object, **options: object) -> object:
            self.asked.append((name, arguments))
            answer = self.answers.get(name)
            if isinstance(answer, list):
                answer = answer.pop(0)
            if isinstance(answer, Exception):
                raise answer
            return answer

        return command


def sentinel(primary: int, flags: str = "master") -> Server:
    return Server(sentinel_master={"ip": HOSTS[primary], "config-epoch": "4", "flags": flags})


def driver(
    server: Server, primary: int = 3, options: dict[str, str] | None = None, flags: str = "master"
) -> redis.Redis:
    engine = redis.Redis(PLACE, "redis-server", options or {})
    engine._clients = {(1, redis.SENTINEL): sentinel(primary, flags), (primary, redis.SERVER): server}
    return engine


@in_loop
async def test_a_script_on_the_primary_tells_the_last_message() -> None:
    server = Server(eval="7")
    assert await driver(server).append("s", 7, 7, "v") == 7
    assert server.asked == [("eval", (redis.APPEND, 0, "s", 7, 7, "v"))]


@pytest.mark.parametrize(
    ("error", "meaning"),
    [
        (exceptions.ReadOnlyError("You can't write against a read only replica."), Refused),
        (exceptions.ResponseError("NOREPLICAS Not enough good replicas to write."), Refused),
        (exceptions.ResponseError("MASTERDOWN Link with MASTER is down"), Refused),
        (exceptions.ResponseError("ERR unknown"), Unknown),
        (exceptions.ConnectionError("closed"), Unknown),
        (exceptions.TimeoutError("no answer"), Unknown),
        (ConnectionResetError(), Unknown),
    ],
    ids=str,
)
def test_errors_of_a_script(error: Exception, meaning: type[Exception]) -> None:
    @in_loop
    async def run() -> None:
        with pytest.raises(meaning):
            await driver(Server(eval=error)).append("s", 1, 1, "v")

    run()


@in_loop
async def test_a_failed_connection_is_not_used_again() -> None:
    engine = driver(Server(eval=exceptions.ConnectionError("closed")))
    with pytest.raises(Unknown):
        await engine.append("s", 1, 1, "v")
    assert (3, redis.SERVER) not in engine._clients


@in_loop
async def test_too_few_replicas_leave_the_outcome_open() -> None:
    with pytest.raises(Unknown, match="fewer than 2 replicas"):
        await driver(Server(eval="1", wait=1), options={"wait": "2"}).append("s", 1, 1, "v")
    assert await driver(Server(eval="1", wait=2), options={"wait": "2"}).append("s", 1, 1, "v") == 1


@in_loop
async def test_without_a_primary_nothing_is_stored() -> None:
    with pytest.raises(Refused, match="no primary"):
        await driver(Server(), flags="master,failover_in_progress").append("s", 1, 1, "v")
    engine = driver(Server())
    engine._clients[1, redis.SENTINEL] = Server(sentinel_master=exceptions.ConnectionError("down"))
    with pytest.raises(Refused, match="no connection"):
        await engine.append("s", 1, 1, "v")


@in_loop
async def test_the_leader_is_the_primary_of_the_local_sentinel() -> None:
    assert await driver(Server()).status() == EngineStatus(3, 5)
    assert await driver(Server(), flags="master,failover_in_progress").status() == EngineStatus(0, 5)
    assert await driver(Server(info={"role": "master"}), primary=1).status() == EngineStatus(1, 5)
    assert await driver(Server(info={"role": "slave"}), primary=1).status() == EngineStatus(0, 5)


@in_loop
async def test_a_failover_needs_sentinels_that_know_each_other() -> None:
    engine = driver(Server())
    found = {"num-other-sentinels": "1", "num-slaves": "2"}
    engine._clients[1, redis.SENTINEL] = Server(sentinel_master=found)
    with pytest.raises(OSError, match="do not know each other"):
        await engine.setup()
    found["num-other-sentinels"] = "2"
    await engine.setup()


@in_loop
async def test_the_tail_ends_when_its_last_entry_is_gone() -> None:
    row = {"s": "s", "l": "1", "v": "v"}
    pages = [[("1-0", row)], [], [("1-0", row)], [("2-0", row | {"l": "2"})], []]
    engine = driver(Server(), primary=3)
    engine._clients[1, redis.SERVER] = Server(xrange=pages)
    found = [list(entries) async for entries in engine.tail()]
    assert found == [[Entry("s", 1, "v")], [Entry("s", 2, "v")]]
