"""Which nodes a target means at a moment, and whether an expectation holds then. Pure.

A ClusterView is what the lab knows of all nodes at one moment, from their processes and their STATUS answers; the live
runner and the simulator both make one.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import NamedTuple, assert_never

from msgspec import Struct

from lab.plan.expectation import CaughtUp, LastSeq, LeaderIs, MomentExpectation, RoleIs
from lab.plan.step import Chaos, Partition
from lab.plan.words import Target, TargetWord, target_parts
from nodeproc.core.messages import NOBODY, NodeId, SeqNo, Term


class NodeView(Struct, frozen=True):
    """One node at one moment. What follows `paused` is its latest STATUS; empty for a node that does not answer."""

    running: bool
    """Its process is there."""
    paused: bool = False
    role: str = ""
    """leader | follower | candidate; "" when it did not answer."""
    term: Term = 0
    leader: NodeId = NOBODY
    commit_seq: SeqNo = 0
    delivered_seq: SeqNo = 0

    @property
    def up(self) -> bool:
        """It runs and is not paused."""
        return self.running and not self.paused


class ClusterView(Struct, frozen=True):
    """All nodes of the cluster at one moment.

    killed: every node that the lab took down and has not started since.
    """

    nodes: dict[NodeId, NodeView]
    killed: tuple[NodeId, ...] = ()

    @property
    def ids(self) -> tuple[NodeId, ...]:
        return tuple(sorted(self.nodes))

    @property
    def up(self) -> tuple[NodeId, ...]:
        """Ids of the nodes that run and are not paused."""
        return tuple(node for node in self.ids if self.nodes[node].up)

    @property
    def leader(self) -> NodeId:
        """The node that leads the highest term among those that are up and say so; NOBODY if none does."""
        leading = [(self.nodes[node].term, node) for node in self.up if self.nodes[node].role == "leader"]
        return max(leading)[1] if leading else NOBODY

    @property
    def highest_term(self) -> Term:
        return max((view.term for view in self.nodes.values()), default=0)

    @property
    def committed(self) -> SeqNo:
        """The highest seq_no that any node which is up knows to be committed."""
        return max((self.nodes[node].commit_seq for node in self.up), default=0)

    def agreed_leader(self) -> tuple[NodeId, Term] | None:
        """The leader and term that every node which is up names, the leader itself among them; None without one."""
        named = {(self.nodes[node].leader, self.nodes[node].term) for node in self.up}
        if len(named) != 1:
            return None
        leader, term = named.pop()
        return (leader, term) if leader != NOBODY and leader == self.leader else None

    def caught_up(self, nodes: tuple[NodeId, ...]) -> bool:
        """These nodes have delivered all that is known to be committed."""
        return all(self.nodes[node].up and self.nodes[node].delivered_seq >= self.committed for node in nodes)


class NoSuchTarget(Exception):
    """A target means no node at this moment; says which word found nothing."""


def choose(target: Target, view: ClusterView, rng: random.Random) -> tuple[NodeId, ...]:
    """The nodes that a target means now, ascending, each once.

    Args:
        rng: the run's; draws for `follower`.

    Raises:
        NoSuchTarget: one of its parts means nobody now.
    """
    chosen: list[NodeId] = []
    for part in target_parts(target):
        nodes = (part,) if isinstance(part, int) else _meant(part, view, rng)
        if not nodes or any(node not in view.nodes for node in nodes):
            raise NoSuchTarget(f"no node is {part!r} now: {_show_roles(view)}")
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


def partition_pairs(step: Partition, view: ClusterView, rng: random.Random) -> tuple[tuple[NodeId, NodeId], ...]:
    """The directed links (from, to) that a partition cuts now, ascending.

    Args:
        rng: the run's; draws the halves.

    Raises:
        NoSuchTarget: nobody is the node that it is about, or more nodes are than its side has.
    """
    ids = view.ids
    most = len(ids) // 2 + 1
    match step.kind:
        case "isolate":
            out = {(a, b) for a in choose(step.node, view, rng) for b in ids}
            into = {(b, a) for a, b in out}
            cut = {"out": out, "in": into, "both": out | into}[step.direction]
        case "halves":
            cut = _between(rng.sample(ids, most), ids)
        case "majority" | "minority":
            size = most if step.kind == "majority" else len(ids) - most
            cut = _between(_side(step, choose(step.node, view, rng), size, ids, rng), ids)
        case "bridge":
            bridge = choose(step.node, view, rng)
            banks = tuple(node for node in ids if node not in bridge)
            cut = _between(rng.sample(banks, (len(banks) + 1) // 2), banks)
        case "ring":
            order = {node: place for place, node in enumerate(ids)}
            cut = {(a, b) for a in ids for b in ids if (order[a] - order[b]) % len(ids) not in (1, len(ids) - 1)}
        case "random":
            links = [(a, b) for a in ids for b in ids if a != b]
            cut = set(rng.sample(links, rng.randint(1, len(links) - 1)))
        case _:
            assert_never(step.kind)
    return tuple(sorted((a, b) for a, b in cut if a != b))


SHORTEST_STINT_S = 0.001


def draw_first_stint(chaos: Chaos, rng: random.Random) -> float:
    """Seconds for which a node runs before it stands still for the first time: it shall, in the time that there is."""
    return draw_stint(min(chaos.longest, max(chaos.time / 4, SHORTEST_STINT_S)), rng)


def draw_stint(longest: float, rng: random.Random) -> float:
    """Seconds for which a node in `chaos` runs, or stands still: short most often, each order of magnitude alike.

    Args:
        longest: seconds, SHORTEST_STINT_S or more.
    """
    return SHORTEST_STINT_S * math.exp(rng.random() * math.log(longest / SHORTEST_STINT_S))


def _side(
    step: Partition, nodes: tuple[NodeId, ...], size: int, ids: tuple[NodeId, ...], rng: random.Random
) -> list[NodeId]:
    """These nodes and random others, so many together."""
    if len(nodes) > size:
        raise NoSuchTarget(f"{len(nodes)} nodes are no part of a {step.kind}, which has {size} of {len(ids)}")
    return [*nodes, *rng.sample([node for node in ids if node not in nodes], size - len(nodes))]


def _between(side: Sequence[NodeId], nodes: tuple[NodeId, ...]) -> set[tuple[NodeId, NodeId]]:
    """The links between a side and the rest, both directions."""
    return {pair for a in side for b in nodes if b not in side for pair in ((a, b), (b, a))}


def _with_role(view: ClusterView, role: str) -> tuple[NodeId, ...]:
    return tuple(node for node in view.up if view.nodes[node].role == role)


def _show_roles(view: ClusterView) -> str:
    """`1 follower, 2 leader, 3 down`"""
    shown = []
    for node in view.ids:
        state = view.nodes[node]
        words = "down" if not state.running else "paused" if state.paused else state.role or "silent"
        shown.append(f"{node} {words}")
    return ", ".join(shown)


# ---- expectations of a moment -------------------------------------------------------------------


class Finding(NamedTuple):
    """What looking at an expectation found."""

    met: bool
    found: str
    """For people, whether met or not."""


def judge(expectation: MomentExpectation, view: ClusterView, rng: random.Random) -> Finding:
    """Whether an expectation holds at this moment. A target that means nobody is a miss, not an error."""
    try:
        match expectation:
            case LeaderIs():
                return _judge_leader(expectation, view, rng)
            case RoleIs():
                nodes = choose(expectation.node, view, rng)
                met = all(view.nodes[node].up and view.nodes[node].role == expectation.role for node in nodes)
                return Finding(met, _show_roles(view))
            case CaughtUp():
                nodes = choose(expectation.on, view, rng)
                return Finding(view.caught_up(nodes), f"committed {view.committed}, {_show_delivered(view, nodes)}")
            case LastSeq():
                nodes = choose(expectation.on, view, rng)
                met = all(view.nodes[node].up and meets(expectation, view.nodes[node].delivered_seq) for node in nodes)
                return Finding(met, _show_delivered(view, nodes))
            case _:
                assert_never(expectation)
    except NoSuchTarget as error:
        return Finding(False, str(error))


def _judge_leader(expectation: LeaderIs, view: ClusterView, rng: random.Random) -> Finding:
    nodes = choose(expectation.on, view, rng)
    wanted = expectation.node
    leads = wanted in view.nodes and view.nodes[wanted].up and view.nodes[wanted].role == "leader"
    named = all(view.nodes[node].up and view.nodes[node].leader == wanted for node in nodes)
    return Finding(leads and named, ", ".join(f"{node} names {view.nodes[node].leader}" for node in nodes))


def _show_delivered(view: ClusterView, nodes: tuple[NodeId, ...]) -> str:
    return ", ".join(f"node {node} delivered {view.nodes[node].delivered_seq}" for node in nodes)


def meets(expectation: LastSeq, seq_no: SeqNo) -> bool:
    """Whether one node's last seq_no is as expected."""
    exact, least = expectation.seq_no, expectation.at_least
    return (exact is None or seq_no == exact) and (least is None or seq_no >= least)
