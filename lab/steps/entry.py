"""YAML -> steps and expectations, with errors that name file, line, column, what was found and what is allowed.

A step or expectation is a mapping of one key, its word; the value is a mapping of its fields or, for short, the one
field that `short` names. An Entry reads such a value and checks node ids, targets, events and durations. The class of
the step checks the rest.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn, TypeVar, cast

from msgspec import Struct, structs

from lab.words import (
    EVENT_LEVELS,
    EVENTS,
    LARGEST_PAYLOAD_BYTES,
    TARGET_WORDS,
    Duration,
    LinkEnd,
    Target,
    Title,
    decode_word,
    is_period,
)
from nodeproc.core import events
from nodeproc.core.messages import NodeId
from nodeproc.yamlfile import Document, Place, show_value

if TYPE_CHECKING:
    from lab.steps.step import Step

_S = TypeVar("_S", bound=Struct)
_T = TypeVar("_T")


class Setting(NamedTuple):
    """What the values of a scenario file may refer to.

    steps: word -> step.
    ids: the cluster's nodes.
    log_level: of the cluster; events below it are not reported.
    foreign: the nodes are a program that `cluster.command` starts: its frames and its disk are not known.
    """

    steps: Mapping[str, type[Step]]
    ids: tuple[NodeId, ...]
    log_level: events.Level
    foreign: bool = False


class Entry:
    """One value of a scenario file, with its place there.

    Every method that checks or reads raises ConfigError, with the place in the file, for what is not allowed.
    """

    def __init__(self, document: Document, setting: Setting, place: Place = ()) -> None:
        self._document, self._place, self.setting = document, place, setting

    def at(self, *parts: str | int) -> Entry:
        """The entry further inside, which may not exist."""
        return Entry(self._document, self.setting, (*self._place, *parts))

    @property
    def value(self) -> Any:
        """The plain value."""
        return self._document.value(self._place)

    def of(self, field: str) -> Entry:
        """The entry of a field: in this mapping, or this plain value, which stands for the field."""
        return self.at(field) if isinstance(self.value, dict) else self

    # ---- errors ----------------------------------------------------------------------------------

    def fail(self, message: str) -> NoReturn:
        raise self._document.error(self._place, message)

    def fail_at_key(self, message: str) -> NoReturn:
        """As fail(), pointing at the key instead of its value."""
        raise self._document.error(self._place, message, at_key=True)

    def wrong(self, allowed: str, names: Sequence[str] = ()) -> NoReturn:
        """Fail with what was found and what is allowed; names: the words that may have been meant."""
        raise self._document.wrong(self._place, allowed, names)

    def unknown_key(self, allowed: Sequence[str], what: str = "unknown key") -> NoReturn:
        raise self._document.unknown_key(self._place, allowed, what)

    # ---- steps and other structs -----------------------------------------------------------------

    def steps(self) -> tuple[Step, ...]:
        """A list of steps."""
        return tuple(each._step() for each in self.list_of("steps"))

    def inner_steps(self, allowed: Sequence[type[Step]]) -> tuple[Step, ...]:
        """The steps inside of another: at least one, and only of these kinds."""
        steps = self.steps()
        if not steps:
            self.wrong("at least one step")
        for index, step in enumerate(steps):
            if not isinstance(step, tuple(allowed)):
                words = ", ".join(each.word for each in allowed)
                self.at(index, step.word).fail_at_key(f"is nothing for here; allowed: {words}")
        return steps

    def _step(self) -> Step:
        word = self.word(self.setting.steps, "step", beside=("name",))
        step = self.setting.steps[word].read(self.at(word))
        if "name" in self.value:
            name = self.at("name").convert(Title)
            check_title(self._document, (*self._place, "name"), name)
            step = structs.replace(step, name=name)
        return step

    def struct(self, kind: type[_S], short: str) -> _S:
        """A struct, or the one field of it that `short` names."""
        value = self.value
        if isinstance(value, dict):
            for field in structs.fields(kind):
                if field.encode_name in value:
                    self.at(field.encode_name)._check_field(field)
            read = self.convert(kind)
        else:
            read = self._short(kind, short)
        check_periods(self._document, self._place, read)
        return read

    def _short(self, kind: type[_S], short: str) -> _S:
        if not short:
            allowed = ", ".join(field.encode_name for field in structs.fields(kind) if field.name != "name")
            self.fail(f"found {show_value(self.value)}, allowed a mapping with the keys {allowed}")
        field = next(each for each in structs.fields(kind) if each.name == short)
        self._check_field(field)
        value = self.convert(field.type)
        needed = [each.encode_name for each in structs.fields(kind) if each.required and each.name != short]
        if needed:
            self.fail(f"also needs {', '.join(needed)}: {{{field.encode_name}: …, {needed[0]}: …}}")
        return kind(**{short: value})

    def _check_field(self, field: structs.FieldInfo) -> None:
        """Check a plain value beyond the type of its field."""
        if field.type == Target:
            self.check_target()
        elif field.type == LinkEnd and self.value != "clients":
            self.check_target("clients, ")

    # ---- mappings, lists and single values -------------------------------------------------------

    def word(self, known: Mapping[str, object], what: str, beside: tuple[str, ...] = ()) -> str:
        """The one key of a mapping, which must be one of the known words."""
        value = self.value
        if isinstance(value, str) and value in known:
            self.fail(f"{value} needs a value: `{value}: …`")
        if not isinstance(value, dict):
            self.wrong(f"a mapping with one of {', '.join(known)}", tuple(known))
        words = [key for key in value if key not in beside]
        for word in words:
            if word not in known:
                self.at(word).unknown_key(tuple(known), f"no such {what}")
        if len(words) != 1:
            found = " and ".join(words) or "none"
            self.fail(f"found {found}, allowed exactly one of {', '.join(known)}")
        return str(words[0])

    def mapping(self, needed: tuple[str, ...] = (), allowed: tuple[str, ...] | None = None) -> dict[str, Any]:
        """A mapping that has the needed keys, and no others than the allowed ones; None: any."""
        value = self.value
        if not isinstance(value, dict):
            self.wrong("a mapping")
        for key in value:
            if allowed is not None and key not in allowed:
                self.at(key).unknown_key(allowed)
        for key in needed:
            if key not in value:
                self.fail(f"the key {key} is missing")
        return cast(dict[str, Any], value)

    def list_of(self, what: str) -> list[Entry]:
        """The entries of a list."""
        value = self.value
        if not isinstance(value, list):
            self.wrong(f"a list of {what}")
        return [self.at(index) for index in range(len(value))]

    def convert(self, wanted: type[_T]) -> _T:
        """The value as this type."""
        return self._document.convert_at(self._place, wanted, dec_hook=decode_word)

    def period(self) -> Duration:
        """A duration above 0."""
        found = self.convert(Duration)
        _check_period(self._document, self._place, found)
        return found

    # ---- checks ----------------------------------------------------------------------------------

    def check_target(self, beside: str = "") -> None:
        """Refuse words and ids that are no target in this cluster. beside: what else is allowed there."""
        value = self.value
        if isinstance(value, list):
            if not value:
                self.wrong(beside + self._allowed_targets())
            for index, part in enumerate(value):
                self.at(index)._check_target_part("")
                if part in value[:index]:
                    self.at(index).fail(f"{part} stands here twice")
        else:
            self._check_target_part(beside)

    def _check_target_part(self, beside: str) -> None:
        value, ids = self.value, self.setting.ids
        known = value in TARGET_WORDS if isinstance(value, str) else type(value) is int and value in ids
        if not known:
            self.wrong(beside + self._allowed_targets(), TARGET_WORDS)

    def _allowed_targets(self) -> str:
        return f"{', '.join(TARGET_WORDS)}, {self.setting.ids[0]}..{self.setting.ids[-1]} or a list of these"

    def check_id(self, node: NodeId) -> None:
        """Refuse a node that the cluster does not have."""
        if node not in self.setting.ids:
            self.wrong(f"{self.setting.ids[0]}..{self.setting.ids[-1]}")

    def check_payload(self, text: str) -> None:
        """Refuse a message that no client sends."""
        if (size := len(text.encode())) > LARGEST_PAYLOAD_BYTES:
            self.fail(f"found {size} bytes in UTF-8, allowed {LARGEST_PAYLOAD_BYTES}")

    def check_event(self, event: str, where: Mapping[str, object]) -> None:
        """Refuse an event that does not exist, is not reported, or lacks a field that is asked for.

        Args:
            event: stands at the key `is`, or alone.
            where: stands at the key `where`.
        """
        named = self.of("is")
        if event not in EVENTS:
            named.wrong(", ".join(sorted(EVENTS)), sorted(EVENTS))
        level, fields = EVENTS[event].level, EVENTS[event].__struct_fields__
        if EVENT_LEVELS.index(level) < EVENT_LEVELS.index(self.setting.log_level):
            named.fail(f"{event} is reported at {level}, below this cluster's log_level {self.setting.log_level}")
        for field in where:
            if field not in fields:
                self.at("where", field).unknown_key(fields, f"{event} has no such field")


def check_periods(document: Document, place: Place, value: Struct) -> None:
    """Refuse a duration of 0 where a Period is wanted.

    Args:
        place: where the struct stands, or the one field that stands for it.
    """
    for field in structs.fields(value):
        found = getattr(value, field.name)
        if isinstance(found, Struct):
            check_periods(document, (*place, field.encode_name), found)
        elif isinstance(found, Duration) and found <= 0 and is_period(field.type):
            short = not isinstance(document.value(place), dict)
            _check_period(document, place if short else (*place, field.encode_name), found)


def _check_period(document: Document, place: Place, found: Duration) -> None:
    if found <= 0:
        raise document.error(place, f"found {found}, allowed a duration above 0")


def check_title(document: Document, place: Place, text: str) -> None:
    """Refuse what would break a line or steer a terminal."""
    if not text.isprintable():
        bad = next(each for each in text if not each.isprintable())
        raise document.error(place, f"found the character {ascii(bad)[1:-1]}, allowed characters that can be printed")
