"""What happened in a run, in sentences."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from lab.check.availability import FaultKind
from lab.check.metrics import Failover, Metrics
from lab.check.verdict import Verdict
from lab.rows import Meta

HIT: Final = {
    "kill": "was killed",
    "stop": "was stopped",
    "pause": "was paused",
    "power_loss": "lost power",
    "rebuild": "lost its disk",
    "exit": "exited after a disk fault",
}
"""Fault -> what it did to a node."""
OUTCOMES: Final = {
    "pass": ("✓", "PASS"),
    "broken": ("✗", "FAIL: an invariant is broken"),
    "missed": ("✗", "FAIL: an expectation was missed"),
    "undecided": ("?", "UNKNOWN: undecided"),
}
"""Outcome of a verdict -> its mark and words."""
FAILOVERS_MOST: Final = 5
KINDS_MOST: Final = 6


def sentences(meta: Meta, metrics: Metrics | None, verdict: Verdict) -> Iterator[str]:
    """Yield the story of a run, the result first."""
    yield from _result(meta, verdict)
    if meta.watched:
        yield "The simulation ended at the violation."
    elif meta.problem:
        yield f"The lab could not carry the run out to its end: {meta.problem}."
    if metrics is None:
        return
    yield _scale(meta, metrics, verdict)
    yield from _failovers(metrics.failovers)
    yield from _kinds(metrics)
    yield from _end(meta)


def _result(meta: Meta, verdict: Verdict) -> Iterator[str]:
    failed = [check for check in verdict.checks if check.result == "FAIL"]
    missed = [each for each in verdict.expectations if each.met is False and not each.soft]
    passed = sum(check.result == "PASS" for check in verdict.checks)
    if meta.mutant:
        yield f"The nodes ran with a planted bug, the mutant {meta.mutant}."
    if failed:
        names = ", ".join(f"{check.name} ({check.title})" for check in failed)
        yield f"{_number(len(failed), 'check')} failed: {names}."
    else:
        yield f"No invariant is broken: {_number(passed, 'check')} passed."
    if missed:
        yield f"{_number(len(missed), 'expectation')} of the scenario {'were' if len(missed) > 1 else 'was'} missed."
    elif verdict.expectations and not failed:
        yield "Every expectation of the scenario was met." if verdict.outcome == "pass" else ""
    unknown = [check for check in verdict.checks if check.result == "UNKNOWN" and check.decisive]
    if unknown and not failed:
        names = ", ".join(f"{check.name} ({check.title})" for check in unknown)
        yield f"The run does not show whether these hold: {names}."


def _scale(meta: Meta, metrics: Metrics, verdict: Verdict) -> str:
    load, messages = metrics.load, verdict.messages
    where = "ran as processes of one machine" if meta.kind == "live" else "were simulated, in virtual time,"
    text = f"{_number(metrics.node_count, 'node')} {where} for {metrics.duration_s:.1f} s. "
    if not load.sent:
        return text + "Clients sent no messages."
    text += f"Clients sent {_number(load.sent, 'message')}; {load.acknowledged:,} were acknowledged"
    if load.rejected:
        text += f", {load.rejected:,} were rejected"
    if load.unknown:
        text += f", and of {load.unknown:,} the clients never learned the outcome ({messages.unknown_in_log:,} of these"
        text += " are in the log)"
    return text + "."


def _failovers(failovers: tuple[Failover, ...]) -> Iterator[str]:
    for each in failovers[:FAILOVERS_MOST]:
        text = f"At {each.at_s:.2f} s the leader, node {each.node}, {HIT.get(each.fault, 'was hit: ' + each.fault)}."
        if each.suspected_ms is not None:
            text += f" The first node suspected it after {_ms(each.suspected_ms)}."
        if each.leader_ms is None:
            text += " No other leader followed."
        else:
            text += f" Node {each.leader} became leader after {_ms(each.leader_ms)}."
        if each.acknowledged_ms is not None:
            text += f" The next message was acknowledged {_ms(each.acknowledged_ms)} after the fault."
        elif each.leader_ms is not None:
            text += " No message was acknowledged afterwards."
        yield text
    if len(failovers) > FAILOVERS_MOST:
        more = _number(len(failovers) - FAILOVERS_MOST, "more time")
        yield f"The leader failed {more}; metrics.json lists all failovers."


def _kinds(metrics: Metrics) -> Iterator[str]:
    """Yield the effects of faults that did not hit a leader."""
    told = bool(metrics.failovers)
    kinds = [kind for kind in metrics.availability if not (told and kind.asked.endswith(("leader", "all")))]
    for kind in kinds[:KINDS_MOST]:
        yield _kind(kind)
    if len(kinds) > KINDS_MOST:
        yield f"{_number(len(kinds) - KINDS_MOST, 'more kind')} of faults are in the table of availability."


def _kind(kind: FaultKind) -> str:
    times = "once" if kind.times == 1 else _number(kind.times, "time")
    text = f"“{kind.asked}” happened {times}."
    if kind.unavailable_s_max is not None:
        text += f" The longest time without an acknowledgement after it was {_ms(kind.unavailable_s_max * 1000)}."
    led = "No node" if not kind.elections else _number(kind.elections, "node")
    return f"{text} {sentence_case(led)} became leader until the next fault."


def _end(meta: Meta) -> Iterator[str]:
    found = meta.convergence
    if found is not None and found.reached:
        yield f"After the heal all nodes had delivered the same messages within {_ms(found.took_s * 1000)}."
    elif found is not None:
        yield f"After the heal the nodes did not converge within {found.bound_s:g} s."


def _ms(value: float) -> str:
    return f"{value:.1f} ms" if value < 10 else f"{value:.0f} ms" if value < 1000 else f"{value / 1000:.2f} s"


_NUMBERS: Final = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def _number(count: int, noun: str) -> str:
    """Return number and noun: one node, 12 nodes."""
    text = _NUMBERS[count] if count < len(_NUMBERS) else f"{count:,}"
    return f"{text} {noun}{'' if count == 1 else 's'}"


def sentence_case(text: str) -> str:
    """Return a sentence with a capital letter at its start."""
    return text[:1].upper() + text[1:]


# ---- the rules ----------------------------------------------------------------------------------------


def rules(protocol: Path) -> dict[str, str]:
    """Return A1 … A10 -> what the protocol promises, from docs/protocol.md; {} if it cannot be read."""
    try:
        text = protocol.read_text("utf-8")
    except OSError:
        return {}
    found = re.findall(r"^- \*\*(A\d+) [^*]+\*\* (.+?)(?=^- \*\*|^##)", text, re.MULTILINE | re.DOTALL)
    return {name: re.sub(r"[`*]|\[([^\]]*)\]\([^)]*\)", r"\1", " ".join(rule.split())) for name, rule in found}
