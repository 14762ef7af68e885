"""Soaks: runs are judged and counted, only those that do not pass are kept, and an interrupted soak goes on."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
import psutil
import pytest
from msgspec import structs

from lab import cli, runs
from lab.campaign import soak as soaking
from lab.campaign.soak import (
    LAST,
    ROWS,
    START,
    TABLE,
    Order,
    Row,
    Soak,
    report,
    with_last_messages,
    without_missed_faults,
)
from lab.campaign.store import StoreError, locked
from lab.check.verdict import Check, Outcomes, Verdict
from lab.live.children import child_environment
from lab.plan import scenario as plan
from lab.plan.scenario import Scenario
from lab.runs import How, Result
from lab.search.assumptions import CAUGHT_UP, HEAL_ALL, within_assumptions
from lab.search.draw import SIZES, draw

RUN_S = 10.0
A_REFUSED_SESSION = 910000432
"""In a soak, its last messages were refused: clients that waited for a leader filled the small session table first."""


class World:
    """Simulates the runs; time passes only by them, RUN_S for each."""

    def __init__(self, change: Callable[[Result], Result] = lambda result: result) -> None:
        self.now, self.seeds, self._change = 0.0, list[int](), change

    def run(self, scenario: Scenario, seed: int, out: Path) -> Result:
        self.seeds.append(seed)
        self.now += RUN_S
        return self._change(runs.run_once(scenario, seed, out, How(sim=True)))

    def carry_out(
        self, directory: Path, first: int | None, limit_s: float, tell: Callable[[Row], None] = lambda row: None
    ) -> Soak:
        """Play a soak, one run after the other."""

        async def play(seed: int) -> Row:
            return soaking.play(Order(seed, (3,), str(directory)), self.run, lambda: self.now)

        soak = Soak(directory, lambda: self.now)
        asyncio.run(soak.carry_out([play], soak.begin(first, (3,)).first, limit_s, tell))
        return soak


def broken(result: Result) -> Result:
    assert result.verdict is not None and result.seed is not None
    if result.seed % 2:
        return result
    check = Check("A4", "no acknowledged message is lost", "FAIL", "1 is lost")
    verdict = Verdict("broken", (check,), (), Outcomes())
    return Result(result.scenario, result.seed, result.directory, runs.BROKEN, verdict, result.metrics)


def test_runs_that_pass_leave_a_row_and_the_others_their_directory_too(tmp_path: Path) -> None:
    told: list[Row] = []
    soak = World(broken).carry_out(tmp_path, 3, 2 * RUN_S, told.append)
    rows = soak.rows()
    assert rows == told
    assert [(row.seed, row.exit_code, row.seconds) for row in rows] == [(3, runs.PASS, RUN_S), (4, runs.BROKEN, RUN_S)]
    assert rows[0].faults and rows[0].acknowledged and not rows[0].directory
    kept = Path(rows[1].directory)
    assert (kept / "scenario.yml").is_file() and rows[1].again.endswith("scenario.yml --seed 4")
    assert [path.name for path in tmp_path.glob("drawn_*")] == ["drawn_4"]
    shown = report(rows)
    assert shown.startswith("2 runs in 0.01 h: 1 passed, 1 broken\n")
    assert "seed 4, 3 nodes: FAIL: A4 no acknowledged message is lost: 1 is lost\n  again: " in shown


def test_a_soak_goes_on_with_the_next_seed_also_after_a_kill_within_a_line(tmp_path: Path) -> None:
    World().carry_out(tmp_path, 3, 2 * RUN_S)
    with (tmp_path / ROWS).open("ab") as file:
        file.write(b'{"seed":5,"exit_co')
    interrupted = tmp_path / "drawn_5" / "stamp"
    interrupted.mkdir(parents=True)
    assert [row.seed for row in Soak(tmp_path).rows()] == [3, 4]
    second = World()
    soak = second.carry_out(tmp_path, None, 3 * RUN_S)
    assert second.seeds == [5], "the time of all starts together is limited"
    assert [row.seed for row in soak.rows()] == [3, 4, 5]
    assert not interrupted.exists()


def test_runs_at_the_same_time_share_the_seeds_and_what_was_interrupted_is_played_again(tmp_path: Path) -> None:
    soak, forever, told = Soak(tmp_path, lambda: 0.0), asyncio.Event(), list[int]()

    async def slow(seed: int) -> Row:
        (tmp_path / f"drawn_{seed}").mkdir()
        await forever.wait()
        raise AssertionError

    async def quick(seed: int) -> Row:
        if seed == 12:
            raise KeyboardInterrupt
        await asyncio.sleep(0)
        return Row(seed, 3, runs.PASS, "PASS", 1.0)

    with pytest.raises(KeyboardInterrupt):
        asyncio.run(soak.carry_out([slow, quick], soak.begin(9, (3,)).first, 60.0, lambda row: told.append(row.seed)))
    assert told == [10, 11] == [row.seed for row in soak.rows()]
    second = World()
    soak = second.carry_out(tmp_path, None, 3 * RUN_S)
    assert second.seeds == [9, 12, 13] and not (tmp_path / "drawn_9").exists()
    assert len(soak.rows()) == 5


def test_a_soak_goes_on_with_the_seed_and_the_sizes_with_which_it_began(tmp_path: Path) -> None:
    soak = Soak(tmp_path)
    begun = soak.begin(None, None)
    assert soak.begin(None, None) == soak.begin(begun.first, SIZES) == begun, "also before its first run has ended"
    with pytest.raises(StoreError, match=rf"--seed: found {begun.first + 1}, allowed {begun.first} as this soak began"):
        soak.begin(begun.first + 1, None)
    with pytest.raises(StoreError, match="--nodes: found 3, allowed 3,5 as this soak began, or another --name"):
        soak.begin(None, (3,))
    (tmp_path / START).unlink()
    (tmp_path / ROWS).write_bytes(msgspec.json.encode(Row(1, 3, 0, "PASS", 1.0)) + b"\n")
    with pytest.raises(StoreError, match="found runs of an older version; allowed is another --name"):
        soak.begin(None, None)


@pytest.mark.parametrize("line", [b"garbage", b"", b'{"seed":1}', b"\0"])
def test_a_line_that_is_no_row_is_named_and_nothing_is_lost(tmp_path: Path, line: bytes) -> None:
    soak = World().carry_out(tmp_path, 3, RUN_S)
    content = (tmp_path / ROWS).read_bytes() + line + b"\n"
    (tmp_path / ROWS).write_bytes(content)
    with pytest.raises(StoreError, match=rf"{ROWS}:2: found b.*allowed the row of a soak: "):
        soak.rows()
    assert (tmp_path / ROWS).read_bytes() == content


def test_a_restart_keeps_what_a_person_or_a_judge_has_put_there(tmp_path: Path) -> None:
    (tmp_path / "notes").mkdir()
    judged, begun = (tmp_path / name / "stamp" for name in ("drawn_9", "drawn_10"))
    for run in (judged, begun):
        run.mkdir(parents=True)
    (judged / "verdict.json").touch()
    World().carry_out(tmp_path, 3, RUN_S)
    assert {each.name for each in tmp_path.iterdir() if each.is_dir()} == {"notes", "drawn_9"} and judged.exists()


def test_a_lab_that_always_fails_ends_the_soak(tmp_path: Path) -> None:
    def fails(scenario: Scenario, seed: int, out: Path) -> Result:
        return Result(scenario.name, seed, None, runs.HARNESS, problem="no space left")

    world = World()
    world.run = fails  # type: ignore[method-assign]
    with pytest.raises(ExceptionGroup) as raised:
        world.carry_out(tmp_path, 3, 100 * RUN_S)
    assert str(raised.value.exceptions[0]).startswith("3 times in a row; the lab failed: no space left")
    assert [row.exit_code for row in Soak(tmp_path).rows()] == [runs.HARNESS] * 3


def test_a_soaked_scenario_sends_messages_when_all_nodes_are_healed() -> None:
    for seed in (*range(40), A_REFUSED_SESSION):
        drawn = draw(seed, (3, 5, 7))
        soaked = with_last_messages(drawn)
        last = structs.replace(LAST, wait="max_sessions" not in drawn.cluster.limits)
        assert soaked.steps[: len(drawn.steps)] == drawn.steps and soaked.steps[-3:] == (HEAL_ALL, CAUGHT_UP, last)
        assert plan.load("soaked", text=plan.encode_brief(soaked)).steps == soaked.steps
        assert within_assumptions(soaked.steps, soaked.cluster.nodes)


def verdict(*checks: Check) -> Result:
    return Result("x", 1, None, runs.UNDECIDED, Verdict("undecided", checks, (), Outcomes()))


def test_a_drawn_fault_without_effect_leaves_nothing_undecided() -> None:
    fine = Check("A1", "one order", "PASS", "")
    said = "faults.jsonl:3: start of node 1 had no effect"
    missed, bare = (Check("faults", "faults", "UNKNOWN", text) for text in (f"{said}: found ran already", said))
    gap = Check("faults", "faults", "UNKNOWN", "no row for step 3")
    other = Check("A8", "subscribers", "UNKNOWN", "nothing was judged")
    assert without_missed_faults(verdict(fine, missed)).exit_code == runs.PASS
    assert without_missed_faults(verdict(fine, bare)).exit_code == runs.PASS
    assert without_missed_faults(verdict(fine, gap)).exit_code == runs.UNDECIDED
    assert without_missed_faults(verdict(other, missed)).exit_code == runs.UNDECIDED
    assert without_missed_faults(Result("x", 1, None, runs.HARNESS, problem="why")).exit_code == runs.HARNESS


def test_the_table_shows_faults_and_unavailable_time() -> None:
    rows = [
        Row(1, 3, 0, "PASS", 10.0, faults={"kill": 2, "start": 2}, unavailable_s={"kill": 0.5}, longest_gap_s=0.6),
        Row(2, 5, 0, "PASS", 20.0, faults={"kill": 1}, unavailable_s={"kill": 1.5}, longest_gap_s=2.0),
    ]
    lines = [line.split() for line in report(rows).splitlines()]
    assert ["kill", "2", "3", "1.00", "1.40", "1.50"] in lines
    assert ["start", "1", "2"] in lines
    assert ["any", "time", "2", "5", "1.30", "1.86", "2.00"] in lines


def test_a_second_process_does_not_play_the_same_soak(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    directory = tmp_path / "soaks" / "night"
    directory.mkdir(parents=True)
    with locked(directory, "soak 'night'"):
        assert cli.main(["soak", "--time", "1s", "--name", "night", "--out", str(tmp_path)]) == runs.USAGE
    assert capsys.readouterr().err == "soak 'night' is being played by another process; allowed is another --name\n"
    assert not list(directory.iterdir())


@pytest.mark.parametrize("out", ["file", "file/below"])
def test_results_that_cannot_be_written_are_refused(
    tmp_path: Path, out: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    assert cli.main(["soak", "--time", "1s", "--out", str(tmp_path / out)]) == runs.USAGE
    assert f"--out: found {tmp_path / out}, allowed a directory that can be written: " in capsys.readouterr().err


def test_a_file_in_the_place_of_a_soak_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "soaks").mkdir()
    (tmp_path / "soaks" / "night").touch()
    assert cli.main(["soak", "--time", "1s", "--name", "night", "--out", str(tmp_path)]) == runs.HARNESS
    error = capsys.readouterr().err
    assert error.startswith("soak 'night': ") and str(tmp_path / "soaks" / "night") in error and error.count("\n") == 1


QUICK_SEED = 700000003
"""Its drawn scenario takes few seconds."""


def test_the_command_runs_real_processes_and_repeats_no_finished_soak(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["soak", "--time", "1s", "--seed", str(QUICK_SEED), "--out", str(tmp_path)]
    assert cli.main(options) == runs.PASS
    told = capsys.readouterr()
    assert told.out.startswith("1 run in 0.00 h: 1 passed\n") and f"soak: seed {QUICK_SEED}: PASS (" in told.err
    directory = tmp_path / "soaks" / "soak"
    assert (directory / TABLE).read_text() == told.out
    assert {each.name for each in directory.iterdir()} == {START, ROWS, TABLE}
    (directory / "drawn_1" / "stamp").mkdir(parents=True)
    assert cli.main(options) == runs.USAGE
    again = capsys.readouterr()
    assert "soak 'soak' has run for " in again.err and "allowed is a longer --time" in again.err
    assert again.out == told.out and not (directory / "drawn_1").exists()


def parents_of_nodes(processes: list[psutil.Process]) -> set[int]:
    parents = set()
    for each in processes:
        with contextlib.suppress(psutil.NoSuchProcess):  # It may end at any time.
            if "nodeproc" in each.cmdline():
                parents.add(each.ppid())
    return parents


def test_an_interrupted_soak_ends_its_processes(tmp_path: Path) -> None:
    options = ["--time", "1h", "--jobs", "2", "--seed", "1", "--out", str(tmp_path)]
    command = [sys.executable, "-m", "lab", "soak", *options]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=child_environment()
    ) as soak:
        me = psutil.Process(soak.pid)
        while len(parents_of_nodes(family := me.children(recursive=True))) < 2:  # Both runs have started a node.
            assert soak.poll() is None
        soak.send_signal(signal.SIGTERM)
        out, err = soak.communicate()
    assert soak.returncode == runs.INTERRUPTED and out.startswith("0 runs in 0.00 h: none finished\n"), err
    assert not psutil.wait_procs(family, timeout=10)[1]
