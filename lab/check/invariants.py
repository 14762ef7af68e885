"""Judging a run: every invariant of docs/protocol.md, from its directory alone.

check() puts the parts together: A1 compares the logs (agreement), A2 to A6 come from one walk over log and history
(replay), A7 from the events (elections), A8 from what subscribers were shown (subscribers), A9 from who waited how
long and how the run ended (recovery). What can't be read leaves the checks that need it UNKNOWN, and they say why.
"""

from __future__ import annotations

import math
import os
from datetime import datetime
from typing import NamedTuple

from msgspec import structs

from lab.check import story
from lab.check.agreement import Agreement, NodeFile, check_agreement
from lab.check.elections import Elections, LogTerms
from lab.check.expectations import Facts, judge_expectation, moment_results
from lab.check.health import check_faults, check_node_health, check_run, check_watch
from lab.check.history import (
    MessageLog,
    RunFileError,
    decode_log_lines,
    line_at,
    read_fault_rows,
    read_history,
    read_meta,
)
from lab.check.metrics import Metrics
from lab.check.recovery import Recovery, healthy_stretches
from lab.check.replay import Replay, judge_numbers_of
from lab.check.subscribers import Starvation, check_subscribers, quiet_spans
from lab.check.verdict import Check, ExpectationResult, Findings, Outcomes, Verdict, decide, quote
from lab.plan.scenario import Scenario
from lab.plan.scenario import load as load_scenario
from lab.plan.workload import FIRST_SUBSCRIBER
from lab.rows import FaultRow, Meta
from lab.rundir import RunDir
from nodeproc.errors import ConfigError
from nodeproc.eventlog import part

NS_PER_S = 1_000_000_000
CLOCK_SLACK_S = 120.0
"""The run's times are those of a monotonic clock, and nodes start before its beginning."""
TITLES = {
    "A3": "integrity",
    "A4": "durability",
    "A5": "sender order",
    "A6": "real time",
    "A8": "subscribers",
    "A9": "recovery",
}


def check(run: RunDir, metrics: Metrics | None) -> Verdict:
    """Judge a run.

    Args:
        metrics: as lab.check.metrics.measure found them; None where it could not.
    """
    papers = _read_papers(run)
    nodes = papers.node_ids(run)
    files, missing = _node_files(run, nodes)
    agreement = check_agreement(files, missing)
    walked = _walk(run, papers, agreement, files)
    checks = [agreement.check, *walked.checks[:5], _elections(run, papers, nodes, walked), *walked.checks[5:]]
    checks += _surroundings(run, papers, nodes, walked)
    facts = Facts(
        files=files,
        equal=agreement.check.result == "PASS" and len({file.size for file in files}) == 1,
        last_seqs={file.node: _last_seq(file) for file in files},
        term_starts=walked.term_starts,
        contiguous=walked.checks[0].result == "PASS",
        messages=walked.messages,
        metrics=metrics,
    )
    expectations = tuple(_expectations(run, papers, nodes, facts))
    return Verdict(decide(tuple(checks), expectations), tuple(checks), expectations, walked.messages)


# ---- what the run says about itself ---------------------------------------------------------------


class _Papers(NamedTuple):
    """scenario.yml, meta.json and faults.jsonl; None and the reason where one can't be read."""

    scenario: Scenario | None
    meta: Meta | None
    faults: list[FaultRow] | None
    reasons: tuple[str, ...]

    def node_ids(self, run: RunDir) -> list[int]:
        """Every node of the cluster, as far as it is known."""
        known = set(run.node_ids())
        if self.meta is not None:
            known.update(self.meta.nodes)
        if self.scenario is not None:
            known.update(self.scenario.cluster.ids)
        return sorted(known)


def _read_papers(run: RunDir) -> _Papers:
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
    return _Papers(scenario, meta, faults, tuple(reasons))


def _rebuilt(faults: list[FaultRow] | None) -> dict[int, list[int]]:
    """Node -> when it lost its disk, or an older copy took its place."""
    lost: dict[int, list[int]] = {}
    for row in faults or ():
        if row.fault == "rebuild" or (row.fault == "disk" and not {"restored", "emptied"}.isdisjoint(row.evidence)):
            lost.setdefault(row.target, []).append(row.t)
    return lost


def _node_files(run: RunDir, nodes: list[int]) -> tuple[list[NodeFile], list[int]]:
    files, missing = [], []
    for node in nodes:
        path = run.message_log(node)
        if path.is_file() and os.access(path, os.R_OK):
            files.append(NodeFile(node, path, str(path.relative_to(run.path)), path.stat().st_size))
        else:
            missing.append(node)
    return files, missing


def _last_seq(file: NodeFile) -> int:
    """seq_no of a log's last whole line, 0 when it has none."""
    with file.path.open("rb") as opened:
        size = 4096
        while True:
            opened.seek(max(file.size - size, 0))
            lines = opened.read().split(b"\n")[:-1]
            if len(lines) > 1 or size >= file.size:
                return decode_log_lines(lines[-1] + b"\n", 1)[0].seq_no if lines else 0
            size *= 4


# ---- log and history --------------------------------------------------------------------------------


class _Walked(NamedTuple):
    """What the walk over log and history found."""

    checks: list[Check]
    """A2 to A6, A8, A9."""
    messages: Outcomes
    term_starts: list[tuple[int, int]] | None
    log_name: str
    story: story.HistoryStory | None
    """None: the history can't be read."""
    reason: str = ""
    """Why."""


def _walk(run: RunDir, papers: _Papers, agreement: Agreement, files: list[NodeFile]) -> _Walked:
    log = _reference_log(run, agreement)
    if agreement.reference is None:
        return _without_history(agreement, log, "no message log")._replace(reason="")
    if not run.history.is_file():
        return _without_history(agreement, log, f"no {run.history.name}")
    replay = Replay(log, run.history, _times(papers))
    recovery, starvation = _recovery(run, papers), _starvation(papers)
    told = story.HistoryStory(run.history.name, papers.meta)
    try:
        for place, row in read_history(run.history):
            told.on_row(place, row)
            replay.on_row(place, row)
            if starvation is not None:
                starvation.on_row(place, row)
            if recovery is not None:
                recovery.on_row(place, row)
        if lack := told.lack(papers.meta):
            raise RunFileError(lack)
    except (RunFileError, OSError) as error:
        return _without_history(agreement, _reference_log(run, agreement), str(error))
    replay.finish()
    _judge_deviating(replay.contiguity, agreement)
    if replay.shown_rows and replay.contiguity.count and not agreement.deviating:
        shown = Findings("A8", TITLES["A8"]).unknown("the log itself is not contiguous (A2)")
    else:
        if starvation is not None and papers.meta is not None:
            starvation.finish(papers.meta.t_end)
        shown = check_subscribers(run, log, _subscribers(papers), _must_be_shown(papers), starvation)
    if recovery is None or papers.meta is None or papers.faults is None:
        recovered = Findings("A9", TITLES["A9"]).unknown("; ".join(papers.reasons))
    else:
        recovered = recovery.check(papers.meta, files, papers.faults)
    _judge_delivered(replay.contiguity, papers, files)
    checks = [*replay.checks(), shown, recovered]
    return _Walked(checks, replay.outcomes(), replay.term_starts, log.name, told)


def _times(papers: _Papers) -> tuple[float, float]:
    """Between which the timestamps of messages must lie, seconds since the epoch."""
    if papers.meta is None or papers.faults is None:
        return -math.inf, math.inf
    meta, began = papers.meta, datetime.fromisoformat(papers.meta.started_utc).timestamp()
    ahead = sum(float(row.evidence.get("jump_s", 0.0)) for row in papers.faults)
    return began - CLOCK_SLACK_S, began + (meta.t_end - meta.t_start) / NS_PER_S + ahead + CLOCK_SLACK_S


def _subscribers(papers: _Papers) -> range | None:
    if papers.scenario is None:
        return None
    return range(FIRST_SUBSCRIBER, FIRST_SUBSCRIBER + papers.scenario.subscribers)


def _must_be_shown(papers: _Papers) -> int:
    """The seq_no up to which each subscriber must have come; 0: the run did not come to its end."""
    convergence = None if papers.meta is None else papers.meta.convergence
    return max(convergence.delivered.values(), default=0) if convergence is not None and convergence.reached else 0


def _starvation(papers: _Papers) -> Starvation | None:
    if papers.scenario is None or papers.meta is None or papers.faults is None:
        return None
    meta, cluster = papers.meta, papers.scenario.cluster
    late = [node for node in cluster.ids if node not in cluster.started_ids]
    spans = quiet_spans(papers.faults, late, meta.t_start, meta.t_end)
    return Starvation(_subscribers(papers) or (), spans, meta.recovery_bound_s)


def _judge_delivered(findings: Findings, papers: _Papers, files: list[NodeFile]) -> None:
    """A2: a log reaches as far as its node's STATUS said that it had delivered."""
    convergence = None if papers.meta is None else papers.meta.convergence
    for file in files:
        told = 0 if convergence is None else convergence.delivered.get(file.node, 0)
        if (last := _last_seq(file)) < told:
            message = f"{file.name} ends at seq_no {last}; STATUS of node {file.node} said that {told} were delivered"
            findings.add(file.name, message, quote(file.name, line_at(file.path, last)))


def _reference_log(run: RunDir, agreement: Agreement) -> MessageLog:
    reference = agreement.reference
    return MessageLog(run.path, "no log") if reference is None else MessageLog(reference.path, reference.name)


def _judge_deviating(findings: Findings, agreement: Agreement) -> None:
    """A2 of files that are no prefix of the log which was walked: they have numbers of their own."""
    for file in agreement.deviating:
        judge_numbers_of(findings, MessageLog(file.path, file.name))


def _recovery(run: RunDir, papers: _Papers) -> Recovery | None:
    if papers.meta is None or papers.faults is None:
        return None
    meta = papers.meta
    stretches = healthy_stretches(papers.faults, papers.node_ids(run), meta.t_start, meta.t_end)
    return Recovery(stretches, meta.recovery_bound_s, run.history.name)


def _without_history(agreement: Agreement, log: MessageLog, reason: str) -> _Walked:
    """A2 alone can be judged."""
    contiguity = Findings("A2", "contiguity")
    judge_numbers_of(contiguity, log)
    _judge_deviating(contiguity, agreement)
    if log.line_count:
        numbers = contiguity.passed(f"{log.line_count} lines")
    else:
        numbers = contiguity.unknown("no message in any node's log")
    others = [Findings(name, title).unknown(reason) for name, title in TITLES.items()]
    return _Walked([numbers, *others], Outcomes(in_log=log.line_count), None, log.name, None, reason)


# ---- what surrounds the invariants ------------------------------------------------------------------


def _is_foreign(papers: _Papers) -> bool:
    return papers.scenario is not None and papers.scenario.cluster.is_foreign


def _as_far_as_seen(run: RunDir, check: Check) -> Check:
    """The check of event files, UNKNOWN in place of PASS if older rows stand in files that it does not read."""
    full = [path for node in run.node_ids() if (path := part(run.events(node), 1)).exists()]
    if not full or check.result != "PASS":
        return check
    name = full[0].relative_to(run.path)
    reason = f"{name} is not read: set limits.events_max_bytes higher"
    return structs.replace(check, result="UNKNOWN", detail=reason, decisive=True)


def _elections(run: RunDir, papers: _Papers, nodes: list[int], walked: _Walked) -> Check:
    in_order = walked.checks[0].result == "PASS"  # Else A2 has it, and where a term begins is not to be told.
    log = LogTerms(walked.log_name, walked.term_starts or () if in_order else ())
    elections = Elections(run, _rebuilt(papers.faults))
    judged = elections.check(nodes, log=log, meta=papers.meta, wanted=not _is_foreign(papers))
    return _as_far_as_seen(run, judged)


def _surroundings(run: RunDir, papers: _Papers, nodes: list[int], walked: _Walked) -> list[Check]:
    if papers.meta is None or papers.faults is None:
        reason = "; ".join(papers.reasons)
        titles = (("A10", "node health"), ("faults", "faults"), ("run", "run"))
        return [Findings(name, title).unknown(reason) for name, title in titles]
    health = check_node_health(run, papers.meta, nodes, papers.faults, bounded=not _is_foreign(papers))
    of_faults, of_run = _gaps(papers.scenario, papers.meta, papers.faults, walked, papers.reasons)
    return [
        _as_far_as_seen(run, health),
        check_faults(run, papers.faults, of_faults),
        check_run(papers.meta, of_run),
        *([check_watch(papers.meta)] if papers.meta.kind == "sim" else []),
    ]


def _gaps(
    scenario: Scenario | None, meta: Meta, faults: list[FaultRow], walked: _Walked, reasons: tuple[str, ...]
) -> tuple[str, str]:
    """Where faults.jsonl, and where the other files, don't tell the story that the scenario asked for."""
    if scenario is None:
        return "", reasons[0]
    if walked.story is None:
        return "", walked.reason
    told = walked.story
    if meta.problem or meta.watched:  # It ended somewhere in the middle.
        return "", story.meta_gap(scenario, meta)
    of_faults = story.fault_gap(scenario, meta, faults, len(told.steps))
    return of_faults, story.meta_gap(scenario, meta) or story.step_gap(scenario, meta, told.steps) or told.unresolved()


def _expectations(run: RunDir, papers: _Papers, nodes: list[int], facts: Facts) -> list[ExpectationResult]:
    results = moment_results(papers.meta) if papers.meta is not None else []
    if papers.scenario is None:
        return [*results, ExpectationResult("the scenario's expectations", None, papers.reasons[0])]
    return results + [judge_expectation(run, nodes, each, facts) for each in papers.scenario.expectations]
