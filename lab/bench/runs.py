"""Live runs for measurements: scenarios made in code, with real nodes and clients. Run directories are removed."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from lab.check.invariants import check
from lab.check.metrics import Metrics, measure
from lab.live import live
from lab.plan.scenario import Cluster, Load, Scenario
from lab.rows import Meta
from lab.rundir import RunDir, utc_stamp
from lab.steps import LoadSwitch, Step, Wait
from lab.steps.machine import RunFailed
from lab.steps.wait import UntilIdle, UntilLoadDone
from lab.words import Duration

SEED = 7
LOAD_PATIENCE = Duration(300)
LEADER_OF_THREE = 3
"""The leader of a new cluster of three: the highest id."""
THE_LOAD: tuple[Step, ...] = (
    LoadSwitch(switch="start"),
    Wait(until=UntilLoadDone(within=LOAD_PATIENCE)),
    Wait(until=UntilIdle(within=LOAD_PATIENCE)),
)
"""Send the whole load, and wait until every node has delivered it."""


@dataclass(frozen=True, slots=True)
class Ran:
    """One run and its figures."""

    run: RunDir
    meta: Meta
    metrics: Metrics

    @property
    def written_bytes(self) -> int:
        """Bytes written by all nodes to any file."""
        return sum(use.written_bytes for use in self.meta.nodes.values())

    @property
    def rss_peak_bytes(self) -> int:
        """Peak memory of the node that used most."""
        return max(use.rss_peak_bytes for use in self.meta.nodes.values())


class Runs:
    """Runs scenarios in one directory.

    Args:
        tell: called with the name of each scenario, and with why figures are missing.
    """

    def __init__(self, folder: Path, tell: Callable[[str], None]) -> None:
        self.folder, self.tell = folder, tell

    def scenario(
        self,
        name: str,
        load: Load | None,
        steps: Sequence[Step] = THE_LOAD,
        cluster: Cluster | None = None,
        subscribers: int = 1,
    ) -> Scenario:
        """Return a scenario for a measurement."""
        return Scenario(
            name=name,
            description="a measurement",
            steps=tuple(steps),
            cluster=cluster or Cluster(),
            load=load,
            subscribers=subscribers,
        )

    def carry_out(
        self,
        scenario: Scenario,
        use: Callable[[Ran], None],
        prepare: Callable[[RunDir], None] | None = None,
    ) -> None:
        """Run a scenario, call `use` with the result, and remove the run directory.

        Args:
            prepare: called before the nodes start; may fill their data directories.

        Raises:
            RunFailed: a message was not acknowledged, an expectation was missed, or the nodes did not converge.
        """
        self.tell(scenario.name)
        run = RunDir.create(self.folder, scenario.name, utc_stamp())
        try:
            if prepare is not None:
                prepare(run)
            live.run(scenario, run, seed=SEED, progress=lambda text: None)
            ran = Ran(run, run.read_meta(), measure(run))
            check_run(scenario, ran)
            use(ran)
        finally:
            shutil.rmtree(run.path)

    def load(self, name: str, load: Load, cluster: Cluster | None = None) -> Ran:
        """Run a load without any other steps, and judge the run: every message is verified in the logs of all nodes.

        The run directory is already removed when this returns.

        Raises:
            RunFailed: see carry_out(), or the run does not pass.
        """
        kept: list[Ran] = []

        def use(ran: Ran) -> None:
            judged = check(ran.run, ran.metrics)
            if judged.outcome != "pass":
                failed = [
                    f"{each.name}: {each.detail}" for each in judged.checks if each.decisive and each.result != "PASS"
                ]
                raise RunFailed(f"{name}: the run does not pass: {'; '.join(failed)[:400]}")
            kept.append(ran)

        self.carry_out(self.scenario(name, load, cluster=cluster), use)
        return kept[0]


def check_run(scenario: Scenario, ran: Ran) -> None:
    """Check that the run did everything that its figures rely on.

    Raises:
        RunFailed: it did not.
    """
    load, meta = ran.metrics.load, ran.meta
    missed = [each.text for each in meta.expectations if not each.met]
    if missed:
        raise RunFailed(f"{scenario.name}: missed: {missed[0]}")
    if load.acknowledged < load.sent:
        raise RunFailed(f"{scenario.name}: {load.sent - load.acknowledged} of {load.sent} messages not acknowledged")
    if meta.convergence is None or not meta.convergence.reached:
        raise RunFailed(f"{scenario.name}: the nodes did not converge")
