"""What a watcher costs: a run under full load with and without `--watch` and an open page, in alternating pairs.

PAIRS=8 for the figures of docs/watching.md; `pytest -s` shows them. LOAD_S: the length of each run's load.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import psutil
import pytest

from lab.live.children import child_environment
from lab.paired import Series, judge
from tests.browser.conftest import Page

PAIRS = int(os.environ.get("PAIRS", "0"))
LOAD_S = float(os.environ.get("LOAD_S", "5"))
SCENARIO = f"""\
name: full_load
description: Clients that always wait for one message each.
load: {{clients: 64, in_flight: 1, duration: {LOAD_S}s}}
bounds: {{recovery: 120s, convergence: 120s}}
steps: [{{load: start}}, {{wait: {{for: load_done, within: 120s}}}}, {{wait: idle}}]
"""


class Cost(NamedTuple):
    """acks_per_s: of the run. server, page: shares of a core while it lasted; 0 without a watcher."""

    acks_per_s: float
    server: float = 0.0
    page: float = 0.0


def used_s(processes: list[psutil.Process]) -> float:
    """Return the processor time of those processes that still run."""
    total = 0.0
    for each in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            total += sum(each.cpu_times()[:2])
    return total


def one_run(page: Page, tmp_path: Path, *, watched: bool) -> Cost:
    scenario = tmp_path / "full_load.yml"
    scenario.write_text(SCENARIO)
    command = [sys.executable, "-m", "lab", str(scenario), "--json", "--no-report", "--out", str(tmp_path / "results")]
    command += ["--watch"] if watched else []
    server: list[psutil.Process] = []
    browser: list[psutil.Process] = []
    began, before, server_s, page_s = time.perf_counter(), 0.0, 0.0, 0.0
    address, has_begun = "", False
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=child_environment()
    ) as run:
        assert run.stderr is not None and run.stdout is not None
        for line in run.stderr:
            address = line.strip() if line.startswith("http://") else address
            has_begun = has_begun or "step " in line
            if address and has_begun and not browser:
                page.browser.get(address)
                children = psutil.Process(run.pid).children()
                server = [each for each in children if "serve" in each.cmdline()]
                browser = psutil.Process(page.browser.service.process.pid).children(recursive=True)
                before = used_s(browser)
            server_s = max(server_s, used_s(server))
            page_s = used_s(browser) - before
        found = json.loads(run.stdout.read())
        assert run.wait() == 0, found
    took_s = time.perf_counter() - began
    acks_per_s = found["runs"][0]["metrics"]["load"]["throughput_per_s"]
    if not watched:
        return Cost(acks_per_s)
    assert page.all(".node"), "the page has shown the run"
    return Cost(acks_per_s, server_s / took_s, page_s / took_s)


@pytest.mark.skipif(not PAIRS, reason="a measurement: PAIRS=8")
def test_a_watcher_costs_little(page: Page, tmp_path: Path) -> None:
    alone: list[Cost] = []
    watched: list[Cost] = []
    for number in range(PAIRS):
        for is_watched in (False, True) if number % 2 else (True, False):
            (watched if is_watched else alone).append(one_run(page, tmp_path, watched=is_watched))
    series = Series([each.acks_per_s for each in alone], [each.acks_per_s for each in watched], "more")
    found = judge({"throughput": series})["throughput"]
    server, shown = (max(getattr(each, name) for each in watched) for name in ("server", "page"))
    print(
        f"\n{PAIRS} pairs: throughput x {found.ratio:.2f} ({found.low:.2f} .. {found.high:.2f}), {found.answer}; "
        f"server {server:.1%} of a core at most, page {shown:.1%}\n{alone}\n{watched}"
    )
    assert server > 0 and shown > 0
