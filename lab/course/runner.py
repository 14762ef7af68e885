"""The runner: carries out a scenario, in the live world (lab.live.live) and in the simulated world (lab.sim.simulator).

It starts the nodes, does the steps, stops the load, heals everything, waits until all nodes have delivered the same
messages, and stops the nodes. A step that misses its time ends the steps but not the run: the run is healed and judged
like any other.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TypeAlias

from msgspec import structs

from lab.course.by_hand import ByHand
from lab.course.clients import NamedClients, Subscribers
from lab.course.environment import Environment
from lab.course.livelog import LiveLog
from lab.course.load import Workers
from lab.course.observation import SeenLeaders
from lab.course.recording import History
from lab.plan.scenario import Scenario
from lab.rows import Convergence, Expectation, FaultRow, Meta, NodeUse, Phase
from lab.steps import Hands, Heal, Sleep, Step
from lab.steps.book import FaultBook
from lab.steps.expect import Expectation as Expected
from lab.steps.machine import Machine, RunFailed, StepMissed, World
from lab.steps.rules import CLIENTS, Pair
from lab.steps.step import Fault
from lab.steps.targets import ClusterView, NodeView, NoSuchTarget, choose
from lab.steps.wait import LOOK_EVERY_S
from lab.steps.when import Triggers
from lab.words import LinkEnd, Target
from nodeproc.core.messages import NodeId
from nodeproc.lines import Status

Progress: TypeAlias = Callable[[str], None]

SAMPLE_EVERY_S = 0.5
WATCH_EVERY_S = 0.2
"""From one look at the nodes for live.jsonl to the next. It costs each node about 0.05 % of a core."""
REPORT_EVERY_S = 2.0
FIRST_LEADER_PATIENCE_S = 20.0
SETTLE_SLACK_S = 5.0
"""After the clients' deadline, the clients have this long to report all outcomes."""
NAMED_DEADLINE_S = 30.0


@dataclass(slots=True)
class Facts:
    """The parts of meta.json that the runner finds out."""

    t_start: int = 0
    t_end: int = 0
    t_healed: int = 0
    convergence: Convergence | None = None
    expectations: list[Expectation] = field(default_factory=list)
    problem: str = ""


class Cluster(World, Protocol):
    """The machines of a run, from their start to their end."""

    kind: Literal["live", "sim"]
    leaders: SeenLeaders

    async def open(self, seed: int) -> None:
        """Prepare the machines; no node runs yet."""

    async def view(self) -> ClusterView:
        """Ask all nodes that run and are not paused for their STATUS; return the state of all nodes."""

    async def peek(self) -> dict[NodeId, Status]:
        """Ask the nodes for their STATUS, without an effect on the run; those that do not answer soon are missing."""

    def sample(self) -> None:
        """Take a sample of the CPU and memory of the nodes."""

    def use(self) -> dict[NodeId, NodeUse]:
        """Return the resources that each node has used, over all its processes."""

    def mark_events(self) -> None:
        """Count events from here on."""

    async def close(self) -> None:
        """SIGTERM all nodes that run, and release everything."""

    def drop(self) -> None:
        """Kill everything that still runs, at once. Every run ends with this; may be called again."""


class _Released:
    """A context in which others may take a lock that its user holds."""

    def __init__(self, lock: asyncio.Lock) -> None:
        self._lock = lock

    async def __aenter__(self) -> None:
        self._lock.release()

    async def __aexit__(self, *_: object) -> None:
        await self._lock.acquire()


class Runner:
    """One run, carried out by carry_out(). See lab.steps.machine.Run.

    Args:
        draws: the random numbers for everything that faults leave open, by the run's seed.
        live: is written as things happen.
        go_on: waits until the presenter lets the run continue; None: there is none.
        by_hand: does the scenario's `hands` step; None: nobody orders steps.
        progress: called with a line of text at each step, and every few seconds in between.
    """

    def __init__(
        self,
        scenario: Scenario,
        seed: int,
        progress: Progress,
        environment: Environment,
        history: History,
        cluster: Cluster,
        load: Workers | None,
        book: FaultBook,
        draws: random.Random,
        live: LiveLog,
        go_on: Callable[[], Awaitable[None]] | None = None,
        by_hand: ByHand | None = None,
    ) -> None:
        self._scenario, self.seed, self._progress = scenario, seed, progress
        self._live, self._go_on, self._by_hand = live, go_on, by_hand
        self.steps: list[Step] = []
        """The steps begun so far, as in Scenario.unrolled()."""
        self._planned = 0 if by_hand is not None else sum(1 for _ in scenario.unrolled())
        """Number of steps; 0: not known before."""
        self._environment, self._history, self._cluster = environment, history, cluster
        self.world, self.load, self.book, self.draws = cluster, load, book, draws
        self.is_foreign = scenario.cluster.is_foreign
        self.now, self.now_ns, self.view_now = environment.now, environment.now_ns, cluster.view
        self.rng = random.Random(f"targets {seed}")
        self.facts = Facts()
        self.named = NamedClients(history, environment)
        self.view = ClusterView({})
        self.delivered: dict[NodeId, int] = {}
        self.term_before = 0
        self._subscribers: Subscribers | None = None
        self._reported_at = self.now()
        self._step_text = ""
        self._one_fault = asyncio.Lock()
        """Held while a fault is injected: several triggers may fire at the same time."""
        book.on_change = self._on_fault_change
        self._sampler: asyncio.Task[None] | None = None
        self.triggers = Triggers()

    async def carry_out(self) -> None:
        """The whole run. See the module's docstring."""
        self._sampler = sampler = asyncio.create_task(self._sample_regularly())
        watcher = asyncio.create_task(self._watch()) if self._live.wanted else None
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
            if watcher is not None:
                watcher.cancel()
            self.triggers.cancel()
            self._cluster.drop()
            self._live.observe(self.world.machines, {})
            self.facts.t_end = self.now_ns()
            self._live.end(self.facts.problem)

    # ---- the beginning ---------------------------------------------------------------------------

    async def _open(self) -> None:
        """Start the nodes and the load's workers, wait for the first leader, and connect the subscribers."""
        self.tell("starting the nodes")
        await self._cluster.open(self.seed)
        self._live.cluster(self._scenario.name, self._cluster.kind, self.seed, self.world.addresses)
        started = self._scenario.cluster.started_ids
        warming = [self._cluster.launch(started)] + ([self.load.spawn()] if self.load is not None else [])
        await _all(warming)
        if 2 * len(started) > len(self._scenario.cluster.founder_ids):
            await self._first_leader()
        self._subscribers = Subscribers(
            self._scenario.subscribers, self.world.addresses, self._history, self._environment
        )
        self._mark_fault(await self._cluster.view())
        self._live.observe(self.world.machines, self.world.statuses)
        self.facts.t_start = self.now_ns()

    async def _first_leader(self) -> None:
        """Wait until all started nodes agree on a leader; without one the run fails."""
        began = self.now()
        while (view := await self._cluster.view()).agreed_leader() is None:
            if self.now() - began > FIRST_LEADER_PATIENCE_S:
                raise RunFailed(f"no leader within {FIRST_LEADER_PATIENCE_S:g} s of the start: {_show(view)}")
            await asyncio.sleep(LOOK_EVERY_S)

    async def _sample_regularly(self) -> None:
        while True:
            self._cluster.sample()
            self._history.flush()
            await asyncio.sleep(SAMPLE_EVERY_S)

    async def _watch(self) -> None:
        """Write the state of the nodes to live.jsonl, whatever the steps do meanwhile."""
        while True:
            self._live.observe(self.world.machines, await self._cluster.peek())
            await asyncio.sleep(WATCH_EVERY_S)

    def _on_fault_change(self, number: int, row: FaultRow, begins: bool) -> None:
        self._live.fault(number, row, begins)
        self._live.observe(self.world.machines, {})

    # ---- the steps -------------------------------------------------------------------------------

    async def _do_steps(self) -> None:
        """Do the steps one after the other, until one is missed."""
        for step in self._scenario.unrolled():
            if isinstance(step, Hands) and self._by_hand is not None:
                missed = await self._by_hand.carry_out(self, step)
            else:
                missed = await self.do_step(step)
            if missed:
                break
        for index in await self.triggers.end():
            self.note(index, self.steps[index], met=False, found="it did not come true")

    async def do_step(self, step: Step) -> str:
        """See by_hand.Course."""
        index, of = len(self.steps), f" of {self._planned}" if self._planned else ""
        self.steps.append(step)
        shown = step.show()
        self._step_text = f"step {index + 1}{of}, {shown}"
        self.tell(self._step_text + (f": {step.say}" if step.say else ""))
        self._live.step(index, self._planned, step)
        self._phase("step", shown)
        try:
            if isinstance(step, Fault):
                await self.do_fault(step, index)
            else:
                await step.do(self, index)
        except (StepMissed, NoSuchTarget) as missed:
            self.note(index, step, met=False, found=str(missed))
            self.tell(f"missed: {shown}: {missed}")
            return str(missed)
        self.check()
        return ""

    def has_passed(self, sleep: Sleep) -> None:
        """See by_hand.Course."""
        self.steps.append(sleep)
        self._phase("step", sleep.show())

    async def do_fault(self, fault: Fault, index: int, number: int = 0, *, of: Fault | None = None) -> None:
        """See machine.Run."""
        text = (of or fault).words
        if number and of is None:
            self._step_text = f"nemesis {number}: {text}"
            self._report_sometimes()
        async with self._one_fault:
            self.view = await self.look()
            if of is None:
                self._mark_fault(self.view)
            self.book.asked = (text, number)
            await fault.do(self, index)

    def others_allowed(self) -> AbstractAsyncContextManager[None]:
        """See machine.Run."""
        return _Released(self._one_fault)

    def _mark_fault(self, view: ClusterView) -> None:
        """Remember the term and the events so far, from which the waits `new_leader` and `event` count."""
        self.term_before = max(self.term_before, view.highest_term)
        self._cluster.mark_events()

    # ---- what steps ask of the run -----------------------------------------------------------------

    async def look(self) -> ClusterView:
        """See machine.Run."""
        view = await self._cluster.view()
        for node, answer in self.world.statuses.items():
            self.delivered[node] = answer.delivered_seq
        return view

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
        assert load is not None and planned is not None, "the scenario has no load to start"
        if not load.finished:
            raise StepMissed("the load runs already")
        via = choose(planned.via, await self._cluster.view(), self.rng)
        await load.start(via, self.world.addresses)
        self._phase("load_started")

    async def stop_load(self) -> None:
        """See machine.Run. A message without an answer becomes `unknown` at its deadline."""
        load, planned = self.load, self._scenario.load
        if load is None or planned is None or load.finished:
            return
        await load.halt()
        try:
            async with asyncio.timeout(planned.deadline + SETTLE_SLACK_S):
                await load.settled()
        except TimeoutError:
            raise RunFailed(f"the load has {load.total.pending} messages without an outcome") from None
        self._phase("load_stopped")

    async def hold(self, most_s: float) -> None:
        """See machine.Run."""
        if self._go_on is None:
            return
        self.tell(f"{self._step_text}: press Enter to continue")
        waiting = asyncio.ensure_future(self._go_on())
        began = self.now()
        try:
            while not waiting.done() and (left := most_s - (self.now() - began)) > 0:
                await asyncio.wait([waiting], timeout=min(left, SAMPLE_EVERY_S))
                self.check()
        finally:
            waiting.cancel()

    # ---- the end ---------------------------------------------------------------------------------

    async def _finish(self) -> None:
        """Stop the load, heal everything, wait for outcomes and convergence, and stop the nodes."""
        if self.load is not None and not self.load.finished:
            await self.load.halt()
        self._step_text = "healing"
        self.tell("healing, and waiting until all nodes have delivered the same messages")
        self.view = ClusterView({node: NodeView(running=True) for node in self.world.members})
        await Heal().do(self, -1)
        self.facts.t_healed = self.now_ns()
        self._phase("healed")
        await self.stop_load()
        await self._settle_named()
        convergence = self.facts.convergence = await self._converge()
        self._phase("converged" if convergence.reached else "diverged", "; ".join(_rotten(self.world)))
        if self._subscribers is not None:
            last = max(convergence.delivered.values(), default=0)
            await self._subscribers.until_shown(last, float(self._scenario.bounds.convergence))
            await self._subscribers.close()
        await self.named.close()
        if self.load is not None:
            await self.load.close()
        await self._cluster.close()

    async def _settle_named(self) -> None:
        """Wait for the outcomes of the messages of `send` steps."""
        began = self.now()
        while self.named.waiting and self.now() - began < NAMED_DEADLINE_S + SETTLE_SLACK_S:
            await asyncio.sleep(LOOK_EVERY_S)

    async def _converge(self) -> Convergence:
        """Wait until all members have delivered all messages. Rule: A9."""
        bound, began = float(self._scenario.bounds.convergence), self.now()
        while True:
            view = await self._cluster.view()
            answers = {node: self.world.statuses[node] for node in view.ids if node in self.world.statuses}
            delivered = {node: answer.delivered_seq for node, answer in answers.items()}
            took = self.now() - began
            reached = took <= bound and self._is_converged(view, answers)
            if reached or took > bound:
                return Convergence(bound, reached, round(took, 4), delivered, view.highest_term)
            self._report_sometimes()
            await asyncio.sleep(LOOK_EVERY_S)

    def _is_converged(self, view: ClusterView, answers: Mapping[NodeId, Status]) -> bool:
        if _rotten(self.world) or len(answers) < len(view.nodes) or view.agreed_leader() is None:
            return False
        last = answers[view.leader].last_seq
        return all(each.delivered_seq == each.commit_seq == last for each in answers.values())

    def meta(self, kind: Literal["live", "sim"], started_utc: str, workers: int, mutant: str) -> Meta:
        """Return the manifest, without manifest.surroundings() and without what only the live world knows.

        Args:
            workers: processes of the load.
        """
        facts = self.facts
        return Meta(
            scenario=self._scenario.name,
            kind=kind,
            links="direct",
            seed=self.seed,
            started_utc=started_utc,
            versions={},
            interpreter="",
            host={},
            cluster={},
            t_start=facts.t_start,
            t_end=facts.t_end,
            t_healed=facts.t_healed,
            recovery_bound_s=float(self._scenario.bounds.recovery),
            convergence=facts.convergence,
            nodes=self._cluster.use(),
            samples=(),
            expectations=tuple(facts.expectations),
            load={} if self.load is None else {"workers": workers, **structs.asdict(self.load.total)},
            proxy={},
            problem=facts.problem,
            led=self._cluster.leaders.rows(),
            mutant=mutant,
        )

    # ---- progress --------------------------------------------------------------------------------

    def note(self, index: int, what: Step | Expected, *, met: bool, found: str) -> None:
        """See machine.Run."""
        text = what.show()
        self.facts.expectations.append(Expectation(index, text, met, found, self.now_ns()))
        self._live.found(self.facts.expectations[-1])

    def _phase(self, phase: str, detail: str = "") -> None:
        row = Phase(self.now_ns(), phase, detail)
        self._history.write(row)
        if phase != "step":
            self._live.phase(row)

    def tell(self, text: str) -> None:
        """See machine.Run."""
        self._reported_at = self.now()
        self._progress(text)

    def _report_sometimes(self) -> None:
        if self.now() - self._reported_at >= REPORT_EVERY_S:
            self.tell(self._step_text + _progress_of(self.load, ": "))

    def check(self) -> None:
        """See machine.Run. A node that has ended is no error here: the judges decide about it."""
        self._report_sometimes()
        for task in (self._sampler, *self.triggers.tasks.values()):
            if task is not None and task.done():
                task.result()
        if self.load is not None:
            self.load.check()

    async def show(self) -> str:
        """See machine.Run."""
        return _show(await self._cluster.view()) + _progress_of(self.load, "; load: ")


async def _all(parts: list[Coroutine[Any, Any, Any]]) -> None:
    """Run all at the same time; the first error cancels the others and is raised."""
    try:
        async with asyncio.TaskGroup() as group:
            for part in parts:
                group.create_task(part)
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from None


def _rotten(world: World) -> list[str]:
    """Return the bytes that a disk fault has changed and that no node has repaired yet."""
    return [each for machine in world.machines.values() for each in machine.rotten]


def _progress_of(load: Workers | None, before: str) -> str:
    if load is None:
        return ""
    total = load.total
    return f"{before}{total.acknowledged} acknowledged, {total.pending} waiting"


def _show(view: ClusterView) -> str:
    """Describe every node in a few words: `1 follower of 3 term 2 delivered 40/41`."""
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
