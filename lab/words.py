"""Types of values in scenarios: durations, counts, targets, each with its bounds."""

from __future__ import annotations

import re
from typing import Annotated, Any, Final, Literal, TypeAlias, get_args

from msgspec import Meta

from nodeproc.core import events, messages
from nodeproc.core.messages import NodeId

# ---- durations ----------------------------------------------------------------------------------

_DURATION = re.compile(r"([0-9]+(?:\.[0-9]+)?)(ms|s|m)")
_UNIT_S = {"ms": 0.001, "s": 1.0, "m": 60.0}
DURATION_ALLOWED = "a duration such as 500ms, 2s or 1.5m"
LONGEST_MINUTES = 1440


class Duration(float):
    """Seconds; written in YAML as `500ms`, `2s` or `1.5m`. Never negative, and at most a day."""

    @classmethod
    def parse(cls, text: object) -> Duration:
        """Parse a duration.

        Raises:
            ValueError: the text is not a duration; the message says what is allowed.
        """
        match = _DURATION.fullmatch(text) if isinstance(text, str) else None
        if match is None:
            raise ValueError(f"found {text!r}, allowed {DURATION_ALLOWED}")
        seconds = round(float(match[1]) * _UNIT_S[match[2]], 9)
        if seconds > LONGEST_MINUTES * 60:
            raise ValueError(f"found {match[0][:40]}, allowed up to {LONGEST_MINUTES}m")
        return cls(seconds)

    def __str__(self) -> str:
        """Format the duration so that parse() reads it: whole seconds in s, others in ms."""
        if self.is_integer():
            return f"{int(self)}s"
        return f"{round(self * 1000, 6):.6f}".rstrip("0").rstrip(".") + "ms"


_ABOVE_ZERO: Final = {"above zero": True}
Period: TypeAlias = Annotated[Duration, Meta(extra=_ABOVE_ZERO)]
"""A duration above 0. It is parsed like any duration; lab.steps.entry refuses 0s."""


def is_period(kind: Any) -> bool:
    """Return whether a field's type is Period, or Period or None."""
    return any(
        isinstance(each, Meta) and each.extra == _ABOVE_ZERO for each in getattr(kind, "__metadata__", ())
    ) or any(is_period(each) for each in get_args(kind))


def decode_word(wanted: type, found: Any) -> Any:
    """msgspec's dec_hook for the types of this package."""
    if wanted is Duration:
        return Duration.parse(found)
    raise NotImplementedError(wanted)


def encode_word(value: Any) -> str:
    """msgspec's enc_hook for the types of this package."""
    if isinstance(value, Duration):
        return str(value)
    raise NotImplementedError(type(value))


# ---- numbers and texts ----------------------------------------------------------------------------

Count: TypeAlias = Annotated[int, Meta(ge=1, le=1_000_000_000)]
CountOrNone: TypeAlias = Annotated[int, Meta(ge=0, le=1_000_000_000)]
"""A count that may be 0."""
Share: TypeAlias = Annotated[float, Meta(ge=0, le=1)]
ClientId: TypeAlias = Annotated[int, Meta(ge=1, le=2**31 - 1)]
Title: TypeAlias = Annotated[str, Meta(max_length=200)]
"""A text that is shown on one line."""
LARGEST_PAYLOAD_BYTES = 64 << 10
"""Maximum size of a message, UTF-8."""

# ---- targets ------------------------------------------------------------------------------------

TargetWord: TypeAlias = Literal["leader", "follower", "followers", "all", "running", "killed", "paused", "down"]
"""leader      the node that leads now
follower    one running follower, drawn with the run's seed
followers   all running followers
all         every node of the cluster
running     every node whose process runs, paused ones left out
killed      every node that the lab took down (kill, stop, power_loss, …), until it is started again
paused      every paused node
down        every node whose process does not run"""

TARGET_WORDS: tuple[str, ...] = get_args(TargetWord)

Target: TypeAlias = TargetWord | NodeId | tuple[TargetWord | NodeId, ...]
"""A set of nodes: a word, a node id, or a list of both. lab.steps.targets.choose determines the nodes at a given
moment.
"""


Newcomer: TypeAlias = NodeId | Literal["newcomer"]
"""A node that is no founder: its id, or the lowest one that was never a member so far."""

LinkEnd: TypeAlias = Target | Literal["clients"]
"""One end of links: nodes, or all clients."""


def counted(count: int, noun: str) -> str:
    """Return the number with the noun in its singular or plural: 1 message, 2 messages."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def named_ids(target: LinkEnd) -> frozenset[NodeId] | None:
    """Return the nodes that a target names; None if it has a word, which may mean any node."""
    parts = target if isinstance(target, tuple) else (target,)
    named = frozenset(part for part in parts if isinstance(part, int))
    return named if len(named) == len(parts) else None


def target_parts(target: Target) -> tuple[TargetWord | NodeId, ...]:
    """Return the words and ids of a target, one by one."""
    return target if isinstance(target, tuple) else (target,)


# ---- what nodes report and send -------------------------------------------------------------------

EVENTS: dict[str, type[events.Event]] = {
    str(each.__struct_config__.tag): each
    for each in vars(events).values()
    if isinstance(each, type) and issubclass(each, events.Event) and each is not events.Event
}
"""Event name -> event."""
EVENT_LEVELS: tuple[str, ...] = get_args(events.Level)
"""Levels of events, from the least to the most important."""
FRAME_TYPES: tuple[str, ...] = tuple(str(each.__struct_config__.tag) for each in get_args(messages.PeerMessage))
"""The types of frames between nodes."""


def size_text(size: int) -> str:
    """Return a number of bytes in human-readable form: 12 KiB, 3.4 GiB."""
    amount, unit = float(size), "B"
    for unit in ("B", "KiB", "MiB", "GiB"):
        if amount < 1024 or unit == "GiB":
            break
        amount /= 1024
    return f"{amount:.0f} {unit}" if amount >= 10 or unit == "B" else f"{amount:.1f} {unit}"
