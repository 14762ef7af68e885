"""Steps and expectations -> YAML values, in full for scenario.yml and short for people."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from typing import Any

import msgspec
from msgspec import NODEFAULT, Struct, structs

from lab.steps import Expect, Nemesis, Repeat, Send, Sender, Step, Wait, When
from lab.steps.expect import Expectation
from lab.words import encode_word


def plain_steps(steps: Sequence[Step]) -> list[dict[str, Any]]:
    """Steps as they stand in YAML, every default written out."""
    return [_plain_step(step) for step in steps]


def _plain_step(step: Step) -> dict[str, Any]:
    inside: Any
    if isinstance(step, Wait):
        inside = plain(step.until)
    elif isinstance(step, Expect):
        inside = plain_expectations(step.that)
    elif isinstance(step, Repeat):
        inside = {"times": step.times, "steps": plain_steps(step.steps)}
    elif isinstance(step, When):
        inside = {"so": _plain_trigger(step), "do": plain_steps(step.steps)}
    elif isinstance(step, Nemesis):
        inside = {"for": str(step.time), "every": str(step.every), "faults": plain_steps(step.faults)}
    else:
        inside = {key: value for key, value in plain(step).items() if key != "name"}
    return {step.word: inside, "name": step.name} if step.name else {step.word: inside}


def brief_steps(steps: Sequence[Step]) -> list[dict[str, Any]]:
    """Steps as people would write them in YAML, defaults left out."""
    return [_brief_step(step) for step in steps]


def _brief_step(step: Step) -> dict[str, Any]:
    inside: Any
    if isinstance(step, Expect):
        inside = brief_expectations(step.that)
    elif isinstance(step, Repeat):
        inside = {"times": step.times, "steps": brief_steps(step.steps)}
    elif isinstance(step, Nemesis):
        inside = {"for": str(step.time), "every": str(step.every), "faults": brief_steps(step.faults)}
    elif isinstance(step, Send):
        senders = [brief(sender) for sender in step.clients]
        outside = {key: value for key, value in brief(step).items() if key != "clients"}
        inside = {**senders[0], **outside} if len(senders) == 1 else {"clients": senders, **outside}
    else:
        inside = _shortened(step, _plain_step(step)[step.word])
    return {step.word: inside, "name": step.name} if step.name else {step.word: inside}


def brief_expectations(expectations: Sequence[Expectation]) -> list[dict[str, Any]]:
    """Expectations as people would write them, defaults left out."""
    return [{each.word: _without_defaults(each, plain(each), each.short)} for each in expectations]


def brief(value: Struct) -> dict[str, Any]:
    """A struct as plain YAML values, defaults left out."""
    values: dict[str, Any] = _without_defaults(value, plain(value), "")
    return values


def _plain_trigger(step: When) -> dict[str, Any]:
    return {key: value for key, value in plain(step.until).items() if key != "within"}


def plain_expectations(expectations: Sequence[Expectation]) -> list[dict[str, Any]]:
    """Expectations as they stand in YAML, every default written out."""
    return [{each.word: plain(each)} for each in expectations]


def plain(value: Struct) -> dict[str, Any]:
    """A struct without steps or expectations in it as plain YAML values."""
    values: dict[str, Any] = msgspec.to_builtins(value, enc_hook=encode_word)
    return values


def show_step(step: Step) -> str:
    """One line for people: the step's name, or the step as it could stand in a scenario, defaults left out."""
    if step.name:
        return step.name
    return f"{step.word}: {_flow(_shortened(step, _plain_step(step)[step.word]))}"


def show_expectation(expectation: Expectation) -> str:
    """One line for people: the expectation as it could stand in a scenario, defaults left out."""
    return f"{expectation.word}: {_flow(_without_defaults(expectation, plain(expectation), expectation.short))}"


def _shortened(step: Step, inside: Any) -> Any:
    if isinstance(step, Wait):
        return _without_defaults(step.until, inside, "", keep="for")
    if isinstance(step, Expect):
        return [show_expectation(each) for each in step.that]
    if isinstance(step, Repeat):
        return f"{step.times} times {len(step.steps)} steps"
    if isinstance(step, When):
        so = _without_defaults(step.until, plain(step.until), "", keep="for")
        return {"so": so, "do": [{each.word: _shortened(each, _plain_step(each)[each.word])} for each in step.steps]}
    if isinstance(step, Nemesis):
        return {key: inside[key] for key in ("for", "every")} | {"faults": f"{len(step.faults)} kinds"}
    if isinstance(step, Send):
        return " and ".join(_show_sender(each) for each in step.clients)
    return _without_defaults(step, inside, step.short)


def _show_sender(sender: Sender) -> str:
    count = sender.messages if isinstance(sender.messages, int) else len(sender.messages)
    via = "" if sender.via is None else f" via node {sender.via}"
    return f"{count} message{'s' if count != 1 else ''} of {'new ' if sender.fresh else ''}client {sender.client}{via}"


@cache
def _fields(kind: type[Struct]) -> tuple[structs.FieldInfo, ...]:
    """msgspec works them out from the annotations each time anew."""
    return structs.fields(kind)


def _without_defaults(value: Struct, inside: dict[str, Any], short: str, keep: str = "") -> Any:
    """Only what differs from the defaults; the short field's value alone where nothing else does."""
    left = {keep: inside[keep]} if keep else {}
    fields = _fields(type(value))
    for field in fields:
        if field.name == "name":
            continue
        default = field.default if field.default_factory is NODEFAULT else field.default_factory()
        if field.required or getattr(value, field.name) != default:
            left[field.encode_name] = inside[field.encode_name]
    if short and not left:
        return inside[next(each.encode_name for each in fields if each.name == short)]
    short_key = next((each.encode_name for each in fields if each.name == short), keep)
    return left[short_key] if list(left) == [short_key] else left


def _flow(value: Any) -> str:
    """YAML's flow form, for reading."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_flow(each)}" for key, each in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_flow(each) for each in value) + "]"
    text = str(value).lower() if isinstance(value, bool) else str(value)
    return text if text.isprintable() else json.dumps(text)
