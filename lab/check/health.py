"""What is no rule of the protocol, yet decides what a run is worth: nodes that fell over, faults that hit nothing."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path

from lab.check.history import RunFileError, line_at, read_events, read_pieces
from lab.check.verdict import Check, Findings, quote
from lab.plan.reading import EVENTS
from lab.rows import FaultRow, Meta, NodeUse
from lab.rundir import RunDir

_SIGNS = re.compile(
    rb"Traceback \(most recent call last\)|Fatal Python error|exception was never retrieved|Exception ignored in"
)
"""What Python writes when something went wrong that nobody expected."""
_ERRORS = frozenset(name for name, event in EVENTS.items() if event.level == "ERROR")
"""Events that no healthy node reports."""
MEMORY_BOUND_BYTES = 256 << 20
"""Of one node process: more than twice the largest that any measurement in docs/performance.md saw."""
_HEALING = ("start", "resume", "heal")
_NEVER = 1 << 63
_ASKED_ENDS = (0, -signal.SIGKILL, -signal.SIGTERM, 128 + signal.SIGTERM)
"""Shells and virtual machines tell of a signal in the last way."""


def check_node_health(run: RunDir, meta: Meta, nodes: list[int], faults: list[FaultRow], *, bounded: bool) -> Check:
    """No process ended by itself, left a traceback or reported an error, unless it was made to. Rule: A10.

    Args:
        bounded: MEMORY_BOUND_BYTES holds for these nodes; those of another make may need more.
    """
    findings = Findings("A10", "node health")
    treated = min((row.t for row in faults if row.effect and row.fault in ("link", "reset")), default=_NEVER)
    for node, use in sorted(meta.nodes.items()):
        for end in use.exits:
            if not end.expected:
                findings.add("meta.json:1", f"node {node} ended by itself with code {end.code} at t={end.t}")
            elif not end.because and end.code not in _ASKED_ENDS:
                findings.add("meta.json:1", f"node {node}, asked to stop, ended with code {end.code} at t={end.t}")
        if bounded and use.rss_peak_bytes > MEMORY_BOUND_BYTES:
            found, allowed = use.rss_peak_bytes >> 20, MEMORY_BOUND_BYTES >> 20
            findings.add("meta.json:1", f"node {node} grew to {found} MiB of memory (allowed {allowed} MiB)")
    unreadable = ""
    for node in nodes:
        _look_for_traceback(findings, run, run.node_log(node))
        try:
            if run.events(node).is_file():
                _look_for_errors(findings, run, node, meta.nodes.get(node), treated)
        except RunFileError as error:
            unreadable = unreadable or str(error)
    if unreadable:
        return findings.unknown(unreadable)
    if not meta.nodes:
        return findings.unknown("meta.json tells of no node process")
    starts = sum(use.starts for use in meta.nodes.values())
    brought_about = sum(bool(end.because) for use in meta.nodes.values() for end in use.exits)
    ends = f", {brought_about} by a fault of their disk" if brought_about else ""
    return findings.passed(f"{len(meta.nodes)} nodes, {starts} starts, every end asked for{ends}")


def _look_for_traceback(findings: Findings, run: RunDir, path: Path) -> None:
    if not path.is_file() or not os.access(path, os.R_OK):
        return
    for piece in read_pieces(path):
        if sign := _SIGNS.search(piece.data):
            number = piece.first_line + piece.data.count(b"\n", 0, sign.start())
            place = f"{path.relative_to(run.path)}:{number}"
            below = piece.data[sign.end() :].split(b"\n")[1:]
            last = next((line for line in below if line and not line.startswith(b" ")), b"")
            what = "a traceback" if sign[0].startswith(b"Traceback") else f"an error of Python: {sign[0].decode()}"
            findings.add(place, what, quote(place, last or line_at(path, number)))
            return


def _look_for_errors(findings: Findings, run: RunDir, node: int, use: NodeUse | None, treated: int) -> None:
    """Errors that a node reports. A few have to be expected:

    why it ends, where a fault of its disk brought the end about; what it refuses of a peer, once links were treated.
    """
    exits, path = use.exits if use is not None else (), run.events(node)
    for number, event in read_events(path, node):
        if event.event not in _ERRORS or (event.event == "peer_refused" and event.t_ns >= treated):
            continue
        end = next((each for each in exits if each.t >= event.t_ns), None)
        if event.event == "failed" and end is not None and end.because:
            continue
        place = f"{path.relative_to(run.path)}:{number}"
        what = "a failure" if event.event == "failed" else f"an error, {event.event}"
        findings.add(place, f"node {event.node} reports {what}", quote(place, event.reason))


def check_faults(run: RunDir, faults: list[FaultRow], gap: str) -> Check:
    """Every fault that the scenario asked for hit something; else the run shows nothing about it.

    Of a nemesis's faults each kind must have hit once: what is drawn may come when there is nothing to hit.

    gap: which row is missing, or is of nothing that was asked for.
    """
    findings = Findings("faults", "faults")
    if gap:
        return findings.unknown(gap)
    hit = {(row.step, row.asked) for row in faults if row.round and row.effect and row.fault not in _HEALING}
    for number, row in enumerate(faults, 1):
        if not row.effect and row.step >= 0 and row.fault != "heal" and (row.step, row.asked) not in hit:
            target = f"node {row.target}" if row.target else "all nodes"
            return findings.unknown(
                f"{run.faults.name}:{number}: {row.fault} of {target} had no effect: {row.evidence}"
            )
    asked, missed = (
        sum(1 for row in faults if row.step >= 0),
        sum(1 for row in faults if row.step >= 0 and not row.effect),
    )
    if missed:
        return findings.passed(f"{asked} faults, all but {missed} of a nemesis with effect")
    return findings.passed(f"{asked} faults, each with effect" if asked else "none asked for")


def check_watch(meta: Meta) -> Check:
    """What a simulation looks at while it runs: it ends with the first that may not be, before all files show it."""
    findings = Findings("watch", "while it ran")
    if meta.watched:
        findings.add("meta.json:1", meta.watched)
    return findings.passed("nothing broke while it ran")


def check_run(meta: Meta, gap: str) -> Check:
    """The harness carried the scenario out to its end, and its files tell one story.

    gap: where they don't.
    """
    findings = Findings("run", "run")
    if meta.problem or gap:
        return findings.unknown(meta.problem or gap)
    return findings.passed("carried out to its end")
