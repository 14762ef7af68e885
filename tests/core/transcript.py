"""A small language for stories of the protocol: commands to a cluster of real cores, and what they led to.

A script (tests/scripts/<story>/<situation>.txt) holds comments, commands and their recorded output:

    # why this story is told
    > start 3 nodes
    > run 1s
      3: Became LEADER for term 1

Nothing happens by itself: time moves with `run` and `wait`, frames with `run`, `settle` and `deliver`, disks with those
and `sync`. Output lines are events (`3: …`), deliveries (`3: delivers 1..2: a b`), refusals and, where a command shows
them, frames (`3 > 1  APPEND …`). Poll and request numbers are left out. COMMANDS lists the language.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from lab.course.frames import told_fields
from nodeproc.core.effects import Effects
from nodeproc.core.election import become_candidate
from nodeproc.core.events import (
    AwaitingMembers,
    BecomingCoordinator,
    CoordinatorReceived,
    Delivered,
    HeartbeatReceived,
    HeartbeatSent,
    JoinAnswered,
    Joining,
    SequenceSet,
    Starting,
)
from nodeproc.core.messages import Batch, Line, Mark, NodeId, PeerMessage, Record, Transfer
from nodeproc.lines import decode_node_line
from tests.core.cluster import Cluster

QUIET = (
    AwaitingMembers,
    BecomingCoordinator,
    CoordinatorReceived,
    Delivered,
    HeartbeatReceived,
    HeartbeatSent,
    JoinAnswered,
    Joining,
    SequenceSet,
    Starting,
)
"""Events that are left out because other lines show the same."""

COMMANDS = {
    "start": "start N nodes [FIELD=NUMBER …] [priority NODE=NUMBER …]: a new cluster, fields of CoreConfig",
    "given": "given N nodes […]: the same after an untold second, in which the highest in rank was elected",
    "submit": "submit NODE SESSION[@N] PAYLOAD …: a client of NODE sends; n goes on by itself unless @N is given",
    "run": "run SECONDSs [showing FRAME …]: all goes on, frames are delivered, disks sync, time passes",
    "settle": "settle [showing FRAME …]: the same without time",
    "wait": "wait SECONDSs: time passes and what is due is done, but no frame arrives and no disk syncs",
    "deliver": "deliver A>B [COUNT|all]: the oldest frames of a link arrive",
    "drop": "drop A>B [COUNT|all]: the oldest frames of a link are lost",
    "swap": "swap A>B: the two oldest frames change places",
    "double": "double A>B: the oldest frame comes twice",
    "queue": "queue A>B: what is on its way",
    "sync": "sync NODE: one fdatasync of all that was written",
    "hang": "hang NODE: its fdatasync does not return any more",
    "unhang": "unhang NODE",
    "pause": "pause NODE: SIGSTOP; it takes nothing and notices nothing",
    "resume": "resume NODE",
    "kill": "kill NODE [keeping COUNT]: SIGKILL; of what was not synced only COUNT operations are left",
    "restart": "restart NODE",
    "wipe": "wipe NODE [rebuild]: a killed node gets an empty data directory",
    "cut": "cut A>B | cut NODE: frames vanish on that link, or to and from that node",
    "heal": "heal: no cuts any more",
    "unlink": "unlink A>B: the link is lost, and A knows",
    "link": "link A>B: the link is opened again",
    "stand": "stand NODE: become candidate without a poll",
    "transfer": "transfer NODE TO: ask NODE to transfer its leadership",
    "show": "show: one line a node",
    "log": "log NODE: its message log",
}


class ScriptError(Exception):
    """A command that cannot be understood; the message says what is allowed."""


def describe(message: PeerMessage) -> str:
    """A frame for a reader: its type and fields."""
    fields = []
    for name in told_fields(message):
        value = getattr(message, name)
        if name == "records":
            fields.append("[" + ", ".join(map(_record, value)) + "]")
        elif name == "marks":
            fields.append("marks " + (" ".join(f"{term}@{after}" for term, after in value) or "none"))
        elif name == "identities":
            fields.append(" ".join(f"{node}={identity}" for node, identity in sorted(value.items())))
        else:
            fields.append(f"{name} {_plain(value)}")
    return f"{message.__struct_config__.tag} {', '.join(fields)}".rstrip()


def _record(record: Record) -> str:
    header = record.header
    if isinstance(header, Mark):
        return f"mark of term {header.term}"
    return f"{header.first}" if header.first == header.last else f"{header.first}..{header.last}"


def _plain(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, tuple):
        return f"({', '.join(map(str, value))})"
    return str(value)


class Told(Cluster):
    """A cluster that tells what it does, line by line.

    Args:
        tell: takes each line.
    """

    def __init__(self, size: int, tell: Callable[[str], None], **settings: Any) -> None:
        self.tell = tell
        self.shown: set[str] = set()
        """Types of frames to report when they arrive; "all" for every type."""
        super().__init__(size, start=False, **settings)
        self.on_perform = self._told

    def _told(self, node_id: NodeId, fx: Effects) -> None:
        for event in fx.emit:
            if not isinstance(event, QUIET):
                self.tell(f"{node_id}: {event.line()}")
        batches = [record for record in fx.deliver if isinstance(record.header, Batch)]
        if batches:
            lines = [decode_node_line(line) for record in batches for line in bytes(record.body).splitlines()]
            payloads = " ".join(line.payload for line in lines if isinstance(line, Line))
            first, last = batches[0].header.first, batches[-1].header.last  # type: ignore[union-attr]
            self.tell(f"{node_id}: delivers {first if first == last else f'{first}..{last}'}: {payloads}")
        for refusal in fx.reply:
            expected = f", expected {refusal.expected}" if refusal.expected else ""
            self.tell(f"{node_id}: refuses {refusal.session}@{refusal.first}: {refusal.reason}{expected}")
        if fx.halt:
            self.tell(f"{node_id}: HALTS: {fx.halt}")

    def deliver(self, sender: NodeId, receiver: NodeId) -> PeerMessage | None:
        queue = self.queues[sender, receiver]
        if queue and receiver not in self.paused and self.shown & {"all", str(queue[0].__struct_config__.tag)}:
            self.tell(f"{sender} > {receiver}  {describe(queue[0])}")
        return super().deliver(sender, receiver)


class Transcript:
    """Runs the commands of one script."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.cluster = Told(1, self.lines.append)
        self.last_n: dict[str, int] = {}

    def command(self, text: str) -> list[str]:
        """Do one command; returns the lines that it led to.

        Raises:
            ScriptError: unknown command or arguments.
        """
        name, *arguments = text.split()
        if name not in COMMANDS:
            raise ScriptError(f"{name!r} is not one of {', '.join(COMMANDS)}")
        self.lines.clear()
        try:
            getattr(self, f"do_{name}")(*arguments)
        except (TypeError, ValueError, KeyError, IndexError, AttributeError) as error:
            raise ScriptError(f"{text!r} ({error}); allowed: {COMMANDS[name]}") from error
        return list(self.lines)

    # ---- the cluster --------------------------------------------------------------------------------

    def do_start(self, size: str, _nodes: str, *settings: str) -> None:
        priorities: dict[NodeId, int] = {}
        limits: dict[str, int] = {}
        for setting in settings:
            name, _, number = setting.partition("=")
            if name.isdigit():
                priorities[int(name)] = int(number)
            elif name != "priority":
                limits[name] = int(number)
        sessions = limits.pop("max_sessions", 1000)
        self.cluster = Told(
            int(size), self.lines.append, priorities=priorities, limits=limits, max_sessions=sessions, through_wire=True
        )
        for i in self.cluster.ids:
            self.cluster.start(i)

    def do_given(self, *arguments: str) -> None:
        self.do_start(*arguments)
        self.cluster.run(1)
        leader = self.cluster.leader()
        self.lines[:] = [f"{leader} leads term {self.cluster.node(leader).state.term}"]

    def do_kill(self, node: str, _keeping: str = "", count: str = "0") -> None:
        self.cluster.kill(int(node), int(count))
        self._end_turns()

    def do_restart(self, node: str) -> None:
        self.cluster.start(int(node))

    def do_wipe(self, node: str, rebuild: str = "") -> None:
        self.cluster.wipe(int(node), rebuild=rebuild == "rebuild")

    def do_pause(self, node: str) -> None:
        self.cluster.paused.add(int(node))

    def do_resume(self, node: str) -> None:
        self.cluster.paused.remove(int(node))

    def do_hang(self, node: str) -> None:
        self.cluster.hung.add(int(node))

    def do_unhang(self, node: str) -> None:
        self.cluster.hung.remove(int(node))

    def do_cut(self, what: str) -> None:
        if ">" in what:
            self.cluster.cut.add(_pair(what))
        else:
            self.cluster.cut |= {pair for pair in self.cluster.queues if int(what) in pair}

    def do_heal(self) -> None:
        self.cluster.cut.clear()

    def do_unlink(self, pair: str) -> None:
        self.cluster.unlink(*_pair(pair))
        self._end_turns()

    def do_link(self, pair: str) -> None:
        self.cluster.link(*_pair(pair))
        self._end_turns()

    def do_stand(self, node: str) -> None:
        fx = Effects()
        become_candidate(self.cluster.node(int(node)).state, self.cluster.now, fx)
        self.cluster.perform(int(node), fx)

    def do_transfer(self, node: str, to: str) -> None:
        self.cluster.step(int(node), int(node), Transfer(int(to)))
        self._end_turns()

    # ---- clients, time, disks -----------------------------------------------------------------------

    def do_submit(self, node: str, session: str, *payloads: str) -> None:
        session, _, first = session.partition("@")
        n = int(first) if first else self.last_n.get(session, 0) + 1
        self.last_n[session] = n + len(payloads) - 1
        self.cluster.submit(int(node), session, n, *payloads)
        self._end_turns()

    def do_run(self, seconds: str, *shown: str) -> None:
        self._showing(shown)
        self.cluster.run(_seconds(seconds))
        self.cluster.shown = set()

    def do_settle(self, *shown: str) -> None:
        self._showing(shown)
        self.cluster.settle()
        self.cluster.shown = set()

    def do_wait(self, seconds: str) -> None:
        cluster = self.cluster
        end = cluster.now + _seconds(seconds)
        while (due := min(cluster.node(i).next_deadline() for i in cluster.awake())) <= end:
            cluster.now = max(cluster.now, due)
            self._end_turns()
        cluster.now = end

    def do_sync(self, node: str) -> None:
        self.cluster.sync(int(node))
        self._end_turns()

    def _showing(self, shown: tuple[str, ...]) -> None:
        if shown and shown[0] != "showing":
            raise ValueError(shown[0])
        self.cluster.shown = set(shown[1:])

    def _end_turns(self) -> None:
        for i in self.cluster.awake():
            while self.cluster.node(i).next_deadline() <= self.cluster.now:
                self.cluster.tick(i)

    # ---- frames -------------------------------------------------------------------------------------

    def do_deliver(self, pair: str, count: str = "1") -> None:
        sender, receiver = _pair(pair)
        self.cluster.shown = {"all"}
        for _ in range(self._count(pair, count)):
            self.cluster.deliver(sender, receiver)
            self._end_turns()
        self.cluster.shown = set()

    def do_drop(self, pair: str, count: str = "1") -> None:
        queue = self.cluster.queues[_pair(pair)]
        for _ in range(self._count(pair, count)):
            self.lines.append(f"{pair.replace('>', ' > ')}  lost: {describe(queue.popleft())}")

    def do_swap(self, pair: str) -> None:
        queue = self.cluster.queues[_pair(pair)]
        queue[0], queue[1] = queue[1], queue[0]

    def do_double(self, pair: str) -> None:
        queue = self.cluster.queues[_pair(pair)]
        queue.appendleft(queue[0])

    def do_queue(self, pair: str) -> None:
        self.lines += [f"{pair.replace('>', ' > ')}  {describe(frame)}" for frame in self.cluster.queues[_pair(pair)]]

    def _count(self, pair: str, count: str) -> int:
        waiting = len(self.cluster.queues[_pair(pair)])
        wanted = waiting if count == "all" else int(count)
        if not 1 <= wanted <= waiting:
            raise ValueError(f"{waiting} frames are on their way")
        return wanted

    # ---- looking ------------------------------------------------------------------------------------

    def do_show(self) -> None:
        for i, member in self.cluster.members.items():
            if member.node is None:
                self.lines.append(f"{i}  down")
                continue
            state = member.node.state
            whom = f" of {state.leader_id}" if member.node.role_name == "follower" and state.leader_id else ""
            durable = "" if state.durable == state.log.position else f", durable {_plain(tuple(state.durable))}"
            self.lines.append(
                f"{i}  {member.node.role_name}{whom} in term {state.term}, "
                f"log {_plain(tuple(state.log.position))}{durable}, "
                f"committed {state.commit_seq}, delivered {state.delivered_seq}"
            )

    def do_log(self, node: str) -> None:
        self.lines += [f"{line.seq_no} {line.msg_id} {line.payload}" for line in self.cluster.lines(int(node))]


def _pair(text: str) -> tuple[NodeId, NodeId]:
    sender, receiver = text.split(">")
    return int(sender), int(receiver)


def _seconds(text: str) -> float:
    if not text.endswith("s"):
        raise ValueError(text)
    return float(text[:-1])


def replay(script: str, name: str) -> str:
    """The script with the output that its commands lead to now.

    Raises:
        ScriptError: with `name` and line.
    """
    transcript = Transcript()
    out: list[str] = []
    for number, line in enumerate(script.splitlines(), 1):
        if line.startswith("> "):
            try:
                told = transcript.command(line[2:])
            except ScriptError as error:
                raise ScriptError(f"{name}:{number}: {error}") from error
            out += [line, *(f"  {each}" for each in told)]
        elif line.startswith("#") or not line.strip():
            out.append(line)
        elif not line.startswith("  "):
            raise ScriptError(f"{name}:{number}: {line!r} is neither `# comment`, `> command` nor `  output`")
    return "\n".join(out) + "\n"


def scripts(root: Path) -> list[Path]:
    return sorted(root.glob("*/*.txt"))
