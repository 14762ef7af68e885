"""YAML files whose errors name file, line, column and key."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Annotated, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Meta, Struct

from nodeproc import yamlfile
from nodeproc.errors import ConfigError, FileProblem
from nodeproc.yamlscalar import read_plain


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
        ("name: a\ndoors:\n  - {id: 1, port: abc}", 'h.yml:3:19: doors[0].port: found "abc", allowed a whole number\n'),
        ("name: a\ndoors: [{id: 0}]", "h.yml:2:14: doors[0].id: found 0, allowed 1 or more\n"),
        ("name: a\ndoers: []", "h.yml:2:1: doers: unknown key (did you mean doors?); allowed: name, doors,"),
        ("name: a\ndoors: [{id: 1, prt: 2}]", "doors[0].prt: unknown key (did you mean port?); allowed: id, port"),
        ("doors: []", "h.yml:1:1: the key name is missing\n"),
        ("name: a\ncolour: blue", 'h.yml:2:9: colour: found "blue", allowed green, red\n'),
        ("name: 5", "h.yml:1:7: name: found 5, allowed text in quotes\n"),
        ("name: a\nname: b", "h.yml:2:1: the key name stands here twice\n"),
        ("name: [", "h.yml:1:8: the file ends where a value is expected"),
        ("name: &x [*x]", "an alias that contains itself"),
        ("? [a]\n: b", "h.yml:1:3: a key must be plain text"),
        ("- 1", "h.yml:1:1: found a list, allowed a mapping"),
        ("", "h.yml: empty, a mapping is needed"),
        ("a: \x00", "h.yml:1:4: the character \\x00, which no YAML file may hold\n"),
        ("name: a\nb: \x1b[0m", "h.yml:2:4: the character \\x1b, which"),
        ("name: !!python/object:os.x a", "h.yml:1:7: a tag (!!python/object:os.x); write the value without it"),
        ("name: a\ncolour: grene", 'h.yml:2:9: colour: found "grene" (did you mean green?), allowed green, red\n'),
        ("name: a\ndoors:\n  - {id: 1e3}", "h.yml:3:10: doors[0].id: found 1000.0, allowed a whole number, 1 or more"),
    ],
)
def test_an_error_names_place_found_and_allowed(text: str, complaint: str) -> None:
    with pytest.raises(ConfigError) as caught:
        yamlfile.parse("h.yml", text=text).convert(House)
    assert complaint in f"{caught.value}\n"


def complaint(text: str) -> list[str]:
    """The lines of the error that a text gives."""
    with pytest.raises(ConfigError) as caught:
        yamlfile.parse("h.yml", text=text).convert(House)
    return str(caught.value).splitlines()


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("name: a\nheight: tall  # metres", ["    2 | height: tall  # metres", "      |         ^"]),
        ("{name: 'a\tb', height: tall}", ["    1 | {name: 'a\tb', height: tall}", "      |          \t            ^"]),
        ("{name: 語語, height: tall}", ["    1 | {name: 語語, height: tall}", "      |                      ^"]),
    ],
)
def test_an_error_shows_the_source_line_and_points_at_the_place(text: str, shown: list[str]) -> None:
    assert complaint(text)[1:] == shown


def test_of_a_long_line_the_part_around_the_place_is_shown() -> None:
    _, source, caret = complaint("{name: a, doors: [" + "{id: 1}, " * 1000 + "{id: x}]}")
    assert len(source) < 200 and source[caret.index("^")] == "x"


def test_a_problem_says_file_line_column_and_what_is_allowed() -> None:
    with pytest.raises(FileProblem) as caught:
        yamlfile.parse("h.yml", text="name: a\ncolour: grene").convert(House)
    problem = caught.value
    assert (problem.path, problem.line, problem.column, problem.allowed) == ("h.yml", 2, 9, ("green", "red"))
    assert problem.message == 'colour: found "grene" (did you mean green?), allowed green, red'


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("name: 'a", "1:9: a quote that is never closed"),
        ("name: a: b", "1:8: a second `: ` in this line"),
        ("name: a\nheight\non: 1", "3:1: a key without `: ` behind it"),
        ("name:\n\t- a", "2:1: a tab; use spaces"),
        ("name: @a", "1:7: text can't begin with '@'; put it in quotes"),
        ("name: [a b", "the file ends where a value is expected|a list in [ ] that is not closed"),
        ("doors: [{id: 1]", "1:15: a mapping in { } that is not closed"),
        ("name: a\n  height: 1", "a second `: ` in this line, or a wrong indentation"),
        ("  name: a\nheight: 1", "2:1: this does not fit the lines above|text behind the end"),
        ("name: - a", "1:7: `- ` can't stand here"),
        ("name: *x", "1:7: the alias *x has no anchor &x above it"),
        ("name: &x a\non: &x b", "2:5: an anchor (&) that stands in the file twice"),
        ("name: a\n---\nname: b", "2:1: a second document"),
        ('name: "\\q"', "1:9: 'q' behind a backslash means nothing"),
        ('name: "\\xg"', "1:10: an escape with fewer than 2 hexadecimal digits"),
        ("name: * a", "1:8: a name is needed behind * or &"),
        ('name: "\\ud800"', "1:7: name: found \\ud800, half of a character"),
        ('name: "\\ud83d\\ude00"', "1:7: name: found \\ud83d, half of a character"),
        ("<<: 5", "1:5: allowed behind <<: an alias of a mapping"),
        ("a: &a {<<: *a}", "an alias that contains itself"),
        ("name: a\n1: a\n+1: b", "3:1: the key 1 stands here twice"),
        ("name: a\n01: a", "2:1: found 01, which is 1 or, in octal, 1"),
    ],
)
def test_what_is_no_yaml_is_said_in_our_words(text: str, words: str) -> None:
    found = complaint(text)[0].removeprefix("h.yml:")
    assert any(each in found for each in words.split("|")), found
    assert "not YAML" not in found


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("05001", "found 05001, which is 5001 or, in octal, 2561: write the intended one, text in quotes"),
        ("-010", "-10 or, in octal, -8"),
        ("+07", "7 or, in octal, 7"),
        ("00", "0 or, in octal, 0"),
        ("0_7", "7 or, in octal, 7"),
        ("0900", "900 or text"),
        ("01.5", "1.5 or text"),
        ("01e2", "100 or text"),
        ("1_000", "1000 or text"),
        ("1_000.5", "1000.5 or text"),
        ("1:30", "text or, in base 60, 90"),
        ("-1:30:00.5", "text or, in base 60, -5400.5"),
        ("0b101", "text or, in binary, 0b101"),
        ("0o17", "15 or text"),
        ("0x1_f", "text or, in base 16, 31"),
        ("-0x1f", "text or, in base 16, -31"),
        (".inf", "allowed finite numbers"),
        ("-.Inf", "allowed finite numbers"),
        (".NaN", "allowed finite numbers"),
        ("1e999", "allowed finite numbers"),
        ("9" * 5000, "allowed whole numbers of 64 bits"),
        ("9223372036854775808", "allowed whole numbers of 64 bits"),
        ("0" * 5000, "or, in octal, 0"),
        ("1" + "_" * 5000, "1 or text"),
    ],
)
def test_a_number_with_two_readings_or_none_is_refused(text: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        yamlfile.parse("f.yml", text=f"other: 1\nname: {text}\n")
    assert str(caught.value).startswith("f.yml:2:7: name: found ")
    assert words in str(caught.value)
    assert yamlfile.parse("f.yml", text=f"name: '{text}'").data == {"name": text}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0", 0),
        ("-0", 0),
        ("+5", 5),
        ("5001", 5001),
        ("0x1F", 31),
        ("1e3", 1000.0),
        ("1.5e-3", 0.0015),
        ("-.5", -0.5),
        ("0.5", 0.5),
        ("1.", 1.0),
        ("9223372036854775807", 2**63 - 1),
        ("true", True),
        ("FALSE", False),
        ("~", None),
        ("", None),
        ("null", None),
        *((text, text) for text in ("yes", "no", "On", "off", "y", "N", "2024-01-01", "12:61", "1.2.3", "5s", "05s")),
        *(
            (text, text)
            for text in ("127.0.0.1", "1-2", "0xg", "0x_", "1e", "inf", "nan", "=", "0.0.0.0", "10.0.0.1:5001")
        ),
    ],
)
def test_what_has_one_reading_is_taken(text: str, value: object) -> None:
    (found,) = yamlfile.parse("f.yml", text=f"name: {text}\n").data.values()
    assert found == value and type(found) is type(value)


@given(st.text(alphabet="+-.0123456789_:abeEoxXinfINFtruelsyo~ ", max_size=12))
def test_a_plain_scalar_has_a_value_or_is_refused_in_words(text: str) -> None:
    try:
        value = read_plain(text)
    except ValueError as error:
        assert str(error).startswith("found ")
    else:
        assert value == text or isinstance(value, int | float | None)


@given(st.text(alphabet="ab:-[]{}&*!|>'\"%@`,#?<\\ \n\t01~.", max_size=40))
def test_any_text_is_read_or_refused_in_one_kind_of_error(text: str) -> None:
    with contextlib.suppress(FileProblem):
        yamlfile.parse("f.yml", text=text)


# ---- aliases and merge keys ----------------------------------------------------------------------


def test_a_merge_key_adds_what_is_not_there_yet() -> None:
    text = "base: &base {id: 1, port: 5}\nmore: &more {port: 6, on: x}\n"
    read = yamlfile.parse("f.yml", text=text + "a: {<<: *base, port: 7}\nb: {<<: [*more, *base]}").data
    assert read["a"] == {"port": 7, "id": 1}
    assert read["b"] == {"port": 6, "on": "x", "id": 1}
    assert yamlfile.parse("f.yml", text="'<<': 5").data == {"<<": 5}


def test_an_error_in_what_was_merged_points_at_where_it_stands() -> None:
    found = complaint("name: a\ndoors:\n  - &first {id: 1, port: abc}\n  - {<<: *first, id: 2}")
    assert found[0].startswith('h.yml:3:26: doors[0].port: found "abc"')


@pytest.mark.parametrize("depth", [5, 7, 40])
def test_aliases_expand_to_a_bounded_number_of_values(depth: int) -> None:
    lines = ["a0: &a0 [x,x,x,x,x,x,x,x,x,x]"]
    lines += [f"a{n}: &a{n} [{','.join([f'*a{n - 1}'] * 10)}]" for n in range(1, depth)]
    with pytest.raises(ConfigError, match=r"^f\.yml:1:.*more than 100000 values"):
        yamlfile.parse("f.yml", text="\n".join(lines))


def test_merge_keys_expand_to_a_bounded_number_of_values() -> None:
    many = ", ".join(f"k{n}: 1" for n in range(1000))
    with pytest.raises(ConfigError, match="more than 100000 values"):
        yamlfile.parse("f.yml", text=f"a: &a {{{many}}}\nb: {{<<: [{', '.join(['*a'] * 200)}]}}")


def test_plain_words_stay_words_and_numbers_are_numbers() -> None:
    house = yamlfile.parse("h.yml", text="name: 2024-01-01\non: off\nheight: 1e3").convert(House)
    assert (house.name, house.on, house.height) == ("2024-01-01", "off", 1000.0)


def test_a_caller_can_place_its_own_complaint() -> None:
    document = yamlfile.parse("h.yml", text="name: a\ndoors:\n  - id: 1\n    port: 2")
    assert str(document.error(("doors", 0, "port"), "taken")).startswith("h.yml:4:11: doors[0].port: taken\n")
    assert str(document.error(("doors", 0, "port"), "taken", at_key=True)).startswith("h.yml:4:5: ")
    assert str(document.error(("doors", 7), "no such door")).startswith("h.yml:3:3: doors[7]: ")


def test_an_unreadable_file_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        yamlfile.parse(tmp_path / "none.yml").convert(House)
    (tmp_path / "latin.yml").write_bytes(b"name: \xe9")
    with pytest.raises(ConfigError, match="not UTF-8 at byte 6"):
        yamlfile.parse(tmp_path / "latin.yml").convert(House)


@pytest.mark.parametrize("tag", ["!!int", "!!float", "!!bool", "!!timestamp", "!!binary", "!!str", "!!set", "!", "!x"])
@pytest.mark.parametrize("value", ["1:30", "010", "abc", "{a: 1}", "[a]"])
def test_a_tag_is_refused(tag: str, value: str) -> None:
    with pytest.raises(ConfigError, match=r"^f\.yml:2:7: a tag "):
        yamlfile.parse("f.yml", text=f"other: 1\nname: {tag} {value}\n")


@pytest.mark.parametrize("text", ["[" * 5000 + "]" * 5000, "{a: " * 150 + "1" + "}" * 150, "[" * 100_000])
def test_a_file_that_nests_too_deeply_is_one_complaint(text: str) -> None:
    with pytest.raises(ConfigError, match=r"^f\.yml.*nested too deeply"):
        yamlfile.parse("f.yml", text=f"name: {text}\n")


def test_aliases_that_nest_too_deeply_are_one_complaint() -> None:
    lines = ["- &a0 [x]", *(f"- &a{n} [*a{n - 1}]" for n in range(1, 3000))]
    with pytest.raises(ConfigError, match=r"^f\.yml.*nested too deeply"):
        yamlfile.parse("f.yml", text="\n".join(lines))


def test_a_misspelt_file_name_gets_a_proposal(tmp_path: Path) -> None:
    (tmp_path / "leader_failure.yml").touch()
    with pytest.raises(ConfigError, match=r"No such file or directory \(did you mean leader_failure\.yml\?\)"):
        yamlfile.parse(tmp_path / "leader_failur.yml")
    with pytest.raises(ConfigError, match=r"No such file or directory$"):
        yamlfile.parse(tmp_path / "none" / "leader_failure.yml")


def test_a_file_that_is_no_file_or_far_too_large_is_one_complaint(tmp_path: Path) -> None:
    for path, words in ((tmp_path, "Is a directory"), (Path("/dev/zero"), "more than 1048576 bytes")):
        with pytest.raises(ConfigError, match=words):
            yamlfile.parse(path)
    with pytest.raises(ConfigError, match="no file can have this name"):
        yamlfile.parse(Path("a\0b"))


def test_a_byte_order_mark_is_not_part_of_the_text(tmp_path: Path) -> None:
    (tmp_path / "a.yml").write_bytes(b"\xef\xbb\xbfname: a")
    assert yamlfile.parse(tmp_path / "a.yml").data == {"name": "a"}
