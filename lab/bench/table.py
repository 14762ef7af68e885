"""The figures of a measurement as a table, with targets, and next to the figures of another measurement."""

from __future__ import annotations

from collections.abc import Sequence

from tabulate import tabulate

from lab.bench.figures import Bench, Change, Figure, Target, change, judge
from lab.paired import PAIRS_MIN

UNJUDGED = (
    f"Figures of fewer than {PAIRS_MIN} rounds are not judged: measure both with --rounds {PAIRS_MIN} or more, "
    "or compare two versions with `ab`."
)


def render(bench: Bench, before: Bench | None = None) -> str:
    """Return all tables, without a newline at the end."""
    of_systems = systems(bench) if bench.promises and before is None else figures(bench, before)
    parts = [_head(bench), of_systems, _targets(bench)]
    return "\n\n".join(part for part in parts if part)


def _head(bench: Bench) -> str:
    host = ", ".join(f"{name} {value}" for name, value in bench.host.items())
    how = "quick: few repeats, small sizes" if bench.quick else "in full"
    return f"{bench.started_utc}, {how}\n{host}"


def figures(bench: Bench, before: Bench | None = None) -> str:
    """Return the table of figures, next to those of another measurement if there is one."""
    rows, section, unjudged = [], "", False
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
            changed = change(figure, before)
            unjudged = unjudged or (changed is not None and changed.compared is None)
            row += compared(changed)
        section = figure.section
        rows.append(row)
    headers = ["section", "what", "median", "spread", "n", "unit", "x floor"]
    align = ["left", "left", "right", "right", "right", "left", "right"]
    if before is not None:
        headers += ["before", "ratio", "95 % interval", "answer"]
        align += ["right", "right", "right", "left"]
    return _tabulate(rows, headers, align) + (f"\n\n{UNJUDGED}" if unjudged else "")


def systems(bench: Bench) -> str:
    """Return a table with a row for each system: its medians, with the smallest and the largest value."""
    rows, columns = [], dict.fromkeys((figure.name, figure.unit) for figure in bench.figures)
    for system, promise in bench.promises.items():
        found = [bench.find(system, *column) for column in columns]
        rows.append([system, promise, *("-" if figure is None else _with_spread(figure) for figure in found)])
    headers = ["system", "an acknowledgement means", *(f"{name}\n{unit}" for name, unit in columns)]
    return _tabulate(rows, headers, ["left", "left", *["right"] * len(columns)])


def _with_spread(figure: Figure) -> str:
    low, high = min(figure.values), max(figure.values)
    return number(figure.median) + (f"\n{number(low)} .. {number(high)}" if low < high else "")


def compared(changed: Change | None) -> list[str]:
    """Return the columns of another measurement: its median, the ratio to it, the ratio's interval, the answer."""
    if changed is None:
        return ["-", "", "", ""]
    ratio = "" if changed.ratio is None else f"{changed.ratio:.2f}"
    if changed.compared is None:
        return [number(changed.before), ratio, "", ""]
    of_rounds = changed.compared
    interval = f"{of_rounds.low:.2f} .. {of_rounds.high:.2f}"
    return [number(changed.before), f"{of_rounds.ratio:.2f}", interval, of_rounds.answer]


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
