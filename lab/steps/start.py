"""`start`: nodes that are down are started."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Self

from lab.steps.damage import ended_at_work
from lab.steps.lot import Lot
from lab.steps.machine import Machine, Run, StepMissed
from lab.steps.outlook import UP, Outlook, State
from lab.steps.step import Effect, Fault
from lab.words import Target
from nodeproc.errors import EXIT_CORRUPTION


class Start(Fault, frozen=True):
    """Start nodes that are down. Ends when they answer STATUS. `refuses: true`: they must refuse to start on their
    damaged disk; it ends when all have exited with code 3 and named the damaged file.
    """

    word = "start"
    effect = Effect.UP
    short = "target"
    in_nemesis = False
    drawn_from = 1
    rows = ("start", "refusal")
    target: Target
    refuses: bool = False

    @property
    def leaves_nodes(self) -> frozenset[State]:
        return frozenset() if self.refuses else UP

    def findings(self) -> Iterator[str]:
        if self.refuses:
            yield self.show()

    def impossible(self, outlook: Outlook) -> Iterator[str]:
        if self.refuses and outlook.damaged is None and not outlook.anything:
            yield "nothing has damaged a disk before, so that no node refuses to start"

    @classmethod
    def draw(cls, lot: Lot) -> Self:
        return cls(target="all")

    async def do(self, run: Run, index: int) -> None:
        machines = run.choose(self.target)
        if not self.refuses:
            await start(run, machines, index)
            return
        began = run.now_ns()
        await run.world.launch([each.node for each in machines])
        for machine in machines:
            if found := _refusal(run, machine, began, index):
                raise StepMissed(found)
        run.note(index, self, met=True, found="all refused, and named the damaged file")


async def start(run: Run, machines: Sequence[Machine], index: int) -> None:
    """Start those of these nodes that are down, all at once; done when they answer."""
    roles, began = {each.node: each.role for each in machines}, run.now_ns()
    took = await run.world.launch([each.node for each in machines])
    for machine in machines:
        evidence, hit, done = machine.identity(), machine.node in took, began
        if hit:
            evidence["ready_s"] = round(took[machine.node], 4)
            done = began + int(took[machine.node] * 1e9)
        elif ended_at_work(machine.exits, began):
            hit, evidence["found"], done = True, "the others know that its data is older", machine.exits[-1].t
        else:
            evidence["found"] = "ran already" if machine.running else "its disk kept it from running"
        run.book.write("start", machine.node, roles[machine.node], began, evidence, hit, index, t_done=done)


def _refusal(run: Run, machine: Machine, began: int, index: int) -> str:
    """Judge how a node ended that had to refuse its disk; returns what was not so, "" if nothing."""
    node, end = machine.node, machine.exits[-1] if machine.exits else None
    if machine.running or end is None or end.t < began:
        return f"node {node} did not refuse its disk"
    cause, says = run.book.causes.why(node, end.code, machine.starts), machine.says()
    if end.code != EXIT_CORRUPTION or cause is None:
        return f"node {node} ended with exit code {end.code}, not {EXIT_CORRUPTION}: {says}"
    if cause.place not in says:
        return f"node {node} did not name {cause.place}: {says}"
    run.book.write("refusal", node, "down", began, {"exit": end.code, "says": says}, True, index)
    return ""
