"""`kill`: SIGKILL; and how a process is ended."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from typing import Self

from lab.rows import NodeExit
from lab.steps.lot import Lot
from lab.steps.machine import Machine, Run
from lab.steps.outlook import DOWN, PAUSED, UP
from lab.steps.step import Effect, Fault
from lab.words import Target
from nodeproc.core.messages import NodeId

SIGNALS = {"kill": signal.SIGKILL, "stop": signal.SIGTERM}


class Ending(Fault, frozen=True):
    """Base of `kill` and `stop`: a signal ends the processes of these nodes."""

    effect = Effect.DOWN
    short = "target"
    drawn_from = 1
    ends_process = True
    leaves_nodes = DOWN
    acts_on = UP | PAUSED
    target: Target

    @classmethod
    def draw(cls, lot: Lot) -> Self:
        return cls(target=lot.some())

    async def do(self, run: Run, index: int) -> None:
        await end(run, run.choose(self.target), self.word, index)


class Kill(Ending, frozen=True):
    """SIGKILL. Ends when the processes are gone."""

    word = "kill"


async def end(run: Run, machines: Sequence[Machine], word: str, index: int) -> None:
    """End these nodes' processes, all at once; return when they are gone. word: one of SIGNALS."""
    how = SIGNALS[word]
    rows = [run.book.begin(word, index, each) for each in machines]
    running = [each for each in machines if each.running]
    ends = await run.world.together([each.end(how) for each in running])
    exits: dict[NodeId, NodeExit | None] = {each.node: end for each, end in zip(running, ends, strict=True)}
    for row in rows:
        exited = exits.get(row.target)
        if exited is None:
            row.write({"found": "runs on" if row.target in exits else "did not run"}, False, t_done=row.t)
        else:
            row.write(row.identity | {"signal": how.name, "exit": exited.code}, True, t_done=exited.t)
    await run.world.breathe()
