"""The package as its users have it: built, installed into a fresh environment, and used outside of a checkout.

The environment contains what the wheel requires, pip and pytest, each linked from the environment of the tests, so that
no test needs a network.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from collections.abc import Iterable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from lab.campaign.code import code_version
from tests import TOO_LONG_S

PROJECT = Path(__file__).resolve().parents[2]
SHARED = ("configs", "docs", "examples", "scenarios")
TOOLS = ("hatchling", "pip", "pytest")
MISSING = [name for name in TOOLS if not list(metadata.distributions(name=name))]

pytestmark = pytest.mark.skipif(bool(MISSING), reason=f"not in this environment: {', '.join(MISSING)}")


class Installed(NamedTuple):
    """The built distributions, and the directory of the commands of the environment with the wheel in it."""

    wheel: Path
    sdist: Path
    commands: Path

    def run(self, directory: Path, command: str, **variables: str) -> subprocess.CompletedProcess[str]:
        """Carry out a shell command in a directory, as a user of the environment would."""
        ours = ("PYTHON", "PYTEST", "VIRTUAL_ENV", "CHATLAB", "GITHUB", "COVERAGE")
        kept = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
        path = os.pathsep.join([str(self.commands), kept.get("PATH", os.defpath)])
        return subprocess.run(
            ["bash", "-e", "-c", command],
            cwd=directory,
            env=kept | {"PATH": path, "PIP_NO_INDEX": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1"} | variables,
            capture_output=True,
            text=True,
            timeout=TOO_LONG_S,
            check=False,
        )

    def ok(self, directory: Path, command: str, **variables: str) -> str:
        """Carry out a command that must succeed; return its standard output."""
        done = self.run(directory, command, **variables)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout


def build(source: Path, target: Path, *kinds: str) -> None:
    """Build distributions from a source tree."""
    arguments = [word for kind in kinds for word in ("-t", kind)]
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-d", str(target), *arguments],
        cwd=source,
        capture_output=True,
        timeout=TOO_LONG_S,
        check=True,
    )


def about(wheel: Path) -> metadata.Distribution:
    (directory,) = (each for each in zipfile.Path(wheel).iterdir() if each.name.endswith(".dist-info"))
    return metadata.PathDistribution(directory)


def closure(requirements: Iterable[str]) -> dict[str, metadata.Distribution]:
    """The distributions of this environment that fulfil the requirements, and theirs in turn."""
    found: dict[str, metadata.Distribution] = {}
    left = list(requirements)
    while left:
        wanted = Requirement(left.pop())
        name = canonicalize_name(wanted.name)
        if name not in found and (wanted.marker is None or wanted.marker.evaluate({"extra": ""})):
            found[name] = metadata.distribution(name)
            left += found[name].requires or []
    return found


def make_environment(directory: Path, wheel: Path) -> Path:
    """Make an environment with the wheel in it; return the directory of its commands."""
    venv.create(directory, symlinks=True)
    python = directory / "bin" / "python"
    (site,) = directory.glob("lib/python*/site-packages")
    for distribution in closure([*(about(wheel).requires or []), "pip", "pytest"]).values():
        for top in {file.parts[0] for file in distribution.files or ()} - {"..", "__pycache__"}:
            if not (site / top).exists():
                (site / top).symlink_to(Path(str(distribution.locate_file(top))))
    pytest_command = directory / "bin" / "pytest"
    pytest_command.write_text(f"#!{python}\nimport sys, pytest\nsys.exit(pytest.console_main())\n")
    pytest_command.chmod(0o755)
    subprocess.run([python, "-m", "pip", "install", "-q", "--no-index", wheel], check=True, timeout=TOO_LONG_S)
    return directory / "bin"


@pytest.fixture(scope="session")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installed]:
    """Built and installed once, also if several processes of pytest-xdist share the tests."""
    base = tmp_path_factory.getbasetemp()
    base = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "installed"
    base.mkdir(exist_ok=True)
    with (base / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (base / "dist").exists():
            build(PROJECT, base / "new", "sdist", "wheel")
            make_environment(base / "venv", next(iter((base / "new").glob("*.whl"))))
            (base / "new").rename(base / "dist")
    (wheel,), (sdist,) = (base / "dist").glob("*.whl"), (base / "dist").glob("*.tar.gz")
    yield Installed(wheel, sdist, base / "venv" / "bin")


# ---- what is built --------------------------------------------------------------------------------


def files_of(directory: Path) -> Iterator[Path]:
    for path in sorted(directory.rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts:
            yield path.relative_to(PROJECT)


def test_the_wheel_holds_packages_and_shared_files_and_nothing_else(installed: Installed) -> None:
    names = {name for name in zipfile.ZipFile(installed.wheel).namelist() if ".dist-info/" not in name}
    expected = {str(path) for package in ("lab", "nodeproc") for path in files_of(PROJECT / package)}
    expected |= {f"lab/share/{path}" for name in SHARED for path in files_of(PROJECT / name)}
    assert names == expected - {"lab/bootstrap.py"}
    assert {"lab/py.typed", "nodeproc/py.typed", "lab/share/scenarios/leader_failure.yml"} < names


def test_the_wheel_made_from_the_source_distribution_is_the_same(installed: Installed, tmp_path: Path) -> None:
    with tarfile.open(installed.sdist) as archive:
        archive.extraction_filter = getattr(tarfile, "data_filter", None)  # Python 3.11.4 is the first to have it.
        archive.extractall(tmp_path)
    (source,) = tmp_path.iterdir()
    build(source, tmp_path / "dist", "wheel")
    assert (tmp_path / "dist" / installed.wheel.name).read_bytes() == installed.wheel.read_bytes()
    assert (source / "run_lab.py").is_file(), "an unpacked source distribution is a checkout"


def test_the_metadata_is_complete(installed: Installed) -> None:
    told = about(installed.wheel)
    assert told.metadata["License-Expression"] == "MIT"
    assert told.metadata["Requires-Python"] == ">=3.11"
    assert told.metadata["Description-Content-Type"] == "text/markdown"
    assert "Typing :: Typed" in told.metadata.get_all("Classifier", [])
    needed = [Requirement(each) for each in told.requires or [] if "extra ==" not in each]
    assert needed and all(">=" in str(each.specifier) for each in needed)
    scripts = {each.name: each.value for each in told.entry_points if each.group == "console_scripts"}
    assert scripts == {"chatlab": "lab.cli:main", "chatlab-node": "nodeproc.__main__:main"}


# ---- the commands ---------------------------------------------------------------------------------


def test_an_installed_lab_may_play_campaigns_of_a_checkout(installed: Installed, tmp_path: Path) -> None:
    of_wheel = installed.ok(tmp_path, "python -c 'from lab.campaign.code import code_version; print(code_version())'")
    assert of_wheel == f"{code_version()}\n"


def test_a_packaged_scenario_runs_by_name_in_an_empty_directory(installed: Installed, tmp_path: Path) -> None:
    assert installed.ok(tmp_path, "chatlab run leader_failure").endswith("leader_failure: PASS\n")
    shown = installed.ok(tmp_path, "chatlab run leader_failure --sim --seed 7")
    assert re.search(r"^seed 7, results/leader_failure/\d{8}T", shown, re.MULTILINE)
    assert [each.name for each in tmp_path.iterdir()] == ["results"]
    assert installed.ok(tmp_path, "chatlab check results/latest").endswith("leader_failure: PASS\n")


def test_a_printed_command_repeats_the_run_where_it_was_printed(installed: Installed, tmp_path: Path) -> None:
    command = "chatlab isolated_leader_acknowledges_nothing --sim --seed 3 --mutant leader_never_steps_down"
    first = installed.run(tmp_path, command)
    assert first.returncode == 3, first.stderr
    again, closing = first.stdout.splitlines()[-2:]
    assert again == f"again: {command}"
    second = installed.run(tmp_path, again.removeprefix("again: "))
    assert second.stdout.splitlines()[-2:] == [again, closing]


def test_own_scenarios_are_found_before_the_packaged_ones(installed: Installed, tmp_path: Path) -> None:
    shown = installed.ok(tmp_path, "chatlab new mine")
    assert "chatlab scenarios/mine.yml --sim" in shown
    (tmp_path / "scenarios" / "leader_failure.yml").write_text(
        (tmp_path / "scenarios" / "mine.yml").read_text().replace("name: mine", "name: my_leader_failure")
    )
    assert installed.ok(tmp_path, "chatlab mine --sim --seed 1").endswith("mine: PASS\n")
    listed = json.loads(installed.ok(tmp_path, "chatlab list --json"))["scenarios"]
    names = [each["name"] for each in listed]
    assert {"mine", "my_leader_failure", "rolling_restart"} < {*names}
    assert "leader_failure" not in names, "a scenario of the user's replaces the packaged one of the same file name"
    assert "chatlab validate scenarios/mine.yml" in (tmp_path / "scenarios" / "mine.yml").read_text()


def test_results_go_where_the_environment_says(installed: Installed, tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    installed.ok(tmp_path / "here", "chatlab leader_failure --sim", CHATLAB_RESULTS=str(tmp_path / "there"))
    assert (tmp_path / "there" / "latest" / "verdict.json").is_file()
    assert list((tmp_path / "here").iterdir()) == []


def test_searches_and_mutants_find_what_they_read(installed: Installed, tmp_path: Path) -> None:
    shown = installed.ok(tmp_path, "chatlab selftest --only two_votes_in_one_term")
    assert "1 of 1 mutants caught" in shown
    assert (tmp_path / "results" / "shrunk" / "two_votes_in_one_term.yml").is_file()
    report = json.loads(installed.ok(tmp_path, "chatlab sim --seeds 2 --jobs 1 --json"))
    assert report["marks"] and "E1" not in report["rules_never_hit"]


def test_nodes_have_their_configurations_and_their_own_command(installed: Installed, tmp_path: Path) -> None:
    assert installed.ok(tmp_path, "chatlab-node --help").startswith("usage: chatlab-node ")
    assert installed.ok(tmp_path, "chatlab chat --help").startswith("usage: chatlab chat ")
    asked = installed.run(tmp_path, "chatlab node")
    assert (asked.returncode, asked.stderr) == (
        64,
        "chatlab: no node given, allowed: 1, 2, 3, or a configuration file\n",
    )
    assert installed.ok(tmp_path, "chatlab --version; python -m lab --version").split() == ["chatlab", "0.1.0"] * 2
    pages = re.search(r"^documentation: (.+)$", installed.ok(tmp_path, "chatlab --help"), re.MULTILINE)
    assert pages is not None and (Path(pages[1]) / "scenarios.md").is_file()


# ---- in other people's projects -------------------------------------------------------------------

STEPS = "description: d\nsteps:\n  - send: {client: 9, messages: [a, b]}\nexpectations:\n  - last_seq: "


@pytest.fixture
def project(installed: Installed, tmp_path: Path) -> Path:
    """A project with a scenario that passes, one that does not, and packages with the names of the lab's own."""
    scenarios = tmp_path / "scenarios"
    scenarios.mkdir()
    (scenarios / "good.yml").write_text(f"name: good\n{STEPS}2\n")
    (scenarios / "bad.yml").write_text(f"name: bad\n{STEPS}1\n")
    (tmp_path / "vendor").mkdir()
    shutil.copy(installed.wheel, tmp_path / "vendor")
    for name in ("lab", "nodeproc"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise ImportError('this is the package of another project')\n")
    return tmp_path


def example(name: str) -> Any:
    return yaml.load((PROJECT / "examples" / "ci" / name).read_text("utf-8"), yaml.BaseLoader)  # `on` stays a word


def outcomes(junit: Path) -> dict[str, str]:
    """Scenario -> the beginning of its verdict, from the properties of its test case."""
    found = {}
    for case in ElementTree.parse(junit).iter("testcase"):
        properties = {each.get("name"): each.get("value") for each in case.iter("property")}
        found[case.get("name", "")] = str(properties["verdict"]).partition(";")[0]
    return found


def kept(project: Path, patterns: Iterable[str]) -> list[str]:
    """What the artifact contains, sorted: scenarios of run directories, and files."""
    paths = [path for pattern in patterns for path in project.glob(pattern)]
    return sorted(path.parent.name if path.is_dir() else path.name for path in paths)


BOTH = {"good": "PASS", "bad": "FAIL: expected last_seq: 1"}


def test_the_github_workflow_runs_scenarios_and_keeps_failures(installed: Installed, project: Path) -> None:
    job = example("github-actions.yml")["jobs"]["scenarios"]
    failed = False
    for step in job["steps"]:
        condition = step.get("if", "success()")
        assert condition in ("success()", "failure()", "${{ !cancelled() }}")
        if "run" in step and not (failed and condition == "success()"):
            summary = str(project / "summary.md")
            done = installed.run(project, step["run"], GITHUB_STEP_SUMMARY=summary, **job["env"])
            failed = failed or done.returncode != 0
            assert done.returncode == (0 if "pip install" in step["run"] else 1), done.stdout + done.stderr
    assert outcomes(project / "junit-sim.xml") == outcomes(project / "junit-live.xml") == BOTH
    artifact = job["steps"][-1]["with"]["path"].split()
    assert kept(project, artifact) == ["bad", "bad", "junit-live.xml", "junit-sim.xml"]
    assert (project / "summary.md").read_text().count("1 of 2 runs passed") == 2


@pytest.mark.parametrize("job", ["in-virtual-time", "on-real-processes"])
def test_the_gitlab_jobs_run_scenarios_and_keep_failures(job: str, installed: Installed, project: Path) -> None:
    pipeline = example("gitlab-ci.yml")
    described = pipeline[pipeline[job]["extends"]] | pipeline[job]
    commands = [*described["before_script"], *described["script"]]
    done = [installed.run(project, command, **pipeline["variables"]) for command in commands]
    assert [each.returncode for each in done] == [0, 1], [each.stderr for each in done]
    artifacts = described["artifacts"]
    assert outcomes(project / artifacts["reports"]["junit"]) == BOTH
    assert kept(project, artifacts["paths"]) == ["bad"]
    again = re.search(r"^again: pytest scenarios/bad\.yml::bad --lab-seed \d+(.*)$", done[-1].stdout, re.MULTILINE)
    assert again is not None and again[1] == (" --lab-sim" if job == "in-virtual-time" else "")
