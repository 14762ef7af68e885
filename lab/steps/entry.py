"""YAML -> steps and expectations, with errors that name file, line, column, what was found and what is allowed.

A step or expectation is a mapping of one key, its word; the value is a mapping of its fields or, for short, the value
of the one field that `short` names. An Entry is a value of the file; it reads each field by the field's type and checks
node ids, targets, events and durations. The class of the step checks the rest.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, TypeVar, get_args, get_origin

from msgspec import Struct, structs

from lab.steps.value import Value
from lab.steps.writing import BESIDE, brief, field_of, fields_of, flow, plain
from lab.words import (
    EVENT_LEVELS,
    EVENTS,
    LARGEST_PAYLOAD_BYTES,
    TARGET_WORDS,
    Duration,
    LinkEnd,
    Target,
    Title,
    is_period,
)
from nodeproc.core import events
from nodeproc.core.messages import NodeId
from nodeproc.yamlfile import Document, Place, show_value

if TYPE_CHECKING:
    from lab.steps.step import Step

_S = TypeVar("_S", bound=Struct)
_T = TypeVar("_T")


class Worded(Struct, frozen=True, forbid_unknown_fields=True):
    """Base of everything that has a word of its own in YAML: steps and expectations."""

    word: ClassVar[str]
    """The key in YAML."""
    short: ClassVar[str] = ""
    """The field that a plain value stands for; "": none."""

    def check(self, entry: Entry) -> None:
        """Refuse fields that contradict each other or the cluster; the types refuse the rest. Raises ConfigError."""

    def inside(self, *, in_brief: bool) -> Any:
        """Return the value of the key: with every default written out, or, in brief, without defaults."""
        return brief(self, self.short) if in_brief else plain(self)

    def as_yaml(self, *, in_brief: bool) -> dict[str, Any]:
        """Return the mapping {word: value} that stands for it in a list."""
        return {self.word: self.inside(in_brief=in_brief)}

    def shown(self) -> Any:
        """Return the value of the key, short enough for one line."""
        return self.inside(in_brief=True)

    @property
    def words(self) -> str:
        """One line of YAML, as in a scenario."""
        return f"{self.word}: {flow(self.shown())}"

    def show(self) -> str:
        """Return a human-readable line."""
        return self.words


class Setting(NamedTuple):
    """What the values of a scenario file may refer to.

    steps: word -> step.
    ids: the cluster's nodes.
    log_level: of the cluster; events below it are not reported.
    foreign: `cluster.command` starts the nodes; the lab does not know the frames and disks of such a program.
    network: what obeys rules of links: the lab's proxy, or the kernel's packet filter.
    supervised: the nodes run under supervisors.
    newcomers: the nodes that are no founders.
    """

    steps: Mapping[str, type[Step]]
    ids: tuple[NodeId, ...]
    log_level: events.Level
    foreign: bool = False
    network: Literal["proxy", "kernel"] = "proxy"
    supervised: bool = False
    newcomers: tuple[NodeId, ...] = ()


class Entry(Value):
    """One value of a scenario file. Every method raises ConfigError, with its place, if something is not allowed."""

    def __init__(self, document: Document, setting: Setting, place: Place = ()) -> None:
        super().__init__(document, place)
        self.setting = setting

    # ---- steps and other structs -----------------------------------------------------------------

    def steps(self) -> tuple[Step, ...]:
        """Read a list of steps."""
        return tuple(each.step() for each in self.list_of("steps"))

    def step(self) -> Step:
        """Read one step."""
        word = self.word(self.setting.steps, "step", beside=BESIDE)
        step = self.setting.steps[word].read(self.at(word))
        for key in BESIDE:
            if key in self.value:
                text = self.at(key).convert(Title)
                self.at(key).check_title(text)
                step = structs.replace(step, **{key: text})
        return step

    def struct(self, kind: type[_S], short: str = "") -> _S:
        """Read a struct from a mapping of its fields, or from a plain value, which stands for the field `short`."""
        if isinstance(self.value, dict):
            return kind(**self.fields(fields_of(kind)))
        if not short:
            allowed = ", ".join(each.encode_name for each in fields_of(kind))
            self.fail(f"found {show_value(self.value)}, allowed a mapping with the keys {allowed}")
        field = field_of(kind, short)
        value = self.field(field.type)
        self.check_complete(kind, short, f"{field.encode_name}: …")
        return kind(**{short: value})

    def check_complete(self, kind: type[Struct], given: str, begins: str) -> None:
        """Refuse a plain value that stands for a struct if other fields than this one are required.

        Args:
            begins: the mapping that is needed begins so.
        """
        needed = [each.encode_name for each in fields_of(kind) if each.required and each.name != given]
        if needed:
            self.fail(f"also needs {', '.join(needed)}: {{{begins}, {needed[0]}: …}}")

    def fields(self, fields: Sequence[structs.FieldInfo], beside: tuple[str, ...] = ()) -> dict[str, Any]:
        """Read a mapping of these fields.

        Args:
            beside: other keys that the mapping may have.

        Returns:
            name of each field that stands there -> its value.
        """
        needed = tuple(each.encode_name for each in fields if each.required)
        value = self.mapping(needed, tuple(each.encode_name for each in fields), beside)
        return {each.name: self.at(each.encode_name).field(each.type) for each in fields if each.encode_name in value}

    def field(self, kind: Any) -> Any:
        """Read the value of a field of this type."""
        of = get_args(kind)[0] if get_origin(kind) is tuple else kind
        if (read_field := getattr(of, "read_field", None)) is not None:
            return read_field(self)
        if kind == Target:
            self.check_target()
        elif kind == LinkEnd and self.value != "clients":
            self.check_target("clients, ")
        value = self.convert(kind)
        self._check_period(kind, value)
        return value

    # ---- checks ----------------------------------------------------------------------------------

    def check_inner(self, steps: Sequence[Step], allowed: Sequence[type[Step]]) -> None:
        """Refuse an empty list of steps, and steps of other kinds than the allowed ones."""
        if not steps:
            self.wrong("at least one step")
        for index, step in enumerate(steps):
            if not isinstance(step, tuple(allowed)):
                words = ", ".join(each.word for each in allowed)
                self.at(index, step.word).fail(f"is not allowed here; allowed: {words}", at_key=True)

    def check_periods(self, value: Struct) -> None:
        """Refuse a duration of 0 where a Period is wanted. value: this entry as a struct."""
        for each in fields_of(type(value)):
            self.at(each.encode_name)._check_period(each.type, getattr(value, each.name))

    def _check_period(self, kind: Any, value: object) -> None:
        if isinstance(value, Struct):
            self.check_periods(value)
        elif isinstance(value, Duration) and value <= 0 and is_period(kind):
            self.fail(f"found {value}, allowed a duration above 0")

    def check_title(self, text: str) -> None:
        """Refuse characters that would break a line or control a terminal."""
        if not text.isprintable():
            bad = next(each for each in text if not each.isprintable())
            self.fail(f"found the character {ascii(bad)[1:-1]}, allowed characters that can be printed")

    def check_target(self, beside: str = "") -> None:
        """Refuse words and ids that are no target in this cluster. beside: other words that are allowed there."""
        value = self.value
        if isinstance(value, list):
            if not value:
                self.wrong(beside + self._allowed_targets())
            for index, part in enumerate(value):
                self.at(index)._check_target_part("")
                self.at(index).check_once(part, value[:index])
        else:
            self._check_target_part(beside)

    def _check_target_part(self, beside: str) -> None:
        value, ids = self.value, self.setting.ids
        known = value in TARGET_WORDS if isinstance(value, str) else type(value) is int and value in ids
        if not known:
            self.wrong(beside + self._allowed_targets(), TARGET_WORDS)

    def _allowed_targets(self) -> str:
        return f"{', '.join(TARGET_WORDS)}, {self._ids()} or a list of these"

    def _ids(self) -> str:
        return f"{self.setting.ids[0]}..{self.setting.ids[-1]}"

    def check_once(self, part: object, before: Sequence[object]) -> None:
        """Refuse a part of a list that stands there before as well."""
        if part in before:
            self.fail(f"{part} stands here twice")

    def check_id(self, node: NodeId) -> None:
        """Refuse a node that the cluster does not have."""
        if node not in self.setting.ids:
            self.wrong(self._ids())

    def check_payload(self, text: str) -> None:
        """Refuse a message that is too long for any client."""
        if (size := len(text.encode())) > LARGEST_PAYLOAD_BYTES:
            self.fail(f"found {size} bytes in UTF-8, allowed {LARGEST_PAYLOAD_BYTES}")

    def check_event(self, event: str, where: Mapping[str, object]) -> None:
        """Refuse an event that does not exist, is not reported, or lacks a field that `where` asks for.

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
