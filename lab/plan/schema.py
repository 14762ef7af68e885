"""A JSON Schema of the scenario format for editors, made from the types.

    python run_lab.py schema > scenario.schema.json

The schema knows every key, word, bound and short form, and describes each with the first paragraph of its type's
docstring. `run_lab.py validate` finds the mistakes that only the whole file shows, such as a node that the cluster does
not have.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Mapping
from typing import Any, Final, TypeAlias

from msgspec import NODEFAULT, Struct, inspect, structs

from lab.plan.expectation import RUN_EXPECTATIONS, RunExpectation
from lab.plan.scenario import Cluster, Scenario
from lab.steps import Step, steps_by_word
from lab.steps.expect import MOMENT_EXPECTATIONS, Expectation, MomentExpectation
from lab.steps.wait import UNTILS, Until
from lab.steps.writing import BESIDE, field_of, fields_of
from lab.words import DURATION_ALLOWED, EVENTS, FRAME_TYPES, Duration, Title, encode_word
from nodeproc.config import Limits

Schema: TypeAlias = dict[str, Any]

DURATION: Final[Schema] = {
    "type": "string",
    "pattern": r"^[0-9]+(\.[0-9]+)?(ms|s|m)$",
    "description": DURATION_ALLOWED,
}
_MOMENT: Final[Schema] = {"$ref": "#/definitions/moment"}
_SPECIAL: Final[dict[Any, Schema]] = {
    tuple[Step, ...]: {"type": "array", "minItems": 1, "items": {"$ref": "#/definitions/step"}},
    Until: {"$ref": "#/definitions/until"},
    tuple[MomentExpectation, ...]: {"anyOf": [_MOMENT, {"type": "array", "minItems": 1, "items": _MOMENT}]},
    tuple[RunExpectation, ...]: {"type": "array", "items": {"$ref": "#/definitions/expectation"}},
}
"""Annotation -> its schema, if msgspec cannot describe it."""


def schema() -> Schema:
    """Return the whole schema, draft 07."""
    top, known = _struct(Scenario), steps_by_word()
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "chat lab scenario",
        **top,
        "definitions": {
            "duration": DURATION,
            "limits": _struct(Limits),
            "step": _one_of_words(
                {word: _step(kind) for word, kind in known.items()}, beside={key: _of(Title) for key in BESIDE}
            ),
            "until": _until(),
            "moment": _one_of_words({word: _shortened(kind) for word, kind in MOMENT_EXPECTATIONS.items()}),
            "expectation": _one_of_words({word: _shortened(kind) for word, kind in RUN_EXPECTATIONS.items()}),
        },
    }


def _one_of_words(words: Mapping[str, Schema], beside: Mapping[str, Schema] | None = None) -> Schema:
    """Return the schema of a mapping with exactly one of these keys."""
    return {
        "type": "object",
        "properties": {**words, **(beside or {})},
        "additionalProperties": False,
        "oneOf": [{"required": [word]} for word in words],
    }


def _step(kind: type[Step]) -> Schema:
    described = {"description": _summary(kind)}
    if kind.only:
        return described | _field(kind, field_of(kind, kind.only))
    if kind.single is not None:
        several, one = _struct(kind, without=BESIDE), _struct(kind.single)
        shared = {key: value for key, value in several["properties"].items() if key != kind.short}
        single = one | {"properties": one["properties"] | shared}
        return described | {"anyOf": [several["properties"][kind.short], several, single]}
    return _shortened(kind)


def _shortened(kind: type[Step] | type[Expectation]) -> Schema:
    """Return the schema of a mapping of the fields, or of the one value that may stand alone."""
    full = _struct(kind, without=BESIDE)
    if not kind.short or any(field.required and field.name != kind.short for field in fields_of(kind)):
        return full
    return {"description": full.pop("description"), "anyOf": [_field(kind, field_of(kind, kind.short)), full]}


def _until() -> Schema:
    """Return the schema of a condition: a word, or a mapping that names it."""
    forms: list[Schema] = []
    alone = []
    for word, kind in UNTILS.items():
        full = _struct(kind)
        full["properties"] = {"for": {"const": word}, **full["properties"]}
        full["required"] = ["for", *full.get("required", ())]
        forms.append(full)
        if not any(field.required for field in structs.fields(kind)):
            alone.append(word)
    return {"anyOf": [{"enum": alone}, *forms]}


def _struct(kind: type[Struct], without: Iterable[str] = ()) -> Schema:
    fields = [field for field in structs.fields(kind) if field.name not in without]
    made: Schema = {
        "description": _summary(kind),
        "type": "object",
        "properties": {field.encode_name: _field(kind, field) for field in fields},
        "additionalProperties": False,
    }
    if required := [field.encode_name for field in fields if field.required]:
        made["required"] = required
    return made


def _field(kind: type[Struct], field: structs.FieldInfo) -> Schema:
    if kind is Cluster and field.name == "limits":
        return {"$ref": "#/definitions/limits"}
    for special, made in _SPECIAL.items():  # Not every annotation can be hashed.
        if field.type == special:
            return made
    if field.name == "event":
        return {"enum": sorted(EVENTS)}
    if field.name == "frames":
        return {"type": "array", "items": {"enum": list(FRAME_TYPES)}}
    made = _of(field.type)
    default = field.default
    if default is not NODEFAULT and default is not None and default != "":
        plain = encode_word(default) if isinstance(default, Duration) else default
        made = made | {"default": plain} if isinstance(plain, str | int | float) else made
    return made


def _of(kind: Any) -> Schema:
    """Return the schema of an annotation."""
    return _of_type(inspect.type_info(kind))


def _of_type(info: inspect.Type) -> Schema:
    match info:
        case inspect.Metadata():
            return _of_type(info.type)
        case inspect.IntType():
            return _bounded("integer", minimum=info.ge, exclusiveMinimum=info.gt, maximum=info.le)
        case inspect.FloatType():
            return _bounded("number", minimum=info.ge, exclusiveMinimum=info.gt, maximum=info.le)
        case inspect.StrType():
            return _bounded("string", minLength=info.min_length, maxLength=info.max_length)
        case inspect.BoolType():
            return {"type": "boolean"}
        case inspect.NoneType():
            return {"type": "null"}
        case inspect.LiteralType():
            return {"enum": list(info.values)}
        case inspect.VarTupleType() | inspect.ListType():
            return {"type": "array", "items": _of_type(info.item_type)}
        case inspect.TupleType():
            size = len(info.item_types)
            return {"type": "array", "items": [*map(_of_type, info.item_types)], "minItems": size, "maxItems": size}
        case inspect.DictType():
            return {"type": "object", "additionalProperties": _of_type(info.value_type)}
        case inspect.UnionType():
            return {"anyOf": [_of_type(each) for each in info.types]}
        case inspect.StructType():
            return _struct(info.cls)
        case inspect.CustomType() if info.cls is Duration:
            return {"$ref": "#/definitions/duration"}
        case _:
            raise AssertionError(info)


def _bounded(kind: str, **bounds: float | None) -> Schema:
    return {"type": kind, **{name: bound for name, bound in bounds.items() if bound is not None}}


def _summary(kind: type[Struct] | type[Until]) -> str:
    """Return the first paragraph of a type's docstring."""
    return " ".join((kind.__doc__ or "").partition("\n\n")[0].split())


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = "An editor uses it with the first line `# yaml-language-server: $schema=scenario.schema.json`."


def main(options: argparse.Namespace) -> int:
    """Print the schema; return the exit code."""
    print(json.dumps(schema(), indent=1))
    return 0
