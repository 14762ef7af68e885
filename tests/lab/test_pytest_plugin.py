"""Scenarios as pytest tests, each in a project of its own; runner and judges are fakes except in one test."""

from __future__ import annotations

import tomllib
from pathlib import Path
from xml.etree import ElementTree

import pytest

from lab import pytest_plugin
from lab.check import invariants, metrics
from lab.live import enclosed, live
from lab.live.children import child_environment
from lab.places import ROOT
from tests.lab.test_cli import GOOD, FakeLab

PLUGIN = ("-p", "lab.pytest_plugin", "-p", "no:cacheprovider", "-p", "no:benchmark")
TAGGED = GOOD.replace("description", "tags: [network, slow]\ndescription")


@pytest.fixture
def lab(monkeypatch: pytest.MonkeyPatch, pytester: pytest.Pytester) -> FakeLab:
    """A project with two scenarios and a test, in which every run passes unless told otherwise.

    What is faked was imported above: Pytester makes Python forget modules that were first imported while it was there.
    """
    fake = FakeLab()
    monkeypatch.setattr(live, "run", fake.run)
    monkeypatch.setattr(invariants, "check", fake.check)
    monkeypatch.setattr(metrics, "measure", fake.measure)
    monkeypatch.delenv("GITHUB_STEP_SUMMARY", raising=False)
    scenarios = pytester.mkdir("scenarios")
    (scenarios / "quiet.yml").write_text(GOOD)
    (scenarios / "other.yml").write_text(TAGGED.replace("quiet", "other"))
    pytester.makepyfile(test_plain="def test_plain(): pass")
    return fake


def ran(pytester: pytest.Pytester, *arguments: str) -> pytest.RunResult:
    return pytester.runpytest_inprocess(*PLUGIN, *arguments)


# ---- asked for ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        ((), []),
        (("test_plain.py",), []),
        (("elsewhere",), []),
        (("scenarios",), ["other", "quiet"]),
        (("scenarios/quiet.yml",), ["quiet"]),
        (("scenarios/quiet.yml::quiet",), ["quiet"]),
        (("elsewhere/third.yml",), ["third"]),
        (("-o", "lab_scenarios=elsewhere", "elsewhere"), ["third"]),
        (("-o", "lab_scenarios=elsewhere", "scenarios"), []),
        (("-o", "testpaths=scenarios"), ["other", "quiet"]),
    ],
    ids=" ".join,
)
def test_scenarios_are_collected_when_asked_for(
    lab: FakeLab, pytester: pytest.Pytester, arguments: tuple[str, ...], names: list[str]
) -> None:
    (pytester.mkdir("elsewhere") / "third.yml").write_text(GOOD.replace("quiet", "third"))
    ran(pytester, *arguments)
    assert sorted(lab.runs) == names


def test_this_project_s_own_tests_hold_no_scenario(request: pytest.FixtureRequest) -> None:
    assert not [item for item in request.session.items if isinstance(item, pytest_plugin.ScenarioItem)]


def test_a_tag_is_a_mark_and_a_name_is_a_keyword(lab: FakeLab, pytester: pytest.Pytester) -> None:
    ran(pytester, "--strict-markers", "scenarios", "-m", "network and slow").assert_outcomes(passed=1, deselected=1)
    ran(pytester, "scenarios", "-k", "quiet").assert_outcomes(passed=1, deselected=1)
    assert lab.runs == ["other", "quiet"]


def test_a_tag_that_pytest_has_a_meaning_for_is_refused(lab: FakeLab, pytester: pytest.Pytester) -> None:
    Path("scenarios/other.yml").write_text(TAGGED.replace("slow", "skip"))
    done = ran(pytester, "scenarios")
    done.assert_outcomes(errors=1)
    assert "tags[1]: skip is a mark of pytest's own" in done.stdout.str()


def test_a_mistake_in_a_scenario_is_an_error_with_its_place(lab: FakeLab, pytester: pytest.Pytester) -> None:
    Path("scenarios/other.yml").write_text(GOOD.replace("send:", "sennd:"))
    done = ran(pytester, "scenarios")
    done.assert_outcomes(errors=1)
    assert "other.yml:4:5: steps[0].sennd: no such step" in done.stdout.str()
    assert "Traceback" not in done.stdout.str()


# ---- runs -------------------------------------------------------------------------------------------


def test_repetitions_are_tests_with_the_next_seed_each(lab: FakeLab, pytester: pytest.Pytester) -> None:
    done = ran(pytester, "scenarios/quiet.yml", "--lab-repeat", "3", "--lab-seed", "7", "-v")
    done.assert_outcomes(passed=3)
    assert lab.seeds == [7, 8, 9]
    assert "quiet.yml::quiet[3] PASSED" in done.stdout.str()


def test_run_directories_go_where_the_option_says(lab: FakeLab, pytester: pytest.Pytester) -> None:
    ran(pytester, "scenarios/quiet.yml")
    ran(pytester, "scenarios/quiet.yml", "--lab-out", "kept")
    assert Path("results/latest/verdict.json").is_file()
    assert Path("kept/latest/verdict.json").is_file()


def test_run_directories_go_where_the_environment_says(
    lab: FakeLab, pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pytest_plugin, "GIVEN_RESULTS", "elsewhere")
    ran(pytester, "scenarios/quiet.yml")
    assert Path("elsewhere/latest/verdict.json").is_file() and not Path("results").exists()


def test_directories_of_passed_runs_are_removed_on_request(lab: FakeLab, pytester: pytest.Pytester) -> None:
    lab.outcomes = ["broken", "undecided", "pass"]
    done = ran(pytester, "scenarios/quiet.yml", "--lab-repeat", "3", "--lab-keep", "failed", "--junitxml", "out.xml")
    done.assert_outcomes(failed=2, passed=1)
    kept = [path for path in Path("results/quiet").iterdir() if not path.is_symlink()]
    assert len(kept) == 2
    assert not Path("results/latest").is_symlink(), "it pointed to the run that passed"
    directories = [
        each.get("value") for each in ElementTree.parse("out.xml").iter("property") if each.get("name") == "directory"
    ]
    assert sorted(map(str, directories)) == ["", *sorted(map(str, kept))]


@pytest.mark.parametrize(
    ("outcome", "words"),
    [
        ("broken", "FAIL: A1 agreement: two lines differ"),
        ("missed", "FAIL: expected last_seq: 3; found 2"),
        ("undecided", "UNKNOWN: A1 agreement: no log"),
    ],
)
def test_a_failure_is_the_verdict_and_no_traceback(
    lab: FakeLab, pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, outcome: str, words: str
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    lab.outcomes = [outcome]
    done = ran(pytester, "scenarios/quiet.yml", "--lab-seed", "5")
    done.assert_outcomes(failed=1)
    shown = done.stdout.str()
    assert "agreement" in shown and f"quiet: {words}" in shown
    again = "pytest scenarios/quiet.yml::quiet --lab-seed 5"
    assert f"FAILED scenarios/quiet.yml::quiet - {words}; again: {again}" in shown
    assert "seed 5, results/quiet/" in shown
    assert "Traceback" not in shown and "ScenarioFailed" not in shown


def test_a_failure_of_the_lab_itself_fails_the_test(lab: FakeLab, pytester: pytest.Pytester) -> None:
    lab.outcomes = [OSError("no space")]
    done = ran(pytester, "scenarios/quiet.yml")
    done.assert_outcomes(failed=1)
    assert "FAILED scenarios/quiet.yml::quiet - the lab failed: no space" in done.stdout.str()


def test_junit_holds_verdict_and_figures(lab: FakeLab, pytester: pytest.Pytester) -> None:
    lab.outcomes = ["missed", "pass"]
    ran(pytester, "scenarios", "--junitxml", "out.xml", "--lab-seed", "3")
    cases = {case.get("name"): case for case in ElementTree.parse("out.xml").iter("testcase")}
    properties = {each.get("name"): each.get("value") for each in cases["quiet"].iter("property")}
    assert (properties["verdict"], properties["seed"], properties["acknowledged"]) == ("PASS", "3", "0")
    failure = cases["other"].find("failure")
    assert failure is not None and failure.get("message", "").startswith("FAIL: expected last_seq: 3;")
    assert failure.text is not None and "last_seq: 3" in failure.text


def test_a_scenario_without_a_simulation_is_skipped_with_the_reason(lab: FakeLab, pytester: pytest.Pytester) -> None:
    Path("scenarios/quiet.yml").write_text(
        "name: quiet\ndescription: d\nsteps: [{load: start}]\nload: {rate: 5}\nexpectations: [{throughput: 5}]\n"
    )
    done = ran(pytester, "scenarios/quiet.yml", "-rs", "--lab-sim")
    done.assert_outcomes(skipped=1)
    assert "expectations[0].throughput: measures the machine" in done.stdout.str()
    assert lab.runs == []


def test_a_scenario_for_which_the_machine_has_no_network_is_skipped_with_the_reason(
    lab: FakeLab, pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(enclosed, "missing", lambda: "cluster.network: kernel needs Linux")
    Path("scenarios/quiet.yml").write_text(GOOD + "cluster: {network: kernel}\n")
    done = ran(pytester, "scenarios/quiet.yml", "-rs")
    done.assert_outcomes(skipped=1)
    assert "cluster.network: kernel needs Linux" in done.stdout.str()
    assert lab.runs == []


@pytest.mark.parametrize("option", ["--lab-repeat=0", "--lab-seed=x", "--lab-keep=some"])
def test_a_wrong_option_is_refused(lab: FakeLab, pytester: pytest.Pytester, option: str) -> None:
    done = ran(pytester, "scenarios", option)
    assert done.ret == pytest.ExitCode.USAGE_ERROR
    assert "allowed" in done.stderr.str() or "choose from" in done.stderr.str()


def test_the_step_summary_of_a_build_server_gets_all_runs(
    lab: FakeLab, pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", "page.md")
    lab.outcomes = ["pass", "broken"]
    ran(pytester, "scenarios", "test_plain.py")
    page = Path("page.md").read_text()
    assert page.startswith("### chatlab: 1 of 2 runs passed\n")
    assert "| other | PASS |" in page and "| quiet | FAIL: A1 agreement: two lines differ |" in page
    assert "two lines differ" in page


def test_a_package_of_this_project_has_the_plugin_under_its_own_name() -> None:
    # pytest takes a module only once, and knows by the name whether it has it: `-p` and the package go together so.
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["entry-points"]["pytest11"] == {pytest_plugin.__name__: pytest_plugin.__name__}


# ---- for real -------------------------------------------------------------------------------------


def test_a_project_of_its_own_needs_nothing_but_the_plugin(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", child_environment()["PYTHONPATH"])
    steps = "steps:\n  - send: {client: 9, messages: [a, b]}\nexpectations:\n  - last_seq: "
    (pytester.mkdir("scenarios") / "two.yml").write_text(f"name: two\ndescription: d\n{steps}2\n")
    Path("scenarios/one.yml").write_text(f"name: one\ndescription: d\n{steps}1\n")
    done = pytester.runpytest_subprocess(*PLUGIN, "scenarios", "--lab-sim", "--junitxml=out.xml")
    done.assert_outcomes(passed=1, failed=1)
    shown = done.stdout.str()
    assert "agreement" in shown and "one: FAIL: expected last_seq: 1; found" in shown
    assert "Traceback" not in shown
    properties = {each.get("name"): each.get("value") for each in ElementTree.parse("out.xml").iter("property")}
    assert properties["acknowledged"] == "2"
