"""`garbage`: unauthenticated clients send garbage."""

from __future__ import annotations

import random
from typing import Annotated

from msgspec import Meta

from lab.steps.entry import Entry
from lab.steps.machine import Run
from lab.steps.step import Effect, Fault, Needs
from lab.words import Duration, Period, Target


class Garbage(Fault, frozen=True, rename={"time": "for"}):
    """Unauthenticated clients connect to these nodes, in turn (live only). `connections`, spread over the time, send
    garbage: bytes, lines, frames, handshakes with a wrong proof. `half_open` stay connected for the whole time without
    completing a line or frame. Ends when the time is over and the connections are closed.
    """

    word = "garbage"
    effect = Effect.NONE
    short = "connections"
    row_for_each = False
    needs = Needs(real_time="a simulation has no sockets")
    connections: Annotated[int, Meta(ge=0, le=1_000_000)] = 1000
    half_open: Annotated[int, Meta(ge=0, le=10_000)] = 100
    time: Period = Duration(5)
    on: Target = "running"

    def check(self, entry: Entry) -> None:
        if not self.connections and not self.half_open:
            entry.fail("does nothing; give connections or half_open above 0")

    async def do(self, run: Run, index: int) -> None:
        rows = {each.node: run.book.begin(self.word, index, each) for each in run.choose(self.on)}
        rng = random.Random(f"garbage {run.seed} {index}")
        for node, evidence in (await run.world.send_garbage(self, list(rows), rng)).items():
            rows[node].write(evidence, evidence["closed"] + evidence["held"] > 0)
