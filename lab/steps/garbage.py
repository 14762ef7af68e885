"""`garbage`: connections that say nonsense."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Annotated, Self

from msgspec import Meta

from lab.steps.entry import Entry
from lab.steps.machine import Run
from lab.steps.reducing import shorter
from lab.steps.step import Effect, Fault, Needs
from lab.words import Duration, Period, Target
from nodeproc.core.messages import NodeId


class Garbage(Fault, frozen=True, rename={"time": "for"}):
    """Strangers at the ports of these nodes. Done when the time is over and their connections are closed.

    connections: so many, over the time, that say nonsense: bytes, lines, frames, greetings with a wrong proof.
    half_open: besides, so many that say nothing whole, for all of the time. Both are dealt out to the nodes in turn.
    """

    word = "garbage"
    effect = Effect.NONE
    short = "connections"
    connections: Annotated[int, Meta(ge=0, le=1_000_000)] = 1000
    half_open: Annotated[int, Meta(ge=0, le=10_000)] = 100
    time: Period = Duration(5)
    on: Target = "running"

    def check(self, entry: Entry) -> None:
        if not self.connections and not self.half_open:
            entry.fail("nobody comes; give connections or half_open above 0")

    @property
    def needs(self) -> Needs:
        return Needs(real_time="there are no sockets that a stranger could open in a simulation")

    def reduce(self) -> Iterator[Self]:
        yield from super().reduce()
        yield from shorter(self, "time")

    def nodes_with_rows(self, ids: tuple[NodeId, ...]) -> tuple[NodeId, ...]:
        return ()  # Its connections are dealt out.

    async def do(self, run: Run, index: int) -> None:
        machines, began = run.choose(self.on), run.now_ns()
        roles = {each.node: each.role for each in machines}
        rng = random.Random(f"garbage {run.seed} {index}")
        for node, evidence in (await run.world.send_garbage(self, list(roles), rng)).items():
            came = evidence["closed"] + evidence["held"] > 0
            run.book.write(self.word, node, roles[node], began, evidence, came, index)
