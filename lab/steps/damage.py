"""What faults leave behind: changed bytes, torn files, lost bytes, and nodes that end by themselves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from lab.rows import NodeExit
from nodeproc.core.messages import NodeId
from nodeproc.errors import EXIT_CORRUPTION, EXIT_WRITE_FAILED


class Rot(NamedTuple):
    """A byte that changes by itself."""

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
    """Why a node has to end by itself."""

    what: str
    """full | failing sync | failing append | rot of wal | loss of checkpoint | …"""
    exit_code: int
    step: int
    """The scenario's step that did it."""
    place: str = ""
    """What a node that refuses has to name: the damaged file, or the folder of one that is lost."""
    lasts: int = 0
    """The node's last process that it may end; 0: no end is in sight."""


OLDER_COPY: Final = "an older copy"
"""Noticed by a node that runs, as soon as it meets somebody who knows what it has forgotten."""


def ended_at_work(exits: Sequence[NodeExit], began: int) -> bool:
    """Whether a node that was started at `began` ended because others knew that its data was older."""
    return bool(exits) and exits[-1].t >= began and exits[-1].because == OLDER_COPY


class Causes:
    """What the lab did to the disks of its nodes, as far as a node may still end of it."""

    def __init__(self) -> None:
        self._of: dict[NodeId, list[Cause]] = {}

    def add(self, node: NodeId, cause: Cause) -> None:
        self._of.setdefault(node, []).append(cause)

    def mended(self, node: NodeId, process: int) -> None:
        """Its disk takes writes again: this process, counted from 1, may still end, and no later one."""
        self._of[node] = [
            each if each.lasts or each.exit_code != EXIT_WRITE_FAILED else each._replace(lasts=process)
            for each in self._of.get(node, [])
        ]

    def survived(self, node: NodeId) -> None:
        """It came up: what is damaged was noticed, and mended."""
        kept = self._of.get(node, [])
        self._of[node] = [each for each in kept if each.exit_code != EXIT_CORRUPTION or each.what == OLDER_COPY]

    def forget(self, node: NodeId) -> None:
        """It has another disk."""
        self._of.pop(node, None)

    def why(self, node: NodeId, code: int, process: int) -> Cause | None:
        """What made its process number `process` end with this code; None: nothing that the lab did."""
        found = (
            each for each in self._of.get(node, []) if each.exit_code == code and process <= (each.lasts or process)
        )
        return next(found, None)


class Loss(NamedTuple):
    """What was lost. Bytes of all files together.

    unsynced_bytes: could have been lost. lost_bytes: was. noise_bytes: came in its place, never written so.
    names: files that are gone or came back.
    tear: where the log ends in the middle of an entry.
    """

    unsynced_bytes: int
    lost_bytes: int
    noise_bytes: int
    names: tuple[str, ...]
    tear: Tear | None

    @property
    def effect(self) -> bool:
        """Something was not durable: the draw could take it, whether it did or not."""
        return bool(self.unsynced_bytes or self.names)

    def evidence(self) -> dict[str, Any]:
        torn = {} if self.tear is None else {"torn": str(self.tear)}
        return {
            "unsynced_bytes": self.unsynced_bytes,
            "lost_bytes": self.lost_bytes,
            "noise_bytes": self.noise_bytes,
            "names": self.names,
        } | torn
