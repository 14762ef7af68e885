"""What stands between a node and its disk in a live run, obeys orders, and takes what a power loss takes.

LedgerLayer: the lab's layer inside the node's process (lab.live.inside), for the lab's own nodes. It also obeys orders
for clocks. SupervisedLayer: a supervisor outside of the process (lab.live.supervise), for any program.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Protocol

from lab.course import damage
from lab.live.inside.ledger import Ledger, NameChange
from lab.live.powerloss import lose_power, tearable
from lab.live.supervise import Supervisor
from lab.live.supervise.contents import Tail
from lab.steps.damage import Loss, Tear
from lab.steps.orders import Counts, Orders
from nodeproc.disk import wal

TAILS: tuple[Tail, ...] = ("none", "prefix", "pages")


class DiskLayer(Protocol):
    """See the module."""

    def orders(self) -> Orders: ...

    def order(self, orders: Orders) -> None:
        """Obey these orders from now on."""

    def counts(self) -> Counts: ...

    def tearable(self) -> bool:
        """See lab.steps.machine.Machine."""

    def lose_power(self, rng: random.Random, *, torn: bool, everything: bool) -> Loss:
        """Replace a dead node's files by what a power loss leaves of them.

        torn: see lab.course.damage.lose_power. everything: all that is not synced is lost.
        """

    def lost(self, name: str) -> None:
        """The lab has removed a file of a dead node, durably."""

    def begin_anew(self) -> None:
        """The lab has replaced the disk of a dead node: everything that is on it is durable."""

    def close(self) -> None:
        """Release the layer at the end of the run."""


class LedgerLayer:
    """The layer in the node's process. data_dir: of the node. ledger: see lab.live.inside.ledger."""

    def __init__(self, data_dir: Path, ledger: Path) -> None:
        self._data_dir, self._path = data_dir, ledger
        self._ledger = Ledger(ledger)
        self.orders, self.order, self.counts = self._ledger.orders, self._ledger.order, self._ledger.counts
        self.begin_anew, self.close = self._ledger.begin_anew, self._ledger.close

    def tearable(self) -> bool:
        return tearable(self._data_dir, self._path, random.Random(0))

    def lose_power(self, rng: random.Random, *, torn: bool, everything: bool) -> Loss:
        assert not everything, "is for other programs, which run under a supervisor"
        return lose_power(self._data_dir, self._path, rng, torn=torn)

    def lost(self, name: str) -> None:
        self._ledger.note(NameChange("lost", name))


class SupervisedLayer:
    """The supervisor of the node. data_dir: of the node."""

    def __init__(self, data_dir: Path, supervisor: Supervisor) -> None:
        self._data_dir, self.supervisor = data_dir, supervisor
        self._orders = Orders()
        self.counts, self.begin_anew, self.close = supervisor.counts, supervisor.begin_anew, supervisor.close

    def orders(self) -> Orders:
        return self._orders

    def order(self, orders: Orders) -> None:
        self._orders = orders
        self.supervisor.order(orders)

    def tearable(self) -> bool:
        return self._draw_tear(random.Random(0)) is not None

    def _draw_tear(self, rng: random.Random) -> Tear | None:
        durable = self.supervisor.durable()
        paths = {name: self._data_dir / name for name in durable if name.startswith(wal.FOLDER + "/")}
        contents = {name: path.read_bytes() for name, path in paths.items() if path.is_file()}
        return damage.draw_tear(contents, durable, rng)

    def lose_power(self, rng: random.Random, *, torn: bool, everything: bool) -> Loss:
        tear = self._draw_tear(rng) if torn else None
        keep = {} if tear is None else {tear.name: tear.end}
        tail = "none" if everything else rng.choice(TAILS)
        lost = self.supervisor.cut_power(tail, seed=rng.getrandbits(32), keep=keep)
        return Loss(lost.unsynced_bytes, lost.lost_bytes, 0, lost.names, tear)

    def lost(self, name: str) -> None:
        """The supervisor compares with what it finds."""
