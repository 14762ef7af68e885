"""One PySyncObj node as a server: JSON lines over TCP. It needs PySyncObj on PYTHONPATH, and nothing of the lab.

python pysyncobj_node.py SETTINGS, a JSON object: listen, self, others, directory, and fields of SyncObjConf in conf
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Sequence
from typing import Any

from pysyncobj import FAIL_REASON, SyncObj, SyncObjConf, replicated

LINE_BYTES = 1 << 26
REASONS = {value: name for name, value in vars(FAIL_REASON).items() if not name.startswith("_")}


class Log(SyncObj):  # type: ignore[misc]
    """The replicated state: all records, and each session's last message."""

    def __init__(self, address: str, others: Sequence[str], conf: Any) -> None:
        self.records: list[tuple[str, int, str]] = []
        self.last: dict[str, int] = {}
        self.shown: dict[str, Any] = {"leader": "", "term": 0}
        super().__init__(address, others, conf)
        self.addOnTickCallback(self._show)

    def _show(self) -> None:
        """Take leader and term in PySyncObj's own thread: any other one may see the leader of another term."""
        leader = self._getLeader()
        self.shown = {"leader": "" if leader is None else str(leader), "term": self.raftCurrentTerm}

    @replicated  # type: ignore[untyped-decorator]
    def append(self, session: str, first: int, last: int, value: str) -> int:
        has = self.last.get(session, 0)
        if has != first - 1:
            return has
        self.last[session] = last
        self.records.append((session, last, value))
        return last


async def answer(log: Log, asked: dict[str, Any]) -> dict[str, Any]:
    """Carry out one request."""
    if asked["do"] == "append":
        loop = asyncio.get_running_loop()
        done: asyncio.Future[tuple[int, int]] = loop.create_future()

        def settle(has: int, reason: int) -> None:
            loop.call_soon_threadsafe(done.set_result, (has, reason))

        log.append(*asked["record"], callback=settle)
        has, reason = await done
        return {"has": has, "reason": REASONS.get(reason, str(reason))}
    if asked["do"] == "read":
        return {"count": len(log.records), "records": log.records[asked["from"] :]}
    return log.shown


async def serve(log: Log, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer one connection's requests."""
    try:
        while line := await reader.readline():
            writer.write(json.dumps(await answer(log, json.loads(line))).encode() + b"\n")
            await writer.drain()
    except ConnectionError:
        pass
    finally:
        writer.close()


async def main() -> None:
    """Run the node."""
    settings = json.loads(sys.argv[1])
    # PySyncObj itself listens at all addresses unless it is told one.
    conf = SyncObjConf(
        bindAddress=settings["self"],
        journalFile=f"{settings['directory']}/journal",
        fullDumpFile=f"{settings['directory']}/dump",
        **settings["conf"],
    )
    log = Log(settings["self"], settings["others"], conf)
    host, port = settings["listen"]
    server = await asyncio.start_server(lambda r, w: serve(log, r, w), host, port, limit=LINE_BYTES)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
