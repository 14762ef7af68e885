"""Every command in README.md and docs/ is accepted by run_lab.py, also as chatlab, or the program that it starts."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from lab import cli
from lab.places import SCENARIOS
from lab.plan.choosing import choose
from nodeproc import __main__ as node
from nodeproc import client_tui

PROJECT = Path(__file__).resolve().parents[2]
PAGES = [PROJECT / "README.md", *sorted((PROJECT / "docs").glob("*.md"))]
PLACEHOLDER = re.compile(r"\b(?:FILE|DIR|NAME|SEED|SCENARIO|RUN_DIR|TAG|my_\w+)\b|…|\.\.\.|\*")


def commands() -> list[tuple[str, list[str]]]:
    """The arguments of every run_lab.py or chatlab line in a block of shell commands, with the page."""
    found = []
    for page in PAGES:
        for block in re.findall(r"```bash\n(.*?)```", page.read_text("utf-8"), re.DOTALL):
            for line in block.splitlines():
                words = shlex.split(line, comments=True)
                start = 1 if words[:1] == ["chatlab"] else 2 if words[1:2] == ["run_lab.py"] else len(words)
                if words[start:] not in ([], ["--help"]) and not PLACEHOLDER.search(" ".join(words)):
                    found.append((page.name, words[start:]))
    return found


COMMANDS = commands()


@pytest.mark.parametrize(("page", "words"), COMMANDS, ids=[f"{page}: {' '.join(words)}" for page, words in COMMANDS])
def test_every_command_shown_is_one(page: str, words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(PROJECT)
    if words[0] in cli.PROGRAMS:
        monkeypatch.setattr(node, "main", lambda given: bool(node.parse_arguments(given)))
        monkeypatch.setattr(client_tui, "start", lambda given: bool(client_tui.parse(given)))
        assert cli.main(words) is True, "its own program takes it"
        return
    options = cli.parse(words)
    if "tag" in options:
        chosen, mistakes = choose(options.scenarios, options.tag, SCENARIOS)
        assert chosen and not mistakes


def test_the_command_that_repeats_a_run_is_one() -> None:
    """README.md shows what a failed run prints: its scenario is taken, and its mutant exists."""
    again = re.search(r"^again: python3 run_lab.py (.*)$", PAGES[0].read_text("utf-8"), re.MULTILINE)
    assert again is not None
    options = cli.parse(shlex.split(again[1]))
    chosen, mistakes = choose(options.scenarios, options.tag, SCENARIOS, simulated=options.sim)
    assert [each.scenario.name for each in chosen] == [options.mutant] and not mistakes


def test_the_readme_shows_commands() -> None:
    assert len([page for page, _ in COMMANDS if page == "README.md"]) > 10


def test_the_readme_names_its_own_scenario_by_one_word() -> None:
    """`new my_scenario` writes scenarios/my_scenario.yml; later commands find it by the same word."""
    words = re.findall(r"^python3 run_lab.py \w+ (my_[\w.]+)", PAGES[0].read_text("utf-8"), re.MULTILINE)
    assert len(words) > 1 and len(set(words)) == 1


def test_the_teaching_page_shows_what_its_runs_print(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its simulated runs and their diagrams, in the order of the page; `…` stands for lines left out."""
    page = (PROJECT / "docs" / "teaching.md").read_text("utf-8")
    for name, text in re.findall(r"```yaml\n(name: (?:\w+)\n)(.*?)```", page, re.DOTALL):
        (tmp_path / f"{name.split()[1]}.yml").write_text(name + text, "utf-8")
    blocks = re.findall(r"```\n\$ python3 run_lab.py ((?:[^\n]*\\\n)*[^\n]*)\n(.*?)```", page, re.DOTALL)
    shown = [each for each in blocks if "--sim" in each[0] or each[0].startswith("diagram")]
    assert len(shown) == 4, "two runs and their diagrams"
    for command, text in shown:
        words = shlex.split(command.replace("\\\n", " ").replace("results/shrunk", str(tmp_path)))
        words = [str(tmp_path / "latest") if word == "results/latest" else word for word in words]
        assert cli.main([*words, *(["--out", str(tmp_path)] if "--sim" in words else [])]) in (0, 1)
        printed = {line.strip() for line in capsys.readouterr().out.splitlines()}
        assert [line for line in text.splitlines() if line.strip() not in printed | {"…"}] == []


def test_the_readme_shows_the_last_lines_of_a_failed_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    again, last = re.findall(r"^again: python3 run_lab.py (.*)\n(.*)$", PAGES[0].read_text("utf-8"), re.MULTILINE)[0]
    assert cli.main([*shlex.split(again), "--out", str(tmp_path)]) == 1
    assert capsys.readouterr().out.splitlines()[-1] == last
