"""README.md, CONTRIBUTING.md and docs/: links, files and modules that a page names exist, and pages that code names."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.plan import scenario as plan

PROJECT = Path(__file__).resolve().parents[1]
PAGES = [*sorted(PROJECT.glob("*.md")), *sorted((PROJECT / "docs").rglob("*.md"))]
FOLDERS = "lab|nodeproc|tests|scenarios|examples|configs|deploy|docs"
LINK = re.compile(r"\[[^]]*\]\(([^)\s]+)\)")
FILE = re.compile(rf"(?<![\w./$<-])(?:{FOLDERS})/[\w./*-]*[\w*/]")
MODULE = re.compile(r"(?<![\w./-])(?:lab|nodeproc|tests)(?:\.[A-Za-z_]\w*)+")
NOT_MODULES = frozenset({"lab_scenarios", "lab.py"})
PLACEHOLDER = re.compile(r"NAME|NNNN")
MADE_BY_A_RUN = frozenset({"scenarios/my_story.yml", "scenarios/my_scenario.yml", "scenarios/x.yml", "lab/share"})
"""Files in examples of commands: they are written by the command, or stand for any file. A wheel contains lab/share."""
ELSEWHERE = frozenset({"configs/node1_local.yml", "deploy/.env"})
"""A file of the demo guide, and one that users may write."""


def slugs(text: str) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    prose = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    headings = re.findall(r"^#+ (.*)$", prose, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", re.sub(r"[`*]", "", each)).strip().lower().replace(" ", "-") for each in headings}


def broken_links(page: Path, text: str) -> list[str]:
    """Links of this page to a file, or to a heading in a page, that does not exist."""
    found = []
    for link in LINK.findall(text):
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if "://" in link:
            continue
        if not target.exists() or (anchor and anchor not in slugs(target.read_text("utf-8") if path else text)):
            found.append(link)
    return found


def missing_files(text: str) -> list[str]:
    """Paths below one of the project's folders that match no file."""
    named = [
        path for path in FILE.findall(text) if path not in MADE_BY_A_RUN | ELSEWHERE and not PLACEHOLDER.search(path)
    ]
    return [path for path in named if not any(PROJECT.glob(path))]


def names_of(module: Path) -> set[str]:
    """The names that a module defines or imports at its top level."""
    found = set()
    for node in ast.parse(module.read_text("utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            found |= {alias.asname or alias.name for alias in node.names}
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            found |= {target.id for target in targets if isinstance(target, ast.Name)}
    return found


def exists(dotted: str) -> bool:
    """Whether this is a package, a module, or a name at the top level of one."""
    path = PROJECT / dotted.replace(".", "/")
    if path.is_dir() or path.with_suffix(".py").is_file():
        return True
    module = path.parent.with_suffix(".py") if path.parent.with_suffix(".py").is_file() else path.parent / "__init__.py"
    return module.is_file() and path.name in names_of(module)


def missing_modules(text: str) -> list[str]:
    return [dotted for dotted in MODULE.findall(text) if dotted not in NOT_MODULES and not exists(dotted)]


def pages_named_in_code() -> Iterator[tuple[Path, str]]:
    for folder in ("lab", "nodeproc", "tests", "examples"):
        for path in sorted((PROJECT / folder).rglob("*.py")):
            for page in re.findall(r"\bdocs/[\w/-]+\.md\b", path.read_text("utf-8")):
                yield path, page


each_page = pytest.mark.parametrize("page", PAGES, ids=[str(page.relative_to(PROJECT)) for page in PAGES])


@each_page
def test_every_link_of_a_page_leads_somewhere(page: Path) -> None:
    assert broken_links(page, page.read_text("utf-8")) == []


@each_page
def test_every_file_that_a_page_names_exists(page: Path) -> None:
    assert missing_files(page.read_text("utf-8")) == []


@each_page
def test_every_module_that_a_page_names_exists(page: Path) -> None:
    assert missing_modules(page.read_text("utf-8")) == []


SCENARIOS = [
    (page.relative_to(PROJECT).as_posix(), text)
    for page in PAGES
    for text in re.findall(r"^```yaml\n(name: .*?)^```", page.read_text("utf-8"), re.DOTALL | re.MULTILINE)
]


@pytest.mark.parametrize(
    ("page", "text"), SCENARIOS, ids=[" ".join((page, text.split()[1])) for page, text in SCENARIOS]
)
def test_every_scenario_on_a_page_is_one(page: str, text: str) -> None:
    assert plan.load(page, text=text).steps


def test_every_page_that_the_code_names_exists() -> None:
    found = list(pages_named_in_code())
    assert found
    assert [(str(path), page) for path, page in found if not (PROJECT / page).is_file()] == []


def test_every_page_is_in_the_index() -> None:
    index = (PROJECT / "docs" / "README.md").read_text("utf-8")
    pages = [page.name for page in (PROJECT / "docs").glob("*.md") if page.name != "README.md"]
    assert [name for name in pages if f"]({name})" not in index] == []


def test_every_decision_has_a_number_of_its_own() -> None:
    """The number in the name of the file is that of the heading."""
    decisions = sorted((PROJECT / "docs" / "decisions").glob("*.md"))
    numbers = [int(path.name[:4]) for path in decisions]
    assert numbers == list(range(1, len(numbers) + 1))
    assert [
        path.name for path in decisions if not path.read_text("utf-8").startswith(f"# {int(path.name[:4])}. ")
    ] == []


# ---- each check rejects what it is there for --------------------------------------------------------


def test_a_link_that_leads_nowhere_is_found() -> None:
    page = PROJECT / "docs" / "protocol.md"
    text = (
        "# A heading\n[a](results.md) [b](#a-heading) [c](https://example.org) [d](no.md) [e](#none) [f](results.md#no)"
    )
    assert broken_links(page, text) == ["no.md", "#none", "results.md#no"]


def test_a_file_that_is_gone_is_found() -> None:
    assert missing_files(
        "`lab/cli.py`, lab/search/*.py, $LAB/examples/x.py, lab/steps/NAME.py, `nodeproc/gone.py`"
    ) == ["nodeproc/gone.py"]


def test_a_module_that_is_gone_is_found() -> None:
    text = "`lab.cli`, lab.search, nodeproc.errors.ConfigError, `nodeproc.gone`, nodeproc.errors.Gone"
    assert missing_modules(text) == ["nodeproc.gone", "nodeproc.errors.Gone"]
