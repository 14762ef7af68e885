"""Campaigns: no finished seed is lost or repeated, failures are shrunk once, only the campaign's code plays."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import itertools
import os
import re
import signal
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from types import SimpleNamespace
from xml.etree import ElementTree

import psutil
import pytest
from msgspec import structs

from lab import cli, runs
from lab.campaign import command, report, spread, work
from lab.campaign.code import PACKAGES, code_version
from lab.campaign.orders import Lost, Order, Play, Reduced, Result, Shrink, decode_answer, encode
from lab.campaign.queue import FINDINGS_MAX, Queue
from lab.campaign.spread import ANY_PORT, Cluster, NoWorkers, play_all
from lab.campaign.store import FILE, Settings, Store, StoreError, locked
from lab.live.children import child_environment
from lab.places import ROOT
from lab.plan import scenario as plan
from lab.search import failure
from lab.search.draw import CHANGING_SHARE, draw
from lab.search.search import Search
from lab.search.shrink import SIMULATIONS
from lab.search.worker import Played
from lab.show.page import static
from lab.sim.simulator import simulate

needs_dask = pytest.mark.skipif(
    importlib.util.find_spec("distributed") is None, reason="Dask is not installed (the extra `campaign`)"
)
MUTANT = "term_not_durable"


def settings(count: int = 4, mutants: tuple[str, ...] = ("",), limit_s: float | None = None) -> Settings:
    return Settings("some", 1, count, limit_s, (3,), mutants, code_version())


def made(tmp_path: Path, wanted: Settings) -> Store:
    directory = tmp_path / "campaigns" / wanted.name
    directory.mkdir(parents=True)
    return Store.create(directory, wanted)


def again(store: Store) -> Store:
    """The campaign as another process would open it."""
    store.close()
    return Store.open(store.directory)


def passed(seed: int) -> Result:
    return Result(Played(seed, marks=("R1 a", "R2 b"), faults={"kill": 2}, messages=10), 0.5)


def failed(seed: int, *marks: str, invariant: str = "A4") -> Result:
    return Result(Played(seed, invariant, f"text <{seed}>", marks=marks), 0.5)


def reduced(*marks: str) -> Reduced:
    return Reduced("A4", "small text", "name: some\n", 3, 50, True, marks)


class Told(list[str]):
    def __call__(self, text: str) -> None:
        self.append(text)


# ---- the queue and the store ----------------------------------------------------------------------------


def test_seeds_are_given_out_in_order_and_finished_ones_never_again(tmp_path: Path) -> None:
    store = made(tmp_path, settings())
    queue = Queue(store, Told())
    orders = queue.next(3)
    assert orders == [Play(1, (3,), CHANGING_SHARE), Play(2, (3,), CHANGING_SHARE), Play(3, (3,), CHANGING_SHARE)]
    queue.take(orders[1], passed(2), "w")
    with again(store) as store:
        queue = Queue(store, Told())
        assert [order.seed for order in queue.next(9)] == [1, 3, 4], "1 and 3 had no answer"
        assert queue.next(9) == []


def test_a_seed_that_is_recorded_stays_as_it_is(tmp_path: Path) -> None:
    with made(tmp_path, settings()) as store:
        store.add("", passed(1), "first")
        store.add("", failed(1, "R1 a"), "second")
        assert store.count() == 1 and not store.sums("").failed


def test_orders_without_answer_are_given_out_again(tmp_path: Path) -> None:
    with made(tmp_path, settings()) as store:
        queue = Queue(store, Told())
        first, second = queue.next(2)
        queue.put_back([first])
        assert queue.next(2) == [first, Play(3, (3,), CHANGING_SHARE)]
        queue.put_back([first, second], alone=True)
        assert [queue.next(2), queue.next(2), queue.next(2)] == [[first], [second], [Play(4, (3,), CHANGING_SHARE)]]


def test_mutants_play_every_seed(tmp_path: Path) -> None:
    with made(tmp_path, settings(2, ("one", "two"))) as store:
        orders = Queue(store, Told()).next(9)
        assert orders == [Play(seed, (3,), CHANGING_SHARE, mutant) for seed in (1, 2) for mutant in ("one", "two")]
        assert store.settings.planned == 4


def test_the_time_of_all_starts_together_is_limited(tmp_path: Path) -> None:
    now = [100.0]
    store = made(tmp_path, settings(0, limit_s=10.0))
    queue = Queue(store, Told(), lambda: now[0])
    assert len(queue.next(2)) == 2
    now[0] += 6.0
    store.spend(queue.spent_s)
    assert not report.is_finished(store)
    with again(store) as store:
        now[0] = 5.0
        queue = Queue(store, Told(), lambda: now[0])
        now[0] += 3.9
        assert len(queue.next(1)) == 1
        now[0] += 0.1
        assert queue.next(1) == [] and queue.spent_s == pytest.approx(10.0)
        store.spend(queue.spent_s)
        assert report.is_finished(store)


# ---- findings -------------------------------------------------------------------------------------------


def test_a_failing_seed_that_hits_all_marks_of_a_finding_is_not_shrunk(tmp_path: Path) -> None:
    with made(tmp_path, settings()) as store:
        queue, orders = Queue(store, told := Told()), [Play(seed, (3,), CHANGING_SHARE) for seed in range(1, 5)]
        queue.take(orders[0], failed(1, "R1 a", "R2 b", "R3 c"), "w")
        (shrink,) = queue.next(9)
        assert isinstance(shrink, Shrink) and shrink.seed == 1
        queue.take(orders[1], failed(2, "R2 b", "R1 a"), "w")
        assert not any(isinstance(order, Shrink) for order in queue.next(1)), "one at a time, they may be the same"
        queue.take(shrink, reduced("R1 a", "R2 b"), "w")
        queue.take(orders[2], failed(3, "R1 a", "R2 b", "R4 d"), "w")
        (finding,) = store.findings()
        assert (finding.seed, finding.seeds, finding.text) == (1, 3, "small text")
        assert len(told) == 1 and "--seed 1 " in told[0], "each finding is reported once"
        queue.take(orders[3], failed(4, "R1 a"), "w")
        (other,) = [order for order in queue.next(9) if isinstance(order, Shrink)]
        assert other.seed == 4, "it did not go the same way"


def test_seeds_that_shrink_to_the_same_marks_are_one_finding(tmp_path: Path) -> None:
    with made(tmp_path, settings()) as store:
        queue = Queue(store, told := Told())
        for seed, mark in ((1, "R1 a"), (2, "R2 b")):
            queue.take(Play(seed, (3,), CHANGING_SHARE), failed(seed, mark), "w")
            (shrink,) = queue.next(1)
            queue.take(shrink, reduced("R3 c"), "w")
        (finding,) = store.findings()
        assert (finding.seed, finding.seeds) == (1, 2) and len(told) == 1


def test_another_invariant_and_another_mutant_are_other_findings(tmp_path: Path) -> None:
    with made(tmp_path, settings(mutants=("", "one"))) as store:
        queue = Queue(store, Told())
        for mutant, invariant in (("", "A4"), ("", "A1"), ("one", "A4")):
            queue.take(
                Play(1 if invariant == "A4" else 2, (3,), CHANGING_SHARE, mutant),
                failed(1 if invariant == "A4" else 2, "R1 a", invariant=invariant),
                "w",
            )
            (shrink,) = queue.next(1)
            queue.take(shrink, reduced("R1 a"), "w")
        assert [(each.mutant, each.kind) for each in store.findings()] == [("", "A4"), ("", "A1"), ("one", "A4")]


def test_a_shrinking_that_was_interrupted_is_begun_again_and_a_finished_one_is_not(tmp_path: Path) -> None:
    store = made(tmp_path, settings(2))
    queue = Queue(store, Told())
    queue.take(Play(1, (3,), CHANGING_SHARE), failed(1, "R1 a"), "w")
    (shrink,) = queue.next(1)
    with again(store) as store:
        queue = Queue(store, Told())
        assert queue.next(1) == [shrink]
        queue.put_back([shrink])
        assert queue.next(1) == [shrink]
        queue.take(shrink, reduced("R1 a"), "w")
        queue.take(Play(2, (3,), CHANGING_SHARE), failed(2, "R1 a"), "w")
        assert queue.next(1) == [] and store.findings()[0].seeds == 2
    with Store.open(store.directory) as store:
        assert Queue(store, Told()).next(1) == []


def test_only_some_findings_of_a_kind_are_shrunk(tmp_path: Path) -> None:
    with made(tmp_path, settings(FINDINGS_MAX + 1)) as store:
        queue = Queue(store, Told())
        for seed in range(1, FINDINGS_MAX + 2):
            queue.take(Play(seed, (3,), CHANGING_SHARE), failed(seed, f"R1 {seed}"), "w")
            for order in queue.next(1):
                if isinstance(order, Shrink):
                    queue.take(order, reduced(f"R1 {seed}"), "w")
        assert len(store.findings()) == FINDINGS_MAX
        assert list(report.unexplained(store)) == [("", 1, FINDINGS_MAX + 1)]
        assert "1 more failing seed, not shrunk" in report.text(store)


def test_seeds_that_hang_are_one_finding_and_are_not_shrunk(tmp_path: Path) -> None:
    with made(tmp_path, settings()) as store:
        queue = Queue(store, Told())
        for seed in (1, 2):
            hung = Played(seed, "A9", "no end within 60 s of CPU time", endless=True, marks=(f"R1 {seed}",))
            queue.take(Play(seed, (3,), CHANGING_SHARE), Result(hung, 60.0), "w")
        assert [(each.kind, each.seeds) for each in store.findings()] == [("A9, hung", 2)]
        assert all(isinstance(order, Play) for order in queue.next(9))


def test_a_seed_that_ends_its_process_is_an_error_of_the_lab(tmp_path: Path) -> None:
    with made(tmp_path, settings(1)) as store:
        Queue(store, told := Told()).take(
            Play(1, (3,), CHANGING_SHARE), Lost("the playing process ended with exit code -9"), "w"
        )
        assert list(store.troubles()) == [(1, "", "the playing process ended with exit code -9")]
        assert report.exit_code(store) == runs.HARNESS and "seed 1: the lab failed" in told[0]


# ---- the report -----------------------------------------------------------------------------------------


@pytest.fixture
def finished(tmp_path: Path) -> Iterator[Store]:
    """A campaign of two seeds, one of which failed."""
    with made(tmp_path, settings(2)) as store:
        queue = Queue(store, Told())
        queue.take(Play(1, (3,), CHANGING_SHARE), passed(1), "w")
        queue.take(Play(2, (3,), CHANGING_SHARE), failed(2, "R1 a"), "w")
        (shrink,) = queue.next(1)
        queue.take(shrink, reduced("R1 a"), "w")
        yield store


def test_the_report_names_the_finding_and_how_to_repeat_it(finished: Store) -> None:
    shown = report.text(finished)
    assert "some: 2 of 2 seeds, 1 failed, 1 finding, 0 errors of the lab, finished\n" in shown
    assert " sim --seed 2 --seeds 1 --nodes 3\n" in shown and "--sim --seed 2 --frames\n" in shown
    assert "faults: kill 2\n" in shown and "rarest marks: 2\n  R2 b (1)\n  R1 a (2)\n" in shown
    (file,) = finished.export()
    assert file.read_text() == "name: some\n" and file.name == "seed_2.yml"
    assert report.exit_code(finished) == runs.BROKEN


def test_the_marks_of_a_commit_are_those_of_its_code(tmp_path: Path) -> None:
    with made(tmp_path, Settings("some", 1, 1, None, (3,), ("",), "0123456789ab", "feedbeef")) as store:
        code = store.directory / "code" / "nodeproc"
        code.mkdir(parents=True)
        (code / "old.py").write_text("x = 1  # hit: R1 a\ny = 2  # hit: R9 of the past\n")
        store.add("", passed(1), "w")
        shown = report.text(store)
        assert "marks: 1 of 2 hit\n" in shown and "marks never hit: 1\n  R9 of the past\n" in shown
        assert "R9 of the past" in report.html(store)


def test_junit_has_the_findings_as_a_failure(finished: Store) -> None:
    (suite,) = ElementTree.fromstring(report.junit(finished))
    assert (suite.get("tests"), suite.get("failures"), suite.get("errors")) == ("1", "1", "0")
    found = suite.find("testcase/failure")
    assert found is not None and found.get("message") == "1 of 2 seeds failed, 1 finding"
    assert "small text" in (found.text or "")


def test_junit_of_an_unfinished_campaign_is_no_pass(tmp_path: Path) -> None:
    with made(tmp_path, settings(2)) as store:
        store.add("", passed(1), "w")
        (suite,) = ElementTree.fromstring(report.junit(store))
        assert suite.get("errors") == "1" and report.exit_code(store) == runs.UNDECIDED
        store.add("", passed(2), "w")
        (suite,) = ElementTree.fromstring(report.junit(store))
        assert suite.get("errors") == "0" and report.exit_code(store) == runs.PASS


def test_the_page_is_one_file_and_escapes_what_it_shows(tmp_path: Path) -> None:
    with made(tmp_path, settings(1)) as store:
        queue = Queue(store, Told())
        queue.take(Play(1, (3,), CHANGING_SHARE), failed(1, "R1 a"), "w")
        (shrink,) = queue.next(1)
        queue.take(shrink, Reduced(), "w")
        page = report.html(store)
        assert "text &lt;1&gt;" in page and "<script" not in page and "://" not in page
        assert '<span class="badge broken" role="status">✗ a finding</span>' in page
        assert "style-src &#39;sha256-" in page and static("report.css") in page, "the style sheet is that of a run"


def test_the_badge_of_the_page_follows_the_exit_code(tmp_path: Path) -> None:
    with made(tmp_path, settings(1)) as store:
        assert "? not finished</span>" in report.html(store)
        store.add("", passed(1), "w")
        assert "✓ no finding</span>" in report.html(store)


# ---- the code -------------------------------------------------------------------------------------------


def test_the_version_is_that_of_the_sources_alone(tmp_path: Path) -> None:
    for package in PACKAGES:
        (tmp_path / package).mkdir()
    (tmp_path / "lab" / "a.py").write_text("x = 1\n")
    first = code_version(tmp_path)
    (tmp_path / "lab" / "bootstrap.py").write_text("only in a checkout\n")
    (tmp_path / "lab" / "notes.txt").write_text("no code\n")
    (tmp_path / "lab" / "share").mkdir()
    (tmp_path / "lab" / "share" / "example.py").write_text("only in a wheel\n")
    assert code_version(tmp_path) == first
    (tmp_path / "lab" / "a.py").rename(tmp_path / "lab" / "b.py")
    assert code_version(tmp_path) != first


def test_a_campaign_of_other_code_is_not_resumed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made(tmp_path, Settings("some", 1, 4, None, (3,), ("",), "0123456789ab")).close()
    if importlib.util.find_spec("distributed") is None:
        pytest.skip("Dask is not installed (the extra `campaign`)")
    assert cli.main(["campaign", "resume", "some", "--out", str(tmp_path)]) == runs.USAGE
    assert f"found code {code_version()}, allowed 0123456789ab" in capsys.readouterr().err


def test_a_file_that_is_no_campaign_is_refused(tmp_path: Path) -> None:
    (tmp_path / FILE).write_text("not a database, but long enough to be taken for one" * 20)
    with pytest.raises(StoreError, match="file is not a database"):
        Store.open(tmp_path)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        ("DROP TABLE seeds", "found no seeds.code, seeds.elections, .*, allowed a campaign of this lab"),
        ("DROP TABLE findings", "found no findings.id, "),
        ("ALTER TABLE seeds DROP COLUMN mode", "found no seeds.mode, allowed"),
        ("DELETE FROM campaign", "found no settings"),
        ("UPDATE campaign SET settings = json_set(settings, '$.format', 7)", "found format 7, allowed "),
        ("UPDATE campaign SET settings = json_set(settings, '$.name', 5)", "Expected `str`, got `int`"),
    ],
)
def test_a_damaged_campaign_is_refused_in_one_line_and_hides_no_other(
    damage: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a", "b"):
        (tmp_path / "campaigns" / name).mkdir(parents=True)
        Store.create(tmp_path / "campaigns" / name, structs.replace(settings(), name=name)).close()
    with contextlib.closing(sqlite3.connect(tmp_path / "campaigns" / "a" / FILE)) as db:
        db.execute("DROP INDEX failures")
        db.execute(damage)
        db.commit()
    assert cli.main(["campaign", "status", "--out", str(tmp_path)]) == runs.USAGE
    shown = capsys.readouterr()
    assert re.search(rf"campaigns/a/{FILE}: {said}", shown.err) and shown.err.count("\n") == 1
    assert shown.out.startswith("b: 0 of ")


def test_one_process_at_a_time_plays_a_campaign(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    directory, options = tmp_path / "campaigns" / "some", ["campaign", "new", "some", "--seeds", "2"]
    directory.mkdir(parents=True)
    with locked(directory, "campaign 'some'"), monkeypatch.context() as patch:
        patch.setattr(command, "_require_dask", lambda: None)
        assert cli.main([*options, "--out", str(tmp_path)]) == runs.USAGE, "before it has its file, too"
        with pytest.raises(StoreError, match="played by another process"), locked(directory, "it"):
            pytest.fail("locked twice")
    assert "campaign 'some' is being played by another process" in capsys.readouterr().err
    assert not list(directory.iterdir())
    with locked(directory, "it"):
        assert directory.is_dir()


# ---- the playing processes ------------------------------------------------------------------------------


@pytest.fixture
def children() -> Iterator[None]:
    work.open_children()
    yield
    work.close_children()
    work._children.drop()


def answers(*orders: Order, native: bool = False) -> list[object]:
    code = code_version()
    return [decode_answer(work._answer(ROOT, code, native, encode(order))) for order in orders]


@pytest.mark.usefixtures("children")
def test_a_killed_process_is_replaced_and_its_seed_played() -> None:
    order = Play(3, (3,), CHANGING_SHARE)
    (before,) = answers(order)
    os.kill(work._children.of_this_thread(ROOT, code_version(), False).process.pid, signal.SIGKILL)
    (after,) = answers(order)
    (compiled,) = answers(order, native=True)
    assert isinstance(compiled, Result)
    assert isinstance(before, Result) and isinstance(after, Result)
    found = [(each.played.text, each.played.frames, set(each.played.marks)) for each in (before, after, compiled)]
    assert found[0] == found[1] == found[2] and before.played.marks


@pytest.mark.usefixtures("children")
def test_the_same_process_plays_product_and_mutants_and_shrinks() -> None:
    seed = next(seed for seed in range(1, 60) if failure_of_mutant(seed))
    play, broken, shrink = (
        Play(seed, (3,), CHANGING_SHARE),
        Play(seed, (3,), CHANGING_SHARE, MUTANT),
        Shrink(seed, (3,), CHANGING_SHARE, MUTANT, 120),
    )
    first, second, small, last = answers(play, broken, shrink, play)
    assert isinstance(first, Result) and isinstance(second, Result) and isinstance(last, Result)
    assert (first.played.invariant, second.played.invariant) == ("", "A7")
    assert (last.played.text, last.played.frames) == (first.played.text, first.played.frames), (
        "nothing of the mutant stays behind"
    )
    assert isinstance(small, Reduced) and small.invariant == "A7" and small.marks
    scenario = plan.load("small", text=small.scenario)
    assert scenario.name == f"{MUTANT}_seed_{seed}" and scenario.step_count == small.steps
    found = failure.play(scenario, seed, MUTANT)
    assert found is not None and found.text == small.text


@pytest.mark.usefixtures("children")
def test_seeds_are_drawn_with_the_share_that_the_campaign_was_begun_with(tmp_path: Path) -> None:
    chosen = structs.replace(settings(2), changing=1.0)
    with made(tmp_path, chosen) as store:
        (order,) = Queue(store, Told()).next(1)
        (result,) = answers(order)
        assert isinstance(result, Result)
        assert simulate(draw(1, (3,), 1.0), 1).frames == result.played.frames
        assert draw(1, (3,), 1.0) != draw(1, (3,))
        queue = Queue(store, Told())
        queue.take(order, failed(1, "R1 a"), "w")
        (shrink,) = queue.next(1)
        assert shrink == Shrink(1, (3,), 1.0, "", SIMULATIONS)
        assert store.replay(1, "").endswith(" sim --seed 1 --seeds 1 --nodes 3 --changing 1")
    assert Search(1, 1, 1, changing=0.00001).replay(1).endswith(" --seeds 1 --changing 0.00001")


def failure_of_mutant(seed: int) -> bool:
    found = failure.play(draw(seed, (3,)), seed, MUTANT)
    return found is not None and found.invariant == "A7"


@pytest.mark.usefixtures("children")
def test_at_the_end_of_a_campaign_its_orders_are_given_up_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    child = work._children.of_this_thread(ROOT, code_version(), False)
    work.close_children()
    assert child.process.wait() == -signal.SIGKILL
    monkeypatch.setattr(work, "_Child", None)  # No other process is started.
    with pytest.raises(work.Closed):
        answers(Play(1, (3,), CHANGING_SHARE))


@pytest.mark.usefixtures("children")
def test_a_process_of_the_code_before_plays_nothing_more() -> None:
    before = work._children.of_this_thread(ROOT, code_version(), False)
    with pytest.raises(work.WrongCode):  # This code says so itself; the code before did not know.
        work._children.of_this_thread(ROOT, "0123456789ab", False)
    assert before.process.poll() is not None


@pytest.mark.usefixtures("children")
def test_a_process_ends_at_once_when_its_worker_has_ended() -> None:
    child = work._children.of_this_thread(ROOT, code_version(), False)
    assert child.process.stdin is not None and child.process.stdout is not None
    child.process.stdin.write(encode(Play(3, (3,), CHANGING_SHARE)) + b"\n")
    child.process.stdin.close()
    assert child.process.wait() == 0 and child.process.stdout.read() == b"", "the seed was not finished"


@pytest.mark.usefixtures("children")
def test_a_process_of_other_code_plays_nothing() -> None:
    with pytest.raises(work.WrongCode, match=f"found code {code_version()} in .*, allowed 0123456789ab"):
        work._answer(ROOT, "0123456789ab", False, encode(Play(1, (3,), CHANGING_SHARE)))


# ---- on Dask --------------------------------------------------------------------------------------------


@needs_dask
def test_a_small_campaign_of_the_product(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["campaign", "new", "small", "--seeds", "5", "--nodes", "3", "--jobs", "2", "--out", str(tmp_path)]
    assert cli.main(options) == runs.PASS
    assert "small: 5 of 5 seeds, 0 failed, 0 findings" in capsys.readouterr().out
    directory = tmp_path / "campaigns" / "small"
    assert {path.name for path in directory.iterdir()} >= {FILE, "report.html", "junit.xml"}
    with Store.open(directory) as store:
        assert store.done() == {(seed, "") for seed in range(1, 6)}
        assert store.sums("").messages > 0 and store.marks()
    assert cli.main(options) == runs.USAGE
    assert "campaign 'small' exists; to go on: " in capsys.readouterr().err
    assert cli.main(["campaign", "status", "--out", str(tmp_path)]) == runs.PASS
    assert capsys.readouterr().out.startswith("small: 5 of 5 seeds, 0 failed, ")


@needs_dask
def test_after_kill_9_a_campaign_goes_on_and_repeats_no_finished_seed(tmp_path: Path) -> None:
    count, killed_at = 24, 4
    options = ["--jobs", "1", "--out", str(tmp_path)]
    begun = subprocess.Popen(
        [sys.executable, "-m", "lab", "campaign", "new", "killed", "--seeds", str(count), "--nodes", "3", *options],
        env=child_environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    file = tmp_path / "campaigns" / "killed" / FILE
    try:
        while len(before := rows(file)) < killed_at:
            assert begun.poll() is None, "it ended by itself"
    finally:
        begun.kill()
        begun.wait()
    before = rows(file)
    assert killed_at <= len(before) < count
    assert cli.main(["campaign", "resume", "killed", *options]) == runs.PASS
    after = rows(file)
    assert len(after) == count and before.items() <= after.items(), "finished seeds stay as they were"
    assert psutil.Process().children() == []


def rows(file: Path) -> dict[int, tuple[object, ...]]:
    """The rows of the seeds; none before the campaign has its file."""
    if not file.exists():
        return {}
    db = sqlite3.connect(file, timeout=60)
    try:
        found = db.execute("SELECT seed, outcome, seconds, marks, worker FROM seeds").fetchall()
    finally:
        db.close()
    assert len({row[0] for row in found}) == len(found)
    return {row[0]: row[1:] for row in found}


@needs_dask
def test_a_worker_of_other_code_is_refused_by_name(tmp_path: Path) -> None:
    from distributed import LocalCluster

    async def carry_out(store: Store) -> str:
        async with LocalCluster(n_workers=1, processes=False, scheduler_kwargs=ANY_PORT, asynchronous=True) as local:
            with pytest.raises(NoWorkers, match=r"found code .*, allowed 0123456789ab") as stopped:
                await play_all(Queue(store, Told()), Cluster(local.scheduler_address, 1, 0.001), told)
            (address,) = local.scheduler.workers
            assert f"worker {address} on " in str(stopped.value)
            return str(address)

    told = Told()
    with made(tmp_path, Settings("some", 1, 4, None, (3,), ("",), "0123456789ab")) as store:
        address = asyncio.run(carry_out(store))
        assert told == [told[0]] and told[0].startswith(f"refused: worker {address} on ")
        assert store.count() == 0


@needs_dask
def test_without_a_scheduler_a_campaign_stops_and_says_how_to_go_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--seeds", "2", "--out", str(tmp_path), "--scheduler", "tcp://127.0.0.1:1", "--patience", "0.001s"]
    assert cli.main(["campaign", "new", "alone", *options]) == runs.HARNESS
    shown = capsys.readouterr().err
    assert "no connection to tcp://127.0.0.1:1 for 0.001 s" in shown
    assert f"campaign resume alone --scheduler tcp://127.0.0.1:1 --out {tmp_path}\n" in shown


@needs_dask
def test_two_campaigns_of_one_name_do_not_get_each_others_results(tmp_path: Path) -> None:
    """They share a scheduler, on which other people's campaigns may run, too."""
    from distributed import LocalCluster

    async def play(stores: list[Store]) -> None:
        async with LocalCluster(n_workers=1, processes=False, scheduler_kwargs=ANY_PORT, asynchronous=True) as local:
            cluster = Cluster(local.scheduler_address, 1, 60.0)
            async with asyncio.TaskGroup() as group:
                for store in stores:
                    group.create_task(play_all(Queue(store, Told()), cluster, Told()))

    work.open_children()
    product, changing = (Settings("night", 1, 4, None, (3,), ("",), code_version(), "", share) for share in (0.0, 1.0))
    with made(tmp_path / "a", product) as a, made(tmp_path / "b", changing) as b:
        asyncio.run(play([a, b]))
        assert not a.faults().keys() & {"add_node", "remove_node"} and "add_node" in b.faults()
        assert a.count() == b.count() == 4
    work.close_children()


@needs_dask
def test_a_disk_of_the_lab_that_fails_is_no_lost_scheduler(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    findings = tmp_path / "campaigns" / "full" / "findings"
    findings.parent.mkdir(parents=True)
    findings.touch()
    options = ["--seeds", "24", "--nodes", "3", "--jobs", "1", "--mutants", MUTANT, "--out", str(tmp_path)]
    assert cli.main(["campaign", "new", "full", *options]) == runs.HARNESS
    told = capsys.readouterr().err
    assert f"the campaign stopped: [Errno 17] File exists: '{findings}'" in told
    assert "waiting for the scheduler" not in told and f"campaign resume full --out {tmp_path}\n" in told


@needs_dask
def test_a_scheduler_that_hangs_counts_as_lost() -> None:
    async def hang() -> None:
        await asyncio.Event().wait()

    with pytest.raises(spread._Disconnected, match="no answer"):
        asyncio.run(spread._answered(hang(), 0.001))


@needs_dask
def test_sigterm_interrupts_as_ctrl_c_does(tmp_path: Path) -> None:
    options = ["--seeds", "5000", "--nodes", "3", "--jobs", "1", "--out", str(tmp_path / "with space")]
    command = [sys.executable, "-m", "lab", "campaign", "new", "ended", *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=child_environment()) as begun:
        while not rows(tmp_path / "with space" / "campaigns" / "ended" / FILE):
            assert begun.poll() is None
        begun.terminate()
        out, err = begun.communicate()
    assert begun.returncode == runs.INTERRUPTED and out.startswith(b"ended: ")
    said = "campaign: interrupted: closing the connection to the workers\n"
    then = f"to go on: python3 run_lab.py campaign resume ended --out '{tmp_path}/with space'\n"
    assert 0 <= err.decode().find(said) < err.decode().find(then)


def test_a_scheduler_that_keeps_closing_the_connection_does_not_renew_the_patience(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    connections = 0

    @contextlib.asynccontextmanager
    async def connected(cluster: Cluster) -> AsyncIterator[None]:
        nonlocal connections
        connections += 1
        assert connections < 20, "it goes on for ever"
        yield None

    async def closed(self: spread._Session) -> None:
        raise spread._Disconnected("closed")

    seconds = itertools.count()
    monkeypatch.setattr(spread, "time", SimpleNamespace(monotonic=lambda: float(next(seconds))))
    monkeypatch.setattr(spread, "POLL_S", 0.0)
    monkeypatch.setattr(spread, "_connected", connected)
    monkeypatch.setattr(spread._Session, "run", closed)
    with made(tmp_path, settings(2)) as store, pytest.raises(NoWorkers, match="no connection to tcp://here for 5 s"):
        asyncio.run(play_all(Queue(store, Told()), Cluster("tcp://here", 1, 5.0), Told()))
    assert connections > 1


# ---- the command line -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["new", "../up", "--seeds", "1"], "found '../up', allowed up to 100 letters, digits, '_', '-' and '.'"),
        (["new", "x", "--time", "5"], "found '5', allowed a time such as 90s, 10m or 4h"),
        (["new", "x", "--time", "0s"], "found '0s', allowed a time such as 90s, 10m or 4h"),
        (["new", "x", "--seeds", "1", "--mutants", "nothing"], "mutant 'nothing', allowed: "),
        (["new", "x", "--seeds", "0"], "found '0', allowed 1..2147483647"),
        (["new", "x", "--seeds", "1", "--mutants", ""], "found '', allowed names of mutants"),
        (["new", "x", "--seeds", "1", "--mutants", f"{MUTANT},"], f"found '{MUTANT},', allowed names of mutants"),
        (["new", "x", "--seeds", "\u0663"], "found '\u0663', allowed 1..2147483647"),
        (["new", "x", "--time", "9" * 400 + "h"], "allowed a time such as 90s, 10m or 4h"),
        *(
            (
                ["new", "x", "--seeds", "1", "--scheduler", each],
                f"found {each!r}, allowed an address such as tcp://host:8786",
            )
            for each in ("foo", "http://x:1", "tcp://127.0.0.1", "tcp://", "tcp://h:99999", "tcp://h:0", "a b:1")
        ),
    ],
)
def test_a_wrong_option_is_reported(options: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["campaign", *options])
    assert ended.value.code == runs.USAGE and message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["new", "x"], "campaign new: --seeds N or --time T is required, or both"),
        (
            ["new", "x", "--seeds", "9", "--seed", "2147483640"],
            "--seeds: found 9, allowed up to 8 from seed 2147483640",
        ),
        (["status", "x"], "campaign 'x': there is none in "),
        (
            ["new", "x", "--seeds", "1", "--commit", "nothing-of-this-name"],
            "found 'nothing-of-this-name', allowed a commit",
        ),
    ],
)
def test_wrong_usage_is_reported_and_leaves_nothing(
    options: list[str],
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(command, "_require_dask", lambda: None)
    assert cli.main(["campaign", *options, "--out", str(tmp_path)]) == runs.USAGE
    assert message in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_without_dask_the_message_says_how_to_install_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert cli.main(["campaign", "new", "x", "--seeds", "1", "--out", str(tmp_path)]) == runs.USAGE
    assert "campaigns need Dask: " in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_hours_are_times_too() -> None:
    from lab.values import running_time

    assert [running_time(text) for text in ("90s", "1.5m", "4h", "72h")] == [90, 90, 14400, 259200]
