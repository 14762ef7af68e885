"""The protocol's assumptions, as conditions on the steps of a scenario. Outside of them a failure is not a bug.

There are four. A majority of the disks survives: at most a minority is lost, or has old data damaged, until all nodes
are healthy and have caught up again (M4, K6); a lost disk that is not declared with --rebuild at once is declared
before anything else but restarts happens. Other damage, with which a node may start with less than it promised, is
injected only while all nodes are healthy and have caught up (K2, M6). A step that waits for acknowledgements comes only
while a majority is healthy; the other nodes may be in any state (A9). None comes if sessions may expire (S3).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from lab.plan.scenario import Bounds, Cluster
from lab.steps import Disk, Heal, Rebuild, RemoveNode, Restart, Send, Sleep, Start, Step, Wait
from lab.steps.wait import UntilCaughtUp
from lab.words import Duration, Target, named_ids, target_parts
from nodeproc.core.messages import NodeId

LIVENESS: Final = "liveness"
"""Name of the last send, which must succeed as a majority is healthy."""
NAMED_CLIENT: Final = 9001
BOUNDS: Final = Bounds(recovery=Duration(20), convergence=Duration(60))
CAUGHT_UP: Final = Wait(until=UntilCaughtUp(on="all", within=Duration(30)))
HEAL_ALL: Final = Heal(what="all")
QUIET: Final[tuple[Step, ...]] = (HEAL_ALL, CAUGHT_UP, Sleep(time=Duration(1)))
"""Steps after which all nodes are healthy, have caught up, and have had time to report that to each other."""


def within_assumptions(steps: Sequence[Step], nodes: int, founders: int | None = None) -> bool:
    """Return whether the steps stay within the protocol's assumptions.

    Args:
        nodes: number of nodes of the cluster. founders: how many of them are members at the beginning; None: all.
    """
    return _majority_of_disks_survives(steps, founders or nodes) and all(
        _majority_is_healthy(steps[:at], step, nodes)
        for at, step in enumerate(steps)
        if isinstance(step, Send) and step.wait
    )


def may_expire(cluster: Cluster) -> bool:
    """Return whether the session table is so small that a new session may be refused as expired. Rule: S3."""
    return "max_sessions" in cluster.limits


def minority(nodes: int) -> int:
    """Return how many disks of a cluster may be lost and not yet rebuilt at the same time. Rule: M4."""
    return (nodes - 1) // 2


def _majority_of_disks_survives(steps: Sequence[Step], founders: int) -> bool:
    """Return whether a majority of the disks survives, and damage comes in quiet moments and is repaired at once.

    Whether a change of the members was done is not known: a minority of the members is one of their least number.
    """
    least = founders
    """The number of members, if every removal so far was done and no addition was."""
    damaged: tuple[Target, ...] = ()
    is_empty = False
    """Nothing is left of the damaged data, so that its nodes have other identities."""
    lost: frozenset[NodeId] = frozenset()
    """Nodes that may still be rebuilding, or have unreadable old data."""
    caught_up_at = 0
    """Index of the step at which CAUGHT_UP may follow."""
    for at, step in enumerate(steps):
        quiet = tuple(steps[at - len(QUIET) : at]) == QUIET if at >= len(QUIET) else False
        if isinstance(step, RemoveNode):
            least -= len(target_parts(step.target))
            if lost and len(lost) > minority(least):
                return False
        if isinstance(step, Heal):
            caught_up_at = at + 1
        if isinstance(step, Disk) and step.needs_dead_node:
            emptied = (named_ids(step.on) or frozenset()) if step.lose == "all" else frozenset()
            if damaged or not (quiet or (emptied and len(lost | emptied) <= minority(least))):
                return False
            damaged, is_empty = target_parts(step.on), bool(emptied)
        elif isinstance(step, Rebuild):
            again = named_ids(step.target) or frozenset()
            if damaged:
                if damaged != target_parts(step.target):
                    return False
                caught_up_at = at + 1
            elif quiet:
                caught_up_at = at + 1
            elif not again or len(lost | again) > minority(least):
                return False
            damaged, lost = (), lost | again
        elif damaged and not isinstance(step, Start | Sleep) and not (is_empty and isinstance(step, Restart)):
            return False
        elif isinstance(step, Disk) and step.rot:
            lost |= named_ids(step.on) or frozenset()
            if len(lost) > minority(least):
                return False
        elif step == CAUGHT_UP:
            if not at or caught_up_at != at:
                return False
            lost = frozenset()
    return not damaged


def _majority_is_healthy(before: Sequence[Step], send: Send, nodes: int) -> bool:
    """Return whether the healed majority is still healthy, complete, and the one to which the senders are connected.

    It is if later steps were aimed at other nodes only, or only sent messages, slowed disks or copied data.
    """
    all_nodes = frozenset(range(1, nodes + 1))
    cut_off: frozenset[NodeId] = frozenset()
    for step in reversed(before):
        if isinstance(step, Heal) and step.what == "all":
            healed = all_nodes if step.on == "all" else named_ids(step.on) or frozenset()
            heard = all(each.via in healed for each in send.clients if each.via is not None)
            return 2 * len(healed) > nodes and not cut_off & healed and heard and not _lacks_data(before)
        cut_off |= all_nodes if step.hurts is None else step.hurts
    return False


def _lacks_data(before: Sequence[Step]) -> bool:
    """Return whether a node may still be rebuilding, or have damage of which a dead node has the only copy.

    The first does not count towards a majority yet; the second cannot send its followers the records they lack.
    """
    for step in reversed(before):
        if step == CAUGHT_UP:
            return False
        if isinstance(step, Rebuild) or (isinstance(step, Disk) and step.rot):
            return True
    return False
