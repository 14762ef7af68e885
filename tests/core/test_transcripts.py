"""Stories of the protocol as text: tests/scripts/<story>/<situation>.txt.

UPDATE_SCRIPTS=1 writes what the commands lead to now; read it as a diff. See transcript.py for the language.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.core.transcript import COMMANDS, ScriptError, Transcript, replay, scripts

ROOT = Path(__file__).parents[1] / "scripts"
SCRIPTS = scripts(ROOT)


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_the_story_goes_as_it_was_recorded(path: Path) -> None:
    recorded = path.read_text("utf-8")
    told = replay(recorded, str(path.relative_to(ROOT)))
    if os.environ.get("UPDATE_SCRIPTS") == "1":
        path.write_text(told, "utf-8")
        return
    assert told == recorded, "UPDATE_SCRIPTS=1 records what happens now"


def test_there_are_stories_of_every_kind() -> None:
    stories = {path.parent.name for path in SCRIPTS}
    assert stories == {"ordering", "catchup", "election", "failure", "membership"}
    assert len(SCRIPTS) >= 20


def test_every_transcript_has_a_reason() -> None:
    assert not [path.name for path in SCRIPTS if not path.read_text("utf-8").startswith("# ")]


def test_a_story_with_another_outcome_than_recorded_is_noticed() -> None:
    script = "# x\n> start 1 nodes\n> run 1s\n  1: Became LEADER for term 7\n"
    assert replay(script, "x") != script


@pytest.mark.parametrize(
    "command", ["fly 3", "submit", "run 3", "run 1s APPEND", "deliver 1>2 7", "deliver 12", "restart 9", "kill"]
)
def test_a_command_that_makes_no_sense_is_refused_with_what_is_allowed(command: str) -> None:
    transcript = Transcript()
    transcript.command("start 3 nodes")
    with pytest.raises(ScriptError, match=r"allowed: |is not one of"):
        transcript.command(command)


def test_a_line_that_is_no_command_comment_or_output_is_refused_by_its_number() -> None:
    with pytest.raises(ScriptError, match="x:2: 'start 3 nodes'"):
        replay("# x\nstart 3 nodes\n", "x")


def test_every_command_is_used_in_some_story() -> None:
    used = {line.split()[1] for path in SCRIPTS for line in path.read_text("utf-8").splitlines() if line[:2] == "> "}
    assert used == set(COMMANDS)
