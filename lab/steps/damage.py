"""The results of disk faults: changed bytes, torn files, lost bytes, and exits of nodes that follow from them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from lab.rows import NodeExit
from nodeproc.core.messages import NodeId
from nodeproc.errors import EXIT_CORRUPTION, EXIT_DISK_FAILED


class Rot(NamedTuple):
    """A changed byte in a file."""

    name: str
    at: int
    before: int
    after: int

    def __str__(self) -> str:
        return f"{self.name}:{self.at}: 0x{self.before:02x} became 0x{self.after:02x}"


class Tear(NamedTuple):
    """A WAL file that ends in the middle of an entry."""

    name: str
    end: int

    def __str__(self) -> str:
        return f"{self.name}:{self.end}"


class Cause(NamedTuple):
    """The reason why a node has to exit by itself."""

    what: str
    """full | failing sync | failing append | rot of wal | loss of checkpoint | …"""
    exit_code: int
    step: int
    """The step of the scenario that injected the fault."""
    place: str = ""
    """The path that the node's error must name: the damaged file, or the folder of a lost one."""
    lasts: int = 0
    """Number of the last process of the node that may still exit because of this; 0: any later process may."""


ANY_EXIT: Final = -1000
"""An exit code that stands for all: nobody knows with which one another program ends because of its disk."""
OLDER_COPY: Final = "an older copy"
"""A running node detects this fault as soon as a link opens to a member that knows what the node has forgotten."""


def ended_at_work(exits: Sequence[NodeExit], began: int) -> bool:
    """Return whether the node that was started at `began` exited because another member knew that its data was
    older.
    """
    return bool(exits) and exits[-1].t >= began and exits[-1].because == OLDER_COPY


class Causes:
    """The injected disk faults because of which a node may still exit."""

    def __init__(self) -> None:
        self._of: dict[NodeId, list[Cause]] = {}

    def add(self, node: NodeId, cause: Cause) -> None:
        self._of.setdefault(node, []).append(cause)

    def mended(self, node: NodeId, process: int) -> None:
        """A fault was cleared: this process, counted from 1, may still exit because of it, but no later one."""
        self._of[node] = [
            each if each.lasts or each.exit_code not in (EXIT_DISK_FAILED, ANY_EXIT) else each._replace(lasts=process)
            for each in self._of.get(node, [])
        ]

    def survived(self, node: NodeId) -> None:
        """The node has started: damage that was to be noticed was noticed and repaired."""
        kept = self._of.get(node, [])
        self._of[node] = [each for each in kept if each.exit_code != EXIT_CORRUPTION or each.what == OLDER_COPY]

    def forget(self, node: NodeId) -> None:
        """Forget all causes, because the node has a new disk."""
        self._of.pop(node, None)

    def why(self, node: NodeId, code: int, process: int) -> Cause | None:
        """Return why process number `process` of the node exited with this code; None if no injected fault
        explains it.
        """
        found = (
            each
            for each in self._of.get(node, [])
            if each.exit_code in (code, ANY_EXIT) and process <= (each.lasts or process)
        )
        return next(found, None)


class Loss(NamedTuple):
    """The result of a power loss, over all files of a node.

    unsynced_bytes: bytes that could be lost. lost_bytes: bytes that were. noise_bytes: random bytes in their place.
    names: files that disappeared or came back.
    tear: where the log ends in the middle of an entry.
    """

    unsynced_bytes: int
    lost_bytes: int
    noise_bytes: int
    names: tuple[str, ...]
    tear: Tear | None

    @property
    def effect(self) -> bool:
        """True if anything was not durable, so that it could be lost."""
        return bool(self.unsynced_bytes or self.names)

    def evidence(self) -> dict[str, Any]:
        torn = {} if self.tear is None else {"torn": str(self.tear)}
        return {
            "unsynced_bytes": self.unsynced_bytes,
            "lost_bytes": self.lost_bytes,
            "noise_bytes": self.noise_bytes,
            "names": self.names,
        } | torn
