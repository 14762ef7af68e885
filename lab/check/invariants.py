"""Judge a run from its directory alone: feed the judges of lab.check.judges with its files.

check() puts the parts together: A1 compares the logs (agreement), A2 to A6 come from one walk over log and history
(replay), A7 from the events (elections), A8 from what subscribers were shown (subscribers), A9 from who waited how
long and how the run ended (recovery). What can't be read leaves the checks that need it UNKNOWN, and they say why.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import NamedTuple

from msgspec import structs

from lab.check.agreement import compare
from lab.check.expectations import Facts, judge_expectation, moment_results
from lab.check.health import check_faults, check_run, check_watch
from lab.check.history import (
    EventLine,
    Evidence,
    MessageLog,
    NodeFile,
    RunFileError,
    read_events,
    read_fault_rows,
    read_meta,
)
from lab.check.judge import Case, Judge
from lab.check.judges import seat
from lab.check.metrics import Metrics
from lab.check.story import EventStory, HistoryStory, fault_gap, meta_gap, step_gap
from lab.check.verdict import Check, ExpectationResult, Findings, Verdict, decide
from lab.plan.scenario import Scenario
from lab.plan.scenario import load as load_scenario
from lab.rows import FaultRow, Meta
from lab.rundir import RunDir
from nodeproc.core.messages import NodeId
from nodeproc.errors import ConfigError

NS_PER_S = 1_000_000_000
CLOCK_SLACK_S = 120.0
"""Tolerance for timestamps: the times of a run are of a monotonic clock, and nodes start before the run does."""


def check(run: RunDir, metrics: Metrics | None) -> Verdict:
    """Judge a run.

    Args:
        metrics: as lab.check.metrics.measure found them; None where it could not.
    """
    manifest = _read_manifest(run)
    nodes = manifest.node_ids(run)
    files, missing = _node_files(run, nodes)
    compared = compare(Findings("A1", "agreement"), files, missing)
    log = MessageLog(run.path, "no log")
    if compared.reference is not None:
        log = MessageLog(compared.reference.path, compared.reference.name)
    case = Case(
        run,
        nodes,
        log,
        scenario=manifest.scenario,
        meta=manifest.meta,
        faults=manifest.faults,
        reasons=manifest.reasons,
        files=files,
        missing=missing,
        bound_s=math.inf if manifest.meta is None else manifest.meta.recovery_bound_s,
        times=_times(manifest),
        agreement=compared.check,
        deviating=compared.deviating,
    )
    judges = seat(case)
    story = HistoryStory(run.history.name, manifest.meta)
    try:
        _feed_faults_and_events(case, judges)
        reason = "no message log" if compared.reference is None else _feed_history(case, judges, story)
    finally:
        log.close()
    checks = [check for judge in judges for check in _decide(case, judge, reason)]
    checks += _surroundings(case, None if reason else story, "" if compared.reference is None else reason)
    facts = Facts(
        files=files,
        equal=compared.check.result == "PASS" and len({file.size for file in files}) == 1,
        last_seqs={file.node: file.last_seq() for file in files},
        term_starts=case.term_starts,
        contiguous=case.contiguous,
        messages=case.messages,
        metrics=metrics,
        unread_events=case.unread_events,
    )
    expectations = tuple(_expectations(run, manifest, nodes, facts))
    return Verdict(decide(tuple(checks), expectations), tuple(checks), expectations, case.messages)


def _feed_faults_and_events(case: Case, judges: Sequence[Judge]) -> None:
    for judge in judges:
        for row in case.faults or ():
            judge.on_fault(row)
    if case.meta is not None:
        for node, use in sorted(case.meta.nodes.items()):
            for end in use.exits:
                for judge in judges:
                    judge.on_exit(node, end, "")
    hearers = [judge.on_event for judge in judges if type(judge).on_event is not Judge.on_event]
    for node in case.nodes:
        gap = _feed_events(case, node, hearers)
        case.unread_events = case.unread_events or gap


def _feed_events(case: Case, node: NodeId, hearers: Sequence[Callable[[int, EventLine], None]]) -> str:
    """Feed the events of one node. Return why they are not all of its events, or ""."""
    story = EventStory(case, node)
    try:
        for line, event in read_events(case.run.events(node), node) if case.has_events(node) else ():
            story.on_event(line, event)
            for hear in hearers:
                hear(line, event)
    except RunFileError as error:
        return str(error)
    return story.gap()


def _feed_history(case: Case, judges: Sequence[Judge], story: HistoryStory) -> str:
    """Feed the history. Return why it cannot be used, or ""."""
    if not case.run.history.is_file():
        return f"no {case.run.history.name}"
    takers = [story.on_row, *(judge.on_row for judge in judges if type(judge).on_row is not Judge.on_row)]
    try:
        for place, row in case.history():
            for take in takers:
                take(place, row)
    except (RunFileError, OSError) as error:
        return str(error)
    return story.lack(case.meta)


def _decide(case: Case, judge: Judge, no_history: str) -> list[Check]:
    if judge.needs_history and no_history:
        return judge.unknown(no_history)
    if judge.needs_manifest and (case.meta is None or case.faults is None):
        return judge.unknown("; ".join(case.reasons))
    checks = judge.checks()
    if not judge.reads_events or not case.unread_events:
        return checks
    return [
        structs.replace(each, result="UNKNOWN", detail=case.unread_events, decisive=True)
        if each.result == "PASS"
        else each
        for each in checks
    ]


# ---- what the run says about itself ---------------------------------------------------------------


class _Manifest(NamedTuple):
    """scenario.yml, meta.json and faults.jsonl; None for one that cannot be read, with the reason."""

    scenario: Scenario | None
    meta: Meta | None
    faults: list[FaultRow] | None
    reasons: tuple[str, ...]

    def node_ids(self, run: RunDir) -> list[int]:
        """Ids of all nodes that these files or the run directory name."""
        known = set(run.node_ids())
        if self.meta is not None:
            known.update(self.meta.nodes)
        if self.scenario is not None:
            known.update(self.scenario.cluster.ids)
        return sorted(known)


def _read_manifest(run: RunDir) -> _Manifest:
    scenario, meta, faults = None, None, None
    reasons = []
    try:
        scenario = load_scenario(run.scenario)
    except ConfigError as error:
        reasons.append(str(error))
    except (OSError, ValueError, RecursionError) as error:
        reasons.append(f"{run.scenario.name}: {error}")
    try:
        meta = read_meta(run.meta)
    except RunFileError as error:
        reasons.append(str(error))
    try:
        faults = read_fault_rows(run.faults)
    except RunFileError as error:
        reasons.append(str(error))
    return _Manifest(scenario, meta, faults, tuple(reasons))


def _node_files(run: RunDir, nodes: list[int]) -> tuple[list[NodeFile], list[int]]:
    files, missing = [], []
    for node in nodes:
        path = run.message_log(node)
        if path.is_file() and os.access(path, os.R_OK):
            files.append(NodeFile(node, path, str(path.relative_to(run.path)), path.stat().st_size))
        else:
            missing.append(node)
    return files, missing


def _times(manifest: _Manifest) -> tuple[float, float]:
    """Earliest and latest allowed timestamp of a message, seconds since the epoch."""
    if manifest.meta is None or manifest.faults is None:
        return -math.inf, math.inf
    meta, began = manifest.meta, datetime.fromisoformat(manifest.meta.started_utc).timestamp()
    ahead = sum(Evidence.of(row).jump_s for row in manifest.faults if row.fault == "clock")
    return began - CLOCK_SLACK_S, began + (meta.t_end - meta.t_start) / NS_PER_S + ahead + CLOCK_SLACK_S


# ---- what surrounds the invariants ------------------------------------------------------------------


def _surroundings(case: Case, story: HistoryStory | None, reason: str) -> list[Check]:
    """Return the checks that are about the run itself and not about a rule of the protocol.

    Args:
        story: None: the history can't be used, and reason says why.
    """
    if case.meta is None or case.faults is None:
        return [Findings(name, name).unknown("; ".join(case.reasons)) for name in ("faults", "run")]
    of_faults, of_run = _gaps(case, case.meta, case.faults, story, reason)
    return [
        check_faults(case.run, case.faults, of_faults),
        check_run(case.meta, of_run),
        *([check_watch(case.meta)] if case.meta.kind == "sim" else []),
    ]


def _gaps(
    case: Case, meta: Meta, faults: Sequence[FaultRow], told: HistoryStory | None, reason: str
) -> tuple[str, str]:
    """Return where faults.jsonl, and where the other files, contradict the scenario or each other."""
    scenario = case.scenario
    if scenario is None:
        return "", case.reasons[0]
    if told is None:
        return "", reason
    if meta.problem or meta.watched:  # It ended somewhere in the middle.
        return "", meta_gap(scenario, meta)
    of_faults = fault_gap(scenario, meta, faults, len(told.steps))
    return of_faults, meta_gap(scenario, meta) or step_gap(scenario, meta, told.steps) or told.unresolved()


def _expectations(run: RunDir, manifest: _Manifest, nodes: list[int], facts: Facts) -> list[ExpectationResult]:
    results = moment_results(manifest.meta) if manifest.meta is not None else []
    if manifest.scenario is None:
        return [*results, ExpectationResult("the scenario's expectations", None, manifest.reasons[0])]
    return results + [judge_expectation(run, nodes, each, facts) for each in manifest.scenario.expectations]
