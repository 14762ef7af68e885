"""Section checks: time and memory for judging a run, and time for simulating one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

from lab.bench.figures import Collected
from lab.bench.loads import Pipelined
from lab.bench.runs import Ran, Runs
from lab.live.children import child_environment
from lab.search.draw import CHANGING_SHARE, SIZES
from lab.search.search import WORKER
from lab.search.worker import Begin, Seed, decode_played, encode
from lab.steps.machine import RunFailed

SEEDS_FROM = 1
SIMULATE_S = 10.0
LEAST_SEEDS = 20


def checks(into: Collected, runs: Runs, quick: bool) -> None:
    """Judge runs of many messages; simulate seeds for a while."""
    for messages in (100_000,) if quick else (1_000_000, 10_000_000):
        load = Pipelined().load(messages)

        def use(ran: Ran, messages: int = messages) -> None:
            for _ in range(1 if messages > 1_000_000 else 3):
                seconds, peak = judge_in_process(ran.run.path)
                into.add("checks", f"{messages:,} messages on three nodes", "s", seconds)
                into.add("checks", f"{messages:,} messages on three nodes", "MB", peak / 1e6)

        runs.carry_out(runs.scenario("bench_checks", load), use)
    for plain in (True, False):
        _simulated(into, 2.0 if quick else SIMULATE_S, plain)


def judge_in_process(path: Path) -> tuple[float, int]:
    """Judge a run with `run_lab.py check` in a process of its own.

    Returns:
        (seconds, including the start of the process, peak memory in bytes)

    Raises:
        RunFailed: the run does not pass.
    """
    command = [sys.executable, "-m", "lab", "check", "--json", str(path)]
    began = time.monotonic()
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=child_environment())
    assert child.stdout is not None
    answer = child.stdout.read()
    _, status, usage = os.wait4(child.pid, 0)
    seconds = time.monotonic() - began
    child.stdout.close()
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise RunFailed(f"{path}: the run does not pass: {json.dumps(json.loads(answer))[:400]}")
    return seconds, usage.ru_maxrss * 1024


def _simulated(into: Collected, seconds: float, plain: bool) -> None:
    """Have a worker of a search simulate seeds one after the other: in plain Python, or natively if there is a build.

    Args:
        seconds: CPU time to use, at least.
    """
    command = [sys.executable, "-m", WORKER]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=child_environment()) as child:
        assert child.stdin is not None and child.stdout is not None
        child.stdin.write(encode(Begin(SIZES, CHANGING_SHARE, plain=plain)) + b"\n")
        spent, seed = 0.0, SEEDS_FROM
        while spent < seconds or seed - SEEDS_FROM <= LEAST_SEEDS:
            child.stdin.write(encode(Seed(seed)) + b"\n")
            child.stdin.flush()
            played = decode_played(child.stdout.readline())
            if played.mode == "plain" and not plain:
                return
            if seed > SEEDS_FROM:  # With the first seed, the worker imports the modules.
                spent += played.cpu_s
            seed += 1
    name, done = f"simulated seeds, {played.mode}", seed - SEEDS_FROM - 1
    into.add("checks", name, "seeds/s a core", done / spent, "more")
    into.add("checks", name, "CPU ms/seed", spent * 1e3 / done)
