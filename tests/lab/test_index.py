"""The index of all runs: its entries, its cache, and `list --runs`."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from lab import cli
from lab.rundir import RunDir
from lab.runs import judge
from lab.show import index
from tests.lab.synthetic import build_run, doctor_lines, doctor_meta


def judged(results: Path, scenario: str, stamp: str, *, broken: bool = False) -> RunDir:
    """A judged run in a results directory."""
    run = build_run(results / scenario / stamp)
    if broken:
        doctor_lines(run.message_log(2), lambda lines: lines.__delitem__(16))
    judge(run, scenario, 7)
    return run


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """Three runs; `story` has a newer one that is broken."""
    judged(tmp_path, "story", "20241021T100000.000Z")
    judged(tmp_path, "story", "20241021T120000.000Z-2", broken=True)
    judged(tmp_path, "tale", "20241021T110000.000Z")
    (tmp_path / "story" / "latest").symlink_to("20241021T120000.000Z-2")
    return tmp_path


def test_the_newest_run_comes_first_with_its_outcome_and_figures(results: Path) -> None:
    broken, tale, story = index.index(results)
    assert [each.started_utc for each in (broken, tale, story)] == [
        "2024-10-21T12:00:00.000Z",
        "2024-10-21T11:00:00.000Z",
        "2024-10-21T10:00:00.000Z",
    ]
    assert (broken.outcome, broken.check) == ("broken", "A1 agreement")
    assert broken.cause.startswith("FAIL: A1 agreement: nodes/node_2/logs/node_2_messages.jsonl:17: ")
    assert (story.outcome, story.check, story.cause) == ("pass", "", "")
    assert (story.scenario, story.world, story.seed) == ("story", "live", 7)
    assert (story.acknowledged_per_s, story.p99_ms, story.gap_s) == pytest.approx((1434, 0.5, 0.101), rel=1e-2)
    assert story.size_bytes > 10_000


def test_a_run_without_a_verdict_or_an_end_is_listed_as_such(results: Path) -> None:
    run = RunDir(results / "story" / "20241021T100000.000Z")
    run.verdict.unlink()
    run.metrics.unlink()
    tale = RunDir(results / "tale" / "20241021T110000.000Z")
    tale.meta.unlink()
    found = {(each.scenario, each.outcome): each for each in index.index(results)}
    assert set(found) == {("story", "broken"), ("story", "not judged"), ("tale", "incomplete")}
    assert (found["story", "not judged"].seed, found["story", "not judged"].p99_ms) == (7, None)
    assert found["tale", "incomplete"].seed is None


def test_directories_that_are_no_runs_are_left_out(results: Path) -> None:
    (results / "ab" / "20241021T100000.000Z" / "1-base").mkdir(parents=True)
    (results / "bench").mkdir()
    (results / "story" / "notes").mkdir()
    assert len(index.index(results)) == 3
    assert index.index(results / "none") == []


def test_only_runs_that_changed_are_read_again(results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, read = index.index(results), index._entry
    again: list[str] = []

    def counting(run: RunDir) -> index.Entry | None:
        again.append(run.path.parent.name)
        return read(run)

    monkeypatch.setattr(index, "_entry", counting)
    assert index.index(results) == first
    assert again == []
    tale = RunDir(results / "tale" / "20241021T110000.000Z")
    doctor_lines(tale.message_log(2), lambda lines: lines.__delitem__(16))
    judge(tale, "tale", 7)
    assert [each.outcome for each in index.index(results)] == ["broken", "broken", "pass"]
    assert again == ["tale"]
    shutil.rmtree(tale.path)
    assert [each.scenario for each in index.index(results)] == ["story", "story"]
    assert b"tale" not in (results / index.CACHE).read_bytes()


@pytest.mark.parametrize(
    "content", ["", "{}", '{"format": 0, "runs": {}}', '{"format": 1, "runs": {"story/x": 7}}', "\xff"]
)
def test_a_cache_that_is_not_one_is_replaced(results: Path, content: str) -> None:
    first = index.index(results)
    (results / index.CACHE).write_text(content, "latin-1")
    assert index.index(results) == first
    assert [each.name for each in results.iterdir() if each.is_file()] == [index.CACHE]


def test_a_run_under_way_is_read_each_time(results: Path) -> None:
    RunDir(results / "tale" / "20241021T110000.000Z").meta.unlink()
    size = index.index(results)[1].size_bytes
    with RunDir(results / "tale" / "20241021T110000.000Z").history.open("a") as file:
        file.write("x" * 100)
    assert index.index(results)[1].size_bytes == size + 100


# ---- the command --------------------------------------------------------------------------------


def test_list_runs_shows_a_table_or_json(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["list", "--runs", "--out", str(results)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[-3:]] == ["story", "tale", "story"]
    assert "FAIL: A1 agreement" in lines[-3]
    assert cli.main(["list", "--runs", "--out", str(results), "--json", "tale"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert [each["scenario"] for each in document["runs"]] == ["tale"]


def test_a_mutant_is_named(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    doctor_meta(RunDir(results / "tale" / "20241021T110000.000Z"), mutant="minority_elects")
    assert cli.main(["list", "--runs", "tale", "--out", str(results)]) == 0
    assert "pass (minority_elects)" in capsys.readouterr().out


def test_a_scenario_without_runs_is_named(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["list", "--runs", "stroy", "--out", str(results)]) == 64
    assert capsys.readouterr().err == f"stroy: no run in {results}; there are: story, tale\n"
    assert cli.main(["list", "--runs", "--tag", "demo", "--out", str(results)]) == 64
    assert "--tag: not with --runs" in capsys.readouterr().err
    assert cli.main(["list", "--runs", "--out", str(results / "none")]) == 0
    assert "no runs in" in capsys.readouterr().out
