"""Steps and expectations -> YAML values, in full for scenario.yml and short for people."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import msgspec
from msgspec import NODEFAULT, Struct, structs

from lab.words import encode_word


def plain(value: Struct) -> dict[str, Any]:
    """A struct without steps or expectations in it as plain YAML values, every default written out; no `name`."""
    values: dict[str, Any] = msgspec.to_builtins(value, enc_hook=encode_word)
    values.pop("name", None)
    return values


def brief(value: Struct, short: str = "", keep: str = "") -> Any:
    """A struct as people would write it, defaults left out.

    Args:
        short: name of a field whose value stands alone where nothing else is left; "": none.
        keep: a key that stays in any case, and whose value stands alone where nothing else is left; "": none.
    """
    inside, fields = plain(value), _fields(type(value))
    left = {keep: inside[keep]} if keep else {}
    for field in fields:
        if field.name == "name":
            continue
        default = field.default if field.default_factory is NODEFAULT else field.default_factory()
        if field.required or getattr(value, field.name) != default:
            left[field.encode_name] = inside[field.encode_name]
    alone = next((each.encode_name for each in fields if each.name == short), keep)
    if short and not left:
        return inside[alone]
    return left[alone] if list(left) == [alone] else left


def encoded(value: Struct, name: str) -> str:
    """The key in YAML of a field."""
    return next(each.encode_name for each in _fields(type(value)) if each.name == name)


@cache
def _fields(kind: type[Struct]) -> tuple[structs.FieldInfo, ...]:
    """msgspec works them out from the annotations each time anew."""
    return structs.fields(kind)


def flow(value: Any) -> str:
    """YAML's flow form, for reading."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {flow(each)}" for key, each in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(flow(each) for each in value) + "]"
    text = str(value).lower() if isinstance(value, bool) else str(value)
    return text if text.isprintable() else json.dumps(text)
