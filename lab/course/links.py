"""The effect of link rules on frames between nodes. Pure, so that the proxy and the simulated network share it.

Each directed pair of nodes has one Link. Frames leave it in the order in which they entered it, as on TCP, unless the
rule holds one back so that others overtake it. A frame is lost whole or not at all. Time and random generators are
arguments. A Link does not know the content of frames; its owner provides the functions that corrupt a frame or cut it
in pieces (Handling).
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable, Sequence
from itertools import count
from typing import Final, Generic, Literal, NamedTuple, TypeVar

from lab.steps.rules import LinkCounts, Rule

Cargo = TypeVar("Cargo")

NEVER: Final = float("inf")
PIECE_GAP_S: Final = 0.001
"""Time between two pieces of one frame, long enough for a node to read each piece separately."""


class Decision(NamedTuple):
    """What a rule does to one frame.

    lose: the frame is lost. deliver, duplicate, corrupt: it arrives after this many seconds, in order; twice in a row,
    or with one byte changed. hold_back: it waits until later frames have overtaken it (Rule.behind, Rule.at_most).
    """

    fate: Literal["lose", "deliver", "duplicate", "corrupt", "hold_back"]
    seconds: float = 0.0


def decide(rule: Rule, number: int, rng: random.Random) -> Decision:
    """Decide the fate of a frame to which the rule applies.

    Args:
        number: the number of this frame, from 1, among those to which the rule applied.
    """
    if rule.loss and rng.random() < rule.loss:
        return Decision("lose")
    if rule.duplicate and rng.random() < rule.duplicate:
        return Decision("duplicate", _delay(rule, rng))
    if rule.corrupt and rng.random() < rule.corrupt:
        return Decision("corrupt", _delay(rule, rng))
    if rule.every and number % rule.every == 0:
        return Decision("hold_back")
    return Decision("deliver", _delay(rule, rng))


def _delay(rule: Rule, rng: random.Random) -> float:
    """Return the delay of a frame, in seconds; the order is kept."""
    if not rule.jitter:
        return rule.delay
    match rule.distribution:
        case "uniform":
            longer = rng.random()
        case "exponential":
            longer = rng.expovariate(1.0)
        case "normal":
            longer = rng.gauss(0.0, 1.0)
    return max(0.0, rule.delay + longer * rule.jitter)


class Handling(NamedTuple, Generic[Cargo]):
    """Functions of a link's owner for the frames that the link carries.

    size: the size of a frame in bytes.
    spoil: the frame with one byte changed so that the receiver can detect it.
    pieces: the frame cut in pieces of a given number of bytes.
    """

    size: Callable[[Cargo], int]
    spoil: Callable[[Cargo, random.Random], Cargo]
    pieces: Callable[[Cargo, int], Sequence[Cargo]]


class _Entry(NamedTuple, Generic[Cargo]):
    due: float
    order: int
    cargo: Cargo


class _Held(Generic[Cargo]):
    """The frame that is held back.

    left: the number of later frames that must still overtake it.
    """

    def __init__(self, cargo: Cargo, until: float, left: int) -> None:
        self.cargo, self.until, self.left = cargo, until, left
        self.overtaken = False


class Link(Generic[Cargo]):
    """One directed link and the frames under way on it.

    Args:
        rng: for jitter, loss and other random choices; seeded by the run.
        counts: to count in; None: new ones.
    """

    def __init__(
        self,
        rng: random.Random,
        handling: Handling[Cargo],
        rule: Rule | None = None,
        counts: LinkCounts | None = None,
    ) -> None:
        self.rng, self.handling, self.rule = rng, handling, rule
        self.counts = LinkCounts() if counts is None else counts
        self._queue: list[_Entry[Cargo]] = []
        self._held: _Held[Cargo] | None = None
        self._free_at = 0.0
        """No frame that keeps its order arrives before this time."""
        self._line_free_at = 0.0
        """The time when all earlier bytes have passed a link with a bandwidth."""
        self._order = count()
        self._named = 0

    def set_rule(self, rule: Rule | None, now: float) -> None:
        """Apply this rule from now on. None: no rule; frames under way arrive at once, in order."""
        self.rule, self._named = rule, 0
        if rule is None:
            if self._held is not None:
                self._release(now)
            entries = sorted(self._queue)
            self._queue = [entry._replace(due=now) for entry in entries]
            self._free_at = self._line_free_at = now

    def enter(self, frame: str, cargo: Cargo, now: float) -> int:
        """Let a frame of this type enter the link.

        Args:
            now: monotonic seconds, never decreasing.

        Returns:
            The number of copies under way: 0, 1 or 2.
        """
        self.counts.entered += 1
        rule = self.rule
        if rule is None or not rule.names(frame):
            self._push(cargo, now)
            return 1
        self._named += 1
        fate, seconds = decide(rule, self._named, self.rng)
        if fate == "lose":
            self.counts.lost += 1
            return 0
        if fate == "hold_back" and self._held is None:
            self._held = _Held(cargo, now + rule.at_most, rule.behind)
            return 1
        copies: tuple[Cargo, ...] = (cargo,)
        if fate == "duplicate":
            self.counts.duplicated += 1
            copies = (cargo, cargo)
        elif fate == "corrupt":
            self.counts.corrupted += 1
            copies = (self.handling.spoil(cargo, self.rng),)
        self._send(rule, copies, now, seconds)
        return len(copies)

    def leave(self, now: float) -> list[Cargo]:
        """Return the frames that have arrived by now, in their order of arrival."""
        if self._held is not None and self._held.until <= now:
            self._release(self._held.until)
        arrived = []
        while self._queue and self._queue[0].due <= now:
            arrived.append(heapq.heappop(self._queue).cargo)
        return arrived

    def next_due(self) -> float:
        """Return the time when leave() returns the next frame, monotonic seconds; NEVER if no frame is under way."""
        due = self._queue[0].due if self._queue else NEVER
        return due if self._held is None else min(due, self._held.until)

    def clear(self) -> None:
        """Drop all frames under way, because the connection broke."""
        self._queue.clear()
        self._held = None
        self._free_at = self._line_free_at = 0.0

    def _push(self, cargo: Cargo, due: float) -> None:
        self._free_at = due = max(due, self._free_at)
        heapq.heappush(self._queue, _Entry(due, next(self._order), cargo))

    def _send(self, rule: Rule, copies: Sequence[Cargo], now: float, seconds: float) -> None:
        """Send a frame to which the rule applies, ahead of the one held back."""
        for cargo in copies:
            due = now + seconds
            if rule.bandwidth:
                passing = self.handling.size(cargo) / rule.bandwidth
                self._line_free_at = max(now, self._line_free_at) + passing
                due = self._line_free_at + seconds
            pieces = self.handling.pieces(cargo, rule.chunk) if rule.chunk else (cargo,)
            due = max(due, self._free_at)
            for number, piece in enumerate(pieces):
                self._push(piece, due + number * PIECE_GAP_S)
            self.counts.cut += len(pieces) > 1
        self.counts.delayed += due > now
        held = self._held
        if held is not None:
            held.left -= 1
            held.overtaken = True
            if held.left <= 0:
                self._release(self._free_at)

    def _release(self, due: float) -> None:
        assert self._held is not None
        self.counts.overtaken += self._held.overtaken
        cargo, self._held = self._held.cargo, None
        self._push(cargo, due)
