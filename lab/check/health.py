"""A10 (node health), and the checks of the run itself: that its faults had an effect and that it was completed."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from lab.check.evidence import evidence_text
from lab.check.history import EventLine, find_line, read_pieces
from lab.check.judge import Case, Judge, loses_disk
from lab.check.verdict import Check, Findings, quote
from lab.rows import FaultRow, Meta, NodeExit
from lab.rundir import RunDir
from lab.steps import effect_of
from lab.steps.step import Effect
from lab.words import EVENTS, counted
from nodeproc.core.messages import NodeId
from nodeproc.errors import EXIT_CORRUPTION, EXIT_DISK_FAILED

_SIGNS = re.compile(
    rb"Traceback \(most recent call last\)|Fatal Python error|exception was never retrieved|Exception ignored in"
)
"""What Python writes to standard error for an error that the program did not expect."""
ERRORS = frozenset(name for name, event in EVENTS.items() if event.level == "ERROR")
"""Events that no healthy node reports."""
MEMORY_BOUND_BYTES = 256 << 20
"""Of one node process: more than twice the largest that any measurement in docs/performance.md saw."""
_ASKED_ENDS = (0, -signal.SIGKILL, -signal.SIGTERM, 128 + signal.SIGTERM)
"""Shells and virtual machines report a signal as 128 plus its number."""
_DISK_ENDS = (EXIT_CORRUPTION, EXIT_DISK_FAILED)


class Health(Judge):
    """Decides that no process exited, left a traceback or reported an error without a fault that explains it."""

    invariants: ClassVar = {"A10": "node health"}
    events: ClassVar = ERRORS
    needs_manifest: ClassVar = True
    reads_events: ClassVar = True

    def __init__(self, case: Case) -> None:
        super().__init__(case)
        self._findings = self.found()
        self._errors: dict[NodeId, list[tuple[int, EventLine]]] = {node: [] for node in case.nodes}
        """Node -> (line, event) of the errors that it reported."""

    def on_event(self, line: int, event: EventLine) -> None:
        if event.event in ERRORS:
            self._errors[event.node].append((line, event))

    def on_exit(self, node: NodeId, end: NodeExit, reason: str) -> None:
        said = f": {reason}" if reason else ""
        if not end.expected:
            message = f"node {node} ended by itself with code {end.code} at t={end.t}{said}"
            self._findings.add("meta.json:1", message)
        elif end.code not in (_DISK_ENDS if end.because else _ASKED_ENDS):
            cause = f"after a disk fault ({end.because})" if end.because else "asked to stop"
            message = f"node {node}, {cause}, ended with code {end.code} at t={end.t}{said}"
            self._findings.add("meta.json:1", message)

    def on_excess(self, node: NodeId, excess: str) -> None:
        self._findings.add("meta.json:1", f"node {node}: {excess}")

    def check(self) -> Check:
        (meta, faults), findings = self.case.manifest, self._findings
        for node, used in sorted(meta.nodes.items()):
            if not self.case.is_foreign and used.rss_peak_bytes > MEMORY_BOUND_BYTES:
                found, allowed = used.rss_peak_bytes >> 20, MEMORY_BOUND_BYTES >> 20
                findings.add("meta.json:1", f"node {node} grew to {found} MiB of memory (allowed {allowed} MiB)")
        missing: list[str] = []
        for node in self.case.nodes:
            use = meta.nodes.get(node)
            if (path := self.case.node_log(node)) is not None:
                _look_for_traceback(findings, self.case.run, path)
                if meta.kind == "live" and (use is None or use.starts) and not path.is_file():
                    missing.append(str(path.relative_to(self.case.run.path)))
            exits = () if use is None else use.exits
            for line, event in self._errors[node]:
                if not _is_excused(event, exits, faults):
                    what = "a failure" if event.event == "failed" else f"an error, {event.event}"
                    said = quote(self.case.event_place(node, line), event.reason)
                    findings.add(said.place, f"node {node} reports {what}", said)
        if missing:
            return findings.unknown(f"no {missing[0]}")
        if not meta.nodes:
            return findings.unknown("meta.json lists no node process")
        starts = sum(use.starts for use in meta.nodes.values())
        brought_about = sum(bool(end.because) for use in meta.nodes.values() for end in use.exits)
        ends = f", {brought_about} by a fault of their disk" if brought_about else ""
        return findings.passed(
            f"{counted(len(meta.nodes), 'node')}, {counted(starts, 'start')}, no unexpected end{ends}"
        )


def _is_excused(event: EventLine, exits: Sequence[NodeExit], faults: Sequence[FaultRow]) -> bool:
    """Whether a fault explains this error.

    A node may report why it exits if a disk fault caused the exit, a refused peer once a link had a fault or the node
    itself lost its disk, and an unknown data directory of a peer that lost its disk before.
    """
    before = [row for row in faults if row.t <= event.t_ns]
    if event.event == "failed":
        end = next((each for each in exits if each.t >= event.t_ns), None)
        if end is None:
            return False
        # A signal of the scenario may end the process before its own exit does.
        ended_first = end.expected and any(_fails_disk(row, event) for row in before)
        return bool(end.because) or ended_first
    if event.event == "peer_refused":
        return any(
            (row.effect and effect_of(row.fault) is Effect.LINKS) or (row.target == event.node and loses_disk(row))
            for row in before
        )
    return event.event == "unknown_member_refused" and any(
        row.target == event.peer and loses_disk(row) for row in before
    )


def _fails_disk(row: FaultRow, event: EventLine) -> bool:
    """Whether the disk of the reporting node was full or failing when it reported the event."""
    failed = row.evidence.get("refused") or row.evidence.get("failed")
    in_force = not row.t_healed or event.t_ns <= row.t_healed
    return row.fault == "disk" and row.target == event.node and bool(failed) and in_force


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
            findings.add(place, what, quote(place, last or find_line(path, number) or b""))
            return


def check_faults(run: RunDir, faults: Sequence[FaultRow], gap: str) -> Check:
    """Decide whether every fault of the scenario had an effect; otherwise the run shows nothing about that fault.

    For a nemesis, each kind of fault must have had an effect once: a fault drawn at random may find no target.

    Args:
        gap: which row is missing, or belongs to no step; "" if none.
    """
    findings = Findings("faults", "faults")
    if gap:
        return findings.unknown(gap)
    hit = {
        (row.step, row.asked)
        for row in faults
        if row.round and row.effect and effect_of(row.fault) not in (Effect.UP, Effect.HEALED)
    }
    for number, row in enumerate(faults, 1):
        if not row.effect and row.step >= 0 and row.fault != "heal" and (row.step, row.asked) not in hit:
            target = f"node {row.target}" if row.target else "all nodes"
            text = evidence_text(row)
            what = f"{row.fault} of {target} had no effect" + (f": {text}" if text else "")
            return findings.unknown(f"{run.faults.name}:{number}: {what}")
    asked, missed = (
        sum(1 for row in faults if row.step >= 0),
        sum(1 for row in faults if row.step >= 0 and not row.effect),
    )
    if missed:
        return findings.passed(f"{counted(asked, 'fault')}, all but {missed} of a nemesis with effect")
    return findings.passed(f"{counted(asked, 'fault')}, each with effect" if asked else "the scenario has none")


def check_watch(meta: Meta) -> Check:
    """Report what the online checks of a simulation found: the run ended there, before all files could show it."""
    findings = Findings("watch", "while it ran")
    if meta.watched:
        findings.add("meta.json:1", meta.watched)
    return findings.passed("nothing broke while it ran")


def check_run(meta: Meta, gap: str) -> Check:
    """Decide whether the lab completed the scenario and the files of the run agree.

    Args:
        gap: the first difference between the files; "" if there is none.
    """
    findings = Findings("run", "run")
    if meta.problem or gap:
        return findings.unknown(meta.problem or gap)
    return findings.passed("completed")
