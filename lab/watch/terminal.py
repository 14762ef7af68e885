"""A run in the terminal, as it happens or afterwards: the same picture as on the page, and the same keys.

Texts of the run are shown as text: they are no markup, and characters that a terminal would obey are replaced.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar, Final

from rich.text import Text
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical
from textual.widgets import DataTable, Footer, RichLog, Sparkline, Static

from lab.show.sentences import OUTCOMES
from lab.watch.watcher import Watcher

LOOK_EVERY_S: Final = 0.1
MOST_NEWS: Final = 500
MOST_BUCKETS: Final = 120
LINES_SHOWN: Final = 18
"""Messages of all logs together."""
BEHIND_LEAST: Final = 50
"""A node that has delivered so many fewer messages than another is shown as behind."""
BLUE: Final = "#1e90ff"
MARKS: Final = {"leader": "★", "follower": "●", "candidate": "?", "down": "✕", "paused": "‖", "up": "○"}
STYLES: Final = {"leader": f"bold {BLUE}", "candidate": "yellow", "down": "red", "paused": "yellow"}
COLUMNS: Final = ("node", "state", "term", "delivered", "behind")
FAULTS: Final = frozenset({"kill", "pause", "link", "power_loss", "stop", "exit", "missed"})
HELP: Final = "n: a node's state, term and delivered messages · d: dark or light · q: leave · the list scrolls with ↑ ↓"


class Terminal(App[None]):
    """The program.

    Args:
        newest: returns the run to show, called again and again; None: there is none yet.
        speed: as for Watcher.
    """

    TITLE = "chatlab"
    ENABLE_COMMAND_PALETTE = False
    CSS = """
    #step { height: 1; color: $text-muted; padding: 0 1; }
    #say { height: auto; padding: 0 1; text-style: bold; border-left: thick $primary; display: none; }
    #head { height: 1; padding: 0 1; background: $panel; }
    #top { height: auto; max-height: 14; }
    #nodes { width: 3fr; height: auto; padding: 0 1; }
    #figures { width: 2fr; height: auto; padding: 0 1; }
    #rules { height: auto; padding: 0 1; color: $warning; }
    Sparkline { height: 3; margin: 0 0; }
    #below { height: 1fr; }
    #news { width: 3fr; border: round $primary; padding: 0 1; }
    #logs { width: 2fr; height: 1fr; border: round $primary; padding: 0 1; text-wrap: nowrap; text-overflow: ellipsis; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("d", "colours", "dark or light"),
        Binding("question_mark", "help", "help", key_display="?"),
        Binding("q", "quit", "quit"),
    ]

    def __init__(self, newest: Callable[[], Path | None], speed: float = 0.0) -> None:
        super().__init__()
        self._newest, self._speed = newest, speed
        self._watcher: Watcher | None = None
        self._told = 0
        self._turn = asyncio.Lock()

    def compose(self) -> ComposeResult:
        yield Static("Waiting for a run…", id="head")
        yield Static(id="step")
        yield Static(id="say")
        with Horizontal(id="top"):
            yield DataTable(id="nodes", cursor_type="none")
            with Vertical(id="figures"):
                yield Static(id="numbers")
                yield Sparkline([0], summary_function=max)
                yield Static(id="rules")
        with Horizontal(id="below"):
            yield RichLog(id="news", max_lines=2 * MOST_NEWS, wrap=True)
            yield Static(id="logs")
        yield Footer()

    def on_mount(self) -> None:
        self.query_one("#news").border_title = "What happens"
        self.query_one("#logs").border_title = "The logs"
        self.query_one("#nodes", DataTable).add_columns(*COLUMNS)
        self.query_one("#news").focus()
        self.run_worker(self._follow(), exclusive=True)

    def action_colours(self) -> None:
        self.theme = "textual-light" if self.current_theme.dark else "textual-dark"

    def action_help(self) -> None:
        self.notify(HELP, title="Keys")

    async def _follow(self) -> None:
        while self.is_running:
            await self.look()
            await asyncio.sleep(LOOK_EVERY_S)

    async def look(self) -> None:
        """Read what is new, and show it."""
        async with self._turn:
            await self._look()

    async def _look(self) -> None:
        path = self._newest()
        if path is not None and (self._watcher is None or self._watcher.path != path):
            self._close()
            self._watcher, self._told = Watcher(path, self._speed), 0
        if self._watcher is None:
            return
        watcher = self._watcher
        await asyncio.to_thread(watcher.look)
        picture = await asyncio.to_thread(watcher.plain)
        if self.is_running and watcher.picture.about:
            self._show(picture, watcher)

    def on_unmount(self) -> None:
        self._close()

    def _close(self) -> None:
        if self._watcher is not None:
            self._watcher.close()

    # ---- what is shown ---------------------------------------------------------------------------------

    def _show(self, picture: dict[str, Any], watcher: Watcher) -> None:
        say = picture["step"].get("say", "")
        self.query_one("#head", Static).update(head_text(picture))
        self.query_one("#step", Static).update(step_text(picture))
        self.query_one("#say", Static).update(Text(plain(say)))
        self.query_one("#say").styles.display = "block" if say else "none"
        table = self.query_one("#nodes", DataTable)
        table.clear()
        table.add_rows(node_rows(picture["nodes"]))
        self.query_one("#numbers", Static).update(figures_text(picture["figures"]))
        self.query_one(Sparkline).data = picture["figures"]["rate"][-MOST_BUCKETS:] or [0]
        self.query_one("#rules", Static).update(rules_text(picture["rules"]))
        self.query_one("#logs", Static).update(logs_text(picture["nodes"]))
        if watcher.picture.told != self._told:
            self._told = watcher.picture.told
            log = self.query_one("#news", RichLog)
            log.clear()
            for item in watcher.news_after(self._told - MOST_NEWS):
                log.write(news_text(item))


def plain(text: str) -> str:
    """Return a text of a run without characters that a terminal would obey."""
    return "".join(each if each.isprintable() else "�" for each in text)


def head_text(picture: dict[str, Any]) -> Text:
    """Return scenario, outcome and time."""
    outcome = picture["outcome"]
    mark, word = OUTCOMES.get(outcome, ("", "ended, being judged" if picture["ended"] else "running"))
    style = {"pass": "bold green", "": "bold"}.get(outcome, "bold red")
    world = "simulated" if picture["kind"] == "sim" else "live"
    return Text.assemble(
        (plain(picture["scenario"]), "bold"),
        "   ",
        (f"{mark} {word}".strip(), style),
        f"   {world}, seed {picture['seed']} · {picture['now']:.1f} s",
    )


def step_text(picture: dict[str, Any]) -> Text:
    """Return the step under way."""
    step = picture["step"]
    if not step:
        return Text("starting")
    return Text(f"step {step['index'] + 1} of {step['of']}: {plain(step['text'])}")


def node_rows(nodes: list[dict[str, Any]]) -> Iterator[tuple[Text, ...]]:
    """Yield the cells of the table, in the order of COLUMNS."""
    most = max((node["delivered"] for node in nodes), default=0)
    for node in nodes:
        state = (node["role"] or "up") if node["state"] == "up" else node["state"]
        behind = most - node["delivered"]
        yield (
            Text(f"node {node['id']}"),
            Text(f"{MARKS.get(state, '●')} {state}", style=STYLES.get(state, "")),
            Text(str(node["term"])),
            Text(f"{node['delivered']:,}"),
            Text(f"{behind:,}" if behind > BEHIND_LEAST else "", style="bold red"),
        )


def figures_text(figures: dict[str, Any]) -> Text:
    """Return the counts, the latest latencies and the rate."""
    p50, p99 = (next((each for each in reversed(figures[name]) if each is not None), None) for name in ("p50", "p99"))
    latency = "" if p50 is None else f"\nmedian {p50:g} ms, 99th percentile {p99:g} ms"
    rate = figures["rate"][-2] if len(figures["rate"]) > 1 else 0
    return Text(f"{figures['acked']:,} acknowledged, {figures['waiting']:,} waiting{latency}\n{rate:,} a second:")


def rules_text(rules: list[dict[str, Any]]) -> Text:
    """Return the rules on links that are in force."""
    links: dict[str, list[str]] = {}
    for rule in rules:
        links.setdefault(rule["text"], []).append(f"{rule['from']}→{rule['to']}")
    return Text("\n".join(f"✂ {' '.join(pairs)}: {plain(text)}" for text, pairs in links.items()))


def logs_text(nodes: list[dict[str, Any]]) -> Text:
    """Return the last messages of each node's log."""
    shown = Text(no_wrap=True, overflow="ellipsis")
    for node in nodes:
        shown.append(f"node {node['id']}\n", style="bold")
        for line in node["lines"][-max(2, LINES_SHOWN // len(nodes)) :]:
            shown.append(f"{line['seq_no']:>8} ", style="bold")
            shown.append(f"{line['sender_id']}: {plain(str(line['payload']))[:60]}\n")
    return shown


def news_text(item: dict[str, Any]) -> Text:
    """Return one thing that happened."""
    kind = item["kind"]
    style = (
        f"bold {BLUE}" if kind == "became_leader" else "bold red" if kind in FAULTS else "dim" if kind == "step" else ""
    )
    node = f"node {item['node']}" if item["node"] else ""
    return Text(f"{item['s']:9.3f}  {node:7} {plain(item['text'])}", style=style)
