"""Every numbered rule of docs/protocol.md has a test that names it."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable
from pathlib import Path

import pytest

HERE = Path(__file__).parent
PROTOCOL = HERE.parents[1] / "docs" / "protocol.md"

ELSEWHERE = frozenset({"L1", "M5", "S1", "S6", "S7", "K1", "K2", "K3", "K4", "K5"} | {f"A{n}" for n in range(1, 11)})
"""Rules outside the core: links, members, clients, flow control, disk (tests/nodeproc); checks of a run (tests/lab)."""


def numbered(text: str) -> set[str]:
    """The rules that a protocol page defines, each at the start of a line: `**R1 Catch-up.**`, `- **A1 …`, `R1. …`."""
    return set(re.findall(r"^(?:- )?\**([A-Z]\d+)\b", text, re.MULTILINE))


def named(sources: Iterable[str]) -> dict[str, list[str]]:
    """Rule -> the test functions whose docstring says `Rule: …` with it."""
    found: dict[str, list[str]] = {}
    for source in sources:
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                for rules in re.findall(r"Rule: ([A-Z]\d+(?:, [A-Z]\d+)*)", ast.get_docstring(node) or ""):
                    for rule in rules.split(", "):
                        found.setdefault(rule, []).append(node.name)
    return found


def missing(protocol: str, sources: Iterable[str]) -> set[str]:
    return numbered(protocol) - ELSEWHERE - set(named(sources))


def sources() -> list[str]:
    return [path.read_text("utf-8") for path in sorted(HERE.glob("test_*.py"))]


def test_every_numbered_rule_of_the_core_has_a_test() -> None:
    assert not missing(PROTOCOL.read_text("utf-8"), sources())


def test_no_test_names_a_rule_that_the_protocol_does_not_have() -> None:
    assert not set(named(sources())) - numbered(PROTOCOL.read_text("utf-8"))


def test_every_test_of_a_rule_says_which() -> None:
    for path in sorted(HERE.glob("test_rules_*.py")):
        if path.name != Path(__file__).name:
            tree = ast.parse(path.read_text("utf-8"))
            tests = [n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name.startswith("test_")]
            assert not [test.name for test in tests if "Rule: " not in (ast.get_docstring(test) or "")], path.name


def test_the_protocol_has_the_rules_that_the_core_is_built_on() -> None:
    rules = "M1 M2 M3 M4 F1 F2 F3 E1 E2 E3 E4 E5 E6 R1 R2 R3 R4 R5 C1 C2 D1 P1 S2 S3 S4 S5"
    assert not set(rules.split()) - numbered(PROTOCOL.read_text("utf-8"))


@pytest.mark.parametrize("line", ["**R9 Something new.** It must.", "**D2** Text.", "E99. In the other style."])
def test_a_new_rule_without_a_test_is_found(line: str) -> None:
    assert missing(f"{PROTOCOL.read_text('utf-8')}\n\n{line}\n", sources())
