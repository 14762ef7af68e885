"""The lab's own scenarios on the engines that are installed; an engine that is not is skipped."""

from __future__ import annotations

from pathlib import Path

import pytest

from lab.check.invariants import check
from lab.check.metrics import measure
from lab.engines import catalogue, install
from lab.live import live
from lab.places import ROOT
from lab.plan.scenario import Instead
from lab.plan.sense import load_checked
from lab.rundir import RunDir
from tests.lab.patient import patient

ENGINES = ("etcd@3.5.1", "nats@2.12.1")


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", ["leader_failure", "full_restart_continues_numbering"])
def test_an_engine_passes_the_checks(tmp_path: Path, engine: str, name: str) -> None:
    try:
        install.program(catalogue.parse(engine))
    except install.NotInstalled as error:
        pytest.skip(str(error))
    planned = load_checked(ROOT / "scenarios" / f"{name}.yml", engine=Instead(engine, {}))
    run = RunDir.create(tmp_path, name, "stamp")
    live.run(patient(planned), run, seed=7, progress=lambda _: None)
    verdict = check(run, measure(run))
    assert [each for each in verdict.checks if each.result not in ("PASS", "MISSED")] == []
    assert run.read_meta().cluster["engine"] == engine
