"""The state of all nodes at one moment, and the choice of the nodes that a target means. Pure.

Both worlds make a ClusterView from the nodes' processes and their STATUS answers.
"""

from __future__ import annotations

import random
from collections import Counter
from typing import assert_never

from msgspec import Struct

from lab.words import Target, TargetWord, target_parts
from nodeproc.core.messages import NOBODY, NodeId, SeqNo, Term


class NodeView(Struct, frozen=True):
    """One node at one moment. The fields after `paused` are from its latest STATUS; empty if it did not answer."""

    running: bool
    """The node has a process."""
    paused: bool = False
    role: str = ""
    """leader | follower | candidate; "" when it did not answer."""
    term: Term = 0
    leader: NodeId = NOBODY
    commit_seq: SeqNo = 0
    delivered_seq: SeqNo = 0

    @property
    def up(self) -> bool:
        """The node runs and is not paused."""
        return self.running and not self.paused


class ClusterView(Struct, frozen=True):
    """All members of the cluster at one moment.

    killed: every node that the lab took down and has not started since.
    """

    nodes: dict[NodeId, NodeView]
    killed: tuple[NodeId, ...] = ()
    others: tuple[NodeId, ...] = ()
    """Machines whose nodes are no members of the cluster, or not yet; only their ids mean them."""

    @property
    def ids(self) -> tuple[NodeId, ...]:
        return tuple(sorted(self.nodes))

    @property
    def up(self) -> tuple[NodeId, ...]:
        """Ids of the nodes that run and are not paused."""
        return tuple(node for node in self.ids if self.nodes[node].up)

    @property
    def leader(self) -> NodeId:
        """Of the nodes that are up and report that they lead, the one with the highest term; NOBODY without one."""
        leading = [(self.nodes[node].term, node) for node in self.up if self.nodes[node].role == "leader"]
        return max(leading)[1] if leading else NOBODY

    @property
    def highest_term(self) -> Term:
        return max((view.term for view in self.nodes.values()), default=0)

    @property
    def committed(self) -> SeqNo:
        """The highest commit_seq of the nodes that are up."""
        return max((self.nodes[node].commit_seq for node in self.up), default=0)

    def agreed_leader(self) -> tuple[NodeId, Term] | None:
        """Return the leader and term that all nodes report that are up, the leader included; None if they differ."""
        named = {(self.nodes[node].leader, self.nodes[node].term) for node in self.up}
        if len(named) != 1:
            return None
        leader, term = named.pop()
        return (leader, term) if leader != NOBODY and leader == self.leader else None

    def majority_leader(self) -> tuple[NodeId, Term] | None:
        """Return the leader and term that a majority of all nodes reports, the leader included; None if none does."""
        named = Counter((self.nodes[node].leader, self.nodes[node].term) for node in self.up)
        for (leader, term), votes in named.items():
            if 2 * votes > len(self.nodes) and leader in self.up:
                claim = self.nodes[leader]
                return (leader, term) if (claim.role, claim.term) == ("leader", term) else None
        return None

    def caught_up(self, nodes: tuple[NodeId, ...]) -> bool:
        """Return whether these nodes have delivered all messages that are known to be committed."""
        return all(self.nodes[node].up and self.nodes[node].delivered_seq >= self.committed for node in nodes)


class NoSuchTarget(Exception):
    """A target means no node at this moment; the text names the word."""


def choose(target: Target, view: ClusterView, rng: random.Random) -> tuple[NodeId, ...]:
    """Return the nodes that a target means now, ascending, each once.

    Args:
        rng: the run's; draws for `follower`.

    Raises:
        NoSuchTarget: one of its parts means no node now.
    """
    chosen: list[NodeId] = []
    for part in target_parts(target):
        nodes = (part,) if isinstance(part, int) else _meant(part, view, rng)
        if not nodes or any(node not in view.nodes and node not in view.others for node in nodes):
            raise NoSuchTarget(f"no node is {part!r} now: {show_roles(view)}")
        chosen += nodes
    return tuple(sorted(set(chosen)))


def _meant(word: TargetWord, view: ClusterView, rng: random.Random) -> tuple[NodeId, ...]:
    match word:
        case "leader":
            return (view.leader,) if view.leader != NOBODY else ()
        case "follower":
            followers = _with_role(view, "follower")
            return (rng.choice(followers),) if followers else ()
        case "followers":
            return _with_role(view, "follower")
        case "all":
            return view.ids
        case "running":
            return view.up
        case "killed":
            return tuple(sorted(view.killed))
        case "paused":
            return tuple(node for node in view.ids if view.nodes[node].paused)
        case "down":
            return tuple(node for node in view.ids if not view.nodes[node].running)
        case _:
            assert_never(word)


def _with_role(view: ClusterView, role: str) -> tuple[NodeId, ...]:
    return tuple(node for node in view.up if view.nodes[node].role == role)


def show_roles(view: ClusterView) -> str:
    """Return for example `1 follower, 2 leader, 3 down`."""
    shown = []
    for node in view.ids:
        state = view.nodes[node]
        words = "down" if not state.running else "paused" if state.paused else state.role or "silent"
        shown.append(f"{node} {words}")
    return ", ".join(shown)
