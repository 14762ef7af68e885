"""What the pairs of `run_lab.py ab` show: the decision, and the report. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from statistics import median
from typing import Any, Final, Literal, TypeAlias

from tabulate import tabulate

from lab.bench.table import number
from lab.compare.figures import QUANTITIES, Quantity
from lab.compare.trees import Ran
from lab.paired import EXCLUDED, PAIRS_MIN, Compared, Series, judge
from lab.runs import BROKEN, INTERRUPTED, MISSED, PASS, UNDECIDED

Word: TypeAlias = Literal["PASS", "BROKEN", "UNDECIDED", "WORSE", "INTERRUPTED"]
EXIT_CODES: Final[dict[Word, int]] = {
    "PASS": PASS,
    "BROKEN": BROKEN,
    "UNDECIDED": UNDECIDED,
    "WORSE": MISSED,
    "INTERRUPTED": INTERRUPTED,
}


@dataclass(frozen=True, slots=True)
class Pair:
    """Two runs with the same seed, one of each version. number: 0 for the first runs, which are not counted."""

    number: int
    seed: int
    base: Ran
    candidate: Ran

    @property
    def counts(self) -> bool:
        return self.number > 0 and self.base.passed and self.candidate.passed

    @property
    def causes(self) -> list[str]:
        """Why the pair does not count, one line for each run that did not pass."""
        name = f"pair {self.number}" if self.number else "first runs"
        sides = (("base", self.base), ("candidate", self.candidate))
        return [f"{name}, {side}: {ran.problem}" for side, ran in sides if not ran.passed]


@dataclass(frozen=True)
class Report:
    """The result of `ab`.

    base, candidate: names of the two versions.
    aa: both are the same, so that a change in either direction is an error of the measurement.
    planned: number of pairs to measure.
    judged: names of the figures that decide.
    """

    scenario: str
    base: str
    candidate: str
    aa: bool
    planned: int
    pairs: tuple[Pair, ...]
    judged: tuple[str, ...]
    interrupted: bool = False

    @property
    def exit_code(self) -> int:
        return EXIT_CODES[self.decision[0]]

    @cached_property
    def counted(self) -> list[Pair]:
        return [pair for pair in self.pairs if pair.counts]

    @cached_property
    def compared(self) -> dict[str, tuple[Series, Compared]]:
        """Name -> values and comparison of each figure that all counted runs have, in the order of QUANTITIES."""
        series = {
            each.name: Series(
                [pair.base.values[each.name] for pair in self.counted],
                [pair.candidate.values[each.name] for pair in self.counted],
                each.better,
            )
            for each in QUANTITIES
            if self.counted and self._runs_with(each.name) == 2 * len(self.counted)
        }
        together = judge({name: each for name, each in series.items() if name in self.judged})
        return {name: (each, together.get(name) or judge({name: each})[name]) for name, each in series.items()}

    def _runs_with(self, name: str) -> int:
        """Return the number of counted runs that have this figure."""
        return sum((name in pair.base.values) + (name in pair.candidate.values) for pair in self.counted)

    @cached_property
    def decision(self) -> tuple[Word, str]:
        """The decision and its reason."""
        if self.interrupted:
            return "INTERRUPTED", f"after {sum(pair.number > 0 for pair in self.pairs)} of {self.planned} pairs"
        if any(pair.candidate.code == BROKEN for pair in self.pairs):
            return "BROKEN", "an invariant does not hold in a run of the candidate"
        if len(self.counted) < PAIRS_MIN:
            return "UNDECIDED", f"{len(self.counted)} of {self.planned} pairs count, {PAIRS_MIN} are needed"
        answers = {name: self._answer(name) for name in self.judged if name in self.compared}
        worse = [self._in_words(name) for name, answer in answers.items() if answer == "worse"]
        if worse:
            return "WORSE", ", ".join(worse)
        if doubts := self._doubts(answers):
            return "UNDECIDED", "; ".join(doubts)
        return "PASS", f"no change of {self._percent} {'' if self.aa else 'for the worse '}in {', '.join(answers)}"

    @property
    def _percent(self) -> str:
        return f"{EXCLUDED - 1:.0%} or more"

    def _answer(self, name: str) -> str:
        """Return the answer to the question of the command; with `aa` a change for the better is one too many."""
        series, compared = self.compared[name]
        if self.aa and compared.answer != "worse":
            swapped = Series(series.candidate, series.base, series.better)
            return "not worse" if judge({name: swapped})[name].answer == "not worse" == compared.answer else "undecided"
        return compared.answer

    def _doubts(self, answers: dict[str, str]) -> list[str]:
        """Return the reasons why nothing can be said although no figure is worse."""
        wide = [self._in_words(name) for name, answer in answers.items() if answer == "undecided"]
        doubts = [f"a change of {self._percent} is not excluded: {', '.join(wide)}"] if wide else []
        for name in self.judged:
            if name not in answers and (runs := self._runs_with(name)):
                doubts.append(f"{name} was measured in {runs} of {2 * len(self.counted)} runs")
        if not answers and not doubts:
            doubts.append(f"no run has {' or '.join(self.judged)}")
        if any(pair.base.passed and not pair.candidate.passed for pair in self.pairs):
            doubts.append("runs of the candidate did not pass where those of the base did")
        return doubts

    def _in_words(self, name: str) -> str:
        compared = self.compared[name][1]
        return f"{name} x {compared.ratio:.2f} ({compared.low:.2f} .. {compared.high:.2f})"

    # ---- for people, for programs ---------------------------------------------------------------

    def text(self) -> str:
        """Return the report without a newline at the end."""
        causes = [f"not counted: {cause}" for pair in self.pairs for cause in pair.causes]
        lines = [
            f"{self.scenario}: {len(self.counted)} pairs count of {self.planned}",
            f"base       {self.base}",
            f"candidate  {self.candidate}",
        ]
        blocks = ["\n".join(lines), self._table(), "\n".join(causes), f"ab: {': '.join(self.decision)}"]
        return "\n\n".join(block for block in blocks if block)

    def _table(self) -> str:
        headers = ["figure", "unit", "base", "candidate", "ratio", "95 % interval", "p", "answer"]
        rows = [self._row(each, *self.compared[each.name]) for each in QUANTITIES if each.name in self.compared]
        align = ["left", "left", *["right"] * 5, "left"]
        return str(tabulate(rows, headers=headers, colalign=align, disable_numparse=True)) if rows else ""

    def _row(self, quantity: Quantity, series: Series, compared: Compared) -> list[str]:
        return [
            quantity.name,
            quantity.unit,
            number(median(series.base)),
            number(median(series.candidate)),
            f"{compared.ratio:.3f}",
            f"{compared.low:.3f} .. {compared.high:.3f}",
            f"{compared.p_worse:.3f}",
            self._answer(quantity.name) if quantity.name in self.judged else "(not judged)",
        ]

    def plain(self) -> dict[str, Any]:
        """Return the --json document."""
        word, reason = self.decision
        return {
            "exit_code": self.exit_code,
            "decision": word,
            "reason": reason,
            "scenario": self.scenario,
            "base": self.base,
            "candidate": self.candidate,
            "aa": self.aa,
            "figures": [
                self._plain_figure(each, *self.compared[each.name]) for each in QUANTITIES if each.name in self.compared
            ],
            "pairs": [
                {
                    "pair": pair.number,
                    "seed": pair.seed,
                    "counts": pair.counts,
                    "not_counted": pair.causes,
                    "base": pair.base.values,
                    "candidate": pair.candidate.values,
                }
                for pair in self.pairs
            ],
        }

    def _plain_figure(self, quantity: Quantity, series: Series, compared: Compared) -> dict[str, Any]:
        bounded = len(series.base) >= PAIRS_MIN
        return {
            "name": quantity.name,
            "unit": quantity.unit,
            "better": quantity.better,
            "judged": quantity.name in self.judged,
            "base": median(series.base),
            "candidate": median(series.candidate),
            "ratio": compared.ratio,
            "interval": [compared.low, compared.high] if bounded else None,
            "p_worse": compared.p_worse,
            "p_better": compared.p_better,
            "answer": self._answer(quantity.name),
        }
