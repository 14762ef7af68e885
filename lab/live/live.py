"""A live run: real node processes, real clients, real signals. lab.course.runner has its course.

    live.run(scenario, run, seed=7, progress=print)

Whatever happens, interruption included, no process is left.
"""

from __future__ import annotations

import asyncio
import platform
import random
import signal
import time
from datetime import UTC, datetime

from msgspec import structs

from lab.course.environment import Environment
from lab.course.evidence import with_heals
from lab.course.manifest import host, resolved, versions
from lab.course.recording import HistoryWriter, merge
from lab.course.runner import Progress, Runner, Stage
from lab.live.cluster import Cluster
from lab.live.load_workers import LoadWorkers, worker_count
from lab.plan import scenario as plan
from lab.plan.scenario import Scenario
from lab.rows import FaultRow, Meta, Sample, encode_row
from lab.rundir import RunDir
from lab.steps.book import FaultBook


def run(scenario: Scenario, run: RunDir, *, seed: int, progress: Progress, mutant: str = "") -> None:
    """Carry out a scenario and leave everything about it in the run directory.

    Args:
        progress: told a line at each step, and now and then while one lasts.
        mutant: started instead of the nodes' own program (lab.mutants.broken_node); "": none.

    Raises:
        RunFailed: the lab could not carry it out; meta.json says why, as far as it came to be written.
        KeyboardInterrupt: by Ctrl+C or SIGTERM; no process is left then either.
    """
    live = LiveRun(scenario, run, seed, progress, mutant)
    with asyncio.Runner() as runner:
        loop = runner.get_loop()
        task: asyncio.Task[None] = loop.create_task(live.carry_out())
        # SIGTERM ends a run as Ctrl+C does: what asyncio.Runner does for SIGINT only.
        loop.add_signal_handler(signal.SIGTERM, task.cancel)
        try:
            runner.run(_wait_for(task))
        except asyncio.CancelledError:
            raise KeyboardInterrupt from None


async def _wait_for(task: asyncio.Task[None]) -> None:
    await task


class LiveRun:
    """One run on real processes, and its papers."""

    def __init__(self, scenario: Scenario, run: RunDir, seed: int, progress: Progress, mutant: str = "") -> None:
        self._scenario, self._run, self._seed, self._mutant = scenario, run, seed, mutant
        self._started_utc = datetime.now(UTC).isoformat(timespec="milliseconds")
        self._samples: list[Sample] = []
        self._history = HistoryWriter(run.history_part(0))
        self._faults = run.faults.open("ab", buffering=0)
        self._book = FaultBook(time.monotonic_ns, self._keep_fault)
        self._cluster = Cluster(scenario, run, self._book, self._samples.append, mutant)
        self._load: LoadWorkers | None = None
        if scenario.load is not None:
            self._load = LoadWorkers(
                scenario.load, run, seed, worker_count(scenario.load), scenario.cluster.client_token
            )
        environment, draws = Environment(scenario.cluster.client_token), random.Random(f"{seed} faults")
        stage = Stage(environment, self._history, self._cluster, self._load, self._book, draws)
        self._runner = Runner(scenario, stage, seed, progress)

    def _keep_fault(self, row: FaultRow) -> None:
        self._faults.write(encode_row(row))

    async def carry_out(self) -> None:
        """The whole run, to a full run directory."""
        self._run.scenario.write_text(plan.encode(structs.replace(self._scenario, seed=self._seed)), "utf-8")
        try:
            await self._runner.carry_out()
        finally:
            await self._cluster.gone()
            if self._load is not None:
                await self._load.gone()
            self._write_papers()

    def _write_papers(self) -> None:
        """history.jsonl from its parts, faults.jsonl in order and with heals, meta.json."""
        run = self._run
        self._history.close()
        merge(sorted(run.path.glob("history-*.part")), run.history)
        self._faults.close()
        run.write_faults(with_heals(self._book.rows))
        run.write_meta(self._meta())

    def _meta(self) -> Meta:
        facts, total = self._runner.facts, self._load.total if self._load is not None else None
        workers = worker_count(self._scenario.load) if self._scenario.load is not None else 0
        return Meta(
            scenario=self._scenario.name,
            kind="live",
            links="proxied" if self._scenario.proxied else "direct",
            seed=self._seed,
            started_utc=self._started_utc,
            versions=versions(),
            interpreter=f"{platform.python_implementation()} {platform.python_version()}",
            host=host(),
            cluster=resolved(self._scenario.cluster),
            t_start=facts.t_start,
            t_end=facts.t_end,
            t_healed=facts.t_healed,
            recovery_bound_s=float(self._scenario.bounds.recovery),
            convergence=facts.convergence,
            nodes=self._cluster.use(),
            samples=tuple(self._samples),
            expectations=tuple(facts.expectations),
            load={} if total is None else {"workers": workers, **structs.asdict(total)},
            proxy=self._cluster.proxy,
            disks="layered" if self._scenario.layered else "direct",
            problem=facts.problem,
            led=self._cluster.leaders.rows(),
            mutant=self._mutant,
        )
