"""`partition`: links are cut so that some nodes do not hear each other."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Final, Literal, Self, TypeAlias, assert_never

from msgspec import Struct

from lab.steps.cut import cut
from lab.steps.entry import Entry
from lab.steps.link import treat
from lab.steps.lot import Lot
from lab.steps.machine import Run
from lab.steps.step import Fault, Needs
from lab.steps.targets import ClusterView, NoSuchTarget, choose
from lab.words import Target, named_ids
from nodeproc.core.messages import NodeId

PartitionKind: TypeAlias = Literal["isolate", "halves", "majority", "minority", "bridge", "ring", "random"]
DIRECTIONS: Final[tuple[Literal["in", "out", "both"], ...]] = ("in", "out", "both", "both")
"""A search draws one of these."""
LEAST_NODES: Final[dict[PartitionKind, int]] = {
    "isolate": 2,
    "halves": 3,
    "majority": 3,
    "minority": 3,
    "bridge": 3,
    "ring": 4,
    "random": 2,
}
"""Kind -> the least cluster size in which it cuts a link."""
NODELESS: Final = ("halves", "ring", "random")
"""Kinds for which `node` has no meaning."""


def partition_pairs(step: Partition, view: ClusterView, rng: random.Random) -> tuple[tuple[NodeId, NodeId], ...]:
    """Return the directed links (from, to) that a partition cuts now, ascending.

    Args:
        rng: the run's; draws the halves.

    Raises:
        NoSuchTarget: `node` means no node now, or more nodes than that side has.
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


def _side(
    step: Partition, nodes: tuple[NodeId, ...], size: int, ids: tuple[NodeId, ...], rng: random.Random
) -> list[NodeId]:
    """Return these nodes and random others, `size` in total."""
    if len(nodes) > size:
        raise NoSuchTarget(f"{len(nodes)} nodes are no part of a {step.kind}, which has {size} of {len(ids)}")
    return [*nodes, *rng.sample([node for node in ids if node not in nodes], size - len(nodes))]


def _between(side: Sequence[NodeId], nodes: tuple[NodeId, ...]) -> set[tuple[NodeId, NodeId]]:
    """Return the links between a side and the rest, in both directions."""
    return {pair for a in side for b in nodes if b not in side for pair in ((a, b), (b, a))}


class Partition(Fault, frozen=True):
    """Cut links so that some nodes do not hear each other.

    isolate: `node` hears nobody and nobody hears it; direction: in: it hears nobody; out: nobody hears it. halves: two
    random halves, a majority and the rest. majority, minority: the same, with `node` on that side. bridge: two random
    halves of the other nodes that both hear `node`, and it them, but not each other. ring: each node hears only its two
    neighbours by id. random: some directed links are cut, at least one and not all.
    """

    word = "partition"
    short = "kind"
    drawn_from = 2
    leaves = ("link",)
    needs = Needs(proxy=True)
    kind: PartitionKind
    node: Target = "leader"
    direction: Literal["in", "out", "both"] = "both"

    def check(self, entry: Entry) -> None:
        ids, least = entry.setting.ids, LEAST_NODES[self.kind]
        if len(ids) < least:
            entry.fail(f"{self.kind} cuts nothing in a cluster of {len(ids)}, {least} nodes are needed")
        if self.kind in NODELESS and self.node != "leader":
            allowed = "node is for isolate, majority, minority and bridge"
            entry.at("node").fail(f"{self.kind} is about no node; {allowed}")
        if self.kind != "isolate" and self.direction != "both":
            entry.at("direction").fail(f"{self.kind} has no direction; direction is for isolate")

    def aims(self) -> tuple[Struct, ...]:
        return () if self.kind in NODELESS else (self,)

    @classmethod
    def draw(cls, lot: Lot) -> Self:
        kinds: tuple[PartitionKind, ...] = ("isolate", "isolate", "random")
        if lot.nodes >= 3:
            kinds += ("halves",)
        if lot.nodes >= 4:
            kinds += ("bridge", "ring")
        kind = lot.rng.choice(kinds)
        if kind == "isolate":
            return cls(kind=kind, node=lot.one(), direction=lot.rng.choice(DIRECTIONS))
        return cls(kind=kind, node=lot.one()) if kind == "bridge" else cls(kind=kind)

    @property
    def hurts(self) -> frozenset[NodeId] | None:
        return named_ids(self.node) if self.kind == "isolate" else None

    async def do(self, run: Run, index: int) -> None:
        await treat(run, partition_pairs(self, run.view, run.rng), cut(run), index)
