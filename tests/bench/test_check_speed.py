"""How fast a run is judged, and in how much memory. CHECK_MESSAGES=1000000 for the figures of docs/performance.md."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from lab.check.invariants import check
from lab.check.metrics import measure
from lab.check.verdict import Verdict
from lab.rundir import RunDir
from tests.lab.synthetic import build_run

MESSAGES = int(os.environ.get("CHECK_MESSAGES", "20000"))
PROJECT = Path(__file__).resolve().parents[2]
PEAK = """
import resource, sys
from pathlib import Path
from lab.check import history
from lab.check.invariants import check
from lab.rundir import RunDir
history.CHUNK_BYTES = 1 << 16
assert check(RunDir(Path(sys.argv[1])), None).exit_code == 0
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    return build_run(tmp_path_factory.mktemp("large"), batches=MESSAGES // 100, batch=100, clients=6)


def test_judge_a_large_run(run: RunDir, benchmark: Any) -> None:
    verdict: Verdict = benchmark.pedantic(check, args=(run, None), rounds=1)
    assert verdict.messages.in_log == MESSAGES
    benchmark.extra_info["messages"] = MESSAGES


def test_measure_a_large_run(run: RunDir, benchmark: Any) -> None:
    metrics = benchmark.pedantic(measure, args=(run,), rounds=1)
    assert metrics.load.acknowledged == MESSAGES


def test_judge_clients_whose_messages_alternate(tmp_path: Path, benchmark: Any) -> None:
    """The dearest log: no two messages of a session stand together, each has rows of its own."""
    run = build_run(tmp_path, batches=MESSAGES // 10, batch=1, clients=50)
    assert benchmark.pedantic(check, args=(run, None), rounds=1).exit_code == 0


def peak_kib(path: Path) -> int:
    """Largest resident size of a process that judges the run."""
    ended = subprocess.run([sys.executable, "-c", PEAK, str(path)], cwd=PROJECT, capture_output=True, check=True)
    return int(ended.stdout)


def test_memory_does_not_grow_with_the_log(tmp_path: Path) -> None:
    """20,000 messages are 4 MB of log, or 7 MB of parsed lines: none of that may be kept."""
    small = build_run(tmp_path / "small", batches=20, batch=100)
    large = build_run(tmp_path / "large", batches=200, batch=100)
    assert peak_kib(large.path) - peak_kib(small.path) < 3 << 10
