"""pytest plugin that runs scenarios as tests: `pytest scenarios/`. docs/pytest.md explains how to use it.

A scenario is collected only if the command line (or `testpaths`) names its file, or a directory in one of the scenario
directories (ini option `lab_scenarios`). So neither `pytest` nor `pytest tests` starts a cluster. A run that does not
pass fails its test, and pytest shows the verdict as run_lab.py does.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from lab import runs, values
from lab.places import GIVEN_RESULTS, near

if TYPE_CHECKING:
    from lab.plan.scenario import Scenario
    from lab.runs import Result
    from lab.show.stepsummary import RunRow

SUFFIXES = (".yml", ".yaml")
DIRECTORIES = "lab_scenarios"
PYTEST_S_OWN = ("filterwarnings", "parametrize", "skip", "skipif", "tryfirst", "trylast", "usefixtures", "xfail")
"""Marks with a meaning of their own in pytest, which a scenario's tag must not have."""


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("lab", "scenarios of the chat lab")
    group.addoption("--lab-sim", action="store_true", help="run scenarios in virtual time, in this process")
    group.addoption("--lab-seed", metavar="S", type=values.seed, help="seed of the first run; each next run adds 1")
    group.addoption("--lab-repeat", metavar="N", type=values.positive, default=1, help="run each scenario N times")
    group.addoption("--lab-out", metavar="DIR", type=Path, help="where run directories go (results/ in the rootdir)")
    group.addoption("--lab-keep", choices=("all", "failed"), default="all", help="run directories to keep (all)")
    parser.addini(DIRECTORIES, "directories whose .yml files are scenarios", type="args", default=["scenarios"])


def pytest_configure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):  # Workers of pytest-xdist report to one process, which writes the summary.
        config.pluginmanager.register(Summary(), "lab-summary")


def pytest_collect_file(file_path: Path, parent: pytest.Collector) -> pytest.Collector | None:
    if file_path.suffix in SUFFIXES and _is_asked_for(file_path, parent.config):
        return ScenarioFile.from_parent(parent, path=file_path)
    return None


def _is_asked_for(path: Path, config: pytest.Config) -> bool:
    """Return whether this scenario is to be collected; see the module docstring."""
    homes = [(config.rootpath / name).resolve() for name in config.getini(DIRECTORIES)]
    path = path.resolve()
    for argument in config.args:
        named = (config.invocation_params.dir / argument.partition("::")[0]).resolve()
        if named == path:
            return True
        if path.is_relative_to(named) and any(named.is_relative_to(home) for home in homes):
            return True
    return False


class ScenarioFile(pytest.File):
    """One scenario file, with one test for each repetition (--lab-repeat)."""

    def collect(self) -> Iterator[ScenarioItem]:
        from lab.plan.sense import load_checked
        from nodeproc.errors import ConfigError

        try:
            scenario = load_checked(self.path)
        except ConfigError as error:
            raise self.CollectError(str(error)) from None
        for index, tag in enumerate(scenario.tags):
            if tag in PYTEST_S_OWN:
                raise self.CollectError(f"{self.path}: tags[{index}]: {tag} is a mark of pytest's own; rename it")
            self.config.addinivalue_line("markers", f"{tag}: scenarios with this tag")
        times = self.config.getoption("lab_repeat")
        for number in range(times):
            name = scenario.name if times == 1 else f"{scenario.name}[{number + 1}]"
            item = ScenarioItem.from_parent(self, name=name, scenario=scenario, number=number)
            for tag in scenario.tags:
                item.add_marker(tag)
            yield item


class ScenarioItem(pytest.Item):
    """One run of a scenario.

    Args:
        number: of the repetition, from 0.
    """

    def __init__(self, *, scenario: Scenario, number: int, **given: Any) -> None:
        super().__init__(**given)
        self._scenario, self._number = scenario, number

    def setup(self) -> None:
        """Skip the scenario if it cannot be simulated (--lab-sim), or not be run on this machine."""
        if refused := runs.refusals(self._scenario, runs.How(sim=self.config.getoption("lab_sim"))):
            pytest.skip("; ".join(refused))

    def runtest(self) -> None:
        from msgspec import structs

        option = self.config.getoption
        seed = runs.seed_of(self._scenario, option("lab_seed"), self._number)
        out = option("lab_out") or self.config.rootpath / (GIVEN_RESULTS or "results")
        how = runs.How(sim=option("lab_sim"))
        result = runs.run_once(self._scenario, seed, out, how, progress=runs.Progress(self._scenario.name))
        nodeid = f"{near(self.path)}::{self._scenario.name}"
        again = f"pytest {nodeid} --lab-seed {seed}" + (" --lab-sim" if how.sim else "")
        result = replace(result, again=again)
        if option("lab_keep") == "failed":
            result = runs.without_passed(result)
        runs.add_report(result)
        row = structs.asdict(runs.summary_row(result))
        self.user_properties += [(name, value) for name, value in row.items() if value is not None]
        if result.exit_code != runs.PASS:
            raise ScenarioFailed(result)

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], style: Any = None) -> Any:
        """Return the verdict instead of a traceback of the lab."""
        if isinstance(excinfo.value, ScenarioFailed):
            return Shown(excinfo.value.result)
        return super().repr_failure(excinfo, style)

    def reportinfo(self) -> tuple[Path, None, str]:
        return self.path, None, f"scenario {self.name}"


class ScenarioFailed(Exception):
    """A run did not pass."""

    def __init__(self, result: Result) -> None:
        super().__init__(result.closing)
        self.result = result


class Headline(NamedTuple):
    """The text of a failure in pytest's short summary and junit files."""

    message: str


class Shown:
    """The representation of a run that did not pass; pytest uses `reprcrash` and `toterminal`."""

    def __init__(self, result: Result) -> None:
        self.reprcrash = Headline(f"{result.closing}; again: {result.again}")
        self._text = result.text().rstrip("\n")

    def toterminal(self, writer: Any) -> None:
        writer.line(self._text)

    def __str__(self) -> str:
        return self._text


class Summary:
    """Collects the runs for the summary page of a GitHub workflow step (lab.show.stepsummary)."""

    def __init__(self) -> None:
        self._runs: list[tuple[RunRow, str]] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        import msgspec

        from lab.show.stepsummary import RunRow

        properties = dict(report.user_properties)
        if report.when == "call" and "scenario" in properties and "verdict" in properties:
            self._runs.append((msgspec.convert(properties, RunRow), report.longreprtext))

    def pytest_sessionfinish(self) -> None:
        from lab.show import stepsummary

        stepsummary.append_where_asked(self._runs)
