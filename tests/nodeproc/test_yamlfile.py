"""YAML files whose errors name file, line, column and key."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import pytest
from msgspec import Meta, Struct

from nodeproc import yamlfile
from nodeproc.errors import ConfigError


class Door(Struct, forbid_unknown_fields=True):
    id: Annotated[int, Meta(ge=1)]
    port: int = 0


class House(Struct, forbid_unknown_fields=True):
    name: str
    doors: list[Door] = []
    colour: Literal["red", "green"] = "red"
    height: float = 1.0
    on: str = ""


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("name: a\ndoors:\n  - {id: 1, port: abc}", 'h.yml:3:19: doors[0].port: found "abc", allowed int\n'),
        ("name: a\ndoors: [{id: 0}]", "h.yml:2:14: doors[0].id: found 0, allowed int >= 1\n"),
        ("name: a\ndoers: []", "h.yml:2:1: doers: unknown key (did you mean doors?); allowed: name, doors,"),
        ("name: a\ndoors: [{id: 1, prt: 2}]", "doors[0].prt: unknown key (did you mean port?); allowed: id, port"),
        ("doors: []", "h.yml:1:1: the key name is missing\n"),
        ("name: a\ncolour: blue", 'h.yml:2:9: colour: found "blue", allowed green, red\n'),
        ("name: 5", "h.yml:1:7: name: found 5, allowed text\n"),
        ("name: a\nname: b", "h.yml:2:1: the key name stands here twice\n"),
        ("name: [", "h.yml:1:8: expected the node content"),
        ("name: &x [*x]", "an alias that contains itself"),
        ("? [a]\n: b", "h.yml:1:3: a key must be plain text"),
        ("- 1", "h.yml:1:1: found a list, allowed a mapping"),
        ("", "h.yml: empty, a mapping is needed"),
        ("a: \x00", "h.yml: not YAML"),
        ("name: !!python/object:os.x a", "could not determine a constructor"),
    ],
)
def test_an_error_names_place_found_and_allowed(text: str, complaint: str) -> None:
    with pytest.raises(ConfigError) as caught:
        yamlfile.load_as("h.yml", House, text=text)
    assert complaint in f"{caught.value}\n"


def test_an_error_shows_the_source_line() -> None:
    with pytest.raises(ConfigError) as caught:
        yamlfile.load_as("h.yml", House, text="name: a\nheight: tall  # metres")
    assert str(caught.value).splitlines()[1] == "    2 | height: tall  # metres"


def test_plain_words_stay_words_and_numbers_are_numbers() -> None:
    house = yamlfile.load_as("h.yml", House, text="name: 2024-01-01\non: off\nheight: 1e3")
    assert (house.name, house.on, house.height) == ("2024-01-01", "off", 1000.0)


def test_a_caller_can_place_its_own_complaint() -> None:
    document = yamlfile.parse("h.yml", text="name: a\ndoors:\n  - id: 1\n    port: 2")
    assert str(document.error(("doors", 0, "port"), "taken")).startswith("h.yml:4:11: doors[0].port: taken\n")
    assert str(document.error(("doors", 0, "port"), "taken", at_key=True)).startswith("h.yml:4:5: ")
    assert str(document.error(("doors", 7), "no such door")).startswith("h.yml:3:3: doors[7]: ")


def test_an_unreadable_file_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        yamlfile.load_as(tmp_path / "none.yml", House)
    (tmp_path / "latin.yml").write_bytes(b"name: \xe9")
    with pytest.raises(ConfigError, match="not UTF-8 at byte 6"):
        yamlfile.load_as(tmp_path / "latin.yml", House)


@pytest.mark.parametrize("value", ["!!int abc", "!!float abc", "!!bool abc", "!!timestamp abc", "9" * 5000])
def test_a_value_that_is_not_of_its_kind_is_one_complaint_with_its_place(value: str) -> None:
    with pytest.raises(ConfigError, match=r"^f\.yml:2:7: found '"):
        yamlfile.parse("f.yml", text=f"other: 1\nname: {value}\n")


def test_a_file_that_nests_too_deeply_is_one_complaint() -> None:
    with pytest.raises(ConfigError, match=r"^f\.yml.*nested too deeply"):
        yamlfile.parse("f.yml", text="name: " + "[" * 5000 + "]" * 5000 + "\n")
