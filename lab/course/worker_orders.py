"""Orders to a worker of the load and its answers; see lab.course.load."""

from __future__ import annotations

from typing import TypeAlias

from msgspec import Struct

from lab.plan.workload import ClientPlan
from nodeproc.client import Address
from nodeproc.core.messages import NodeId


class Prepare(Struct, frozen=True, tag_field="do", tag="prepare"):
    """Create these clients and connect them.

    history: the file to which this worker appends. duration: of the sending, seconds; None: until the plans' counts are
    reached. deadline, client_token: see SessionSettings.
    """

    history: str
    addresses: dict[NodeId, Address]
    plans: tuple[ClientPlan, ...]
    duration: float | None
    deadline: float
    client_token: str = ""


class Go(Struct, frozen=True, tag_field="do", tag="go"):
    """Start sending; `at` is the time zero of all plans, CLOCK_MONOTONIC seconds."""

    at: float


class Halt(Struct, frozen=True, tag_field="do", tag="halt"):
    """Send no new messages."""


Order: TypeAlias = Prepare | Go | Halt


class Ready(Struct, frozen=True, tag_field="say", tag="ready"):
    """All clients are connected, or have tried for CONNECT_PATIENCE_S."""


class Tally(Struct, tag_field="say", tag="tally"):
    """The messages of a worker, over all its loads. finished: this load sends no more and all have their outcome."""

    sent: int = 0
    acknowledged: int = 0
    rejected: int = 0
    unknown: int = 0
    cpu_s: float = 0.0
    finished: bool = False

    @property
    def pending(self) -> int:
        """Messages without outcome."""
        return self.sent - self.acknowledged - self.rejected - self.unknown


Answer: TypeAlias = Ready | Tally
