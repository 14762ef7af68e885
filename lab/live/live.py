"""A live run: real node processes, real clients, real signals. lab.course.runner carries it out.

    live.run(scenario, run, seed=7, progress=print)

No process is left after a run, however it ends. A run in the kernel's network is carried out by another process, which
has network namespaces of its own (lab.live.enclosed).
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Coroutine, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from msgspec import structs

from lab.course.by_hand import ByHand, Person
from lab.course.environment import Environment
from lab.course.livelog import LiveLog
from lab.course.manifest import surroundings
from lab.course.recording import HistoryWriter, merge
from lab.course.runner import Progress, Runner
from lab.live import enclosed
from lab.live.children import Children, end_on_sigterm
from lab.live.cluster import Cluster
from lab.live.kernel.namespaces import has_entered
from lab.live.load_workers import LoadWorkers, worker_count
from lab.live.presenter import at_terminal
from lab.plan import scenario as plan
from lab.plan.scenario import Scenario
from lab.rows import FaultRow, Meta, Sample, encode_row
from lab.rundir import RunDir
from lab.steps import Step
from lab.steps.book import FaultBook, with_heals
from nodeproc import native


def run(
    scenario: Scenario, run: RunDir, *, seed: int, progress: Progress, mutant: str = "", person: Person | None = None
) -> None:
    """Carry out a scenario and fill the run directory.

    Args:
        progress: called with a line of text at each step, and every few seconds in between.
        mutant: the mutant that the nodes run as (lab.mutants.broken_node); "": none.
        person: orders the steps of the scenario's `hands` step; None: nobody does.

    Raises:
        RunFailed: the lab could not carry the scenario out; meta.json contains the reason, if it could be written.
        KeyboardInterrupt: Ctrl+C or SIGTERM.
    """
    if scenario.cluster.network == "kernel" and not has_entered():
        work = enclosed.carry_out(scenario, run, seed, progress, mutant)
    else:
        work = LiveRun(scenario, run, seed, progress, mutant, person).carry_out()
    try:
        asyncio.run(_ended_by_sigterm(work))
    except asyncio.CancelledError:
        raise KeyboardInterrupt from None


async def _ended_by_sigterm(work: Coroutine[Any, Any, None]) -> None:
    end_on_sigterm()
    await work


class LiveRun:
    """One run with real processes, and the files that it leaves."""

    def __init__(
        self,
        scenario: Scenario,
        run: RunDir,
        seed: int,
        progress: Progress,
        mutant: str,
        person: Person | None = None,
    ) -> None:
        self._scenario, self._run, self._seed, self._mutant = scenario, run, seed, mutant
        self._person = person
        self._made_utc, self._made_ns = datetime.now(UTC), time.monotonic_ns()
        self._samples: list[Sample] = []
        self._history = HistoryWriter(run.history_part(0))
        self._faults = run.faults.open("ab", buffering=0)
        self._live = run.live.open("ab", buffering=0)
        log = LiveLog(self._live.write, time.monotonic_ns)
        self._book = FaultBook(time.monotonic_ns, self._keep_fault)
        self._children = Children()

        def keep_sample(sample: Sample) -> None:
            self._samples.append(sample)
            log.sample(sample)

        self._cluster = Cluster(scenario, run, self._book, self._children, keep_sample, mutant)
        token, load = scenario.cluster.client_token, scenario.load
        self._workers = 0 if load is None else worker_count(load)
        workers = None if load is None else LoadWorkers(load, run, seed, self._workers, self._children, token)
        environment, draws = Environment(token), random.Random(f"{seed} faults")
        self._runner = Runner(
            scenario,
            seed,
            progress,
            environment,
            self._history,
            self._cluster,
            workers,
            self._book,
            draws,
            log,
            at_terminal() if person is None else None,
            None if person is None else ByHand(scenario, person, self._keep_steps),
        )

    def _keep_fault(self, row: FaultRow) -> None:
        self._faults.write(encode_row(row))

    def _keep_steps(self, steps: Sequence[Step]) -> None:
        """Write what was done by hand, as the scenario of the run and as a file for people."""
        done = structs.replace(self._scenario, seed=self._seed, steps=tuple(steps))
        self._run.scenario.write_text(plan.encode(done), "utf-8")
        self._run.by_hand.write_text(plan.encode_brief(done), "utf-8")

    async def carry_out(self) -> None:
        """Carry out the run, and complete the run directory."""
        self._run.scenario.write_text(plan.encode(structs.replace(self._scenario, seed=self._seed)), "utf-8")
        if self._person is not None:
            self._person.begin(self._run)
        try:
            await self._runner.carry_out()
        finally:
            await self._children.gone()
            if self._person is not None:
                self._keep_steps(self._runner.steps)
            self._complete()

    def _complete(self) -> None:
        """Merge the parts of the history, sort and complete the rows of faults, and write meta.json."""
        run = self._run
        self._history.close()
        merge(sorted(run.path.glob("history-*.part")), run.history)
        self._faults.close()
        self._live.close()
        run.write_faults(with_heals(self._book.rows))
        if run.frames.exists():  # Each row was written when its frame had arrived; the file is in the order of sending.
            run.frames.write_bytes(b"".join(map(encode_row, sorted(run.read_frames(), key=lambda row: row.t))))
        run.write_meta(self._meta())

    def _is_native(self) -> bool:
        """Return whether the nodes used a build, as each of them chose it."""
        replaced = self._mutant or self._scenario.layered or self._scenario.cluster.is_foreign
        return not replaced and native.choose().directory is not None

    def _started_utc(self) -> str:
        """Return the time of t_start. Until then the nodes were started, which can take minutes."""
        starting_ns = max(self._runner.facts.t_start - self._made_ns, 0)
        started = self._made_utc + timedelta(microseconds=starting_ns / 1000)
        return started.isoformat(timespec="milliseconds")

    def _meta(self) -> Meta:
        return structs.replace(
            self._runner.meta("live", self._started_utc(), self._workers, self._mutant),
            links=self._cluster.links.kind,
            frames="chosen" if self._run.frames.exists() else "none",
            samples=tuple(self._samples),
            proxy=self._cluster.proxy,
            disks=self._scenario.disks,
            supervision=self._cluster.supervision,
            **surroundings(self._scenario.cluster, is_native=self._is_native()),
        )
