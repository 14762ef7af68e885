"""The course of a run, the same on real processes and in virtual time: from the first step to all that is kept of it.

The order of things: start the nodes; do the steps; stop the load, heal everything, wait until all nodes have delivered
the same; stop the nodes; keep the papers. A step that misses its time ends the steps and not the run: it is healed and
judged all the same. A Stage is what the run is played on: lab.live.live has one, lab.sim.stage another.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias, assert_never

from msgspec import structs

from lab.course.clients import Addresses, NamedClient, NamedClients, Subscribers
from lab.course.links import CLIENTS, Pair
from lab.course.load import Tally
from lab.course.manifest import target_rng
from lab.course.waiting import LOOK_EVERY_S, QUICK_LOOK_S, Condition, Lookout, look_again_s
from lab.course.world import History, RunFailed, World
from lab.plan.scenario import Scenario
from lab.plan.writing import show_expectation, show_step
from lab.rows import Convergence, Expectation, Phase
from lab.steps import (
    FAULT_STEPS,
    Busy,
    Chaos,
    Clock,
    Cut,
    Disk,
    Expect,
    FullRestart,
    Garbage,
    Heal,
    Kill,
    Link,
    LoadSwitch,
    MachineStep,
    Nemesis,
    Partition,
    Pause,
    PowerLoss,
    Rebuild,
    Repeat,
    Reset,
    Restart,
    Resume,
    Send,
    Sleep,
    Start,
    Step,
    Stop,
    UntilAny,
    UntilEvent,
    Wait,
    When,
    is_about_clients,
)
from lab.steps.expect import judge
from lab.steps.partition import partition_pairs
from lab.steps.targets import ClusterView, NoSuchTarget, choose
from lab.words import Duration
from nodeproc.core.messages import NodeId
from nodeproc.lines import Status
from nodeproc.session import Session

Progress: TypeAlias = Callable[[str], None]
FaultStep: TypeAlias = (
    Start
    | Stop
    | Kill
    | Pause
    | Resume
    | Restart
    | FullRestart
    | Link
    | Cut
    | Partition
    | Reset
    | Heal
    | Chaos
    | Busy
    | Garbage
    | MachineStep
)

NEMESIS_HOLDS = (0.25, 0.75)
"""Least and greatest part of `every` for which a nemesis lets a fault hold."""
SAMPLE_EVERY_S = 0.5
TELL_EVERY_S = 2.0
FIRST_LEADER_PATIENCE_S = 20.0
SETTLE_SLACK_S = 5.0
"""On top of the clients' deadline, until all outcomes must be told."""
NAMED_DEADLINE_S = 30.0
UNTIL_HEALED = Duration(86_400)
"""No run is so long. What clients and nodes send each other over a cut link is held back, since TCP loses nothing."""


class StepMissed(Exception):
    """A step did not come true in its time; the text says what was found instead."""


@dataclass(slots=True)
class Facts:
    """What meta.json is made of, as it comes to be known."""

    t_start: int = 0
    t_end: int = 0
    t_healed: int = 0
    convergence: Convergence | None = None
    expectations: list[Expectation] = field(default_factory=list)
    problem: str = ""


class Nodes(Protocol):
    """The cluster, as a run sees and treats it; each fault leaves its row. See lab.live.cluster.Cluster."""

    nodes: Any
    """Node id -> what has `node`, `running` and `paused`."""
    statuses: dict[NodeId, Status]

    @property
    def addresses(self) -> Addresses: ...

    @property
    def rotten(self) -> list[str]:
        """Bytes that old rot has changed and nobody has repaired yet."""

    async def open(self, seed: int) -> None: ...

    async def launch(self, targets: Sequence[NodeId]) -> dict[NodeId, float]: ...

    async def view(self) -> ClusterView: ...

    def look(self) -> None: ...

    async def start(self, targets: Sequence[NodeId], step: int) -> None: ...

    async def start_in_vain(self, targets: Sequence[NodeId], step: int) -> str:
        """Start nodes that must refuse to run on a damaged disk; returns what went otherwise, "" if nothing."""

    async def end(self, targets: Sequence[NodeId], fault: str, step: int) -> None: ...

    async def pause(self, targets: Sequence[NodeId], step: int) -> None: ...

    async def resume(self, targets: Sequence[NodeId], step: int) -> None: ...

    async def treat(self, link: Link, pairs: Sequence[Pair], step: int) -> None: ...

    async def hurt(self, step: MachineStep, targets: Sequence[NodeId], index: int) -> None:
        """A fault of machines, disks or clocks."""

    async def disturb(self, chaos: Chaos, targets: Sequence[NodeId], step: int) -> None:
        """These nodes run by fits and starts; done when that is over."""

    async def crowd(self, busy: Busy, step: int) -> None:
        """Other processes take processor time."""

    async def besiege(self, garbage: Garbage, targets: Sequence[NodeId], step: int) -> None:
        """Strangers come to the ports of these nodes."""

    async def mend(self, what: str, step: int) -> None:
        """disks, clocks, busy or all of them."""

    async def reset(self, pairs: Sequence[Pair], step: int) -> None: ...

    async def heal_links(self, step: int) -> None: ...

    def asking(self, text: str, number: int) -> None:
        """Rows from now on are of a step in these words; number: of a nemesis's faults, from 1."""

    def mark_events(self) -> None:
        """Events are counted from here on."""

    def count_events(self, nodes: Sequence[NodeId], until: UntilEvent) -> Callable[[], int]:
        """Counts these nodes' events of one kind since the latest mark_events()."""

    async def close(self) -> None: ...

    def drop(self) -> None: ...


class RunningLoad(Protocol):
    """The load of a run. See lab.course.clients.LoadWorkers."""

    @property
    def finished(self) -> bool: ...

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
    """What a run is played on."""

    world: World
    history: History
    cluster: Nodes
    load: RunningLoad | None


class Conductor:
    """One run. carry_out() does it; the methods below stand in the order in which it uses them."""

    def __init__(self, scenario: Scenario, stage: Stage, seed: int, progress: Progress) -> None:
        self._scenario, self._seed, self._progress = scenario, seed, progress
        self._world, self._history, self._cluster, self._load = stage.world, stage.history, stage.cluster, stage.load
        self._rng = target_rng(seed)
        self.facts = Facts()
        self._named = NamedClients(self._history, self._world)
        self._lookout = Lookout(self._cluster, self._load, self._named, self._rng)
        self._subscribers: Subscribers | None = None
        self._told_at = self._world.now()
        self._step_text = ""
        self._one_fault = asyncio.Lock()
        """Held while a fault is being done: triggers may want to do one at the same time."""
        self._sampler: asyncio.Task[None] | None = None
        self._triggers: dict[int, asyncio.Task[None]] = {}
        """Index of a `when` step -> what waits for it, and does it."""
        self._fired: set[int] = set()
        self._term_before = 0
        """The highest term that any node showed before the latest fault step began."""

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
            for trigger in self._triggers.values():
                trigger.cancel()
            self._drop()
            self.facts.t_end = self._world.now_ns()

    # ---- the beginning ---------------------------------------------------------------------------

    async def _open(self) -> None:
        """Nodes started and agreed on a leader, subscribers connected, load workers ready to be told what to do."""
        self._tell("starting the nodes")
        await self._cluster.open(self._seed)
        started = self._scenario.cluster.started_ids
        warming = [self._cluster.launch(started)] + ([self._load.spawn()] if self._load is not None else [])
        await _all(warming)
        if 2 * len(started) > self._scenario.cluster.nodes:
            await self._first_leader()
        self._subscribers = Subscribers(self._scenario.subscribers, self._cluster.addresses, self._history, self._world)
        self._mark_fault(await self._cluster.view())
        self.facts.t_start = self._world.now_ns()

    async def _first_leader(self) -> None:
        """All started nodes agree on a leader, or the run is not worth a step."""
        began = self._world.now()
        while (view := await self._cluster.view()).agreed_leader() is None:
            if self._world.now() - began > FIRST_LEADER_PATIENCE_S:
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
            self._step_text = f"step {index + 1} of {len(steps)}, {show_step(step)}"
            self._tell(self._step_text)
            self._phase("step", show_step(step))
            try:
                await self._do(step, index)
            except (StepMissed, NoSuchTarget) as missed:
                self._note(index, show_step(step), met=False, found=str(missed))
                self._tell(f"missed: {show_step(step)}: {missed}")
                break
            self._check_alive()
        await self._end_triggers(steps)

    async def _do(self, step: Step, index: int) -> None:
        if isinstance(step, FAULT_STEPS):
            await self._fault(step, index)
            return
        match step:
            case Send():
                await self._send(step, index)
            case LoadSwitch():
                await self._switch_load(step)
            case Wait():
                await self._wait(step.until, index, show_step(step))
            case Expect():
                await self._expect(step, index)
            case Sleep():
                await asyncio.sleep(step.time)
            case When():
                await self._arm(step, index)
            case Nemesis():
                await self._nemesis(step, index)
            case Repeat():
                raise AssertionError("unrolled() writes repeats out")
            case _:
                raise AssertionError(step)

    async def _fault(self, step: FaultStep, index: int) -> None:
        """One fault step, when no other is being done."""
        async with self._one_fault:
            view = await self._lookout.look()
            self._mark_fault(view)
            self._cluster.asking(_words(step), 0)
            await self._do_fault(step, index, view)

    def _mark_fault(self, view: ClusterView) -> None:
        """Remember what `new_leader` and `event` are compared with."""
        self._term_before = max(self._term_before, view.highest_term)
        self._cluster.mark_events()

    async def _do_fault(
        self,
        step: FaultStep,
        index: int,
        view: ClusterView,
    ) -> None:
        cluster = self._cluster
        match step:
            case Start():
                await self._start(step, index, view)
            case Stop() | Kill():
                await cluster.end(choose(step.target, view, self._rng), step.word, index)
            case Pause():
                await cluster.pause(choose(step.target, view, self._rng), index)
            case Resume():
                await cluster.resume(choose(step.target, view, self._rng), index)
            case Restart():
                for node in choose(step.target, view, self._rng):
                    await self._restart((node,), (node,), step, index)
            case FullRestart():
                running = tuple(node for node in view.ids if view.nodes[node].running)
                await self._restart(running, view.ids, step, index)
            case Link():
                await cluster.treat(step, self._pairs(step, view), index)
            case Cut():
                pairs = self._pairs(step, view)
                if step.both:
                    pairs = _both_ways(pairs)
                link = self._cut(is_about_clients(step), step.frames)
                await cluster.treat(link, pairs, index)
            case Partition():
                await cluster.treat(self._cut(False, ()), partition_pairs(step, view, self._rng), index)
            case Heal():
                if step.what in ("links", "all"):
                    await cluster.heal_links(index)
                if step.what != "links":
                    await cluster.mend(step.what, index)
                if step.what == "all":
                    await self._heal_nodes(choose(step.on, view, self._rng), index)
            case Reset():
                await cluster.reset(_both_ways(self._pairs(step, view)), index)
            case PowerLoss() | Rebuild():
                await cluster.hurt(step, choose(step.target, view, self._rng), index)
            case Chaos():
                await cluster.disturb(step, choose(step.on, view, self._rng), index)
            case Busy():
                await cluster.crowd(step, index)
            case Garbage():
                await cluster.besiege(step, choose(step.on, view, self._rng), index)
            case Disk() | Clock():
                await cluster.hurt(step, choose(step.on, view, self._rng), index)
            case _:
                assert_never(step)

    def _cut(self, of_clients: bool, frames: tuple[str, ...]) -> Link:
        """A cut link. Where no frames are known there is only TCP, and that loses nothing: it waits for the heal."""
        if of_clients or self._scenario.cluster.is_foreign:
            return Link(delay=UNTIL_HEALED)
        return Link(frames=frames, loss=1.0)

    def _pairs(self, step: Link | Cut | Reset, view: ClusterView) -> tuple[Pair, ...]:
        """The directed links that a step is about."""
        sources, targets = (
            (CLIENTS,) if each == "clients" else choose(each, view, self._rng) for each in (step.source, step.to)
        )
        return tuple((source, to) for source in sources for to in targets if source != to)

    async def _start(self, step: Start, index: int, view: ClusterView) -> None:
        nodes = choose(step.target, view, self._rng)
        if not step.refuses:
            await self._cluster.start(nodes, index)
            return
        if found := await self._cluster.start_in_vain(nodes, index):
            raise StepMissed(found)
        self._note(index, show_step(step), met=True, found="all refused, and named the damaged file")

    async def _restart(
        self, down: tuple[NodeId, ...], up: tuple[NodeId, ...], step: Restart | FullRestart, index: int
    ) -> None:
        await self._cluster.end(down, step.how, index)
        await asyncio.sleep(step.down)
        await self._cluster.start(up, index)

    async def _heal_nodes(self, targets: Sequence[NodeId], index: int) -> None:
        """Wake what is paused, start what is down."""
        nodes = [self._cluster.nodes[node] for node in targets]
        if paused := [each.node for each in nodes if each.paused]:
            await self._cluster.resume(paused, index)
        if down := [each.node for each in nodes if not each.running]:
            await self._cluster.start(down, index)

    # ---- nemesis and triggers --------------------------------------------------------------------

    async def _nemesis(self, step: Nemesis, index: int) -> None:
        """One fault of the list after the other, each healed."""
        draws, until = random.Random(f"nemesis {self._seed} {index}"), self._world.now() + step.time
        left: list[Step] = []
        number = done = 0
        while (began := self._world.now()) < until:
            left = left or draws.sample(step.faults, len(step.faults))
            fault, holds = left.pop(), step.every * draws.uniform(*NEMESIS_HOLDS)
            number += 1
            done += await self._nemesis_fault(fault, index, number, holds)
            self._check_alive()
            await asyncio.sleep(max(0.0, began + step.every - self._world.now()))
        if not done:
            raise StepMissed(f"each of {number} faults was about a node that was not there")
        self._note(index, show_step(step), met=True, found=f"{done} faults done and healed")

    async def _nemesis_fault(self, fault: Step, index: int, number: int, holds: float) -> bool:
        """Do one of them, let it hold, heal all. False: nobody was what it is about."""
        assert isinstance(fault, FAULT_STEPS)
        text = _words(fault)
        self._step_text = f"nemesis {number}: {text}"
        self._tell_sometimes()
        async with self._one_fault:
            view = await self._lookout.look()
            self._mark_fault(view)
            self._cluster.asking(text, number)
            try:
                await self._do_fault(fault, index, view)
            except NoSuchTarget:
                return False
        await asyncio.sleep(holds)
        async with self._one_fault:
            self._cluster.asking(text, number)
            await self._do_fault(Heal(), index, await self._lookout.look())
        return True

    async def _arm(self, step: When, index: int) -> None:
        """Wait for it beside the steps that follow."""
        condition = await self._lookout.condition(step.until, self._term_before, from_now=True)
        self._triggers[index] = asyncio.create_task(self._trigger(step, condition, index))

    async def _trigger(self, step: When, condition: Condition, index: int) -> None:
        began = self._world.now()
        while not await condition():
            await asyncio.sleep(look_again_s(step.until))
        self._fired.add(index)
        found = f"after {self._world.now() - began:.2f} s"
        self._tell(f"{show_step(step)}: {found}")
        try:
            for each in step.steps:
                if isinstance(each, Sleep):
                    await asyncio.sleep(each.time)
                else:
                    assert isinstance(each, FAULT_STEPS)
                    await self._fault(each, index)
        except NoSuchTarget as missed:
            self._note(index, show_step(step), met=False, found=f"{found}: {missed}")
        else:
            self._note(index, show_step(step), met=True, found=found)

    async def _end_triggers(self, steps: Sequence[Step]) -> None:
        """The steps are over: what fired is finished, what did not is missed."""
        for index, trigger in self._triggers.items():
            if index not in self._fired:
                trigger.cancel()
                self._note(index, show_step(steps[index]), met=False, found="it did not come true")
        await asyncio.gather(*(self._triggers[index] for index in sorted(self._fired)))

    # ---- steps of clients ------------------------------------------------------------------------

    async def _send(self, step: Send, index: int) -> None:
        clients = [await self._named.send(sender, self._cluster.addresses) for sender in step.clients]
        if not step.wait:
            return
        if step.refused:
            self._note(index, show_step(step), met=True, found=await self._refusals(step, clients))
            return
        refused = sum(each.outcomes["rejected"] + each.outcomes["unknown"] for each in clients)
        try:
            async with asyncio.timeout(step.within):
                await asyncio.gather(*(each.chat.drained() for each in clients))
        except TimeoutError:
            left = sum(each.chat.session.unsettled for each in clients)
            heard = next(
                (f"; client {each.client} at {each.chat.last_error}" for each in clients if each.chat.last_error), ""
            )
            raise StepMissed(f"{left} messages without an acknowledgement after {step.within}{heard}") from None
        refused = sum(each.outcomes["rejected"] + each.outcomes["unknown"] for each in clients) - refused
        if refused:
            raise StepMissed(f"{refused} messages were not acknowledged")
        self._note(index, show_step(step), met=True, found="all acknowledged")

    async def _refusals(self, step: Send, clients: Sequence[NamedClient]) -> str:
        """Wait until the node of each of these clients has told it why it takes nothing; returns what they told."""
        sessions = [each.chat.session for each in clients]
        for session in sessions:
            session.refused = ""
        try:
            async with asyncio.timeout(step.within):
                while not all(map(_was_refused, sessions)):
                    await asyncio.sleep(QUICK_LOOK_S)
        except TimeoutError:
            raise StepMissed(f"not told within {step.within}: {', '.join(map(_told, sessions))}") from None
        return ", ".join(map(_told, sessions))

    async def _switch_load(self, step: LoadSwitch) -> None:
        assert self._load is not None and self._scenario.load is not None
        if step.do == "start":
            if not self._load.finished:
                raise StepMissed("the load runs already")
            via = choose(self._scenario.load.via, await self._cluster.view(), self._rng)
            await self._load.start(via, self._cluster.addresses)
            self._phase("load_started")
        else:
            await self._stop_load()

    async def _stop_load(self) -> None:
        """Send nothing new, and wait for what is under way: at most until its deadline makes it unknown."""
        load, planned = self._load, self._scenario.load
        if load is None or planned is None or load.finished:
            return
        load.halt()
        try:
            async with asyncio.timeout(planned.deadline + SETTLE_SLACK_S):
                await load.settled()
        except TimeoutError:
            raise RunFailed(f"the load has {load.total.pending} messages without any outcome") from None
        self._phase("load_stopped")

    # ---- waiting ---------------------------------------------------------------------------------

    async def _wait(self, until: UntilAny, index: int, text: str) -> None:
        """Look again and again until it is so.

        Raises:
            StepMissed: it is not, within its time.
        """
        began = self._world.now()
        try:
            async with asyncio.timeout(until.within):
                condition = await self._lookout.condition(until, self._term_before)
                while not await condition():
                    self._tell_sometimes()
                    self._check_alive()
                    await asyncio.sleep(look_again_s(until))
        except TimeoutError:
            raise StepMissed(f"not within {until.within}: {await self._show_all()}") from None
        self._note(index, text, met=True, found=f"after {self._world.now() - began:.2f} s")

    async def _expect(self, step: Expect, index: int) -> None:
        """Look once; a miss is noted and the run goes on."""
        view = await self._cluster.view()
        for each in step.that:
            finding = judge(each, view, self._rng)
            self._note(index, show_expectation(each), finding.met, finding.found)

    # ---- the end ---------------------------------------------------------------------------------

    async def _finish(self) -> None:
        """Stop the load, heal, let everything settle, converge, and stop the nodes."""
        if self._load is not None and not self._load.finished:
            self._load.halt()
        self._step_text = "healing"
        self._tell("healing and waiting until all nodes are the same")
        await self._cluster.heal_links(-1)
        await self._cluster.mend("all", -1)
        await self._heal_nodes(self._scenario.cluster.ids, -1)
        self.facts.t_healed = self._world.now_ns()
        self._phase("healed")
        await self._stop_load()
        await self._settle_named()
        convergence = self.facts.convergence = await self._converge()
        self._phase("converged" if convergence.reached else "diverged", "; ".join(self._cluster.rotten))
        if self._subscribers is not None:
            last = max(convergence.delivered.values(), default=0)
            await self._subscribers.until_shown(last, float(self._scenario.bounds.convergence))
            await self._subscribers.close()
        await self._named.close()
        if self._load is not None:
            await self._load.close()
        await self._cluster.close()

    async def _settle_named(self) -> None:
        """What `send` steps did not wait for gets its outcome now."""
        began = self._world.now()
        while self._named.waiting and self._world.now() - began < NAMED_DEADLINE_S + SETTLE_SLACK_S:
            await asyncio.sleep(LOOK_EVERY_S)

    async def _converge(self) -> Convergence:
        """Wait until all nodes have delivered the same, and nothing is left to be delivered. Rule: A9."""
        bound, began = float(self._scenario.bounds.convergence), self._world.now()
        while True:
            view = await self._cluster.view()
            delivered = {node: answer.delivered_seq for node, answer in sorted(self._cluster.statuses.items())}
            took = self._world.now() - began
            reached = took <= bound and self._is_converged(view)
            if reached or took > bound:
                return Convergence(bound, reached, round(took, 4), delivered, view.highest_term)
            self._tell_sometimes()
            await asyncio.sleep(LOOK_EVERY_S)

    def _is_converged(self, view: ClusterView) -> bool:
        answers = self._cluster.statuses
        if self._cluster.rotten:
            return False
        if len(answers) < len(view.nodes) or view.agreed_leader() is None:
            return False
        last = answers[view.leader].last_seq
        return all(each.delivered_seq == each.commit_seq == last for each in answers.values())

    def _drop(self) -> None:
        """Whatever is left of a run that did not come to its end goes at once."""
        self._cluster.drop()
        if self._load is not None:
            self._load.kill()

    # ---- notes -----------------------------------------------------------------------------------

    def _note(self, step: int, text: str, met: bool, found: str) -> None:
        self.facts.expectations.append(Expectation(step, text, met, found, self._world.now_ns()))

    def _phase(self, phase: str, detail: str = "") -> None:
        self._history.write(Phase(self._world.now_ns(), phase, detail))

    def _tell(self, text: str) -> None:
        self._told_at = self._world.now()
        self._progress(text)

    def _tell_sometimes(self) -> None:
        if self._world.now() - self._told_at >= TELL_EVERY_S:
            total = self._load.total if self._load is not None else None
            numbers = f": {total.acknowledged} acknowledged, {total.pending} waiting" if total is not None else ""
            self._tell(f"{self._step_text}{numbers}")

    def _check_alive(self) -> None:
        """Raise what ended the lab's own processes, triggers or sampling; a node that ended is the judges' affair."""
        for task in (self._sampler, *self._triggers.values()):
            if task is not None and task.done():
                task.result()
        if self._load is not None:
            self._load.check()

    async def _show_all(self) -> str:
        """How things stand, for a step that was missed."""
        total = self._load.total if self._load is not None else None
        load = f"; load: {total.acknowledged} acknowledged, {total.pending} waiting" if total is not None else ""
        return _show(await self._cluster.view()) + load


def _was_refused(session: Session) -> bool:
    """Its node, if it has one, takes none of its messages now."""
    return bool(session.node) and bool(session.refused or not session.leader)


def _told(session: Session) -> str:
    """What a client knows from its node."""
    words = session.refused or (f"node {session.leader} leads" if session.leader else "nobody leads")
    return f"node {session.node} says: {words}" if session.node else "no node"


def _words(step: FaultStep) -> str:
    """The step as it stands in the scenario, whatever its name."""
    return show_step(structs.replace(step, name=""))


def _both_ways(pairs: tuple[Pair, ...]) -> tuple[Pair, ...]:
    return tuple(sorted({*pairs, *((to, source) for source, to in pairs)}))


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
