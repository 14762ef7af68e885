"""YAML -> steps and expectations, with errors that name file, line, column, found and allowed.

A step or expectation is a mapping of one key, its word; the value is a mapping of its fields or, for short, the
one field that `short` names. Beyond the types, a Reader checks what a type can't say: that node ids, event names, event
fields and frame types exist, and that fields fit together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NoReturn, TypeVar, cast, get_args

from msgspec import Struct, structs

from lab.plan.expectation import LATENCY_SHARES, RUN_EXPECTATIONS, LatencyIs, Order, RunExpectation
from lab.steps import (
    STEPS,
    UNTILS,
    Chaos,
    Clock,
    Cut,
    Disk,
    Expect,
    Fault,
    Garbage,
    Link,
    Nemesis,
    Partition,
    PowerLoss,
    Repeat,
    Reset,
    Send,
    Sender,
    Step,
    Until,
    UntilAny,
    Wait,
    When,
    steps_by_word,
)
from lab.steps.chaos import SHORTEST_STINT_S
from lab.steps.expect import MOMENT_EXPECTATIONS, Expectation, LastSeq, LeaderIs, MomentExpectation
from lab.steps.link_fault import LinkFault
from lab.words import LARGEST_PAYLOAD_BYTES, TARGET_WORDS, Duration, LinkEnd, Target, Title, decode_word, is_period
from nodeproc.core import events, messages
from nodeproc.core.messages import NodeId
from nodeproc.yamlfile import Document, Place, show_value

_S = TypeVar("_S", bound=Struct)

EVENTS: dict[str, type[events.Event]] = {
    str(each.__struct_config__.tag): each
    for each in vars(events).values()
    if isinstance(each, type) and issubclass(each, events.Event) and each is not events.Event
}
"""Event name -> event."""

_LEVELS: tuple[str, ...] = get_args(events.Level)

FRAME_TYPES: tuple[str, ...] = tuple(str(each.__struct_config__.tag) for each in get_args(messages.PeerMessage))
"""What a frame between nodes can be."""

_PARTITION_NODES = {
    "isolate": 2,
    "halves": 2,
    "majority": 3,
    "minority": 3,
    "bridge": 3,
    "ring": 4,
    "random": 2,
}
"""Kind of partition -> with fewer nodes it cuts nothing."""
_LINK_RULES = ("reorder", "delay", "jitter", "loss", "duplicate", "corrupt", "bandwidth", "chunk", "refuse")
"""Fields of `link`, each of which does something."""
_NODE_LINKS_ONLY = ("reorder", "loss", "duplicate", "corrupt")
"""Those that TCP does to no connection that lives."""
TIMES = next(field.type for field in structs.fields(Repeat) if field.name == "times")


class Reader:
    """Reads the steps and expectations of one document.

    Args:
        ids: the cluster's nodes.
        log_level: the cluster's; events below it are not reported.
        foreign: the nodes are a program of somebody else's, of whose frames and disk nothing is known.
    """

    def __init__(
        self, document: Document, ids: Sequence[NodeId], log_level: events.Level, *, foreign: bool = False
    ) -> None:
        self._document, self._foreign = document, foreign
        self._ids = tuple(ids)
        self._log_level: events.Level = log_level

    # ---- steps ----------------------------------------------------------------------------------

    def steps(self, place: Place) -> tuple[Step, ...]:
        """The list of steps at a place."""
        return tuple(self._step((*place, index)) for index in range(len(self._list(place, "steps"))))

    def _step(self, place: Place) -> Step:
        known = steps_by_word()
        word = self._word(place, known, "step", beside=("name",))
        inside = (*place, word)
        step = self._step_inside(inside, known[word])
        if "name" in self._document.value(place):
            name = self._document.convert_at((*place, "name"), Title)
            check_title(self._document, (*place, "name"), name)
            step = structs.replace(step, name=name)
        return step

    def _step_inside(self, place: Place, kind: type[Step]) -> Step:
        if kind is Wait:
            return Wait(until=self._until(place))
        if kind is Expect:
            return Expect(that=self._moment_expectations(place))
        if kind is Repeat:
            return self._repeat(place)
        if kind is When:
            return self._when(place)
        if kind is Nemesis:
            return self._nemesis(place)
        if kind is Send:
            return self._send(place)
        step = self._struct(place, kind, kind.short)
        self._check_fault(place, step)
        return step

    def _check_fault(self, place: Place, step: Step) -> None:
        if self._foreign and step.needs.own_node:
            self._fail(
                place, "is for the lab's own nodes; of one that cluster.command starts only the surface is known"
            )
        match step:
            case Link():
                self._check_frames(place, step.frames)
                self._check_link(place, step)
                self._check_clients(place, step)
            case Cut():
                self._check_frames(place, step.frames)
                self._check_clients(place, step)
            case Reset():
                self._check_clients(place, step)
            case Partition():
                self._check_partition(place, step)
            case Disk():
                ways = (step.slow, step.full, step.failing, step.rot, step.lose, step.copy, step.restore)
                if sum(map(bool, ways)) != 1:
                    allowed = "slow, full, failing, rot, lose, copy and restore (heal undoes the first three)"
                    self._fail(place, f"give exactly one of {allowed}")
            case PowerLoss():
                if step.mid_write and step.tail != "drawn":
                    self._fail(
                        (*place, "tail"), "what mid_write leaves is drawn, so that nothing else may be asked for"
                    )
            case Clock():
                if not step.drift and not step.jump:
                    self._fail(place, "does nothing; give drift or jump (heal ends a drift)")
            case Chaos():
                if step.longest < SHORTEST_STINT_S:
                    self._wrong((*place, "longest"), "1ms or more")
            case Garbage():
                if not step.connections and not step.half_open:
                    self._fail(place, "nobody comes; give connections or half_open above 0")
            case _:
                pass

    def _repeat(self, place: Place) -> Repeat:
        self._keys(place, ("times", "steps"))
        times = self._document.convert_at((*place, "times"), TIMES)
        if not self._list((*place, "steps"), "steps"):
            self._wrong((*place, "steps"), "at least one step")
        return Repeat(times=times, steps=self.steps((*place, "steps")))

    def _when(self, place: Place) -> When:
        self._keys(place, ("so", "do"))
        until = self._until((*place, "so"))
        if "within" in self._document.value((*place, "so")):
            raise self._document.error(
                (*place, "so", "within"), "has no meaning here: a `when` waits until the steps are over", at_key=True
            )
        steps = self.steps((*place, "do"))
        self._check_inner((*place, "do"), steps, [each for each in STEPS if each.in_when])
        return When(until=until, steps=steps)

    def _nemesis(self, place: Place) -> Nemesis:
        value = self._mapping(place)
        self._known_keys(place, value, ("for", "faults", "every"))
        self._needed_keys(place, value, ("for", "faults"))
        times: dict[str, Duration] = {}
        for key in ("for", "every"):
            if key in value:
                times[key] = self._document.convert_at((*place, key), Duration, dec_hook=decode_word)
                check_period(self._document, (*place, key), times[key])
        faults = self.steps((*place, "faults"))
        self._check_inner((*place, "faults"), faults, [each for each in STEPS if each.in_nemesis])
        for index, fault in enumerate(faults):
            if isinstance(fault, Fault) and fault.unhealable:
                self._fail((*place, "faults", index, fault.word), fault.unhealable)
        nemesis = Nemesis(time=times["for"], faults=faults)
        return structs.replace(nemesis, every=times["every"]) if "every" in times else nemesis

    def _check_inner(self, place: Place, steps: Sequence[Step], allowed: Sequence[type[Step]]) -> None:
        """Some steps of these kinds and no others stand in a list."""
        if not steps:
            self._wrong(place, "at least one step")
        for index, step in enumerate(steps):
            if not isinstance(step, tuple(allowed)):
                words = ", ".join(each.word for each in allowed)
                raise self._document.error(
                    (*place, index, step.word), f"is nothing for here; allowed: {words}", at_key=True
                )

    def _send(self, place: Place) -> Send:
        value = self._document.value(place)
        several = isinstance(value, list) or (isinstance(value, dict) and "clients" in value)
        if several:
            step = self._struct(place, Send, "clients")
            inner = (*place, "clients") if isinstance(value, dict) else place
            places: list[Place] = [(*inner, index) for index in range(len(step.clients))]
        else:
            step = self._send_of_one(place)
            places = [place]
        if not step.clients:
            self._fail(places[0] if places else place, "no client, at least one is needed")
        for each, sender in zip(places, step.clients, strict=True):
            self._check_sender(each, sender)
        if step.refused and not step.wait:
            self._fail((*place, "wait"), "a refusal is to be waited for")
        return step

    def _send_of_one(self, place: Place) -> Send:
        """One client's fields and the step's in one mapping."""
        value = self._mapping(place)
        of_step = ("within", "wait", "refused")
        outer = {key: value[key] for key in (*of_step, "name") if key in value}
        of_sender = tuple(field.encode_name for field in structs.fields(Sender))
        allowed = (*of_sender, *of_step, "name")
        self._known_keys(place, value, allowed)
        self._needed_keys(place, value, ("client", "messages"))
        fields = {}
        for field in structs.fields(Sender):
            if field.encode_name in value:
                fields[field.name] = self._document.convert_at((*place, field.encode_name), field.type)
        for field in structs.fields(Send):
            if field.encode_name in outer:
                outer[field.encode_name] = self._document.convert_at(
                    (*place, field.encode_name), field.type, dec_hook=decode_word
                )
        if "within" in outer:
            check_period(self._document, (*place, "within"), outer["within"])
        return Send(clients=(Sender(**fields),), **outer)

    def _check_sender(self, place: Place, sender: Sender) -> None:
        if sender.via is not None:
            self._check_id((*place, "via"), sender.via)
        if not sender.messages:
            self._wrong((*place, "messages"), "a list of texts, or how many, 1 or more")
        if isinstance(sender.messages, tuple):
            for index, text in enumerate(sender.messages):
                self._check_payload((*place, "messages", index), text)

    def _check_payload(self, place: Place, text: str) -> None:
        if (size := len(text.encode())) > LARGEST_PAYLOAD_BYTES:
            self._fail(place, f"found {size} bytes in UTF-8, allowed {LARGEST_PAYLOAD_BYTES}")

    def _check_link(self, place: Place, step: Link) -> None:
        treats = [name for name in _LINK_RULES if getattr(step, name)]
        if not treats:
            self._fail(
                place, f"does nothing; give {', '.join(_LINK_RULES[:-1])} or {_LINK_RULES[-1]} (heal undoes a rule)"
            )
        if step.refuse and (treats != ["refuse"] or step.frames):
            self._fail((*place, "refuse"), "lets nothing through, so that nothing else may be asked of this link")
        if step.distribution != "uniform" and not step.jitter:
            self._fail((*place, "distribution"), "is how jitter is drawn, and there is no jitter")

    def _check_clients(self, place: Place, step: LinkFault) -> None:
        """What can't be asked of the links of clients."""
        if step.source == step.to == "clients":
            self._fail((*place, "to"), "clients have no links with each other; one end must be nodes")
        about_clients = step.about_clients
        if not (about_clients or self._foreign) or isinstance(step, Reset):
            return
        if getattr(step, "frames", ()):
            known = "only links between nodes carry frames, those of clients carry lines"
            unknown = "the frames of nodes that cluster.command starts are not known"
            self._fail((*place, "frames"), known if about_clients else unknown)
        for name in _NODE_LINKS_ONLY if isinstance(step, Link) else ():
            if getattr(step, name):
                allowed = ", ".join(each for each in _LINK_RULES if each not in _NODE_LINKS_ONLY)
                whose = "clients" if about_clients else "nodes that cluster.command starts"
                self._fail((*place, name), f"is for links that carry frames; allowed for those of {whose}: {allowed}")

    def _check_frames(self, place: Place, frames: Sequence[str]) -> None:
        for index, frame in enumerate(frames):
            if frame not in FRAME_TYPES:
                self._wrong((*place, "frames", index), ", ".join(FRAME_TYPES), FRAME_TYPES)
            if frame in frames[:index]:
                self._fail((*place, "frames", index), f"{frame} stands here twice")

    def _check_partition(self, place: Place, step: Partition) -> None:
        least = _PARTITION_NODES[step.kind]
        if len(self._ids) < least:
            self._fail(place, f"{step.kind} cuts nothing in a cluster of {len(self._ids)}, {least} nodes are needed")
        if step.kind in ("halves", "ring", "random") and step.node != "leader":
            allowed = "node is for isolate, majority, minority and bridge"
            self._fail((*place, "node"), f"{step.kind} is about no node; {allowed}")
        if step.kind != "isolate" and step.direction != "both":
            self._fail((*place, "direction"), f"{step.kind} has no direction; direction is for isolate")

    # ---- waiting --------------------------------------------------------------------------------

    def _until(self, place: Place) -> UntilAny:
        value = self._document.value(place)
        if isinstance(value, str):
            return self._until_of_word(place, value)
        self._mapping(place)
        if "for" not in value:
            self._fail(place, f"the key for is missing; allowed: {', '.join(UNTILS)}")
        if not isinstance(value["for"], str) or value["for"] not in UNTILS:
            self._wrong((*place, "for"), ", ".join(UNTILS), tuple(UNTILS))
        until = self._struct(place, UNTILS[value["for"]], "")
        return cast(UntilAny, until)

    def _until_of_word(self, place: Place, word: str) -> UntilAny:
        if word not in UNTILS:
            self._wrong(place, ", ".join(UNTILS), tuple(UNTILS))
        kind: type[Until] = UNTILS[word]
        needed = [field.encode_name for field in structs.fields(kind) if field.required]
        if needed:
            self._fail(place, f"{word} also needs {', '.join(needed)}: {{for: {word}, {needed[0]}: …}}")
        return cast(UntilAny, kind())

    # ---- expectations ---------------------------------------------------------------------------

    def run_expectations(self, place: Place) -> tuple[RunExpectation, ...]:
        """The list of expectations at a place, of those that the run's files decide."""
        self._list(place, "expectations")
        return cast(tuple[RunExpectation, ...], self._expectations(place, RUN_EXPECTATIONS))

    def _moment_expectations(self, place: Place) -> tuple[MomentExpectation, ...]:
        """One expectation or a list of them, of those that STATUS decides."""
        return cast(tuple[MomentExpectation, ...], self._expectations(place, MOMENT_EXPECTATIONS))

    def _expectations(self, place: Place, known: Mapping[str, type[Expectation]]) -> tuple[Expectation, ...]:
        value = self._document.value(place)
        if not isinstance(value, list):
            return (self._expectation(place, known),)
        if not value:
            self._fail(place, f"an empty list; allowed: {', '.join(known)}")
        return tuple(self._expectation((*place, index), known) for index in range(len(value)))

    def _expectation(self, place: Place, known: Mapping[str, type[Expectation]]) -> Expectation:
        word = self._word(place, known, "expectation")
        inside = (*place, word)
        expectation = self._struct(inside, known[word], known[word].short)
        if isinstance(expectation, LastSeq) and expectation.seq_no is None and expectation.at_least is None:
            self._fail(inside, "give is, at_least or both")
        if isinstance(expectation, LeaderIs):
            shown = (*inside, "is") if isinstance(self._document.value(inside), dict) else inside
            self._check_id(shown, expectation.node)
        if isinstance(expectation, LatencyIs) and all(getattr(expectation, name) is None for name in LATENCY_SHARES):
            self._fail(inside, f"no time is given; allowed: {', '.join(LATENCY_SHARES)}")
        if isinstance(expectation, Order):
            self._check_order(inside, expectation)
        least, most = getattr(expectation, "at_least", None), getattr(expectation, "at_most", None)
        exact = expectation.seq_no if isinstance(expectation, LastSeq) else None
        most = exact if most is None else most
        if least is not None and most is not None and least > most:
            self._fail(inside, f"never holds: at_least is {least}, and no more than {most} are allowed")
        return expectation

    def _check_order(self, place: Place, order: Order) -> None:
        if not order.payloads:
            self._fail(place, "no payloads, at least one is needed")
        listed = (*place, "payloads") if isinstance(self._document.value(place), dict) else place
        for index, text in enumerate(order.payloads):
            self._check_payload((*listed, index), text)

    # ---- one struct -----------------------------------------------------------------------------

    def _struct(self, place: Place, kind: type[_S], short: str) -> _S:
        """The value at a place as a struct, or as the one field of it that `short` names."""
        value = self._document.value(place)
        if isinstance(value, dict):
            for field in structs.fields(kind):
                if field.encode_name in value:
                    self._check_field((*place, field.encode_name), field)
            read = self._document.convert_at(place, kind, dec_hook=decode_word)
            check_periods(self._document, place, read)
            self._check_event(place, read)
            return read
        if not short:
            allowed = ", ".join(field.encode_name for field in structs.fields(kind) if field.name != "name")
            self._fail(place, f"found {show_value(value)}, allowed a mapping with the keys {allowed}")
        field = next(each for each in structs.fields(kind) if each.name == short)
        self._check_field(place, field)
        short_value = self._document.convert_at(place, field.type, dec_hook=decode_word)
        needed = [each.encode_name for each in structs.fields(kind) if each.required and each.name != short]
        if needed:
            self._fail(place, f"also needs {', '.join(needed)}: {{{field.encode_name}: …, {needed[0]}: …}}")
        read = kind(**{short: short_value})
        check_periods(self._document, place, read)
        self._check_event(place, read)
        return read

    def _check_field(self, place: Place, field: structs.FieldInfo) -> None:
        """What the type of a field can't say about the plain value at its place."""
        if field.type == Target:
            self.check_target(place)
        elif field.type == LinkEnd and self._document.value(place) != "clients":
            self.check_target(place, "clients, ")

    def check_target(self, place: Place, beside: str = "") -> None:
        """Refuse words and ids that are no target in this cluster. beside: what else is allowed there."""
        value = self._document.value(place)
        if isinstance(value, list):
            if not value:
                self._wrong(place, beside + self._allowed_targets())
            for index, part in enumerate(value):
                self._check_target_part((*place, index), "")
                if part in value[:index]:
                    self._fail((*place, index), f"{part} stands here twice")
        else:
            self._check_target_part(place, beside)

    def _check_target_part(self, place: Place, beside: str) -> None:
        value = self._document.value(place)
        known = value in TARGET_WORDS if isinstance(value, str) else type(value) is int and value in self._ids
        if not known:
            self._wrong(place, beside + self._allowed_targets(), TARGET_WORDS)

    def _allowed_targets(self) -> str:
        return f"{', '.join(TARGET_WORDS)}, {self._ids[0]}..{self._ids[-1]} or a list of these"

    def _check_id(self, place: Place, node: NodeId) -> None:
        if node not in self._ids:
            self._wrong(place, f"{self._ids[0]}..{self._ids[-1]}")

    def _check_event(self, place: Place, read: Struct) -> None:
        """An event that is named exists, is reported, and has the fields that are asked for."""
        event = getattr(read, "event", None)
        if event is None:
            return
        value = self._document.value(place)
        named = (*place, "is") if isinstance(value, dict) else place
        if event not in EVENTS:
            self._wrong(named, ", ".join(sorted(EVENTS)), sorted(EVENTS))
        level, fields = EVENTS[event].level, EVENTS[event].__struct_fields__
        if _LEVELS.index(level) < _LEVELS.index(self._log_level):
            self._fail(named, f"{event} is reported at {level}, below this cluster's log_level {self._log_level}")
        for field in getattr(read, "where", {}):
            if field not in fields:
                raise self._document.unknown_key((*place, "where", field), fields, f"{event} has no such field")

    # ---- mappings -------------------------------------------------------------------------------

    def _word(self, place: Place, known: Mapping[str, object], what: str, beside: tuple[str, ...] = ()) -> str:
        """The one key of a mapping, which must be one of the known words."""
        value = self._document.value(place)
        if isinstance(value, str) and value in known:
            self._fail(place, f"{value} needs a value: `{value}: …`")
        if not isinstance(value, dict):
            self._wrong(place, f"a mapping with one of {', '.join(known)}", tuple(known))
        words = [key for key in value if key not in beside]
        for word in words:
            if word not in known:
                raise self._document.unknown_key((*place, word), tuple(known), f"no such {what}")
        if len(words) != 1:
            found = " and ".join(words) or "none"
            self._fail(place, f"found {found}, allowed exactly one of {', '.join(known)}")
        return str(words[0])

    def _keys(self, place: Place, needed: tuple[str, ...]) -> None:
        value = self._mapping(place)
        self._known_keys(place, value, needed)
        self._needed_keys(place, value, needed)

    def _known_keys(self, place: Place, value: Mapping[str, object], allowed: tuple[str, ...]) -> None:
        for key in value:
            if key not in allowed:
                raise self._document.unknown_key((*place, key), allowed)

    def _needed_keys(self, place: Place, value: Mapping[str, object], needed: tuple[str, ...]) -> None:
        for key in needed:
            if key not in value:
                self._fail(place, f"the key {key} is missing")

    def _mapping(self, place: Place) -> dict[str, Any]:
        value = self._document.value(place)
        if not isinstance(value, dict):
            self._wrong(place, "a mapping")
        return cast(dict[str, Any], value)

    def _list(self, place: Place, what: str) -> list[Any]:
        value = self._document.value(place)
        if not isinstance(value, list):
            self._wrong(place, f"a list of {what}")
        return value

    def _wrong(self, place: Place, allowed: str, names: Sequence[str] = ()) -> NoReturn:
        raise self._document.wrong(place, allowed, names)

    def _fail(self, place: Place, message: str) -> NoReturn:
        raise self._document.error(place, message)


# ---- what the types can't say ---------------------------------------------------------------------


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
            check_period(document, place if short else (*place, field.encode_name), found)


def check_period(document: Document, place: Place, found: Duration) -> None:
    if found <= 0:
        raise document.error(place, f"found {found}, allowed a duration above 0")


def check_title(document: Document, place: Place, text: str) -> None:
    """Refuse what would break a line or steer a terminal."""
    if not text.isprintable():
        bad = next(each for each in text if not each.isprintable())
        raise document.error(place, f"found the character {ascii(bad)[1:-1]}, allowed characters that can be printed")
