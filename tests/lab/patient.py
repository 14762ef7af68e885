"""Scenarios for tests on a machine that does much else meanwhile: what happens counts, not how fast."""

from __future__ import annotations

from msgspec.structs import replace

from lab.plan.scenario import Bounds, Cluster, Scenario
from lab.steps import Send, Step, Wait
from lab.steps.wait import UntilLeader
from lab.words import Duration
from tests import TOO_LONG_S

TOO_LONG = Duration(TOO_LONG_S)
SLOW_S = Duration(5)
"""No process of a busy machine is taken for dead in less, so node 3 leads from the start until it is taken down."""


def patient(planned: Scenario) -> Scenario:
    """The scenario with longer times wherever it states none of its own."""
    cluster = planned.cluster
    if not cluster.is_foreign and cluster.election_timeout == Cluster().election_timeout:
        cluster = replace(cluster, election_timeout=SLOW_S, coordinator_timeout=SLOW_S)
        planned = replace(planned, bounds=Bounds(recovery=TOO_LONG, convergence=TOO_LONG))
    return replace(planned, cluster=cluster, steps=tuple(map(_patient, planned.steps)))


def _patient(step: Step) -> Step:
    if isinstance(step, Wait) and step.until.within == UntilLeader().within:
        return replace(step, until=replace(step.until, within=TOO_LONG))
    if isinstance(step, Send) and step.within == Send(clients=()).within:
        return replace(step, within=TOO_LONG)
    return step
