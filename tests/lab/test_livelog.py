"""live.jsonl: a reader sees each thing while it happens; and the presenter of a run, for whom a step waits."""

from __future__ import annotations

import asyncio
import os
import pty
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from lab.live import live
from lab.live.presenter import at_terminal
from lab.places import ROOT
from lab.plan import scenario as plan
from lab.plan.scenario import Scenario
from lab.rows import (
    End,
    FaultChange,
    Found,
    LiveRow,
    Members,
    NodeSample,
    NodeStatus,
    Phase,
    ProcessChange,
    StepStart,
    decode_live_row,
)
from lab.rundir import RunDir
from lab.runs import How, run_once
from lab.sim import simulator
from tests.lab.patient import patient


def scenario(steps: str) -> Scenario:
    return plan.load("test.yml", text=f"name: test\ndescription: A test.\nload: {{rate: 50}}\nsteps: [{steps}]")


def rows_of(run: RunDir) -> list[LiveRow]:
    return [decode_live_row(line) for line in run.live.read_bytes().splitlines()]


def rules(rows: list[LiveRow]) -> dict[tuple[int, int], int]:
    """Link -> number of the fault whose rule is in force."""
    found: dict[tuple[int, int], int] = {}
    for row in rows:
        if isinstance(row, FaultChange) and row.row.fault == "link":
            if row.begins:
                found |= dict.fromkeys(map(tuple, row.row.evidence["pairs"]), row.number)
            else:
                found = {pair: number for pair, number in found.items() if number != row.number}
    return found


CUT = "{load: start}, {partition: {kind: isolate, node: 1}, name: cut}, {sleep: 1ms, name: later}, {heal: links}"
"""Without the node that leads."""


def test_a_reader_of_a_live_run_sees_a_cut_while_it_lasts(tmp_path: Path) -> None:
    run = RunDir.create(tmp_path, "test", "stamp")
    at: dict[str, list[LiveRow]] = {}

    def progress(text: str) -> None:
        at[text] = rows_of(run) if run.live.exists() else []

    live.run(patient(scenario(f"{CUT}, {{kill: 1}}, {{start: 1}}")), run, seed=1, progress=progress)
    before, during, after = (
        at[f"step {number} of 6, {text}"] for number, text in ((2, "cut"), (3, "later"), (5, "kill: 1"))
    )
    assert isinstance(before[0], Members) and set(before[0].nodes) == {1, 2, 3}
    up = {row.node for row in before if isinstance(row, ProcessChange) and row.state == "up" and row.pid}
    leads = {(row.node, row.leader) for row in before if isinstance(row, NodeStatus) and row.role == "leader"}
    assert (up, leads) == ({1, 2, 3}, {(3, 3)})
    assert rules(before) == {}
    assert set(rules(during)) == {(1, 2), (1, 3), (2, 1), (3, 1)}
    assert rules(after) == {}
    (killed,) = [row for row in at["step 6 of 6, start: 1"] if isinstance(row, ProcessChange) and row.state == "down"]
    assert (killed.node, killed.code) == (1, -9)
    rows = rows_of(run)
    assert isinstance(rows[-1], End) and rows[-1].problem == ""
    assert {"load_started", "healed", "converged"} <= {row.phase for row in rows if isinstance(row, Phase)}
    assert any(isinstance(row, NodeSample) for row in rows)
    frames = list(run.read_frames())
    assert run.read_meta().frames == "chosen" and [row.t for row in frames] == sorted(row.t for row in frames)
    voted = next(row for row in frames if row.kind == "VOTE")
    assert (voted.to, voted.text) == (3, "term 1") and voted.t <= voted.arrived[0] < voted.t + 1_000_000_000
    finished = [row.row for row in rows if isinstance(row, FaultChange) and not row.begins]
    assert [row.fault for row in sorted(finished, key=lambda row: row.t)] == [row.fault for row in run.read_faults()]


def test_a_simulation_leaves_the_same_kinds_of_rows_and_the_same_bytes_each_time(tmp_path: Path) -> None:
    found = []
    for stamp in ("one", "two"):
        run = RunDir.create(tmp_path, "test", stamp)
        simulator.run(scenario(f"{CUT}, {{kill: leader}}, {{wait: new_leader}}, {{start: killed}}"), run, seed=1)
        found.append(run.live.read_bytes())
    rows = rows_of(run)
    assert found[0] == found[1]
    kinds = {type(row) for row in rows}
    assert kinds == {Members, ProcessChange, NodeStatus, FaultChange, StepStart, Phase, Found, End}
    assert [row.state for row in rows if isinstance(row, ProcessChange) and row.node == 3] == [
        "up",
        "down",
        "up",
        "down",
    ]
    assert {row.leader for row in rows if isinstance(row, NodeStatus)} >= {2, 3}


def test_the_verdict_is_the_last_row_once(tmp_path: Path) -> None:
    result = run_once(scenario("{load: start}, {sleep: 100ms}"), 1, tmp_path, How(sim=True))
    assert result.directory is not None
    rows = RunDir(result.directory).live.read_bytes().splitlines()
    assert [line for line in rows if b'"verdict"' in line] == [rows[-1]] == [b'{"op":"verdict","outcome":"pass"}']


def test_an_unchanged_answer_is_written_once(tmp_path: Path) -> None:
    run = RunDir.create(tmp_path, "test", "stamp")
    simulator.run(scenario("{load: start}, {load: stop}, {sleep: 5s}"), run, seed=1)
    statuses = [row for row in rows_of(run) if isinstance(row, NodeStatus)]
    assert len(statuses) < 20


# ---- the presenter -------------------------------------------------------------------------------


async def never() -> None:
    await asyncio.Event().wait()


async def soon() -> None:
    await asyncio.sleep(3)


@pytest.mark.parametrize(("go_on", "within", "lasts_s"), [(None, "20s", 0), (never, "20s", 20), (soon, "20s", 3)])
def test_a_hold_lasts_until_the_presenter_lets_go(go_on: Callable[[], object], within: str, lasts_s: float) -> None:
    planned = scenario(f"{{load: start}}, {{hold: {within}, say: look}}, {{sleep: 1ms}}")
    rows: list[bytes] = []
    simulation = simulator.Simulation(planned, 1, live=rows)
    simulation.runner._go_on = go_on  # type: ignore[assignment]
    simulation.carry_out()
    _, first, second = [row for row in map(decode_live_row, rows) if isinstance(row, StepStart)]
    assert (first.text, first.say) == (f"hold: {within}", "look")
    assert (second.t - first.t) / 1e9 == pytest.approx(lasts_s, abs=0.01)


def test_nobody_is_waited_for_on_a_build_server_or_without_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    with (ROOT / "README.md").open() as file:
        monkeypatch.setattr(sys, "stdin", file)
        assert at_terminal() is None
    monkeypatch.setattr("lab.live.presenter.sys", type("Terminals", (), {"stdin": Terminal(), "stderr": Terminal()}))
    monkeypatch.delenv("CI", raising=False)
    assert at_terminal() is not None
    monkeypatch.setenv("CI", "true")
    assert at_terminal() is None


class Terminal:
    """Claims to be a terminal."""

    def isatty(self) -> bool:
        return True

    def fileno(self) -> int:
        return 0


WAITS_FOR_ENTER = """
import asyncio
from lab.live.presenter import at_terminal
async def main():
    waiting = asyncio.ensure_future(at_terminal()())
    await asyncio.sleep(0)
    print("waits", waiting.done(), flush=True)
    await waiting
    print("went on", flush=True)
asyncio.run(main())
"""


def test_enter_in_the_terminal_lets_the_run_continue() -> None:
    child, terminal = pty.fork()
    if not child:
        os.environ.pop("CI", None)
        os.environ["PYTHONPATH"] = str(ROOT)
        os.execv(sys.executable, [sys.executable, "-c", WAITS_FOR_ENTER])
    said = b""
    while b"waits False" not in said:
        said += os.read(terminal, 1024)
    os.write(terminal, b"\n")
    while b"went on" not in said:
        said += os.read(terminal, 1024)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    os.close(terminal)
