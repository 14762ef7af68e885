"""`expect`: how the cluster has to be at one moment."""

from __future__ import annotations

import random
from typing import ClassVar, Literal, NamedTuple, TypeAlias, assert_never

from msgspec import Struct

from lab.steps.step import Step
from lab.steps.targets import ClusterView, NoSuchTarget, _show_roles, choose
from lab.words import CountOrNone, Target
from nodeproc.core.messages import NodeId, SeqNo


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


class Expectation(Struct, frozen=True, forbid_unknown_fields=True):
    """Base of all; the subclasses are listed below and nowhere else."""

    word: ClassVar[str]
    """The key that it has in YAML."""
    short: ClassVar[str] = ""
    """The field that a plain value stands for; "": none."""


class LeaderIs(Expectation, frozen=True, rename={"node": "is"}):
    """Every running node of `on` names this node as leader, and that node says that it leads."""

    word = "leader"
    short = "node"
    node: NodeId
    on: Target = "running"


class RoleIs(Expectation, frozen=True, rename={"role": "is", "node": "of"}):
    """These nodes have this role."""

    word = "role"
    node: Target
    role: Literal["leader", "follower", "candidate"]


class CaughtUp(Expectation, frozen=True):
    """These nodes have delivered all that any running node knows to be committed."""

    word = "caught_up"
    short = "on"
    on: Target


class LastSeq(Expectation, frozen=True, rename={"seq_no": "is"}):
    """How many messages these nodes have delivered. At least one of the two numbers is given.

    As a Run expectation: the last seq_no in their message logs.
    """

    word = "last_seq"
    short = "seq_no"
    seq_no: CountOrNone | None = None
    at_least: CountOrNone | None = None
    on: Target = "all"


MomentExpectation: TypeAlias = LeaderIs | RoleIs | CaughtUp | LastSeq
MOMENT_EXPECTATIONS: dict[str, type[Expectation]] = {each.word: each for each in (LeaderIs, RoleIs, CaughtUp, LastSeq)}


class Expect(Step, frozen=True):
    """Look at the nodes' STATUS now; each must be so at this moment. A miss does not end the run."""

    word = "expect"
    that: tuple[MomentExpectation, ...]
