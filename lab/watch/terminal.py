"""A run in the terminal, as it happens or afterwards: the same picture as on the page, and the same keys.

With a session by hand the keys of the page's buttons inject faults; without one they do nothing.

Texts of the run are shown as text: they are no markup, and characters that a terminal would obey are replaced.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar, Final

from rich.text import Text
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical
from textual.widgets import DataTable, Footer, Input, OptionList, RichLog, Sparkline, Static

from lab.plan.scenario import MAX_NODES
from lab.show.sentences import OUTCOMES
from lab.watch.orders import CHAT_CLIENT, ORDERS, chat
from lab.watch.session import Session, SessionOver
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
SURE_S: Final = 1.0
"""So long after typing, the key of a harmful fault is asked for twice."""
HELP: Final = "d: dark or light · q: leave · the list of what happens scrolls with ↑ ↓"
HELP_BY_HAND: Final = (
    "1 to 9: choose a node · k p r s c w: what the footer says, to this node · h: heal all · l: the next link of the "
    "leader · /: send a message · colon: any step of a scenario · e: end the session · Esc: leave a text or a menu\n"
)
BY_HAND: Final = frozenset({"choose", "act", "heal", "link", "write", "end"})
"""Actions that need a session."""
TEXTS: Final = {"say": f"a message of client {CHAT_CLIENT}", "step": "any step: disk: {on: 2, slow: 100ms}"}


class Terminal(App[None]):
    """The program.

    Args:
        newest: returns the run to show, called again and again; None: there is none yet.
        speed: as for Watcher.
        begin: starts a session by hand, whose run is shown instead; None: there is none.
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
    #said { height: auto; padding: 0 1; display: none; }
    #links, #words { display: none; height: auto; border: round $accent; }
    #below { height: 1fr; }
    #news { width: 3fr; border: round $primary; padding: 0 1; }
    #logs { width: 2fr; height: 1fr; border: round $primary; padding: 0 1; text-wrap: nowrap; text-overflow: ellipsis; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("d", "colours", "dark or light"),
        Binding("question_mark", "help", "help", key_display="?"),
        Binding("q", "quit", "quit"),
        *(Binding(str(node), f"choose({node})", show=False) for node in range(1, MAX_NODES + 1)),
        *(Binding(act.key, f"act({index})", act.word) for index, act in enumerate(ORDERS.acts)),
        Binding("h", "heal", ORDERS.heal.word),
        Binding("l", "link", "links"),
        Binding("slash", "write('say')", "chat", key_display="/"),
        Binding("colon", "write('step')", "step", key_display=":"),
        Binding("e", "end", "end"),
        Binding("escape", "close", show=False),
    ]

    def __init__(
        self,
        newest: Callable[[], Path | None],
        speed: float = 0.0,
        begin: Callable[[], Awaitable[Session]] | None = None,
    ) -> None:
        super().__init__()
        self._newest, self._speed, self._begin = newest, speed, begin
        self.session: Session | None = None
        self.problem = ""
        """Why there is no session although one was asked for."""
        self._states: list[dict[str, Any]] = []
        self._chosen = self._peer = 0
        """The node of the keys, and the other end of the leader's link whose menu is open; 0: none."""
        self._text, self._left_text_at, self._sure = "say", -SURE_S, ""
        self._keys_act = False
        """Whether the footer shows the keys of a session."""
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
        yield Static(id="said")
        yield OptionList(*(each.word for each in ORDERS.links), id="links")
        yield Input(id="words", max_length=2000)
        with Horizontal(id="below"):
            yield RichLog(id="news", max_lines=2 * MOST_NEWS, wrap=True)
            yield Static(id="logs")
        yield Footer()

    def on_mount(self) -> None:
        self.query_one("#news").border_title = "What happens"
        self.query_one("#logs").border_title = "The logs"
        self.query_one("#nodes", DataTable).add_columns(*COLUMNS)
        self.query_one("#news").focus()
        if self._begin is not None:
            self.run_worker(self._start(self._begin))
        self.run_worker(self._follow())

    def action_colours(self) -> None:
        self.theme = "textual-light" if self.current_theme.dark else "textual-dark"

    def action_help(self) -> None:
        self.notify((HELP_BY_HAND if self._is_by_hand else "") + HELP, title="Keys", markup=False)

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

    # ---- a session by hand -------------------------------------------------------------------------------

    async def _start(self, begin: Callable[[], Awaitable[Session]]) -> None:
        self.say("a session by hand begins…")
        try:
            session = await begin()
        except SessionOver as over:
            self.problem = str(over)
            self.exit(return_code=1)
            return
        self.session, self._newest = session, lambda: session.directory
        self.say("choose a node: 1 to 9; ? shows all keys")

    @property
    def _is_by_hand(self) -> bool:
        return self.session is not None and not self.session.is_over

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Hide the keys of a session where there is none, and let them do nothing."""
        return action not in BY_HAND or self._is_by_hand

    def say(self, text: str) -> None:
        """Show what became of an order."""
        said = self.query_one("#said", Static)
        said.update(Text(plain(text)))
        said.styles.display = "block"

    def action_choose(self, node: int) -> None:
        if any(each["id"] == node for each in self._states):
            self._chosen = node
            self.say(f"node {node} is chosen")
            self._show_nodes()

    def action_act(self, index: int) -> None:
        act = ORDERS.acts[index]
        state = next((str(each["state"]) for each in self._states if each["id"] == self._chosen), "")
        if why := act.why_not(self._chosen, state):
            self.say(f"{act.word}: {why}")
        elif act.harmful and self._sure != act.key and time.monotonic() - self._left_text_at < SURE_S:
            self._sure = act.key
            self.say(f"press {act.key} again: {act.word}")
        else:
            self._sure = ""
            self._order(act.step.replace("NODE", str(self._chosen)))

    def action_heal(self) -> None:
        self._order(ORDERS.heal.step)

    def action_link(self) -> None:
        leader = next((node["id"] for node in self._states if node["role"] == "leader"), 0)
        peers = [node["id"] for node in self._states if node["id"] != leader]
        if not leader or not peers:
            self.say("links: no node leads")
            return
        self._peer = next((peer for peer in peers if peer > self._peer), peers[0])
        menu = self.query_one("#links", OptionList)
        menu.border_title = f"Link of node {leader} and node {self._peer}"
        menu.styles.display = "block"
        menu.highlighted = 0
        menu.focus()

    def on_option_list_option_selected(self, event: OptionList.OptionSelected) -> None:
        self._order(ORDERS.links[event.option_index].step.replace("NODE", str(self._peer)))
        self.action_close()

    def action_write(self, what: str) -> None:
        words = self.query_one("#words", Input)
        self._text, words.placeholder, words.border_title = what, TEXTS[what], what
        words.styles.display = "block"
        words.focus()

    def on_input_submitted(self, event: Input.Submitted) -> None:
        text = event.value
        event.input.clear()
        self.action_close()
        if text.strip():
            self._order(chat(text) if self._text == "say" else text)

    def action_close(self) -> None:
        """Close the text or the menu."""
        if self.focused is not None and self.focused.id == "words":
            self._left_text_at = time.monotonic()
        for name in ("#words", "#links"):
            self.query_one(name).styles.display = "none"
        self._peer = 0
        self.query_one("#news").focus()

    def _order(self, words: str) -> None:
        self.say(f"{words} …")
        self.run_worker(self._carry_out(words))

    async def _carry_out(self, words: str) -> None:
        assert self.session is not None
        try:
            answer = await self.session.order(words)
        except SessionOver as over:
            self.say(str(over))
            return
        done = f"{answer.step}: done in {answer.took_ms:g} ms"
        self.say(answer.problem or (f"{done}, but {answer.warning}" if answer.warning else done))
        await self.look()

    async def action_end(self) -> None:
        assert self.session is not None
        await self.session.end()
        self.say("the session ends: the run is healed and judged")

    async def action_quit(self) -> None:
        """Leave; a session ends before, and is judged."""
        if self.session is not None and not self.session.is_over:
            self.say("the session ends: the run is healed and judged…")
            self.run_worker(self._leave(self.session))
        else:
            self.exit()

    async def _leave(self, session: Session) -> None:
        await session.close()
        self.exit()

    # ---- what is shown ---------------------------------------------------------------------------------

    def _show(self, picture: dict[str, Any], watcher: Watcher) -> None:
        say = picture["step"].get("say", "")
        self.query_one("#head", Static).update(head_text(picture))
        self.query_one("#step", Static).update(step_text(picture))
        self.query_one("#say", Static).update(Text(plain(say)))
        self.query_one("#say").styles.display = "block" if say else "none"
        self._states = picture["nodes"]
        self._show_nodes()
        if self._keys_act != self._is_by_hand:
            self._keys_act = self._is_by_hand
            self.refresh_bindings()
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

    def _show_nodes(self) -> None:
        table = self.query_one("#nodes", DataTable)
        table.clear()
        table.add_rows(node_rows(self._states, self._chosen))


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
    of = f" of {step['of']}" if step["of"] else ""  # Nobody knows how many steps a session by hand will have.
    return Text(f"step {step['index'] + 1}{of}: {plain(step['text'])}")


def node_rows(nodes: list[dict[str, Any]], chosen: int = 0) -> Iterator[tuple[Text, ...]]:
    """Yield the cells of the table, in the order of COLUMNS. chosen: the node of the keys; 0: none."""
    most = max((node["delivered"] for node in nodes), default=0)
    for node in nodes:
        state = (node["role"] or "up") if node["state"] == "up" else node["state"]
        behind = most - node["delivered"]
        yield (
            Text(f"{'▶' if node['id'] == chosen else ''}node {node['id']}", style="reverse" * (node["id"] == chosen)),
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
