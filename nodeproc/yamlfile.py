"""YAML files whose errors name file, line, column and key.

    configs/node1.yml:7:9: peers[0].port: found "abc", allowed int >= 1
        7 |   - {id: 2, port: abc}

parse() reads the text, Document.convert() makes a msgspec Struct of it, Document.error() places a complaint that
only the caller can make ("no such node"). Plain YAML 1.2 scalars: `on`, `yes` and dates are text; a key may stand
once. Structs that refuse unknown keys say so themselves (forbid_unknown_fields=True).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import msgspec
import yaml
from msgspec import inspect

from nodeproc.errors import ConfigError

Place: TypeAlias = tuple[str | int, ...]
"""The way to a value: ("peers", 0, "port")."""

T = TypeVar("T")
DecHook: TypeAlias = Callable[[type, Any], Any]

_SCALARS: tuple[tuple[str, str, str], ...] = (
    ("null", r"~|null|Null|NULL|", "~nN\0"),
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", r"[-+]?[0-9][0-9_]*|0x[0-9a-fA-F]+", "-+0123456789"),
    (
        "float",
        r"[-+]?(\.[0-9]+|[0-9][0-9_]*(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf)|\.(nan|NaN)",
        "-+.0123456789",
    ),
)


class _Loader(yaml.SafeLoader):
    """SafeLoader with the scalars of YAML 1.2."""

    yaml_implicit_resolvers: dict[Any, Any] = {}  # noqa: RUF012 (PyYAML's own table, replaced)


for _tag, _pattern, _starts in _SCALARS:
    _Loader.add_implicit_resolver(
        f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), ["" if c == "\0" else c for c in _starts]
    )


def load_as(path: Path | str, wanted: type[T], *, text: str | None = None, dec_hook: DecHook | None = None) -> T:
    """Read a file as one Struct.

    Args:
        text: the file's content where the caller has it already.

    Raises:
        ConfigError: unreadable, not YAML, or not what the type allows.
    """
    return parse(path, text=text).convert(wanted, dec_hook=dec_hook)


def parse(path: Path | str, *, text: str | None = None) -> Document:
    """Read a file as plain values that remember where they stand.

    Raises:
        ConfigError: unreadable or not YAML.
    """
    if text is None:
        try:
            text = Path(path).read_text(encoding="utf-8")
        except OSError as error:
            raise ConfigError(f"{path}: {error.strerror}") from None
        except UnicodeDecodeError as error:
            raise ConfigError(f"{path}: not UTF-8 at byte {error.start}") from None
    loader: Any = None
    try:
        loader = _Loader(text)
        root = loader.get_single_node()
        if root is None:
            raise ConfigError(f"{path}: empty, a mapping is needed")
        return Document(path, text, root, _Values(path, text, loader).of(root))
    except yaml.MarkedYAMLError as error:
        raise _at(path, text, error.problem_mark or error.context_mark, error.problem or "not YAML") from None
    except RecursionError:
        raise ConfigError(f"{path}: nested too deeply") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not YAML: {error}".replace("\n", " ")) from None
    finally:
        if loader is not None:
            loader.dispose()


def show_place(place: Place) -> str:
    """("peers", 0, "port") as `peers[0].port`."""
    shown = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in place)
    return shown.removeprefix(".")


class Document:
    """One parsed file: `data` holds its values as dicts, lists, str, int, float, bool and None."""

    def __init__(self, path: Path | str, text: str, root: yaml.Node, data: Any) -> None:
        self.path, self.text, self.data = path, text, data
        self._root = root

    def error(self, place: Place, message: str, *, at_key: bool = False) -> ConfigError:
        """A complaint about the value at `place`, to be raised by the caller.

        Args:
            place: as far as it exists in the file; the deepest part that does is pointed at.
            at_key: point at the key and not at its value.
        """
        shown = show_place(place)
        return _at(self.path, self.text, self._mark(place, at_key), f"{shown}: {message}" if shown else message)

    def convert(self, wanted: type[T], *, dec_hook: DecHook | None = None) -> T:
        """The whole document as one Struct.

        Raises:
            ConfigError: a missing or unknown key, or a value that the type doesn't allow.
        """
        return self.convert_at((), wanted, dec_hook=dec_hook)

    def convert_at(self, place: Place, wanted: type[T], *, dec_hook: DecHook | None = None) -> T:
        """The value at `place`, which must exist, as one Struct. Raises as convert."""
        data = self.value(place)
        try:
            return msgspec.convert(data, wanted, dec_hook=dec_hook, str_keys=True)
        except msgspec.ValidationError as error:
            raise self._explained(str(error), wanted, place) from None

    def value(self, place: Place) -> Any:
        """The plain value at a place that exists."""
        data = self.data
        for part in place:
            data = data[part]
        return data

    def _mark(self, place: Place, at_key: bool) -> yaml.Mark | None:
        """Where the deepest existing part of `place` starts."""
        node, mark = self._root, self._root.start_mark
        for depth, part in enumerate(place):
            if isinstance(node, yaml.MappingNode):
                pairs = [(key, value) for key, value in node.value if key.value == part]
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

    def _explained(self, problem: str, wanted: Any, base: Place) -> ConfigError:
        """msgspec's complaint in the words of this file."""
        text, _, where = problem.partition(" - at `")
        inside = _place_of(where.rstrip("`"))
        place = base + inside
        allowed = _type_at(inspect.type_info(wanted), inside, self.value(base))
        if match := re.fullmatch(r"Object contains unknown field `(.*)`", text):
            name, names = match[1], _keys(allowed)
            near = get_close_matches(name, names, 1)
            hint = f" (did you mean {near[0]}?)" if near else ""
            return self.error((*place, name), f"unknown key{hint}; allowed: {', '.join(names)}", at_key=True)
        if match := re.fullmatch(r"Object missing required field `(.*)`", text):
            return self.error(place, f"the key {match[1]} is missing")
        found = _shown(self._value_or_none(place))
        if match := re.fullmatch(r"Expected `(.*?)`, got `.*`|Expected (.*)", text):
            return self.error(place, f"found {found}, allowed {_in_yaml_words(match[1] or match[2])}")
        if re.match(r"Invalid (enum )?value", text) and (values := _values(allowed)):
            return self.error(place, f"found {found}, allowed {', '.join(values)}")
        return self.error(place, text)

    def _value_or_none(self, place: Place) -> Any:
        try:
            return self.value(place)
        except (KeyError, IndexError, TypeError):
            return None


class _Values:
    """Turns YAML nodes into plain values, refusing what would be lost silently."""

    def __init__(self, path: Path | str, text: str, loader: Any) -> None:
        self._path, self._text, self._loader = path, text, loader
        self._open: set[int] = set()

    def of(self, node: yaml.Node) -> Any:
        if id(node) in self._open:
            raise _at(self._path, self._text, node.start_mark, "an alias that contains itself")
        self._open.add(id(node))
        try:
            if isinstance(node, yaml.MappingNode):
                return self._mapping(node)
            if isinstance(node, yaml.SequenceNode):
                return [self.of(item) for item in node.value]
            return self._loader.construct_object(node)
        except (
            ValueError,
            KeyError,
            AttributeError,
            RecursionError,
        ):  # PyYAML's constructors, on values like `!!int x`
            found = f"found {node.value[:80]!r}" if isinstance(node, yaml.ScalarNode) else "nested too deeply"
            raise _at(self._path, self._text, node.start_mark, f"{found}, not a value of its kind") from None
        finally:
            self._open.discard(id(node))

    def _mapping(self, node: yaml.MappingNode) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise _at(self._path, self._text, key.start_mark, "a key must be plain text")
            if key.value in values:
                raise _at(self._path, self._text, key.start_mark, f"the key {key.value} stands here twice")
            values[key.value] = self.of(value)
        return values


def _at(path: Path | str, text: str, mark: yaml.Mark | None, message: str) -> ConfigError:
    """A ConfigError of two lines: the complaint with its position, and the source line."""
    if mark is None:
        return ConfigError(f"{path}: {message}")
    lines = text.splitlines()
    source = lines[mark.line].rstrip() if mark.line < len(lines) else ""
    shown = f"\n    {mark.line + 1} | {source}" if source.strip() else ""
    return ConfigError(f"{path}:{mark.line + 1}:{mark.column + 1}: {message}{shown}")


def _place_of(where: str) -> Place:
    """msgspec's `$.peers[0].port` as a place; it ends at `[...]`, which names no one entry."""
    place: list[str | int] = []
    for name, index in re.findall(r"\.([^.\[\]]+)|\[([^\]]*)\]", where.removeprefix("key in ")):
        if index == "...":
            break
        place.append(name or int(index))
    return tuple(place)


def _in_yaml_words(allowed: str) -> str:
    words = allowed.replace("`", "").replace("object", "a mapping").replace("array", "a list")
    return words.replace("str", "text").replace("bool", "true or false")


def _shown(value: Any) -> str:
    """A value as the user may recognise it, shortened."""
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list):
        return "a list"
    shown = json.dumps(value, ensure_ascii=False, default=str)
    return shown if len(shown) <= 60 else shown[:57] + "..."


def _type_at(info: inspect.Type, place: Place, data: Any) -> inspect.Type:
    """The type that is wanted at a place, as far as it can be told."""
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
    """The member of a union that the data is most like."""
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
    if isinstance(info, inspect.EnumType):
        return [str(member.value) for member in info.cls]
    return []
