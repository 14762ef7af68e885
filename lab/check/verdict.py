"""The content of verdict.json.

A check has three answers: PASS, FAIL, and UNKNOWN if it could not be made or had nothing to judge. UNKNOWN is never
counted as PASS.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

import msgspec
from msgspec import Struct

Result: TypeAlias = Literal["PASS", "FAIL", "UNKNOWN"]
Outcome: TypeAlias = Literal["pass", "broken", "missed", "undecided"]

EXIT_CODES: dict[Outcome, int] = {"pass": 0, "broken": 1, "undecided": 2, "missed": 3}

SHOWN_MAX = 400
"""Characters of one quoted line; the place says where the rest is."""


class Quote(Struct, frozen=True):
    """One line of one file, as evidence."""

    place: str
    """file:line, the file relative to the run directory."""
    text: str


class Violation(Struct, frozen=True):
    """A violation of one invariant, with the first place that shows it."""

    place: str
    message: str
    lines: tuple[Quote, ...] = ()

    def __str__(self) -> str:
        quoted = "".join(f"\n    {quote.place}: {quote.text}" for quote in self.lines)
        return f"{self.place}: {self.message}{quoted}"


class Check(Struct, frozen=True):
    """One invariant's answer."""

    name: str
    """A1 … A10, faults, run, watch."""
    title: str
    result: Result
    detail: str
    """What was judged, or why nothing could be judged."""
    decisive: bool = True
    """False: UNKNOWN is expected and does not leave the run undecided (for example, no client subscribed)."""
    violations: int = 0
    first: Violation | None = None


class ExpectationResult(Struct, frozen=True):
    """One expectation of the scenario."""

    text: str
    met: bool | None
    """None: it could not be judged."""
    found: str
    soft: bool = False
    """A miss is shown, but does not fail the run."""


class Outcomes(Struct, frozen=True):
    """Outcomes of all messages that clients sent, as numbers. Unknown ones are looked up in the log."""

    sent: int = 0
    acknowledged: int = 0
    rejected: int = 0
    unknown_in_log: int = 0
    """The client gave up, the log has it."""
    unknown_not_in_log: int = 0
    unresolved: int = 0
    """The history ends without an answer."""
    in_log: int = 0
    """Lines of the longest message log."""


class Verdict(Struct, frozen=True):
    """verdict.json."""

    outcome: Outcome
    checks: tuple[Check, ...]
    expectations: tuple[ExpectationResult, ...]
    messages: Outcomes

    @property
    def exit_code(self) -> int:
        """The exit code of the process that judged."""
        return EXIT_CODES[self.outcome]


def decide(checks: tuple[Check, ...], expectations: tuple[ExpectationResult, ...]) -> Outcome:
    """Return the worst result: a violation, then a missed expectation, then an undecided check."""
    if any(check.result == "FAIL" for check in checks):
        return "broken"
    if any(expectation.met is False and not expectation.soft for expectation in expectations):
        return "missed"
    if any(check.result == "UNKNOWN" and check.decisive for check in checks):
        return "undecided"
    if any(expectation.met is None and not expectation.soft for expectation in expectations):
        return "undecided"
    return "pass"


def encode_verdict(verdict: Verdict) -> bytes:
    """verdict.json, indented."""
    return msgspec.json.format(msgspec.json.encode(verdict), indent=1) + b"\n"


decode_verdict = msgspec.json.Decoder(Verdict).decode


def quote(place: str, line: bytes | str) -> Quote:
    """One line as evidence, cut to SHOWN_MAX characters."""
    text = (line.decode("utf-8", "backslashreplace") if isinstance(line, bytes) else line).rstrip("\n")
    return Quote(place, text if len(text) <= SHOWN_MAX else f"{text[:SHOWN_MAX]}… ({len(text)} characters)")


@dataclass
class Findings:
    """Violations of one invariant: the first is kept, all are counted."""

    name: str
    title: str
    first: Violation | None = None
    count: int = 0

    def add(self, place: str, message: str, *lines: Quote) -> None:
        self.count += 1
        if self.first is None:
            self.first = Violation(place, message, lines)

    def take(self, other: Findings) -> None:
        """Add the violations of another collection behind these."""
        self.count += other.count
        self.first = self.first or other.first

    def passed(self, detail: str) -> Check:
        """Return FAIL if anything was found, otherwise PASS."""
        if self.first is not None:
            return self.failed()
        return Check(self.name, self.title, "PASS", detail)

    def failed(self) -> Check:
        assert self.first is not None, self.name
        return Check(self.name, self.title, "FAIL", self.first.message, violations=self.count, first=self.first)

    def unknown(self, detail: str, *, decisive: bool = True) -> Check:
        """Return FAIL if anything was found, otherwise UNKNOWN."""
        if self.first is not None:
            return self.failed()
        return Check(self.name, self.title, "UNKNOWN", detail, decisive)
