"""YAML files with errors that name file, line, column and key, and show the place.

    configs/node1.yml:7:19: peers[0].port: found "abc", allowed 1..65535
        7 |   - {id: 2, port: abc}
          |                   ^

parse() reads the text, and Document.convert() makes a msgspec Struct of it. Document.error() makes an error with a
place, for checks that only the caller can do ("no such node"). Structs that refuse unknown keys declare this themselves
(forbid_unknown_fields=True).

nodeproc.yamlscalar defines the meaning of plain scalars. A key may appear only once. Merge keys (`<<`) work. Tags
(`!!int`) are refused, because the Struct defines the types. A file has at most MAX_FILE_BYTES, and MAX_VALUES values
with all aliases expanded.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeAlias, TypeVar
from unicodedata import east_asian_width

import msgspec
import yaml
from msgspec import inspect

from nodeproc.errors import FileProblem, did_you_mean
from nodeproc.yamlscalar import Scalar, read_plain

Place: TypeAlias = tuple[str | int, ...]
"""The path of a value in the document: ("peers", 0, "port")."""

T = TypeVar("T")
DecHook: TypeAlias = Callable[[type, Any], Any]

MAX_FILE_BYTES = 1 << 20
MAX_VALUES = 100_000
"""Maximum number of values in one file; a value counts again each time an alias repeats it."""
MAX_DEPTH = 100
"""Maximum depth of nested lists and mappings."""
_MERGE = "<<"
_SHOWN_COLUMNS = 160
"""Number of columns that an error shows of a longer source line, around the place."""
_OURS = "\0"
"""Marks a problem whose text was written here, not by msgspec."""


class _Loader(yaml.SafeLoader):
    """PyYAML's parser, used only for nodes and marks; nodeproc.yamlscalar decides what a scalar means."""

    yaml_implicit_resolvers: dict[Any, Any] = {}  # noqa: RUF012 (PyYAML's own table, replaced)
    _depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        if getattr(event, "tag", None) is not None:
            tag = event.tag.replace("tag:yaml.org,2002:", "!!")
            raise _refused(event.start_mark, f"a tag ({tag}); write the value without it, text in quotes")
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise _refused(event.start_mark, "nested too deeply")
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node


def _refused(mark: yaml.Mark, problem: str) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=_OURS + problem, problem_mark=mark)


_IN_OUR_WORDS: tuple[tuple[str, str], ...] = (
    (r"expected the node content, but found '<stream end>'", "the file ends where a value is expected"),
    (r"found unexpected end of stream", "a quote that is never closed"),
    (r"found unexpected document separator", "a quote that is not closed before `---` or `...`"),
    (
        r"mapping values are not allowed here",
        "a second `: ` in this line, or a wrong indentation; text that holds `: ` needs quotes",
    ),
    (r"could not find expected ':'", "a key without `: ` behind it, or a line that is indented too little"),
    (r"found character '\\t' that cannot start any token", "a tab; use spaces"),
    (r"found character (.*) that cannot start any token", r"text can't begin with \1; put it in quotes"),
    (r"expected ',' or '\]', but got .*", "a list in [ ] that is not closed, or lacks a comma"),
    (r"expected ',' or '\}', but got .*", "a mapping in { } that is not closed, or lacks a comma"),
    (r"expected <block end>, but found .*", "this does not fit the lines above; look at their indentation"),
    (r"expected '<document start>', but found .*", "text behind the end of the file's one value"),
    (
        r"(block )?sequence entries are not allowed .*",
        "`- ` can't stand here; a list begins on a line of its own",
    ),
    (r"mapping keys are not allowed .*", "`? ` can't stand here"),
    (r"found undefined alias '(.*)'", r"the alias *\1 has no anchor &\1 above it"),
    (r"second occurrence", "an anchor (&) that stands in the file twice"),
    (r"but found another document", "a second document (`---`); a file holds one"),
    (
        r"found unknown escape character (.*)",
        r"\1 behind a backslash means nothing in double quotes; use single quotes, or two backslashes",
    ),
    (r"expected escape sequence of (\d) hexadecimal .*", r"an escape with fewer than \1 hexadecimal digits"),
    (r"expected alphabetic or numeric .*", "a name is needed behind * or &; text that begins so needs quotes"),
    (r"expected the node content, but found .*", "a value is expected here"),
)
"""Regular expression of PyYAML's problem -> text for the user."""


def parse(path: Path | str, *, text: str | None = None) -> Document:
    """Read a file as plain values with their places.

    Raises:
        FileProblem: unreadable or not YAML.
    """
    if text is None:
        text = _read(Path(path))
    loader: Any = None
    try:
        loader = _Loader(text)
        root = loader.get_single_node()
        if root is None:
            raise FileProblem(str(path), "empty, a mapping is needed")
        return Document(path, text, root, _Values(path, text).of(root))
    except yaml.MarkedYAMLError as error:
        raise _at(path, text, error.problem_mark or error.context_mark, _in_our_words(error.problem or "")) from None
    except yaml.reader.ReaderError as error:
        line, column = text.count("\n", 0, error.position), error.position - text.rfind("\n", 0, error.position) - 1
        found = f"the character {ascii(text[error.position])[1:-1]}, which no YAML file may hold"
        raise FileProblem(str(path), found, line + 1, column + 1) from None
    except RecursionError:
        raise FileProblem(str(path), "nested too deeply") from None
    finally:
        if loader is not None:
            loader.dispose()


def _in_our_words(problem: str) -> str:
    if problem.startswith(_OURS):
        return problem.removeprefix(_OURS)
    for pattern, words in _IN_OUR_WORDS:
        if match := re.fullmatch(pattern, problem, re.DOTALL):
            return match.expand(words)
    return f"not YAML: {problem}"


def _read(path: Path) -> str:
    """Return the file's text.

    Raises:
        FileProblem: the file cannot be read, is too large or is not UTF-8.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except FileNotFoundError as error:
        near = did_you_mean(path.name, _files_beside(path))
        raise FileProblem(str(path), f"{error.strerror}{near}") from None
    except OSError as error:
        raise FileProblem(str(path), f"{error.strerror}") from None
    except ValueError:
        raise FileProblem(ascii(str(path)), "no file can have this name") from None
    if len(data) > MAX_FILE_BYTES:
        raise FileProblem(str(path), f"found more than {MAX_FILE_BYTES} bytes, which is the most that is read")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise FileProblem(str(path), f"not UTF-8 at byte {error.start}") from None


def _files_beside(path: Path) -> list[str]:
    try:
        return sorted(each.name for each in path.parent.iterdir() if each.suffix in (".yml", ".yaml"))
    except OSError:
        return []


def show_place(place: Place) -> str:
    """Format ("peers", 0, "port") as `peers[0].port`."""
    shown = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in place)
    return shown.removeprefix(".")


class Document:
    """One parsed file: `data` holds its values as dicts, lists, str, int, float, bool and None."""

    def __init__(self, path: Path | str, text: str, root: yaml.Node, data: Any) -> None:
        self.path, self.text, self.data = path, text, data
        self._root = root

    def error(self, place: Place, message: str, *, at_key: bool = False, allowed: Sequence[str] = ()) -> FileProblem:
        """Return an error about the value at `place`, for the caller to raise.

        Args:
            place: if it does not exist in the file, the error shows its deepest existing part.
            at_key: show the place of the key instead of its value.
            allowed: the allowed words, if there is a list of them.
        """
        shown = show_place(place)
        text = f"{shown}: {message}" if shown else message
        return _at(self.path, self.text, self._mark(place, at_key), text, allowed)

    def wrong(self, place: Place, allowed: str, names: Sequence[str] = ()) -> FileProblem:
        """Return the error that the value at `place` is not allowed, or that a value is missing there.

        Args:
            allowed: description of what is allowed.
            names: allowed words, from which a suggestion is made.
        """
        found = self._value_or_none(place)
        near = did_you_mean(found, names) if isinstance(found, str) else ""
        return self.error(place, f"found {show_value(found)}{near}, allowed {allowed}", allowed=names)

    def unknown_key(self, place: Place, allowed: Sequence[str], what: str = "unknown key") -> FileProblem:
        """Return the error that a mapping has an unknown key, the last part of `place`."""
        near = did_you_mean(str(place[-1]), allowed)
        return self.error(place, f"{what}{near}; allowed: {', '.join(allowed) or 'none'}", at_key=True, allowed=allowed)

    def convert(self, wanted: type[T], *, dec_hook: DecHook | None = None) -> T:
        """Convert the whole document to a Struct.

        Raises:
            FileProblem: a missing or unknown key, or a value that the type does not allow.
        """
        return self.convert_at((), wanted, dec_hook=dec_hook)

    def convert_at(self, place: Place, wanted: type[T], *, dec_hook: DecHook | None = None) -> T:
        """Convert the value at `place`, which must exist, to a Struct. Raises as convert."""
        data = self.value(place)
        try:
            return msgspec.convert(data, wanted, dec_hook=dec_hook, str_keys=True)
        except msgspec.ValidationError as error:
            problem = str(error)
            inside = _place_of(problem.rpartition("$")[2].rstrip("`"))
            if ("[...]" in problem or "`key` in" in problem) and (
                key := self._culprit(place, inside, wanted, dec_hook)
            ) is not None:
                if "`key` in" in problem:
                    raise self.error((*place, *inside, key), "is no whole number", at_key=True) from None
                raise self._explained(problem, wanted, place, (*inside, key)) from None
            raise self._explained(problem, wanted, place) from None

    def _culprit(self, base: Place, inside: Place, wanted: Any, dec_hook: DecHook | None) -> str | None:
        """Return the key, in the mapping at base + inside, that msgspec refuses or whose value it refuses; msgspec
        names neither.
        """
        mapping = self._value_or_none((*base, *inside))
        for key in mapping if isinstance(mapping, dict) else ():
            try:
                alone = _replaced(self.value(base), inside, {key: mapping[key]})
                msgspec.convert(alone, wanted, dec_hook=dec_hook, str_keys=True)
            except msgspec.ValidationError:
                return str(key)
        return None

    def value(self, place: Place) -> Any:
        """Return the plain value at a place that exists."""
        data = self.data
        for part in place:
            data = data[part]
        return data

    def _mark(self, place: Place, at_key: bool) -> yaml.Mark | None:
        """Return the position in the text of the deepest existing part of `place`."""
        node, mark = self._root, self._root.start_mark
        for depth, part in enumerate(place):
            if isinstance(node, yaml.MappingNode):
                pairs = [(key, value) for key, value in node.value if _key(key) == part]
                if not pairs:
                    break
                key, node = pairs[0]
                mark = key.start_mark if at_key and depth == len(place) - 1 else node.start_mark
            elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
                node = node.value[part]
                mark = node.start_mark
            else:
                break
        return mark

    def _explained(self, problem: str, wanted: Any, base: Place, inside: Place = ()) -> FileProblem:
        """Translate an error of msgspec for the user."""
        found = re.fullmatch(r"(.*?)(?: - at `(?:key in )?(\$[^`]*)`)?", problem, re.DOTALL)
        assert found is not None
        text, inside = found[1], inside or _place_of(found[2] or "")
        place = base + inside
        allowed = _type_at(inspect.type_info(wanted), inside, self.value(base))
        if match := re.fullmatch(r"Object contains unknown field `(.*)`", text, re.DOTALL):
            return self.unknown_key((*place, match[1]), _keys(allowed))
        if match := re.fullmatch(r"Object missing required field `(.*)`", text):
            return self.error(place, f"the key {match[1]} is missing")
        if match := re.match(r"Invalid (?:enum )?value|Expected (.*?)(?:, got `.*`)?$", text):
            value = self._value_or_none(place)
            words = _in_words(allowed) or (match[1] or "").replace("`", "")
            if _is_number(value):  # The number is out of bounds, or should be text.
                words = words.removeprefix("a whole number, " if isinstance(value, int) else "a number, ")
                words += " in quotes" if words.startswith("text") else ""
            return self.wrong(place, words, _values(allowed))
        return self.error(place, text)

    def _value_or_none(self, place: Place) -> Any:
        try:
            return self.value(place)
        except (KeyError, IndexError, TypeError):
            return None


class _Values:
    """Turns YAML nodes into plain values; refuses input that would be lost silently."""

    def __init__(self, path: Path | str, text: str) -> None:
        self._path, self._text = path, text
        self._open: set[int] = set()
        self._count = 0

    def of(self, node: yaml.Node, place: Place = ()) -> Any:
        if isinstance(node, yaml.ScalarNode):
            self._count_one(node, place)
            return self._scalar(node, place)
        self._enter(node, place)
        try:
            if isinstance(node, yaml.MappingNode):
                return self._mapping(node, place)
            return [self.of(item, (*place, index)) for index, item in enumerate(node.value)]
        finally:
            self._open.discard(id(node))

    def _mapping(self, node: yaml.MappingNode, place: Place) -> dict[str, Any]:
        node.value = list(self._with_merged(node, place))
        values: dict[str, Any] = {}
        for key, value in node.value:
            self._scalar(key, place)
            name = _key(key)
            if name in values:
                raise self._error(key, place, f"the key {name} stands here twice")
            values[name] = self.of(value, (*place, name))
        return values

    def _with_merged(self, node: yaml.MappingNode, place: Place) -> Iterator[tuple[yaml.ScalarNode, yaml.Node]]:
        """Yield the mapping's own pairs, then those of its `<<` whose keys it lacks; the first of several mappings
        wins.
        """
        merged: list[yaml.Node] = []
        names: set[str] = set()
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise self._error(key, place, "a key must be plain text")
            if key.value == _MERGE and key.style is None:
                merged += value.value if isinstance(value, yaml.SequenceNode) else [value]
            else:
                names.add(_key(key))
                yield key, value
        for each in merged:
            if not isinstance(each, yaml.MappingNode):
                raise self._error(each, place, f"allowed behind {_MERGE}: an alias of a mapping, or a list of such")
            self._enter(each, place)
            for key, value in self._with_merged(each, place):
                self._count_one(key, place)
                if _key(key) not in names:
                    names.add(_key(key))
                    yield key, value
            self._open.discard(id(each))

    def _scalar(self, node: yaml.ScalarNode, place: Place) -> Scalar:
        text: str = node.value
        try:
            text.encode()
            return read_plain(text) if node.style is None else text
        except UnicodeEncodeError as error:
            half = ascii(text[error.start])[1:-1]
            message = f"found {half}, half of a character; write the character itself"
            raise self._error(node, place, message) from None
        except ValueError as error:
            raise self._error(node, place, str(error)) from None

    def _enter(self, node: yaml.Node, place: Place) -> None:
        if id(node) in self._open:
            raise self._error(node, place, "an alias that contains itself")
        self._open.add(id(node))
        self._count_one(node, place)
        if len(self._open) > MAX_DEPTH:
            raise self._error(node, (), "nested too deeply")

    def _count_one(self, node: yaml.Node, place: Place) -> None:
        self._count += 1
        if self._count > MAX_VALUES:
            raise self._error(node, place[:1], f"more than {MAX_VALUES} values in the file, with its aliases expanded")

    def _error(self, node: yaml.Node, place: Place, message: str) -> FileProblem:
        shown = show_place(place)
        return _at(self._path, self._text, node.start_mark, f"{shown}: {message}" if shown else message)


def _key(node: yaml.ScalarNode) -> str:
    """Return a key in its normal form: 1 and +1 are the same key."""
    try:
        value = read_plain(node.value) if node.style is None else None
    except ValueError:
        value = None
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else str(node.value)


def _at(path: Path | str, text: str, mark: yaml.Mark | None, message: str, allowed: Sequence[str] = ()) -> FileProblem:
    """Return an error of three lines: the problem with its place, the source line, and a caret."""
    if mark is None:
        return FileProblem(str(path), message)
    lines = text.splitlines()
    source = lines[mark.line].rstrip() if mark.line < len(lines) else ""
    return FileProblem(str(path), message, mark.line + 1, mark.column + 1, _pointed_at(source, mark), allowed)


def _pointed_at(source: str, mark: yaml.Mark) -> str:
    """Return the source line and a line with a caret below the column; "" if there is nothing to show."""
    if not source.strip():
        return ""
    column, number = mark.column, f"    {mark.line + 1}"
    if len(source) > _SHOWN_COLUMNS:
        start = min(max(0, column - _SHOWN_COLUMNS // 2), len(source))
        source, column = source[start : start + _SHOWN_COLUMNS], column - start
    # Tabs stay tabs, and characters of double width take two columns, so that the caret is at the right column.
    blank = "".join("\t" if c == "\t" else "  " if east_asian_width(c) in "WF" else " " for c in source[:column])
    return f"\n{number} | {source}\n{' ' * len(number)} | {blank.ljust(column)}^"


def _place_of(where: str) -> Place:
    """Convert msgspec's `$.peers[0].port` to a place; it ends before `[...]`, which names no single entry."""
    place: list[str | int] = []
    for name, index in re.findall(r"\.([^.\[\]]+)|\[([^\]]*)\]", where):
        if not name and not index.isdecimal():
            break
        place.append(name or int(index))
    return tuple(place)


def _replaced(data: Any, place: Place, new: Any) -> Any:
    """Return the data with the value at a place replaced."""
    if not place:
        return new
    changed: Any = data.copy()
    changed[place[0]] = _replaced(data[place[0]], place[1:], new)
    return changed


def show_value(value: object) -> str:
    """Format a plain value so that the user recognises it, shortened."""
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list | tuple):
        return "a list" if value else "an empty list"
    if value is None:
        return "nothing"
    shown = json.dumps(value, ensure_ascii=False, default=str)
    return shown if len(shown) <= 60 else shown[:57] + "..."


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _type_at(info: inspect.Type, place: Place, data: Any) -> inspect.Type:
    """Return the type that is required at a place, as far as it can be determined."""
    info = _narrowed(info, data)
    if not place:
        return info
    part = place[0]
    below: Any = None
    if isinstance(data, dict):
        below = data.get(str(part))
    elif isinstance(data, list) and isinstance(part, int) and part < len(data):
        below = data[part]
    if isinstance(info, inspect.StructType):
        for field in info.fields:
            if field.encode_name == part:
                return _type_at(field.type, place[1:], below)
    if isinstance(info, inspect.ListType | inspect.VarTupleType):
        return _type_at(info.item_type, place[1:], below)
    if isinstance(info, inspect.TupleType) and isinstance(part, int) and part < len(info.item_types):
        return _type_at(info.item_types[part], place[1:], below)
    if isinstance(info, inspect.DictType):
        return _type_at(info.value_type, place[1:], below)
    return info


def _narrowed(info: inspect.Type, data: Any) -> inspect.Type:
    """Return the member of a union that fits the data best."""
    if isinstance(info, inspect.Metadata):
        return _narrowed(info.type, data)
    if not isinstance(info, inspect.UnionType):
        return info
    structs = [each for each in info.types if isinstance(each, inspect.StructType)]
    if isinstance(data, dict):
        tagged = [each for each in structs if each.tag_field and data.get(each.tag_field) == each.tag]
        best = tagged or structs
        return best[0] if best else info
    others = [each for each in info.types if isinstance(each, inspect.LiteralType | inspect.EnumType)]
    return others[0] if others else info


def _keys(info: inspect.Type) -> list[str]:
    return [field.encode_name for field in info.fields] if isinstance(info, inspect.StructType) else []


def _values(info: inspect.Type) -> list[str]:
    if isinstance(info, inspect.LiteralType):
        return [str(value) for value in info.values]
    return []


def _in_words(info: inspect.Type) -> str:
    """Describe what a type allows; "" for a type that occurs in no file."""
    match info:
        case inspect.LiteralType():
            return ", ".join(_values(info))
        case inspect.IntType() | inspect.FloatType():
            kind = "a whole number" if isinstance(info, inspect.IntType) else "a number"
            return f"{kind}, {bounds}" if (bounds := _bounds(info.ge, info.gt, info.le)) else kind
        case inspect.StrType():
            length = _bounds(info.min_length, None, info.max_length)
            return f"text of {length} characters" if length else "text"
        case inspect.BoolType():
            return "true or false"
        case inspect.ListType() | inspect.VarTupleType():
            return "a list"
        case inspect.TupleType():
            return f"a list of {len(info.item_types)}"
        case inspect.StructType() | inspect.DictType():
            return "a mapping"
        case inspect.UnionType():
            return " or ".join(dict.fromkeys(filter(None, map(_in_words, info.types))))
        case inspect.Metadata():
            return _in_words(info.type)
        case _:
            return ""


def _bounds(least: float | None, above: float | None, most: float | None) -> str:
    """Format bounds: `1..9`, `1 or more`, `above 0, up to 1`; "" without bounds."""
    if above is not None:
        return f"above {above:.15g}" + ("" if most is None else f", up to {most:.15g}")
    if least is None:
        return "" if most is None else f"up to {most:.15g}"
    return f"{least:.15g} or more" if most is None else f"{least:.15g}..{most:.15g}"
