"""The orders to a supervisor, and its answers: one JSON line each, in turn."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import TypeAlias

import msgspec
from msgspec import Struct

from lab.live.supervise.contents import Tail
from lab.live.supervise.disk import Lost
from lab.rows import Supervision
from lab.steps.orders import Counts, Orders


class Open(Struct, frozen=True, tag_field="do", tag="open"):
    """The first order. See lab.live.supervise.Supervisor.open. Answered with Done or Refused."""

    data_dir: str
    kept_dir: str
    exempt: tuple[str, ...] = ()
    writeback_s: float = 0.0


class Start(Struct, frozen=True, tag_field="do", tag="start"):
    """Start a program. Answered with Started.

    environment: None: the supervisor's own. output: the file to which its output is appended.
    """

    command: tuple[str, ...]
    directory: str
    output: str
    environment: dict[str, str] | None = None


class Wait(Struct, frozen=True, tag_field="do", tag="wait"):
    """Wait until a program has ended, and forget it. Answered with Ended."""

    pid: int


class Obey(Struct, frozen=True, tag_field="do", tag="obey"):
    """Obey these orders for the disk from now on. Answered with Done."""

    orders: Orders


class Count(Struct, frozen=True, tag_field="do", tag="count"):
    """Answered with Counts."""


class Redirect(Struct, frozen=True, tag_field="do", tag="redirect"):
    """Replace the table of redirected connections: (ip, port) -> (ip, port). Answered with Done."""

    table: tuple[tuple[tuple[str, int], tuple[str, int]], ...]


class Durable(Struct, frozen=True, tag_field="do", tag="durable"):
    """Answered with name of a data file -> number of durable bytes at its start."""


class CutPower(Struct, frozen=True, tag_field="do", tag="power"):
    """Kill everything that runs, and take what a power loss takes. Answered with Lost. See Disk.lose_power."""

    tail: Tail = "none"
    seed: int = 0
    keep: dict[str, int] = {}


class BeginAnew(Struct, frozen=True, tag_field="do", tag="anew"):
    """All that is on the disk now is durable. Answered with Done."""


class Measure(Struct, frozen=True, tag_field="do", tag="measure"):
    """Answered with Figures."""


Order: TypeAlias = Open | Start | Wait | Obey | Count | Redirect | Durable | CutPower | BeginAnew | Measure


class Done(Struct, frozen=True, tag_field="is", tag="done"):
    """The order was carried out."""


class Refused(Struct, frozen=True, tag_field="is", tag="refused"):
    """The order was not carried out; why."""

    why: str


class Started(Struct, frozen=True, tag_field="is", tag="started"):
    """The program runs. pid: also the id of its process group."""

    pid: int


class Ended(Struct, frozen=True, tag_field="is", tag="ended"):
    """A program has ended. code: negative: the signal. cpu_s: user and system. written_blocks: ru_oublock."""

    code: int
    cpu_s: float
    written_blocks: int


class Figures(Struct, frozen=True, tag_field="is", tag="figures"):
    """The cost of the supervisor so far."""

    supervision: Supervision


class Counted(Struct, frozen=True, tag_field="is", tag="counted"):
    """See Disk.counts."""

    counts: Counts


class Prefixes(Struct, frozen=True, tag_field="is", tag="durable"):
    """See Disk.durable_prefixes."""

    durable: dict[str, int]


class Loss(Struct, frozen=True, tag_field="is", tag="loss"):
    """See Disk.lose_power."""

    lost: Lost


Answer: TypeAlias = Done | Refused | Started | Ended | Counted | Prefixes | Loss | Figures

encode = msgspec.json.Encoder().encode
decode_order = msgspec.json.Decoder(Order).decode
decode_answer = msgspec.json.Decoder(Answer).decode


def total(parts: Iterable[Supervision]) -> Supervision | None:
    """Return the cost of several supervisors together; None if there are none."""
    figures = list(parts)
    if not figures:
        return None
    stops = Counter[str]()
    for each in figures:
        stops.update(each.stops)
    return Supervision(
        dict(sorted(stops.items())),
        sum(each.busy_s for each in figures),
        sum(each.cpu_s for each in figures),
        sum(each.redirected for each in figures),
        tuple(dict.fromkeys(problem for each in figures for problem in each.problems)),
    )
