"""etcd, by its HTTP gateway. A record is a key chat/SESSION/LAST; last/SESSION holds the session's last message.

Both keys are written by one transaction on the condition that last/SESSION is unchanged. The order of records is the
order of their revisions. Each member serves a watch and a serializable range from its own state.
"""

from __future__ import annotations

from base64 import b64decode, b64encode
from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
from contextlib import aclosing, suppress
from typing import Any

from lab.engines.engine import Engine, EngineStatus, Entry, Place, Refused, Unknown
from lab.engines.web import NotSent, ask, listens, stream
from nodeproc.core.messages import NodeId

CLIENTS, PEERS = 2379, 2380
LEADS_TIMEOUT_S, STATUS_TIMEOUT_S, APPEND_TIMEOUT_S, READ_TIMEOUT_S = 2.0, 0.5, 3.0, 10.0
RECORDS = {"key": b64encode(b"chat/").decode(), "range_end": b64encode(b"chat0").decode()}
"""All keys of records: `0` is the character after `/`."""
NOT_TAKEN = ("too many requests", "request is too large", "database space exceeded")
"""Errors that a member reports before it proposes a transaction, or instead of applying it."""


class Etcd(Engine):
    """See Engine."""

    def __init__(self, place: Place, program: str, options: Mapping[str, str]) -> None:
        super().__init__(place, program, options)
        self._nodes: dict[str, NodeId] = {}
        """etcd's member id -> node."""

    def command(self) -> Sequence[str]:
        place = self.place
        clients, peers = f"http://{place.host}:{CLIENTS}", f"http://{place.host}:{PEERS}"
        cluster = ",".join(f"n{node}=http://{place.hosts[node]}:{PEERS}" for node in place.ids)
        settings = {
            "name": f"n{place.node}",
            "data-dir": str(place.data_dir),
            "listen-client-urls": clients,
            "advertise-client-urls": clients,
            "listen-peer-urls": peers,
            "initial-advertise-peer-urls": peers,
            "initial-cluster": cluster,
            "initial-cluster-state": "new",
            "log-level": "warn",
            "heartbeat-interval": str(place.heartbeat_ms),
            "election-timeout": str(max(place.election_ms, 5 * place.heartbeat_ms)),  # etcd refuses less
        }
        if "snapshot_count" in self.options:
            settings["snapshot-count"] = self.options["snapshot_count"]
        return [self.program, *(f"--{name}={value}" for name, value in settings.items())]

    async def ready(self) -> bool:
        # The port for clients answers only once a leader exists, and HTTP on the other one can hang for 5 s at a start.
        return await listens(self.place.host, PEERS, within=STATUS_TIMEOUT_S)

    async def lead(self) -> None:
        status = await self._post("maintenance/status", {}, LEADS_TIMEOUT_S)
        leader, me = status.get("leader"), status["header"]["member_id"]
        if leader and leader != me:
            await self._post(
                "maintenance/transfer-leadership", {"targetID": me}, LEADS_TIMEOUT_S, await self._node(leader)
            )

    async def status(self) -> EngineStatus:
        if self.options.get("monitor") == "hash":
            with suppress(OSError, EOFError):
                await self._post("maintenance/hash", {}, STATUS_TIMEOUT_S)
        # The status of the API has the leader and the term of different moments.
        answer = await ask(self.place.host, CLIENTS, "/debug/vars", within=STATUS_TIMEOUT_S)
        raft = answer.body["raft.status"]
        leader = int(raft["lead"], 16)
        return EngineStatus(await self._node(str(leader)) if leader else 0, raft["term"])

    async def _node(self, member: str) -> NodeId:
        if member not in self._nodes:
            found = await self._post("cluster/member/list", {}, STATUS_TIMEOUT_S)
            self._nodes = {each["ID"]: int(each["name"][1:]) for each in found["members"] if each.get("name")}
        return self._nodes.get(member, 0)

    async def append(self, session: str, first: int, last: int, value: str) -> int:
        key = _b64(f"last/{session}")
        unchanged: dict[str, Any] = {"key": key, "target": "VALUE", "value": _b64(str(first - 1))}
        if first == 1:
            unchanged = {"key": key, "target": "CREATE", "create_revision": 0}
        write = [
            {"request_put": {"key": key, "value": _b64(str(last))}},
            {"request_put": {"key": _b64(f"chat/{session}/{last}"), "value": _b64(value)}},
        ]
        request = {"compare": [unchanged], "success": write, "failure": [{"request_range": {"key": key}}]}
        try:
            code, body = await ask(self.place.host, CLIENTS, "/v3/kv/txn", request, within=APPEND_TIMEOUT_S)
        except NotSent as error:
            raise Refused(str(error)) from None
        except (OSError, EOFError) as error:  # TimeoutError is an OSError
            raise Unknown(repr(error)) from None
        if code != 200 or body is None:
            why = body.get("message", "") if isinstance(body, dict) else ""
            raise (Refused if any(each in why for each in NOT_TAKEN) else Unknown)(f"{code} {why}")
        if body.get("succeeded"):
            return last
        found = body["responses"][0]["response_range"].get("kvs", ())
        return int(_text(found[0]["value"])) if found else 0

    async def tail(self) -> AsyncGenerator[Sequence[Entry], None]:
        found = await self._post("kv/range", RECORDS | {"serializable": True}, READ_TIMEOUT_S)
        yield _entries(found.get("kvs", ()))
        watch = {"create_request": RECORDS | {"start_revision": int(found["header"]["revision"]) + 1}}
        async with aclosing(stream(self.place.host, CLIENTS, "/v3/watch", watch, within=READ_TIMEOUT_S)) as lines:
            async for line in lines:
                if "error" in line or line["result"].get("canceled"):
                    return
                events = line["result"].get("events", ())
                if new := _entries(each["kv"] for each in events if each.get("type", "PUT") == "PUT"):
                    yield new

    async def _post(self, name: str, body: Any, within: float, node: NodeId = 0) -> Any:
        host, port = self.place.reach(node or self.place.node, CLIENTS)
        answer = await ask(host, port, f"/v3/{name}", body, within=within)
        if answer.code != 200 or not isinstance(answer.body, dict):
            raise OSError(f"etcd answered {name} with HTTP status {answer.code}: {answer.body}")
        return answer.body


def _entries(found: Iterable[Any]) -> list[Entry]:
    """Return the records of these key-value pairs, in the order of their revisions."""
    entries = []
    for each in sorted(found, key=lambda kv: int(kv["create_revision"])):
        _, session, last = _text(each["key"]).split("/")
        entries.append(Entry(session, int(last), _text(each.get("value", ""))))
    return entries


def _b64(text: str) -> str:
    return b64encode(text.encode()).decode()


def _text(base64: str) -> str:
    return b64decode(base64).decode()
