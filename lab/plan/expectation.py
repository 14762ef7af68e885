"""The expectations of a scenario, as data.

There are two closed sets. A moment expectation is about the cluster as its nodes' STATUS shows it at one moment: it is
written in an `expect` step, and the runner judges it there (lab.steps.expect.judge). A run expectation is about the
logs, events and history of the whole run: it is written in the final `expectations` list, and lab.check judges it from
the run directory alone. `last_seq` may be used in both.

In YAML each is a mapping with one key: `- leader: 2`, `- event: {is: buffered, on: 2}`. A plain value stands for the
field named by `short`.
"""

from __future__ import annotations

from typing import Annotated, TypeAlias, get_args

from msgspec import Meta

from lab.steps.entry import Entry
from lab.steps.expect import Expectation, LastSeq
from lab.words import Count, CountOrNone, Duration, Period, Target


class Order(Expectation, frozen=True, rename={"first": "from"}):
    """These payloads are in the log in this order. `consecutive`: no other message is between them. `from`: the first
    payload has this seq_no.
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
    """These nodes together reported the event `at_least` and `at_most` this often. `where: {field: value}`: only events
    with these values count.

    Values are compared as text.
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
    """The median time between two such events of one node is `near` this, within `tolerance`. A node with fewer than
    `at_least` intervals does not count.

    At least one node must count. Intervals over a restart of the node are left out.
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
    """Every message sent was acknowledged, and at least this many were sent."""

    word = "acknowledged"
    short = "at_least"
    at_least: CountOrNone = 1


class Throughput(Expectation, frozen=True):
    """While the load ran, at least this many messages a second were acknowledged. `soft`: a miss is shown, but is no
    failure.
    """

    word = "throughput"
    short = "at_least"
    at_least: Annotated[float, Meta(gt=0, le=1e9)]
    soft: bool = True


class Unavailable(Expectation, frozen=True):
    """While the load ran, no time without an acknowledgement was longer than this. `soft`: as in `throughput`."""

    word = "unavailable"
    short = "at_most"
    at_most: Period
    soft: bool = False


class LatencyIs(Expectation, frozen=True):
    """That share of the messages was acknowledged within the given time, counted from when each should have been sent.
    A message that was never acknowledged counts as slower than all others. `between: [NAME, NAME]`: only messages that
    should have been sent between the beginnings of the two steps with these names. `latency: 50ms` is p99.

    At least one time is given; max is that of all messages. If the scenario has a load, only its messages count.
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
    """No node process ever had more resident memory than this, in MiB."""

    word = "memory"
    short = "at_most"
    at_most: Annotated[float, Meta(gt=0, le=1e9)]


class TermGrowth(Expectation, frozen=True):
    """No node showed a term that is higher than the first leader's by more than this."""

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

RUN_EXPECTATIONS: dict[str, type[RunExpectation]] = {each.word: each for each in get_args(RunExpectation)}
"""Word in YAML -> expectation."""
