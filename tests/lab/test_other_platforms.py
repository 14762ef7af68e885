"""A machine without what only Linux has, played by a sitecustomize: nodes, clients, lab and simulator work there."""

from __future__ import annotations

import fcntl
import os
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from lab.live import launch
from lab.plan import scenario as plan
from nodeproc.disk.files import sync_file
from tests import TOO_LONG_S
from tests.lab.patient import patient

PROJECT = Path(__file__).resolve().parents[2]
WITHOUT = """
import ctypes, fcntl, os, pathlib, socket, sys

for name in ("fdatasync", "pidfd_open", "sched_getaffinity"):
    delattr(os, name)
for name in ("TCP_INFO", "TCP_KEEPIDLE", "TCP_KEEPINTVL", "TCP_KEEPCNT"):
    delattr(socket, name)
fcntl.F_FULLFSYNC, real = 51, fcntl.fcntl
fcntl.fcntl = lambda fd, what, *more: os.fsync(fd) if what == 51 else real(fd, what, *more)
sys.modules["uvloop"] = None

class NoLibrary:
    def __init__(self, name): pass

ctypes.CDLL = NoLibrary
read_text = pathlib.Path.read_text

def without_proc(self, *args, **kwargs):
    if str(self).startswith("/proc"):
        raise FileNotFoundError(2, "No such file or directory", str(self))
    return read_text(self, *args, **kwargs)

pathlib.Path.read_text = without_proc
"""


@pytest.fixture
def lab(tmp_path: Path) -> list[str]:
    (tmp_path / "sitecustomize.py").write_text(WITHOUT)
    return [sys.executable, str(PROJECT / "run_lab.py")]


def run(lab: list[str], tmp_path: Path, *arguments: str) -> str:
    done = subprocess.run(
        [*lab, *arguments],
        cwd=PROJECT,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=TOO_LONG_S,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout


def test_a_leader_is_replaced_on_a_machine_without_linuxs_own(lab: list[str], tmp_path: Path) -> None:
    story = tmp_path / "leader_failure.yml"
    story.write_text(plan.encode(patient(plan.load(PROJECT / "scenarios" / "leader_failure.yml"))))
    out = run(lab, tmp_path, "run", str(story), "--out", str(tmp_path / "out"))
    assert "PASS" in out


def test_the_simulator_and_explore_run_there(lab: list[str], tmp_path: Path) -> None:
    out = run(lab, tmp_path, "sim", "--seeds", "3", "--out", str(tmp_path / "out"))
    assert "findings: none" in out
    run(lab, tmp_path, "run", "--sim", "--seed", "1", "scenarios/leader_failure.yml", "--out", str(tmp_path / "out"))


def test_a_program_is_ended_with_its_harness_where_there_is_no_pidfd() -> None:
    program = subprocess.Popen(["sleep", "60"], process_group=0)
    lifeline, held = os.pipe()
    os.close(held)
    launch.watch_by_polling(program.pid, lifeline, select.poll())
    assert program.wait(TOO_LONG_S) == -signal.SIGKILL
    os.close(lifeline)


def test_a_file_is_synced_through_the_drives_cache_where_that_takes_a_call_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    monkeypatch.setattr(fcntl, "F_FULLFSYNC", 51, raising=False)
    monkeypatch.setattr(fcntl, "fcntl", lambda fd, what: asked.append(what))
    with (tmp_path / "file").open("wb") as file:
        sync_file(file.fileno())
    assert asked == [51]
