"""A9: with a majority up and connected, messages are acknowledged again within a bound, and all files become equal.

A stretch of the run is healthy while no fault is being injected and a majority of the nodes is up and connected: no
link rule is in force between its nodes. Other nodes may be up, provided that each of their links either works or is
cut completely. In a healthy stretch the time in which clients wait and none is acknowledged must not exceed the bound.
If no disk or clock fault and no link rule is in force either, no client may wait longer than the bound for its own
acknowledgement.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence, Set
from dataclasses import dataclass
from typing import ClassVar, Final, NamedTuple

from lab.check.history import EventLine, Evidence, NodeFile
from lab.check.judge import Case, Judge, loses_disk
from lab.check.verdict import Check, quote
from lab.rows import Acked, Failed, FaultRow, HistoryRow, Invoke, Meta, Unknown
from lab.steps import CHANGES, LEFT, AddNode, RemoveNode, effect_of
from lab.steps.rules import CLIENTS, Pair, Rule
from lab.steps.step import Effect
from nodeproc.core.messages import NodeId
from nodeproc.session import SessionSettings

NS_PER_S = 1_000_000_000
AT_ONCE_SHARE: Final = 0.1
"""A client that gives up a message and sends another one within this share of the bound still waits."""
PATIENCE: Final = int(SessionSettings().patience * NS_PER_S)
"""After this time, ns, a client leaves a node that has no leader for it."""
SYNCS: Final = 4
"""A message may wait for this many fdatasync: the one under way and its own, of the leader and then of a follower."""
READMITTED: Final = "node_readmitted"


class Stretch(NamedTuple):
    """A healthy part of the run, CLOCK_MONOTONIC ns."""

    start: int
    end: int
    fault: FaultRow | None
    """The fault just before it; None at the beginning of the run."""
    each: bool = True
    """Every client must be served, because no disk or clock fault and no link rule is in force."""
    search: int = 0
    """Time that a client may need to find a node of the connected majority, ns; added to the bound."""
    quiet: bool = False
    """Every node runs, and no fault is in force at all."""


class _Cluster:
    """What is known about nodes, links and disks at one moment of the run.

    runs: node -> whether its process runs. members: the nodes that have a vote. lasting: the rows of link, disk and
    clock faults that are not healed, the oldest first. rules: the newest rule of each link; it ends with its own row,
    whatever rule it replaced. lost: node -> when it lost its disk, until it votes again. undecided: node -> the row of
    a change of it that may be done or not; until it is decided, the majority is unknown. deadline_s: of the load's
    messages. bound: within which others readmit a node that lost its disk, ns.
    """

    def __init__(self, runs: dict[NodeId, bool], deadline_s: float, bound: float) -> None:
        self.runs, self.members, self._deadline_s, self._bound = runs, set(runs), deadline_s, bound
        self.lasting: list[FaultRow] = []
        self.rules: dict[Pair, FaultRow] = {}
        self.lost: dict[NodeId, int] = {}
        self.left: set[NodeId] = set()
        self.undecided: dict[NodeId, FaultRow] = {}

    @staticmethod
    def lasts(row: FaultRow) -> bool:
        """Whether the fault is in force until it is healed; a reset is over when it is done."""
        return effect_of(row.fault) in (Effect.LINKS, Effect.SLOW) and row.t_healed != row.t_done

    def inject(self, row: FaultRow) -> None:
        effect = effect_of(row.fault)
        if loses_disk(row):
            self.lost[row.target] = row.t_done
        if row.fault in CHANGES or row.fault == LEFT:
            self._change(row)
        elif effect in (Effect.DOWN, Effect.UP) and row.moved:
            self.runs[row.target] = effect is Effect.UP
        elif self.lasts(row):
            self.lasting.append(row)
            if effect is Effect.LINKS:
                self.rules |= dict.fromkeys(Evidence.of(row).pairs, row)

    def _change(self, row: FaultRow) -> None:
        """Record a change of the members. A list that was committed later also decides the changes before it."""
        node, was_removed = row.target, row.fault == LEFT or (row.fault == RemoveNode.word and row.effect)
        if was_removed:
            self.left.add(node)
            self.members.discard(node)
        elif not row.effect:
            if node not in self.left:
                self.undecided[node] = row
            return
        self.undecided.pop(node, None)
        if row.fault == LEFT:
            self.runs[node] = False
            return
        evidence = Evidence.of(row)
        self.members = set(evidence.voters)
        self.undecided = {
            other: change
            for other, change in self.undecided.items()
            if (other not in self.members if change.fault == AddNode.word else self._may_go(change, evidence))
        }

    def _may_go(self, removal: FaultRow, later: Evidence) -> bool:
        """Whether a removal may still be done: the later list has the node, and may be as old as the request."""
        return removal.target in self.members and later.version <= Evidence.of(removal).version

    def readmit(self, node: NodeId, t: int) -> None:
        """The node reported at this time that it votes again. What it reported before it lost its disk is over."""
        if self.lost.get(node, t) < t:
            del self.lost[node]

    def heal(self, row: FaultRow) -> None:
        self.lasting.remove(row)
        self.rules = {pair: rule for pair, rule in self.rules.items() if rule != row}

    def links(self) -> dict[Pair, Rule]:
        """The links with a rule between nodes that are up, or towards clients."""
        return {
            pair: Evidence.of(row).rule
            for pair, row in self.rules.items()
            if all(self.runs.get(end, True) for end in pair)
        }

    def pass_time(self, span: int) -> None:
        """Nothing changed for this time, ns: a healthy cluster has readmitted its nodes if that is above the bound."""
        up = self._up()
        is_healthy = not self.undecided and not self.links() and not self._slow()
        if is_healthy and span >= self._bound and self._is_majority(up.difference(self.lost)):
            self.lost = {node: t for node, t in self.lost.items() if node not in up}

    def stretch(self, start: int, end: int, fault: FaultRow | None, *, any_node: bool) -> Stretch | None:
        """The time from start to end as a healthy stretch, or None if it is not healthy.

        Args:
            any_node: every client can find every node.
        """
        if self.undecided:
            return None
        slow, up, links = self._slow(), self._up(), self.links()
        if not links:
            too_slow = {row.target for row in self.lasting if SYNCS * Evidence.of(row).slow_s > self._deadline_s}
            quiet = not slow and up == self.members
            able = up.difference(too_slow, self.lost)
            return Stretch(start, end, fault, not slow, quiet=quiet) if self._is_majority(able) else None
        are_cut = all(CLIENTS not in pair and (rule.silent or rule.refuse) for pair, rule in links.items())
        connected = largest_connected(up.difference(slow, self.lost), links.keys())
        if not any_node or not are_cut or not self._is_majority(connected):
            return None
        return Stretch(start, end, fault, each=False, search=PATIENCE * len(up - connected))

    def _up(self) -> frozenset[NodeId]:
        return frozenset(node for node in self.members if self.runs.get(node, False))

    def _slow(self) -> Set[NodeId]:
        return {row.target for row in self.lasting if effect_of(row.fault) is Effect.SLOW}

    def _is_majority(self, nodes: Set[NodeId]) -> bool:
        return 2 * len(nodes) > len(self.members)


def largest_connected(nodes: Set[NodeId], cut: Set[Pair]) -> Set[NodeId]:
    """Return a largest subset of these nodes in which no link between two nodes is cut, in either direction."""
    partners = {a: {b for b in nodes if (a, b) in cut or (b, a) in cut} for a in sorted(nodes)}
    worst = max(partners, key=lambda node: len(partners[node]), default=None)
    if worst is None or not partners[worst]:
        return nodes
    with_it, without_it = nodes - partners[worst], nodes - {worst}
    return max(largest_connected(with_it, cut), largest_connected(without_it, cut), key=len)


def healthy_stretches(case: Case, readmitted: Iterable[tuple[int, NodeId]] = ()) -> list[Stretch]:
    """The healthy parts of a run, in order.

    Where clients know only some of the nodes, nothing is required while a node is up but cut off, because it is not
    known to which side a client is connected.

    Args:
        readmitted: as of stretches_between.
    """
    meta, faults = case.manifest
    load, late, founders = None, set[NodeId](), case.nodes
    if case.scenario is not None:
        load, cluster = case.scenario.load, case.scenario.cluster
        late = {*cluster.ids} - {*cluster.started_ids}
        founders = cluster.founder_ids
    any_node, deadline_s = (load.via == "all", float(load.deadline)) if load is not None else (True, math.inf)
    return stretches_between(
        faults,
        founders,
        late,
        meta.t_start,
        meta.t_end,
        any_node=any_node,
        deadline_s=deadline_s,
        readmitted=readmitted,
        bound=0.0 if case.is_foreign else case.bound_s * NS_PER_S,  # Other programs report no readmission.
    )


def stretches_between(
    faults: Iterable[FaultRow],
    nodes: Sequence[NodeId],
    late: Set[NodeId],
    t_start: int,
    t_end: int,
    *,
    any_node: bool = True,
    deadline_s: float = math.inf,
    readmitted: Iterable[tuple[int, NodeId]] = (),
    bound: float = 0.0,
) -> list[Stretch]:
    """The healthy parts of the time from t_start to t_end, in order.

    Args:
        nodes: ids of all founders. late: those that are not started at the beginning.
        any_node: every client can find every node.
        deadline_s: after this time a client of the load gives up a message.
        readmitted: (when, node) of nodes that reported that they vote again after they had lost their disk.
        bound: within which others readmit such a node, whether it reports that or not, ns.
    """
    rows = sorted(faults, key=lambda row: row.t)
    runs = {node: node not in late and _first_effect(rows, node) is not Effect.UP for node in nodes}
    cluster = _Cluster(runs, deadline_s, bound)
    ends = [row for row in rows if row.t_healed and cluster.lasts(row)]
    changes: list[tuple[int, FaultRow | NodeId]] = [*((row.t, row) for row in rows), *readmitted]
    changes += ((row.t_healed, row) for row in ends)
    stretches: list[Stretch] = []
    since, fault = t_start, None
    for t, row in [*sorted(changes, key=lambda change: change[0]), (t_end, None)]:
        stretch = None
        if t > since:
            cluster.pass_time(t - since)
            stretch = cluster.stretch(since, t, fault, any_node=any_node)
        if isinstance(row, NodeId):
            if not stretch:
                since = max(since, t)
            cluster.readmit(row, t)
            continue
        if stretch:
            stretches.append(stretch)
        if row is None:
            break
        if row in cluster.lasting:
            cluster.heal(row)
            since, fault = max(since, t), row
        else:
            cluster.inject(row)
            since, fault = max(since, row.t_done), row
    return stretches


def _first_effect(rows: list[FaultRow], node: int) -> Effect:
    """What was first done to the process of a node."""
    effects = (effect_of(row.fault) for row in rows if row.target == node and row.moved)
    return next((effect for effect in effects if effect in (Effect.DOWN, Effect.UP)), Effect.NONE)


@dataclass(slots=True)
class _Session:
    invoked: int = 0
    settled: int = 0
    since: int = 0
    """When it began to wait, or when it last got an answer: an acknowledgement or a rejection."""
    waits: bool = False
    gave_up: int = 0
    """When its last message became unknown, while no other was waiting; 0 after an answer."""


class Recovery(Judge):
    """Follows which sessions wait for an acknowledgement."""

    invariants: ClassVar = {"A9": "recovery"}
    needs_history: ClassVar = True
    needs_manifest: ClassVar = True
    needs_faults_first: ClassVar = True
    events: ClassVar = {READMITTED}

    def __init__(self, case: Case) -> None:
        super().__init__(case)
        self._findings = self.found()
        self._bound_s, self._bound = case.bound_s, case.bound_s * NS_PER_S
        self._history_name = case.run.history.name
        self._readmitted: list[tuple[int, NodeId]] = []
        self._stretches: list[Stretch] | None = None
        self._sessions: defaultdict[str, _Session] = defaultdict(_Session)
        self._waiting = 0
        self._since = 0
        """Since when a session waits and nothing was acknowledged; meaningless while no session waits."""
        self._gave_up = 0
        """When the last waiting session gave up its message; 0 after an answer."""
        self._latest_t, self._latest_place = 0, 0
        self._longest = 0
        self._judged_faults: set[int] = set()
        self._at = 0
        self._acked = False

    def _healthy(self) -> list[Stretch]:
        """Return the healthy parts of the run. To be called when all faults and events are known."""
        if self._stretches is None:
            known = self.case.meta is not None and self.case.faults is not None
            self._stretches = healthy_stretches(self.case, self._readmitted) if known else []
        return self._stretches

    def on_event(self, line: int, event: EventLine) -> None:
        if event.event == READMITTED and event.peer == event.node:
            self._readmitted.append((event.t_ns, event.node))

    def on_row(self, place: int, row: HistoryRow) -> None:
        self._latest_t, self._latest_place = row.t, place
        match row:
            case Invoke():
                self._invoked(row.t, row.session, row.n + row.count - 1)
            case Acked():
                self._acked = True
                if self._waiting:
                    self._end_wait(row.t, place, by_ack=True)
                self._settled(row.t, row.session, row.n)
                self._since, self._gave_up = row.t, 0
            case Failed() | Unknown():
                self._settled(row.t, row.session, row.n + row.count - 1, is_answer=isinstance(row, Failed))
            case _:
                pass

    def _invoked(self, t: int, name: str, last: int) -> None:
        session = self._sessions[name]
        session.invoked = max(session.invoked, last)
        if session.waits or session.invoked <= session.settled:
            return
        if not self._goes_on(session.gave_up, t):
            session.since = t
        session.waits = True
        if not self._waiting and not self._goes_on(self._gave_up, t):
            self._since = t
        self._waiting += 1

    def _goes_on(self, gave_up: int, t: int) -> bool:
        """Whether a new message continues the wait of a message that was given up without an answer shortly before."""
        return gave_up > 0 and t - gave_up <= self._bound * AT_ONCE_SHARE

    def _settled(self, t: int, name: str, last: int, *, is_answer: bool = True) -> None:
        session = self._sessions[name]
        if session.waits and last > session.settled and t - session.since > self._bound:
            self._judge_client(name, session, t)
        if is_answer:
            session.since, session.gave_up = t, 0
        session.settled = max(session.settled, last)
        if session.waits and session.invoked <= session.settled:
            session.waits = False
            session.gave_up = 0 if is_answer else t
            self._waiting -= 1
            if not self._waiting:
                self._end_wait(t, self._latest_place, by_ack=False)
                self._gave_up = session.gave_up

    def _end_wait(self, t: int, place: int, by_ack: bool) -> None:
        """Judge the wait from _since to t: no session waits any more, or an acknowledgement came."""
        stretches = self._healthy()
        while self._at < len(stretches) and stretches[self._at].end <= self._since:
            self._at += 1
        for at in range(self._at, len(stretches)):
            stretch = stretches[at]
            if stretch.start >= t:
                break
            waited = min(t, stretch.end) - max(self._since, stretch.start)
            if not stretch.search:
                self._longest = max(self._longest, waited)
            if waited > self._bound + stretch.search:
                self._too_long(stretch, place, waited, max(self._since, stretch.start))
            if by_ack and t <= stretch.end:
                self._judged_faults.add(at)

    def _judge_client(self, name: str, session: _Session, t: int) -> None:
        """Judge the wait of one session, which got an outcome or was waiting at the end of the run."""
        for stretch in self._healthy():
            start = max(session.since, stretch.start)
            waited = min(t, stretch.end) - start
            if stretch.each and waited > self._bound:
                self._too_long(stretch, self._latest_place, waited, start, f"messages of session {name}")

    def _too_long(self, stretch: Stretch, place: int, waited: int, since: int, whose: str = "messages") -> None:
        where = f"{self._history_name}:{place}"
        after = "the start" if stretch.fault is None else f"{stretch.fault.fault} of node {stretch.fault.target}"
        self._findings.add(
            where,
            f"with a majority up{' and connected' if stretch.search else ''}, {whose} waited {waited / NS_PER_S:.3f} s "
            f"for an acknowledgement after {after} (allowed {self._bound_s + stretch.search / NS_PER_S:g} s)",
            quote(where, f"from t={since} to t={since + waited}"),
        )

    def check(self) -> Check:
        meta, faults = self.case.manifest
        if self._waiting:
            self._end_wait(self._latest_t, self._latest_place, by_ack=False)
        for name, session in self._sessions.items():
            if session.waits:
                self._judge_client(name, session, self._latest_t)
        self._check_files(meta, self.case.files)
        if not self._acked:
            return self._findings.unknown("no message was acknowledged")
        if meta.convergence is None:
            return self._findings.unknown(f"convergence was not awaited: {meta.problem or 'the run ended before'}")
        hit = [row for row in faults if row.effect and effect_of(row.fault) is Effect.DOWN and row.step >= 0]
        if hit and not any(self._healthy()[at].fault is not None for at in self._judged_faults):
            return self._findings.unknown("no message waited for an acknowledgement after a fault")
        return self._findings.passed(
            f"longest wait with a majority up {self._longest / NS_PER_S:.3f} s (allowed {self._bound_s:g} s), "
            f"all equal {meta.convergence.took_s:.3f} s after the heal (allowed {meta.convergence.bound_s:g} s)"
        )

    def _check_files(self, meta: Meta, files: Sequence[NodeFile]) -> None:
        if meta.convergence is None:
            return
        if not meta.convergence.reached:
            found = ", ".join(f"node {node}: {seq}" for node, seq in sorted(meta.convergence.delivered.items()))
            message = (
                f"no convergence within {meta.convergence.bound_s:g} s of the heal; delivered {found or 'unknown'}"
            )
            self._findings.add("meta.json:1", message)
            return
        files = [file for file in files if file.node in meta.convergence.delivered]
        sizes = {file.size for file in files}
        if len(sizes) > 1:
            shortest = min(files, key=lambda file: file.size)
            lines = _count_lines(shortest)
            found = ", ".join(f"node {file.node}: {file.size} bytes" for file in files)
            self._findings.add(f"{shortest.name}:{lines}", f"after the heal the logs differ in length: {found}")


def _count_lines(file: NodeFile) -> int:
    with file.open() as opened:
        return sum(block.count(b"\n") for block in iter(lambda: opened.read(1 << 20), b""))
