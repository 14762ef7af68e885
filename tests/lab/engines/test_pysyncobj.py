"""The driver of PySyncObj: what each answer of its server means."""

from __future__ import annotations

import asyncio
import json
import runpy
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from types import ModuleType

import pytest

from lab.engines import pysyncobj
from lab.engines.engine import EngineStatus, Entry, Refused, Unknown
from tests.lab.engines import surroundings
from tests.lab.engines.surroundings import HOSTS
from tests.lab.inloop import in_loop

HOST = "127.0.0.1"
PLACE = surroundings.PLACE._replace(hosts={**HOSTS, 1: HOST})


@asynccontextmanager
async def driver(*answers: object) -> AsyncIterator[pysyncobj.PySyncObj]:
    """A driver whose server gives these answers, one a connection; bytes are sent as they are."""
    left = list(answers)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        answer = left.pop(0)
        writer.write(answer if isinstance(answer, bytes) else json.dumps(answer).encode() + b"\n")
        writer.close()

    server = await asyncio.start_server(serve, HOST, 0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pysyncobj, "CLIENTS", server.sockets[0].getsockname()[1])
        async with server:
            yield pysyncobj.PySyncObj(PLACE, "/there/pysyncobj/__init__.py", {})


@in_loop
async def test_a_command_tells_the_last_message() -> None:
    async with driver({"has": 4, "reason": "SUCCESS"}) as engine:
        assert await engine.append("s", 4, 4, "v") == 4


@pytest.mark.parametrize(
    ("answer", "meaning"),
    [
        *[({"has": None, "reason": reason}, Refused) for reason in pysyncobj.NOT_TAKEN],
        *[({"has": None, "reason": reason}, Unknown) for reason in ("NOT_LEADER", "LEADER_CHANGED", "77")],
        (b"", Unknown),
        (b'{"has":', Unknown),
    ],
    ids=str,
)
def test_other_answers_to_a_command(answer: object, meaning: type[Exception]) -> None:
    @in_loop
    async def run() -> None:
        async with driver(answer) as engine:
            with pytest.raises(meaning):
                await engine.append("s", 1, 1, "v")

    run()


@in_loop
async def test_a_server_that_is_down_has_taken_nothing() -> None:
    async with driver() as engine:
        pass
    with pytest.raises(Refused):
        await engine.append("s", 1, 1, "v")


@in_loop
async def test_the_leader_is_the_node_of_its_address() -> None:
    async with driver({"leader": "127.64.0.3:7100", "term": 4}, {"leader": "", "term": 5}) as engine:
        assert await engine.status() == EngineStatus(3, 4)
        assert await engine.status() == EngineStatus(0, 5)


@in_loop
async def test_the_tail_ends_when_there_are_fewer_records() -> None:
    def page(count: int, *records: Sequence[object]) -> object:
        return {"count": count, "records": records}

    async with driver(page(1, ("s", 1, "a")), page(1), page(2, ("s", 2, "b")), page(1)) as engine:
        found = [list(entries) async for entries in engine.tail()]
    assert found == [[Entry("s", 1, "a")], [Entry("s", 2, "b")]]


def test_the_node_with_the_highest_id_stands_for_election_first() -> None:
    def timeout_of(node: int) -> tuple[float, float]:
        settings = json.loads(pysyncobj.PySyncObj(PLACE._replace(node=node), "", {}).command()[-1])
        return settings["conf"]["raftMinTimeout"], settings["conf"]["raftMaxTimeout"]

    assert timeout_of(3)[1] <= timeout_of(2)[0] and timeout_of(2)[1] <= timeout_of(1)[0]


def test_the_server_finds_the_installed_version() -> None:
    assert pysyncobj.PySyncObj(PLACE, "/there/pysyncobj/__init__.py", {}).environment() == {
        "PYTHONPATH": "/there",
        "PYTHONSAFEPATH": "1",
    }


class Ticking:
    """Stands for pysyncobj.SyncObj."""

    leader, raftCurrentTerm = "127.64.0.3:7100", 4

    def __init__(self, *_: object) -> None:
        self.ticks: list[Callable[[], None]] = []

    def addOnTickCallback(self, tick: Callable[[], None]) -> None:
        self.ticks.append(tick)

    def _getLeader(self) -> str:
        return self.leader


@in_loop
async def test_the_server_shows_leader_and_term_of_one_tick() -> None:
    library = ModuleType("pysyncobj")
    vars(library).update(
        SyncObj=Ticking, SyncObjConf=None, FAIL_REASON=ModuleType("x"), replicated=lambda method: method
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "pysyncobj", library)
        server = runpy.run_path(str(pysyncobj.SERVER))
    log = server["Log"]("", (), None)
    (tick,) = log.ticks
    tick()
    log.leader = "127.64.0.2:7100"  # PySyncObj's thread is in the middle of a change: the term comes later.
    assert await server["answer"](log, {"do": "status"}) == {"leader": "127.64.0.3:7100", "term": 4}
    log.raftCurrentTerm = 5
    tick()
    assert await server["answer"](log, {"do": "status"}) == {"leader": "127.64.0.2:7100", "term": 5}
