"""One node's machine in a simulation: the node's processes, and a disk and a clock controlled by orders."""

from __future__ import annotations

import asyncio
import random
import signal
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final

from lab.course.machine import MachineDisk
from lab.course.simfiles import PowerLost, SimFiles
from lab.rows import NodeExit
from lab.sim.hardware import SimClock, SimDisk
from lab.sim.loop import VirtualLoop
from lab.sim.network import Network
from lab.sim.node import KILLED, SimNode
from lab.sim.promises import Promises
from lab.steps.damage import Loss
from lab.steps.orders import Counts
from nodeproc.config import NodeConfig
from nodeproc.core.events import Event, Failed
from nodeproc.core.messages import NodeId, Record
from nodeproc.disk.storage import Storage
from nodeproc.errors import EXIT_CORRUPTION, EXIT_DISK_FAILED, ChatError, CorruptionError

POLL_S: Final = 0.001
STOP_PATIENCE_S: Final = 10.0
"""After SIGTERM; then SIGKILL is sent."""


class SimMachine(MachineDisk):
    """See lab.steps.machine.Machine. The disk and the clock outlive the processes.

    Args:
        on_event: called with each event: (node, event).
        on_delivered: called with the records that the node delivers: (node, records).
        on_end: called when a process ends or refuses to start: (node, exit code, ended by a signal or power loss).
        promises: is fed with the state and the frames of each process.
    """

    def __init__(
        self,
        loop: VirtualLoop,
        network: Network,
        config: NodeConfig,
        seed: int,
        on_event: Callable[[NodeId, Event], None],
        on_delivered: Callable[[NodeId, Sequence[Record]], None],
        on_end: Callable[[NodeId, int, bool], None],
        promises: Promises,
    ) -> None:
        super().__init__(config.node_id)
        self.loop, self.network, self.config = loop, network, config
        self.on_event, self.on_delivered, self.on_end, self.promises = on_event, on_delivered, on_end, promises
        self.rng = random.Random(f"{seed} node {self.node}")
        self.disk = SimDisk(self.rng, f"{seed} disk {self.node}")
        self.clock = SimClock(loop)
        self.process: SimNode | None = None
        """The latest process, even after its end; None if the latest start failed before it."""
        self.starts = 0
        self.exits: list[NodeExit] = []
        self.reason = ""
        """The reason in the node's latest event `failed`."""

    @property
    def files(self) -> SimFiles:
        return self.disk.files

    @property
    def live(self) -> SimNode:
        """The process, which must be running."""
        assert self.process is not None and self.process.running, f"node {self.node} does not run"
        return self.process

    # ---- its process -----------------------------------------------------------------------------

    @property
    def running(self) -> bool:
        return self.process is not None and self.process.running

    @property
    def paused(self) -> bool:
        return self.process is not None and self.process.paused

    @property
    def role(self) -> str:
        if not self.running:
            return "down"
        return "unknown" if self.paused else self.live.core.role_name

    def identity(self) -> dict[str, Any]:
        return {}

    def start(self, *, rebuild: bool) -> bool:
        """Start a process; return False if it refused to start, for the reason in its event."""
        assert not self.running, f"node {self.node} runs already"
        self.starts += 1
        self.process, self.disk.loss = None, None
        try:
            storage, recovered, events = Storage.open(
                self.files,
                self.node,
                durability="fsync",
                segment_bytes=self.config.limits.segment_bytes,
                max_sessions=self.config.limits.max_sessions,
                rebuild=rebuild,
                new_identity=lambda: f"{self.rng.getrandbits(128):032x}",
                members=self.config.members,
            )
        except PowerLost:
            self.disk.lose_power(torn=False)
            return False
        except ChatError as error:
            self.disk.count_full(error)
            self.on_event(self.node, Failed(str(error)))
            code = EXIT_CORRUPTION if isinstance(error, CorruptionError) else EXIT_DISK_FAILED
            self.on_end(self.node, code, False)
            return False
        self.clock.go_on()
        process = self.process = SimNode(self, storage, recovered)
        process.run(process.begin, events)
        if process.running:
            self.network.started(process)
        return process.running

    async def end(self, how: signal.Signals) -> NodeExit | None:
        process = self.live
        if how is signal.SIGKILL:
            process.end(KILLED, asked=True)
        else:
            self.stop(transfer=True)
            if not await self.doomed(STOP_PATIENCE_S):
                process.end(KILLED, asked=True)
        return self.exits[-1]

    def stop(self, *, transfer: bool) -> None:
        """SIGTERM; a paused process is resumed to receive it. transfer: a leader transfers its leadership first."""
        process = self.live
        if process.paused:
            process.resume()
        process.run(partial(process.terminate, transfer=transfer))

    def transfer(self) -> None:
        self.live.transfer()

    async def freeze(self) -> bool:
        self.live.pause()
        return True

    def wake(self) -> None:
        self.live.resume()

    async def ready(self) -> float:
        return 0.0

    def state(self) -> str:
        return "stopped" if self.paused else "running"

    def says(self) -> str:
        return self.reason

    async def doomed(self, patience_s: float) -> bool:
        until = self.loop.now + patience_s
        while self.running and self.loop.now < until:
            await asyncio.sleep(POLL_S)
        return not self.running

    async def ended(self, patience_s: float) -> bool:
        return not self.running  # A fault of the disk ends a simulated process at once.

    # ---- its disk and its clock ------------------------------------------------------------------

    def order(self, **changes: Any) -> None:
        before, now = self.disk.orders, self.disk.orders._replace(**changes)
        self.disk.obey(now)
        healed = (before.slow_s and not now.slow_s) or (before.hang and not now.hang)
        if healed and self.running:
            self.live.syncing.quicken()  # As in lab.live.inside.faulty_files, a slow sync then returns at once.

    def set_clock(self, drift: float, forward_s: float = 0.0) -> None:
        self.clock.set(drift, forward_s)

    def counts(self) -> Counts:
        return self.disk.counts(self.clock.misread)

    def tearable(self) -> bool:
        return self.disk.tearable()

    def cut_power(self, torn: bool, *, everything: bool = False) -> Loss:
        assert not everything, "other programs are not simulated"
        return self.disk.lose_power(torn)

    async def copy(self) -> int:
        return self.take_copy()

    def wipe(self) -> int:
        size = self.files.used()
        self.disk.replace()
        return size
