"""Which branches that matter a run has taken: marks, comments in the product that count once install() was called.

A mark stands on a statement's own line or on the line before it:

    return  # hit: E4 refuses a log that is behind

First the rule of docs/protocol.md, then what happened there. It is hit when the statement is about to be executed.
Without install() it is a comment like any other; with it the modules that have marks are compiled from a syntax tree
in which a note stands before each marked statement. All other statements keep their lines.
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

PROJECT = Path(__file__).resolve().parents[2]
PROTOCOL = PROJECT / "docs" / "protocol.md"
NOTES = "__hits__"
"""Name under which a compiled module finds the dictionary of hits."""

EXEMPT: dict[str, str] = {
    "M3": "the handshake belongs to the transport, which the simulation leaves out: its links open proven",
    "M5": "other members are a mistake of whoever configures the node; no fault does it",
    "R1 older marks are asked for": "it takes more than 4096 leaders that delivered nothing",
    "K2 a WAL that lost what was delivered is refused": "with fsync no crash leaves such a disk, only damage does",
    "K2 an intact entry that is not understood is refused": "only another version writes such entries",
    "R2 a fork below what is committed stops the node": "only a majority of lost disks leads there",
    "M4 a rebuild over a member's data is refused": "a mistake of whoever starts the node; no fault does it",
    "S1 a session without its token is refused": "simulated clients know the tokens of their own sessions alone",
    "S1 a session with another one's token is refused": "as above",
    "S1 another client used the session": "as above",
    "S3 one address begins too many sessions": "the limit refuses honest clients too; a story does it",
}
"""Rule or mark -> why a simulation can't hit it."""

EXEMPT_EVENTS: dict[str, str] = dict.fromkeys(
    ("peer_connected", "peer_lost", "peer_refused"),
    "reported by the transport between nodes, which the simulation leaves out",
) | {
    "bad_input": "what the simulated clients say is well-formed; malformed bytes are the tests' and live runs' affair",
    "nothing_synced": "durability: os promises less than a simulation checks",
}
"""Event kind -> why a simulation can't report it."""

_HIT = re.compile(r"# hit: ([A-Z]\d+) \S.*")


class Mark(NamedTuple):
    """A mark's comment."""

    text: str
    line: int
    alone: bool
    """Nothing else stands on its line: it belongs to the statement on the next one."""


# ---- where the marks are --------------------------------------------------------------------------


def marked_files() -> dict[str, Path]:
    """Module name -> file, of all modules of the product with marks."""
    files = sorted(path for path in (PROJECT / "nodeproc").rglob("*.py") if "# hit: " in path.read_text("utf-8"))
    return {".".join(path.relative_to(PROJECT).with_suffix("").parts): path for path in files}


def marks_of(source: str) -> list[Mark]:
    """The marks in a source text, in order.

    Raises:
        ValueError: a comment that begins like a mark names no rule or does not say what happened.
    """
    found = []
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT and token.string.startswith("# hit:"):
            if not _HIT.fullmatch(token.string):
                raise ValueError(f"line {token.start[0]}: {token.string!r}, allowed '# hit: <rule> <what happened>'")
            alone = not token.line[: token.start[1]].strip()
            found.append(Mark(token.string.removeprefix("# hit: "), token.start[0], alone))
    return found


def marks() -> dict[str, tuple[str, int]]:
    """Every mark -> (file, line).

    Raises:
        ValueError: two have the same text.
    """
    found: dict[str, tuple[str, int]] = {}
    for path in marked_files().values():
        name = path.relative_to(PROJECT).as_posix()
        for mark in marks_of(path.read_text("utf-8")):
            if mark.text in found:
                raise ValueError(f"{name}:{mark.line}: {mark.text!r} stands at {found[mark.text]} too")
            found[mark.text] = (name, mark.line)
    return found


# ---- counting -------------------------------------------------------------------------------------

_hits: dict[str, bool] = {}


class _Insert(ast.NodeTransformer):
    """Puts a note before each marked statement. `wanted`: line of a statement -> mark; what is left has none."""

    def __init__(self, wanted: dict[int, str]) -> None:
        self.wanted = wanted

    def visit(self, node: ast.AST) -> ast.AST | list[ast.AST]:
        text = self.wanted.pop(node.lineno, None) if isinstance(node, ast.stmt) else None
        self.generic_visit(node)
        if text is None:
            return node
        note = ast.parse(f"{NOTES}[{text!r}] = True").body[0]
        for part in ast.walk(note):
            if "lineno" in part._attributes:
                ast.copy_location(part, node)
        return [note, node]


def instrumented(source: str, where: str) -> ast.Module:
    """The syntax tree of a source text with its marks turned into notes.

    Raises:
        ValueError: no statement begins where a mark stands, or it has two.
    """
    found = marks_of(source)
    wanted = {mark.line + mark.alone: mark.text for mark in found}
    if len(wanted) < len(found):
        raise ValueError(f"{where}: two marks at one statement: {sorted({m.text for m in found} - {*wanted.values()})}")
    insert = _Insert(wanted)
    tree = ast.parse(source, where)
    insert.visit(tree)
    if insert.wanted:
        raise ValueError(f"{where}: no statement begins at the lines of these marks: {insert.wanted}")
    return tree


class _Loader(SourceFileLoader):
    """Compiles with notes, and neither reads nor writes a cache."""

    def get_code(self, fullname: str) -> CodeType:
        tree = instrumented(self.get_data(self.path).decode("utf-8"), self.path)
        return compile(tree, self.path, "exec", dont_inherit=True)

    def exec_module(self, module: ModuleType) -> None:
        module.__dict__[NOTES] = _hits
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
    """Count hits in this process from here on. To be called before a module with marks is imported.

    Raises:
        RuntimeError: one of them is imported already.
    """
    if any(isinstance(finder, _Finder) for finder in sys.meta_path):
        return
    files = marked_files()
    early = sorted(files.keys() & sys.modules.keys())
    if early:
        raise RuntimeError(f"imported before coverage.install() and so without marks: {', '.join(early)}")
    sys.meta_path.insert(0, _Finder(files))


def hits() -> list[str]:
    """The marks hit in this process, in the order of their first hit since reset()."""
    return list(_hits)


def reset() -> None:
    """Forget all hits."""
    _hits.clear()


# ---- the report -----------------------------------------------------------------------------------


def rules() -> list[str]:
    """The rules that docs/protocol.md defines, in its order; not what must hold after a run (A)."""
    return re.findall(r"^\*\*([B-Z]\d+)\b", PROTOCOL.read_text("utf-8"), re.MULTILINE)


def rule_of(mark: str) -> str:
    return mark.partition(" ")[0]


def unhit_rules(hit: Collection[str]) -> list[str]:
    """Rules of which no mark is hit, without those that a simulation can't hit."""
    reached = {rule_of(mark) for mark in hit}
    return [rule for rule in rules() if rule not in reached and rule not in EXEMPT]


def event_kinds() -> list[str]:
    """Every kind of event that a node may report, in the order of their list."""
    from nodeproc.core import events  # Not above: importing this module imports none that has marks.

    kinds = [each for each in vars(events).values() if isinstance(each, type) and issubclass(each, events.Event)]
    return [str(kind.__struct_config__.tag) for kind in kinds if kind is not events.Event]


def unreported(seen: Collection[str]) -> list[str]:
    """Event kinds that no node reported, without those that a simulation can't report."""
    return [kind for kind in event_kinds() if kind not in seen and kind not in EXEMPT_EVENTS]


def unhit_marks(hit: Collection[str]) -> list[str]:
    """Marks never hit, without those that a simulation can't hit."""
    return [mark for mark in marks() if mark not in hit and mark not in EXEMPT]


def render(hit: Mapping[str, int], events: Mapping[str, int]) -> str:
    """How many marks of each rule are hit, and by name what never was.

    Args:
        hit: mark -> in how many seeds it was hit.
        events: event kind -> how often it was reported.
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
    yield "rarest: in how many seeds that mark of the rule was hit which the fewest seeds hit, of those that were"
    never = unhit_marks(hit)
    shown = [f"{mark}  ({file}:{line})" for mark, (file, line) in found.items() if mark in never]
    yield from _section("marks never hit", shown)
    yield from _section("rules without a hit", unhit_rules(hit))
    yield from _section("events never reported", unreported(events))
    spared = [f"{each}: {reason}" for each, reason in EXEMPT.items() if each not in hit]
    spared += [f"{each}: {reason}" for each, reason in EXEMPT_EVENTS.items() if each not in events]
    yield from _section("out of reach of a simulation", spared)


def _section(title: str, rows: list[str]) -> Iterator[str]:
    yield ""
    yield f"{title}: {len(rows) or 'none'}"
    yield from (f"  {row}" for row in rows)
