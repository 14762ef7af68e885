"""The table of published problems."""

from __future__ import annotations

from pathlib import Path

import pytest

from lab.places import ROOT
from lab.plan import scenario as plan
from lab.search import published as record
from lab.search.published import Series


def problem(*outcomes: str, published: str = "nats-server #7564") -> Series:
    series = Series("nats@2.12.1", {"sync_interval": "5s"}, published)
    for number, outcome in enumerate(outcomes):
        series = series.with_run(outcome, ["A10", "A4"] if outcome == "broken" else [], 10.0 + number)
    return series


def test_a_scenario_says_where_its_problem_was_published() -> None:
    folder = ROOT / "scenarios" / "engines"
    series = Series.of(plan.load(folder / "nats_power_loss.yml"))
    assert (series.engine, series.options, series.published) == ("nats@2.12.1", {}, "nats-server #7564")
    control = Series.of(plan.load(folder / "nats_power_loss_control.yml"))
    assert (control.options, control.published) == ({"sync_interval": "always"}, "")


def test_every_problem_says_where_it_was_published_and_no_control_does() -> None:
    for path in (ROOT / "scenarios" / "engines").glob("*_control.yml"):
        assert record.published(plan.load(path)) == "", path
        shows = path.with_name(path.name.replace("_control", ""))
        assert record.published(plan.load(shows)), shows


def test_a_problem_is_seen_in_runs_that_break_an_invariant() -> None:
    series = problem("broken", "missed", "broken")
    assert series.rate == (2, 3)
    assert series.seen == "problem 2 of 3; missed 1 (A4 2, A10 2)"


def test_a_control_is_seen_in_runs_that_pass() -> None:
    assert problem("pass", "pass", published="").seen == "passed 2 of 2"
    assert problem("pass", "broken", published="").seen == "passed 1 of 2; broken 1 (A4 1, A10 1)"


def test_the_table_replaces_the_older_one_in_the_page(tmp_path: Path) -> None:
    page, path = tmp_path / "engines.md", tmp_path / "record.json"
    page.write_text(f"before\n{record.BEGIN}old\n{record.END}after\n")
    record.save({"nats": problem("broken")}, path, page)
    row = "| `nats` | nats-server #7564 | nats@2.12.1, `sync_interval: 5s` | "
    row += "problem 1 of 1 (A4 1, A10 1) | 2% to 100% | 10 |"
    assert page.read_text() == f"before\n{record.BEGIN}{record.HEAD}{row}\n{record.END}after\n"
    assert record.load(path) == {"nats": problem("broken")}


def test_a_page_without_a_place_for_the_table_is_refused(tmp_path: Path) -> None:
    page = tmp_path / "engines.md"
    page.write_text("nothing\n")
    with pytest.raises(ValueError, match="found no table between"):
        record.save({}, tmp_path / "record.json", page)
    assert page.read_text() == "nothing\n"


def test_the_page_shows_what_was_recorded() -> None:
    assert record.table(record.load()) in record.PAGE.read_text("utf-8")
