"""The fault rows of a run: the only code that writes them, and the evidence that each fault had an effect."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import msgspec
from msgspec import structs

from lab.rows import FaultRow
from lab.steps import EFFECTS, LEFT, effect_of
from lab.steps.damage import Causes
from lab.steps.machine import Machine
from lab.steps.orders import Counts
from lab.steps.rules import LINK_EFFECTS, LinkCounts, Pair, Rule
from lab.steps.step import Effect
from nodeproc.core.messages import NodeId
from nodeproc.errors import EXIT_CORRUPTION

FATAL = ("refused", "failed")
"""The Counts after which a node has to exit."""


class _Lasting(NamedTuple):
    """A disk or clock fault that is in force.

    number: index of its row. proof: the field of Counts that shows its effect. before: the counts when it began.
    """

    number: int
    machine: Machine
    proof: str
    before: Counts


@dataclass(frozen=True, slots=True)
class Draft:
    """The row of an action that begins now. One of the methods adds the row to the book, when its evidence is known.

    t: ns, as in FaultBook. role, identity: of the node just before the action. asked: as FaultBook.asked.
    """

    book: FaultBook
    fault: str
    step: int
    t: int
    target: NodeId
    role: str
    identity: dict[str, Any]
    asked: tuple[str, int]

    def write(self, evidence: dict[str, Any], effect: bool, *, t_done: int = 0, over: bool = False) -> None:
        """Add the complete row of an action that is done.

        Args:
            t_done: when the evidence was observed; 0: now.
            over: the effect has ended as well.
        """
        self.book.keep(self._row(evidence, effect, t_done, over))

    def lasts(self, evidence: dict[str, Any], machine: Machine, proof: str, before: Counts) -> None:
        """Add the row of a disk or clock fault, which ends with FaultBook.healed(). See _Lasting."""
        self.book.lasting.append(_Lasting(self._open(evidence | {proof: 0}), machine, proof, before))

    def rules(self, rule: Rule, pairs: Sequence[Pair], before: Mapping[Pair, LinkCounts]) -> None:
        """Add the row of a link rule, which ends with FaultBook.links_over(). before: the evidence when it began.

        Without a pair, as in a cluster that has shrunk to one member, it has ended at once.
        """
        evidence = {"pairs": tuple(pairs), "rule": msgspec.to_builtins(rule)} | dict.fromkeys(LINK_EFFECTS, 0)
        if not pairs:
            self.write(evidence, False, over=True)
            return
        number = self._open(evidence)
        self.book.links |= {pair: (number, before[pair]) for pair in pairs}

    def busy(self, processes: int) -> None:
        """Add the row of processes that burn CPU until FaultBook.busy_over()."""
        self.book.busy.append(self._open({"processes": processes}))

    def _open(self, evidence: dict[str, Any]) -> int:
        """Add a row whose effect is not known before its end; return its index."""
        return self.book.open(self._row(evidence, effect=False))

    def _row(self, evidence: dict[str, Any], effect: bool, t_done: int = 0, over: bool = False) -> FaultRow:
        asked, number = self.asked
        done = t_done or self.book.now_ns()
        row = FaultRow(self.fault, self.target, self.role, self.t, done, evidence, effect, self.step)
        return structs.replace(row, t_healed=done if over else 0, asked=asked, round=number)


class FaultBook:
    """All fault rows of one run.

    Args:
        now_ns: CLOCK_MONOTONIC, or virtual time.
        on_row: gets each row when it is complete, so that a run that is killed leaves the rows so far.
    """

    def __init__(self, now_ns: Callable[[], int], on_row: Callable[[FaultRow], None] = lambda row: None) -> None:
        self.now_ns, self._on_row = now_ns, on_row
        self.on_change: Callable[[int, FaultRow, bool], None] = lambda number, row, begins: None
        """Called when a fault begins whose effect lasts, and when a row is complete: (index of the row, row, begins).
        """
        self.rows: list[FaultRow] = []
        self.causes = Causes()
        """The injected disk faults after which a node may still exit."""
        self.asked = ("", 0)
        """The step that asks for the next rows, in the scenario's words; a nemesis's number of the fault, from 1."""
        self.lasting: list[_Lasting] = []
        self.links: dict[Pair, tuple[int, LinkCounts]] = {}
        """Link with a rule -> (index of the rule's row, evidence before the rule)."""
        self.busy: list[int] = []
        """Indices of the rows of processes that burn CPU now."""

    def begin(
        self, fault: str, step: int, machine: Machine | None = None, asked: tuple[str, int] | None = None
    ) -> Draft:
        """Begin an action now, on this machine or on none alone. See FaultRow.

        Args:
            fault: the row's word.
            step: index of the step; -1 if the lab heals of its own accord.
            asked: as FaultBook.asked, if that may be about another step by now.
        """
        assert fault in EFFECTS, f"no fault says what a row of {fault} means; set `effect`"
        asked = (asked or self.asked) if step >= 0 else ("", 0)
        if machine is None:
            return Draft(self, fault, step, self.now_ns(), 0, "", {}, asked)
        return Draft(self, fault, step, self.now_ns(), machine.node, machine.role, machine.identity(), asked)

    def keep(self, row: FaultRow) -> None:
        """Add a complete row."""
        self.rows.append(row)
        self._on_row(row)
        self.on_change(len(self.rows) - 1, row, False)

    def open(self, row: FaultRow) -> int:
        """Add the row of a fault that lasts; return its index. The row is completed at the fault's end."""
        self.rows.append(row)
        self.on_change(len(self.rows) - 1, row, True)
        return len(self.rows) - 1

    def _complete(self, number: int, evidence: dict[str, Any], effect: bool) -> None:
        """Complete the row of a fault that has just ended."""
        row = self.rows[number]
        evidence = row.evidence | evidence
        self.rows[number] = structs.replace(row, evidence=evidence, effect=effect, t_healed=self.now_ns())
        self._on_row(self.rows[number])
        self.on_change(number, self.rows[number], False)

    # ---- disks and clocks ------------------------------------------------------------------------

    def was_failed(self, machine: Machine) -> bool:
        """Return whether a disk fault in force made a write or fdatasync of this node fail."""
        now = machine.counts()
        return any(
            each.proof in FATAL and getattr(now, each.proof) > getattr(each.before, each.proof)
            for each in self.lasting
            if each.machine is machine
        )

    def role_before(self, machine: Machine) -> str:
        """Return the node's role before the latest disk or clock fault in force; "" if there is none."""
        return next((self.rows[each.number].role for each in reversed(self.lasting) if each.machine is machine), "")

    def healed(self, fault: str, machine: Machine, proof: str = "") -> None:
        """End the faults of this word on the machine: all, or those with this proof."""
        over = [
            each
            for each in self.lasting
            if each.machine is machine and self.rows[each.number].fault == fault and proof in ("", each.proof)
        ]
        self.lasting = [each for each in self.lasting if each not in over]
        now = machine.counts() if over else None
        for each in over:
            hits = getattr(now, each.proof) - getattr(each.before, each.proof)
            evidence: dict[str, Any] = {each.proof: hits}
            if each.proof in FATAL:
                began = self.rows[each.number].t
                evidence["exits"] = [end.code for end in machine.exits if end.t >= began]
            self._complete(each.number, evidence, hits > 0)

    def ended(self, machine: Machine, code: int, role: str) -> str:
        """Return why a process that the lab did not end had to exit, and add a row; "" if no disk fault explains it.

        Args:
            role: of the node before its exit.
        """
        cause = self.causes.why(machine.node, code, machine.starts)
        if cause is None:
            return ""
        evidence = machine.identity() | {"exit": code, "because": cause.what}
        if code == EXIT_CORRUPTION and (says := machine.says()):
            evidence["says"] = says
        wanted, now = ("disk", cause.step, machine.node), self.now_ns()
        fault = next(row for row in reversed(self.rows) if (row.fault, row.step, row.target) == wanted)
        row = FaultRow("exit", machine.node, role, now, self.now_ns(), evidence, True, cause.step)
        self.keep(structs.replace(row, asked=fault.asked, round=fault.round))
        return cause.what

    def left(self, machine: Machine, code: int, role: str) -> None:
        """Add the row of a node that has stopped because it is a member no more."""
        now, evidence = self.now_ns(), machine.identity() | {"exit": code}
        self.keep(FaultRow(LEFT, machine.node, role, now, now, evidence, True, -1))

    # ---- links -----------------------------------------------------------------------------------

    def links_over(self, pairs: Sequence[Pair], now: Mapping[Pair, LinkCounts]) -> None:
        """End the rules of those of these links that have one. now: the evidence so far."""
        for pair in pairs:
            if pair in self.links:
                number, before = self.links.pop(pair)
                evidence = self.rows[number].evidence
                for name in LINK_EFFECTS:
                    evidence[name] += getattr(now[pair], name) - getattr(before, name)
                if number not in {other for other, _ in self.links.values()}:
                    self._complete(number, {}, any(evidence[name] for name in LINK_EFFECTS))

    # ---- busy processes --------------------------------------------------------------------------

    def busy_over(self, cpu_s: Sequence[float]) -> None:
        """End all busy rows. cpu_s: the CPU seconds that the processes of each used, in order."""
        numbers, self.busy = self.busy, []
        for number, took in zip(numbers, cpu_s, strict=True):
            self._complete(number, {"cpu_s": round(took, 3)}, round(took, 3) > 0)


def with_heals(rows: Sequence[FaultRow]) -> list[FaultRow]:
    """Return the rows by ascending time, with t_healed filled in where a later row implies it.

    For example, the start of a node that was paused and then killed heals both faults.
    """
    ordered = sorted(rows, key=lambda row: row.t)
    healed = list(ordered)
    down: dict[NodeId, list[int]] = {}
    """Node -> indices of the faults from which it is still down."""
    for at, row in enumerate(ordered):
        effect = effect_of(row.fault) if row.moved else Effect.NONE
        if effect is Effect.DOWN:
            down.setdefault(row.target, []).append(at)
        elif effect is Effect.UP:
            for index in down.pop(row.target, ()):
                healed[index] = structs.replace(ordered[index], t_healed=row.t_done)
    return healed
