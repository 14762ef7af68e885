"""Live runs in processes of their own: one that a test interrupts or kills, and one with steps by hand."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from lab.live.children import child_environment

HARNESS = """
import sys
from pathlib import Path
from lab.plan import scenario
from lab.live import live
from lab.rundir import RunDir

planned, run = scenario.load("test.yml", text=sys.argv[2]), RunDir(Path(sys.argv[1]))
live.run(planned, run, seed=7, progress=lambda line: print(line, flush=True))
"""
LAST_STEP = "sleep: 10m"
PATIENT = """\
name: patient
description: The beginning of a session on a machine that may be busy.
load: {clients: 4, rate: 100}
bounds: {recovery: 120s, convergence: 120s}
steps:
  - load: start
  - wait: {for: acknowledged, count: 20, within: 120s}
  - hands: 30m
"""


@contextmanager
def harness_in_the_middle(
    directory: Path, body: str, below: int
) -> Iterator[tuple[subprocess.Popen[bytes], list[psutil.Process]]]:
    """A harness process in the last step of a scenario, LAST_STEP, and all the processes below it.

    Args:
        body: the scenario without name and description.
        below: how many processes there must be below the harness.
    """
    text = f"name: test\ndescription: A test.\n{body}"
    command = [sys.executable, "-c", HARNESS, str(directory), text]
    harness = subprocess.Popen(command, stdout=subprocess.PIPE, env=child_environment())
    assert harness.stdout is not None
    try:
        while b"sleep: 600s" not in (line := harness.stdout.readline()):
            assert line, "the harness ended before its last step"
        processes = psutil.Process(harness.pid).children(recursive=True)
        assert len(processes) == below
        yield harness, processes
    finally:
        harness.kill()
        harness.communicate()
