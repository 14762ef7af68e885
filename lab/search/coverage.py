"""Coverage of the protocol's important branches by marks: comments in the product that install() makes countable.

A mark is on the line of a statement, or alone on the line before it:

    return  # hit: E4 refuses a log that is behind

It names the rule of docs/protocol.md and the situation. A mark is hit when its statement is about to be executed.
Without install() a mark is only a comment. After install() the modules with marks are compiled from a text with an
additional statement before each marked one, which records the hit. All other statements keep their line numbers. In
native modules (nodeproc.native) these statements are compiled in.
"""

from __future__ import annotations

import ast
import importlib.util
import io
import re
import sys
import tokenize
from collections.abc import Collection, Iterator, Mapping, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, SourceFileLoader
from pathlib import Path
from types import CodeType, ModuleType
from typing import NamedTuple

from lab.places import DOCS, ROOT
from nodeproc import native

NOTES = "__hits__"
"""Name of the dictionary of hits in an instrumented module."""

EXEMPT: dict[str, str] = {
    "M3": "the handshake is part of the transport, which is not simulated: simulated links open authenticated",
    "M5": "a wrong list of members is a configuration mistake; no fault causes it",
    "R1 older marks are asked for": "requires more than 4096 leaders that delivered nothing",
    "K2 a WAL that lost what was delivered is refused": "with fsync no crash leaves such a disk, only damage does",
    "K2 an intact entry that is not understood is refused": "only another version writes such entries",
    "R2 a fork below what is committed stops the node": "only a majority of lost disks leads there",
    "M4 a rebuild over a member's data is refused": "a mistake of the operator; no fault causes it",
    "S1 a session without its token is refused": "simulated clients know the tokens of their own sessions alone",
    "S1 a session with another one's token is refused": "as above",
    "S1 another client used the session": "as above",
    "S3 one address begins too many sessions": "the limit refuses honest clients too; a story covers it",
}
"""Rule or mark -> why a random simulation cannot hit it."""

EXEMPT_EVENTS: dict[str, str] = dict.fromkeys(
    ("peer_connected", "peer_lost", "peer_refused"),
    "reported by the transport between nodes, which is not simulated",
) | {
    "bad_input": "simulated clients send well-formed lines; tests and live runs send malformed bytes",
    "nothing_synced": "durability: os promises less than a simulation checks",
}
"""Event kind -> why a random simulation cannot report it."""

_HIT = re.compile(r"# hit: ([A-Z]\d+) \S.*")


class Mark(NamedTuple):
    """A mark's comment."""

    text: str
    line: int
    alone: bool
    """True if the mark is alone on its line, so that it belongs to the statement on the next line."""


# ---- finding marks --------------------------------------------------------------------------------


def marked_files(root: Path = ROOT) -> dict[str, Path]:
    """Return module name -> file of all modules of the product with marks. root: the directory of the code."""
    files = sorted(path for path in (root / "nodeproc").rglob("*.py") if "# hit: " in path.read_text("utf-8"))
    return {".".join(path.relative_to(root).with_suffix("").parts): path for path in files}


def marks_of(source: str) -> list[Mark]:
    """Return the marks in a source text, in order.

    Raises:
        ValueError: a comment that starts like a mark has no rule or no description.
    """
    found = []
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT and token.string.startswith("# hit:"):
            if not _HIT.fullmatch(token.string):
                raise ValueError(f"line {token.start[0]}: {token.string!r}, allowed '# hit: <rule> <what happened>'")
            alone = not token.line[: token.start[1]].strip()
            found.append(Mark(token.string.removeprefix("# hit: "), token.start[0], alone))
    return found


def marks(root: Path = ROOT) -> dict[str, tuple[str, int]]:
    """Return every mark -> (file, line). root: the directory of the code.

    Raises:
        ValueError: two marks have the same text.
    """
    found: dict[str, tuple[str, int]] = {}
    for path in marked_files(root).values():
        name = path.relative_to(root).as_posix()
        for mark in marks_of(path.read_text("utf-8")):
            if mark.text in found:
                raise ValueError(f"{name}:{mark.line}: {mark.text!r} stands at {found[mark.text]} too")
            found[mark.text] = (name, mark.line)
    return found


# ---- counting -------------------------------------------------------------------------------------


def countable(source: str, where: str) -> str:
    """Return the source text with a recording statement for each mark; it keeps the numbers of all lines.

    The statement replaces a comment that is alone on its line, and stands before a marked statement on its line.

    Raises:
        ValueError: no statement starts at the line of a mark, a compound statement has a mark beside it, or a statement
            has two marks.
    """
    found = marks_of(source)
    wanted = {mark.line + mark.alone: mark for mark in found}
    if len(wanted) < len(found):
        doubles = sorted({mark.text for mark in found} - {mark.text for mark in wanted.values()})
        raise ValueError(f"{where}: two marks at one statement: {doubles}")
    rows = source.splitlines(keepends=True)
    for node in ast.walk(ast.parse(source, where)):
        if not isinstance(node, ast.stmt) or (mark := wanted.get(node.lineno)) is None:
            continue
        compound = hasattr(node, "body") or isinstance(node, ast.Match)
        if compound and not mark.alone:
            continue
        del wanted[node.lineno]
        note = f"{NOTES}[{mark.text!r}] = True"
        row = rows[node.lineno - 1]
        if mark.alone:
            rows[mark.line - 1] = f"{row[: node.col_offset]}{note}\n"
        else:
            rows[mark.line - 1] = f"{row[: node.col_offset]}{note}; {row[node.col_offset :]}"
    if wanted:
        lost = {line: mark.text for line, mark in wanted.items()}
        raise ValueError(f"{where}: no statement begins at the lines of these marks: {lost}")
    return "".join(rows)


class _Loader(SourceFileLoader):
    """Compiles with notes, and neither reads nor writes a cache."""

    def get_code(self, fullname: str) -> CodeType:
        source = countable(self.get_data(self.path).decode("utf-8"), self.path)
        return compile(source, self.path, "exec", dont_inherit=True)

    def exec_module(self, module: ModuleType) -> None:
        module.__dict__[NOTES] = native.hits
        super().exec_module(module)


class _Finder(MetaPathFinder):
    def __init__(self, files: dict[str, Path]) -> None:
        self.files = files

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        file = self.files.get(fullname)
        if file is None:
            return None
        return importlib.util.spec_from_file_location(fullname, file, loader=_Loader(fullname, str(file)))


def install() -> None:
    """Count hits in this process from now on. Call this before any module with marks is imported.

    Raises:
        RuntimeError: a module with marks is imported already.
    """
    if any(isinstance(finder, _Finder) for finder in sys.meta_path):
        return
    files = {name: path for name, path in marked_files().items() if name not in native.compiled()}
    early = sorted(files.keys() & sys.modules.keys())
    if early:
        raise RuntimeError(f"imported before coverage.install() and so without marks: {', '.join(early)}")
    sys.meta_path.insert(0, _Finder(files))


def hits() -> list[str]:
    """Return the marks hit in this process since reset(), in the order of their first hit."""
    return list(native.hits)


def reset() -> None:
    """Forget all hits."""
    native.hits.clear()


# ---- the report -----------------------------------------------------------------------------------


def rules() -> list[str]:
    """Return the rules of docs/protocol.md in their order, without the invariants (A)."""
    return re.findall(r"^\*\*([B-Z]\d+)\b", (DOCS / "protocol.md").read_text("utf-8"), re.MULTILINE)


def rule_of(mark: str) -> str:
    return mark.partition(" ")[0]


def unhit_rules(hit: Collection[str]) -> list[str]:
    """Return the rules without a hit, except those that a simulation cannot hit."""
    reached = {rule_of(mark) for mark in hit}
    return [rule for rule in rules() if rule not in reached and rule not in EXEMPT]


def event_kinds() -> list[str]:
    """Return all kinds of events that a node can report, in the order of their definition."""
    from nodeproc.core import events  # Not at the top: importing this module must import no module with marks.

    kinds = [each for each in vars(events).values() if isinstance(each, type) and issubclass(each, events.Event)]
    return [str(kind.__struct_config__.tag) for kind in kinds if kind is not events.Event]


def unreported(seen: Collection[str]) -> list[str]:
    """Return the kinds of events that no node reported, except those that a simulation cannot report."""
    return [kind for kind in event_kinds() if kind not in seen and kind not in EXEMPT_EVENTS]


def unhit_marks(hit: Collection[str], known: Collection[str]) -> list[str]:
    """Return the marks without a hit, except those that a simulation cannot hit. known: all marks."""
    return [mark for mark in known if mark not in hit and mark not in EXEMPT]


def render(hit: Mapping[str, int], events: Mapping[str, int]) -> str:
    """Return the report: the number of hit marks of each rule, and the names of marks, rules and events without a hit.

    Args:
        hit: mark -> number of seeds that hit it.
        events: event kind -> number of reports.
    """
    return "\n".join(_lines(hit, events)) + "\n"


def _lines(hit: Mapping[str, int], events: Mapping[str, int]) -> Iterator[str]:
    found = marks()
    yield "rule  hit  marks  rarest"
    for rule in rules():
        own = [mark for mark in found if rule_of(mark) == rule]
        rarest = min((hit[mark] for mark in own if mark in hit), default=0)
        yield f"{rule:4}{sum(mark in hit for mark in own):5}{len(own):7}{rarest:8}"
    yield f"all {sum(mark in hit for mark in found):5}{len(found):7}"
    yield "rarest: number of seeds that hit the rule's least frequent mark, of those that were hit"
    never = unhit_marks(hit, found)
    shown = [f"{mark}  ({file}:{line})" for mark, (file, line) in found.items() if mark in never]
    yield from section("marks never hit", shown)
    yield from section("rules without a hit", unhit_rules(hit))
    yield from section("events never reported", unreported(events))
    exempt = [f"{each}: {reason}" for each, reason in EXEMPT.items() if each not in hit]
    exempt += [f"{each}: {reason}" for each, reason in EXEMPT_EVENTS.items() if each not in events]
    yield from section("out of reach of a simulation", exempt)


def section(title: str, rows: list[str]) -> Iterator[str]:
    """Yield the lines of a section of a report: an empty one, the title with the number of rows, and the rows."""
    yield ""
    yield f"{title}: {len(rows) or 'none'}"
    yield from (f"  {row}" for row in rows)
