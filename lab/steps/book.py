"""The book of a run's faults: the only writer of rows of faults.jsonl, and of what proves that they had an effect."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from msgspec import structs

from lab.rows import FaultRow
from lab.steps.damage import Causes
from lab.steps.machine import Machine
from lab.steps.orders import Counts
from lab.steps.rules import LINK_EFFECTS, LinkCounts, Pair
from nodeproc.core.messages import NodeId
from nodeproc.errors import EXIT_CORRUPTION

FATAL = ("refused", "failed")
"""Counts of operations after which a node has to end."""


class _Lasting(NamedTuple):
    """A fault of a disk or clock that is in force.

    number: of its row. proof: the count that proves an effect. before: what the node had counted when it began.
    """

    number: int
    machine: Machine
    proof: str
    before: Counts


class FaultBook:
    """All rows of one run.

    Args:
        now_ns: CLOCK_MONOTONIC, or virtual time.
        keep: is handed each row when it is complete, so that a run that is killed leaves those.
    """

    def __init__(self, now_ns: Callable[[], int], keep: Callable[[FaultRow], None] = lambda row: None) -> None:
        self._now_ns, self._keep = now_ns, keep
        self.rows: list[FaultRow] = []
        self.causes = Causes()
        """What the lab did to disks, as far as a node may still end of it."""
        self._asked = ("", 0)
        self._lasting: list[_Lasting] = []
        self._links: dict[Pair, tuple[int, LinkCounts]] = {}
        """Link with a rule -> (number of its row, evidence before the rule)."""
        self._busy: list[int] = []
        """Rows of busy processes that are there."""

    def asking(self, text: str, number: int) -> None:
        """Rows from now on are of a step in these words. number: of a nemesis's faults, from 1."""
        self._asked = (text, number)

    # ---- rows ------------------------------------------------------------------------------------

    def write(
        self,
        fault: str,
        target: NodeId,
        role: str,
        t: int,
        evidence: dict[str, Any],
        effect: bool,
        step: int,
        *,
        t_done: int = 0,
        lasts: bool = False,
    ) -> int:
        """Add a row.

        Args:
            t_done: now, where left out.
            lasts: what it did and when it is over comes to be known later.

        Returns:
            its number.
        """
        asked, number = self._asked if step >= 0 else ("", 0)
        done = t_done or self._now_ns()
        row = FaultRow(fault, target, role, t, done, evidence, effect, step, asked=asked, round=number)
        self.rows.append(row)
        if not lasts:
            self._keep(row)
        return len(self.rows) - 1

    def _over(self, number: int, evidence: dict[str, Any], effect: bool) -> None:
        """A row that lasted is complete."""
        row = self.rows[number]
        whole = structs.replace(row, evidence=row.evidence | evidence, effect=effect, t_healed=self._now_ns())
        self.rows[number] = whole
        self._keep(whole)

    # ---- disks and clocks ------------------------------------------------------------------------

    def lasts(self, number: int, machine: Machine, proof: str, before: Counts) -> None:
        """The row is of a fault that this count of the node will prove."""
        self._lasting.append(_Lasting(number, machine, proof, before))

    def was_failed(self, machine: Machine) -> bool:
        """A write or fdatasync of this node came to nothing, by a fault that is in force."""
        now = machine.counts()
        return any(
            each.proof in FATAL and getattr(now, each.proof) > getattr(each.before, each.proof)
            for each in self._lasting
            if each.machine is machine
        )

    def role_before(self, machine: Machine) -> str:
        """What the node was when its disk or clock became bad; "" where neither is."""
        return next((self.rows[each.number].role for each in reversed(self._lasting) if each.machine is machine), "")

    def healed(self, fault: str, machine: Machine, proof: str = "") -> None:
        """Faults of this node's disk or clock are over: all of this word, or those with this proof."""
        over = [
            each
            for each in self._lasting
            if each.machine is machine and self.rows[each.number].fault == fault and proof in ("", each.proof)
        ]
        self._lasting = [each for each in self._lasting if each not in over]
        now = machine.counts() if over else None
        for each in over:
            hits = getattr(now, each.proof) - getattr(each.before, each.proof)
            evidence: dict[str, Any] = {each.proof: hits}
            if each.proof in FATAL:
                row = self.rows[each.number]
                evidence["exits"] = [end.code for end in machine.exits if end.t >= row.t]
            self._over(each.number, evidence, hits > 0)

    def ended(self, machine: Machine, code: int, role: str) -> str:
        """Why a process that nobody ended had to end; "" where no disk explains it. Leaves a row.

        Args:
            role: what the node was.
        """
        cause = self.causes.why(machine.node, code, machine.starts)
        if cause is None:
            return ""
        evidence = machine.identity() | {"exit": code, "because": cause.what}
        if code == EXIT_CORRUPTION and (says := machine.says()):
            evidence["says"] = says
        fault = next(
            row
            for row in reversed(self.rows)
            if (row.fault, row.step, row.target) == ("disk", cause.step, machine.node)
        )
        before, self._asked = self._asked, (fault.asked, fault.round)
        self.write("exit", machine.node, role, self._now_ns(), evidence, True, cause.step)
        self._asked = before
        return cause.what

    # ---- links -----------------------------------------------------------------------------------

    @property
    def treated(self) -> list[Pair]:
        """Links that have a rule."""
        return list(self._links)

    def treats(self, number: int, pairs: Sequence[Pair], before: Mapping[Pair, LinkCounts]) -> None:
        """The row is of a rule that these links have from now on."""
        for pair in pairs:
            self._links[pair] = (number, before[pair])

    def links_over(self, pairs: Sequence[Pair], now: Mapping[Pair, LinkCounts]) -> None:
        """The rules of these links, where they have one, are over."""
        for pair in pairs:
            if pair in self._links:
                number, before = self._links.pop(pair)
                evidence = self.rows[number].evidence
                for name in LINK_EFFECTS:
                    evidence[name] += getattr(now[pair], name) - getattr(before, name)
                if number not in {other for other, _ in self._links.values()}:
                    self._over(number, {}, any(evidence[name] for name in LINK_EFFECTS))

    # ---- busy processes --------------------------------------------------------------------------

    def busy(self, number: int) -> None:
        """The row is of busy processes that go on until they are ended."""
        self._busy.append(number)

    def busy_over(self, cpu_s: Sequence[float]) -> None:
        """All of them are gone, and took so much."""
        numbers, self._busy = self._busy, []
        for number, took in zip(numbers, cpu_s, strict=True):
            self._over(number, {"cpu_s": round(took, 3)}, round(took, 3) > 0)

    def begun(self, number: int) -> None:
        """What the row is about has begun only now."""
        self.rows[number] = structs.replace(self.rows[number], t_done=self._now_ns())
