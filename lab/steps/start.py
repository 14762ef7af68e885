"""`start`: nodes that are down are started."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Self

from lab.steps.damage import ended_at_work
from lab.steps.lot import Lot
from lab.steps.machine import Machine, Run, StepMissed
from lab.steps.outlook import DOWN, UP, Outlook, State
from lab.steps.step import Effect, Fault
from lab.words import Target
from nodeproc.errors import EXIT_CORRUPTION

if TYPE_CHECKING:
    from lab.steps.book import Draft

ENDED_AGAIN = "it ended again at once"
"""In the row of a node that could not be started."""


class Start(Fault, frozen=True):
    """Start nodes that are down. Ends when they answer STATUS. `refuses: true`: they must refuse to start on their
    damaged disk; it ends when all have exited with code 3 and named the damaged file.
    """

    word = "start"
    effect = Effect.UP
    short = "target"
    in_nemesis = False
    acts_on = DOWN
    drawn_from = 1
    target: Target
    refuses: bool = False

    @property
    def leaves(self) -> tuple[str, ...]:
        return ("refusal" if self.refuses else "start",)

    @property
    def leaves_nodes(self) -> frozenset[State]:
        return frozenset() if self.refuses else UP

    def findings(self) -> Iterator[str]:
        if self.refuses:
            yield self.show()

    def impossible(self, outlook: Outlook) -> Iterator[str]:
        if self.refuses and outlook.damaged is None and not outlook.anything:
            yield "no step before damages a disk, so that no node refuses to start"

    @classmethod
    def draw(cls, lot: Lot) -> Self:
        return cls(target="all")

    async def do(self, run: Run, index: int) -> None:
        machines = run.choose(self.target)
        if not self.refuses:
            await start(run, machines, index)
            return
        rows = [run.book.begin("refusal", index, each) for each in machines]
        await run.world.launch([each.node for each in machines])
        for machine, row in zip(machines, rows, strict=True):
            if found := _refusal(run, machine, row):
                raise StepMissed(found)
        run.note(index, self, met=True, found="all refused, and named the damaged file")


async def start(run: Run, machines: Sequence[Machine], index: int) -> None:
    """Start those of these nodes that are down, all at once; return when they answer."""
    rows = [run.book.begin("start", index, each) for each in machines]
    took = await run.world.launch([each.node for each in machines])
    for machine, row in zip(machines, rows, strict=True):
        evidence, hit, done = machine.identity(), machine.node in took, row.t
        if hit:
            evidence["ready_s"] = round(took[machine.node], 4)
            done = row.t + int(took[machine.node] * 1e9)
        elif ended_at_work(machine.exits, row.t):
            hit, evidence["found"], done = True, "the others know that its data is older", machine.exits[-1].t
        else:
            evidence["found"] = "ran already" if machine.running else ENDED_AGAIN
        row.write(evidence, hit, t_done=done)


def _refusal(run: Run, machine: Machine, row: Draft) -> str:
    """Write the row of a node that refused its disk as it had to; return what was wrong otherwise, or ""."""
    node, end = machine.node, machine.exits[-1] if machine.exits else None
    if machine.running or end is None or end.t < row.t:
        return f"node {node} did not refuse its disk"
    cause, says = run.book.causes.why(node, end.code, machine.starts), machine.says()
    if end.code != EXIT_CORRUPTION or cause is None:
        return f"node {node} ended with exit code {end.code}, not {EXIT_CORRUPTION}: {says}"
    if cause.place not in says:
        return f"node {node} did not name {cause.place}: {says}"
    row.write({"exit": end.code, "says": says}, True)
    return ""
