"""A run's verdict and figures for a terminal: what summary.txt holds."""

from __future__ import annotations

from collections.abc import Sequence

from tabulate import tabulate

from lab.check.metrics import Failover, Latency, Metrics
from lab.check.verdict import Check, ExpectationResult, Outcome, Verdict
from lab.rundir import RunDir

CLOSING: dict[Outcome, str] = {
    "pass": "PASS",
    "broken": "FAIL: an invariant is broken",
    "missed": "FAIL: an expectation was missed",
    "undecided": "UNKNOWN: not everything could be judged",
}
_NONE = "-"
_MOST_FAILOVERS = 20
_WIDEST = 60
"""Characters of a column of text; longer ones go on in the next line."""


def render(run: RunDir, verdict: Verdict, metrics: Metrics | None) -> str:
    """The whole text, without a newline at its end."""
    name = metrics.scenario if metrics is not None else run.path.parent.name
    blocks = [name, _checks(verdict.checks), _violations(verdict.checks)]
    if verdict.expectations:
        blocks.append(_expectations(verdict.expectations))
    if metrics is not None:
        blocks += [_load(metrics, verdict), _availability(metrics), _failovers(metrics.failovers)]
        blocks += [_segments(metrics), _nodes(metrics)]
    blocks.append(f"{name}: {CLOSING[verdict.outcome]}")
    return "\n\n".join(block for block in blocks if block)


def _table(rows: Sequence[Sequence[str]], headers: Sequence[str], right_from: int = 0) -> str:
    """Columns from right_from on are numbers and stand at the right; 0: all stand at the left."""
    if not rows:
        return ""
    align = ["left" if not right_from or at < right_from else "right" for at in range(len(headers))]
    widths = None if right_from else _WIDEST
    return str(
        tabulate(rows, headers=headers, tablefmt="simple", colalign=align, disable_numparse=True, maxcolwidths=widths)
    )


def _checks(checks: Sequence[Check]) -> str:
    rows = [(check.name, check.title, _result(check), check.detail) for check in checks]
    return _table(rows, ("check", "about", "result", "judged"))


def _result(check: Check) -> str:
    return check.result if check.decisive else f"{check.result} (not asked)"


def _violations(checks: Sequence[Check]) -> str:
    blocks = []
    for check in checks:
        if check.first is not None:
            more = f"\n    and {check.violations - 1} more" if check.violations > 1 else ""
            blocks.append(f"{check.name} {check.first}{more}")
    return "\n".join(blocks)


def _expectations(expectations: Sequence[ExpectationResult]) -> str:
    rows = [(expectation_word(expected), expected.text, expected.found) for expected in expectations]
    return _table(rows, ("result", "expected", "found"))


def expectation_word(expected: ExpectationResult) -> str:
    """met | missed | missed (soft) | unknown"""
    word = "unknown" if expected.met is None else "met" if expected.met else "missed"
    return f"{word} (soft)" if expected.soft and not expected.met else word


def _load(metrics: Metrics, verdict: Verdict) -> str:
    load, messages = metrics.load, verdict.messages
    unknown = messages.unknown_in_log + messages.unknown_not_in_log
    rows = [
        (
            "nodes",
            f"{metrics.node_count}, links {metrics.links}, disks {metrics.disks}, durability {metrics.durability}",
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
    return _table(rows, ("load", ""))


def _latency(latency: Latency | None) -> str:
    if latency is None:
        return _NONE
    values = (latency.p50_ms, latency.p90_ms, latency.p99_ms, latency.p999_ms, latency.max_ms)
    names = ("p50", "p90", "p99", "p99.9", "max")
    return "ms: " + ", ".join(f"{name} {value:,.2f}" for name, value in zip(names, values, strict=True))


def _number(value: float | None) -> str:
    return _NONE if value is None else f"{value:,.1f}"


def _availability(metrics: Metrics) -> str:
    """What came of each kind of fault."""
    rows = [
        (
            shortened(kind.asked),
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
    headers = ("fault", "times", "no ack s", "longest", "elections", "suspected ms", "leader ms", "first ack ms")
    return _table(rows, headers, right_from=1)


def shortened(text: str) -> str:
    """For a column."""
    return text if len(text) <= _WIDEST else f"{text[: _WIDEST - 1]}…"


def _seconds(value: float | None) -> str:
    return _NONE if value is None else f"{value:.3f}"


def _failovers(failovers: Sequence[Failover]) -> str:
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
    headers = ("failover", "at s", "suspected ms", "leader ms", "who", "first ack ms")
    more = len(failovers) - len(rows)
    return _table(rows, headers, right_from=1) + (f"\nand {more} more in metrics.json" if more else "")


def _segments(metrics: Metrics) -> str:
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
    headers = ("part of the run", "from s", "for s", "acks", "acks/s", "p50 ms", "p99 ms", "max ms")
    return _table(rows, headers, right_from=1)


def _nodes(metrics: Metrics) -> str:
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
    return _table(rows, ("node", "starts", "CPU s", "CPU % of a core", "peak memory MiB"), right_from=1)
