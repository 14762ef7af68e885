"""The network of a simulated host: directed links between nodes, which carry whole frames, and client connections.

lab.course.links applies the rules, as in the live proxy. Without a rule a frame takes a small random time and stays in
order, as on TCP. The frames under way are lost when a link breaks. A corrupted frame breaks the link where it arrives:
a node that finds a wrong CRC closes the connection.

A cut drops packets, which TCP retransmits at growing intervals. Frames sent during the cut, and all frames after them,
arrive at the first retransmission after the heal. If the sender opens a new connection before that (L1), they are lost.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple, cast

from lab.course.client_links import ClientLink, ClientPort
from lab.course.links import NEVER, Handling, Link
from lab.sim.frames import Frames
from lab.sim.loop import VirtualLoop
from lab.steps.rules import CLIENTS, LinkCounts, Pair, Rule
from nodeproc.core.messages import LinkDown, NodeId, PeerMessage
from nodeproc.frames import encode_frame
from nodeproc.net.silence import LOOKS, TIMEOUTS, Silence

if TYPE_CHECKING:
    from lab.sim.node import SimNode

LEAST_DELAY_S: Final = 0.00005
MOST_DELAY_S: Final = 0.0006
"""A frame's travel time between two processes of one host."""
DIAL_EVERY_S: Final = 0.05
"""Mean time between two attempts of a node to open a link."""
REPEAT_FIRST_S: Final = 0.2
REPEAT_MOST_S: Final = 120.0
"""Linux repeats an unacknowledged TCP packet after the first time, then doubles the time up to the second."""
OWN_PORT: Final = 100
"""A node's id plus this number is the node's own port, if clients reach it through a ClientPort."""
HIGH_BYTES: Final = 256 << 10
"""Default limit of the bytes that one end of a client connection has written and the other has not read."""


class Cargo(NamedTuple):
    """A frame on a link that has a rule. epoch: of the connection on which it was sent."""

    epoch: int
    message: PeerMessage
    spoilt: bool = False


def _no_pieces(cargo: Cargo, size: int) -> list[Cargo]:
    raise AssertionError(f"{cargo} in pieces of {size} bytes: Scenario.sim_refusals() refuses `chunk`")


FRAMES: Handling[Cargo] = Handling(
    size=lambda cargo: sum(map(len, encode_frame(cargo.message))),
    spoil=lambda cargo, rng: cargo._replace(spoilt=True),
    pieces=_no_pieces,
)


class NodeLink:
    """One directed link from `source` to `to`."""

    def __init__(self, network: Network, source: NodeId, to: NodeId) -> None:
        self._network, self.source, self.to = network, source, to
        self._loop = network.loop
        self._rng = random.Random(f"{network.seed} way {source} {to}")
        self.up = False
        self._epoch = 0
        """Number of the connection; frames of an older connection are lost."""
        self._free_at = 0.0
        self._ruled = Link(random.Random(f"{network.seed} {source} {to}"), FRAMES)
        """Carries the frames while the link has a rule."""
        self._woken_at = NEVER
        self._stalled: list[PeerMessage] = []
        """Frames dropped by a cut, and frames sent behind them: TCP sends all of them again."""
        self._silence = Silence()

    @property
    def rule(self) -> Rule | None:
        return self._ruled.rule

    @property
    def counts(self) -> LinkCounts:
        return self._ruled.counts

    @property
    def shut(self) -> bool:
        """True if no connection can be opened: it is refused, or one direction drops all packets."""
        return self.refuses or self.silent or self._network.links[self.to, self.source].silent

    @property
    def silent(self) -> bool:
        """True if all packets are dropped."""
        return self.rule is not None and self.rule.silent

    @property
    def refuses(self) -> bool:
        return self.rule is not None and self.rule.refuse

    def set_rule(self, rule: Rule | None) -> None:
        self._ruled.set_rule(rule, self._loop.now)
        if self.refuses:
            self.counts.reset += self.lose(gone=False)
        self._wake()

    # ---- connections -------------------------------------------------------------------------------

    def _ends(self) -> tuple[SimNode | None, SimNode | None]:
        """Return the sender and the receiver; None for one that does not run."""
        nodes = self._network.nodes
        return nodes.get(self.source), nodes.get(self.to)

    def open(self) -> None:
        """Connect, if both nodes run, and notify both."""
        near, far = self._ends()
        if near is None or far is None:
            return
        self._forget()
        self.up, self._free_at = True, 0.0
        near.turn.take(self.to, far.link_up(self.source, dialled=True))
        far.turn.take(self.source, near.link_up(self.to, dialled=False))

    def dial(self) -> None:
        """Try to connect now, and again until the attempt succeeds or the sender has ended."""
        near, far = self._ends()
        if self.up or near is None or self.to in self._network.absent:
            return
        self.counts.refused += self.refuses
        apart = far is None or far.paused or near.paused or self.shut or near.refuses(far) or far.refuses(near)
        if apart or not self._is_wanted(near):
            self._loop.post(self._loop.now + DIAL_EVERY_S * (0.5 + self._rng.random()), self.dial)
        else:
            self.open()

    def _is_wanted(self, near: SimNode) -> bool:
        """Return whether the sender dials: the receiver is a member as far as it knows, or has dialled it."""
        return self.to in near.core.state.peers or self._network.links[self.to, self.source].up

    def _forget(self) -> None:
        """Lose the frames under way on the present connection."""
        self._epoch += 1
        self._ruled.clear()
        self._stalled.clear()

    def reset(self) -> int:
        """Break the connection; return how many there were, 0 or 1."""
        return int(self.lose(gone=False))

    def lose(self, *, gone: bool) -> bool:
        """Break the connection, and let the sender dial again; return whether there was a connection.

        gone: the connection cannot be opened again at once, so that the sender is notified of the loss.
        """
        if not self.up:
            return False
        self.up = False
        self._forget()
        near, _ = self._ends()
        if near is not None:
            if gone or self.shut:
                near.turn.take(self.to, LinkDown())
            self._loop.post(self._loop.now + self._rng.uniform(LEAST_DELAY_S, MOST_DELAY_S), self.dial)
        return True

    def carries(self, epoch: int) -> bool:
        """Return whether the connection of this number is the present one."""
        return epoch == self._epoch

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
        if self._ruled.rule is not None:
            self._ruled.enter(str(type(message).__struct_config__.tag), Cargo(self._epoch, message), now)
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
        """Keep a frame whose packets a cut drops."""
        self._stalled.append(message)
        if len(self._stalled) == 1:
            self._silence = Silence()
            self._loop.post(self._loop.now + REPEAT_FIRST_S, self._repeat, self._epoch, REPEAT_FIRST_S)
            self._loop.post(self._loop.now + self._poll_s(), self._poll, self._epoch)

    def _repeat(self, epoch: int, waited: float) -> None:
        """TCP sends the dropped frame again, and all frames behind it follow."""
        if epoch != self._epoch:
            return
        if self.silent:
            wait = min(2 * waited, REPEAT_MOST_S)
            self._loop.post(self._loop.now + wait, self._repeat, epoch, wait)
            return
        stalled, self._stalled = self._stalled, []
        for message in stalled:
            self._pass_on(message)

    def _poll_s(self) -> float:
        """Return the time between two polls whether the receiver has acknowledged anything."""
        return TIMEOUTS * self._network.nodes[self.source].config.election_timeout_ms / 1000 / LOOKS

    def _poll(self, epoch: int) -> None:
        """If the receiver is silent, open a new connection, as nodeproc.net.transport does. Rule: L1."""
        if epoch != self._epoch or not self._stalled:
            return
        near, far = self._network.nodes[self.source], self._network.nodes[self.to]  # Both run: the link is up.
        if near.paused or not self._silence.look(True, False) or self.shut or far.paused:
            self._loop.post(self._loop.now + self._poll_s(), self._poll, epoch)
        elif near.refuses(far) or far.refuses(near):
            self.lose(gone=True)
        else:
            self.open()

    def _wake(self) -> None:
        due = self._ruled.next_due()
        if due < self._woken_at:
            self._woken_at = due
            self._loop.post(due + LEAST_DELAY_S, self._leave)

    def _leave(self) -> None:
        self._woken_at = NEVER
        for cargo in self._ruled.leave(self._loop.now):
            if not cargo.spoilt:
                self._arrive(cargo.epoch, cargo.message)
            elif cargo.epoch == self._epoch:
                self.lose(gone=False)
        self._wake()


class Network:
    """All links between nodes, and the ports at which clients connect (port = node id).

    Args:
        client_rules: clients connect through a lab.course.client_links.ClientPort, as in a live run with a proxy.
        newcomers: nobody dials these nodes until they were started.
    """

    def __init__(
        self,
        loop: VirtualLoop,
        seed: int,
        ids: Sequence[NodeId],
        *,
        client_rules: bool = False,
        newcomers: Sequence[NodeId] = (),
    ) -> None:
        self.loop, self.seed = loop, seed
        self.nodes: dict[NodeId, SimNode] = {}
        """The processes that run."""
        self.absent = set(newcomers)
        self.links = {(a, b): NodeLink(self, a, b) for a in ids for b in ids if a != b}
        self.frames = 0
        self.record: Frames | None = None
        """Records every frame; None: frames are not recorded."""
        self._rng = random.Random(f"{seed} clients")
        self._client_ports: dict[NodeId, ClientPort] = {}
        for node in ids if client_rules else ():
            rng = random.Random(f"clients {seed} {node}")
            self._client_ports[node] = ClientPort(("sim", OWN_PORT + node), rng, lambda: loop.now)
        loop.dialer = self._dial

    def link(self, pair: Pair) -> NodeLink | ClientLink:
        """Return the link from one node to another, or between clients and a node."""
        source, to = pair
        if source == CLIENTS:
            return self._client_ports[to].to_node
        if to == CLIENTS:
            return self._client_ports[source].from_node
        return self.links[pair]

    def started(self, node: SimNode) -> None:
        """A process runs: it dials its peers, and they dial it."""
        self.nodes[node.node] = node
        self.absent.discard(node.node)
        for pair, link in self.links.items():
            if node.node in pair and not link.up:
                self.loop.post(self.loop.now + self._rng.uniform(LEAST_DELAY_S, 2 * MOST_DELAY_S), link.dial)

    def ended(self, node: NodeId) -> None:
        """A process has ended: its links break."""
        self.nodes.pop(node, None)
        for pair, link in self.links.items():
            if node in pair:
                link.lose(gone=True)

    async def _dial(self, factory: Callable[[], asyncio.BaseProtocol], port: int) -> tuple[Any, Any]:
        await asyncio.sleep(self._rng.uniform(LEAST_DELAY_S, MOST_DELAY_S))
        if port in self._client_ports:
            rng = random.Random(self._rng.getrandbits(64))
            return join(self.loop, rng, factory(), self._client_ports[port].accept())[0]
        node = self.nodes.get(port % OWN_PORT)
        if node is None:
            raise ConnectionRefusedError(111, "Connection refused")
        while node.paused:  # The kernel accepts; the process is notified when it is resumed.
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
    """Connect two protocols; the far one is notified first.

    Args:
        gate: returns False while the far end's process is paused: bytes that arrive there wait.

    Returns:
        what create_connection returns for the near end, and the far transport.
    """
    assert isinstance(near, asyncio.Protocol)
    ends = SimTransport(loop, rng, near), SimTransport(loop, rng, far)
    ends[0].far, ends[1].far = ends[1], ends[0]
    ends[1].gate = gate
    far.connection_made(cast(asyncio.Transport, ends[1]))
    near.connection_made(cast(asyncio.Transport, ends[0]))
    return (ends[0], near), ends[1]


class SimTransport:
    """One end of a client's connection. Bytes arrive complete, in order, after a small random time.

    It has no base class, for the reason that VirtualLoop has none.

    As with TCP, an end that is closed does not close the other end: the bytes sent before still arrive there, and then
    EOF, once that end's process runs and reads. Bytes sent to a closed end are answered with a reset.
    """

    def __init__(self, loop: VirtualLoop, rng: random.Random, protocol: asyncio.Protocol) -> None:
        self._loop, self._rng, self.protocol = loop, rng, protocol
        self.far: SimTransport
        self.gate: Callable[[], bool] = lambda: True
        """Returns False while this end's process is paused: bytes that arrive wait."""
        self.closed = self._ended = False
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
        return self.closed

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if self.closed or not data:
            return
        if self.far.closed:
            self._loop.post(self._loop.now + 2 * LEAST_DELAY_S, self.close)
            return
        self._on_way += len(data)
        due = self._loop.now + self._rng.uniform(LEAST_DELAY_S, MOST_DELAY_S)
        self._free_at = due = max(due, self._free_at)
        self._loop.post(due, self.far._arrive, bytes(data))
        if self._on_way > self._high and not self._choked:
            self._choked = True
            self._loop.call_soon(self._pause)

    def _pause(self) -> None:
        if self._choked and not self.closed:
            self.protocol.pause_writing()

    def writelines(self, list_of_data: Any) -> None:
        self.write(b"".join(list_of_data))

    def pause_reading(self) -> None:
        self._reading = False

    def resume_reading(self) -> None:
        self._reading = True
        self._loop.call_soon(self.pump)

    def _arrive(self, data: bytes) -> None:
        if not self.closed:
            self._unread.append(data)
            self.pump()

    def pump(self) -> None:
        """Hand the bytes that have arrived to the protocol, if it reads and its process runs."""
        while self._unread and self._reading and not self.closed and self.gate():
            data, far = self._unread.popleft(), self.far
            far._on_way -= len(data)
            if far._choked:
                far._perhaps_resume()
            self.protocol.data_received(data)
        if self._ended and not self.closed and self.gate():
            if self._choked:
                self.close()  # It has sent bytes that will never be read.
            elif self._reading and not self._unread:
                self._ended = False
                if not self.protocol.eof_received():
                    self.close()

    def _perhaps_resume(self) -> None:
        if self._on_way * 2 < self._high:
            self._choked = False
            if not self.closed:
                self._loop.call_soon(self.protocol.resume_writing)

    def close(self) -> None:
        """Close this end. The bytes written before still arrive at the other end, then EOF."""
        if not self.closed:
            self.closed = True
            self._loop.call_soon(self.protocol.connection_lost, None)
            due = max(self._free_at, self._loop.now) + self._rng.uniform(LEAST_DELAY_S, MOST_DELAY_S)
            self._loop.post(due, self.far._hear_end)

    def abort(self) -> None:
        """The same: in asyncio, too, the system still sends the bytes that were written."""
        self.close()

    def _hear_end(self) -> None:
        self._ended = True
        self.pump()
