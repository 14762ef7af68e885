"""Scenarios on the engines that are installed; an engine that is not is skipped.

LOCKED belongs to the packages for tests (requirements-dev.txt), so that the usual tests run a real engine.
"""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest
from msgspec.structs import replace

from lab.check.invariants import check
from lab.check.metrics import measure
from lab.check.verdict import Verdict
from lab.engines import catalogue, install
from lab.live import live
from lab.places import ROOT
from lab.plan.scenario import Bounds, Instead, Scenario
from lab.plan.sense import load_checked
from lab.rundir import RunDir
from lab.steps import Wait
from tests import TOO_LONG_S
from tests.lab.harness import LAST_STEP, harness_in_the_middle
from tests.lab.patient import TOO_LONG, patient
from tests.lab.supervisable import needs_supervisor

ENGINES = ("etcd@3.5.1", "nats@2.12.1")
LOCKED = "nats@2.15.1"


def skip_without(engine: str) -> None:
    """Skip the test if the engine is not installed."""
    try:
        install.program(catalogue.parse(engine))
    except install.NotInstalled as error:
        pytest.skip(str(error))


def on(engine: str, file: str, **options: str) -> Scenario:
    """Return a scenario with this engine; skip the test if that is not installed."""
    skip_without(engine)
    return load_checked(ROOT / "scenarios" / file, engine=Instead(engine, options))


def judged(planned: Scenario, directory: Path) -> Verdict:
    run = RunDir.create(directory, planned.name, "stamp")
    live.run(planned, run, seed=7, progress=lambda _: None)
    assert run.read_meta().cluster["engine"] == planned.cluster.engine
    return check(run, measure(run))


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", ["leader_failure", "full_restart_continues_numbering"])
def test_an_engine_passes_the_checks(tmp_path: Path, engine: str, name: str) -> None:
    verdict = judged(patient(on(engine, f"{name}.yml")), tmp_path)
    assert [each for each in verdict.checks if each.result not in ("PASS", "MISSED")] == []


@pytest.mark.parametrize(("options", "failed"), [({}, {"A4"}), ({"sync_interval": "always"}, set())], ids=str)
def test_a_power_loss_takes_what_an_engine_acknowledges_before_it_syncs(
    tmp_path: Path, options: dict[str, str], failed: set[str]
) -> None:
    needs_supervisor()
    planned = on(LOCKED, "engines/nats_power_loss.yml", **options)
    waits = {
        at: replace(step.until, within=TOO_LONG) for at, step in enumerate(planned.steps) if isinstance(step, Wait)
    }
    steps = [replace(step, until=waits[at]) if at in waits else step for at, step in enumerate(planned.steps)]
    planned = replace(planned, steps=tuple(steps), bounds=Bounds(recovery=TOO_LONG, convergence=TOO_LONG))
    verdict = judged(planned, tmp_path)
    assert {each.name for each in verdict.checks if each.result == "FAIL"} >= failed, verdict
    assert (verdict.exit_code == 0) == (not failed), verdict


@pytest.mark.parametrize("engine", [LOCKED, "etcd@3.5.1"])
def test_nothing_is_left_of_an_engine_when_the_lab_is_killed(tmp_path: Path, engine: str) -> None:
    skip_without(engine)
    each_has = 3  # the adapter, the server, and the watcher of launch.py, which is no child of theirs
    with harness_in_the_middle(tmp_path, f"cluster: {{engine: {engine}}}\nsteps: [{LAST_STEP}]\n", 6) as (harness, _):
        left = [each for each in psutil.process_iter() if each.pid != harness.pid and str(tmp_path) in words_of(each)]
        assert len(left) == 3 * each_has, [words_of(each) for each in left]
        harness.kill()
        _, alive = psutil.wait_procs(left, timeout=TOO_LONG_S)
    assert alive == []


def words_of(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""
