"""A run's verdict and metrics as tables, for a terminal and for summary.txt."""

from __future__ import annotations

from collections.abc import Sequence

import tabulate as tabulate_module
from tabulate import tabulate

from lab.check.metrics import Failover, Latency, Metrics
from lab.check.verdict import Check, ExpectationResult, Verdict
from lab.rundir import RunDir

tabulate_module.MIN_PADDING = 0  # Headers above numbers need no padding.

WIDTH = 110
"""Width of summary.txt in characters."""
_NONE = "-"
_MOST_FAILOVERS = 20
_NARROWEST = 12
"""Minimum width of a column of text, in characters."""
_GAP = 2
"""Spaces between two columns."""


def closing(verdict: Verdict) -> str:
    """Return the verdict on one line: PASS, or FAIL or UNKNOWN with its first cause."""
    for check in verdict.checks:
        if check.result == "FAIL":
            cause = check.detail if check.first is None else f"{check.first.place}: {check.first.message}"
            return f"FAIL: {check.name} {check.title}: {cause}"
    for expected in verdict.expectations:
        if expected.met is False and not expected.soft:
            return f"FAIL: expected {expected.text}; found {expected.found}"
    if verdict.outcome == "pass":
        return "PASS"
    for check in verdict.checks:
        if check.result == "UNKNOWN" and check.decisive:
            return f"UNKNOWN: {check.name} {check.title}: {check.detail}"
    unjudged = next(each for each in verdict.expectations if each.met is None and not each.soft)
    return f"UNKNOWN: expected {unjudged.text}; found {unjudged.found}"


def render(run: RunDir, verdict: Verdict, metrics: Metrics | None, width: int = WIDTH) -> str:
    """Return the tables of a run, without a newline at the end.

    Args:
        width: of the terminal in characters. Text is wrapped to it; evidence from logs is not.
    """
    name = metrics.scenario if metrics is not None else run.path.parent.name
    blocks = [name, _checks(verdict.checks, width), _violations(verdict.checks)]
    if verdict.expectations:
        blocks.append(_expectations(verdict.expectations, width))
    if metrics is not None:
        blocks += [_load(metrics, verdict, width), _availability(metrics, width), _failovers(metrics.failovers, width)]
        blocks += [_segments(metrics, width), _nodes(metrics, width)]
    return "\n\n".join(block for block in blocks if block)


def _table(rows: Sequence[Sequence[str]], headers: Sequence[str], width: int, wrapped: Sequence[int] = (0,)) -> str:
    """Return a table that is at most `width` characters wide, as far as its columns allow.

    Args:
        wrapped: indexes of the columns of text, which are wrapped if necessary. All columns after the last of them
            contain numbers and are aligned to the right.
    """
    if not rows:
        return ""
    columns = range(len(headers))
    natural = [max(len(line) for row in (headers, *rows) for line in row[at].split("\n")) for at in columns]
    fixed = sum(natural[at] for at in columns if at not in wrapped) + _GAP * (len(headers) - 1)
    free, widths = width - fixed, dict(enumerate(natural))
    for left, at in zip(range(len(wrapped), 0, -1), sorted(wrapped, key=lambda at: natural[at]), strict=True):
        widths[at] = max(min(natural[at], free // left), _NARROWEST)
        free -= widths[at]
    return str(
        tabulate(
            rows,
            headers=headers,
            tablefmt="simple",
            colalign=["left" if at <= max(wrapped) else "right" for at in columns],
            disable_numparse=True,
            maxcolwidths=[widths[at] if at in wrapped else None for at in columns],
        )
    )


def _checks(checks: Sequence[Check], width: int) -> str:
    rows = [(check.name, check.title, _result(check), check.detail) for check in checks]
    return _table(rows, ("check", "about", "result", "judged"), width, wrapped=(3,))


def _result(check: Check) -> str:
    return check.result if check.decisive else f"{check.result} (optional)"


def _violations(checks: Sequence[Check]) -> str:
    blocks = []
    for check in checks:
        if check.first is not None:
            more = f"\n    and {check.violations - 1} more" if check.violations > 1 else ""
            blocks.append(f"{check.name} {check.first}{more}")
    return "\n".join(blocks)


def _expectations(expectations: Sequence[ExpectationResult], width: int) -> str:
    rows = [(expectation_word(expected), expected.text, expected.found) for expected in expectations]
    return _table(rows, ("result", "expected", "found"), width, wrapped=(1, 2))


def expectation_word(expected: ExpectationResult) -> str:
    """Return met | missed | missed (soft) | unknown."""
    word = "unknown" if expected.met is None else "met" if expected.met else "missed"
    return f"{word} (soft)" if expected.soft and not expected.met else word


def _disks(metrics: Metrics) -> str:
    cost = metrics.supervision
    return metrics.disks if cost is None else f"{metrics.disks} ({cost.text(metrics.load.acknowledged)})"


def _load(metrics: Metrics, verdict: Verdict, width: int) -> str:
    load, messages = metrics.load, verdict.messages
    network = "network" if metrics.links == "kernel" else "links"
    unknown = messages.unknown_in_log + messages.unknown_not_in_log
    rows = [
        (
            "nodes",
            f"{metrics.node_count}, {network} {metrics.links}, disks {_disks(metrics)}, "
            f"durability {metrics.durability}",
        ),
        ("sent", f"{load.sent:,} messages"),
        ("acknowledged", f"{load.acknowledged:,} messages"),
        ("rejected", f"{load.rejected:,} messages"),
        ("unknown", f"{unknown:,} messages, of which {messages.unknown_in_log:,} are in the log"),
        ("throughput", f"{load.throughput_per_s:,.0f} messages/s over {load.duration_s:.3f} s ({metrics.links})"),
        ("payload", f"{load.payload_bytes:,} bytes"),
        ("latency", _latency(load.latency)),
        (
            "longest gap",
            f"{load.longest_gap_s * 1e3:,.1f} ms without an acknowledgement, at {load.longest_gap_at_s:.3f} s",
        ),
    ]
    if metrics.converged_s is not None:
        rows.append(("converged", f"{metrics.converged_s:.3f} s after the heal"))
    if metrics.terms.first:
        terms = metrics.terms
        rows.append(("terms", f"{terms.first} to {terms.last}, {terms.elections} times a node became leader"))
    if metrics.cpu_us_per_message is not None:
        rows.append(("CPU", f"{metrics.cpu_us_per_message:,.2f} µs/message, all nodes added"))
    return _table(rows, ("load", ""), width, wrapped=(1,))


def _latency(latency: Latency | None) -> str:
    if latency is None:
        return _NONE
    values = (latency.p50_ms, latency.p90_ms, latency.p99_ms, latency.p999_ms, latency.max_ms)
    names = ("p50", "p90", "p99", "p99.9", "max")
    return "ms: " + ", ".join(f"{name} {value:,.2f}" for name, value in zip(names, values, strict=True))


def _number(value: float | None) -> str:
    return _NONE if value is None else f"{value:,.1f}"


def _availability(metrics: Metrics, width: int) -> str:
    """Return the table of the effects of each kind of fault."""
    rows = [
        (
            kind.asked,
            str(kind.times),
            _seconds(kind.unavailable_s_median),
            _seconds(kind.unavailable_s_max),
            str(kind.elections),
            _number(kind.detected_ms_median),
            _number(kind.elected_ms_median),
            _number(kind.acknowledged_ms_median),
        )
        for kind in metrics.availability
    ]
    headers = (
        "fault",
        "times",
        "no ack\ns",
        "longest\ns",
        "leader\nchanges",
        "suspected\nms",
        "leader\nms",
        "first ack\nms",
    )
    return _table(rows, headers, width)


def _seconds(value: float | None) -> str:
    return _NONE if value is None else f"{value:.3f}"


def _failovers(failovers: Sequence[Failover], width: int) -> str:
    rows = [
        (
            f"{failover.fault} node {failover.node}",
            f"{failover.at_s:.3f}",
            _number(failover.suspected_ms),
            _number(failover.leader_ms),
            f"node {failover.leader}" if failover.leader else _NONE,
            _number(failover.acknowledged_ms),
        )
        for failover in failovers[:_MOST_FAILOVERS]
    ]
    headers = ("failover", "at\ns", "suspected\nms", "leader\nms", "new\nleader", "first ack\nms")
    more = len(failovers) - len(rows)
    return _table(rows, headers, width) + (f"\nand {more} more in metrics.json" if more else "")


def _segments(metrics: Metrics, width: int) -> str:
    rows = []
    for segment in metrics.segments:
        latency = segment.latency
        rows.append(
            (
                segment.name,
                f"{segment.start_s:.3f}",
                f"{segment.duration_s:.3f}",
                f"{segment.acknowledged:,}",
                f"{segment.throughput_per_s:,.0f}",
                _number(latency.p50_ms if latency else None),
                _number(latency.p99_ms if latency else None),
                _number(latency.max_ms if latency else None),
            )
        )
    headers = ("part of the run", "from\ns", "for\ns", "acks", "acks/s", "p50\nms", "p99\nms", "max\nms")
    return _table(rows, headers, width)


def _nodes(metrics: Metrics, width: int) -> str:
    rows = [
        (
            f"node {cost.node}",
            str(cost.starts),
            f"{cost.cpu_s:.2f}",
            _number(cost.cpu_percent),
            f"{cost.rss_peak_bytes / (1 << 20):,.1f}",
        )
        for cost in metrics.nodes
    ]
    return _table(rows, ("node", "starts", "CPU\ns", "CPU %\nof a core", "peak memory\nMiB"), width)
