"""`wait`: the run goes on when something has come true."""

from __future__ import annotations

from typing import Annotated, TypeAlias

from msgspec import Meta, Struct

from lab.steps.step import Needs, Step
from lab.words import Count, Duration, Period, Target


class Until(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, tag_field="for"):
    """Base of what can be waited for; `for` names it in YAML."""

    within: Period = Duration(10)

    @property
    def needs(self) -> Needs:
        """What the run must offer."""
        return Needs()


class UntilLeader(Until, frozen=True, tag="leader"):
    """All running nodes name the same leader of the same term, and it says so itself."""


class UntilNewLeader(Until, frozen=True, tag="new_leader"):
    """As leader, with a term above the highest that any node showed before the latest fault step began."""


class UntilTermChange(Until, frozen=True, tag="term_change"):
    """Some node shows a higher term than any did when the wait began."""


class UntilCaughtUp(Until, frozen=True, tag="caught_up"):
    """These nodes have delivered all that any running node knew to be committed when the wait began.

    share: or that part, 0..1, of what each of them lacked of it, counted from where it was last seen.
    One that is being rebuilt is not caught up before it has its vote again.
    """

    on: Target = "running"
    share: Annotated[float, Meta(gt=0, le=1)] = 1.0


class UntilDelivered(Until, frozen=True, tag="delivered"):
    """Each of these nodes has delivered at least `count` messages."""

    count: Count
    on: Target = "running"


class UntilAcknowledged(Until, frozen=True, tag="acknowledged"):
    """`count` more of the load's messages are acknowledged than when the wait began."""

    count: Count

    @property
    def needs(self) -> Needs:
        return Needs(load=True)


class UntilLoadDone(Until, frozen=True, tag="load_done"):
    """A load with a count or duration has an outcome for each of its messages."""

    @property
    def needs(self) -> Needs:
        return Needs(load=True, load_end=True)


class UntilIdle(Until, frozen=True, tag="idle"):
    """No client waits for an outcome, and all running nodes have delivered the same and all that is committed."""


class UntilEnded(Until, frozen=True, tag="ended"):
    """The processes of these nodes are gone: they have ended by themselves, or were taken down."""

    on: Target


class UntilEvent(Until, frozen=True, tag="event", rename={"event": "is"}):
    """These nodes have reported the event `count` more times, added up, than when the latest fault step began.

    where: as in the `event` expectation.
    """

    event: str
    on: Target = "all"
    where: dict[str, str | int | bool] = {}
    count: Count = 1


UntilAny: TypeAlias = (
    UntilLeader
    | UntilNewLeader
    | UntilTermChange
    | UntilCaughtUp
    | UntilDelivered
    | UntilAcknowledged
    | UntilLoadDone
    | UntilIdle
    | UntilEnded
    | UntilEvent
)


class Wait(Step, frozen=True):
    """Go on when something has come true; a plain word stands for `{for: word}`."""

    word = "wait"
    until: UntilAny

    @property
    def needs(self) -> Needs:
        return self.until.needs


UNTILS: dict[str, type[Until]] = {
    str(each.__struct_config__.tag): each
    for each in (
        UntilLeader,
        UntilNewLeader,
        UntilTermChange,
        UntilCaughtUp,
        UntilDelivered,
        UntilAcknowledged,
        UntilLoadDone,
        UntilIdle,
        UntilEnded,
        UntilEvent,
    )
}
