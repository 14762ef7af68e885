"""The rows of history.jsonl, faults.jsonl, frames.jsonl and live.jsonl, and the content of meta.json.

The judges read all of these but live.jsonl, which is for watching a run.

Each file of rows holds one JSON object a line; history.jsonl is ordered by t. All times are CLOCK_MONOTONIC nanoseconds
(time.monotonic_ns). A run has one host, so the times of different processes can be compared.
"""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

import msgspec
from msgspec import Struct

from lab.payloads import payload as workload_payload

# ---- history.jsonl -------------------------------------------------------------------------------


class Gen(Struct, frozen=True, gc=False):
    """The parameters from which a load's payloads can be generated again."""

    seed: int
    size: int
    """Bytes of each payload."""

    def payload(self, client: int, n: int) -> str:
        """Return the payload of message n of this client."""
        return workload_payload(self.seed, client, n, self.size)


class Invoke(Struct, frozen=True, omit_defaults=True, tag_field="op", tag="invoke"):
    """Messages n .. n + count - 1 of one session were handed to the client library at t.

    Exactly one of `payloads` and `gen` gives their payloads. Message n + i was due at intended + i * every; its latency
    is measured from there.
    """

    t: int
    client: int
    session: str
    n: int
    count: int
    intended: int
    every: int = 0
    """Nanoseconds between the due times of two messages."""
    payloads: tuple[str, ...] = ()
    gen: Gen | None = None

    def payload(self, n: int) -> str:
        """Return the payload of message n, which must be one of this row's."""
        assert self.n <= n < self.n + self.count, (n, self.n, self.count)
        return self.gen.payload(self.client, n) if self.gen is not None else self.payloads[n - self.n]


class Acked(Struct, frozen=True, gc=False, tag_field="op", tag="ok"):
    """All messages up to n of the session are acknowledged at t; message n has this seq_no."""

    t: int
    session: str
    n: int
    seq_no: int


class Failed(Struct, frozen=True, gc=False, tag_field="op", tag="fail"):
    """Messages n .. n + count - 1 were certainly never ordered."""

    t: int
    session: str
    n: int
    count: int
    reason: str


class Unknown(Struct, frozen=True, gc=False, tag_field="op", tag="unknown"):
    """Messages n .. n + count - 1 may have been ordered, or may still be; only the log can tell."""

    t: int
    session: str
    n: int
    count: int


class Shown(Struct, frozen=True, gc=False, tag_field="op", tag="shown"):
    """A subscriber received the lines first .. last; crc is the CRC-32 of their bytes, newlines included."""

    t: int
    client: int
    first: int
    last: int
    crc: int


PHASES = ("load_started", "load_stopped", "step", "healed", "converged", "diverged")


class Phase(Struct, frozen=True, omit_defaults=True, tag_field="op", tag="phase"):
    """The lab reached a point of the scenario; `node` is set if the point is about one node."""

    t: int
    phase: str
    """One of PHASES."""
    detail: str = ""
    node: int = 0


HistoryRow: TypeAlias = Invoke | Acked | Failed | Unknown | Shown | Phase

# ---- faults.jsonl --------------------------------------------------------------------------------


class FaultRow(Struct, frozen=True, omit_defaults=True):
    """One fault or other action, with evidence of its effect on a node or on the links between nodes."""

    fault: str
    """kill | stop | pause | resume | start | link | reset | chaos | busy | disk | clock | power_loss | rebuild |
    garbage | heal; also exit (a node exited because of an injected disk fault) and refusal (a node refused to start
    because of one)."""
    target: int
    """Node id; for links the receiving node, or 0 for all."""
    role: str
    """The node's role just before, from its STATUS: leader | follower | candidate | down | unknown."""
    t: int
    """Just before the action."""
    t_done: int
    """When the evidence was observed: process gone, stopped or answering again; link rule in force."""
    evidence: dict[str, Any]
    effect: bool
    """False if the fault had no effect, such as a kill of a dead node or a link rule that no frame matched."""
    step: int = -1
    """Index in the scenario's steps; -1 for an action of the lab's own when it heals."""
    t_healed: int = 0
    """When the effect ended: node back, rule removed; 0 if that never happened in this run, or cannot happen."""
    asked: str = ""
    """The step as the scenario writes it; "" if no step requested the action."""
    round: int = 0
    """For a nemesis: the number of the fault, from 1."""

    @property
    def moved(self) -> bool:
        """True if the process really ended, stopped, resumed or started.

        A power loss takes its node down even if the disk loses nothing, in which case `effect` is False.
        """
        return self.effect or "exit" in self.evidence


# ---- frames.jsonl --------------------------------------------------------------------------------


class FrameRow(Struct, frozen=True, gc=False):
    """One frame that a node sent to another; docs/protocol.md lists the kinds."""

    t: int
    """When it was sent."""
    source: int
    to: int
    kind: str
    text: str
    """Its content in human-readable form."""
    arrived: tuple[int, ...]
    """Arrival times; empty if it was lost or still under way at the end, several if it was duplicated."""


# ---- live.jsonl ----------------------------------------------------------------------------------


class Members(Struct, frozen=True, tag_field="op", tag="cluster"):
    """The cluster of the run, before its nodes start."""

    t: int
    scenario: str
    kind: Literal["live", "sim"]
    seed: int
    nodes: dict[int, str]
    """Node id -> host:port at which clients reach it."""


class ProcessChange(Struct, frozen=True, omit_defaults=True, tag_field="op", tag="process"):
    """A node's process started, stopped, continued or ended."""

    t: int
    """When the lab noticed it; of an end, when the process was gone."""
    node: int
    state: Literal["up", "paused", "down"]
    pid: int = 0
    code: int = 0
    """Exit code of a process that is down, as in NodeExit."""
    because: str = ""
    """The injected disk fault after which the process had to exit."""


class NodeStatus(Struct, frozen=True, gc=False, tag_field="op", tag="status"):
    """A node's answer to STATUS, if it differs from the answer before."""

    t: int
    node: int
    role: str
    term: int
    leader: int
    last_seq: int
    commit_seq: int
    delivered_seq: int


class FaultChange(Struct, frozen=True, omit_defaults=True, tag_field="op", tag="fault"):
    """A fault began, or its row is complete. A fault without duration has one row, any other fault has two.

    The rule of a link ends when another fault covers the link, or when its fault is over, whichever is first.
    """

    number: int
    """Of the fault in this run, from 0."""
    begins: bool
    """The fault is in force from now on; its evidence is not complete."""
    row: FaultRow


class StepStart(Struct, frozen=True, omit_defaults=True, tag_field="op", tag="step"):
    """The next step of the scenario begins."""

    t: int
    index: int
    """From 0, repeats written out."""
    of: int
    """Number of all steps."""
    text: str
    name: str = ""
    say: str = ""


class Found(Struct, frozen=True, tag_field="op", tag="found"):
    """The result of an `expect`, `wait` or `send` step, as in Expectation."""

    t: int
    step: int
    text: str
    met: bool
    found: str


class NodeSample(Struct, frozen=True, gc=False, tag_field="op", tag="sample"):
    """See Sample."""

    t: int
    node: int
    cpu_s: float
    rss_bytes: int


class End(Struct, frozen=True, tag_field="op", tag="end"):
    """Nothing runs any more."""

    t: int
    problem: str
    """As in Meta."""


class Judged(Struct, frozen=True, tag_field="op", tag="verdict"):
    """The run was judged for the first time."""

    outcome: str
    """pass | broken | missed | undecided."""


LiveRow: TypeAlias = (
    Members | ProcessChange | NodeStatus | FaultChange | StepStart | Phase | Found | NodeSample | End | Judged
)

# ---- meta.json -----------------------------------------------------------------------------------


class NodeExit(Struct, frozen=True):
    """A node process ended."""

    t: int
    code: int
    """Exit code; if negative, the signal that ended the process."""
    expected: bool
    """True if the lab ended the process, or `because` names the reason why the node had to exit."""
    because: str = ""
    """The disk fault after which a node has to exit by itself: full, failing sync, rot of wal, …"""

    @property
    def asked(self) -> bool:
        """True if the lab ended the process itself, by a signal or a simulated power loss."""
        return self.expected and not self.because


class NodeUse(Struct, frozen=True):
    """Resources that one node used over the whole run, summed over its processes."""

    starts: int
    cpu_s: float
    """User and system CPU seconds of all its processes."""
    rss_peak_bytes: int
    """The largest resident set size in any sample."""
    exits: tuple[NodeExit, ...]
    written_bytes: int = 0
    """Bytes written to files, as counted by the operating system."""

    @property
    def ended_cleanly(self) -> bool:
        """The latest process has written everything. After another end, the next start completes the message log."""
        return bool(self.exits) and self.exits[-1].code == 0


class Sample(Struct, frozen=True, gc=False):
    """CPU and memory of one node process at one moment."""

    t: int
    node: int
    cpu_s: float
    rss_bytes: int


class Expectation(Struct, frozen=True):
    """The result of an `expect` or `wait` step during the run."""

    step: int
    text: str
    """The step as in the scenario."""
    met: bool
    found: str
    t: int


class Led(Struct, frozen=True, gc=False):
    """The first STATUS in which this node said that it leads this term."""

    t: int
    node: int
    term: int


class Convergence(Struct, frozen=True):
    """Whether the nodes converged after everything was healed. Rule: A9."""

    bound_s: float
    """Within this time all nodes must report the same delivered_seq, equal to commit_seq."""
    reached: bool
    took_s: float
    delivered: dict[int, int]
    """Node id -> delivered_seq in its last STATUS, without nodes that did not answer."""
    term: int = 0
    """The highest term that any node reported then; 0 if not known."""


class Supervision(Struct, frozen=True):
    """The cost of supervisors (lab.live.supervise), added over the nodes.

    stops: name of a system call -> how often it stopped for a supervisor. busy_s: time from a supervisor's notice of a
    stop to its answer. cpu_s: CPU time of the supervisors. redirected: connections. problems: what they could not
    follow.
    """

    stops: dict[str, int]
    busy_s: float
    cpu_s: float
    redirected: int
    problems: tuple[str, ...] = ()

    def text(self, messages: int) -> str:
        """Return the cost in words, of a run that acknowledged this many messages."""
        stops = sum(self.stops.values())
        each = f"{stops / messages:.1f} stops a message, " if messages else ""
        return f"{each}{self.busy_s / stops * 1e6:.0f} us a stop" if stops else "no stops"


class Meta(Struct, frozen=True):
    """The run's manifest (meta.json): where and how the run was carried out. It contains facts, no verdict."""

    scenario: str
    kind: Literal["live", "sim"]
    links: Literal["direct", "proxied", "kernel"]
    """proxied: traffic between nodes passes through the lab's proxy. kernel: it passes the packet filter of network
    namespaces that the run has made."""
    seed: int
    started_utc: str
    """The time of t_start, ISO 8601. If the run failed before, that of its beginning."""
    versions: dict[str, str]
    interpreter: str
    host: dict[str, Any]
    cluster: dict[str, Any]
    """The resolved settings, with all defaults filled in."""
    t_start: int
    t_end: int
    t_healed: int
    """When the last paused or dead node answered again and all link rules were removed; 0 if that never happened."""
    recovery_bound_s: float
    """A9: after everything is healed, messages must be acknowledged again within this time."""
    convergence: Convergence | None
    """None if the run ended before it could wait for convergence."""
    nodes: dict[int, NodeUse]
    samples: tuple[Sample, ...]
    expectations: tuple[Expectation, ...]
    load: dict[str, Any]
    """Totals: sent, acknowledged, rejected, unknown, workers, CPU seconds of the workers."""
    proxy: dict[str, Any]
    """Evidence counters of the proxy, or of the packet filter; empty for direct links."""
    disks: Literal["direct", "layered", "supervised"] = "direct"
    """layered: file access of the nodes passes through the lab's layer, which injects disk faults and records what is
    durable. supervised: the nodes' system calls pass through supervisors, which do the same."""
    supervision: Supervision | None = None
    """The cost of the supervisors; None if there are none, or the run did not come to its end."""
    problem: str = ""
    """Why the run could not be carried out to its end; "" if it was."""
    watched: str = ""
    """The invariant violation at which the online checks ended a simulation, such as `A7: …`; "" if there was none."""
    led: tuple[Led, ...] = ()
    """The leaders that the run observed, one entry for each term and node."""
    mutant: str = ""
    """The mutant that the nodes ran as (lab.mutants); "" if none."""
    frames: Literal["none", "chosen", "all"] = "none"
    """The frames in frames.jsonl; chosen: all but plain traffic."""


_encode = msgspec.json.Encoder().encode
decode_history_row = msgspec.json.Decoder(HistoryRow).decode
decode_fault_row = msgspec.json.Decoder(FaultRow).decode
decode_live_row = msgspec.json.Decoder(LiveRow).decode
decode_frame_row = msgspec.json.Decoder(FrameRow).decode
decode_meta = msgspec.json.Decoder(Meta).decode


def encode_row(row: HistoryRow | FaultRow | FrameRow | LiveRow) -> bytes:
    """Return one line with its newline."""
    return _encode(row) + b"\n"


def encode_meta(meta: Meta) -> bytes:
    """Return the content of meta.json, indented."""
    return msgspec.json.format(_encode(meta), indent=1) + b"\n"
