"""A replicated log as one might write it in an afternoon: it works as long as nothing fails. Standard library only.

The live node with the highest id leads, orders all messages and acknowledges them; every other node copies the leader's
log as any subscriber would. It has these faults on purpose:

    - the leader acknowledges messages that no other node has yet: they are copied later, in a pause or when many wait;
    - no node requires a majority: each side of a cut has a leader;
    - the highest id leads whatever its log holds, even after it was away;
    - nothing is synced: a power loss removes everything that only the operating system still held.
"""

import asyncio
import json
import sys
import time
from contextlib import suppress
from pathlib import Path

QUIET_S, MUCH, PATIENCE_S = 0.25, 1000, 1.0
LINE_BYTES = 1 << 22


class Node:
    def __init__(self, config):
        self.id, self.host, self.port = config["node_id"], config["host"], config["port"]
        self.peers = {peer["id"]: (peer["host"], peer["port"]) for peer in config["peers"]}
        self.lines, self.sessions, self.clients, self.pushing = [], {}, set(), set()
        self.leader = self.term = 0
        self.path = Path(config["message_log"])
        self.path.touch()
        for line in self.path.read_bytes().splitlines(keepends=True):
            self.remember(line)

    def remember(self, line):
        message = json.loads(line)
        session, _, n = message["msg_id"].rpartition("-")
        self.sessions[session] = (int(n), message["seq_no"])
        self.term = max(self.term, message["term"])
        self.lines.append(line)
        self.grown_at = time.monotonic()

    def append(self, lines):
        with self.path.open("ab") as file:
            file.write(b"".join(lines))
        for line in lines:
            self.remember(line)

    def order(self, client, session, first, payloads):
        last, lines = self.sessions.get(session, (0, 0))[0], []
        for n, payload in enumerate(payloads, first):
            if n > last:  # else it was sent again
                message = {"seq_no": len(self.lines) + len(lines) + 1, "term": self.term, "sender_id": client}
                message |= {"msg_id": f"{session}-{n}", "timestamp": time.time(), "payload": payload}
                lines.append(as_line(message))
        self.append(lines)
        n, seq_no = self.sessions[session]
        return {"type": "ACK", "session": session, "n": n, "seq_no": seq_no}

    async def watch(self):
        while True:
            asked = {peer: asyncio.create_task(ask(self.peers[peer], {"type": "STATUS"})) for peer in self.peers}
            alive = {peer: answer for peer, task in asked.items() if (answer := await task)}
            leader, term = max([self.id, *alive]), self.term
            if leader == self.id != self.leader:
                term = max([term, *(answer["term"] for answer in alive.values())]) + 1
            elif leader != self.id:
                leads = alive[leader]["leader"] == leader
                leader, term = (leader, alive[leader]["term"]) if leads else (0, term)
            if (leader, term) != (self.leader, self.term):
                self.leader, self.term = leader, term
                for client in self.clients:
                    client.write(as_line({"type": "LEADER", "leader": leader, "term": term}))
            await asyncio.sleep(0.05)

    async def copy(self):
        while True:
            await asyncio.sleep(0.05)
            if (leader := self.leader) not in self.peers:
                continue
            with suppress(OSError):
                reader, writer = await asyncio.open_connection(*self.peers[leader], limit=LINE_BYTES)
                writer.write(as_line({"type": "SUBSCRIBE", "from": len(self.lines) + 1}))
                while (line := await reader.readline()).endswith(b"\n") and self.leader == leader:
                    self.append([line])
                writer.close()

    async def serve(self, reader, writer):
        hello = None
        with suppress(OSError):
            while (raw := await reader.readline()).endswith(b"\n"):
                line = json.loads(raw)
                if line["type"] == "SUBSCRIBE":
                    self.pushing.add(asyncio.create_task(self.push(writer, line["from"] - 1)))
                    continue
                if line["type"] == "HELLO":
                    hello = line
                    self.clients.add(writer)
                writer.write(as_line(await self.answer(line, hello)))
        self.clients.discard(writer)
        writer.close()

    async def answer(self, line, hello):
        last, known = len(self.lines), {"node": self.id, "leader": self.leader, "term": self.term}
        if line["type"] == "STATUS":
            role = "leader" if self.leader == self.id else "follower"
            status = {"role": role, "last_seq": last, "commit_seq": last, "delivered_seq": last}
            return {"type": "STATUS_IS", **known, **status}
        session = hello["session"]
        if line["type"] == "HELLO":
            n, seq_no = self.sessions.get(session, (0, 0))
            own = {"session": session, "born": line.get("born") or 0, "acknowledged": n, "acknowledged_seq": seq_no}
            return {"type": "WELCOME", **known, "last_seq": last, **own}
        if self.leader == self.id:
            return self.order(hello["client_id"], session, line["first"], line["payloads"])
        answer = await ask(self.peers[self.leader], hello, line) if self.leader else None
        refusal = {"first": line["first"], "reason": "no_leader", "retry": True}
        return answer or {"type": "REJECT", "session": session, **refusal}

    async def push(self, writer, at):
        while not writer.is_closing():
            waiting = len(self.lines) - at
            if waiting and (waiting >= MUCH or time.monotonic() - self.grown_at > QUIET_S):
                writer.write(b"".join(self.lines[at:]))
                at = len(self.lines)
            await asyncio.sleep(0.01)

    async def run(self):
        server = await asyncio.start_server(self.serve, self.host, self.port, limit=LINE_BYTES)
        await asyncio.gather(self.watch(), self.copy(), server.serve_forever())


def as_line(value):
    return json.dumps(value, separators=(",", ":")).encode() + b"\n"


async def ask(address, *lines):
    """Return the answer to the last of these lines, or None if the node is down or silent for too long."""
    try:
        async with asyncio.timeout(PATIENCE_S):
            reader, writer = await asyncio.open_connection(*address, limit=LINE_BYTES)
            writer.write(b"".join(map(as_line, lines)))
            answers = [json.loads(await reader.readline()) for _ in lines]
            writer.close()
            return answers[-1]
    except (OSError, ValueError):
        return None


asyncio.run(Node(json.loads(Path(sys.argv[1]).read_text())).run())
