"""The course of a run, the same on real processes and in virtual time: from the first step to all that is kept of it.

The order of things: start the nodes; do the steps; stop the load, heal everything, wait until all nodes have delivered
the same; stop the nodes; keep the papers. A step that misses its time ends the steps and not the run: it is healed and
judged all the same. A Stage is what the run is played on: lab.live.live has one, lab.sim.simulator another.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias

from lab.course.clients import NamedClients, Subscribers
from lab.course.environment import Environment, History
from lab.course.load import Tally
from lab.course.manifest import target_rng
from lab.plan.scenario import Scenario
from lab.rows import Convergence, Expectation, Phase
from lab.steps import Heal, Step
from lab.steps.book import FaultBook
from lab.steps.expect import Expectation as Expected
from lab.steps.machine import Addresses, Machine, RunFailed, RunningLoad, StepMissed, World
from lab.steps.rules import CLIENTS, Pair
from lab.steps.step import Fault
from lab.steps.targets import ClusterView, NodeView, NoSuchTarget, choose
from lab.steps.wait import LOOK_EVERY_S
from lab.words import LinkEnd, Target
from nodeproc.core.messages import NodeId

Progress: TypeAlias = Callable[[str], None]

SAMPLE_EVERY_S = 0.5
TELL_EVERY_S = 2.0
FIRST_LEADER_PATIENCE_S = 20.0
SETTLE_SLACK_S = 5.0
"""On top of the clients' deadline, until all outcomes must be told."""
NAMED_DEADLINE_S = 30.0


@dataclass(slots=True)
class Facts:
    """What meta.json is made of, as it comes to be known."""

    t_start: int = 0
    t_end: int = 0
    t_healed: int = 0
    convergence: Convergence | None = None
    expectations: list[Expectation] = field(default_factory=list)
    problem: str = ""


class Cluster(World, Protocol):
    """The machines of a run from their beginning to their end."""

    @property
    def rotten(self) -> list[str]:
        """Bytes that old rot has changed and nobody has repaired yet."""

    async def open(self, seed: int) -> None: ...

    async def view(self) -> ClusterView:
        """Ask every node that runs and is not paused."""

    def look(self) -> None:
        """Take a sample of what the nodes cost."""

    def mark_events(self) -> None:
        """Events are counted from here on."""

    async def close(self) -> None:
        """SIGTERM everything that runs, and let go of what was held."""

    def drop(self) -> None:
        """Kill what still runs, at once: for any end of a run. May be called again."""


class Load(RunningLoad, Protocol):
    """The load of a run, and its processes."""

    @property
    def total(self) -> Tally: ...

    async def spawn(self) -> None: ...

    async def start(self, via: tuple[NodeId, ...], addresses: Addresses) -> None: ...

    def halt(self) -> None: ...

    async def settled(self) -> None: ...

    def check(self) -> None: ...

    async def close(self) -> None: ...

    def kill(self) -> None: ...


@dataclass
class Stage:
    """What a run is played on.

    draws: what faults leave open, by the run's seed.
    """

    environment: Environment
    history: History
    cluster: Cluster
    load: Load | None
    book: FaultBook
    draws: random.Random


class Triggers:
    """What `when` steps wait for, beside the steps that follow."""

    def __init__(self) -> None:
        self.tasks: dict[int, asyncio.Task[None]] = {}
        """Index of a `when` step -> what waits for it, and does it."""
        self._fired: set[int] = set()

    def arm(self, index: int, waiting: Coroutine[Any, Any, None]) -> None:
        """Begin to wait."""
        self.tasks[index] = asyncio.create_task(waiting)

    def fired(self, index: int) -> None:
        """It has come true."""
        self._fired.add(index)

    async def end(self) -> list[int]:
        """The steps are over: what fired is finished; returns the indices of those that did not."""
        missed = [index for index in self.tasks if index not in self._fired]
        for index in missed:
            self.tasks[index].cancel()
        await asyncio.gather(*(self.tasks[index] for index in sorted(self._fired)))
        return missed

    def cancel(self) -> None:
        """End all waiting, at once."""
        for task in self.tasks.values():
            task.cancel()


class Runner:
    """One run. carry_out() does it; the methods below stand in the order in which it uses them. See machine.Run."""

    def __init__(self, scenario: Scenario, stage: Stage, seed: int, progress: Progress) -> None:
        self._scenario, self.seed, self._progress = scenario, seed, progress
        self._environment, self._history, self._cluster = stage.environment, stage.history, stage.cluster
        self.world, self.load, self.book, self.draws = stage.cluster, stage.load, stage.book, stage.draws
        self.is_foreign = scenario.cluster.is_foreign
        self.now, self.now_ns = stage.environment.now, stage.environment.now_ns
        self.rng = target_rng(seed)
        self.facts = Facts()
        self.named = NamedClients(self._history, self._environment)
        self.view = ClusterView({})
        self.delivered: dict[NodeId, int] = {}
        self.term_before = 0
        self._subscribers: Subscribers | None = None
        self._told_at = self.now()
        self._step_text = ""
        self._one_fault = asyncio.Lock()
        """Held while a fault is being done: triggers may want to do one at the same time."""
        self._sampler: asyncio.Task[None] | None = None
        self.triggers = Triggers()

    async def carry_out(self) -> None:
        """The whole run. See the module's docstring."""
        self._sampler = sampler = asyncio.create_task(self._sample_regularly())
        try:
            await self._open()
            await self._do_steps()
            await self._finish()
        except asyncio.CancelledError:
            self.facts.problem = "interrupted"
            raise
        except BaseException as error:
            self.facts.problem = f"{type(error).__name__}: {error}"
            raise
        finally:
            sampler.cancel()
            self.triggers.cancel()
            self._cluster.drop()
            if self.load is not None:
                self.load.kill()
            self.facts.t_end = self.now_ns()

    # ---- the beginning ---------------------------------------------------------------------------

    async def _open(self) -> None:
        """Nodes started and agreed on a leader, subscribers connected, load workers ready to be told what to do."""
        self.tell("starting the nodes")
        await self._cluster.open(self.seed)
        started = self._scenario.cluster.started_ids
        warming = [self._cluster.launch(started)] + ([self.load.spawn()] if self.load is not None else [])
        await _all(warming)
        if 2 * len(started) > self._scenario.cluster.nodes:
            await self._first_leader()
        self._subscribers = Subscribers(
            self._scenario.subscribers, self.world.addresses, self._history, self._environment
        )
        self._mark_fault(await self._cluster.view())
        self.facts.t_start = self.now_ns()

    async def _first_leader(self) -> None:
        """All started nodes agree on a leader, or the run is not worth a step."""
        began = self.now()
        while (view := await self._cluster.view()).agreed_leader() is None:
            if self.now() - began > FIRST_LEADER_PATIENCE_S:
                raise RunFailed(f"no leader within {FIRST_LEADER_PATIENCE_S:g} s of the start: {_show(view)}")
            await asyncio.sleep(LOOK_EVERY_S)

    async def _sample_regularly(self) -> None:
        while True:
            self._cluster.look()
            self._history.flush()
            await asyncio.sleep(SAMPLE_EVERY_S)

    # ---- the steps -------------------------------------------------------------------------------

    async def _do_steps(self) -> None:
        """One after the other, until one is missed."""
        steps = list(self._scenario.unrolled())
        for index, step in enumerate(steps):
            self._step_text = f"step {index + 1} of {len(steps)}, {step.show()}"
            self.tell(self._step_text)
            self._phase("step", step.show())
            try:
                if isinstance(step, Fault):
                    await self.do_fault(step, index)
                else:
                    await step.do(self, index)
            except (StepMissed, NoSuchTarget) as missed:
                self.note(index, step, met=False, found=str(missed))
                self.tell(f"missed: {step.show()}: {missed}")
                break
            self._check_alive()
        for index in await self.triggers.end():
            self.note(index, steps[index], met=False, found="it did not come true")

    async def do_fault(self, fault: Fault, index: int, number: int = 0, *, of: Fault | None = None) -> None:
        """See machine.Run."""
        text = (of or fault).words
        if number and of is None:
            self._step_text = f"nemesis {number}: {text}"
            self._tell_sometimes()
        async with self._one_fault:
            self.view = await self.look()
            if of is None:
                self._mark_fault(self.view)
            self.book.asking(text, number)
            await fault.do(self, index)

    def _mark_fault(self, view: ClusterView) -> None:
        """Remember what `new_leader` and `event` are compared with."""
        self.term_before = max(self.term_before, view.highest_term)
        self._cluster.mark_events()

    # ---- what steps ask of it --------------------------------------------------------------------

    async def look(self) -> ClusterView:
        """See machine.Run."""
        view = await self._cluster.view()
        for node, answer in self.world.statuses.items():
            self.delivered[node] = answer.delivered_seq
        return view

    async def view_now(self) -> ClusterView:
        """See machine.Run."""
        return await self._cluster.view()

    def choose(self, target: Target) -> list[Machine]:
        """See machine.Run."""
        return [self.world.machines[node] for node in choose(target, self.view, self.rng)]

    def pairs(self, source: LinkEnd, to: LinkEnd) -> tuple[Pair, ...]:
        """See machine.Run."""
        sources, targets = (
            (CLIENTS,) if end == "clients" else choose(end, self.view, self.rng) for end in (source, to)
        )
        return tuple((one, other) for one in sources for other in targets if one != other)

    async def start_load(self) -> None:
        """See machine.Run."""
        load, planned = self.load, self._scenario.load
        assert load is not None and planned is not None, "a scenario without load does not start one"
        if not load.finished:
            raise StepMissed("the load runs already")
        via = choose(planned.via, await self._cluster.view(), self.rng)
        await load.start(via, self.world.addresses)
        self._phase("load_started")

    async def stop_load(self) -> None:
        """See machine.Run. What is under way waits at most until its deadline makes it unknown."""
        load, planned = self.load, self._scenario.load
        if load is None or planned is None or load.finished:
            return
        load.halt()
        try:
            async with asyncio.timeout(planned.deadline + SETTLE_SLACK_S):
                await load.settled()
        except TimeoutError:
            raise RunFailed(f"the load has {load.total.pending} messages without any outcome") from None
        self._phase("load_stopped")

    # ---- the end ---------------------------------------------------------------------------------

    async def _finish(self) -> None:
        """Stop the load, heal, let everything settle, converge, and stop the nodes."""
        if self.load is not None and not self.load.finished:
            self.load.halt()
        self._step_text = "healing"
        self.tell("healing and waiting until all nodes are the same")
        self.view = ClusterView({node: NodeView(running=True) for node in self._scenario.cluster.ids})
        await Heal().do(self, -1)
        self.facts.t_healed = self.now_ns()
        self._phase("healed")
        await self.stop_load()
        await self._settle_named()
        convergence = self.facts.convergence = await self._converge()
        self._phase("converged" if convergence.reached else "diverged", "; ".join(self._cluster.rotten))
        if self._subscribers is not None:
            last = max(convergence.delivered.values(), default=0)
            await self._subscribers.until_shown(last, float(self._scenario.bounds.convergence))
            await self._subscribers.close()
        await self.named.close()
        if self.load is not None:
            await self.load.close()
        await self._cluster.close()

    async def _settle_named(self) -> None:
        """What `send` steps did not wait for gets its outcome now."""
        began = self.now()
        while self.named.waiting and self.now() - began < NAMED_DEADLINE_S + SETTLE_SLACK_S:
            await asyncio.sleep(LOOK_EVERY_S)

    async def _converge(self) -> Convergence:
        """Wait until all nodes have delivered the same, and nothing is left to be delivered. Rule: A9."""
        bound, began = float(self._scenario.bounds.convergence), self.now()
        while True:
            view = await self._cluster.view()
            delivered = {node: answer.delivered_seq for node, answer in sorted(self.world.statuses.items())}
            took = self.now() - began
            reached = took <= bound and self._is_converged(view)
            if reached or took > bound:
                return Convergence(bound, reached, round(took, 4), delivered, view.highest_term)
            self._tell_sometimes()
            await asyncio.sleep(LOOK_EVERY_S)

    def _is_converged(self, view: ClusterView) -> bool:
        answers = self.world.statuses
        if self._cluster.rotten:
            return False
        if len(answers) < len(view.nodes) or view.agreed_leader() is None:
            return False
        last = answers[view.leader].last_seq
        return all(each.delivered_seq == each.commit_seq == last for each in answers.values())

    # ---- notes -----------------------------------------------------------------------------------

    def note(self, index: int, what: Step | Expected, *, met: bool, found: str) -> None:
        """See machine.Run."""
        text = what.show()
        self.facts.expectations.append(Expectation(index, text, met, found, self.now_ns()))

    def _phase(self, phase: str, detail: str = "") -> None:
        self._history.write(Phase(self.now_ns(), phase, detail))

    def tell(self, text: str) -> None:
        """See machine.Run."""
        self._told_at = self.now()
        self._progress(text)

    def _tell_sometimes(self) -> None:
        if self.now() - self._told_at >= TELL_EVERY_S:
            total = self.load.total if self.load is not None else None
            numbers = f": {total.acknowledged} acknowledged, {total.pending} waiting" if total is not None else ""
            self.tell(f"{self._step_text}{numbers}")

    def check(self) -> None:
        """See machine.Run."""
        self._tell_sometimes()
        self._check_alive()

    def _check_alive(self) -> None:
        """Raise what ended the lab's own processes, triggers or sampling; a node that ended is the judges' affair."""
        for task in (self._sampler, *self.triggers.tasks.values()):
            if task is not None and task.done():
                task.result()
        if self.load is not None:
            self.load.check()

    async def show(self) -> str:
        """How things stand, for a step that was missed."""
        total = self.load.total if self.load is not None else None
        load = f"; load: {total.acknowledged} acknowledged, {total.pending} waiting" if total is not None else ""
        return _show(await self._cluster.view()) + load


async def _all(parts: list[Coroutine[Any, Any, Any]]) -> None:
    """All at the same time; the first error ends the others and is raised."""
    try:
        async with asyncio.TaskGroup() as group:
            for part in parts:
                group.create_task(part)
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from None


def _show(view: ClusterView) -> str:
    """Every node in a few words: `1 follower of 3 term 2 delivered 40/41`."""
    shown = []
    for node in view.ids:
        state = view.nodes[node]
        if not state.running or state.paused:
            shown.append(f"{node} {'paused' if state.paused else 'down'}")
        elif not state.role:
            shown.append(f"{node} silent")
        else:
            place = f"term {state.term} delivered {state.delivered_seq}/{state.commit_seq}"
            shown.append(f"{node} {state.role} of {state.leader} {place}")
    return ", ".join(shown)
