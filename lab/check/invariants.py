"""Judge a run from its directory alone: feed the judges of lab.check.judges with its files.

A1 compares the logs (agreement). A2 to A6 come from one pass over log and history (replay), A7 from the events
(elections), A8 from the lines that subscribers received (subscribers), A9 from the waits of clients and the end of the
run (recovery). A file that cannot be read leaves the checks that need it UNKNOWN, with the reason.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from datetime import datetime

from msgspec import structs

from lab.check.agreement import compare
from lab.check.expectations import expectation_results
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
from lab.check.judges import JUDGES
from lab.check.metrics import Metrics
from lab.check.story import EventStory, HistoryStory, fault_gap, meta_gap, step_gap
from lab.check.verdict import Check, Findings, Verdict, decide
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
        metrics: the result of lab.check.metrics.measure; None if it failed.
    """
    case = Case(run, (), MessageLog(run.path, "no log"))
    _read_manifest(case)
    _find_logs(case)
    compared = compare(Findings("A1", "agreement"), case.files, case.missing)
    case.agreement, case.deviating = compared.check, compared.deviating
    if compared.reference is not None:
        case.log = MessageLog(compared.reference.path, compared.reference.name)
    judges = [judge(case) for judge in JUDGES]
    story = HistoryStory(run.history.name, case.meta)
    try:
        _feed_faults_and_events(case, judges)
        reason = "no message log" if compared.reference is None else _feed_history(case, judges, story)
    finally:
        case.log.close()
    checks = [check for judge in judges for check in _decide(case, judge, reason)]
    checks += _surroundings(case, None if reason else story, "" if compared.reference is None else reason)
    expectations = tuple(expectation_results(case, metrics))
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


# ---- the manifest -----------------------------------------------------------------------------------


def _read_manifest(case: Case) -> None:
    """Read scenario.yml, meta.json and faults.jsonl; the case has the reasons for those that cannot be read."""
    run, reasons = case.run, []
    try:
        case.scenario = load_scenario(run.scenario)
    except ConfigError as error:
        reasons.append(str(error))
    except (OSError, ValueError, RecursionError) as error:
        reasons.append(f"{run.scenario.name}: {error}")
    try:
        case.meta = read_meta(run.meta)
        case.bound_s = case.meta.recovery_bound_s
    except RunFileError as error:
        reasons.append(str(error))
    try:
        case.faults = read_fault_rows(run.faults)
    except RunFileError as error:
        reasons.append(str(error))
    case.reasons = tuple(reasons)
    if case.meta is not None and case.faults is not None:
        case.times = _times(case.meta, case.faults)


def _times(meta: Meta, faults: Sequence[FaultRow]) -> tuple[float, float]:
    """Earliest and latest allowed timestamp of a message, seconds since the epoch."""
    began = datetime.fromisoformat(meta.started_utc).timestamp()
    ahead = sum(Evidence.of(row).jump_s for row in faults if row.fault == "clock")
    return began - CLOCK_SLACK_S, began + (meta.t_end - meta.t_start) / NS_PER_S + ahead + CLOCK_SLACK_S


def _find_logs(case: Case) -> None:
    """Find all nodes that the manifest or the run directory names, and their message logs."""
    run, known = case.run, set(case.run.node_ids())
    if case.meta is not None:
        known.update(case.meta.nodes)
    if case.scenario is not None:
        known.update(case.scenario.cluster.ids)
    case.nodes, files, missing = sorted(known), [], []
    for node in case.nodes:
        if _is_left_behind(case.meta, node):
            continue
        path = run.message_log(node)
        if path.is_file() and os.access(path, os.R_OK):
            files.append(NodeFile(node, path, str(path.relative_to(run.path)), path.stat().st_size))
        else:
            missing.append(node)
    case.files, case.missing = files, missing


def _is_left_behind(meta: Meta | None, node: NodeId) -> bool:
    """Whether the node was no member at the end, and no start has completed its message log."""
    if meta is None or meta.convergence is None or not meta.convergence.reached or node not in meta.nodes:
        return False
    return node not in meta.convergence.delivered and not meta.nodes[node].ended_cleanly


# ---- the run itself ---------------------------------------------------------------------------------


def _surroundings(case: Case, story: HistoryStory | None, reason: str) -> list[Check]:
    """Return the checks that are about the run itself and not about a rule of the protocol.

    Args:
        story: None if the history cannot be used; `reason` then says why.
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
    case: Case, meta: Meta, faults: Sequence[FaultRow], story: HistoryStory | None, reason: str
) -> tuple[str, str]:
    """Return the first contradiction in faults.jsonl, and the first one between the other files; "" for none."""
    scenario = case.scenario
    if scenario is None:
        return "", case.reasons[0]
    if story is None:
        return "", reason
    if meta.problem or meta.watched:  # The run ended before its last step.
        return "", meta_gap(scenario, meta)
    of_faults = fault_gap(scenario, meta, faults, len(story.steps))
    return of_faults, meta_gap(scenario, meta) or step_gap(scenario, meta, story.steps) or story.stray_client(
        scenario
    ) or story.unresolved()
