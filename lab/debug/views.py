"""What the debugger shows, as plain values: the state of every node, frames on their way, and timers that are due.

Everything here only reads the simulation.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, TypeAlias

from msgspec import Struct

from lab.course.frames import frame_text, position_text
from lab.debug.stepping import SteppingLoop
from lab.sim.cluster import SimCluster
from lab.sim.loop import Call
from lab.sim.network import NodeLink
from lab.sim.node import SimNode
from nodeproc.core.messages import NodeId, Position
from nodeproc.core.node import Node
from nodeproc.core.state import Candidate, Leader

Value: TypeAlias = str | int | bool
View: TypeAlias = dict[str, Value]
"""Field of a node -> its value. A position is written term:seq_no."""
Values: TypeAlias = dict[str, object]
"""The same fields with the values that the node itself has."""
DOWN: Final[Values] = {"role": "down"}
NONE: Final = "none"
"""The value of an empty field, and of one that a node in its role does not have."""


class Due(Struct, frozen=True):
    """Something that will happen.

    number: by which a change names it. wait_s: virtual seconds from now. frame: a frame between two nodes on its way;
    only a frame can be dropped, delayed or delivered at once.
    """

    number: int
    wait_s: float
    what: str
    frame: bool = False


def view_of_core(core: Node) -> View:
    """Return the state of a node that runs."""
    return shown(values_of_core(core))


def values(cluster: SimCluster) -> dict[NodeId, Values]:
    """Return the state of every node, to compare it with a later one; `shown` makes a View of it where they differ."""
    return {node: _values(machine.process) for node, machine in cluster.machines.items()}


def _values(node: SimNode | None) -> Values:
    if node is None or not node.running:
        return DOWN
    found = values_of_core(node.core)
    found["role"] = (
        f"{found['role']}{', paused' if node.paused else ''}{', rebuilding' if node.core.state.rebuilding else ''}"
    )
    return found


def values_of_core(core: Node) -> Values:
    """Return the fields of a node that runs. They do not change with the node."""
    state, role = core.state, core.state.role
    found: Values = {
        "role": core.role_name,
        "term": state.term,
        "voted_for": state.voted_for,
        "leader": state.leader_id,
        "log": state.log.position,
        "durable": state.durable,
        "commit": state.commit_seq,
        "delivered": state.delivered_seq,
        "links": frozenset(state.links),
    }
    if isinstance(role, Candidate):
        found["votes"] = frozenset(role.votes)
    if isinstance(role, Leader):
        found["peers"] = {peer: each.matched for peer, each in role.progress.items()}
    return found


def shown(values: Values) -> View:
    """Return fields as a person reads them."""
    return {name: _text(value) for name, value in values.items()}


def _text(value: object) -> Value:
    if isinstance(value, Position):
        return position_text(value)
    if isinstance(value, frozenset):
        return " ".join(map(str, sorted(value))) or NONE
    if isinstance(value, dict):
        return " ".join(f"{peer}={position_text(matched)}" for peer, matched in value.items())
    assert isinstance(value, str | int), value
    return value


def differences(before: View, after: View) -> dict[str, tuple[Value, Value]]:
    """Return field -> (before, after) for the fields that differ."""
    fields = [*after, *(field for field in before if field not in after)]
    both = {each: (before.get(each, NONE), after.get(each, NONE)) for each in fields}
    return {each: change for each, change in both.items() if change[0] != change[1]}


def views(cluster: SimCluster) -> dict[NodeId, View]:
    """Return the state of every node."""
    return {node: shown(each) for node, each in values(cluster).items()}


def what(action: Callable[..., object], args: tuple[Any, ...]) -> tuple[str, bool]:
    """Return what an action of the loop does, and whether it is the arrival of a frame."""
    owner, name = getattr(action, "__self__", None), getattr(action, "__name__", str(action))
    if isinstance(owner, NodeLink):
        way = f"{owner.source} -> {owner.to}"
        if name == "_arrive":
            message = args[1]
            return f"{way}: {message.__struct_config__.tag} {frame_text(message)}".rstrip(), True
        return f"{way}: {_OF_LINKS.get(name, name.strip('_'))}", False
    if isinstance(owner, SimNode):
        if name == "run":
            name = getattr(args[0], "__name__", name)
        return f"node {owner.node}: {_OF_NODES.get(name, name.strip('_'))}", False
    if isinstance(owner, SimCluster):
        return f"node {args[0]}: its process starts", False
    return "the lab and its clients", False


_OF_LINKS: Final = {
    "dial": "connects",
    "_repeat": "TCP sends again",
    "_poll": "looks whether the receiver is silent",
    "_leave": "frames that a rule held leave",
}
_OF_NODES: Final = {
    "_run_turn": "takes its inputs",
    "_on_timer": "timer",
    "_scrub_piece": "reads old data",
    "_return": "a sync ends",
}


def due(loop: SteppingLoop) -> list[Due]:
    """Return everything that will happen as things stand now, the next first."""
    return [
        Due(number, max(0.0, when - loop.now), *what(action, args))
        for when, number, action, args in loop.waiting()
        if not _is_void(action, args)
    ]


def _is_void(action: Callable[..., object], args: tuple[Any, ...]) -> bool:
    """Return whether an action will do nothing: its timer was set anew, or its connection is gone."""
    owner, name = getattr(action, "__self__", None), getattr(action, "__name__", "")
    if isinstance(owner, NodeLink) and name in ("_arrive", "_repeat", "_poll"):
        return not owner.carries(args[0])
    if isinstance(owner, SimNode) and name == "_on_timer":
        return not owner.awaits(args[0])
    return bool(args) and isinstance(args[0], Call) and args[0].cancelled()
