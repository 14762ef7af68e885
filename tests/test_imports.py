"""The structure of the project as a test: who may import whom, what must stay pure, and how files look.

Directions are read from the source with ast, so an import inside a function counts too.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import pytest

PROJECT = Path(__file__).resolve().parents[1]
LONGEST_FUNCTION = 60

PURE_STDLIB = frozenset(
    {"__future__", "abc", "binascii", "bisect", "collections", "dataclasses", "enum", "functools", "heapq", "itertools"}
    | {"hashlib", "math", "operator", "random", "re", "statistics", "struct", "typing", "zlib"}
)
"""Parts of the standard library that touch no file, socket, clock or thread; of random only the class."""

CORE_LAYERS: tuple[frozenset[str], ...] = (
    frozenset({"messages"}),
    frozenset({"log", "sessions", "events"}),
    frozenset({"effects", "recovered"}),
    frozenset({"state"}),
    frozenset({"transfer"}),
    frozenset({"membership", "failure", "election", "catchup", "ordering", "repair"}),
    frozenset({"changes"}),
    frozenset({"node"}),
)
"""nodeproc.core from below to above: a module imports from lower layers and from its own."""

BELOW_THE_COURSE = ("lab.plan", "lab.steps", "lab.words", "lab.payloads", "lab.rundir", "lab.rows", "nodeproc")
ALLOWED: dict[str, tuple[str, ...]] = {
    "nodeproc.core": ("nodeproc.core",),
    "nodeproc.entries": ("nodeproc.core", "nodeproc.errors"),
    "nodeproc.outcome": ("nodeproc.core",),
    "nodeproc.records": ("nodeproc.core", "nodeproc.entries", "nodeproc.errors"),
    "nodeproc.frames": ("nodeproc.core", "nodeproc.records", "nodeproc.errors"),
    "nodeproc.lines": ("nodeproc.core", "nodeproc.errors"),
    "nodeproc.disk": (
        "nodeproc.disk",
        "nodeproc.core",
        "nodeproc.entries",
        "nodeproc.records",
        "nodeproc.lines",
        "nodeproc.errors",
    ),
    "nodeproc.net": (
        "nodeproc.net",
        "nodeproc.core",
        "nodeproc.records",
        "nodeproc.frames",
        "nodeproc.lines",
        "nodeproc.config",
        "nodeproc.tls",
        "nodeproc.errors",
    ),
    "nodeproc.net.nodestream": ("nodeproc.core", "nodeproc.lines", "nodeproc.errors"),
    "nodeproc.session": (
        "nodeproc.core",
        "nodeproc.outcome",
        "nodeproc.lines",
        "nodeproc.net.nodestream",
        "nodeproc.errors",
    ),
    "nodeproc.turn": (
        "nodeproc.core",
        "nodeproc.disk",
        "nodeproc.net.clients",
        "nodeproc.lines",
        "nodeproc.config",
        "nodeproc.errors",
    ),
    "nodeproc": ("nodeproc",),
    "lab": (),
    "lab.__main__": ("lab.cli",),
    "lab.bootstrap": (),
    "lab.places": (),
    "lab.words": ("nodeproc",),
    "lab.payloads": (),
    "lab.values": ("lab.mutants", "lab.engines.catalogue", "lab.words", "lab.plan"),
    "lab.rows": ("lab.payloads",),
    "lab.rundir": ("lab.rows",),
    "lab.steps": ("lab.steps", "lab.words", "lab.payloads", "lab.rows", "nodeproc"),
    "lab.engines": ("lab.engines", "lab.places", "nodeproc"),
    "lab.engines.catalogue": (),
    "lab.plan": (
        "lab.plan",
        "lab.engines.catalogue",
        "lab.steps",
        "lab.words",
        "lab.payloads",
        "lab.places",
        "nodeproc",
    ),
    "lab.course": ("lab.course", *BELOW_THE_COURSE),
    "lab.live": ("lab.live", "lab.engines", "lab.course", "lab.places", *BELOW_THE_COURSE),
    "lab.sim": ("lab.sim", "lab.course", "lab.check", *BELOW_THE_COURSE),
    "lab.check": ("lab.check", *BELOW_THE_COURSE),
    "lab.show": ("lab.show", "lab.check", "lab.values", "lab.words", "lab.rundir", "lab.rows", "lab.places"),
    "lab.search": (
        "lab.search",
        "lab.sim",
        "lab.course",
        "lab.live",
        "lab.check",
        "lab.mutants",
        "lab.runs",
        "lab.places",
        "lab.values",
        *BELOW_THE_COURSE,
    ),
    "lab.search.published": (
        "lab.engines",
        "lab.search.rates",
        "lab.runs",
        "lab.places",
        "lab.values",
        *BELOW_THE_COURSE,
    ),
    "lab.campaign": (
        "lab.campaign",
        "lab.search",
        "lab.check",
        "lab.show",
        "lab.live.children",
        "lab.mutants",
        "lab.runs",
        "lab.places",
        "lab.values",
        *BELOW_THE_COURSE,
    ),
    "lab.mutants": ("lab.mutants", "nodeproc"),
    "lab.selftest": (
        "lab.selftest",
        "lab.search",
        "lab.mutants",
        "lab.runs",
        "lab.places",
        "lab.values",
        *BELOW_THE_COURSE,
    ),
    "lab.paired": (),
    "lab.bench": ("lab", "nodeproc"),
    "lab.watch": (
        "lab.watch",
        "lab.course.by_hand",
        "lab.live.children",
        "lab.check",
        "lab.show",
        "lab.places",
        "lab.values",
        *BELOW_THE_COURSE,
    ),
    "lab.debug": (
        "lab.debug",
        "lab.watch",
        "lab.selftest",
        "lab.search",
        "lab.show",
        "lab.course",
        "lab.sim",
        "lab.live.children",
        "lab.mutants",
        "lab.check",
        "lab.runs",
        "lab.places",
        "lab.values",
        *BELOW_THE_COURSE,
    ),
    "lab.compare": (
        "lab.compare",
        "lab.bench",
        "lab.paired",
        "lab.runs",
        "lab.show",
        "lab.check",
        "lab.live",
        "lab.places",
        "lab.values",
        *BELOW_THE_COURSE,
    ),
    "lab.runs": (
        "lab.show",
        "lab.check",
        "lab.mutants",
        "lab.sim",
        "lab.live",
        "lab.course",
        "lab.places",
        "lab.values",
        *BELOW_THE_COURSE,
    ),
    "lab.enclosed": ("lab.live", "lab.mutants", *BELOW_THE_COURSE),
    "lab.hands": ("lab.course", "lab.runs", "lab.places", "lab.values", *BELOW_THE_COURSE),
    "lab.byhand": ("lab.places", "nodeproc"),
    "lab.native": ("lab.places", "lab.runs", "lab.search.coverage", "nodeproc.native"),
    "lab.cli": ("lab", "nodeproc"),
    "lab.pytest_plugin": ("lab.runs", "lab.places", "lab.values", "lab.show", *BELOW_THE_COURSE),
    "run_lab": ("lab",),
}
"""Package or module -> the packages and modules of this project that it may import. The longest key that fits counts.

Real processes and the simulation never meet, nor do they meet the judges but in a run directory; the chat never knows
the lab. lab.search asks lab.runs to run and judge what it found.
"""

OWN = ("nodeproc.", "lab.")

PURE = (
    "nodeproc.core",
    "nodeproc.entries",
    "nodeproc.outcome",
    "nodeproc.records",
    "nodeproc.frames",
    "nodeproc.lines",
    "nodeproc.net.nodestream",
    "nodeproc.session",
    "nodeproc.turn",
    "lab.course.links",
    "lab.paired",
)


class Import(NamedTuple):
    """One imported module, as a full dotted name."""

    line: int
    name: str


def module_name(path: Path) -> str:
    parts = path.relative_to(PROJECT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def sources() -> list[Path]:
    files = [PROJECT / "run_lab.py"]
    for package in ("nodeproc", "lab"):
        files += sorted((PROJECT / package).rglob("*.py"))
    return files


def imports_of(source: str) -> list[Import]:
    """Every imported module; `from a import b` counts as a.b, for b may be a module."""
    found: list[Import] = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [Import(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: a relative import; allowed: full names"
            found += [Import(node.lineno, f"{node.module}.{alias.name}") for alias in node.names]
    return found


def inside(name: str, package: str) -> bool:
    return name == package or name.startswith(f"{package}.")


def wrong_directions(module: str, source: str) -> list[str]:
    """Imports of this project's own modules that ALLOWED does not name, as `line: name`."""
    rule = max((key for key in ALLOWED if inside(module, key)), key=len, default=None)
    if rule is None:
        return [f"{module} is in no package of ALLOWED"]
    own = [
        each for each in imports_of(source) if each.name.partition(".")[0] in ("nodeproc", "lab", "run_lab", "tests")
    ]
    return [f"{each.line}: {each.name}" for each in own if not any(inside(each.name, ok) for ok in ALLOWED[rule])]


def package_of(module: str) -> str:
    """A package of lab, or a module that stands alone in lab or nodeproc, or nodeproc.core as a whole."""
    return ".".join(module.split(".")[:2])


def import_circle(imports: Mapping[str, Iterable[str]]) -> list[str]:
    """The names along one circle of imports, the first name again at the end; [] if there is none."""
    finished: set[str] = set()

    def visit(name: str, path: list[str]) -> list[str]:
        if name in path:
            return [*path[path.index(name) :], name]
        if name in finished:
            return []
        for target in sorted(imports.get(name, ())):
            if circle := visit(target, [*path, name]):
                return circle
        finished.add(name)
        return []

    for name in sorted(imports):
        if circle := visit(name, []):
            return circle
    return []


def core_layer(module: str) -> int | None:
    stem = module.removeprefix("nodeproc.core.").partition(".")[0]
    return next((height for height, layer in enumerate(CORE_LAYERS) if stem in layer), None)


def wrong_layers(module: str, source: str) -> list[str]:
    """Imports inside nodeproc.core that point upwards."""
    height = core_layer(module)
    if height is None:
        return [f"{module} is in no layer of CORE_LAYERS"]
    upward = []
    for each in imports_of(source):
        target = core_layer(each.name) if inside(each.name, "nodeproc.core") else None
        if target is not None and target > height:
            upward.append(f"{each.line}: {each.name}")
    return upward


def impurities(source: str) -> list[str]:
    """What a pure module must not do: other imports, the global random generator, open, print and input."""
    found = []
    for each in imports_of(source):
        top = each.name.partition(".")[0]
        if top not in PURE_STDLIB | {"msgspec", "nodeproc", "lab"} or each.name.startswith("msgspec.yaml"):
            found.append(f"{each.line}: import of {each.name}")
        if top == "random" and each.name not in ("random", "random.Random"):
            found.append(f"{each.line}: {each.name} is the global generator")
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "random":
            found += [f"{node.lineno}: random.{node.attr} is the global generator"] if node.attr != "Random" else []
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Name)
            and node.func.id in ("open", "print", "input")
        ):
            found.append(f"{node.lineno}: {node.func.id}()")
    return found


def long_functions(source: str, longest: int = LONGEST_FUNCTION) -> list[str]:
    """Functions of more lines than allowed, docstring included, decorators not."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            if lines > longest:
                found.append(f"{node.lineno}: {node.name} has {lines} lines, allowed {longest}")
    return found


EMPTY_NAMES = re.compile(r"(?:^|_)(?:utils?|managers?|helpers?|contexts?)$|(?:Utils?|Manager|Helper|Context)$")


def empty_names(module: str, source: str) -> list[str]:
    """Modules and classes whose name says nothing."""
    names = [module.rpartition(".")[2]]
    names += [node.name for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ClassDef)]
    return [name for name in names if EMPTY_NAMES.search(name)]


MACHINE_WORDS = re.compile(
    r"(?<![\w.}~])/(?:work|root|home|Users|opt|mnt|workspace)/\w"  # a place on somebody's machine
    r"|\bpypi\.org|pythonhosted\.org|--find-links|--(?:extra-)?index-url"  # where packages come from is pip's affair
    r"|\b[Ii]ssue #?\d"  # numbers of a tracker that the reader does not have
)
TEXT_SUFFIXES = frozenset({".py", ".md", ".yml", ".toml", ".txt", ".ini", ".cfg", ".sh", ""})
NOT_OURS = frozenset({".git", ".venv", ".hypothesis", ".benchmarks", "results", "data", "build", "dist"})


def machine_words(text: str) -> list[str]:
    """Lines that hold only on one machine or for one team, as `line: what was found`."""
    found = []
    for number, line in enumerate(text.splitlines(), 1):
        found += [f"{number}: {match.group()!r}" for match in MACHINE_WORDS.finditer(line)]
    return found


def text_files() -> Iterator[Path]:
    for path in sorted(PROJECT.rglob("*")):
        parts = path.relative_to(PROJECT).parts
        cache = any(part.endswith(("_cache", "__pycache__", ".egg-info")) or part in NOT_OURS for part in parts)
        if not cache and path.is_file() and path.suffix in TEXT_SUFFIXES and path != Path(__file__).resolve():
            yield path


each_source = pytest.mark.parametrize("path", sources(), ids=module_name)


@each_source
def test_imports_point_in_the_allowed_direction(path: Path) -> None:
    assert wrong_directions(module_name(path), path.read_text()) == []


def test_no_circle_of_imports() -> None:
    packages: dict[str, set[str]] = {}
    for path in sources():
        package = package_of(module_name(path))
        targets = {package_of(each.name) for each in imports_of(path.read_text()) if each.name.startswith(OWN)}
        packages.setdefault(package, set()).update(targets - {package})
    assert len(packages) > 20
    assert import_circle(packages) == []


@each_source
def test_functions_are_short(path: Path) -> None:
    assert long_functions(path.read_text()) == []


@each_source
def test_names_say_something(path: Path) -> None:
    assert empty_names(module_name(path), path.read_text()) == []


@pytest.mark.parametrize("path", sorted((PROJECT / "nodeproc" / "core").glob("[!_]*.py")), ids=module_name)
def test_the_layers_of_the_core_point_downwards(path: Path) -> None:
    assert wrong_layers(module_name(path), path.read_text()) == []


@pytest.mark.parametrize(
    "path", [path for path in sources() if any(inside(module_name(path), pure) for pure in PURE)], ids=module_name
)
def test_pure_modules_touch_nothing_outside(path: Path) -> None:
    assert impurities(path.read_text()) == []


def test_tests_are_made_of_short_functions_too() -> None:
    found = {str(path): long_functions(path.read_text()) for path in sorted((PROJECT / "tests").rglob("*.py"))}
    assert {path: long for path, long in found.items() if long} == {}


def test_no_file_knows_the_machine_it_was_written_on() -> None:
    found = {str(path.relative_to(PROJECT)): machine_words(path.read_text("utf-8")) for path in text_files()}
    assert "README.md" in found
    assert {path: lines for path, lines in found.items() if lines} == {}


# ---- each check rejects what it is there for ----------------------------------------------------


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("nodeproc.core.log", "from nodeproc.records import Sealer"),
        ("nodeproc.core.log", "def late():\n    import nodeproc.disk.storage"),
        ("nodeproc.runtime", "from lab.rundir import RunDir"),
        ("nodeproc.turn", "from nodeproc.net.transport import Links"),
        ("nodeproc.records", "from nodeproc.disk import storage"),
        ("nodeproc.lines", "from nodeproc.frames import PREAMBLE"),
        ("nodeproc.disk.wal", "from nodeproc.net import sockets"),
        ("nodeproc.net.clients", "from nodeproc.disk.storage import Storage"),
        ("nodeproc.disk.verify", "from lab.course.simfiles import SimFiles"),
        ("lab.live.live", "from lab.check.invariants import check"),
        ("lab.check.invariants", "import lab.live.live"),
        ("lab.plan.scenario", "from lab.rundir import RunDir"),
        ("lab.show.table", "from lab.live import live"),
        ("lab.bootstrap", "from lab import cli"),
        ("lab.plan.scenario", "from tests.lab import test_cli"),
        ("lab.mutants.disk", "from lab.plan.scenario import load"),
        ("lab.search.search", "from lab.selftest.stories import story"),
        ("elsewhere", "import os"),
    ],
)
def test_a_wrong_direction_is_found(module: str, source: str) -> None:
    assert len(wrong_directions(module, source)) == 1


def test_a_circle_of_imports_is_found() -> None:
    packages = {"lab.cli": ["lab.runs"], "lab.runs": ["lab.plan", "lab.show"], "lab.plan": [], "lab.show": []}
    assert import_circle(packages) == []
    assert import_circle(packages | {"lab.show": ["lab.runs"]}) == ["lab.runs", "lab.show", "lab.runs"]


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("nodeproc.core.messages", "from nodeproc.core.log import Log"),
        ("nodeproc.core.state", "from nodeproc.core import ordering"),
        ("nodeproc.core.election", "import nodeproc.core.node"),
        ("nodeproc.core.newcomer", "import math"),
    ],
)
def test_an_import_up_the_layers_is_found(module: str, source: str) -> None:
    assert len(wrong_layers(module, source)) == 1


@pytest.mark.parametrize(
    "source",
    [
        "import time",
        "import os.path",
        "import json",
        "from logging import getLogger",
        "from random import random",
        "import random\nx = random.choice([1])",
        "open('file')",
        "print('text')",
        "import yaml",
    ],
)
def test_an_impurity_is_found(source: str) -> None:
    assert len(impurities(source)) == 1


def test_what_is_pure_passes() -> None:
    assert impurities("import random\nfrom zlib import crc32\nimport msgspec\ndef f(rng: random.Random): ...") == []


def test_a_long_function_is_found() -> None:
    body = "    pass\n" * LONGEST_FUNCTION
    assert long_functions(f"def short():\n{body[9:]}\nasync def long():\n{body}") == [
        f"{LONGEST_FUNCTION + 2}: long has {LONGEST_FUNCTION + 1} lines, allowed {LONGEST_FUNCTION}"
    ]


def test_an_empty_name_is_found() -> None:
    assert empty_names("lab.live.file_utils", "class NodeManager: ...\nclass Manage: ...") == [
        "file_utils",
        "NodeManager",
    ]


@pytest.mark.parametrize(
    "line",
    ["see /home/somebody/chat", "open('/root/x')", "--index-url x", "https://pypi.org/simple", "as issue 7 says"],
)
def test_a_line_that_knows_its_machine_is_found(line: str) -> None:
    assert len(machine_words(f"a good line\n{line}\n")) == 1


def test_a_path_inside_the_project_is_no_machine_path() -> None:
    assert machine_words("results/latest, ./work/x, {root}/home/x, ~/work/x, https://example.org/home/x") == []


def test_the_python_of_the_tests_is_new_enough() -> None:
    assert sys.version_info >= (3, 11)
