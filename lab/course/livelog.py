"""live.jsonl: everything that a watcher of a run needs besides the history and the nodes' own files, as it happens."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

from lab.rows import (
    End,
    Expectation,
    FaultChange,
    FaultRow,
    Found,
    LiveRow,
    Members,
    NodeSample,
    NodeStatus,
    Phase,
    ProcessChange,
    Sample,
    StepStart,
    encode_row,
)
from lab.steps import Step
from lab.steps.machine import Machine
from nodeproc.client import Address
from nodeproc.core.messages import NodeId
from nodeproc.lines import Status


class LiveLog:
    """Writes each row at once, in the order in which the lab learns of things.

    Args:
        write: takes an encoded row; None: nobody will read the log, so nothing is written.
        now_ns: the time, as in the rows.
    """

    def __init__(self, write: Callable[[bytes], object] | None, now_ns: Callable[[], int]) -> None:
        self._write, self._now_ns = write, now_ns
        self._processes: dict[NodeId, tuple[str, int]] = {}
        """Node -> the state of its process and its number of starts, as last written."""
        self._statuses: dict[NodeId, tuple[object, ...]] = {}

    @property
    def wanted(self) -> bool:
        return self._write is not None

    def _add(self, row: LiveRow) -> None:
        if self._write is not None:
            self._write(encode_row(row))

    def cluster(self, scenario: str, kind: Literal["live", "sim"], seed: int, nodes: Mapping[NodeId, Address]) -> None:
        shown = {node: f"{host}:{port}" for node, (host, port) in sorted(nodes.items())}
        self._add(Members(self._now_ns(), scenario, kind, seed, shown))

    def observe(self, machines: Mapping[NodeId, Machine], statuses: Mapping[NodeId, Status]) -> None:
        """Write the changes of processes and of answers to STATUS.

        Args:
            statuses: the answers that nodes gave just now.
        """
        if not self.wanted:
            return
        for machine in machines.values():
            self._observe_process(machine)
        for node, answer in sorted(statuses.items()):
            places = (answer.last_seq, answer.commit_seq, answer.delivered_seq)
            row = NodeStatus(self._now_ns(), node, answer.role, answer.term, answer.leader, *places)
            seen = (answer.pid, answer.role, answer.term, answer.leader, *places)
            if self._statuses.get(node) != seen:
                self._statuses[node] = seen
                self._add(row)

    def _observe_process(self, machine: Machine) -> None:
        state: Literal["up", "paused", "down"] = "paused" if machine.paused else "up" if machine.running else "down"
        before, starts = self._processes.get(machine.node, ("down", 0))
        if (state, machine.starts) == (before, starts):
            return
        self._processes[machine.node] = state, machine.starts
        if state == "down" and machine.exits:
            end = machine.exits[-1]
            self._add(ProcessChange(end.t, machine.node, state, code=end.code, because=end.because))
        else:
            pid = int(machine.identity().get("pid", 0))
            self._add(ProcessChange(self._now_ns(), machine.node, state, pid))

    def fault(self, number: int, row: FaultRow, begins: bool) -> None:
        """A fault began, or its row is complete."""
        self._add(FaultChange(number, begins, row))

    def step(self, index: int, of: int, step: Step) -> None:
        if self.wanted:
            self._add(StepStart(self._now_ns(), index, of, step.words, step.name, step.say))

    def phase(self, row: Phase) -> None:
        self._add(row)

    def found(self, row: Expectation) -> None:
        self._add(Found(row.t, row.step, row.text, row.met, row.found))

    def sample(self, row: Sample) -> None:
        self._add(NodeSample(row.t, row.node, row.cpu_s, row.rss_bytes))

    def end(self, problem: str) -> None:
        self._add(End(self._now_ns(), problem))
