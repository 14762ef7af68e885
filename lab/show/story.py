"""The story of a run: frames, events of nodes, faults and operations of clients in the order of time.

It is read from the run directory alone. Frames are part of it as far as the run recorded them; only simulated runs with
--frames record plain traffic too.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, Final, TypeAlias

import msgspec

from lab.check.evidence import rule_text
from lab.check.verdict import decode_verdict
from lab.rows import (
    Acked,
    Failed,
    FaultRow,
    HistoryRow,
    Invoke,
    Phase,
    Unknown,
    decode_frame_row,
    decode_history_row,
)
from lab.rundir import RunDir
from lab.show.window import lines_between

CLIENTS: Final = 0
"""The lane of all clients; nodes' lanes have their ids."""

NO_NEWS: Final = frozenset(
    {"listening", "joining", "join_answered", "loaded", "sequence_set", "heartbeat_sent", "heartbeat_received"}
    | {"client_connected", "client_left", "catch_up_requested", "catch_up_served", "caught_up", "new_coordinator"}
    | {"coordinator_received", "becoming_coordinator", "checkpoint_written", "stopping"}
)
"""Events that are left out because the frames next to them show the same, or because they show no progress."""
TRAFFIC: Final = frozenset({"SUBMIT", "APPEND", "APPENDED", "COMMIT", "HEARTBEAT", "HEARTBEAT_ACK"})
TROUBLE: Final = ("rejected", "given up, outcome unknown")
TRAFFIC_LEAST, TRAFFIC_ENDS = 40, 4
"""Number of lines of plain traffic in a row from which on they are left out, and how many stay at either end."""
NS_PER_S: Final = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Arrow:
    """One frame. t: when it arrived, or when it was sent if it was lost."""

    t: int
    sent: int
    source: int
    to: int
    kind: str
    text: str
    lost: bool

    @property
    def says(self) -> str:
        return f"{self.kind} {self.text}".rstrip()


@dataclass(frozen=True, slots=True)
class Note:
    """Something that happened in one lane. mark: * an event of a node, # a fault, o an operation of a client."""

    t: int
    lane: int
    mark: str
    text: str


@dataclass(frozen=True, slots=True)
class Skipped:
    """Lines that were left out. what: their kind."""

    t: int
    count: int
    what: str = "repetitions"


Item: TypeAlias = Arrow | Note | Skipped


@dataclass(slots=True)
class Story:
    """The content of a diagram. start: time of the first step, ns. ending: what broke; "" if nothing did."""

    title: str
    nodes: list[int]
    start: int
    items: list[Item] = field(default_factory=list)
    ending: str = ""
    frames: str = "none"
    """The frames that the run recorded, as in Meta."""

    def seconds(self, t: int) -> float:
        """Return the seconds from the first step to `t`."""
        return (t - self.start) / NS_PER_S


WHOLE: Final = (0, 1 << 63)
"""The window of a whole run."""
_FLIGHT_NS: Final = 10 * NS_PER_S
"""A frame that is sent this long before a window may still arrive in it."""


def read(run: RunDir, *, everything: bool = False, window: tuple[int, int] = WHOLE, clients: bool = True) -> Story:
    """Return the story of a finished run, or of a part of it.

    Args:
        everything: include repetitions, plain traffic, and everything before the first step.
        window: the first and the last time of the part, ns; the other rows of the files are not read.
        clients: include what clients sent and the answers that they received.
    """
    meta = run.read_meta()
    who = f", mutant {meta.mutant}" if meta.mutant else ""
    story = Story(f"{meta.scenario}, seed {meta.seed}{who}", run.node_ids(), meta.t_start)
    story.frames = meta.frames
    items: list[Arrow | Note] = [*_arrows(run, window), *_events(run, everything, window)]
    items += (note for note in _faults(run.read_faults()) if window[0] <= note.t <= window[1])
    if clients:
        items += _clients(map(decode_history_row, lines_between(run.history, *window)))
    items.sort(key=lambda item: item.t)
    if everything:
        story.items = [*items]
    else:
        story.items = list(_without_traffic(_without_repeats(item for item in items if item.t >= meta.t_start)))
    story.ending = _ending(run, meta.watched)
    return story


def _arrows(run: RunDir, window: tuple[int, int]) -> Iterator[Arrow]:
    since, until = window
    for row in map(decode_frame_row, lines_between(run.frames, since - _FLIGHT_NS, until)):
        for t in row.arrived or (row.t,):
            if since <= t <= until:
                yield Arrow(t, row.t, row.source, row.to, row.kind, row.text, lost=not row.arrived)


def _events(run: RunDir, everything: bool, window: tuple[int, int]) -> Iterator[Note]:
    for node in run.node_ids():
        for line in lines_between(run.events(node), *window, key=b'"t_ns":'):
            try:
                event: dict[str, Any] = json.loads(line)
            except ValueError:
                continue  # A line that a kill has cut off.
            name = str(event.pop("event", ""))
            t, _ = int(event.pop("t_ns", 0)), event.pop("node", None)
            if name and (everything or name not in NO_NEWS):
                fields = ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in event.items())
                yield Note(t, node, "*", f"{name.replace('_', ' ')}{': ' if fields else ''}{fields}")


def _faults(rows: Iterable[FaultRow]) -> Iterator[Note]:
    for row in rows:
        pairs = row.evidence.get("pairs")
        if not pairs:
            yield Note(row.t, row.target, "#", row.fault if row.target else f"{row.fault}, all nodes")
            continue
        links = " ".join(f"{source}>{to}" for source, to in pairs)
        shown = rule_text(dict(row.evidence.get("rule", {})))
        yield Note(row.t, row.target, "#", f"{row.fault} {links}{': ' if shown else ''}{shown}")


def _clients(rows: Iterable[HistoryRow]) -> Iterator[Note]:
    names: dict[str, int] = {}
    for row in rows:
        match row:
            case Invoke():
                names[row.session] = row.client
                yield Note(row.t, CLIENTS, "o", f"client {row.client} sends {_numbers(row.n, row.count)}")
            case Acked():
                who = names.get(row.session, 0)
                yield Note(row.t, CLIENTS, "o", f"client {who}: up to n={row.n} acknowledged, seq_no {row.seq_no}")
            case Failed() | Unknown():
                what = "rejected" if isinstance(row, Failed) else "given up, outcome unknown"
                who = names.get(row.session, 0)
                yield Note(row.t, CLIENTS, "o", f"client {who}: {_numbers(row.n, row.count)} {what}")
            case Phase():
                if row.phase in ("healed", "converged", "diverged"):
                    yield Note(row.t, CLIENTS, "#", f"the lab: {row.phase}")
            case _:
                pass


def _numbers(first: int, count: int) -> str:
    return f"n={first}" if count == 1 else f"n={first}..{first + count - 1}"


def _without_repeats(items: Iterable[Arrow | Note]) -> Iterator[Item]:
    """Leave out, and count, arrows and events with the same text between the same nodes as an earlier one."""
    seen: set[tuple[object, ...]] = set()
    left_out, since = 0, 0
    for item in items:
        if isinstance(item, Arrow):
            key: tuple[object, ...] = (item.source, item.to, item.says, item.lost)
        else:
            key = (item.lane, item.text) if item.mark == "*" else (id(item),)
        if key in seen:
            since = since if left_out else item.t
            left_out += 1
            continue
        seen.add(key)
        if left_out:
            yield Skipped(since, left_out)
            left_out = 0
        yield item
    if left_out:
        yield Skipped(since, left_out)


def _is_traffic(item: Item) -> bool:
    """Return whether the item is plain traffic: messages under way, as under any load, and nothing lost or given up."""
    match item:
        case Arrow():
            return item.kind in TRAFFIC and not item.lost
        case Note():
            return item.text.startswith("delivered:") or (item.mark == "o" and not item.text.endswith(TROUBLE))
        case Skipped():
            return True


def _without_traffic(items: Iterable[Item]) -> Iterator[Item]:
    """Leave out, and count, long stretches of plain traffic except for their ends."""
    for traffic, group in groupby(items, _is_traffic):
        stretch = list(group)
        inner = stretch[TRAFFIC_ENDS:-TRAFFIC_ENDS]
        if not traffic or len(stretch) < TRAFFIC_LEAST:
            yield from stretch
            continue
        lines = sum(item.count if isinstance(item, Skipped) else 1 for item in inner)
        yield from stretch[:TRAFFIC_ENDS]
        yield Skipped(inner[0].t, lines, "lines of traffic")
        yield from stretch[-TRAFFIC_ENDS:]


def around(story: Story, word: str, lines: int) -> None:
    """Keep `lines` lines around the first fault, event or outcome that contains the word.

    Raises:
        ValueError: nothing contains the word; the text names the kinds of faults and events of this run.
    """
    notes = [(at, item) for at, item in enumerate(story.items) if isinstance(item, Note)]
    found = next((at for at, item in notes if word in item.text), None)
    if found is None:
        kinds = sorted({item.text.partition(":")[0] for _, item in notes if item.mark != "o"})
        raise ValueError(f"--around: nothing in this run contains {word!r}; allowed: {', '.join(kinds)}")
    start = max(0, found - lines // 2)
    story.items = story.items[start : start + lines]


def _ending(run: RunDir, watched: str) -> str:
    """Return what broke, from the simulation's online checks or the judges' first failed check; "" if nothing did."""
    if watched or not run.verdict.is_file():
        return watched
    try:
        checks = decode_verdict(run.verdict.read_bytes()).checks
    except msgspec.MsgspecError:
        return ""
    return next((f"{check.name}: {check.detail}" for check in checks if check.result == "FAIL"), "")
