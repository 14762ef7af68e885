"""A2 to A6: one pass over the clients' history and the message log together.

History rows come in order of time. An acknowledgement of seq_no s advances the log to s. Every message up to there
must have been sent in an earlier row. If not, either the log has it before a message that was acknowledged before this
one was sent (A6), or no client sent it (A3). So memory holds only messages that were sent and not yet seen in the log,
and a few numbers per session. In a correct log the n of a session ascend without gaps: one counter per session proves
that no msg_id appears twice.
"""

from __future__ import annotations

import sys
from collections import deque
from dataclasses import dataclass, field
from typing import ClassVar, NamedTuple, assert_never

from lab.check.history import NOT_A_MESSAGE, Chunk, LogLine, MessageLog
from lab.check.judge import ANY_TIME, Case, Judge
from lab.check.verdict import Check, Findings, Outcomes, quote
from lab.payloads import payloads
from lab.rows import Acked, Failed, HistoryRow, Invoke, Phase, Shown, Unknown
from nodeproc.core.messages import SeqNo

END_OF_LOG: SeqNo = sys.maxsize
LATE_MAX = 1000
"""Sent ranges that are kept after the log has passed them; only a broken log needs them."""
EMPTY = Chunk(1, [], True)
EARLY_MAX = 10_000
"""Messages of the log that are kept until a row shows that they were sent; only a broken log has any."""


@dataclass(slots=True)
class Sent:
    """Messages first .. last of one session as the history says that they were sent."""

    first: int
    last: int
    row: Invoke
    place: int
    """Line of history.jsonl."""
    after_ack: bool
    """Whether a message was acknowledged before they were sent, so that A6 applies to them."""

    def payloads(self, first: int, count: int) -> list[str]:
        """Payloads of the messages first, first + 1, …"""
        row = self.row
        if row.gen is None:
            return list(row.payloads[first - row.n : first - row.n + count])
        return payloads(row.gen.seed, row.client, first, count, row.gen.size)


class Early(NamedTuple):
    """A message that the pass found in the log before a row that shows that it was sent."""

    number: int
    """Line of the log."""
    line: LogLine
    ack: Acked | None
    """The acknowledgement that had advanced the log past the message; None at the end of the history."""
    ack_place: int


@dataclass(slots=True)
class Session:
    """State of one session at this point of the pass."""

    invoked: int = 0
    """Messages 1..invoked were sent."""
    acked: int = 0
    logged: int = 0
    """The highest n seen in the log."""
    rejected: list[tuple[int, int]] = field(default_factory=list)
    unknown: list[tuple[int, int]] = field(default_factory=list)
    sent: deque[Sent] = field(default_factory=deque)
    """Ranges not yet seen in the log, ascending."""
    late: deque[Sent] = field(default_factory=lambda: deque(maxlen=LATE_MAX))
    """Ranges that the log has passed."""
    early: dict[int, Early] = field(default_factory=dict)
    holes: list[tuple[int, int, int]] = field(default_factory=list)
    """(first, last, next line of the log) of each range that the log skipped."""

    def find(self, n: int) -> Sent | None:
        """The sent range that contains n."""
        sent = self.sent
        while sent and sent[0].last < n:
            self.late.append(sent.popleft())
        if sent and sent[0].first <= n:
            return sent[0]
        return next((each for each in reversed(self.late) if each.first <= n <= each.last), None)

    def fill_hole(self, n: int) -> bool:
        """Remove n from the holes. False if it was in none."""
        for at, (first, last, line) in enumerate(self.holes):
            if first <= n <= last:
                parts = ((first, n - 1, line), (n + 1, last, line))
                self.holes[at : at + 1] = [part for part in parts if part[0] <= part[1]]
                return True
        return False

    def first_lost(self) -> tuple[int, int] | None:
        """Return the lowest acknowledged n that is not in the log, with the line of the log behind its place.

        None if the log has all of them. The line is 0 if the log ended before.
        """
        lost = [(first, line) for first, _, line in self.holes if first <= self.acked]
        if self.acked > self.logged:
            lost.append((self.logged + 1, 0))
        return min(lost, default=None)

    def in_log(self, first: int, last: int) -> int:
        """How many of the messages first..last are in the log. Valid at the end of the pass."""
        count = max(0, min(last, self.logged) - first + 1)
        for low, high, _ in self.holes:
            count -= max(0, min(last, high) - max(first, low) + 1)
        return count


class Replay(Judge):
    """The pass; see the module's docstring."""

    invariants: ClassVar = {
        "A2": "contiguity",
        "A3": "integrity",
        "A4": "durability",
        "A5": "sender order",
        "A6": "real time",
    }
    needs_history = True

    def __init__(self, case: Case) -> None:
        super().__init__(case)
        self.log, self.history_name, self._times = case.log, case.run.history.name, case.times
        self.unreadable = 0
        """The first line of the log that can't be read; 0: there is none."""
        self.contiguity = case.contiguity = self.found("A2")
        self.integrity = self.found("A3")
        self.durability = self.found("A4")
        self.sender_order = self.found("A5")
        self.real_time = self.found("A6")
        self.sessions: dict[str, Session] = {}
        self.payloads_judged = 0
        self.real_time_pairs = 0
        self.acks = 0
        self.term_starts: list[tuple[int, SeqNo]] = []
        """(term, seq_no of its first message) as the log has them."""
        self._chunk = EMPTY
        self._at = 0
        self._seq_no, self._term = 0, 0
        self._first_ack_t = 0
        self._ack: Acked | None = None
        self._ack_place = 0
        self._early_count = 0

    # ---- the history -----------------------------------------------------------------------------

    def on_row(self, place: int, row: HistoryRow) -> None:
        match row:
            case Invoke():
                self._on_invoke(place, row)
            case Acked():
                self._on_acked(place, row)
            case Shown() | Phase():
                pass
            case Failed():
                self._on_failed(place, row)
            case Unknown():
                self._session(row.session).unknown.append((row.n, row.n + row.count - 1))
            case _:
                assert_never(row)

    def _session(self, name: str) -> Session:
        session = self.sessions.get(name)
        if session is None:
            session = self.sessions[name] = Session()
        return session

    def _on_invoke(self, place: int, row: Invoke) -> None:
        session = self._session(row.session)
        last = row.n + row.count - 1
        session.invoked = max(session.invoked, last)
        sent = Sent(row.n, last, row, place, self.acks > 0 and row.t > self._first_ack_t)
        session.sent.append(sent)
        if session.early:
            for n in range(row.n, last + 1):
                early = session.early.pop(n, None)
                if early is not None:
                    self._judge_early(early, sent, n)

    def _on_acked(self, place: int, row: Acked) -> None:
        if not self.acks:
            self._first_ack_t = row.t
        self.acks += 1
        session = self._session(row.session)
        session.acked = max(session.acked, row.n)
        if row.seq_no > self._seq_no:
            self._ack, self._ack_place = row, place
            self._advance(row.seq_no)
        msg_id = f"{row.session}-{row.n}"
        line = self.log.find(row.seq_no)
        if line is None or line.msg_id != msg_id:
            stands = "there is no line with that seq_no" if line is None else f"{line.msg_id} stands there"
            self.durability.add(
                f"{self.history_name}:{place}",
                f"message {msg_id} was acknowledged as seq_no {row.seq_no}, but in {self.log.name} {stands}",
                quote(f"{self.history_name}:{place}", f"ok {msg_id} seq_no={row.seq_no} t={row.t}"),
            )

    def _on_failed(self, place: int, row: Failed) -> None:
        session = self._session(row.session)
        last = row.n + row.count - 1
        session.rejected.append((row.n, last))
        if row.n <= session.logged:
            self._rejected_in_log(f"{self.history_name}:{place}", row.session, row.n)

    def _rejected_in_log(self, place: str, session: str, n: int) -> None:
        self.integrity.add(place, f"message {session}-{n} was reported as rejected, yet it stands in {self.log.name}")

    # ---- the log ---------------------------------------------------------------------------------

    def _advance(self, seq_no: SeqNo) -> None:
        """Take the lines of the log up to the first whose seq_no is above this one."""
        while True:
            if self._at == len(self._chunk.lines):
                following = self.log.next_chunk()
                if following is None:
                    return
                self._chunk, self._at = following, 0
            end = self._chunk.end_of(seq_no, self._at)
            if end > self._at:
                self._take(self._chunk, self._at, end)
                self._at = end
            if self._at < len(self._chunk.lines) or self._seq_no >= seq_no:
                return

    def _take(self, chunk: Chunk, start: int, end: int) -> None:
        """Judge lines start..end - 1 of a chunk."""
        lines = chunk.lines
        self._take_numbers(chunk, start, end)
        at = start
        while at < end:
            at = self._take_run(chunk, lines, at, end)

    def _take_numbers(self, chunk: Chunk, start: int, end: int) -> None:
        """A2 on some lines. The fast way first: nearly all chunks are contiguous and of one term."""
        lines = chunk.lines
        if self._times != ANY_TIME:
            self._take_times(chunk, start, end)
        first, last = lines[start], lines[end - 1]
        terms = [line.term for line in lines[start:end]]
        if (
            chunk.contiguous
            and not chunk.misformed
            and first.seq_no == self._seq_no + 1
            and terms[0] >= max(self._term, 1)
            and terms.count(terms[0]) == len(terms)
        ):
            if terms[0] > self._term:
                self.term_starts.append((terms[0], first.seq_no))
            self._seq_no, self._term = last.seq_no, last.term
            return
        numbers = self._seq_no, self._term
        for line in lines[start:end]:
            if line.term > (self.term_starts[-1][0] if self.term_starts else 0):
                self.term_starts.append((line.term, line.seq_no))
        self._seq_no, self._term = judge_numbers(self.contiguity, self.log, chunk, start, end, *numbers)

    def _take_times(self, chunk: Chunk, start: int, end: int) -> None:
        times = [line.timestamp for line in chunk.lines[start:end] if line is not NOT_A_MESSAGE]
        low, high = self._times
        if not times or (min(times) >= low and max(times) <= high):
            return
        for number, line in enumerate(chunk.lines[start:end], chunk.first_line + start):
            if line is not NOT_A_MESSAGE and not low <= line.timestamp <= high:
                place = self.log.place(number)
                when = "before the run began" if line.timestamp < low else "after the run had ended"
                self.contiguity.add(place, f"timestamp {line.timestamp} is {when}", quote(place, _show(line)))

    def _take_run(self, chunk: Chunk, lines: list[LogLine], at: int, end: int) -> int:
        """Judge the longest run of one session's messages from `at` on; returns the index behind it."""
        name, n = _split(lines[at].msg_id)
        if not n:
            self._not_a_message(chunk.first_line + at, lines[at])
            return at + 1
        session = self.sessions.get(name)
        sent = session.find(n) if session is not None else None
        if session is None or sent is None:
            self._take_early(chunk.first_line + at, lines[at], name, n)
            return at + 1
        behind = _end_of_run(lines, at, min(end, at + sent.last - n + 1), name, n)
        self._judge_run(chunk, at, behind, name, session, sent, n)
        return behind

    def _judge_run(self, chunk: Chunk, at: int, behind: int, name: str, session: Session, sent: Sent, n: int) -> None:
        run = chunk.lines[at:behind]
        number = chunk.first_line + at
        self._judge_content(number, run, sent, n)
        if sent.after_ack:
            self.real_time_pairs += len(run)
        last = n + len(run) - 1
        if n == session.logged + 1:
            session.logged = last
        else:
            self._out_of_order(number, run, session, n)
        for first_bad, last_bad in session.rejected:
            if first_bad <= last and n <= last_bad:
                bad = max(n, first_bad)
                self._rejected_in_log(self.log.place(number + bad - n), name, bad)

    def _judge_content(self, number: int, run: list[LogLine], sent: Sent, n: int) -> None:
        self.payloads_judged += len(run)
        as_sent = [line.payload for line in run] == sent.payloads(n, len(run))
        if not as_sent or [line.sender_id for line in run].count(sent.row.client) != len(run):
            self._wrong_content(number, run, sent, n)

    def _take_early(self, number: int, line: LogLine, name: str, n: int) -> None:
        """The history has not told so far that this message was sent."""
        if self._early_count >= EARLY_MAX:
            self._never_sent(number, line)
            return
        session = self._session(name)
        if n == session.logged + 1:
            session.logged = n
        else:
            self._out_of_order(number, [line], session, n)
        if n > session.invoked and n not in session.early:
            self._early_count += 1
            session.early[n] = Early(number, line, self._ack, self._ack_place)

    def _judge_early(self, early: Early, sent: Sent, n: int) -> None:
        """It was sent after all, but an acknowledgement had moved the log beyond it before."""
        self._early_count -= 1
        self._judge_content(early.number, [early.line], sent, n)
        if early.ack is None or sent.row.t <= early.ack.t:
            return
        place, line = self.log.place(early.number), early.line
        self.real_time.add(
            place,
            f"message {line.msg_id} has seq_no {line.seq_no}, though seq_no {early.ack.seq_no} had been acknowledged "
            "before it was sent",
            quote(place, _show(line)),
            quote(f"{self.history_name}:{early.ack_place}", f"seq_no {early.ack.seq_no} acknowledged t={early.ack.t}"),
            quote(f"{self.history_name}:{sent.place}", f"{line.msg_id} sent t={sent.row.t}"),
        )

    # ---- what can be wrong with a message ---------------------------------------------------------

    def _not_a_message(self, number: int, line: LogLine) -> None:
        if line is NOT_A_MESSAGE:
            self.unreadable = self.unreadable or number
        else:
            self._never_sent(number, line)

    def _never_sent(self, number: int, line: LogLine) -> None:
        place = self.log.place(number)
        self.integrity.add(place, f"message {line.msg_id!r} was not sent by any client", quote(place, _show(line)))

    def _wrong_content(self, number: int, run: list[LogLine], sent: Sent, n: int) -> None:
        for at, (line, text) in enumerate(zip(run, sent.payloads(n, len(run)), strict=True), number):
            if line.payload == text and line.sender_id == sent.row.client:
                continue
            place = self.log.place(at)
            self.integrity.add(
                place,
                f"message {line.msg_id} does not hold what its client sent",
                quote(place, _show(line)),
                quote(f"{self.history_name}:{sent.place}", f"sent by client {sent.row.client}: {text!r}"),
            )

    def _out_of_order(self, number: int, run: list[LogLine], session: Session, n: int) -> None:
        """The run does not go on where the session's last one ended."""
        place = self.log.place(number)
        shown = quote(place, _show(run[0]))
        if n > session.logged:
            session.holes.append((session.logged + 1, n - 1, number))
            wanted = session.logged + 1
            session.logged = n + len(run) - 1
            self.sender_order.add(place, f"message {run[0].msg_id} where n={wanted} of its session is due", shown)
            return
        for offset, line in enumerate(run):
            if session.fill_hole(n + offset):
                self.sender_order.add(place, f"message {run[0].msg_id} stands behind later ones of its session", shown)
            elif n + offset <= session.logged:
                here = self.log.place(number + offset)
                self.integrity.add(here, f"msg_id {line.msg_id} stands in the log for the second time", shown)
            else:
                session.logged = n + offset

    # ---- the end ---------------------------------------------------------------------------------

    def finish(self) -> None:
        """Take what the log still has, and look for what it lacks."""
        self._ack = None
        self._advance(END_OF_LOG)
        if self.log.torn:
            self.contiguity.add(self.log.place(self.log.torn), "the last line has no end")
            self.unreadable = self.unreadable or self.log.torn
        early = [each for session in self.sessions.values() for each in session.early.values()]
        for each in sorted(early, key=lambda each: each.number):
            self._never_sent(each.number, each.line)
        for name, session in self.sessions.items():
            lost = session.first_lost()
            if lost is not None:
                self._lost(name, *lost)
            if session.logged and name in self.case.secrets:
                self.integrity.add(self.log.name, f"messages of session {name} show its secret")

    def _lost(self, session: str, n: int, line: int) -> None:
        """An acknowledged message is not in the log; the history is searched for the row that says so."""
        place, row = next(
            (place, row)
            for place, row in self.case.history()
            if isinstance(row, Acked) and row.session == session and row.n >= n
        )
        line = line or self.log.line_count
        shown = [quote(f"{self.history_name}:{place}", f"ok up to {session}-{row.n} seq_no={row.seq_no} t={row.t}")]
        if line:
            shown.append(quote(self.log.place(line), self.log.text(line)))
        message = f"message {session}-{n} was acknowledged and is not in {self.log.name}"
        self.durability.add(f"{self.history_name}:{place}", message, *shown)

    def outcomes(self) -> Outcomes:
        """What became of everything that was sent. After finish()."""
        sessions = self.sessions.values()
        # A later acknowledgement of the session covers what the client had given up.
        unknown = [
            (session, max(first, session.acked + 1), last)
            for session in sessions
            for first, last in session.unknown
            if last > session.acked
        ]
        unknown_in_log = sum(session.in_log(first, last) for session, first, last in unknown)
        unknown_count = sum(last - first + 1 for _, first, last in unknown)
        sent = sum(session.invoked for session in sessions)
        acknowledged = sum(session.acked for session in sessions)
        rejected = sum(last - first + 1 for session in sessions for first, last in session.rejected)
        return Outcomes(
            sent=sent,
            acknowledged=acknowledged,
            rejected=rejected,
            unknown_in_log=unknown_in_log,
            unknown_not_in_log=unknown_count - unknown_in_log,
            unresolved=max(0, sent - acknowledged - rejected - unknown_count),
            in_log=self.log.line_count,
        )

    def checks(self) -> list[Check]:
        self.finish()
        numbers = self.found("A2")
        numbers.take(self.contiguity)
        self._judge_deviating(numbers)
        self._judge_delivered(numbers)
        checks = self._checks(numbers)
        self.case.contiguous = checks[0].result == "PASS"
        self.case.term_starts = self.term_starts
        self.case.messages = self.outcomes()
        return checks

    def unknown(self, reason: str) -> list[Check]:
        """A2 alone can be judged."""
        log, contiguity = MessageLog(self.log.path, self.log.name), Findings("A2", self.invariants["A2"])
        judge_numbers_of(contiguity, log)
        self._judge_deviating(contiguity)
        if log.line_count:
            numbers = contiguity.passed(f"{log.line_count} lines")
        else:
            numbers = contiguity.unknown("no message in any node's log")
        self.case.contiguous = numbers.result == "PASS"
        self.case.messages = Outcomes(in_log=log.line_count)
        return [numbers, *super().unknown(reason)[1:]]

    def _judge_deviating(self, findings: Findings) -> None:
        """A2 of files that are no prefix of the log which was walked: they have numbers of their own."""
        for file in self.case.deviating:
            judge_numbers_of(findings, MessageLog(file.path, file.name))

    def _judge_delivered(self, findings: Findings) -> None:
        """A2: a log reaches as far as its node's STATUS said that it had delivered."""
        convergence = None if self.case.meta is None else self.case.meta.convergence
        for file in self.case.files:
            told = 0 if convergence is None else convergence.delivered.get(file.node, 0)
            if (last := file.last_seq()) < told:
                message = (
                    f"{file.name} ends at seq_no {last}; STATUS of node {file.node} said that {told} were delivered"
                )
                findings.add(file.name, message, quote(file.name, file.line(last) or b""))

    def _checks(self, numbers: Findings) -> list[Check]:
        if self.unreadable:
            # Which message an unreadable line holds nobody can say; so nothing that needs it can be judged.
            return [numbers.failed(), *self._unreadable_checks()]
        lines = self.log.line_count
        if not lines:
            named = (numbers, self.integrity, self.sender_order, self.real_time)
            empty = {findings.name: findings.unknown("no message in any node's log") for findings in named}
            return [empty["A2"], empty["A3"], self._durability_check(), empty["A5"], empty["A6"]]
        sessions = sum(1 for session in self.sessions.values() if session.logged)
        return [
            numbers.passed(f"seq_no 1..{self._seq_no}, term up to {self._term}"),
            self.integrity.passed(f"{self.payloads_judged} messages as their clients sent them"),
            self._durability_check(),
            self.sender_order.passed(f"{sessions} sessions"),
            self._real_time_check(),
        ]

    def _unreadable_checks(self) -> list[Check]:
        reason = f"{self.log.place(self.unreadable)} can't be read (A2)"
        judged = (self.integrity, self.durability, self.sender_order, self.real_time)
        return [Findings(each.name, each.title).unknown(reason) for each in judged]

    def _durability_check(self) -> Check:
        if not self.acks:
            return self.durability.unknown("no message was acknowledged")
        acknowledged = sum(session.acked for session in self.sessions.values())
        return self.durability.passed(f"all {acknowledged} acknowledged messages are in the log")

    def _real_time_check(self) -> Check:
        if not self.real_time_pairs:
            detail = "no message was sent after another's acknowledgement"
            return self.real_time.unknown(detail, decisive=False)
        return self.real_time.passed(f"{self.real_time_pairs} messages sent after an acknowledgement")


def _split(msg_id: str) -> tuple[str, int]:
    """(session, n) of a msg_id; n is 0 where it is none."""
    session, _, number = msg_id.rpartition("-")
    # int() takes more than canonical numbers do, " 1" and "1_0" among them.
    if session and number.isascii() and number.isdigit() and number[0] != "0" and len(number) < 19:
        return session, int(number)
    return msg_id, 0


def _end_of_run(lines: list[LogLine], at: int, at_most: int, session: str, n: int) -> int:
    """Index behind the messages n, n + 1, … of a session that stand one behind the other from `at` on."""
    if at_most == at + 1:
        return at_most
    last_id = f"{session}-{n + at_most - at - 1}"
    if lines[at_most - 1].msg_id == last_id:
        # Mostly a client's messages stand together as they were sent.
        expected = [f"{session}-{number}" for number in range(n, n + at_most - at)]
        if [line.msg_id for line in lines[at:at_most]] == expected:
            return at_most
    behind, number = at + 1, n + 1
    while behind < at_most and lines[behind].msg_id == f"{session}-{number}":
        behind += 1
        number += 1
    return behind


def _show(line: LogLine) -> str:
    return f"seq_no={line.seq_no} term={line.term} sender_id={line.sender_id} msg_id={line.msg_id} {line.payload!r}"


def judge_numbers(
    findings: Findings, log: MessageLog, chunk: Chunk, start: int, end: int, seq_no: SeqNo, term: int
) -> tuple[SeqNo, int]:
    """A2, line by line.

    Args:
        seq_no, term: of the line above.

    Returns:
        the same of the last line.
    """
    for number, line in enumerate(chunk.lines[start:end], chunk.first_line + start):
        place = log.place(number)
        shown = quote(place, f"seq_no={line.seq_no} term={line.term} msg_id={line.msg_id}")
        if line is NOT_A_MESSAGE:
            text = log.text(number)
            what = "not a line of a message log" if text else "an empty line"
            findings.add(place, f"{what}, where seq_no {seq_no + 1} is due", quote(place, text))
            seq_no += 1
            continue
        if fault := chunk.misformed.get(number - chunk.first_line):
            findings.add(place, f"not in the form of a message log: {fault}", quote(place, log.text(number)))
        if line.seq_no != seq_no + 1:
            findings.add(place, f"seq_no {line.seq_no} where {seq_no + 1} is due", shown)
        if line.term < max(term, 1):
            findings.add(place, f"term {line.term} behind term {max(term, 1)}", shown)
        seq_no, term = line.seq_no, max(term, line.term)
    return seq_no, term


def judge_numbers_of(findings: Findings, log: MessageLog) -> None:
    """A2 on a whole file by itself: one that deviates from the log that the rest is judged on."""
    seq_no = term = 0
    for chunk in log.chunks():
        seq_no, term = judge_numbers(findings, log, chunk, 0, len(chunk.lines), seq_no, term)
    if log.torn:
        findings.add(log.place(log.torn), "the last line has no end")
