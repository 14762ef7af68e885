"""Runs in the terminal: the same picture as on the page, and texts of a run are only text."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from lab import cli
from lab.rows import Members, NodeStatus, ProcessChange, StepStart, encode_row
from lab.watch.command import newest
from lab.watch.sources import NodeEvent
from lab.watch.watcher import Watcher

pytest.importorskip("textual", reason="textual is not installed")
from textual.widgets import DataTable, RichLog, Static

from lab.watch.terminal import Terminal, figures_text, news_text, node_rows, plain, rules_text

S = 1_000_000_000


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


def test_what_is_no_run_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["watch", str(tmp_path)]) == 64
    assert "found no live.jsonl" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        cli.main(["watch", "--speed", "1000"])
    assert "allowed 0..100" in capsys.readouterr().err
