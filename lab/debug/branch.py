"""A recorded run, as the debugger's user sees it: its rows, the state at any event, and the branches that leave it."""

from __future__ import annotations

import socket
import subprocess
import sys
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import msgspec
from msgspec import structs

from lab.debug.recorder import Begin, Change, Flight, Go, Line, Recorded, Row, Rows, Sent, State, read_step
from lab.live.children import child_environment
from lab.plan import scenario as plan
from lab.plan.scenario import Scenario
from lab.steps import Sleep, Wait
from lab.steps.step import Step
from lab.words import Duration

_decode_rows = msgspec.json.Decoder(list[Row]).decode
_decode_flights = msgspec.json.Decoder(list[Flight]).decode
_decode_state = msgspec.json.Decoder(State).decode
_decode_recorded = msgspec.json.Decoder(Recorded).decode

RECORDER: Final = (sys.executable, "-m", "lab.debug.recorder")
BLOCK: Final = 256
"""Rows that are read at once."""


@dataclass(eq=False, slots=True)
class Branch:
    """One course of a run. Its process ends when the branch is closed, or when this process ends.

    parent, change: the branch that it leaves, and how; None in the run itself.
    """

    line: Line
    recorded: Recorded
    parent: Branch | None = None
    change: Change | None = None
    process: subprocess.Popen[bytes] | None = None
    """Of the run itself."""

    def rows(self, first: int, last: int) -> list[Row]:
        """Return rows `first` to `last`, from 0; fewer where the branch has fewer."""
        return _decode_rows(self.line.ask(Rows(max(first, 0), last)))

    def rows_from(self, number: int) -> Iterator[Row]:
        """Yield the rows from this one to the last one."""
        for first in range(number, self.recorded.rows, BLOCK):
            yield from self.rows(first, first + BLOCK - 1)

    def sent(self, since_s: float, until_s: float) -> list[Flight]:
        """Return the frames that were sent between two times, virtual seconds since the start."""
        return _decode_flights(self.line.ask(Sent(since_s, until_s)))

    def row_at(self, event: int) -> int:
        """Return the number of the last row at this event or before it; -1: there is none."""
        return self.last_row(lambda row: row.event <= event)

    def last_row(self, wanted: Callable[[Row], bool]) -> int:
        """Return the number of the last row for which this holds; it must hold for all rows before it. -1: for none."""
        return bisect_left(range(self.recorded.rows), True, key=lambda row: not wanted(self.rows(row, row)[0])) - 1

    def go(self, event: int) -> State:
        """Return the state after an event; 0: before the first one. A later event than the last means the last."""
        return _decode_state(self.line.ask(Go(event)))

    def branch(self, change: Change) -> Branch:
        """Change the run after event `change.event`, and carry it on to its end.

        Raises:
            ValueError: the change cannot be made; this branch is as before.
        """
        self.line.send(change)
        _, files = self.line.receive()
        line = Line(socket.socket(fileno=files[0]))
        try:
            recorded = _decode_recorded(line.receive()[0])
        except EOFError:
            recorded = Recorded(problem="the simulation failed; its error is on standard error")
        if recorded.problem:
            line.close()
            raise ValueError(recorded.problem)
        return Branch(line, recorded, self, change)

    def changes(self) -> list[tuple[State, Change]]:
        """Return what was done by hand, the earliest first, each with the state at which it was done."""
        if self.parent is None or self.change is None:
            return []
        return [*self.parent.changes(), (self.parent.go(self.change.event), self.change)]

    def close(self) -> None:
        """End the branch's processes."""
        self.line.close()
        if self.process is not None:
            self.process.wait()


def begin(scenario: Scenario, seed: int, mutant: str = "") -> Branch:
    """Simulate a scenario to its end in a process of its own.

    Raises:
        EOFError: the process has ended; it has said why on standard error.
    """
    near, far = socket.socketpair()
    line = Line(near)
    command = [*RECORDER, str(far.fileno())]
    process = subprocess.Popen(command, pass_fds=[far.fileno()], stdin=subprocess.DEVNULL, env=child_environment())
    far.close()
    try:
        recorded = _decode_recorded(line.ask(Begin(plan.encode(scenario), seed, mutant)))
    except EOFError:
        process.wait()
        raise
    return Branch(line, recorded, process=process)


def as_scenario(scenario: Scenario, changes: Sequence[tuple[State, Change]], name: str) -> Scenario:
    """Return a scenario that does at the same time what was done by hand.

    With the same seed its run is alike but not the same: random numbers are drawn in another order.

    Args:
        changes: (the state at the change, the change), the earliest first.

    Raises:
        ValueError: something was done to a single frame, for which a scenario has no step.
    """
    steps: list[Step] = list(scenario.unrolled())
    shift = 0
    for state, change in changes:
        if not change.step:
            raise ValueError("a scenario has no step for what was done to one frame; allowed: branches made by steps")
        step, at = read_step(change.step, scenario), state.step + shift
        if state.ending or at < 0:
            at = len(steps) if state.ending else 0
            steps[at:at] = [step]
            shift += 1
            continue
        now, into = steps[at], Duration(round(state.into_step_s, 9))
        if isinstance(now, Sleep):
            rest = Duration(round(max(0.0, now.time - into), 9))
            steps[at : at + 1] = [Sleep(time=into), step, Sleep(time=rest)]
            shift += 2
        elif isinstance(now, Wait):
            steps[at:at] = [Sleep(time=into), step]
            shift += 2
        else:
            steps[at + 1 : at + 1] = [step]
            shift += 1
    return structs.replace(scenario, name=name, steps=tuple(steps))
