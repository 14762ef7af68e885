"""The process in which a run is simulated and recorded: `python -m lab.debug.recorder FD`.

It reads orders from a socket and answers each with one line of JSON. After the run it serves its branch:

    rows    what changed from one event to another
    sent    the frames between two times
    go      the state at an event
    change  a branch: the state at an event, a change, and the run from there; the socket of the new process is returned

Whenever some processor time has been used, the process forks: the copy, a checkpoint, waits there for an order. It
carries out an order in a copy of its own, so that it stays where it is. Every process ends when the socket to the one
before it closes.
"""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import socket
import sys
from asyncio import events as running
from time import process_time
from typing import Annotated, Any, Final, NoReturn, TypeAlias

import msgspec
from msgspec import Meta, Struct, structs

from lab.debug.stepping import Action, SteppingLoop
from lab.debug.views import Due, Value, View, differences, due, shown, values, views, what
from lab.mutants.catalogue import mutated
from lab.plan import scenario as plan
from lab.plan.scenario import Scenario
from lab.rows import Phase
from lab.sim.frames import Frames
from lab.sim.loop import START_S
from lab.sim.simulator import Outcome, Simulation
from lab.steps.machine import StepMissed
from lab.steps.step import Fault, Step
from lab.steps.targets import NoSuchTarget
from nodeproc.core.messages import NodeId
from nodeproc.errors import ConfigError

MOST_CHECKPOINTS: Final = 128
"""Each takes 7 to 16 MB of memory: the pages that the simulation changes before the next one."""
FIRST_SPACING_S: Final = 0.15
"""Processor time between two checkpoints, doubled whenever there are too many. To replay takes less than to record."""
CHECK_EVERY: Final = 64
"""Events after which the processor time is looked at."""


class Begin(Struct, frozen=True, tag="begin"):
    """Simulate this scenario, given as YAML, up to its end."""

    scenario: str
    seed: int
    mutant: str = ""


class Rows(Struct, frozen=True, tag="rows"):
    """Rows number `first` to `last`, from 0."""

    first: int
    last: int


class Sent(Struct, frozen=True, tag="sent"):
    """The frames that were sent between two times, in virtual seconds since the start, as a list of Flight."""

    since_s: float
    until_s: float


class Go(Struct, frozen=True, tag="go"):
    """The state after event `event`; 0: before the first one."""

    event: int


class Change(Struct, frozen=True, tag="change", forbid_unknown_fields=True):
    """After event `event`, do a step, or do something to a frame on its way; see lab.debug.views.Due for its number.

    step: one step as in a scenario file. drop: the frame is lost. now: it arrives at once. late_s: it arrives
    later by this time.
    """

    event: Annotated[int, Meta(ge=0)]
    step: str = ""
    frame: int = 0
    drop: bool = False
    now: bool = False
    late_s: Annotated[float, Meta(ge=0)] = 0.0


class Row(Struct, frozen=True):
    """One event that changed a node or that a node reported.

    t_s: virtual seconds since the start. changes: node -> field -> (before, after). said: the events that nodes logged.
    """

    event: int
    t_s: float
    what: str
    changes: dict[NodeId, dict[str, tuple[Value, Value]]]
    said: tuple[str, ...] = ()


class Flight(Struct, frozen=True, gc=False):
    """One frame from node `source` to node `to`. arrived_s: once or, if it was duplicated, more often; (): it was lost,
    or had not arrived when the run ended.
    """

    sent_s: float
    arrived_s: tuple[float, ...]
    source: NodeId
    to: NodeId
    kind: str
    text: str


class Recorded(Struct, frozen=True):
    """The answer to Begin and Change: the whole branch.

    events: number of its events, those before the change included. rows: number of rows. broken: the invariant that
    did not hold, and how; "" if all held. missed: expectations that were not met. problem: why the change could not be
    made.
    """

    events: int = 0
    rows: int = 0
    broken: str = ""
    missed: tuple[str, ...] = ()
    problem: str = ""


class State(Struct, frozen=True):
    """The answer to Go.

    step: the index of the step under way among the unrolled steps; -1: none has begun. into_step_s: virtual seconds
    since it began. ending: the steps are over.
    """

    event: int
    t_s: float
    nodes: dict[NodeId, View]
    due: tuple[Due, ...]
    step: int
    into_step_s: float
    ending: bool


Order: TypeAlias = Begin | Rows | Sent | Go | Change
encode: Final = msgspec.json.Encoder().encode
_decode_order: Final = msgspec.json.Decoder(Order).decode
LENGTH: Final = 8
"""Bytes of the length before each message."""


class Line:
    """One end of a socket on which whole messages are exchanged."""

    def __init__(self, end: socket.socket) -> None:
        self.end = end

    def send(self, message: object, files: tuple[int, ...] = ()) -> None:
        """Send a message; `files` are descriptors for the other end."""
        data = encode(message)
        data = len(data).to_bytes(LENGTH, "big") + data
        if files:
            sent = socket.send_fds(self.end, [data], files)
            data = data[sent:]
        self.end.sendall(data)

    def receive(self) -> tuple[bytes, list[int]]:
        """Return a message and the descriptors that came with it.

        Raises:
            EOFError: the other end is closed.
        """
        head, files, _, _ = socket.recv_fds(self.end, LENGTH, 1)
        length = int.from_bytes(self._all(head, LENGTH), "big")
        return self._all(b"", length), files

    def _all(self, data: bytes, length: int) -> bytes:
        while len(data) < length:
            more = self.end.recv(min(length - len(data), 1 << 20))
            if not more:
                raise EOFError
            data += more
        return data

    def ask(self, order: Order) -> bytes:
        """Send an order and return the answer."""
        self.send(order)
        return self.receive()[0]

    def close(self) -> None:
        self.end.close()


class Recorder:
    """The simulation in this process, and the checkpoints before its present event."""

    def __init__(self, begin: Begin, line: Line) -> None:
        self._line = line
        self._loop = SteppingLoop(self._on_event)
        scenario = plan.load("scenario.yml", text=begin.scenario)
        self._simulation = Simulation(scenario, begin.seed, mutant=begin.mutant, loop=self._loop)
        self._scenario = scenario
        self._frames = self._simulation.cluster.network.record = Frames()
        self._rows: list[msgspec.Raw] = []
        """Each Row, encoded: a tenth of the memory, which every fork has to share."""
        self._values = values(self._simulation.cluster)
        self._told = 0
        self._checkpoints: dict[int, Line] = {}
        self._spacing_s, self._forked_s = FIRST_SPACING_S, 0.0
        self._goal: Go | Change | None = None
        """In a copy: the order that it carries out."""
        self._missed: list[str] = []
        self._phases: list[Phase] = []
        self._history_read = 0
        """Number of history rows of which `_phases` are known."""

    def record(self) -> NoReturn:
        """Simulate the run to its end, then serve orders until the line is closed."""
        self._add_checkpoint()
        outcome = self._simulation.carry_out()
        with contextlib.suppress(EOFError, ConnectionError):
            self._line.send(self._recorded(outcome))
            while True:
                self._serve(_decode_order(self._line.receive()[0]))
        _end()

    def _recorded(self, outcome: Outcome) -> Recorded:
        broken = f"{outcome.invariant}: {outcome.text}" if outcome.invariant else ""
        missed = [f"{step}: {found}" for step, found in outcome.missed]
        return Recorded(self._loop.count, len(self._rows), broken, (*missed, *self._missed))

    def _serve(self, order: Order) -> None:
        if isinstance(order, Rows):
            self._line.send(self._rows[order.first : order.last + 1])
            return
        if isinstance(order, Sent):
            self._line.send(self._flights(order))
            return
        assert isinstance(order, Go | Change), order
        order = structs.replace(order, event=min(order.event, self._loop.count))
        checkpoint = self._checkpoints[max(each for each in self._checkpoints if each <= order.event)]
        if isinstance(order, Go):
            self._line.send(msgspec.Raw(checkpoint.ask(order)))
            return
        near, far = socket.socketpair()
        checkpoint.send(order, (far.fileno(),))
        far.close()
        self._line.send(None, (near.fileno(),))
        near.close()

    def _flights(self, order: Sent) -> list[Flight]:
        rows = self._frames.rows(_ns(order.since_s), _ns(order.until_s))
        return [
            Flight(_since_start(row.t), tuple(map(_since_start, row.arrived)), row.source, row.to, row.kind, row.text)
            for row in rows
        ]

    # ---- during the run ------------------------------------------------------------------------------

    def _on_event(self, action: Action, args: tuple[Any, ...]) -> None:
        count = self._loop.count
        if isinstance(self._goal, Go):  # What lies before it is recorded already.
            if self._goal.event == count:
                self._reach(self._goal)
            return
        self._note(count, action, args)
        if self._goal is not None and self._goal.event == count:
            self._reach(self._goal)
        if self._goal is None and not count % CHECK_EVERY and process_time() - self._forked_s > self._spacing_s:
            self._add_checkpoint()

    def _note(self, count: int, action: Action, args: tuple[Any, ...]) -> None:
        cluster = self._simulation.cluster
        now, before = values(cluster), self._values
        if now == before and len(cluster.events) == self._told:
            return
        changes = {
            node: differences(shown(before[node]), shown(now[node])) for node in now if before[node] != now[node]
        }
        said = tuple(f"node {node}: {event.line()}" for _, node, event in cluster.events[self._told :])
        self._values, self._told = now, len(cluster.events)
        row = Row(count, self._seconds(), what(action, args)[0], changes, said)
        self._rows.append(msgspec.Raw(encode(row)))

    def _seconds(self) -> float:
        return self._loop.now - START_S

    # ---- checkpoints ---------------------------------------------------------------------------------

    def _add_checkpoint(self) -> None:
        """Fork. The copy comes back from here once for each order, in a copy of its own."""
        self._read_phases()
        near, far = socket.socketpair()
        if os.fork():
            far.close()
            self._checkpoints[self._loop.count] = Line(near)
            if len(self._checkpoints) > MOST_CHECKPOINTS:
                self._spacing_s *= 2
                for event in list(self._checkpoints)[1::2]:
                    self._checkpoints.pop(event).close()
            self._forked_s = process_time()
            return
        near.close()
        self._adopt(Line(far))
        with contextlib.suppress(EOFError, ConnectionError):
            while True:
                data, files = self._line.receive()
                order = _decode_order(data)
                if os.fork() == 0:
                    assert isinstance(order, Go | Change), order
                    self._take_over(order, files)
                    return
                for each in files:
                    os.close(each)
        _end()

    def _adopt(self, line: Line) -> None:
        """In a copy: speak to the one before over this line only."""
        running._set_running_loop(self._loop.for_asyncio)  # It is bound to the process.
        self._line.close()
        for checkpoint in self._checkpoints.values():
            checkpoint.close()
        self._checkpoints.clear()
        self._line = line

    def _take_over(self, order: Go | Change, files: list[int]) -> None:
        running._set_running_loop(self._loop.for_asyncio)
        if files:
            self._line.close()
            self._line = Line(socket.socket(fileno=files[0]))
        self._goal = order
        if isinstance(order, Go):
            self._simulation.cluster.network.record = None  # The frames up to there are recorded already.
        if order.event == self._loop.count:
            self._reach(order)

    def _reach(self, order: Go | Change) -> None:
        """The event of the order has come: answer and end, or change the run and record what follows."""
        if isinstance(order, Go):
            self._line.send(self._state())
            _end()
        self._goal = None
        try:
            self._change(order)
        except (LookupError, ConfigError, ValueError) as error:
            self._line.send(Recorded(problem=str(error)))
            _end()
        self._add_checkpoint()

    def _state(self) -> State:
        phases = self._read_phases()
        steps = [row for row in phases if row.phase == "step"]
        began = steps[-1].t if steps else 0
        now = round(self._loop.now * 1e9)
        return State(
            self._loop.count,
            self._seconds(),
            views(self._simulation.cluster),
            tuple(due(self._loop)),
            len(steps) - 1,
            (now - began) / 1e9 if steps else 0.0,
            any(row.phase == "healed" for row in phases),
        )

    def _read_phases(self) -> list[Phase]:
        """Return the phases so far. Each checkpoint knows those before it: to read a row is to copy its page."""
        rows = self._simulation.online.rows
        self._phases += [row for row in rows[self._history_read :] if isinstance(row, Phase)]
        self._history_read = len(rows)
        return self._phases

    # ---- changes -------------------------------------------------------------------------------------

    def _change(self, order: Change) -> None:
        if order.step:
            step = read_step(order.step, self._scenario)
            self._loop.create_task(self._do(step))
            return
        when, _, action, args = self._loop.take_out(order.frame)
        described, is_frame = what(action, args)
        if not is_frame:
            raise ValueError(f"{order.frame}: {described}; allowed: a frame on its way")
        if not order.drop:
            self._loop.post(self._loop.now if order.now else when + order.late_s, action, *args)

    async def _do(self, step: Step) -> None:
        runner, index = self._simulation.runner, len(list(self._scenario.unrolled()))
        try:
            if isinstance(step, Fault):
                await runner.do_fault(step, index)
            else:
                await step.do(runner, index)
        except (NoSuchTarget, StepMissed) as missed:
            self._missed.append(f"{step.show()}: {missed}")


def read_step(words: str, scenario: Scenario) -> Step:
    """Read one step as in a scenario file: `kill: leader`.

    Raises:
        ConfigError: it is none, or this scenario cannot have it; names found and allowed.
    """
    step = plan.read_step(words, scenario)
    read = structs.replace(scenario, steps=(step,), expectations=())
    refusals = read.sim_refusals()
    if read.proxies_clients and not scenario.proxies_clients:
        refusals.append("the scenario has no step about the links of clients, so its clients connect directly")
    if refusals:
        raise ValueError(f"{words}: {refusals[0]}")
    return step


def _ns(seconds: float) -> int:
    return round((seconds + START_S) * 1e9)


def _since_start(t: int) -> float:
    return round(t / 1e9 - START_S, 9)


def _end() -> NoReturn:
    os._exit(0)


def main(arguments: list[str]) -> NoReturn:
    """Take the order Begin from the inherited socket, and record."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # Copies that have ended leave nothing behind.
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the program at the other end.
    line = Line(socket.socket(fileno=int(arguments[0])))
    begin = msgspec.json.decode(line.receive()[0], type=Begin)
    gc.disable()
    with mutated(begin.mutant) if begin.mutant else contextlib.nullcontext():
        Recorder(begin, line).record()


if __name__ == "__main__":
    main(sys.argv[1:])
