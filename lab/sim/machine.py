"""One node's machine in a simulation: its process, and a disk and a clock that obey orders."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Iterable
from typing import Any

from lab.course.machine import MachineDisk
from lab.rows import NodeExit
from lab.sim.loop import VirtualLoop
from lab.sim.node import SimNode
from lab.steps.damage import Loss, Rot
from lab.steps.orders import Counts

LOOK_S = 0.001


class SimFilesOf:
    """See lab.course.machine.NodeFiles; of the disk that the node has at each moment."""

    def __init__(self, sim: SimNode) -> None:
        self._sim = sim

    def names(self) -> list[str]:
        return list(self._sim.disk.files.contents())

    def contents(self, names: Iterable[str]) -> dict[str, bytes]:
        whole = self._sim.disk.files.contents()
        return {name: whole[name] for name in names if name in whole}

    def change(self, rot: Rot) -> None:
        self._sim.disk.files.rot(rot.name, rot.at, rot.after)

    def remove(self, name: str) -> None:
        self._sim.disk.files.remove(name)

    def replace(self, contents: dict[str, bytes]) -> None:
        files = self._sim.disk.files
        for name in files.contents().keys() - contents.keys():
            files.remove(name)
        for name, data in contents.items():
            files.put(name, data)

    def wipe(self) -> int:
        size = self._sim.disk.files.used()
        self._sim.disk.replace()
        return size


class SimMachine(MachineDisk):
    """See lab.steps.machine.Machine."""

    def __init__(self, sim: SimNode, loop: VirtualLoop) -> None:
        super().__init__()
        self.sim, self.node = sim, sim.node_id
        self._loop = loop
        self._files = SimFilesOf(sim)
        self.exits: list[NodeExit] = []
        self.reason = ""
        """Why it failed last, as it reported."""

    @property
    def files(self) -> SimFilesOf:
        return self._files

    # ---- its process -----------------------------------------------------------------------------

    @property
    def starts(self) -> int:
        return self.sim.starts

    @property
    def running(self) -> bool:
        return self.sim.running

    @property
    def paused(self) -> bool:
        return self.sim.paused

    @property
    def role(self) -> str:
        if not self.running:
            return "down"
        return "unknown" if self.paused else self.sim.core.role_name

    def identity(self) -> dict[str, Any]:
        return {}

    async def end(self, how: signal.Signals) -> NodeExit | None:
        if how is signal.SIGKILL:
            self.sim.kill()
        else:
            self.sim.stop()
        return None if self.running else self.exits[-1]

    async def freeze(self) -> bool:
        self.sim.pause()
        return True

    def wake(self) -> None:
        self.sim.resume()

    async def ready(self) -> float:
        return 0.0

    def state(self) -> str:
        return "stopped" if self.paused else "running"

    def says(self) -> str:
        return self.reason

    async def doomed(self, patience_s: float) -> bool:
        until = self._loop.now + patience_s
        while self.running and self._loop.now < until:
            await asyncio.sleep(LOOK_S)
        return not self.running

    async def ended(self, patience_s: float) -> bool:
        return not self.running  # What a disk ends has ended at once.

    # ---- its disk and its clock ------------------------------------------------------------------

    def order(self, **changes: Any) -> None:
        self.sim.disk.obey(self.sim.disk.orders._replace(**changes))
        if changes.get("slow_s") == 0.0:
            self.sim.quicken_sync()

    def set_clock(self, drift: float, forward_s: float = 0.0) -> None:
        self.sim.clock.set(drift, forward_s)

    def counts(self) -> Counts:
        return self.sim.disk.counts(self.sim.clock.misread)

    def tearable(self) -> bool:
        return self.sim.disk.tearable()

    def cut_power(self, torn: bool) -> Loss:
        return self.sim.lose_power(torn)

    async def copy(self) -> int:
        return self.take_copy()
