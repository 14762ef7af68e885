"""The network of a simulated host: directed links between nodes that carry whole frames, and client connections.

A link treats its frames by the same lab.course.links as the live proxy does; without a rule a frame takes a small
random time and stays in order, as on TCP. What is on its way when a link breaks is lost. A frame that was spoilt breaks
the link where it arrives, as its CRC makes a node do.

A cut drops packets, and TCP repeats them later and later: what was sent during the cut, and all behind it, arrives when
the next repetition is due after the heal, or is lost when the sender's end dials anew before that (rule L1).
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from lab.course.client_links import ClientDoor, ClientWay
from lab.course.links import NEVER, Handling
from lab.course.links import Link as TreatedLink
from lab.sim.frames import Frames
from lab.sim.loop import VirtualLoop
from lab.steps.rules import CLIENTS, LinkCounts, Rule
from nodeproc.core.messages import LinkDown, LinkUp, NodeId, PeerMessage
from nodeproc.frames import encode_frame
from nodeproc.net.silence import LOOKS, TIMEOUTS, Silence

if TYPE_CHECKING:
    from lab.sim.node import SimNode

LEAST_DELAY_S, MOST_DELAY_S = 0.00005, 0.0006
"""A frame's time between two processes of one host."""
DIAL_EVERY_S = 0.05
"""Between two attempts of a node to open a link."""
REPEAT_FIRST_S, REPEAT_MOST_S = 0.2, 120.0
"""Linux's TCP repeats a packet so long after it was sent; the time doubles up to the second number."""
BEHIND_DOOR = 100
"""Added to a node's id it is the port that only the door in front of the node knows."""
HIGH_BYTES = 256 << 10
"""Written by one end of a client connection, not yet read by the other: past it the writer stops; its default."""


class Cargo(NamedTuple):
    """A frame on a link that has a rule."""

    epoch: int
    message: PeerMessage
    spoilt: bool = False


def _no_pieces(cargo: Cargo, size: int) -> list[Cargo]:
    raise AssertionError(f"{cargo} in pieces of {size} bytes: Scenario.sim_refusals() lets no chunk through")


FRAMES: Handling[Cargo] = Handling(
    size=lambda cargo: sum(map(len, encode_frame(cargo.message))),
    spoil=lambda cargo, rng: cargo._replace(spoilt=True),
    pieces=_no_pieces,
)


class Way:
    """One directed link from `source` to `to`."""

    def __init__(self, network: Network, source: NodeId, to: NodeId) -> None:
        self._network, self.source, self.to = network, source, to
        self._loop = network.loop
        self._rng = random.Random(f"{network.seed} way {source} {to}")
        self.up = False
        self._epoch = 0
        """Counts connections; frames of an older one are lost."""
        self._free_at = 0.0
        self._treated = TreatedLink(random.Random(f"{network.seed} {source} {to}"), FRAMES)
        self._woken_at = NEVER
        self._stalled: list[PeerMessage] = []
        """Sent and dropped by a cut, and what was sent behind it: TCP repeats it."""
        self._silence = Silence()

    @property
    def rule(self) -> Rule | None:
        return self._treated.rule

    @property
    def counts(self) -> LinkCounts:
        return self._treated.counts

    @property
    def shut(self) -> bool:
        """No connection can be opened: it is refused, or nothing at all gets through in one direction."""
        return self.refuses or self.silent or self._network.ways[self.to, self.source].silent

    @property
    def silent(self) -> bool:
        """All packets are dropped."""
        return self.rule is not None and self.rule.silent

    @property
    def refuses(self) -> bool:
        return self.rule is not None and self.rule.refuse

    def treat(self, rule: Rule | None) -> None:
        self._treated.set_rule(rule, self._loop.now)
        if self.refuses:
            self.counts.reset += self.lose(gone=False)
        self._wake()

    # ---- connections -------------------------------------------------------------------------------

    def open(self) -> None:
        """Connect, if both ends are there; both are told."""
        nodes = self._network.nodes
        near, far = nodes[self.source], nodes[self.to]
        if not (near.running and far.running):
            return
        self._forget()
        self.up, self._free_at = True, 0.0
        near.turn.take(self.to, LinkUp(far.identity, far.rebuilding, True, far.promised(self.source)))
        far.turn.take(self.source, LinkUp(near.identity, near.rebuilding, False, near.promised(self.to)))

    def dial(self) -> None:
        """Try to connect now, and again until it works or this end is gone."""
        network = self._network
        near, far = network.nodes[self.source], network.nodes[self.to]
        if self.up or not near.running:
            return
        self.counts.refused += self.refuses
        there = far.running and not far.paused and not near.paused and not self.shut
        if there and not near.refuses(far) and not far.refuses(near):
            self.open()
        else:
            self._loop.post(self._loop.now + DIAL_EVERY_S * (0.5 + self._rng.random()), self.dial)

    def _forget(self) -> None:
        """What is on its way on the present connection is lost."""
        self._epoch += 1
        self._treated.clear()
        self._stalled.clear()

    def reset(self) -> int:
        """Break the connection; returns how many there were, 0 or 1."""
        return int(self.lose(gone=False))

    def lose(self, *, gone: bool) -> bool:
        """The connection breaks. gone: it can't be opened again at once, and its near end is told so.

        Returns:
            whether there was one.
        """
        if not self.up:
            return False
        self.up = False
        self._forget()
        near = self._network.nodes[self.source]
        if near.running:
            if gone or self.shut:
                near.turn.take(self.to, LinkDown())
            self._loop.post(self._loop.now + self._rng.uniform(LEAST_DELAY_S, MOST_DELAY_S), self.dial)
        return True

    # ---- frames ------------------------------------------------------------------------------------

    def send(self, message: PeerMessage) -> None:
        if not self.up:
            return
        now, network = self._loop.now, self._network
        if network.record is not None:
            network.record.sent(now, self.source, self.to, message)
        if self._stalled and not self.silent:
            self._stalled.append(message)
            return
        if self._treated.rule is not None:
            self._treated.enter(str(type(message).__struct_config__.tag), Cargo(self._epoch, message), now)
            if self.silent:
                self._stall(message)
            self._wake()
            return
        self._pass_on(message)

    def _pass_on(self, message: PeerMessage) -> None:
        now = self._loop.now
        due = now + LEAST_DELAY_S + self._rng.random() * (MOST_DELAY_S - LEAST_DELAY_S)
        if due < self._free_at:
            due = self._free_at
        self._free_at = due
        self._loop.post(due, self._arrive, self._epoch, message)

    def _arrive(self, epoch: int, message: PeerMessage) -> None:
        if epoch == self._epoch:
            network = self._network
            network.frames += 1
            if network.record is not None:
                network.record.arrived(self._loop.now, self.source, self.to, message)
            network.nodes[self.to].turn.take(self.source, message)

    # ---- a cut, as TCP has it -----------------------------------------------------------------------

    def _stall(self, message: PeerMessage) -> None:
        """A frame whose packets are dropped."""
        self._stalled.append(message)
        if len(self._stalled) == 1:
            self._silence = Silence()
            self._loop.post(self._loop.now + REPEAT_FIRST_S, self._repeat, self._epoch, REPEAT_FIRST_S)
            self._loop.post(self._loop.now + self._look_s, self._look, self._epoch)

    def _repeat(self, epoch: int, waited: float) -> None:
        """TCP sends again what was dropped, and all behind it follows."""
        if epoch != self._epoch:
            return
        if self.silent:
            wait = min(2 * waited, REPEAT_MOST_S)
            self._loop.post(self._loop.now + wait, self._repeat, epoch, wait)
            return
        stalled, self._stalled = self._stalled, []
        for message in stalled:
            self._pass_on(message)

    @property
    def _look_s(self) -> float:
        """Between two looks at whether anything was acknowledged."""
        return TIMEOUTS * self._network.nodes[self.source].config.election_timeout_ms / 1000 / LOOKS

    def _look(self, epoch: int) -> None:
        """As nodeproc.net.transport: who finds the other end silent dials anew beside the connection. Rule: L1."""
        if epoch != self._epoch or not self._stalled:
            return
        nodes = self._network.nodes
        near, far = nodes[self.source], nodes[self.to]
        if near.paused or not self._silence.look(True, False) or self.shut or far.paused:
            self._loop.post(self._loop.now + self._look_s, self._look, epoch)
        elif near.refuses(far) or far.refuses(near):
            self.lose(gone=True)
        else:
            self.open()

    def _wake(self) -> None:
        due = self._treated.next_due()
        if due < self._woken_at:
            self._woken_at = due
            self._loop.post(due + LEAST_DELAY_S, self._leave)

    def _leave(self) -> None:
        self._woken_at = NEVER
        for cargo in self._treated.leave(self._loop.now):
            if not cargo.spoilt:
                self._arrive(cargo.epoch, cargo.message)
            elif cargo.epoch == self._epoch:
                self.lose(gone=False)
        self._wake()


class Network:
    """All ways between all nodes, and where clients knock (port = node id).

    Args:
        doors: clients come to each node through lab.course.client_links, as in a live run whose proxy treats them.
    """

    def __init__(self, loop: VirtualLoop, seed: int, ids: Sequence[NodeId], *, doors: bool = False) -> None:
        self.loop, self.seed = loop, seed
        self.nodes: dict[NodeId, SimNode] = {}
        self.ways = {(a, b): Way(self, a, b) for a in ids for b in ids if a != b}
        self.frames = 0
        self.record: Frames | None = None
        """Told of every frame, where somebody wants to read them."""
        self._rng = random.Random(f"{seed} clients")
        self._doors: dict[NodeId, ClientDoor] = {}
        for node in ids if doors else ():
            rng = random.Random(f"clients {seed} {node}")
            self._doors[node] = ClientDoor(("sim", BEHIND_DOOR + node), rng, lambda: loop.now)
        loop.dialer = self._dial

    def way(self, pair: tuple[NodeId, NodeId]) -> Way | ClientWay:
        """What treats frames from one node to another, or bytes between clients and a node."""
        source, to = pair
        if source == CLIENTS:
            return self._doors[to].to_node
        if to == CLIENTS:
            return self._doors[source].from_node
        return self.ways[pair]

    def started(self, node: NodeId) -> None:
        """A process is there: it dials its peers, and they notice."""
        for (a, b), way in self.ways.items():
            if node in (a, b) and not way.up:
                self.loop.post(self.loop.now + self._rng.uniform(LEAST_DELAY_S, 2 * MOST_DELAY_S), way.dial)

    def ended(self, node: NodeId) -> None:
        """A process is gone: its links break."""
        for (a, b), way in self.ways.items():
            if node in (a, b):
                way.lose(gone=True)

    async def _dial(self, factory: Callable[[], asyncio.BaseProtocol], port: int) -> tuple[Any, Any]:
        await asyncio.sleep(self._rng.uniform(LEAST_DELAY_S, MOST_DELAY_S))
        if port in self._doors:
            rng = random.Random(self._rng.getrandbits(64))
            return join(self.loop, rng, factory(), self._doors[port].accept())[0]
        node = self.nodes[port % BEHIND_DOOR]
        if not node.running:
            raise ConnectionRefusedError(111, "Connection refused")
        while node.paused:  # The kernel accepts; the process will hear of it when it goes on.
            await asyncio.sleep(DIAL_EVERY_S)
            if not node.running:
                raise ConnectionResetError(104, "Connection reset by peer")
        return node.connect(factory())


def join(
    loop: VirtualLoop,
    rng: random.Random,
    near: asyncio.BaseProtocol,
    far: asyncio.Protocol,
    gate: Callable[[], bool] = lambda: True,
) -> tuple[tuple[SimTransport, asyncio.BaseProtocol], SimTransport]:
    """Connect two protocols; the far one hears of it first.

    Args:
        gate: false while the far end's process is stopped: what arrives there waits.

    Returns:
        the near end, as create_connection has it, and the far transport.
    """
    assert isinstance(near, asyncio.Protocol)
    ends = SimTransport(loop, rng, near), SimTransport(loop, rng, far)
    ends[0].far, ends[1].far = ends[1], ends[0]
    ends[1].gate = gate
    far.connection_made(ends[1])
    near.connection_made(ends[0])
    return (ends[0], near), ends[1]


class SimTransport(asyncio.Transport):
    """One end of a client's connection. Bytes arrive whole, in order, after a small random time.

    As with TCP the end of one side is not the end of the other: what was sent still arrives there, then that there is
    no more, once its process runs and reads; what it sends after that comes back as a reset.
    """

    def __init__(self, loop: VirtualLoop, rng: random.Random, protocol: asyncio.Protocol) -> None:
        super().__init__()
        self._loop, self._rng, self.protocol = loop, rng, protocol
        self.far: SimTransport
        self.gate: Callable[[], bool] = lambda: True
        """False while this end's process is stopped: what arrives waits."""
        self._closing = self._lost = self._ended = False
        self._reading, self._choked = True, False
        self._unread: deque[bytes] = deque()
        self._on_way = 0
        self._high = HIGH_BYTES
        self._free_at = 0.0

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self._high = high or HIGH_BYTES

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return default

    def is_closing(self) -> bool:
        return self._closing

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if self._closing or not data:
            return
        if self.far._lost:
            self._loop.post(self._loop.now + 2 * LEAST_DELAY_S, self._reset)
            return
        self._on_way += len(data)
        due = self._loop.now + self._rng.uniform(LEAST_DELAY_S, MOST_DELAY_S)
        self._free_at = due = max(due, self._free_at)
        self._loop.post(due, self.far._arrive, bytes(data))
        if self._on_way > self._high and not self._choked:
            self._choked = True
            self._loop.call_soon(self._pause)

    def _pause(self) -> None:
        if self._choked and not self._lost:
            self.protocol.pause_writing()

    def writelines(self, list_of_data: Any) -> None:
        self.write(b"".join(list_of_data))

    def pause_reading(self) -> None:
        self._reading = False

    def resume_reading(self) -> None:
        self._reading = True
        self._loop.call_soon(self.pump)

    def _arrive(self, data: bytes) -> None:
        if not self._lost:
            self._unread.append(data)
            self.pump()

    def pump(self) -> None:
        """Hand what has arrived to the protocol, if it reads and its process runs."""
        while self._unread and self._reading and not self._closing and self.gate():
            data, far = self._unread.popleft(), self.far
            far._on_way -= len(data)
            if far._choked:
                far._perhaps_resume()
            self.protocol.data_received(data)
        if self._ended and not self._closing and self.gate():
            if self._choked:
                self._reset()  # It has sent what nobody will take.
            elif self._reading and not self._unread:
                self._ended = False
                if not self.protocol.eof_received():
                    self.close()

    def _perhaps_resume(self) -> None:
        if self._on_way * 2 < self._high:
            self._choked = False
            if not self._lost and not self._closing:
                self._loop.call_soon(self.protocol.resume_writing)

    def close(self) -> None:
        """What was written still arrives at the other end, then it is told."""
        self._reset()

    def abort(self) -> None:
        """As asyncio's: the system sends what it has been given all the same."""
        self._reset()

    def _reset(self) -> None:
        """This end is gone."""
        if not self._closing:
            self._closing = self._lost = True
            self._loop.call_soon(self.protocol.connection_lost, None)
            due = max(self._free_at, self._loop.now) + self._rng.uniform(LEAST_DELAY_S, MOST_DELAY_S)
            self._loop.post(due, self.far._hear_end)

    def _hear_end(self) -> None:
        self._ended = True
        self.pump()
