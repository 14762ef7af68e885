"""What a drawn scenario may ask: what the protocol promises, and no more. Else its failure would show nothing.

Three promises have conditions. A majority of the disks survives: never more than a minority of them is lost, or has old
data damaged, before all nodes are whole and the same again (M4, K6). Other damage, with which a node may start and know
less than it promised, comes only where all nodes are whole and the same (K2, M6). Messages have to be taken where a
majority is whole, whatever the other nodes do (A9).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from lab.plan.scenario import Bounds
from lab.steps import Cut, Disk, Heal, Partition, Rebuild, Send, Sleep, Start, Step, UntilCaughtUp, Wait
from lab.words import Duration, LinkEnd, Target, target_parts
from nodeproc.core.messages import NodeId

LIVENESS: Final = "liveness"
"""Name of the last send: with a majority whole, it must come true."""
NAMED_CLIENT: Final = 9001
BOUNDS: Final = Bounds(recovery=Duration(20), convergence=Duration(60))
CAUGHT_UP: Final = Wait(until=UntilCaughtUp(on="all", within=Duration(30)))
WHOLE: Final = Heal(what="all")
QUIET: Final[tuple[Step, ...]] = (WHOLE, CAUGHT_UP, Sleep(time=Duration(1)))
"""All nodes are whole, the same, and have had time to tell each other so."""


def is_sound(steps: Sequence[Step], nodes: int) -> bool:
    """Whether the steps ask nothing that the protocol does not promise; what fails without that shows nothing.

    Args:
        nodes: of the cluster.
    """
    return _disks_are_spared(steps, nodes) and all(
        _majority_is_whole(steps[:at], step, nodes)
        for at, step in enumerate(steps)
        if isinstance(step, Send) and step.wait
    )


def minority(nodes: int) -> int:
    """The most disks of a cluster of so many nodes that may be lost and not yet rebuilt at one moment. Rule: M4."""
    return (nodes - 1) // 2


def _disks_are_spared(steps: Sequence[Step], nodes: int) -> bool:
    """A majority of the disks keeps what it has; damage comes in quiet moments, and its node is rebuilt at once."""
    damaged: tuple[Target, ...] = ()
    lost: frozenset[NodeId] = frozenset()
    """Nodes that may still be on their way back from an empty disk, or have old data that can't be read."""
    caught_up_at = 0
    """Behind this step all nodes may be waited for."""
    for at, step in enumerate(steps):
        quiet = tuple(steps[at - len(QUIET) : at]) == QUIET if at >= len(QUIET) else False
        if isinstance(step, Heal):
            caught_up_at = at + 1
        if isinstance(step, Disk) and step.needs_dead_node:
            if damaged or not quiet:
                return False
            damaged = target_parts(step.on)
        elif isinstance(step, Rebuild):
            again = _ids(step.target)
            if damaged:
                if damaged != target_parts(step.target):
                    return False
                caught_up_at = at + 1
            elif quiet:
                caught_up_at = at + 1
            elif not again or len(lost | again) > minority(nodes):
                return False
            damaged, lost = (), lost | again
        elif damaged and not isinstance(step, Start | Sleep):
            return False
        elif isinstance(step, Disk) and step.rot:
            lost |= _ids(step.on)
            if len(lost) > minority(nodes):
                return False
        elif step == CAUGHT_UP:
            if not at or caught_up_at != at:
                return False
            lost = frozenset()
    return not damaged


def _majority_is_whole(before: Sequence[Step], send: Send, nodes: int) -> bool:
    """Whether a majority was healed and nothing done since but to the others, but messages sent and disks made slow.

    Nobody lacks data, as far as the steps tell. The senders are connected to that majority.
    """
    everybody = frozenset(range(1, nodes + 1))
    hurt: frozenset[NodeId] = frozenset()
    for step in reversed(before):
        if isinstance(step, Heal) and step.what == "all":
            healed = everybody if step.on == "all" else _ids(step.on)
            heard = all(each.via in healed for each in send.clients if each.via is not None)
            return 2 * len(healed) > nodes and not hurt & healed and heard and not _lacks_data(before)
        if not (isinstance(step, Sleep | Send) or (isinstance(step, Disk) and (step.slow or step.copy))):
            hurt |= _hurt(step) or everybody
    return False


def _lacks_data(before: Sequence[Step]) -> bool:
    """Whether a node may be on its way back from its lost disk, or have damage of which a dead node has the only copy.

    The first does not count in a majority yet; the second can't give its followers what they lack.
    """
    for step in reversed(before):
        if step == CAUGHT_UP:
            return False
        if isinstance(step, Rebuild) or (isinstance(step, Disk) and step.rot):
            return True
    return False


def _hurt(step: Step) -> frozenset[NodeId]:
    """The nodes whose links a step cuts, all other links being straight; empty: it may be any, or does something else.

    A link that loses frames of some kinds only is none that a leader could notice: its heartbeats may pass, and nothing
    else. Connections don't fail so, and nothing is promised.
    """
    match step:
        case Partition(kind="isolate"):
            return _ids(step.node)
        case Cut(frames=()):
            return _ids(step.source) or _ids(step.to)
        case _:
            return frozenset()


def _ids(target: LinkEnd) -> frozenset[NodeId]:
    """The nodes that a target names; none where it has a word, which may mean anybody."""
    parts = target if isinstance(target, tuple) else (target,)
    named = frozenset(part for part in parts if isinstance(part, int))
    return named if len(named) == len(parts) else frozenset()
