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
    """These payloads are in the log in this order; `consecutive`: with nothing between; `from`: the first has this
    seq_no.
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
    """At least this many terms have messages, and seq_no increases by one where the term changes."""

    word = "numbering_continues"
    short = "terms"
    terms: Count = 2


class EventSeen(Expectation, frozen=True, rename={"event": "is"}):
    """These nodes together reported the event this often; `where` requires field values.

    where: field -> value; only events that have all of them count. Values are compared as text.
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
    """The median time between two such events of one node is near that; nodes with fewer intervals do not count.

    At least one node of `on` must have at_least intervals; the median of each such node must be within tolerance.
    Intervals over a restart of the node are left out.
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
    """Every message sent was acknowledged, none rejected or unknown, and at least this many were."""

    word = "acknowledged"
    short = "at_least"
    at_least: CountOrNone = 1


class Throughput(Expectation, frozen=True):
    """This many acknowledgements a second while the load ran; soft: a miss is shown and fails nothing."""

    word = "throughput"
    short = "at_least"
    at_least: Annotated[float, Meta(gt=0, le=1e9)]
    soft: bool = True


class Unavailable(Expectation, frozen=True):
    """While the load ran, no longer gap passed without an acknowledgement; soft: as in `throughput`."""

    word = "unavailable"
    short = "at_most"
    at_most: Period
    soft: bool = False


class LatencyIs(Expectation, frozen=True):
    """That share of the messages was acknowledged within the given time, counted from when each should have been sent;
    a message that was never acknowledged counts as slower than all others. `between: [NAME, NAME]`: only messages that
    should have been sent after the step of the first name began and before the second did. `latency: 50ms` is p99.

    At least one bound is given; max is that of all messages. Only the load's messages count, in a scenario with a load.
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
    """No node showed a term further above that of the first leader."""

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
