"""One node's machine in a live run: its process, disk and clock. Orders control disk and clock without root.

Power losses and faults of disks and clocks need a layer between the node and its disk (lab.live.layers). Changed bytes,
lost files and a rebuild need only a dead node.
"""

from __future__ import annotations

import random
import shutil
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from lab.course.machine import MachineDisk
from lab.live.children import last_line
from lab.live.layers import DiskLayer
from lab.live.observation import EventCount
from lab.live.processes import NodeProcess
from lab.rows import NodeExit
from lab.rundir import RunDir
from lab.steps.book import FaultBook
from lab.steps.damage import Loss
from lab.steps.machine import RunFailed
from lab.steps.orders import Counts, Orders
from nodeproc.core.messages import NodeId
from nodeproc.disk import recovery, wal

DISK_FOLDERS = (wal.FOLDER, recovery.LINES_FOLDER)
"""The folders of the data of the lab's own node. Its events and its log are evidence, and stay with a lost disk."""


class LiveFiles:
    """See lab.course.machine.NodeFiles.

    Args:
        layer: knows what a power loss would leave; None: there is none.
        spared: of another program, beginnings of names that are not on the disk; folders end with `/`. None: the node
            is the lab's own.
    """

    def __init__(self, root: Path, layer: DiskLayer | None, spared: tuple[str, ...] | None = None) -> None:
        self._root, self._layer, self._spared = root, layer, spared

    def all_names(self) -> list[str]:
        if self._spared is None:
            paths = [path for folder in DISK_FOLDERS for path in sorted((self._root / folder).glob("*"))]
        else:
            paths = sorted(path for top in self._disk() for path in (top, *top.rglob("*")) if path.is_file())
        return [str(path.relative_to(self._root)) for path in paths]

    def contents(self, names: Iterable[str]) -> dict[str, bytes]:
        return {name: (self._root / name).read_bytes() for name in names if (self._root / name).is_file()}

    def rot(self, name: str, at: int, value: int) -> None:
        with (self._root / name).open("r+b") as file:
            file.seek(at)
            file.write(bytes([value]))

    def remove(self, name: str) -> None:
        (self._root / name).unlink()
        if self._layer is not None:
            self._layer.lost(name)

    def replace(self, contents: dict[str, bytes]) -> None:
        self.wipe()
        for folder in DISK_FOLDERS if self._spared is None else ():
            (self._root / folder).mkdir()
        for name, data in contents.items():
            (self._root / name).parent.mkdir(parents=True, exist_ok=True)
            (self._root / name).write_bytes(data)

    def wipe(self) -> int:
        """Delete everything; return the number of bytes."""
        size = 0
        for path in self._disk():
            size += sum(each.lstat().st_size for each in (path, *path.rglob("*")) if not each.is_dir())
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()
        if self._spared is not None:
            (self._root / recovery.LINES_FOLDER).mkdir(exist_ok=True)  # Programs are given a path inside.
        if self._layer is not None:
            self._layer.begin_anew()
        return size

    def _disk(self) -> list[Path]:
        """Return the files and folders that are lost with the disk."""
        if self._spared is None:
            return [path for folder in DISK_FOLDERS if (path := self._root / folder).is_dir()]
        return [path for path in self._root.iterdir() if not f"{path.name}/".startswith(self._spared)]


class LiveMachine(MachineDisk):
    """See lab.steps.machine.Machine.

    Args:
        role: returns the role in the node's latest STATUS; "" if it did not answer the latest question.
        layer: obeys orders for the node's disk and clock (lab.steps.orders); None: there are none.
        spared: see LiveFiles.
    """

    def __init__(
        self,
        process: NodeProcess,
        run: RunDir,
        book: FaultBook,
        role: Callable[[], str],
        seed: int,
        layer: DiskLayer | None,
        spared: tuple[str, ...] | None = None,
    ) -> None:
        super().__init__(process.node)
        self.process = process
        self.end, self.doomed, self.ended = process.end, process.doomed, process.ended
        self.transfer = process.transfer
        self.freeze, self.wake, self.ready, self.state = process.pause, process.wake, process.ready, process.state
        self._run, self._book, self._reported_role = run, book, role
        self._rng = random.Random(f"{seed} disk {self.node}")
        self.layer = layer
        self._files = LiveFiles(run.node_dir(self.node), layer, spared)
        self._answered = 0
        """Number of the latest process that has answered, from 1."""
        self._removals = EventCount({run.events(self.node): 0}, "node_removed", {})
        process.on_end, process.on_leave = self._on_end, self._on_leave

    @property
    def files(self) -> LiveFiles:
        return self._files

    def close(self) -> None:
        """Release the layer."""
        if self.layer is not None:
            self.layer.close()

    # ---- its process -----------------------------------------------------------------------------

    @property
    def starts(self) -> int:
        return self.process.starts

    @property
    def running(self) -> bool:
        return self.process.running

    @property
    def paused(self) -> bool:
        return self.process.paused

    @property
    def exits(self) -> Sequence[NodeExit]:
        return self.process.exits

    @property
    def role(self) -> str:
        return (self._reported_role() or "unknown") if self.running else "down"

    def identity(self) -> dict[str, Any]:
        return {"pid": self.process.pid}

    async def start(self, *, rebuild: bool) -> float | None:
        """Start the node; return the seconds until its first answer.

        None: it exited because of a disk fault, or could not start again, which is a finding of A10.
        """
        self.process.start(*(["--rebuild"] if rebuild else []))
        try:
            took = await self.process.ready()
        except RunFailed:
            if not self.running and (self.exits[-1].because or self.starts > 1):
                return None
            raise  # The lab has configured it wrongly.
        self._book.causes.survived(self.node)
        self._answered = self.starts
        return took

    def says(self) -> str:
        return last_line(self._run.node_log(self.node))

    def _on_end(self, node: NodeId, code: int) -> str:
        """Return the disk fault that explains an exit with an error; "" if none does."""
        role = "down"
        if self._answered == self.starts:  # It may not have answered since the disk fault.
            role = self._book.role_before(self) or self.role
        return self._book.ended(self, code, role)

    def _on_leave(self, node: NodeId) -> bool:
        """Add a row if the process has ended because the node was removed; return whether it was. Rule: G5."""
        before = self._removals.count
        has_left = self._removals.update() > before
        if has_left:
            self._book.left(self, 0, self.role)
        return has_left

    # ---- its disk and its clock ------------------------------------------------------------------

    def order(self, **changes: Any) -> None:
        if self.layer is None:
            assert Orders(**changes) == Orders(), f"node {self.node} obeys no orders, found {changes}"
        else:
            self.layer.order(self.layer.orders()._replace(**changes))

    def set_clock(self, drift: float, forward_s: float = 0.0) -> None:
        if self.layer is not None:
            before, now = self.layer.orders(), time.monotonic()
            if drift != before.drift or forward_s:
                wall_s = before.wall_s + forward_s
                self.order(drift=drift, since=now, base=before.monotonic(now), wall_s=wall_s)

    def counts(self) -> Counts:
        return Counts() if self.layer is None else self.layer.counts()

    def tearable(self) -> bool:
        assert self.layer is not None
        return self.layer.tearable()

    def cut_power(self, torn: bool, *, everything: bool = False) -> Loss:
        assert self.layer is not None
        return self.layer.lose_power(self._rng, torn=torn, everything=everything)

    def wipe(self) -> int:
        return self._files.wipe()

    async def copy(self) -> int:
        stopped = self.running and not self.paused and await self.freeze()
        size = self.take_copy()
        if stopped:
            self.wake()
        return size
