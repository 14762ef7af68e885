"""Judge the scenario's `expectations` section, from the run directory alone.

`expect` and `wait` steps were judged while the run was on; meta.json has their answers, which are passed on.
"""

from __future__ import annotations

import json
import math
from array import array
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, assert_never

from lab.check.history import LogLine, MessageLog, RunFileError, read_history, read_pieces
from lab.check.judge import Case
from lab.check.metrics import Metrics, latencies_between
from lab.check.verdict import ExpectationResult, Outcomes
from lab.plan.expectation import (
    LATENCY_SHARES,
    Acknowledged,
    EventInterval,
    EventSeen,
    LatencyIs,
    Memory,
    NumberingContinues,
    Order,
    RunExpectation,
    TermGrowth,
    Throughput,
    Unavailable,
)
from lab.rows import Phase
from lab.rundir import RunDir
from lab.steps.expect import LastSeq
from lab.words import Target, target_parts

NS_PER_S = 1_000_000_000
MIB = 1 << 20


class _Found(NamedTuple):
    met: bool | None
    text: str


def expectation_results(case: Case, metrics: Metrics | None) -> list[ExpectationResult]:
    """The results of the `expect`, `wait` and `send` steps as the run recorded them, and of the final section.

    Args:
        metrics: the result of lab.check.metrics.measure; None if it failed.
    """
    found = case.meta.expectations if case.meta is not None else ()
    results = [ExpectationResult(f"step {each.step + 1}: {each.text}", each.met, each.found) for each in found]
    if case.scenario is None:
        return [*results, ExpectationResult("the scenario's expectations", None, case.reasons[0])]
    for expectation in case.scenario.expectations:
        judged = _judge(case, expectation, metrics)
        soft = isinstance(expectation, Throughput | Unavailable | LatencyIs) and expectation.soft
        results.append(ExpectationResult(expectation.show(), judged.met, judged.text, soft))
    return results


def _judge(case: Case, expectation: RunExpectation, metrics: Metrics | None) -> _Found:
    match expectation:
        case LastSeq():
            return _last_seq(expectation, case)
        case Order():
            return _order(expectation, case)
        case NumberingContinues():
            return _numbering(expectation, case)
        case EventSeen():
            return _event_seen(expectation, case)
        case EventInterval():
            return _event_interval(expectation, case)
        case Acknowledged():
            return _acknowledged(expectation, case.messages)
        case Throughput() | Unavailable():
            if metrics is None or not metrics.load.acknowledged:
                return _Found(None, "nothing was measured")
            rate, gap = metrics.load.throughput_per_s, metrics.load.longest_gap_s
            if isinstance(expectation, Throughput):
                return _Found(rate >= expectation.at_least, f"{rate:,.0f} messages/s")
            return _Found(gap <= expectation.at_most, f"{gap:.3f} s without an acknowledgement")
        case LatencyIs():
            return _latency(case.run, expectation)
        case Memory():
            return _memory(expectation, metrics)
        case TermGrowth():
            if metrics is None or not metrics.terms.first:
                return _Found(None, "no event names a leader")
            terms = metrics.terms
            return _Found(terms.growth <= expectation.at_most, f"from term {terms.first} to {terms.last}")
        case _:
            assert_never(expectation)


def _latency(run: RunDir, expectation: LatencyIs) -> _Found:
    """Judge latencies. A message that was not acknowledged counts as slower than every acknowledged one."""
    try:
        part = _part_between(run, expectation.between)
        if isinstance(part, str):
            return _Found(None, part)
        took, sent = latencies_between(run, *part)
    except RunFileError as error:
        return _Found(None, str(error))
    if not sent:
        return _Found(
            None, "no message was sent in this part of the run" if expectation.between else "nothing was sent"
        )
    met, found = True, []
    for name, share in LATENCY_SHARES.items():
        allowed: float | None = getattr(expectation, name)
        if allowed is None:
            continue
        if share * sent > took.count:
            met = False
            found.append(f"{name} not acknowledged")
            continue
        value_ns = took.largest if share == 1.0 else took.percentiles((share * sent / took.count,))[0]
        met = met and value_ns <= allowed * NS_PER_S
        found.append(f"{name} {value_ns / 1e6:.3g} ms")
    return _Found(met, f"{', '.join(found)}; {took.count:,} of {sent:,} messages acknowledged")


def _part_between(run: RunDir, names: tuple[str, str] | None) -> tuple[float, float] | str:
    """Return start and end of a part of the run, ns, or the reason why it has none."""
    if names is None:
        return (-math.inf, math.inf)
    if not run.history.is_file():
        return "no history"
    times: list[float] = []
    for _, row in read_history(run.history):
        if isinstance(row, Phase) and row.phase == "step" and row.detail == names[len(times)]:
            times.append(row.t)
            if len(times) == len(names):
                return (times[0], times[1])
    return f"the step {names[len(times)]!r} did not begin" + (f" after {names[0]!r}" if times else "")


def _memory(expectation: Memory, metrics: Metrics | None) -> _Found:
    peaks = {cost.node: cost.rss_peak_bytes / MIB for cost in (metrics.nodes if metrics is not None else ())}
    if not any(peaks.values()):
        return _Found(None, "nothing was measured")
    node = max(peaks, key=lambda each: peaks[each])
    return _Found(peaks[node] <= expectation.at_most, f"{peaks[node]:.1f} MiB on node {node}")


def _targets(target: Target, nodes: Sequence[int]) -> list[int] | None:
    """Return the nodes of a target; None if it names a role, because roles change during the run."""
    found: set[int] = set()
    for part in target_parts(target):
        if part in ("all", "running"):
            found.update(nodes)
        elif isinstance(part, int):
            found.add(part)
        else:
            return None
    return sorted(found)


_NO_TARGET = _Found(None, "its target is a role, and roles are not recorded in the files of a finished run")

# ---- of the logs ---------------------------------------------------------------------------------


def _last_seq(expectation: LastSeq, case: Case) -> _Found:
    targets = _targets(expectation.on, case.nodes)
    if targets is None:
        return _NO_TARGET
    last_seqs = {file.node: file.last_seq() for file in case.files}
    found = ", ".join(f"node {node}: {last_seqs.get(node, 'no log')}" for node in targets)
    if not all(expectation.meets(last_seqs[node]) for node in targets if node in last_seqs):
        return _Found(False, found)
    return _Found(True if all(node in last_seqs for node in targets) else None, found)


def _numbering(expectation: NumberingContinues, case: Case) -> _Found:
    if case.term_starts is None:
        return _Found(None, "the log was not read through")
    terms = len(case.term_starts)
    places = ", ".join(f"term {term} from seq_no {seq_no}" for term, seq_no in case.term_starts)
    if not terms:
        return _Found(False, "no message in the log")
    return _Found(terms >= expectation.terms and case.contiguous, places)


def _order(expectation: Order, case: Case) -> _Found:
    equal = (
        case.agreement is not None and case.agreement.result == "PASS" and len({each.size for each in case.files}) == 1
    )
    files = case.files[:1] if equal else case.files
    if not files:
        return _Found(None, "no message log")
    find = _find_consecutive if expectation.consecutive else _find_in_order
    for file in files:
        found = find(expectation, _lines_from(MessageLog(file.path, file.name), expectation.first))
        if not found.met:
            return _Found(found.met, f"{file.name}: {found.text}")
    return found


def _lines_from(log: MessageLog, first: int | None) -> Iterator[LogLine]:
    for chunk in log.chunks():
        for line in chunk.lines:
            if first is None or line.seq_no >= first:
                yield line


def _find_in_order(expectation: Order, lines: Iterator[LogLine]) -> _Found:
    wanted, at, places = expectation.payloads, 0, []
    for line in lines:
        if line.payload == wanted[at]:
            places.append(line.seq_no)
            at += 1
            if at == len(wanted):
                return _Found(True, f"at seq_no {_ranges(places)}")
        if at == 0 and expectation.first is not None:
            return _Found(False, f"seq_no {line.seq_no} holds {line.payload!r}")
    return _Found(False, f"{wanted[at]!r} is not in the log" + (f" after seq_no {places[-1]}" if places else ""))


def _find_consecutive(expectation: Order, lines: Iterator[LogLine]) -> _Found:
    wanted = list(expectation.payloads)
    window: list[LogLine] = []
    for line in lines:
        window.append(line)
        if len(window) < len(wanted):
            continue
        if [each.payload for each in window] == wanted:
            return _Found(True, f"at seq_no {window[0].seq_no}..{line.seq_no}")
        if expectation.first is not None:
            bad = next(each for each, text in zip(window, wanted, strict=True) if each.payload != text)
            return _Found(False, f"seq_no {bad.seq_no} holds {bad.payload!r}")
        del window[0]
    return _Found(False, "they are nowhere consecutive")


def _ranges(numbers: list[int]) -> str:
    """1..3, 7"""
    shown: list[list[int]] = []
    for number in numbers:
        if shown and number == shown[-1][1] + 1:
            shown[-1][1] = number
        else:
            shown.append([number, number])
    return ", ".join(str(first) if first == last else f"{first}..{last}" for first, last in shown)


def _acknowledged(expectation: Acknowledged, messages: Outcomes) -> _Found:
    if not messages.sent:
        return _Found(None, "no message in the history")
    text = f"{messages.acknowledged} of {messages.sent} acknowledged"
    for count, what in (
        (messages.rejected, "rejected"),
        (messages.unknown_in_log, "unknown but in the log"),
        (messages.unknown_not_in_log, "unknown and not in the log"),
        (messages.unresolved, "without an answer"),
    ):
        if count:
            text += f", {count} {what}"
    met = messages.acknowledged == messages.sent and messages.acknowledged >= expectation.at_least
    return _Found(met, text)


# ---- of the events -------------------------------------------------------------------------------


def _events_named(run: RunDir, node: int, *names: str) -> Iterator[dict[str, Any]]:
    """Events of these names with all their fields; other lines are not decoded."""
    path = run.events(node)
    if not path.is_file():
        return
    marks = [f'"event":"{name}"'.encode() for name in names]
    for piece in read_pieces(path):
        if not any(mark in piece.data for mark in marks):
            continue
        for line in piece.data.split(b"\n"):
            if any(mark in line for mark in marks):
                try:
                    event = json.loads(line)
                except (ValueError, RecursionError):
                    continue  # A torn line of a killed node; any other is in Facts.unread_events.
                if isinstance(event, dict) and "event" in event and isinstance(event.get("t_ns"), int):
                    yield event


def _as_text(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _event_seen(expectation: EventSeen, case: Case) -> _Found:
    targets = _targets(expectation.on, case.nodes)
    if targets is None:
        return _NO_TARGET
    if case.unread_events:
        return _Found(None, case.unread_events)
    counts = {}
    for node in targets:
        counts[node] = sum(
            1
            for event in _events_named(case.run, node, expectation.event)
            if all(_as_text(event.get(key)) == _as_text(value) for key, value in expectation.where.items())
        )
    if missing := [node for node in targets if not case.has_events(node)]:
        return _Found(None, "no events of " + ", ".join(f"node {node}" for node in missing))
    total = sum(counts.values())
    most = expectation.at_most
    met = total >= expectation.at_least and (most is None or total <= most)
    return _Found(met, f"{total}: " + ", ".join(f"node {node} {count}" for node, count in counts.items()))


def _event_interval(expectation: EventInterval, case: Case) -> _Found:
    targets = _targets(expectation.on, case.nodes)
    if targets is None:
        return _NO_TARGET
    if case.unread_events:
        return _Found(None, case.unread_events)
    met: bool | None = None
    found = []
    for node in targets:
        intervals = _intervals(case.run, node, expectation.event)
        if len(intervals) < expectation.at_least:
            found.append(f"node {node}: {len(intervals)} intervals")
            continue
        median = sorted(intervals)[len(intervals) // 2] / NS_PER_S
        near = abs(median - expectation.near) <= expectation.tolerance
        met = near if met is None else met and near
        found.append(f"node {node}: median {median * 1000:.0f} ms of {len(intervals)}")
    return _Found(bool(met), ", ".join(found))


def _intervals(run: RunDir, node: int, name: str) -> array[int]:
    """Nanoseconds between each two consecutive events of this kind, except across a restart."""
    intervals = array("q")
    before: int | None = None
    for event in _events_named(run, node, name, "starting"):
        if event["event"] != name:
            before = None
            continue
        if before is not None:
            intervals.append(event["t_ns"] - before)
        before = event["t_ns"]
    return intervals
