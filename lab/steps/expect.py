"""`expect`: expectations of one moment; and the base of all expectations."""

from __future__ import annotations

import random
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from typing import Any, Literal, NamedTuple, Self, TypeVar

from msgspec import Struct

from lab.steps.entry import Entry, Worded
from lab.steps.machine import Run
from lab.steps.outlook import Outlook
from lab.steps.step import Step
from lab.steps.targets import ClusterView, NoSuchTarget, choose, show_roles
from lab.words import CountOrNone, Target
from nodeproc.core.messages import NodeId, SeqNo

_E = TypeVar("_E", bound="Expectation")


class Finding(NamedTuple):
    """Whether an expectation is met, and the state that was found, for people."""

    met: bool
    found: str


class Expectation(Worded, frozen=True):
    """Base of all expectations, of a moment or of the run."""

    @classmethod
    def read(cls, entry: Entry) -> Self:
        """Read and check the expectation from the value of its key. Raises ConfigError."""
        read = entry.struct(cls, cls.short)
        read.check(entry)
        least, most = read.bounds
        if least is not None and most is not None and least > most:
            entry.fail(f"never holds: at_least is {least}, and no more than {most} are allowed")
        return read

    @property
    def bounds(self) -> tuple[float | None, float | None]:
        """The least and the greatest number that is allowed; None: any."""
        return getattr(self, "at_least", None), getattr(self, "at_most", None)


def read_expectations(entry: Entry, known: Mapping[str, type[_E]]) -> tuple[_E, ...]:
    """Read one expectation or a list of them. Raises ConfigError.

    Args:
        known: word -> expectation.
    """
    value = entry.value
    if not isinstance(value, list):
        return (_read_one(entry, known),)
    if not value:
        entry.fail(f"an empty list; allowed: {', '.join(known)}")
    return tuple(_read_one(each, known) for each in entry.list_of("expectations"))


def _read_one(entry: Entry, known: Mapping[str, type[_E]]) -> _E:
    word = entry.word(known, "expectation")
    return known[word].read(entry.at(word))


# ---- of a moment ---------------------------------------------------------------------------------


class MomentExpectation(Expectation, frozen=True):
    """Base of the expectations of one moment; MOMENT_EXPECTATIONS lists the subclasses."""

    @staticmethod
    def read_field(entry: Entry) -> tuple[MomentExpectation, ...]:
        """Read a field that holds such expectations. Raises ConfigError."""
        return read_expectations(entry, MOMENT_EXPECTATIONS)

    @abstractmethod
    def look(self, view: ClusterView, rng: random.Random) -> Finding:
        """Decide whether the expectation holds now.

        Args:
            rng: the run's; draws for `follower`.

        Raises:
            NoSuchTarget: a target means no node.
        """

    def impossible(self, outlook: Outlook) -> Iterator[str]:
        """The reasons why the expectation certainly does not hold at this point of the scenario."""
        yield from ()


def judge(expectation: MomentExpectation, view: ClusterView, rng: random.Random) -> Finding:
    """Decide whether an expectation holds at this moment. A target that means no node is a miss, not an error."""
    try:
        return expectation.look(view, rng)
    except NoSuchTarget as error:
        return Finding(False, str(error))


def _show_delivered(view: ClusterView, nodes: tuple[NodeId, ...]) -> str:
    return ", ".join(f"node {node} delivered {view.nodes[node].delivered_seq}" for node in nodes)


class LeaderIs(MomentExpectation, frozen=True, rename={"node": "is"}):
    """These nodes name that node as leader, and it says so itself."""

    word = "leader"
    short = "node"
    node: NodeId
    on: Target = "running"

    def check(self, entry: Entry) -> None:
        entry.of("is").check_id(self.node)

    def impossible(self, outlook: Outlook) -> Iterator[str]:
        if "up" not in outlook.may_be(self.node):
            yield f"never holds: node {self.node} does not run here"

    def look(self, view: ClusterView, rng: random.Random) -> Finding:
        nodes = choose(self.on, view, rng)
        leads = self.node in view.nodes and view.nodes[self.node].up and view.nodes[self.node].role == "leader"
        named = all(view.nodes[node].up and view.nodes[node].leader == self.node for node in nodes)
        return Finding(leads and named, ", ".join(f"{node} names {view.nodes[node].leader}" for node in nodes))


class RoleIs(MomentExpectation, frozen=True, rename={"role": "is", "node": "of"}):
    """These nodes are `leader`, `follower` or `candidate`."""

    word = "role"
    node: Target
    role: Literal["leader", "follower", "candidate"]

    def look(self, view: ClusterView, rng: random.Random) -> Finding:
        nodes = choose(self.node, view, rng)
        met = all(view.nodes[node].up and view.nodes[node].role == self.role for node in nodes)
        return Finding(met, show_roles(view))


class CaughtUp(MomentExpectation, frozen=True):
    """These nodes have delivered all that any running node knows to be committed."""

    word = "caught_up"
    short = "on"
    on: Target

    def look(self, view: ClusterView, rng: random.Random) -> Finding:
        nodes = choose(self.on, view, rng)
        return Finding(view.caught_up(nodes), f"committed {view.committed}, {_show_delivered(view, nodes)}")


class LastSeq(MomentExpectation, frozen=True, rename={"seq_no": "is"}):
    """These nodes have delivered exactly, or at least, this many messages.

    As a Run expectation: the last seq_no in their message logs.
    """

    word = "last_seq"
    short = "seq_no"
    seq_no: CountOrNone | None = None
    at_least: CountOrNone | None = None
    on: Target = "all"

    def check(self, entry: Entry) -> None:
        if self.seq_no is None and self.at_least is None:
            entry.fail("give is, at_least or both")

    @property
    def bounds(self) -> tuple[float | None, float | None]:
        return self.at_least, self.seq_no

    def look(self, view: ClusterView, rng: random.Random) -> Finding:
        nodes = choose(self.on, view, rng)
        met = all(view.nodes[node].up and self.meets(view.nodes[node].delivered_seq) for node in nodes)
        return Finding(met, _show_delivered(view, nodes))

    def meets(self, seq_no: SeqNo) -> bool:
        """Return whether one node's last seq_no is as expected."""
        exact, least = self.seq_no, self.at_least
        return (exact is None or seq_no == exact) and (least is None or seq_no >= least)


MOMENT_EXPECTATIONS: dict[str, type[MomentExpectation]] = {
    each.word: each for each in (LeaderIs, RoleIs, CaughtUp, LastSeq)
}
"""Word in YAML -> expectation."""


class Expect(Step, frozen=True):
    """Check now; a miss fails the run but does not end it."""

    word = "expect"
    only = "that"
    that: tuple[MomentExpectation, ...]

    def shown(self) -> Any:
        return [each.show() for each in self.that]

    def aims(self) -> tuple[Struct, ...]:
        return self.that

    def impossible(self, outlook: Outlook) -> Iterator[str]:
        for each in self.that:
            yield from each.impossible(outlook)

    def without(self, gone: NodeId) -> Self | None:
        return None  # In a smaller cluster the expectation would be wrong.

    def findings(self) -> Iterator[str]:
        yield from (each.show() for each in self.that)

    async def do(self, run: Run, index: int) -> None:
        view = await run.view_now()
        for each in self.that:
            finding = judge(each, view, run.rng)
            run.note(index, each, met=finding.met, found=finding.found)
