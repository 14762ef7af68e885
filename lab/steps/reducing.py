"""Reductions for the shrink pass that all steps share: shorter and rounder times, targets with one node less. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Final, TypeVar

from msgspec import Struct, structs

from lab.words import Duration, Target
from nodeproc.core.messages import NodeId

_S = TypeVar("_S", bound=Struct)

NICE: Final = (1, 2, 3, 5, 10)
COUNTS: Final = (1, 2, 3, 5, 10, 20, 50, 100, 200)
"""Small numbers of messages or clients to try instead of large ones."""
TARGETS: Final = ("target", "source", "to", "node", "on", "newcomer")
"""Fields of steps and conditions whose values are targets."""


def rounded(seconds: float) -> Duration:
    """Round to the millisecond, as durations are written in files."""
    return Duration(round(seconds, 3))


def nice(seconds: float) -> Duration:
    """Round to the nearest 1, 2, 3 or 5 times a power of ten: 347 ms becomes 300 ms."""
    if seconds < 0.001:
        return Duration(0)
    power = 10.0 ** math.floor(math.log10(seconds))
    return rounded(min((factor * power for factor in NICE), key=lambda each: abs(each - seconds)))


def shorter(value: _S, field: str, *, least: Duration | None = None) -> Iterator[_S]:
    """Yield the struct with smaller values of a duration: `least` if given, a tenth, half, and a rounder number."""
    time: Duration = getattr(value, field)
    if least is not None:
        yield structs.replace(value, **{field: least})
    for factor in (0.1, 0.5, 1.0):
        if (less := nice(time * factor)) < time or factor == 1.0:
            yield structs.replace(value, **{field: less})


def one_of(value: _S, field: str) -> Iterator[_S]:
    """Yield the struct with each single part of a field that is a tuple."""
    found = getattr(value, field)
    yield from (structs.replace(value, **{field: each}) for each in (found if isinstance(found, tuple) else ()))


def without_node(value: _S, gone: NodeId) -> _S | None:
    """Return the struct without this node, with higher ids lowered by one; None if no target remains."""
    changed: dict[str, Any] = {
        name: target_without(getattr(value, name), gone) for name in TARGETS if hasattr(value, name)
    }
    if hasattr(value, "until"):
        changed["until"] = without_node(value.until, gone)
    return None if None in changed.values() else structs.replace(value, **changed)


def target_without(target: Target, gone: NodeId) -> Any:
    """Return the target without this node; None if no node remains."""
    if isinstance(target, int):
        return None if target == gone else shifted(target, gone)
    if isinstance(target, tuple):
        left = tuple(less for each in target if (less := target_without(each, gone)) is not None)
        return left or None
    return target


def shifted(node: NodeId, gone: NodeId) -> NodeId:
    """Return the node's id after `gone` was removed from the cluster."""
    return node - (node > gone)
