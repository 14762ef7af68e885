"""Every kind of step is whole: a step that is missing anywhere is noticed, and docs/scenarios.md has its row.

UPDATE_DOCS=1 writes the tables of docs/scenarios.md anew from the docstrings and fields.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest
from msgspec import NODEFAULT, Struct, structs

import lab.steps
from lab.plan.expectation import RUN_EXPECTATIONS
from lab.plan.scenario import encode, load
from lab.plan.schema import schema
from lab.search.draw import draw
from lab.steps import EFFECTS, LEFT, OF_ITSELF, STEPS, Fault, Step
from lab.steps.expect import MOMENT_EXPECTATIONS
from lab.steps.wait import UNTILS
from lab.steps.writing import BESIDE
from lab.words import Duration
from nodeproc.errors import ConfigError
from tests.lab.test_scenario import STORY

PROJECT = Path(__file__).parents[2]
REFERENCE = PROJECT / "docs" / "scenarios.md"
FAULTS = PROJECT / "docs" / "faults.md"
SCENARIOS = [path.read_text() for path in (PROJECT / "scenarios").rglob("*.yml")]

each_step = pytest.mark.parametrize("kind", STEPS, ids=lambda kind: kind.word)


# ---- a step that is missing ---------------------------------------------------------------------


def story_of(kind: type[Step]) -> str:
    step = next(each for each in STORY["steps"] if kind.word in each)
    load = {"rate": 5, "count": 9}
    story = {"name": "story", "description": "d", "load": load, "cluster": {"nodes": 4, "founders": 3}}
    return json.dumps({**story, "steps": [{"load": "start"}, step]})


@each_step
def test_a_step_that_is_missing_is_noticed(kind: type[Step], monkeypatch: pytest.MonkeyPatch) -> None:
    """By the reader, the schema, the reference, the project's scenarios and, of what a search draws, its seeds."""
    load("story.yml", text=story_of(kind))
    drawn = [draw(seed) for seed in range(4)]
    monkeypatch.setattr(lab.steps, "STEPS", tuple(each for each in STEPS if each is not kind))
    with pytest.raises(ConfigError, match=f"{kind.word}: no such step|found .*allowed exactly one of"):
        load("story.yml", text=story_of(kind))
    assert kind.word not in schema()["definitions"]["step"]["properties"]
    assert table(STEPS_HEAD, {each.word: each for each in lab.steps.STEPS}) not in REFERENCE.read_text()
    assert any(re.search(rf"(?:- |\[|\{{){kind.word}:", text) for text in SCENARIOS)
    if kind.drawn_from:
        assert [draw(seed) for seed in range(4)] != drawn


def test_every_step_that_a_search_can_draw_is_drawn_by_some_seed() -> None:
    drawable = {kind for kind in STEPS if kind.draw.__func__ is not Step.draw.__func__}  # type: ignore[attr-defined]
    assert drawable <= {type(step) for seed in range(100) for step in draw(seed).steps}


@each_step
def test_a_step_leaves_nothing_abstract(kind: type[Step]) -> None:
    assert [name for name in dir(kind) if getattr(getattr(kind, name), "__isabstractmethod__", False)] == []


@each_step
def test_a_fault_says_in_the_docs_how_it_is_done(kind: type[Step]) -> None:
    rows = re.findall(r"^\| ([^|]*) \|", FAULTS.read_text(), re.MULTILINE)
    assert any(f"`{kind.word}`" in row for row in rows) or not issubclass(kind, Fault) or kind.word == "heal"


# ---- the tables of the reference ----------------------------------------------------------------

STEPS_HEAD = "| step | fields | meaning, and when it ends |"
TABLES: dict[str, Mapping[str, type[Struct]]] = {
    STEPS_HEAD: {each.word: each for each in STEPS},
    "| for | fields | comes true when |": UNTILS,
    "| expectation of a moment | fields | holds when |": MOMENT_EXPECTATIONS,
    "| expectation of the run | fields | holds when |": RUN_EXPECTATIONS,
}
"""First line of a table -> what it lists."""


def table(head: str, kinds: Mapping[str, type[Struct]]) -> str:
    """The table as it stands in the reference."""
    lines = [head, "| --- | --- | --- |"]
    lines += [f"| `{word}` | {', '.join(fields(kind))} | {meaning(kind)} |" for word, kind in kinds.items()]
    return "\n".join(lines).replace("|  |", "| |") + "\n\n"


def meaning(kind: type[Struct]) -> str:
    """The first paragraph of the docstring."""
    return " ".join((kind.__doc__ or "").partition("\n\n")[0].split())


def fields(kind: type[Struct]) -> Iterable[str]:
    """The keys in YAML, each with its default; the one that a plain value stands for in bold."""
    single = getattr(kind, "single", None)
    if getattr(kind, "only", ""):
        return ["see below"]
    of_kind = [each for each in structs.fields(kind) if each.name not in (*BESIDE, "within" if kind in _WAITS else "")]
    if single is not None:
        of_kind = [*structs.fields(single), *(each for each in of_kind if each.name != getattr(kind, "short", ""))]
    return [shown(each, bold=each.name == getattr(kind, "short", "")) for each in of_kind]


_WAITS = tuple(UNTILS.values())


def shown(field: structs.FieldInfo, *, bold: bool) -> str:
    name = f"**{field.encode_name}**" if bold else field.encode_name
    default: Any = field.default
    if default is NODEFAULT or default is None or default in ("", ()):
        return name
    if isinstance(default, bool):
        default = str(default).lower()
    return f"{name} ({default if isinstance(default, str | Duration) else f'{default:g}'})"


@pytest.mark.parametrize("head", TABLES)
def test_the_reference_lists_every_kind_with_its_fields_and_meaning(head: str) -> None:
    text = REFERENCE.read_text()
    if os.environ.get("UPDATE_DOCS"):
        before = re.search(rf"^{re.escape(head)}\n(?:\|.*\n)*\n", text, re.MULTILINE)
        assert before is not None, head
        text = text.replace(before[0], table(head, TABLES[head]))
        REFERENCE.write_text(text)
    assert table(head, TABLES[head]) in text


# ---- rows and reductions ------------------------------------------------------------------------


def known_steps() -> list[Step]:
    """All different steps of the project's scenarios; every kind is among them."""
    scenarios = [load("story.yml", text=text) for text in SCENARIOS]
    return list({step.words: step for scenario in scenarios for step in scenario.every_step()}.values())


def test_the_words_of_all_rows_have_an_effect_and_no_other_word_has_one() -> None:
    faults = [each for each in known_steps() if isinstance(each, Fault)]
    assert {word for each in faults for word in (*each.leaves, *each.also)} | OF_ITSELF.keys() | {
        LEFT
    } == EFFECTS.keys()


def test_a_reduced_step_is_one_that_the_reader_accepts() -> None:
    seen: set[str] = set()
    for story in [load("story.yml", text=text) for text in SCENARIOS]:
        reduced = {each.words: each for step in story.every_step() for each in step.reduce()}
        new = [step for words, step in reduced.items() if words not in seen]
        seen |= reduced.keys()
        story = structs.replace(story, steps=(*story.steps, *new))
        assert load("story.yml", text=encode(story)).steps == story.steps
