"""The compiled modules contain nothing to which mypyc would give another meaning without a word."""

from __future__ import annotations

import ast
import importlib
from abc import ABCMeta
from typing import Protocol

import pytest
from msgspec import Struct

from lab import native
from lab.course.simfiles import PowerLost
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


def confused(source: str, names: dict[str, object]) -> list[str]:
    """Names that several except clauses of one function bind, of which one catches a compiled exception.

    mypyc gives the name the type of the first of them, and fails at the others.
    """
    found = []
    for function in ast.walk(ast.parse(source)):
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
            clauses = [each for each in ast.walk(function) if isinstance(each, ast.ExceptHandler) and each.name]
            for name in {str(each.name) for each in clauses}:
                caught = {ast.unparse(each.type) for each in clauses if each.name == name and each.type is not None}
                compiled = {each for each in caught if getattr(names.get(each), "__module__", "") in native.MODULES}
                found += [f"{function.name}: {name}"] if compiled and len(caught) > 1 else []
    return found


@pytest.mark.parametrize("module", native.MODULES)
def test_no_name_is_bound_by_different_except_clauses_for_compiled_exceptions(module: str) -> None:
    names = vars(importlib.import_module(module))
    assert confused((ROOT / native.file_of(module)).read_text("utf-8"), names) == []


def test_such_a_name_is_found() -> None:
    source = "def f():\n try:\n  g()\n except PowerLost as e:\n  pass\n except OSError as e:\n  pass\n"
    assert confused(source, {"PowerLost": PowerLost}) == ["f: e"]
    assert confused(source.replace("OSError as e", "OSError as f"), {"PowerLost": PowerLost}) == []


@pytest.mark.parametrize("module", native.MODULES)
def test_a_compiled_module_is_no_program(module: str) -> None:
    """`python -m` cannot run a compiled module."""
    tree = ast.parse((ROOT / native.file_of(module)).read_bytes())
    assert not [node for node in tree.body if isinstance(node, ast.If) and "__name__" in ast.unparse(node.test)]


PURE = frozenset({"len", "min", "max", "index", "end", "bisect_right", "number_behind", "before_segment", "lines_end"})
"""Functions whose second call changes nothing."""


def calls_in_slices(source: str) -> list[str]:
    """The calls in the bounds of slices, which mypyc 1.x makes twice, and which are not known to be pure."""
    bounds = [each for each in ast.walk(ast.parse(source)) if isinstance(each, ast.Slice)]
    calls = [call.func for each in bounds for call in ast.walk(each) if isinstance(call, ast.Call)]
    return [ast.unparse(each) for each in calls if ast.unparse(each).rpartition(".")[2] not in PURE]


@pytest.mark.parametrize("module", native.MODULES)
def test_no_bound_of_a_slice_is_a_call_that_does_something(module: str) -> None:
    assert calls_in_slices((ROOT / f"{module.replace('.', '/')}.py").read_text()) == []


def test_such_a_bound_is_found() -> None:
    assert calls_in_slices("view = view[os.write(fd, view[len(head) :]) :]") == ["os.write"]


def fails_compiled(source: str) -> list[str]:
    """The expressions that are right in Python, and that mypyc does not compile or that fail once they are compiled.

    - A star in a tuple or list to the right of `in` is an internal error of mypyc.
    - A compiled frozenset expects the result of `&`, `|`, `-` and `^` to be a frozenset, and raises TypeError: with the
      keys or items of a dict, it is a set. Types are not known here, so anything but keys to the left is refused.
    """
    found: list[ast.expr] = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Compare):
            lists = [
                right for op, right in zip(node.ops, node.comparators, strict=True) if type(op) in (ast.In, ast.NotIn)
            ]
            stars = [each for each in lists if isinstance(each, ast.Tuple | ast.List)]
            found += [node for each in stars if any(isinstance(element, ast.Starred) for element in each.elts)]
        elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitAnd | ast.BitOr | ast.BitXor | ast.Sub):
            found += [node] if is_view(node.right) and not is_view(node.left) else []
    return [ast.unparse(each) for each in found]


def is_view(node: ast.expr) -> bool:
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in ("keys", "items")


@pytest.mark.parametrize("module", native.MODULES)
def test_no_class_has_a_cached_property(module: str) -> None:
    """In a compiled class nothing is cached: the function is called each time."""
    assert "cached_property" not in (ROOT / native.file_of(module)).read_text("utf-8")


@pytest.mark.parametrize("module", native.MODULES)
def test_no_expression_fails_once_it_is_compiled(module: str) -> None:
    assert fails_compiled((ROOT / native.file_of(module)).read_text("utf-8")) == []


@pytest.mark.parametrize(
    "source",
    ["fault in (*CHANGES, LEFT)", "fault not in [LEFT, *CHANGES]", "members & addresses.keys()", "a - (b | c.items())"],
)
def test_such_an_expression_is_found(source: str) -> None:
    assert fails_compiled(source)


def test_what_mypyc_compiles_is_not_refused() -> None:
    allowed = ["fault in (LEFT, CHANGES)", "fault in {*CHANGES, LEFT}", "a.keys() & b", "a.keys() - b.keys()", "a - 1"]
    assert [each for each in allowed if fails_compiled(each)] == []
