"""A2 to A6: one pass over the clients' history and the message log together.

History rows come in order of time. An acknowledgement of seq_no s advances the log to s. Every message up to there
must have been sent in an earlier row. If not, either the log has it before a message that was acknowledged before this
one was sent (A6), or no client sent it (A3). So memory holds only messages that were sent and not yet seen in the log,
and a few numbers per session. In a correct log the n of a session ascend without gaps: one counter per session proves
that no msg_id appears twice.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from typing import ClassVar, assert_never

from lab.check.history import NOT_A_MESSAGE, Chunk, LogLine, MessageLog
from lab.check.judge import Case, Judge
from lab.check.numbering import Numbering
from lab.check.sessions import Early, Sent, Session, outcomes
from lab.check.verdict import Check, Findings, Outcomes, quote
from lab.rows import Acked, Failed, HistoryRow, Invoke, Phase, Shown, Unknown
from lab.words import counted
from nodeproc.core.messages import SeqNo

END_OF_LOG: SeqNo = sys.maxsize
EMPTY = Chunk(1, [], True)
EARLY_MAX = 10_000
"""Messages of the log that are kept until a row shows that they were sent; only a broken log has any."""
NO_LINES = "no message in any node's log"


class Replay(Judge):
    """The pass; see the module's docstring."""

    invariants: ClassVar = {
        "A2": "contiguity",
        "A3": "integrity",
        "A4": "durability",
        "A5": "sender order",
        "A6": "real time",
    }
    needs_history: ClassVar = True

    def __init__(self, case: Case) -> None:
        super().__init__(case)
        self.log, self.history_name = case.log, case.run.history.name
        self.numbering = Numbering(self.found("A2"), case.log, case.times)
        case.contiguity = self.numbering.findings
        self.integrity, self.durability = self.found("A3"), self.found("A4")
        self.sender_order, self.real_time = self.found("A5"), self.found("A6")
        self.sessions: defaultdict[str, Session] = defaultdict(Session)
        self.payloads_judged = 0
        self.real_time_pairs = 0
        self.acks = 0
        self._misplaced = self.found("A4")
        """Acknowledgements that name a wrong seq_no; if the numbers of the log are wrong (A2), they may be right."""
        self._unreadable = 0
        """The first line of the log that cannot be read; 0 if there is none."""
        self._chunk, self._at = EMPTY, 0
        self._first_ack_t = 0
        self._ack: Acked | None = None
        self._ack_place = 0
        self._early_count = 0
        self._doubtful: list[tuple[Early, Sent]] = []
        """Messages that break A6 if the acknowledged message comes after them in the log."""

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
                self.sessions[row.session].unknown.append((row.n, row.n + row.count - 1))
            case _:
                assert_never(row)

    def _on_invoke(self, place: int, row: Invoke) -> None:
        session = self.sessions[row.session]
        last = row.n + row.count - 1
        session.invoked = max(session.invoked, last)
        sent = Sent(row.n, last, row, place, self.acks > 0 and row.t > self._first_ack_t)
        session.sent.append(sent)
        for n in sorted(n for n in session.early if row.n <= n <= last) if session.early else ():
            self._judge_early(session.early.pop(n), sent, n)

    def _on_acked(self, place: int, row: Acked) -> None:
        if not self.acks:
            self._first_ack_t = row.t
        self.acks += 1
        session = self.sessions[row.session]
        session.acked = max(session.acked, row.n)
        if row.seq_no > self.numbering.seq_no:
            self._ack, self._ack_place = row, place
            self._advance(row.seq_no)
        line = self.log.find(row.seq_no)
        if not _is_of(line, row):
            found = "no line has that seq_no" if line is None else f"{line.msg_id} has that seq_no"
            msg_id = f"{row.session}-{row.n}"
            self._misplaced.add(
                f"{self.history_name}:{place}",
                f"message {msg_id} was acknowledged as seq_no {row.seq_no}, but in {self.log.name} {found}",
                quote(f"{self.history_name}:{place}", f"ok {msg_id} seq_no={row.seq_no} t={row.t}"),
            )

    def _on_failed(self, place: int, row: Failed) -> None:
        session = self.sessions[row.session]
        session.rejected.append((row.n, row.n + row.count - 1))
        if row.n <= session.logged:
            self._rejected_in_log(f"{self.history_name}:{place}", row.session, row.n)

    def _rejected_in_log(self, place: str, session: str, n: int) -> None:
        self.integrity.add(place, f"message {session}-{n} was reported as rejected, yet {self.log.name} has it")

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
                self.numbering.take(self._chunk, self._at, end)
                while self._at < end:
                    self._at = self._take_run(self._chunk, self._at, end)
            if self._at < len(self._chunk.lines) or self.numbering.seq_no >= seq_no:
                return

    def _take_run(self, chunk: Chunk, at: int, end: int) -> int:
        """Judge the longest run of one session's messages from `at` on; return the index after it."""
        lines = chunk.lines
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
        """Take a message that stands in the log although no row so far says that it was sent."""
        if self._early_count >= EARLY_MAX:
            self._never_sent(number, line)
            return
        session = self.sessions[name]
        if n == session.logged + 1:
            session.logged = n
        else:
            self._out_of_order(number, [line], session, n)
        if n > session.invoked and n not in session.early:
            self._early_count += 1
            session.early[n] = Early(number, line, self._ack, self._ack_place)

    def _judge_early(self, early: Early, sent: Sent, n: int) -> None:
        """Judge an early message after all, as a row now says that it was sent."""
        self._early_count -= 1
        self._judge_content(early.number, [early.line], sent, n)
        if early.ack is None or sent.row.t <= early.ack.t:
            return
        if not self.numbering.is_wrong and _is_of(self.log.find(early.ack.seq_no), early.ack):
            self._too_early(early, early.ack, sent)
        elif len(self._doubtful) < EARLY_MAX:
            self._doubtful.append((early, sent))

    # ---- violations ------------------------------------------------------------------------------

    def _too_early(self, early: Early, ack: Acked, sent: Sent) -> None:
        place, line = self.log.place(early.number), early.line
        self.real_time.add(
            place,
            f"message {line.msg_id} has seq_no {line.seq_no}, though seq_no {ack.seq_no} had been acknowledged before "
            "it was sent",
            quote(place, _show(line)),
            quote(f"{self.history_name}:{early.ack_place}", f"seq_no {ack.seq_no} acknowledged t={ack.t}"),
            quote(f"{self.history_name}:{sent.place}", f"{line.msg_id} sent t={sent.row.t}"),
        )

    def _judge_doubtful(self) -> None:
        """Look up the lines of the acknowledged messages, because their acknowledgements named wrong seq_nos."""
        if self._doubtful:
            lines = self.log.lines_of({f"{ack.session}-{ack.n}" for early, _ in self._doubtful if (ack := early.ack)})
            for early, sent in self._doubtful:
                if (ack := early.ack) and lines.get(f"{ack.session}-{ack.n}", 0) > early.number:
                    self._too_early(early, ack, sent)

    def _not_a_message(self, number: int, line: LogLine) -> None:
        if line is NOT_A_MESSAGE:
            self._unreadable = self._unreadable or number
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
        """Report a run of messages that does not follow the last one of its session."""
        place = self.log.place(number)
        shown = quote(place, _show(run[0]))
        if n > session.logged:
            session.holes.append((session.logged + 1, n - 1, number))
            wanted = session.logged + 1
            session.logged = n + len(run) - 1
            self.sender_order.add(place, f"message {run[0].msg_id} instead of n={wanted} of its session", shown)
            return
        for offset, line in enumerate(run):
            if session.fill_hole(n + offset):
                self.sender_order.add(place, f"message {run[0].msg_id} comes after later ones of its session", shown)
            elif n + offset <= session.logged:
                here = self.log.place(number + offset)
                self.integrity.add(here, f"msg_id {line.msg_id} appears for the second time", shown)
            else:
                session.logged = n + offset

    # ---- the end ---------------------------------------------------------------------------------

    def _finish(self) -> None:
        """Take the rest of the log, and find the messages that it lacks."""
        self._ack = None
        self._advance(END_OF_LOG)
        self.numbering.end()
        self._unreadable = self._unreadable or self.log.torn
        early = [each for session in self.sessions.values() for each in session.early.values()]
        for each in sorted(early, key=lambda each: each.number):
            self._never_sent(each.number, each.line)
        self._judge_doubtful()
        if not self.numbering.is_wrong:
            self.durability.take(self._misplaced)
        for name, session in self.sessions.items():
            lost = session.first_lost()
            if lost is not None:
                self._lost(name, *lost)
            if session.logged and name in self.case.secrets:
                self.integrity.add(self.log.name, f"messages of session {name} show its secret")

    def _lost(self, session: str, n: int, line: int) -> None:
        """Report an acknowledged message that is not in the log; the row of its acknowledgement is searched in the
        history.
        """
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

    def on_broken_promise(self, invariant: str, text: str) -> None:
        if invariant == self.durability.name:
            self.durability.add("meta.json:1", text)

    def checks(self) -> list[Check]:
        self._finish()
        numbers = self._whole_contiguity(self.numbering)
        checks = [
            numbers.passed(f"seq_no 1..{self.numbering.seq_no}, term up to {self.numbering.term}"),
            *self._others(),
        ]
        if not self.log.line_count:
            checks[0] = numbers.unknown(NO_LINES)
        self.case.contiguous = checks[0].result == "PASS"
        self.case.term_starts = self.numbering.term_starts
        self.case.messages = outcomes(self.sessions.values(), self.log.line_count)
        return checks

    def unknown(self, reason: str) -> list[Check]:
        """Return the checks if only A2 can be judged."""
        log = MessageLog(self.log.path, self.log.name)
        numbering = Numbering(Findings("A2", self.invariants["A2"]), log)
        numbering.whole_log()
        numbers = self._whole_contiguity(numbering)
        check = numbers.passed(counted(log.line_count, "line")) if log.line_count else numbers.unknown(NO_LINES)
        self.case.contiguous = check.result == "PASS"
        self.case.messages = Outcomes(in_log=log.line_count)
        return [check, *super().unknown(reason)[1:]]

    def _whole_contiguity(self, numbering: Numbering) -> Findings:
        """Judge A2 of all logs: of the judged one, of those that are not a prefix of it, and the length of each."""
        findings = self.found("A2")
        findings.take(numbering.findings)
        for file in self.case.deviating:
            Numbering(findings, MessageLog(file.path, file.name)).whole_log()
        convergence = None if self.case.meta is None else self.case.meta.convergence
        delivered = {} if convergence is None else convergence.delivered
        for file in self.case.files:
            if (last := file.last_seq()) < delivered.get(file.node, 0):
                message = (
                    f"{file.name} ends at seq_no {last}; STATUS of node {file.node} said that {delivered[file.node]} "
                    "were delivered"
                )
                findings.add(file.name, message, quote(file.name, file.line(last) or b""))
        return findings

    def _others(self) -> list[Check]:
        """Judge A3 to A6."""
        if self._unreadable:
            # Nobody can say which message an unreadable line holds, so nothing that needs it can be judged.
            return super().unknown(f"{self.log.place(self._unreadable)} cannot be read (A2)")[1:]
        acknowledged = sum(session.acked for session in self.sessions.values())
        durability = (
            self.durability.passed(f"all {acknowledged} acknowledged messages are in the log")
            if self.acks
            else self.durability.unknown("no message was acknowledged")
        )
        if not self.log.line_count:
            integrity, order, real_time = (
                each.unknown(NO_LINES) for each in (self.integrity, self.sender_order, self.real_time)
            )
            return [integrity, durability, order, real_time]
        sessions = sum(1 for session in self.sessions.values() if session.logged)
        return [
            self.integrity.passed(f"{counted(self.payloads_judged, 'message')} as their clients sent them"),
            durability,
            self.sender_order.passed(counted(sessions, "session")),
            self.real_time.passed(f"{counted(self.real_time_pairs, 'message')} sent after an acknowledgement")
            if self.real_time_pairs
            else self.real_time.unknown("no message was sent after another's acknowledgement", decisive=False),
        ]


def _is_of(line: LogLine | None, ack: Acked) -> bool:
    """Return whether the acknowledged message is in this line."""
    return line is not None and line.msg_id == f"{ack.session}-{ack.n}"


def _split(msg_id: str) -> tuple[str, int]:
    """Split a msg_id into (session, n); n is 0 if it has no valid number."""
    session, _, number = msg_id.rpartition("-")
    # int() takes more than canonical numbers do, " 1" and "1_0" among them.
    if session and number.isascii() and number.isdigit() and number[0] != "0" and len(number) < 19:
        return session, int(number)
    return msg_id, 0


def _end_of_run(lines: list[LogLine], at: int, at_most: int, session: str, n: int) -> int:
    """Return the index after the consecutive messages n, n + 1, … of a session that begin at `at`."""
    if at_most == at + 1:
        return at_most
    last_id = f"{session}-{n + at_most - at - 1}"
    if lines[at_most - 1].msg_id == last_id:
        # Mostly the messages of one batch of a client are consecutive.
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
