"""How a link treats its frames, and the evidence of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from msgspec import Struct

from nodeproc.core.messages import NOBODY, NodeId


class Rule(Struct, frozen=True, forbid_unknown_fields=True):
    """How one link treats its frames. Times are seconds.

    frames: types that it applies to, as in the frame's header (APPEND, HEARTBEAT, …); empty: all.
    delay, jitter: each such frame is held so long, in order, and longer as `distribution` says: by up to `jitter`
        (uniform), by `jitter` on average (exponential), or by around nothing with the deviation `jitter` (normal).
    every: each every-th such frame is held back until `behind` later ones have overtaken it, or `at_most` has
        passed; 0: none. One at a time: while a frame is held back, no other is.
    loss: share of such frames that vanish, 0..1.
    duplicate: share of such frames that arrive twice, 0..1; such a frame is not held back for others to overtake it.
    corrupt: share of such frames that arrive with one byte changed, 0..1; such a frame is not held back either.
    bandwidth: bytes of such frames a second, one behind the other; 0: any number.
    chunk: such a frame arrives in pieces of so many bytes, PIECE_GAP_S apart; 0: whole.
    refuse: the link's connection is broken and none can be opened.
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

    @property
    def silent(self) -> bool:
        """Nothing at all gets through, so that no connection can be opened either."""
        return self.loss >= 1.0 and not self.frames

    def names(self, frame: str) -> bool:
        """Whether frames of this type are treated at all."""
        return not self.frames or frame in self.frames


@dataclass(slots=True)
class LinkCounts:
    """What became of a link's frames: the evidence that a rule had an effect."""

    entered: int = 0
    delayed: int = 0
    overtaken: int = 0
    """Frames that really left behind a later one."""
    lost: int = 0
    duplicated: int = 0
    corrupted: int = 0
    cut: int = 0
    """Frames that left in more than one piece."""
    reset: int = 0
    """Connections that a rule broke."""
    refused: int = 0
    """Connections that a rule did not let be opened."""


LINK_EFFECTS = ("delayed", "overtaken", "lost", "duplicated", "corrupted", "cut", "reset", "refused")
"""What a rule can do: the evidence that it had an effect."""
CLIENTS: NodeId = NOBODY
Pair: TypeAlias = tuple[NodeId, NodeId]
"""(sender, receiver); CLIENTS stand for all clients."""
