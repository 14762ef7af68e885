"""`garbage`: connections that say nonsense."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from lab.steps.step import Fault, Needs
from lab.words import Duration, Period, Target


class Garbage(Fault, frozen=True, rename={"time": "for"}):
    """Strangers at the ports of these nodes. Done when the time is over and their connections are closed.

    connections: so many, over the time, that say nonsense: bytes, lines, frames, greetings with a wrong proof.
    half_open: besides, so many that say nothing whole, for all of the time. Both are dealt out to the nodes in turn.
    """

    word = "garbage"
    short = "connections"
    connections: Annotated[int, Meta(ge=0, le=1_000_000)] = 1000
    half_open: Annotated[int, Meta(ge=0, le=10_000)] = 100
    time: Period = Duration(5)
    on: Target = "running"

    @property
    def needs(self) -> Needs:
        return Needs(real_time="there are no sockets that a stranger could open in a simulation")
