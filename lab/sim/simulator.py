"""Simulate a scenario in virtual time. Steps and product code are those of a live run; all else follows from the seed.

simulator.run(scenario, run, seed=7)      fills a run directory, as lab.live.live does
simulator.simulate(scenario, seed)        returns the outcome only
"""

from __future__ import annotations

import gc
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from types import FrameType

import msgspec
from msgspec import structs

from lab.check.online import Broken, OnlineChecks, StopAtFirst
from lab.check.verdict import Check, Findings
from lab.course.frames import Chosen
from lab.course.livelog import LiveLog
from lab.course.manifest import surroundings
from lab.course.runner import Runner
from lab.plan import scenario as plan
from lab.plan.scenario import Scenario
from lab.rows import FaultRow, Meta, encode_row
from lab.rundir import RunDir
from lab.sim.cluster import SimCluster, SimEnvironment, SimHistory, SimLoad
from lab.sim.frames import Frames
from lab.sim.hardware import EPOCH
from lab.sim.loop import START_S, Deadlock, VirtualLoop
from lab.steps.book import FaultBook, with_heals
from lab.steps.machine import RunFailed
from nodeproc import native
from nodeproc.disk.recovery import lines_name

STARTED_UTC = datetime.fromtimestamp(EPOCH + START_S, UTC).isoformat(timespec="milliseconds")
"""The start of every simulation."""

_encode_event = msgspec.json.Encoder().encode


@dataclass(slots=True)
class Outcome:
    """The outcome of a simulation.

    invariant, text: the first invariant that did not hold, and what was found; "" if all held. `assert` or `crash`: the
        product's code failed, by an assertion or by another exception.
    missed: the scenario's expectations and waits that were not met: (step, what was found).
    virtual_s: duration in virtual time.
    faults: kind -> how many had an effect. events: kind -> how often nodes reported it.
    """

    invariant: str = ""
    text: str = ""
    missed: list[tuple[str, str]] = field(default_factory=list)
    virtual_s: float = 0.0
    frames: int = 0
    elections: int = 0
    messages: int = 0
    faults: dict[str, int] = field(default_factory=dict)
    events: dict[str, int] = field(default_factory=dict)


class Simulation:
    """One run in virtual time.

    Args:
        live: receives the rows of live.jsonl; None: there is none.
    """

    def __init__(
        self,
        scenario: Scenario,
        seed: int,
        *,
        mutant: str = "",
        findings: type[Findings] = StopAtFirst,
        live: list[bytes] | None = None,
        loop: VirtualLoop | None = None,
    ) -> None:
        self.scenario, self.seed, self.mutant, self.live = scenario, seed, mutant, live
        self.loop = loop or VirtualLoop()
        self.loop.fatal = (Broken, AssertionError)
        self.environment = SimEnvironment(self.loop, seed)
        self.online = OnlineChecks(scenario, self.environment.now_ns, self.environment.tokens, findings)
        self.checks: list[Check] = []
        """The decisions of the judges; empty until the end of the run."""
        self.history = SimHistory(self.environment, self.online)
        self.book = FaultBook(self.environment.now_ns, self.online.on_fault)
        draws = random.Random(f"{seed} faults")
        self.cluster = SimCluster(scenario, seed, self.loop, self.online, self.book, draws)
        self.load = None if scenario.load is None else SimLoad(scenario.load, seed, self.environment, self.history)
        self.runner = Runner(
            scenario,
            seed,
            lambda text: None,
            self.environment,
            self.history,
            self.cluster,
            self.load,
            self.book,
            draws,
            LiveLog(None if live is None else live.append, self.environment.now_ns),
        )

    def carry_out(self) -> Outcome:
        """Carry out the run; a broken invariant is part of the outcome."""
        outcome = Outcome()
        started_at = self.loop.now
        try:
            try:
                self.loop.run(self.runner.carry_out())
                self._judge_end()
            except (Deadlock, RunFailed) as error:
                raise Broken("A9", str(error)) from None
        except Broken as broken:
            outcome.invariant, outcome.text = broken.invariant, broken.text
        except Exception as broken:
            if not isinstance(broken, AssertionError) and not _is_products(broken):
                raise
            outcome.invariant = "assert" if isinstance(broken, AssertionError) else "crash"
            outcome.text = _where(broken)
        found = self.runner.facts.expectations
        outcome.missed = [(each.text, each.found) for each in found if not each.met]
        outcome.virtual_s = self.loop.now - started_at
        outcome.frames, outcome.messages = self.cluster.network.frames, self.online.sent
        outcome.faults, outcome.events = _hits(self.book.rows), self.cluster.seen
        outcome.elections = outcome.events.get("became_leader", 0)
        return outcome

    def _judge_end(self) -> None:
        convergence = self.runner.facts.convergence
        if convergence is None or not convergence.reached:
            found = "no convergence" if convergence is None else f"delivered {convergence.delivered}"
            raise Broken("A9", f"the nodes did not become the same in time: {found}")
        logs = {
            node: each.files.contents([lines_name(node)])[lines_name(node)]
            for node, each in self.cluster.machines.items()
            if node in convergence.delivered or self.cluster.use()[node].ended_cleanly
        }
        self.checks = self.online.finish(self._meta(), with_heals(self.book.rows), logs)

    # ---- the run directory ---------------------------------------------------------------------------

    def write(self, run: RunDir, outcome: Outcome) -> None:
        """Write the files of a run directory, as a live run leaves them, from memory."""
        run.scenario.write_text(plan.encode(structs.replace(self.scenario, seed=self.seed)), "utf-8")
        run.live.write_bytes(b"".join(self.live or ()))
        run.history.write_bytes(b"".join(map(encode_row, self.online.rows)))
        run.write_faults(with_heals(self.book.rows))
        events: dict[int, list[bytes]] = {node: [] for node in self.cluster.machines}
        for t, node, event in self.cluster.events:
            events[node].append(b'{"t_ns":%d,"node":%d,' % (t, node) + _encode_event(event)[1:] + b"\n")
        for node, each in self.cluster.machines.items():
            for name, data in each.files.contents().items():
                path = run.node_dir(node) / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(data)
            run.node_dir(node).mkdir(parents=True, exist_ok=True)
            run.events(node).write_bytes(b"".join(events[node]))
        if (record := self.cluster.network.record) is not None:
            run.frames.write_bytes(b"".join(map(encode_row, record.rows())))
        watched = f"{outcome.invariant}: {outcome.text}" if outcome.invariant else ""
        where = surroundings(self.scenario.cluster, is_native=bool(native.compiled()))
        run.write_meta(structs.replace(self._meta(), watched=watched, **where))

    def _meta(self) -> Meta:
        record = self.cluster.network.record
        frames = "none" if record is None else "all" if record.takes_all else "chosen"
        return structs.replace(self.runner.meta("sim", STARTED_UTC, 0, self.mutant), frames=frames)


def run(scenario: Scenario, run: RunDir, *, seed: int, mutant: str = "", frames: bool = False) -> Outcome:
    """Simulate a scenario and fill the run directory, from which the judges then decide.

    Args:
        mutant: the mutant that the caller has made of the product (lab.mutants); "": none.
        frames: record all frames in frames.jsonl, plain traffic too.
    """
    if frames:  # A diagram of frames also shows the nodes' events of level DEBUG.
        scenario = structs.replace(scenario, cluster=structs.replace(scenario.cluster, log_level="DEBUG"))
    simulation = Simulation(scenario, seed, mutant=mutant, live=[])
    simulation.cluster.network.record = Frames(None if frames else Chosen())
    outcome = simulation.carry_out()
    simulation.write(run, outcome)
    return outcome


def simulate(scenario: Scenario, seed: int) -> Outcome:
    """Simulate a scenario, and return its outcome only.

    The garbage collector is off meanwhile: a simulation leaves few cycles of objects, and searching for them takes a
    twentieth of its time.
    """
    collected = gc.isenabled()
    gc.disable()
    simulation = Simulation(scenario, seed)
    try:
        return simulation.carry_out()
    finally:
        simulation.online.release()
        if collected:
            gc.enable()


def _innermost(error: BaseException) -> FrameType:
    """Return the frame in which the error was raised."""
    trace = error.__traceback__
    assert trace is not None, "it was raised and caught"
    while trace.tb_next is not None:
        trace = trace.tb_next
    return trace.tb_frame


def _is_products(error: BaseException) -> bool:
    """Return whether the product's code raised the error, and not the lab's."""
    module = str(_innermost(error).f_globals["__name__"])
    return module.startswith(("nodeproc", "lab.mutants"))


def _where(error: BaseException) -> str:
    """Return the function that failed, and the error's text; without its class, which a native frame does not know."""
    said = str(error) if isinstance(error, AssertionError) else f"{type(error).__name__}: {error}"
    frame = _innermost(error)
    return f"{frame.f_globals['__name__']}.{frame.f_code.co_name}: {said}"


def _hits(rows: Sequence[FaultRow]) -> dict[str, int]:
    """Return fault kind -> how many of the scenario's faults of this kind had an effect."""
    hit = [row for row in rows if row.effect and row.step >= 0 and row.fault != "heal"]
    in_a_write = sum(row.evidence.get("in_a_write", False) for row in hit)
    return Counter(row.fault for row in hit) | ({"power_loss in a write": in_a_write} if in_a_write else {})
