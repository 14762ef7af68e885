"""Steps and expectations as YAML values: in full for scenario.yml, in brief for people and one-line texts."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import msgspec
from msgspec import NODEFAULT, Struct, structs

from lab.words import encode_word

BESIDE = ("name", "say")
"""The fields of a step that stand beside its word; the others stand inside its value."""


@cache
def fields_of(kind: type[Struct]) -> tuple[structs.FieldInfo, ...]:
    """Return the fields of a struct, without those of BESIDE. Cached, because msgspec reads the annotations anew."""
    return tuple(each for each in structs.fields(kind) if each.name not in BESIDE)


def field_of(kind: type[Struct], name: str) -> structs.FieldInfo:
    """Return the field of this name."""
    return next(each for each in fields_of(kind) if each.name == name)


def plain(value: Struct) -> dict[str, Any]:
    """Return a struct's fields with every default written out."""
    return {each.encode_name: _written(getattr(value, each.name), False) for each in fields_of(type(value))}


def brief(value: Struct, short: str = "") -> Any:
    """Return a struct's fields without those that have their default.

    Args:
        short: name of a field whose value stands alone if no other field is left; "": none.
    """
    left = {}
    for each in fields_of(type(value)):
        default = each.default if each.default_factory is NODEFAULT else each.default_factory()
        if each.required or getattr(value, each.name) != default:
            left[each.encode_name] = _written(getattr(value, each.name), True)
    if short and left.keys() <= {field_of(type(value), short).encode_name}:
        return _written(getattr(value, short), True)
    return left


def _written(value: Any, in_brief: bool) -> Any:
    """Return the value of a field as plain YAML."""
    if isinstance(value, tuple):
        return [_written(each, in_brief) for each in value]
    if hasattr(value, "as_yaml"):
        return value.as_yaml(in_brief=in_brief)
    return msgspec.to_builtins(value, enc_hook=encode_word)


def flow(value: Any) -> str:
    """Return a value in YAML's flow form; for texts only, since it quotes nothing."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {flow(each)}" for key, each in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(flow(each) for each in value) + "]"
    text = str(value).lower() if isinstance(value, bool) else str(value)
    return text if text.isprintable() else json.dumps(text)
