"""PySyncObj, a Raft library for Python. Each node runs a server around it, pysyncobj_node.py in this directory."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncGenerator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lab.engines.engine import Engine, EngineStatus, Entry, Refused, Unknown

SERVER = Path(__file__).with_name("pysyncobj_node.py")
CLIENTS, RAFT = 7000, 7100
ANSWER_TIMEOUT_S, APPEND_TIMEOUT_S, POLL_S = 1.0, 5.0, 0.02
LINE_BYTES = 1 << 26
NOT_TAKEN = ("QUEUE_FULL", "MISSING_LEADER", "REQUEST_DENIED", "DISCARDED")
"""Reasons of a command that was not put into the log, or whose place in the log another one has taken for good."""


class PySyncObj(Engine):
    """See Engine."""

    def command(self) -> Sequence[str]:
        place = self.place
        election_s, rank = place.election_ms / 1000, max(place.ids) - place.node
        settings = {
            "listen": (place.host, CLIENTS),
            "self": f"{place.host}:{RAFT}",
            "others": [f"{place.hosts[node]}:{RAFT}" for node in place.others],
            "directory": str(place.data_dir),
            "conf": {
                # The node with the highest id is the first to stand for election.
                "raftMinTimeout": election_s * (1 + 2 * rank),
                "raftMaxTimeout": election_s * (1.5 + 2 * rank),
                "appendEntriesPeriod": place.heartbeat_ms / 1000,
                "connectionTimeout": election_s * (3 + 2 * max(place.ids)),
                "logCompactionMinEntries": 10**9,
                "logCompactionMinTime": 10**9,
            },
        }
        return [sys.executable, str(SERVER), json.dumps(settings)]

    def environment(self) -> Mapping[str, str]:
        # The directory of the program has a module of the same name as the library.
        return {"PYTHONPATH": str(Path(self.program).parents[1]), "PYTHONSAFEPATH": "1"}

    async def ready(self) -> bool:
        await self._ask(ANSWER_TIMEOUT_S, do="status")
        return True

    async def status(self) -> EngineStatus:
        found = await self._ask(ANSWER_TIMEOUT_S, do="status")
        nodes = {f"{host}:{RAFT}": node for node, host in self.place.hosts.items()}
        return EngineStatus(nodes.get(found["leader"], 0), found["term"])

    async def append(self, session: str, first: int, last: int, value: str) -> int:
        try:
            found = await self._ask(APPEND_TIMEOUT_S, do="append", record=(session, first, last, value))
        except ConnectionRefusedError as error:
            raise Refused(repr(error)) from None
        except (OSError, EOFError, ValueError) as error:  # TimeoutError is an OSError; ValueError: half a line
            raise Unknown(repr(error)) from None
        if found["reason"] != "SUCCESS":
            raise (Refused if found["reason"] in NOT_TAKEN else Unknown)(found["reason"])
        return int(found["has"])

    async def tail(self) -> AsyncGenerator[Sequence[Entry], None]:
        count = 0
        while True:
            found = await self._ask(ANSWER_TIMEOUT_S, do="read", **{"from": count})
            if found["count"] < count:
                return
            if found["records"] or not count:
                yield [Entry(*record) for record in found["records"]]
            count = found["count"]
            await asyncio.sleep(POLL_S)

    async def _ask(self, within: float, **asked: Any) -> Any:
        """Return the server's answer. Raises: OSError, EOFError, ValueError."""
        async with asyncio.timeout(within):
            reader, writer = await asyncio.open_connection(self.place.host, CLIENTS, limit=LINE_BYTES)
            try:
                writer.write(json.dumps(asked).encode() + b"\n")
                line = await reader.readline()
            finally:
                writer.close()
        if not line:
            raise EOFError("the server has closed the connection")
        return json.loads(line)
