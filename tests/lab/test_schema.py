"""The JSON Schema for editors takes every scenario that is good and refuses what the reader refuses; `new`; --json."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fastjsonschema
import pytest

from lab.cli import main
from lab.plan.scenario import load
from lab.plan.schema import schema
from lab.plan.sense import load_checked
from nodeproc.errors import ConfigError
from nodeproc.yamlfile import parse
from tests.lab.test_scenario import HEAD, stories

PROJECT = Path(__file__).parents[2]
SCENARIOS = sorted((PROJECT / "scenarios").rglob("*.yml"))


@pytest.fixture(scope="module")
def takes() -> Callable[[Any], bool]:
    """Whether the schema takes a value."""
    compiled = fastjsonschema.compile(schema())

    def takes(data: Any) -> bool:
        try:
            compiled(copy.deepcopy(data))
        except fastjsonschema.JsonSchemaValueException:
            return False
        return True

    return takes


@pytest.mark.parametrize("path", SCENARIOS, ids=lambda path: path.stem)
def test_every_scenario_fits_the_schema(path: Path, takes: Callable[[Any], bool]) -> None:
    assert takes(parse(path).data)


def test_every_step_and_expectation_with_all_its_keys_fits_the_schema(takes: Callable[[Any], bool]) -> None:
    assert [name for name, (story, _) in stories().items() if not takes(story)] == []


@pytest.mark.parametrize(
    "text",
    [
        "stepz: []",
        "steps: []",
        "steps: [{kil: 1}]",
        "steps: [kill]",
        "steps: [{kill: 1, stop: 2}]",
        "steps: [{kill: leadr}]",
        "steps: [{kill: {targt: 1}}]",
        "steps: [{kill: true}]",
        "steps: [{sleep: 5}]",
        "steps: [{sleep: 5h}]",
        "steps: [{wait: nothing}]",
        "steps: [{wait: delivered}]",
        "steps: [{wait: {for: delivered}}]",
        "steps: [{wait: {for: leader, count: 5}}]",
        "steps: [{wait: {for: event, is: became_leadr}}]",
        "steps: [{link: {loss: 1.5}}]",
        "steps: [{link: {frames: [APEND], delay: 5ms}}]",
        "steps: [{clock: {on: 1, drift: 0.6}}]",
        "steps: [{disk: 1}]",
        "steps: [{partition: thirds}]",
        "steps: [{send: {client: 0, messages: [a]}}]",
        "steps: [{send: {messages: [a]}}]",
        "steps: [{expect: {order: [a]}}]",
        "steps: [{repeat: {times: 0, steps: [{kill: 1}]}}]",
        "steps: [{repeat: {times: 2, steps: []}}]",
        "steps: [{when: {so: leadr, do: [{kill: 1}]}}]",
        "steps: [{kill: 1, name: 5}]",
        "steps: [{kill: 1}]\ncluster: {nodes: 12}",
        "steps: [{kill: 1}]\ncluster: {limits: {max_client: 5}}",
        "steps: [{kill: 1}]\nload: {size: 70000}",
        "steps: [{kill: 1}]\nload: {rate: 0}",
        "steps: [{kill: 1}]\nexpectations: [{leader: 2}]",
        "steps: [{kill: 1}]\nexpectations: [{latency: {p98: 5ms}}]",
        "steps: [{kill: 1}]\nexpectations: [{latency: {p99: 5ms, between: [a]}}]",
        "steps: [{kill: 1}]\nseed: -1",
    ],
)
def test_what_the_reader_refuses_the_schema_refuses(text: str, takes: Callable[[Any], bool]) -> None:
    with pytest.raises(ConfigError):
        load("story.yml", text=HEAD + text)
    assert not takes(parse("story.yml", text=HEAD + text).data)


def test_the_schema_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["schema"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads(json.dumps(schema()))


# ---- new ----------------------------------------------------------------------------------------


def test_a_new_scenario_passes_and_is_never_written_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["new", "my_story.yml"]) == 0
    assert "python3 run_lab.py my_story.yml --sim" in capsys.readouterr().out
    scenario = load_checked("my_story.yml")
    assert scenario.name == "my_story"
    assert main(["run", "--sim", "--seed", "5", "--out", "out", "my_story.yml"]) == 0
    Path("my_story.yml").write_text("mine")
    assert main(["new", "my_story.yml"]) == 64
    assert "exists already" in capsys.readouterr().err
    assert Path("my_story.yml").read_text() == "mine"


@pytest.mark.parametrize("name", ["My Story", "latest", "a/b.yml", "", "x" * 300, "ü"])
def test_a_name_that_no_scenario_can_have_makes_no_file(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("lab.plan.scaffold.SCENARIOS", (tmp_path,))
    assert main(["new", name]) == 64
    assert list(tmp_path.iterdir()) == []


# ---- --json -------------------------------------------------------------------------------------


def test_validate_tells_machines_where_and_what_is_allowed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("wrong.yml").write_text(HEAD + "steps:\n  - heal: link\n")
    Path("good.yml").write_text(HEAD + "steps:\n  - send: {client: 1, messages: [a]}\n")
    assert main(["validate", "--json", "wrong.yml", "good.yml"]) == 64
    told = json.loads(capsys.readouterr().out)
    assert told["exit_code"] == 64
    (problem,) = told["problems"]
    assert (problem["file"], problem["line"], problem["column"]) == ("wrong.yml", 4, 11)
    assert problem["message"].startswith('steps[0].heal: found "link" (did you mean links?)')
    assert set(problem["allowed"]) == {"links", "disks", "clocks", "busy", "all"}
    assert [each["file"] for each in told["scenarios"]] == ["good.yml"]


def test_list_tells_machines_every_scenario(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert {each["name"] for each in told["scenarios"]} >= {"leader_failure", "rolling_restart"}
    assert told["problems"] == []
