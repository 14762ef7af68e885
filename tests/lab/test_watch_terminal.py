"""Runs in the terminal: the same picture as on the page, and texts of a run are only text."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from lab import cli
from lab.course.by_hand import Answer
from lab.plan import scenario as plan
from lab.rows import LiveRow, Members, NodeStatus, ProcessChange, StepStart, encode_row
from lab.rundir import RunDir
from lab.steps import Send
from lab.watch.command import newest
from lab.watch.orders import chat
from lab.watch.session import Session, SessionOver
from lab.watch.sources import NodeEvent
from lab.watch.watcher import Watcher
from tests import TOO_LONG_S
from tests.lab.harness import PATIENT

pytest.importorskip("textual", reason="textual is not installed")
from textual.pilot import Pilot
from textual.widgets import DataTable, RichLog, Static

from lab.watch.terminal import Terminal, figures_text, news_text, node_rows, plain, rules_text

S = 1_000_000_000
HOSTILE = """<b>bold</b> 'single' "double" \\ back # {a: 1}, [x] %s"""


def shown(app: Terminal, name: str) -> str:
    """Return the text of a part of the screen."""
    return str(app.query_one(f"#{name}", Static).content)


def cells(app: Terminal) -> list[list[str]]:
    table: DataTable[Any] = app.query_one("#nodes", DataTable)
    return [[str(cell) for cell in table.get_row_at(row)] for row in range(table.row_count)]


def test_a_finished_run_is_shown_as_on_the_page(tmp_path: Path) -> None:
    assert cli.main(["leader_failure", "--sim", "--seed", "7", "--out", str(tmp_path)]) == 0
    run = newest(tmp_path)
    assert run is not None
    watcher = Watcher(run)
    watcher.look()
    wanted = watcher.plain()
    watcher.close()

    async def story() -> None:
        app = Terminal(lambda: newest(tmp_path))
        async with app.run_test(size=(120, 40)) as pilot:
            await app.look()
            await pilot.pause()
            assert "leader_failure" in shown(app, "head") and "✓ PASS" in shown(app, "head")
            nodes = wanted["nodes"]
            assert [row[2:4] for row in cells(app)] == [[str(n["term"]), f"{n['delivered']:,}"] for n in nodes]
            assert f"{wanted['figures']['acked']:,} acknowledged, 0 waiting" in shown(app, "numbers")
            news = "\n".join(line.text for line in app.query_one("#news", RichLog).lines)
            assert "kill: leader" in news and "Became LEADER for term 2" in news
            assert str(nodes[0]["lines"][-1]["seq_no"]) in shown(app, "logs")

    asyncio.run(story())


def test_a_run_is_shown_as_it_grows_and_the_next_one_after_it(tmp_path: Path) -> None:
    def begin(name: str) -> Path:
        run = tmp_path / "mine" / name
        run.mkdir(parents=True)
        (run / "live.jsonl").write_bytes(encode_row(Members(S, name, "live", 1, {1: "a:1", 2: "a:2"})))
        return run

    async def story() -> None:
        runs: list[Path] = []
        app = Terminal(lambda: runs[-1] if runs else None)
        async with app.run_test(size=(100, 30)) as pilot:
            await app.look()
            assert "Waiting" in shown(app, "head")
            runs.append(begin("first"))
            await app.look()
            assert [row[1] for row in cells(app)] == ["✕ down", "✕ down"]
            with (runs[0] / "live.jsonl").open("ab") as file:
                file.write(encode_row(ProcessChange(2 * S, 1, "up", 5)))
                file.write(encode_row(NodeStatus(3 * S, 1, "leader", 4, 1, 900, 900, 900)))
                file.write(encode_row(StepStart(3 * S, 0, 3, "kill: leader", say="Watch node 1")))
            await app.look()
            await pilot.pause()
            assert cells(app)[0] == ["node 1", "★ leader", "4", "900", ""] and cells(app)[1][4] == "900"
            assert shown(app, "say") == "Watch node 1" and shown(app, "step") == "step 1 of 3: kill: leader"
            runs.append(begin("second"))
            await app.look()
            assert "second" in shown(app, "head") and cells(app)[0][2] == "0"

    asyncio.run(story())


def test_the_keys_of_the_page_work(tmp_path: Path) -> None:
    async def story() -> None:
        app = Terminal(lambda: None)
        async with app.run_test() as pilot:
            before = app.theme
            await pilot.press("d")
            assert app.theme != before
            await pilot.press("d", "question_mark")
            assert app.theme == before
            await pilot.press("q")
        assert app.return_code == 0

    asyncio.run(story())


# ---- a session by hand ----------------------------------------------------------------------------------


class Recording(Session):
    """A session that only records what it is asked to do."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.ordered: list[str] = []
        self._has_ended = False

    @property
    def is_over(self) -> bool:
        return self._has_ended

    async def order(self, words: str) -> Answer:
        if self._has_ended:
            raise SessionOver("the session has ended")
        self.ordered.append(words)
        return Answer(problem="no such step") if "dance" in words else Answer(words, 1.5)

    async def end(self) -> None:
        self.ordered.append("end")

    async def close(self) -> None:
        await self.end()
        self._has_ended = True


def three_nodes(tmp_path: Path) -> Path:
    """Return the directory of a run: node 1 leads, node 2 follows, node 3 is down."""
    statuses = [NodeStatus(3 * S, 1, "leader", 4, 1, 9, 9, 9), NodeStatus(3 * S, 2, "follower", 4, 1, 9, 9, 9)]
    rows: list[LiveRow] = [
        Members(S, "mine", "live", 1, {1: "a:1", 2: "a:2", 3: "a:3"}),
        ProcessChange(2 * S, 1, "up", 5),
        ProcessChange(2 * S, 2, "up", 6),
        StepStart(3 * S, 2, 0, "hands: 30m"),
        *statuses,
    ]
    (tmp_path / "live.jsonl").write_bytes(b"".join(encode_row(row) for row in rows))
    return tmp_path


async def until(app: Terminal, condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(TOO_LONG_S):
        while not condition():
            await app.look()
            await asyncio.sleep(0)  # Let the app do the rest.


def by_hand(session: Recording, story: Callable[[Terminal, Pilot[None]], Awaitable[None]]) -> None:
    """Tell a story with a terminal that has this session."""

    async def begin() -> Session:
        return session

    async def tell() -> None:
        app = Terminal(lambda: None, begin=begin)
        async with app.run_test(size=(160, 50)) as pilot:
            await until(app, lambda: bool(cells(app)))
            await story(app, pilot)

    asyncio.run(tell())


def test_the_keys_of_the_page_inject_faults(tmp_path: Path) -> None:
    session = Recording(three_nodes(tmp_path))

    async def story(app: Terminal, pilot: Pilot[None]) -> None:
        async def press(*keys: str, said: str) -> None:
            await pilot.press(*keys)
            await until(app, lambda: said in shown(app, "said"))

        assert shown(app, "step") == "step 3: hands: 30m"
        await press("k", said="Kill: choose a node first")
        await press("9", "k", said="Kill: choose a node first")
        await press("2", said="node 2 is chosen")
        assert cells(app)[1][0] == "▶node 2"
        await press("r", said="Resume: node 2 is up")
        await press("k", said="kill: 2: done in 1.5 ms")
        await press("p", said="pause: 2: done")
        await press("c", said="partition: {kind: isolate, node: 2}: done")
        await press("w", said="power_loss: {target: 2, mid_write: true}: done")
        await press("3", "k", said="Kill: node 3 is down")
        await press("s", said="start: 3: done")
        await press("h", said="heal: all: done")
        await press("l", "enter", said="cut: {from: leader, to: 2, both: true}: done")
        await press("l", "l", "down", "down", "down", "enter", said="link: {from: leader, to: 3, delay: 200ms}: done")
        await press("colon", *"dance", "enter", said="no such step")
        before = len(session.ordered)
        await pilot.press("slash", *"kill", "escape", "l", "escape")
        assert len(session.ordered) == before, "what was typed and left, or only opened, is no order"
        await press("e", said="the session ends")

    by_hand(session, story)
    assert session.ordered.pop() == "end"
    assert len(session.ordered) == 9
    scenario = plan.load("patient.yml", text=PATIENT)
    for words in session.ordered:
        if "dance" not in words:
            plan.read_step(words, scenario)


def test_a_letter_that_may_belong_to_a_text_does_no_harm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lab.watch.terminal.SURE_S", 1e9)
    session = Recording(three_nodes(tmp_path))

    async def story(app: Terminal, pilot: Pilot[None]) -> None:
        await pilot.press("1", "slash", *'hi "k', "enter")
        await until(app, lambda: len(session.ordered) == 1)
        await pilot.press("k")
        await until(app, lambda: shown(app, "said") == "press k again: Kill")
        await pilot.press("h")
        await until(app, lambda: len(session.ordered) == 2)
        await pilot.press("k")
        await until(app, lambda: len(session.ordered) == 3)

    by_hand(session, story)
    assert session.ordered == [chat('hi "k'), "heal: all", "kill: 1"]


@pytest.mark.parametrize("text", [HOSTILE, "\x85\u2028\u2029\ufeff", "😀 ✂", "\\u0041 # {a: b}", "'"])
def test_a_message_is_a_step_that_keeps_every_character(text: str) -> None:
    step = plan.read_step(chat(text), plan.load("patient.yml", text=PATIENT))
    assert isinstance(step, Send) and step.clients[0].messages == (text,)


def test_without_a_session_the_keys_do_nothing(tmp_path: Path) -> None:
    run = three_nodes(tmp_path)

    async def story() -> None:
        app = Terminal(lambda: run)
        async with app.run_test(size=(160, 50)) as pilot:
            await until(app, lambda: bool(cells(app)))
            await pilot.press("1", *"kprscwhle", "slash", "colon", "enter")
            assert shown(app, "said") == "" and cells(app)[0][0] == "node 1"
            assert app.focused is not None and app.focused.id == "news"
            assert {key for key, each in app.screen.active_bindings.items() if each.enabled} & set("kprscwhle") == set()
            await pilot.press("q")
        assert app.return_code == 0

    asyncio.run(story())


def test_a_session_that_cannot_begin_ends_the_terminal(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    async def story() -> None:
        app = Terminal(lambda: None, begin=lambda: Session.begin(tmp_path, "no_such_scenario"))
        async with app.run_test() as pilot:
            await until(app, lambda: bool(app.problem))
            await pilot.pause()
        assert "exit code 64" in app.problem

    asyncio.run(story())
    assert "no_such_scenario" in capfd.readouterr().err


def test_a_session_in_the_terminal_is_judged(tmp_path: Path) -> None:
    (tmp_path / "patient.yml").write_text(PATIENT)

    async def story() -> None:
        beginning = str(tmp_path / "patient.yml")
        app = Terminal(lambda: None, begin=lambda: Session.begin(tmp_path / "results", beginning))
        async with app.run_test(size=(160, 50)) as pilot:
            await until(app, lambda: " ★ leader" in f" {' '.join(row[1] for row in cells(app))}")
            leader = next(row[0].split()[1] for row in cells(app) if "leader" in row[1])
            await pilot.press(leader, "k")
            await until(app, lambda: f"kill: {leader}: done" in shown(app, "said"))
            await until(app, lambda: cells(app)[int(leader) - 1][1] == "✕ down")
            await until(app, lambda: "leader" in " ".join(row[1] for row in cells(app)))
            acked = app.query_one("#numbers", Static).content
            await until(app, lambda: app.query_one("#numbers", Static).content != acked)
            await pilot.press("q")
            assert app.session is not None
            session = app.session
            await until(app, lambda: session.is_over)
        assert session.exit_code == 0
        assert "kill: " in RunDir(session.directory).by_hand.read_text()

    asyncio.run(story())


# ---- texts ----------------------------------------------------------------------------------------------


def test_texts_of_a_run_neither_obey_nor_format() -> None:
    assert plain("a\x1b[31m\r\n[bold]b\u202e") == "a�[31m��[bold]b�"
    event = NodeEvent(0, 1, "starting", "")._asdict() | {"id": 1, "s": 0.5, "text": "\x1b]0;[red]title\x07"}
    assert "\x1b" not in news_text(event).plain and "[red]" in news_text(event).plain


def test_rules_are_grouped_and_figures_survive_an_empty_run() -> None:
    rules = [
        {"from": 1, "to": 2, "text": "cut"},
        {"from": 2, "to": 1, "text": "cut"},
        {"from": 1, "to": 3, "text": "x"},
    ]
    assert rules_text(rules).plain == "✂ 1→2 2→1: cut\n✂ 1→3: x"
    empty = {"acked": 0, "waiting": 0, "rate": [], "p50": [], "p99": []}
    assert figures_text(empty).plain == "0 acknowledged, 0 waiting\n0 a second:"
    assert list(node_rows([])) == []


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--hands", "no_such_scenario"], "no_such_scenario"),
        (["--hands", "--speed", "2"], "--hands: found with RUN or --speed"),
    ],
)
def test_a_session_that_makes_no_sense_is_refused(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["watch", *arguments]) == 64
    assert said in capsys.readouterr().err


def test_what_is_no_run_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["watch", str(tmp_path)]) == 64
    assert "found no live.jsonl" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        cli.main(["watch", "--speed", "1000"])
    assert "allowed 0..100" in capsys.readouterr().err
