"""Compare history.jsonl, faults.jsonl, meta.json and the events of a run with its scenario and with each other.

The judges believe these files. So a missing row or a contradiction must not look like a run without a violation: the
checks that depend on it are UNKNOWN, and their text names the first place.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from lab.check.history import EventLine, RunFileError
from lab.check.judge import Case
from lab.plan.scenario import Scenario
from lab.plan.workload import FIRST_SUBSCRIBER
from lab.rows import Acked, Failed, FaultRow, Gen, HistoryRow, Invoke, Meta, Phase, Shown, Unknown
from lab.steps import END_ROWS, HEAL_ROWS, LEFT, OF_ITSELF, Fault, Step, effect_of
from lab.steps.rules import LINK_EFFECTS
from lab.steps.start import ENDED_AGAIN
from lab.steps.step import Effect
from lab.words import EVENTS
from nodeproc.core.messages import NodeId
from nodeproc.errors import EXIT_CLEAN
from nodeproc.eventlog import part

_TOLERANCE_NS = 1_000_000_000
"""Allowed between the exit of a process and the row that explains it: the machine may be busy."""
_LONGEST_PAUSE_NS = 30 * 1_000_000_000
"""Maximum time for which the lab itself may be stopped between two lines of its code."""
_EARLIEST_START_NS = 300 * 1_000_000_000
"""Maximum time from the start of a node to the start of the run."""

# ---- the history -----------------------------------------------------------------------------------


@dataclass(slots=True)
class _Session:
    client: int
    is_load: bool
    invoked: int = 0
    settled: int = 0
    """The highest message with an outcome."""
    given_up: int = 0
    """Number of messages that were rejected or are unknown."""
    skipped: int = 0
    """Number of messages below `settled` without an outcome; an acknowledgement covers all below it."""


class HistoryStory:
    """Checks each row of the history against the rows above it.

    Args:
        meta: None if meta.json cannot be read; times are then not compared.
    """

    def __init__(self, name: str, meta: Meta | None) -> None:
        self._name, self._meta = name, meta
        self._sessions: dict[str, _Session] = {}
        self.steps: list[str] = []
        """Texts of the steps that began."""
        self.ends: list[str] = []
        """`converged` or `diverged`; empty if the run ended before."""
        self._subscribers: set[int] = set()
        self._load: set[tuple[int, Gen]] = set()
        """(client, how its payloads are made) of the load."""

    def on_row(self, place: int, row: HistoryRow) -> None:
        """Take one row; `place` is its line number.

        Raises:
            RunFileError: it contradicts a row above or the times of meta.json.
        """
        if self._meta is not None and not self._meta.t_start <= row.t <= self._meta.t_end:
            raise self._error(place, f"t={row.t} is outside of the run, {self._meta.t_start}..{self._meta.t_end}")
        match row:
            case Invoke():
                self._on_invoke(place, row)
            case Acked():
                session = self._settled(place, row.session, row.n, row.n)
                session.skipped = 0
            case Failed() | Unknown():
                session = self._settled(place, row.session, row.n, row.n + row.count - 1)
                session.given_up += row.count
            case Phase(phase="step"):
                self.steps.append(row.detail)
            case Phase(phase="healed") if self._meta is not None:
                if not 0 <= row.t - self._meta.t_healed <= _LONGEST_PAUSE_NS:
                    raise self._error(place, f"healed at t={row.t}; meta.json says t_healed={self._meta.t_healed}")
            case Phase(phase="converged" | "diverged"):
                self.ends.append(row.phase)
            case Shown():
                self._subscribers.add(row.client)
            case _:
                pass

    def _on_invoke(self, place: int, row: Invoke) -> None:
        if row.gen is not None:
            self._load.add((row.client, row.gen))
        session = self._sessions.get(row.session)
        if session is None:
            session = self._sessions[row.session] = _Session(row.client, row.gen is not None)
        if row.client != session.client:
            raise self._error(place, f"session {row.session} was that of client {session.client}")
        if row.n != session.invoked + 1:
            raise self._error(place, f"n={row.n} of session {row.session} instead of {session.invoked + 1}")
        session.invoked += row.count

    def _settled(self, place: int, name: str, first: int, last: int) -> _Session:
        """Take the outcome of messages first..last; outcomes come in the order of the messages."""
        session = self._sessions.get(name)
        if session is None:
            raise self._error(place, f"an outcome of session {name}, which has sent nothing")
        if not session.settled < first <= last <= session.invoked:
            raise self._error(
                place,
                f"an outcome of messages {first}..{last}; {session.invoked} were sent, and {session.settled} have one",
            )
        session.skipped += first - session.settled - 1
        session.settled = last
        return session

    def _error(self, place: int, what: str) -> RunFileError:
        return RunFileError(f"{self._name}:{place}: {what}")

    def unresolved(self) -> str:
        """Return which messages have no outcome, or "" if all have one."""
        for name, session in self._sessions.items():
            if unresolved := session.skipped + session.invoked - session.settled:
                return f"{self._name}: {unresolved} messages of session {name} have no outcome"
        return ""

    def stray_client(self, scenario: Scenario) -> str:
        """Return which client of the history is not one of the scenario, or "" if there is none."""
        load, clients = scenario.load, range(FIRST_SUBSCRIBER, FIRST_SUBSCRIBER + scenario.subscribers)
        if stray := self._subscribers.difference(clients):
            return f"{self._name} has subscriber {min(stray)}; scenario.yml has {scenario.subscribers} subscribers"
        for client, gen in sorted(self._load, key=lambda each: each[0]):
            if (
                load is None
                or not 0 <= client - load.first_client < load.clients
                or gen != Gen(scenario.seed or 0, load.size)
            ):
                return f"{self._name} has messages of client {client} that scenario.yml does not have"
        return ""

    def lack(self, meta: Meta | None) -> str:
        """Return what the history lacks, or "". A run that did not come to its end may lack anything."""
        if not self._sessions and not self.steps:
            return f"{self._name} is empty"
        if meta is None or meta.convergence is None or meta.problem or meta.watched:
            return ""
        reached = "converged" if meta.convergence.reached else "diverged"
        if self.ends != [reached]:
            return f"{self._name} does not end with `{reached}`, as meta.json says: rows are missing"
        if meta.load:
            load = [session for session in self._sessions.values() if session.is_load]
            sent, given_up = sum(each.invoked for each in load), sum(each.given_up for each in load)
            told, told_given_up = (_total(meta.load, *names) for names in (("sent",), ("rejected", "unknown")))
            if (sent, given_up) != (told, told_given_up):
                return (
                    f"{self._name}: the load sent {sent} messages and gave up {given_up}; meta.json says "
                    f"{told} and {told_given_up}"
                )
        return ""


def _total(load: dict[str, object], *names: str) -> int:
    """The sum of these totals of meta.json; -1 if one is not a number."""
    total = 0
    for name in names:
        value = load.get(name, 0)
        if not isinstance(value, int):
            return -1
        total += value
    return total


# ---- the events --------------------------------------------------------------------------------------


class EventStory:
    """Compares the events of one node with its processes as meta.json and faults.jsonl list them."""

    def __init__(self, case: Case, node: NodeId) -> None:
        self._case, self._node = case, node
        self._count = self._starts = 0
        self._is_stopping = False

    def on_event(self, line: int, event: EventLine) -> None:
        """Take one event.

        Raises:
            RunFileError: no such event exists, or its time is outside of the run.
        """
        meta, where = self._case.meta, self._case.event_place(self._node, line)
        if event.event not in EVENTS and not self._case.is_foreign:
            raise RunFileError(f"{where}: no event {event.event!r} exists")
        if meta is not None and not meta.t_start - _EARLIEST_START_NS <= event.t_ns <= meta.t_end:
            raise RunFileError(f"{where}: t_ns={event.t_ns} is outside of the run")
        self._count += 1
        self._starts += event.event == "starting"
        self._is_stopping = event.event == "stopping" or (self._is_stopping and event.event != "starting")

    def gap(self) -> str:
        """Return which event of a start or end is missing, or "" if none is."""
        case, node = self._case, self._node
        name = case.run.events(node).relative_to(case.run.path)
        if part(case.run.events(node), 1).exists():
            return f"{name}.1 is not read: set limits.events_max_bytes higher"
        scenario, meta, faults = case.scenario, case.meta, case.faults
        if case.is_foreign:
            return f"no events of node {node}" if not self._count and any(map(case.has_events, case.nodes)) else ""
        if scenario is not None and scenario.cluster.log_level in ("WARNING", "ERROR"):
            return ""
        if meta is not None and node in meta.nodes and not meta.nodes[node].starts:
            return ""  # A machine whose node was never added.
        if not self._starts:
            return f"no events of node {node}"
        if scenario is None or meta is None or faults is None or node not in meta.nodes:
            return ""
        if meta.problem or meta.watched:
            return ""
        use = meta.nodes[node]
        answered = (node in scenario.cluster.started_ids) + sum(
            row.fault == "start" and row.target == node and "ready_s" in row.evidence for row in faults
        )
        if not answered <= self._starts <= use.starts:
            return f"{name}: {self._starts} events `starting`; the node was started {use.starts} times"
        if use.exits and use.exits[-1].code == EXIT_CLEAN and not self._is_stopping:
            return f"{name}: no event `stopping` at its end, although the node ended cleanly"
        return ""


# ---- the faults --------------------------------------------------------------------------------------


def fault_gap(scenario: Scenario, meta: Meta, faults: Sequence[FaultRow], begun: int) -> str:
    """Return which row faults.jsonl lacks or should not have, or "" if there is none.

    Args:
        begun: number of steps that were begun; the last of them may have been missed.
    """
    steps = list(scenario.unrolled())[:begun]
    rows: dict[int, list[tuple[int, FaultRow]]] = {}
    latest = 0
    down = {row.target for row in faults if row.evidence.get("found") == ENDED_AGAIN}
    if scenario.changes_members and meta.convergence is not None:
        down |= {*scenario.cluster.ids}.difference(meta.convergence.delivered)  # Nobody starts them again.
    for number, row in enumerate(faults, 1):
        if not latest <= row.t <= row.t_done or (row.t_healed and row.t_healed < row.t):
            return f"faults.jsonl:{number}: its times run backwards"
        if found := _contradiction(row, is_healed=meta.t_healed > 0 and row.target not in down):
            return f"faults.jsonl:{number}: {found}"
        if row.t < meta.t_start or max(row.t_done, row.t_healed) > meta.t_end:
            return f"faults.jsonl:{number}: its times are outside of the run, {meta.t_start}..{meta.t_end}"
        if not -1 <= row.step < len(steps):
            return f"faults.jsonl:{number}: a row of step {row.step + 1}, and {len(steps)} steps were begun"
        if row.target not in (0, *scenario.cluster.ids):
            return f"faults.jsonl:{number}: a row of node {row.target}, which the scenario does not have"
        if number > 1 and row == faults[number - 2]:
            return f"faults.jsonl:{number}: the same as the row above"
        latest = row.t
        rows.setdefault(row.step, []).append((number, row))
    for number, row in rows.pop(-1, []):
        if row.fault not in (*HEAL_ROWS, "exit", LEFT):
            return f"faults.jsonl:{number}: a {row.fault} that no step asked for"
    for index, step in enumerate(steps):
        found = _gap_of_step(scenario, meta, step, index, rows.get(index, []))
        if found:
            return found
    return _gap_of_ends(meta, faults)


def _contradiction(row: FaultRow, *, is_healed: bool) -> str:
    """Return where the fields of one row contradict each other, or "".

    Args:
        is_healed: at its end the run has healed all links and started the node again.
    """
    if row.effect and (not row.evidence or (row.fault in END_ROWS and "exit" not in row.evidence)):
        return f"a {row.fault} with effect; its evidence does not show that"
    counts = [row.evidence.get(name, 0) for name in LINK_EFFECTS]
    if row.fault == "link" and row.t_healed and row.effect != any(counts):
        return f"a link rule {'with' if row.effect else 'without'} effect; its evidence says the opposite"
    effect = effect_of(row.fault)
    lasts = effect is Effect.LINKS or (effect is Effect.DOWN and row.moved)
    if lasts and is_healed and not row.t_healed:
        return f"a {row.fault} that was never healed; meta.json says that all were"
    return ""


def _gap_of_step(scenario: Scenario, meta: Meta, step: Step, index: int, rows: list[tuple[int, FaultRow]]) -> str:
    notes = [each for each in meta.expectations if each.step == index]
    by_words = {each.words: each for each in step.faults_done}
    for number, row in rows:
        asked = by_words.get(row.asked)
        if asked is None:
            return f"faults.jsonl:{number}: asked by `{row.asked}`, which is not in step {index + 1}, `{step.show()}`"
        allowed = {*asked.leaves, *asked.also, "exit", *(HEAL_ROWS if row.round else ())}
        if row.fault not in allowed or bool(row.round) != step.in_rounds:
            return f"faults.jsonl:{number}: a {row.fault} that `{row.asked}` does not do"
    if any(not note.met for note in notes) and not step.in_rounds:
        return ""  # The step was missed: it may have done only a part of its work.
    where = f"faults.jsonl: no row of step {index + 1}"
    ids = () if scenario.changes_members else scenario.cluster.founder_ids
    if step.in_rounds:
        return _gap_of_rounds(by_words, [row for _, row in rows], notes[0].found if notes else "", where)
    for each in step.faults_done:
        done = [row for _, row in rows if row.asked == each.words]
        for word in each.leaves:
            nodes = {row.target for row in done if row.fault == word}
            if not nodes or not nodes.issuperset(each.nodes_with_rows(ids)):
                return f"{where}, `{each.words}`, shows that it was done ({word})"
    return ""


def _gap_of_rounds(by_words: dict[str, Fault], rows: list[FaultRow], found: str, where: str) -> str:
    """Return which fault of a nemesis lacks rows, or whether their number is wrong; "" if all are there."""
    rounds: dict[int, list[FaultRow]] = {}
    for row in rows:
        rounds.setdefault(row.round, []).append(row)
    for number, done in sorted(rounds.items()):
        asked = by_words[done[0].asked]
        if not {row.fault for row in done}.issuperset(asked.leaves):
            return f"{where} shows that fault {number} of the nemesis, `{done[0].asked}`, was done"
    told = found.split(" ")[0]
    if told.isdecimal() and int(told) != len(rounds):
        return f"{where}: {len(rounds)} faults of the nemesis have rows; meta.json says {found}"
    return ""


def _gap_of_ends(meta: Meta, faults: Sequence[FaultRow]) -> str:
    """Return which exit has no row, or which row has no exit, or "". The run itself causes the last exits."""
    for node, use in sorted(meta.nodes.items()):
        asked = [row for row in faults if row.target == node and "exit" in row.evidence and row.fault not in OF_ITSELF]
        caused = Counter(row.fault for row in faults if row.target == node)["exit"]
        if caused != sum(bool(end.because) for end in use.exits):
            return f"meta.json: the exits of node {node} by a disk fault and its `exit` rows differ in number"
        for end in use.exits:
            near = (row for row in asked if row.t - _TOLERANCE_NS <= end.t <= row.t_done + _TOLERANCE_NS)
            if end.asked and end.t < meta.t_healed and next(near, None) is None:
                return f"meta.json: the lab ended node {node} at t={end.t}; no row of faults.jsonl says so"
        for row in asked:
            ends = [end.code for end in use.exits if end.t >= row.t - _TOLERANCE_NS]
            if row.evidence["exit"] not in ends:
                return f"faults.jsonl: a {row.fault} of node {node} at t={row.t}; meta.json has no such exit"
    return ""


# ---- findings at steps ------------------------------------------------------------------------------


def step_gap(scenario: Scenario, meta: Meta, begun: list[str]) -> str:
    """Return which step did not begin, or has no result in meta.json although it should, or "" if there is none."""
    steps = list(scenario.unrolled())
    texts = [step.show() for step in steps]
    if begun != texts[: len(begun)]:
        at = next(at for at, text in enumerate(begun) if at >= len(texts) or text != texts[at])
        return f"history.jsonl has step {at + 1}, `{begun[at]}`, which is not in scenario.yml"
    notes: dict[int, list[tuple[str, bool]]] = {}
    for each in meta.expectations:
        notes.setdefault(each.step, []).append((each.text, each.met))
    if stray := [index for index in notes if not 0 <= index < len(begun)]:
        return f"meta.json has a finding of step {stray[0] + 1}, which was not begun"
    for index, step in enumerate(steps[: len(begun)]):
        found, wanted = notes.get(index, []), list(step.findings())
        missed = index == len(begun) - 1 and any(not met for _, met in found)
        if [text for text, _ in found] != wanted and not (missed and found[-1][0] == texts[index]):
            return f"meta.json has no finding of step {index + 1}, `{texts[index]}`, or one too many"
    if len(begun) < len(steps) and all(met for _, met in notes.get(len(begun) - 1, [])):
        return f"{len(begun)} of {len(steps)} steps were begun, and none of them was missed"
    return ""


def meta_gap(scenario: Scenario, meta: Meta) -> str:
    """Return where meta.json and scenario.yml differ, or "" if they are of the same run."""
    convergence = meta.convergence
    if convergence is not None and not meta.t_healed:
        return "meta.json: the nodes converged, but t_healed is 0"
    for what, told, planned in (
        ("scenario", meta.scenario, scenario.name),
        ("seed", meta.seed, scenario.seed),
        ("nodes", sorted(meta.nodes), list(scenario.cluster.ids)),
        ("recovery_bound_s", meta.recovery_bound_s, float(scenario.bounds.recovery)),
        (
            "convergence.bound_s",
            None if convergence is None else convergence.bound_s,
            None if convergence is None else float(scenario.bounds.convergence),
        ),
    ):
        if told != planned:
            return f"meta.json: {what} is {told}; scenario.yml says {planned}"
    if not 0 < meta.t_start <= meta.t_end or not 0 <= meta.t_healed <= meta.t_end:
        return f"meta.json: its times run backwards: t_start={meta.t_start} t_healed={meta.t_healed} t_end={meta.t_end}"
    if convergence is not None and convergence.reached:
        reached = convergence.delivered.keys()
        changes, cluster = scenario.changes_members, scenario.cluster
        is_complete = reached <= {*cluster.ids} if changes else reached == {*cluster.founder_ids}
        if not is_complete or len({*convergence.delivered.values()}) != 1 or convergence.took_s > convergence.bound_s:
            return f"meta.json: convergence is reached, but its other fields contradict that: {convergence}"
    for node, use in sorted(meta.nodes.items()):
        if len(use.exits) != use.starts or sorted(use.exits, key=lambda end: end.t) != list(use.exits):
            return f"meta.json: node {node} has {use.starts} starts and {len(use.exits)} ends, or ends out of order"
        if any(end.t > meta.t_end for end in use.exits):
            return f"meta.json: node {node} ended after the run"
    return ""
