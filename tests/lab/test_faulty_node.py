"""The product on a disk and with a clock of the lab's: it is put beneath it from outside, and clocks go as ordered."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from lab.live.children import child_environment
from lab.live.inside import faulty_node
from lab.live.inside.faulty_node import Clock
from lab.live.inside.ledger import Ledger
from lab.steps.orders import Orders


class FixedTime:
    """Stands for the module `time` beneath the clock."""

    def __init__(self, now: float) -> None:
        self.now = now

    def monotonic(self) -> float:
        return self.now

    def time(self) -> float:
        return 1e9 + self.now


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> FixedTime:
    machine = FixedTime(100.0)
    monkeypatch.setattr(faulty_node, "time", machine)
    return machine


def test_a_clock_without_orders_is_right_and_nothing_is_misread(tmp_path: Path, machine: FixedTime) -> None:
    misread: list[int] = []
    clock = Clock(Ledger(tmp_path), lambda: misread.append(1))
    assert (clock.monotonic(), clock.time(), clock.real(3.0)) == (100.0, 1e9 + 100.0, 3.0)
    assert misread == []


def test_a_clock_that_drifts_goes_on_from_where_it_was_and_never_back(tmp_path: Path, machine: FixedTime) -> None:
    ledger, misread = Ledger(tmp_path), list[int]()
    clock = Clock(ledger, lambda: misread.append(1))
    ledger.order(Orders(drift=0.5, since=100.0, base=100.0))
    machine.now = 110.0
    assert (clock.monotonic(), clock.real(3.0), len(misread)) == (115.0, 2.0, 1)
    ledger.order(Orders(drift=0.0, since=110.0, base=ledger.orders().monotonic(110.0)))
    machine.now = 111.0
    assert (clock.monotonic(), clock.real(3.0), len(misread)) == (116.0, 3.0, 1)


def test_a_wall_clock_that_was_set_is_ahead_and_time_spans_do_not_notice(tmp_path: Path, machine: FixedTime) -> None:
    ledger, misread = Ledger(tmp_path), list[int]()
    clock = Clock(ledger, lambda: misread.append(1))
    ledger.order(Orders(wall_s=90.0))
    assert (clock.time(), clock.monotonic(), len(misread)) == (1e9 + 190.0, 100.0, 1)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--config", "missing.yml"], "--ledger"),
        (["--ledger", "ledger", "--config", "missing.yml"], "missing.yml"),
        (["--ledger", "ledger", "--run", "lab.mutants.broken_node", "--mutant", "x", "--config", "y"], "'x'"),
    ],
)
def test_it_takes_a_ledger_and_a_nodes_arguments(tmp_path: Path, arguments: list[str], complaint: str) -> None:
    command = [sys.executable, "-m", "lab.live.inside.faulty_node", *arguments]
    done = subprocess.run(command, cwd=tmp_path, env=child_environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 2 and complaint in done.stderr
