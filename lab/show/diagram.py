"""`run_lab.py diagram`: a run as a message sequence diagram, as text or SVG.

There is one lane for the clients and one for each node; time runs downwards. An arrow is drawn where its frame arrived,
with the content of the frame next to it; the arrow of a lost frame ends in x. The diagram suits shrunk scenarios:
repetitions are left out and counted.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import Final

from lab import values
from lab.rundir import RunDir, RunDirError
from lab.show.story import CLIENTS, Arrow, Item, Note, Skipped, Story, around, read

LANE: Final = 12
"""Characters from one lane to the next."""
LATE_S: Final = 0.005
"""For a frame that took longer, the diagram also shows when it was sent."""
LINES_MAX: Final = 400
AROUND: Final = 60
"""Number of lines that --around shows."""
PASS, USAGE = 0, 64

ROW_PX, LANE_PX, LEFT_PX, TOP_PX, TEXT_PX = 18, 150, 90, 60, 620


# ---- text -----------------------------------------------------------------------------------------------


def render_text(story: Story, most: int = LINES_MAX) -> str:
    """Return the diagram as text.

    Args:
        most: maximum number of lines of the story; if there are more, the last ones are shown.
    """
    lanes = [CLIENTS, *story.nodes]
    items = story.items[-most:]
    head = " " * 10 + "".join(_centred("clients" if lane == CLIENTS else f"node {lane}") for lane in lanes)
    lines = [story.title, "", head.rstrip()]
    if len(items) < len(story.items):
        lines.append(f"{'…':>9} {_rails(lanes)}  {len(story.items) - len(items)} earlier lines left out")
    lines += [_line(story, lanes, item) for item in items]
    lines.append("")
    lines.append(f"=> {story.ending}" if story.ending else "=> nothing broke")
    if story.frames != "all":
        kept = "no frames were recorded" if story.frames == "none" else "plain traffic was not recorded"
        lines.append(f"({kept}; --sim --frames records all frames)")
    return "\n".join(lines) + "\n"


def _centred(text: str) -> str:
    return text.center(LANE)


def _rails(lanes: list[int]) -> str:
    return "".join(_centred("|") for _ in lanes)


def _line(story: Story, lanes: list[int], item: Item) -> str:
    rails = list(_rails(lanes))
    at = {lane: LANE * place + (LANE - 1) // 2 for place, lane in enumerate(lanes)}
    for place in at.values():
        rails[place - 1 : place + 2] = [" ", "|", " "]
    match item:
        case Arrow():
            _draw_arrow(rails, at[item.source], at[item.to], item.lost)
            words = item.says + _sent(story, item)
        case Note():
            rails[at[item.lane]] = item.mark
            words = item.text
        case Skipped():
            words = f"… {item.count} {item.what}"
    return f"{story.seconds(item.t):9.4f} {''.join(rails)}  {words}".rstrip()


def _draw_arrow(rails: list[str], start: int, end: int, lost: bool) -> None:
    right = end > start
    inside = range(min(start, end) + 1, max(start, end))
    for place in inside:
        rails[place] = "-"
    if lost:
        tip = (start + end) // 2
        for place in inside:
            if (place > tip) == right and place != tip:
                rails[place] = " "
        rails[tip] = "x"
    else:
        rails[end - 1 if right else end + 1] = ">" if right else "<"


def _sent(story: Story, arrow: Arrow) -> str:
    if arrow.lost:
        return "  (lost)"
    late = (arrow.t - arrow.sent) / 1e9 > LATE_S
    return f"  (sent at {story.seconds(arrow.sent):.4f})" if late else ""


# ---- SVG ------------------------------------------------------------------------------------------------


def render_svg(story: Story, most: int = LINES_MAX) -> str:
    """Return the diagram as SVG; an arrow slants from the time when its frame was sent to the arrival time."""
    items = story.items[-most:]
    lanes = [CLIENTS, *story.nodes]
    times = sorted({item.t for item in items} | {item.sent for item in items if isinstance(item, Arrow)})
    rows: dict[int, int] = {}
    height = 0
    for t in times:  # One row for each item at this time.
        rows[t] = height
        height += max(sum(item.t == t for item in items), 1)
    width = LEFT_PX + LANE_PX * len(lanes) + TEXT_PX
    bottom = TOP_PX + ROW_PX * (height + 1)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{bottom + 40}" font-family="sans-serif" '
        'font-size="11">',
        '<rect width="100%" height="100%" fill="white"/>',
        f'<text x="10" y="20" font-size="14" font-weight="bold">{escape(story.title)}</text>',
    ]
    x = {lane: LEFT_PX + LANE_PX * place + LANE_PX // 2 for place, lane in enumerate(lanes)}
    for lane in lanes:
        name = "clients" if lane == CLIENTS else f"node {lane}"
        parts.append(f'<text x="{x[lane]}" y="{TOP_PX - 14}" text-anchor="middle" font-weight="bold">{name}</text>')
        parts.append(f'<line x1="{x[lane]}" y1="{TOP_PX - 6}" x2="{x[lane]}" y2="{bottom}" stroke="#bbb"/>')
    parts += _svg_items(story, items, x, rows, LEFT_PX + LANE_PX * len(lanes) + 10)
    ending = story.ending or "nothing broke"
    colour = "#b00020" if story.ending else "#207020"
    parts.append(f'<text x="10" y="{bottom + 22}" font-size="13" fill="{colour}">{escape(ending)}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"


def _svg_items(
    story: Story, items: list[Item], x: dict[int, int], rows: dict[int, int], words_at: int
) -> Iterator[str]:
    used: dict[int, int] = {}
    for item in items:
        row = rows[item.t] + used.get(item.t, 0)
        used[item.t] = used.get(item.t, 0) + 1
        y = TOP_PX + ROW_PX * (row + 1)
        yield f'<text x="8" y="{y + 4}" fill="#777">{story.seconds(item.t):.4f}</text>'
        match item:
            case Arrow():
                yield from _svg_arrow(item, x, TOP_PX + ROW_PX * (rows[item.sent] + 1), y)
                words, colour = item.says + _sent(story, item), "#a05a00" if item.lost else "#222"
            case Note():
                fill = {"*": "#2060a0", "#": "#b00020", "o": "#207020"}[item.mark]
                yield f'<circle cx="{x[item.lane]}" cy="{y}" r="5" fill="{fill}"/>'
                words, colour = item.text, fill
            case Skipped():
                words, colour = f"… {item.count} {item.what}", "#777"
        yield f'<text x="{words_at}" y="{y + 4}" fill="{colour}">{escape(words)}</text>'


def _svg_arrow(arrow: Arrow, x: dict[int, int], y_sent: int, y: int) -> Iterator[str]:
    start, end = x[arrow.source], x[arrow.to]
    if arrow.lost:
        end = (start + end) // 2
        yield f'<text x="{end}" y="{y + 4}" text-anchor="middle" fill="#b00020" font-weight="bold">x</text>'
    sign = 1 if end > start else -1
    colour = "#a05a00" if arrow.lost else "#222"
    yield f'<line x1="{start}" y1="{y_sent}" x2="{end - 6 * sign}" y2="{y}" stroke="{colour}"/>'
    if not arrow.lost:
        tip = f"{end},{y} {end - 8 * sign},{y - 4} {end - 8 * sign},{y + 4}"
        yield f'<polygon points="{tip}" fill="{colour}"/>'


# ---- the command ----------------------------------------------------------------------------------------


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `run_lab.py diagram`."""
    parser.add_argument(
        "run", metavar="RUN_DIR", type=Path, help="such as results/latest; --sim --frames records all frames"
    )
    parser.add_argument("--svg", action="store_true", help="write diagram.svg into the run directory instead")
    parser.add_argument("--all", action="store_true", help="also show repetitions and the start of the nodes")
    parser.add_argument(
        "--around",
        metavar="WORD",
        help="show only the lines around the first fault or event with this word, such as kill",
    )
    parser.add_argument(
        "--lines",
        metavar="N",
        type=values.between(1, 1_000_000),
        help=f"show the last N lines ({LINES_MAX}), or N around WORD ({AROUND})",
    )


def main(options: argparse.Namespace) -> int:
    """Draw a run; return 0, or 64 if there is no such run or nothing with WORD."""
    try:
        run = RunDir.open(options.run)
    except RunDirError as error:
        print(error, file=sys.stderr)
        return USAGE
    story = read(run, everything=options.all)
    lines = options.lines or LINES_MAX
    if options.around:
        try:
            around(story, options.around, options.lines or AROUND)
        except ValueError as error:
            print(error, file=sys.stderr)
            return USAGE
    if options.svg:
        run.diagram.write_text(render_svg(story, lines), "utf-8")
        print(run.diagram)
    else:
        print(render_text(story, lines), end="")
    return PASS
