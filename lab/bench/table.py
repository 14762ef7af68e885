"""The figures of a measurement as a table, with targets, and next to the figures of another measurement."""

from __future__ import annotations

from collections.abc import Sequence

from tabulate import tabulate

from lab.bench.figures import Bench, Figure, Target, judge

CHANGED = 0.05
"""Relative change of a median from which it counts as better or worse, if it is also outside the other's spread."""


def render(bench: Bench, before: Bench | None = None) -> str:
    """Return all tables, without a newline at the end."""
    parts = [_head(bench), _figures(bench, before), _targets(bench)]
    return "\n\n".join(part for part in parts if part)


def _head(bench: Bench) -> str:
    host = ", ".join(f"{name} {value}" for name, value in bench.host.items())
    how = "quick: few repeats, small sizes" if bench.quick else "in full"
    return f"{bench.started_utc}, {how}\n{host}"


def _figures(bench: Bench, before: Bench | None) -> str:
    rows, section = [], ""
    for figure in bench.figures:
        low, high = min(figure.values), max(figure.values)
        ratio = bench.ratio(figure)
        row = [
            figure.section if figure.section != section else "",
            figure.name,
            number(figure.median),
            f"{number(low)} .. {number(high)}" if len(figure.values) > 1 else "",
            str(len(figure.values)),
            figure.unit,
            "" if ratio is None else f"{ratio:.2f}",
        ]
        if before is not None:
            row.append(compared(figure, before))
        section = figure.section
        rows.append(row)
    headers = ["section", "what", "median", "spread", "n", "unit", "x floor"] + ["before"] * (before is not None)
    align = ["left", "left", "right", "right", "right", "left", "right"] + ["left"] * (before is not None)
    return _tabulate(rows, headers, align)


def compared(figure: Figure, before: Bench) -> str:
    """Return the other median, with `, better` or `, worse` if the median has changed beyond the other's spread."""
    other = before.find(*figure.key)
    if other is None:
        return "-"
    now, then = figure.median, other.median
    word = ""
    if abs(now - then) > CHANGED * abs(then) and not min(other.values) <= now <= max(other.values):
        word = ", better" if (now > then) == (figure.better == "more") else ", worse"
    return f"{number(then)}{word}"


def _targets(bench: Bench) -> str:
    rows = []
    for reached in judge(bench):
        if reached.verdict == "not measured":
            continue
        target = reached.target
        assert reached.value is not None
        rows.append(
            [
                f"{target.section}: {target.name}",
                _unit(target),
                number(target.least),
                number(target.goal),
                number(reached.value),
                reached.verdict,
            ]
        )
    align = ["left", "left", "right", "right", "right", "left"]
    return _tabulate(rows, ["target", "unit", "at least", "goal", "measured", ""], align)


def _unit(target: Target) -> str:
    if target.of_floor:
        return f"{target.unit}, x floor"
    return f"{target.unit}, worst" if target.worst else target.unit


def _tabulate(rows: Sequence[Sequence[str]], headers: Sequence[str], align: Sequence[str]) -> str:
    if not rows:
        return ""
    return str(tabulate(rows, headers=headers, tablefmt="simple", colalign=align, disable_numparse=True))


def number(value: float) -> str:
    """Return a number with three significant digits; numbers from 100 on as whole numbers."""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    if abs(value) >= 10:
        return f"{value:.1f}"
    return f"{value:.2f}" if abs(value) >= 1 else f"{value:.3f}"
