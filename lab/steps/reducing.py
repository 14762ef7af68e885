"""Shared by the reduce() and without() of all steps: rounder times, and targets with one node less. Pure."""

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
"""Few messages or clients, to be tried in place of many."""
TARGETS: Final = ("target", "source", "to", "node", "on")
"""Fields of steps and conditions that mean nodes."""


def rounded(seconds: float) -> Duration:
    """To the millisecond, as it is written in a file."""
    return Duration(round(seconds, 3))


def nice(seconds: float) -> Duration:
    """The nearest 1, 2, 3 or 5 times a power of ten: 347 ms is 300 ms."""
    if seconds < 0.001:
        return Duration(0)
    power = 10.0 ** math.floor(math.log10(seconds))
    return rounded(min((factor * power for factor in NICE), key=lambda each: abs(each - seconds)))


def shorter(value: _S, field: str, *, least: Duration | None = None) -> Iterator[_S]:
    """The struct with smaller values of a duration: `least` if given, a tenth, half, and a rounder number."""
    time: Duration = getattr(value, field)
    if least is not None:
        yield structs.replace(value, **{field: least})
    for factor in (0.1, 0.5, 1.0):
        if (less := nice(time * factor)) < time or factor == 1.0:
            yield structs.replace(value, **{field: less})


def one_of(value: _S, field: str) -> Iterator[_S]:
    """The struct with each single part of a field that is a tuple."""
    found = getattr(value, field)
    yield from (structs.replace(value, **{field: each}) for each in (found if isinstance(found, tuple) else ()))


def without_node(value: _S, gone: NodeId) -> _S | None:
    """The struct without this node, where higher ids are one lower; None: no target is left."""
    changed: dict[str, Any] = {
        name: target_without(getattr(value, name), gone) for name in TARGETS if hasattr(value, name)
    }
    if hasattr(value, "until"):
        changed["until"] = without_node(value.until, gone)
    return None if None in changed.values() else structs.replace(value, **changed)


def target_without(target: Target, gone: NodeId) -> Any:
    """The target without this node; None: no node is left."""
    if isinstance(target, int):
        return None if target == gone else shifted(target, gone)
    if isinstance(target, tuple):
        left = tuple(less for each in target if (less := target_without(each, gone)) is not None)
        return left or None
    return target


def shifted(node: NodeId, gone: NodeId) -> NodeId:
    """The node's id after `gone` was taken out of the cluster."""
    return node - (node > gone)
