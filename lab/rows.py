"""The rows of history.jsonl and faults.jsonl and the content of meta.json: what a run leaves for its judges.

All times are CLOCK_MONOTONIC nanoseconds (time.monotonic_ns) of the one host that a run has, so rows of different
processes compare. One JSON object a line; history.jsonl is ordered by t.
"""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

import msgspec
from msgspec import Struct

from lab.payloads import payload as workload_payload

# ---- history.jsonl -------------------------------------------------------------------------------


class Gen(Struct, frozen=True, gc=False):
    """The rule by which a load's payloads can be made again."""

    seed: int
    size: int
    """Bytes of each payload."""

    def payload(self, client: int, n: int) -> str:
        """The payload of message n of this client."""
        return workload_payload(self.seed, client, n, self.size)


class Invoke(Struct, frozen=True, omit_defaults=True, tag_field="op", tag="invoke"):
    """Messages n .. n + count - 1 of one session were handed to the client library at t.

    Exactly one of `payloads` and `gen` says what they hold. Message n + i should have been sent at
    intended + i * every: latency counts from there.
    """

    t: int
    client: int
    session: str
    n: int
    count: int
    intended: int
    every: int = 0
    """Nanoseconds between two intended times inside this row."""
    payloads: tuple[str, ...] = ()
    gen: Gen | None = None

    def payload(self, n: int) -> str:
        """What message n holds; n must be one of this row's."""
        assert self.n <= n < self.n + self.count, (n, self.n, self.count)
        return self.gen.payload(self.client, n) if self.gen is not None else self.payloads[n - self.n]


class Acked(Struct, frozen=True, gc=False, tag_field="op", tag="ok"):
    """Cumulative: every message <= n of the session is acknowledged at t, and n stands at seq_no."""

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
    """Messages n .. n + count - 1 may have been ordered, or may still be: the log knows."""

    t: int
    session: str
    n: int
    count: int


class Shown(Struct, frozen=True, gc=False, tag_field="op", tag="shown"):
    """A subscriber was shown the lines first .. last; crc is CRC-32 of their bytes, newlines included."""

    t: int
    client: int
    first: int
    last: int
    crc: int


PHASES = ("load_started", "load_stopped", "step", "healed", "converged", "diverged")


class Phase(Struct, frozen=True, omit_defaults=True, tag_field="op", tag="phase"):
    """The harness reached a point of the scenario; `node` where the point is about one node."""

    t: int
    phase: str
    """One of PHASES."""
    detail: str = ""
    node: int = 0


HistoryRow: TypeAlias = Invoke | Acked | Failed | Unknown | Shown | Phase

# ---- faults.jsonl --------------------------------------------------------------------------------


class FaultRow(Struct, frozen=True, omit_defaults=True):
    """One thing really done to one node, or to the links between nodes."""

    fault: str
    """kill | stop | pause | resume | start | link | reset | chaos | busy | disk | clock | power_loss | rebuild |
    garbage | heal; besides exit (a node ended by itself of what was done to its disk) and refusal (of that it did not
    start)."""
    target: int
    """Node id; for links the receiving node, 0 for all."""
    role: str
    """What the node was just before, as its STATUS said: leader | follower | candidate | down | unknown."""
    t: int
    """Just before it was done."""
    t_done: int
    """When the evidence was there: process gone, stopped, answering again; rule in force."""
    evidence: dict[str, Any]
    effect: bool
    """False: it hit nothing (a kill of a node that was already dead, a link rule that no frame met)."""
    step: int = -1
    """Index in the scenario's steps; -1 for what the lab did by itself when healing."""
    t_healed: int = 0
    """When it was over: node back, rule gone; 0: never in this run, or nothing that could be over."""
    asked: str = ""
    """What the scenario asks for there, in its own words; "" for what it does not."""
    round: int = 0
    """Of a nemesis: which of its faults, from 1."""

    @property
    def moved(self) -> bool:
        """The process really ended, stopped, went on or started.

        A power loss that finds nothing to lose has no effect on the disk, and takes its node down all the same.
        """
        return self.effect or "exit" in self.evidence


# ---- frames.jsonl --------------------------------------------------------------------------------


class FrameRow(Struct, frozen=True, gc=False):
    """One frame that a node sent to another in a simulation; docs/protocol.md has their kinds."""

    t: int
    """When it was sent."""
    source: int
    to: int
    kind: str
    text: str
    """What it says, for people."""
    arrived: tuple[int, ...]
    """When it arrived; empty: it was lost, or had not arrived at the end; several: it was duplicated."""


# ---- meta.json -----------------------------------------------------------------------------------


class NodeExit(Struct, frozen=True):
    """A node process ended."""

    t: int
    code: int
    """Exit code; negative: the signal that ended it."""
    expected: bool
    """The lab asked for it, or `because` says why it had to come."""
    because: str = ""
    """What was done to its disk that a node has to end of by itself: full, failing sync, rot of wal, …"""

    @property
    def asked(self) -> bool:
        """The lab ended the process itself, by a signal or with the machine's power."""
        return self.expected and not self.because


class NodeUse(Struct, frozen=True):
    """One node over the whole run, all its processes added."""

    starts: int
    cpu_s: float
    """User and system seconds of all its processes."""
    rss_peak_bytes: int
    """The largest resident size that a sample saw."""
    exits: tuple[NodeExit, ...]
    written_bytes: int = 0
    """Handed to the disk's files, as the system counts it."""


class Sample(Struct, frozen=True, gc=False):
    """CPU and memory of one node process at one moment."""

    t: int
    node: int
    cpu_s: float
    rss_bytes: int


class Expectation(Struct, frozen=True):
    """What an `expect` or `wait` step found while the run was on."""

    step: int
    text: str
    """What was asked, as in the scenario."""
    met: bool
    found: str
    t: int


class Led(Struct, frozen=True, gc=False):
    """The STATUS of this node was first seen to say that it leads this term."""

    t: int
    node: int
    term: int


class Convergence(Struct, frozen=True):
    """How the run ended, once everything was healed. Rule: A9."""

    bound_s: float
    """Stated before: by then all nodes must show the same delivered_seq, equal to commit_seq."""
    reached: bool
    took_s: float
    delivered: dict[int, int]
    """Node id -> delivered_seq at its last STATUS; a node that did not answer is missing."""
    term: int = 0
    """The highest that any node showed then; 0: not known."""


class Meta(Struct, frozen=True):
    """meta.json: where, with what and how the run went. Facts that are no judgement."""

    scenario: str
    kind: Literal["live", "sim"]
    links: Literal["direct", "proxied"]
    """proxied: what nodes say to each other passes the lab's proxy."""
    seed: int
    started_utc: str
    versions: dict[str, str]
    interpreter: str
    host: dict[str, Any]
    cluster: dict[str, Any]
    """As resolved: every default filled in."""
    t_start: int
    t_end: int
    t_healed: int
    """When the last paused or dead node answered again and every link rule was gone; 0: never got there."""
    recovery_bound_s: float
    """A9: with all healed, messages must be acknowledged again within this time."""
    convergence: Convergence | None
    """None: the run ended before convergence could be awaited."""
    nodes: dict[int, NodeUse]
    samples: tuple[Sample, ...]
    expectations: tuple[Expectation, ...]
    load: dict[str, Any]
    """Totals: sent, acknowledged, rejected, unknown, workers, CPU seconds of the workers."""
    proxy: dict[str, Any]
    """Evidence counters of the proxy; empty for direct links."""
    disks: Literal["direct", "layered"] = "direct"
    """layered: what nodes write passes the lab's layer, which can fail and knows what is durable."""
    problem: str = ""
    """Why the run could not be carried out to its end; empty when it was."""
    watched: str = ""
    """The first that a simulation saw break while it ran, and at which it ended: `A7: …`; empty when nothing did."""
    led: tuple[Led, ...] = ()
    """Who said that it leads which term, as far as the run looked."""
    mutant: str = ""
    """Which rule the nodes had broken on purpose (lab.mutants); empty: none."""


_encode = msgspec.json.Encoder().encode
decode_history_row = msgspec.json.Decoder(HistoryRow).decode
decode_fault_row = msgspec.json.Decoder(FaultRow).decode
decode_frame_row = msgspec.json.Decoder(FrameRow).decode
decode_meta = msgspec.json.Decoder(Meta).decode


def encode_row(row: HistoryRow | FaultRow | FrameRow) -> bytes:
    """One line with its newline."""
    return _encode(row) + b"\n"


def encode_meta(meta: Meta) -> bytes:
    """meta.json, indented for people."""
    return msgspec.json.format(_encode(meta), indent=1) + b"\n"
