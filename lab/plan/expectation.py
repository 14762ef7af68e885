"""What a scenario expects, as data.

Two closed sets. A Moment expectation speaks of the cluster as its nodes' STATUS shows it at one moment: it stands in
an `expect` step and the live runner judges it there (lab.steps.expect.judge). A Run expectation speaks of
what the whole run left behind (logs, events, history): it stands in the final `expectations` section and
lab.check judges it from the run directory alone. `last_seq` may stand in both.

In YAML each is a mapping of one key: `- leader: 2`, `- event: {is: buffered, on: 2}`. A plain value stands for the
field named by `short`.
"""

from __future__ import annotations

from typing import Annotated, TypeAlias

from msgspec import Meta

from lab.steps.entry import Entry
from lab.steps.expect import Expectation, LastSeq
from lab.words import Count, CountOrNone, Duration, Period, Target


class Order(Expectation, frozen=True, rename={"first": "from"}):
    """These payloads stand in every node's log in this order.

    consecutive: nothing else stands between them.
    first: seq_no of the first of them.
    """

    word = "order"
    short = "payloads"
    payloads: tuple[str, ...]
    consecutive: bool = False
    first: Count | None = None

    def check(self, entry: Entry) -> None:
        if not self.payloads:
            entry.fail("no payloads, at least one is needed")
        for index, text in enumerate(self.payloads):
            entry.of("payloads").at(index).check_payload(text)


class NumberingContinues(Expectation, frozen=True, rename={"terms": "over_terms"}):
    """At least so many terms have messages in the log, and where the term changes the seq_no goes on by one."""

    word = "numbering_continues"
    short = "terms"
    terms: Count = 2


class EventSeen(Expectation, frozen=True, rename={"event": "is"}):
    """An event was reported on these nodes, all added up, at least so often and at most so often.

    where: field -> value; only events that have them all count. A value compares as text.
    """

    word = "event"
    short = "event"
    event: str
    on: Target = "all"
    where: dict[str, str | int | bool] = {}  # noqa: RUF012 (of a Struct: each has its own)
    at_least: CountOrNone = 1
    at_most: CountOrNone | None = None

    def check(self, entry: Entry) -> None:
        entry.check_event(self.event, self.where)


class EventInterval(Expectation, frozen=True, rename={"event": "is"}):
    """The median time between two such events in a row on one node is near a value.

    Nodes of `on` with fewer than at_least intervals don't count; one at least must have enough, and each that has must
    be within tolerance. Intervals over a restart of the node are left out.
    """

    word = "interval"
    event: str
    near: Period
    tolerance: Duration
    on: Target = "all"
    at_least: Count = 3

    def check(self, entry: Entry) -> None:
        entry.check_event(self.event, {})


class Acknowledged(Expectation, frozen=True):
    """Every message that any client sent was acknowledged: none rejected, none unknown, and at least so many."""

    word = "acknowledged"
    short = "at_least"
    at_least: CountOrNone = 1


class Throughput(Expectation, frozen=True):
    """Messages acknowledged a second, from the load's first send to its last acknowledgement.

    soft: a miss is shown but fails nothing.
    """

    word = "throughput"
    short = "at_least"
    at_least: Annotated[float, Meta(gt=0, le=1e9)]
    soft: bool = True


class Unavailable(Expectation, frozen=True):
    """While the load ran, no longer time than this passed without an acknowledgement.

    soft: as in Throughput.
    """

    word = "unavailable"
    short = "at_most"
    at_most: Period
    soft: bool = False


class LatencyIs(Expectation, frozen=True):
    """How long messages took, from when each should have been sent to its acknowledgement. At least one bound is given.

    p50, p90, p99, p999: the time within which that share of the messages was acknowledged; a message that never was
        counts as slower than all others. max: within which all were.
    between: names of two steps: only messages count that should have been sent after the first began and before the
        second did. None: all of the run.
    Of a scenario with a load only the load's messages count. soft: as in Throughput.
    """

    word = "latency"
    short = "p99"
    p50: Period | None = None
    p90: Period | None = None
    p99: Period | None = None
    p999: Period | None = None
    max: Period | None = None
    between: tuple[str, str] | None = None
    soft: bool = False

    def check(self, entry: Entry) -> None:
        if all(getattr(self, name) is None for name in LATENCY_SHARES):
            entry.fail(f"no time is given; allowed: {', '.join(LATENCY_SHARES)}")


LATENCY_SHARES = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p999": 0.999, "max": 1.0}
"""Field of LatencyIs -> share of the messages."""


class Memory(Expectation, frozen=True):
    """No node process ever had more resident memory, in MiB."""

    word = "memory"
    short = "at_most"
    at_most: Annotated[float, Meta(gt=0, le=1e9)]


class TermGrowth(Expectation, frozen=True):
    """No node showed a term that lies further above that of the first leader."""

    word = "term_growth"
    short = "at_most"
    at_most: CountOrNone


RunExpectation: TypeAlias = (
    LastSeq
    | Order
    | NumberingContinues
    | EventSeen
    | EventInterval
    | Acknowledged
    | Throughput
    | Unavailable
    | LatencyIs
    | Memory
    | TermGrowth
)

RUN_EXPECTATIONS: dict[str, type[RunExpectation]] = {
    each.word: each
    for each in (
        LastSeq,
        Order,
        NumberingContinues,
        EventSeen,
        EventInterval,
        Acknowledged,
        Throughput,
        Unavailable,
        LatencyIs,
        Memory,
        TermGrowth,
    )
}
