"""The rule of a link, and the evidence of its effect."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from msgspec import Struct

from nodeproc.core.messages import NOBODY, NodeId


class Rule(Struct, frozen=True, forbid_unknown_fields=True):
    """What happens to the frames of one link. Times are seconds; see the fields of lab.steps.link.Link and Reorder.

    frames: the types that the rule applies to, as in the frame's header (APPEND, HEARTBEAT, …); empty: all.
    every: 0: no frame is held back. While a frame is held back, no other is.
    duplicate, corrupt: a frame that arrives twice, or with one byte changed, is not held back.
    bandwidth: such frames pass one behind the other.
    larger_than: only in the kernel's network, whose rules apply to packets: those with more bytes than this; 0: all.
    """

    frames: tuple[str, ...] = ()
    delay: float = 0.0
    jitter: float = 0.0
    distribution: Literal["uniform", "exponential", "normal"] = "uniform"
    every: int = 0
    behind: int = 1
    at_most: float = 0.1
    loss: float = 0.0
    duplicate: float = 0.0
    corrupt: float = 0.0
    bandwidth: float = 0.0
    chunk: int = 0
    refuse: bool = False
    larger_than: int = 0

    @property
    def silent(self) -> bool:
        """All frames are dropped, so that no connection can be opened either."""
        return self.loss >= 1.0 and not self.frames and not self.larger_than

    def names(self, frame: str) -> bool:
        """Return whether the rule applies to frames of this type."""
        return not self.frames or frame in self.frames


@dataclass(slots=True)
class LinkCounts:
    """How many of a link's frames and connections a rule affected, and in which way."""

    entered: int = 0
    delayed: int = 0
    overtaken: int = 0
    """Frames that left after a later one."""
    lost: int = 0
    duplicated: int = 0
    corrupted: int = 0
    cut: int = 0
    """Frames that left in more than one piece."""
    reset: int = 0
    """Connections that were reset."""
    refused: int = 0
    """Attempts to open a connection that were refused."""


LINK_EFFECTS = ("delayed", "overtaken", "lost", "duplicated", "corrupted", "cut", "reset", "refused")
"""The counts that show an effect of a rule."""
CLIENTS: NodeId = NOBODY
Pair: TypeAlias = tuple[NodeId, NodeId]
"""(sender, receiver); CLIENTS stands for all clients."""
