"""The compiled modules contain nothing to which mypyc would give another meaning without a word."""

from __future__ import annotations

import ast
import importlib
from abc import ABCMeta
from typing import Protocol

import pytest
from msgspec import Struct

from lab import native
from nodeproc.native import ROOT

PLAIN_METACLASSES = (type, ABCMeta, type(Protocol))


def strange(cls: type) -> str:
    """Return why mypyc would change the meaning of a class; "" if it would not."""
    if issubclass(cls, Struct):
        return "a Struct would lose its options, such as frozen and tag"
    if type(cls) not in PLAIN_METACLASSES:
        return f"the metaclass {type(cls).__name__} would be ignored"
    return ""


def found_in(module: str) -> list[str]:
    classes = [each for each in vars(importlib.import_module(module)).values() if isinstance(each, type)]
    return [f"{each.__name__}: {strange(each)}" for each in classes if each.__module__ == module and strange(each)]


@pytest.mark.parametrize("module", native.MODULES)
def test_a_compiled_module_has_no_class_that_would_change(module: str) -> None:
    assert found_in(module) == []


def test_a_struct_is_refused() -> None:
    assert "Append: a Struct would lose its options, such as frozen and tag" in found_in("nodeproc.core.messages")


@pytest.mark.parametrize("module", native.MODULES)
def test_a_compiled_module_is_no_program(module: str) -> None:
    """`python -m` cannot run a compiled module."""
    tree = ast.parse((ROOT / native.file_of(module)).read_bytes())
    assert not [node for node in tree.body if isinstance(node, ast.If) and "__name__" in ast.unparse(node.test)]
