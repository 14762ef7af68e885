"""Mutants of the client library's session."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final
from weakref import WeakKeyDictionary

from msgspec.structs import replace

from lab.mutants.patch import Collection, Patch
from nodeproc.lines import Ack, Chat, NodeLine, Reject, Shown, Subscribe, Welcome, decode_client_line, encode_line
from nodeproc.outcome import Outcome
from nodeproc.session import Session

CLIENTS: Final = Collection()


def numbered_back(line: NodeLine | Shown, by: int) -> NodeLine | Shown:
    """Return a node's line with the message numbers of the session itself."""
    match line:
        case Ack():
            return replace(line, n=max(line.n - by, 0))
        case Welcome():
            return replace(line, acknowledged=max(line.acknowledged - by, 0))
        case Reject():
            expected = max(line.expected - by, 1) if line.expected else 0
            return replace(line, first=line.first - by, expected=expected)
    return line


@CLIENTS.add("S5", "After a lost connection, unacknowledged messages are sent again under new numbers.")
def client_gives_a_retry_a_new_n(patch: Patch) -> None:
    disconnected, received, next_chat = Session.disconnected, Session.received, Session._next_chat
    shifts: WeakKeyDictionary[Session, int] = WeakKeyDictionary()

    def lost(self: Session) -> None:
        shifts[self] = shifts.get(self, 0) + max(self._sent - self._base + 1, 0)
        disconnected(self)

    def take(self: Session, line: NodeLine | Shown, now: float) -> None:
        received(self, numbered_back(line, shifts.get(self, 0)), now)

    def say(self: Session, now: float) -> bytes | None:
        line = next_chat(self, now)
        if line is None or not shifts.get(self, 0):
            return line
        chat = decode_client_line(line.rstrip())
        assert isinstance(chat, Chat), chat
        return encode_line(Chat(chat.first + shifts[self], chat.payloads))

    patch.set(Session, "disconnected", lost)
    patch.set(Session, "received", take)
    patch.set(Session, "_next_chat", say)


@CLIENTS.add("S4", "A message is reported as acknowledged when it has been sent.")
def client_counts_sent_as_acknowledged(patch: Patch) -> None:
    right = Session._next_chat

    def wrong(self: Session, now: float) -> bytes | None:
        line = right(self, now)
        self._settle("ok", min(self._sent, self._last))
        return line

    patch.set(Session, "_next_chat", wrong)


@CLIENTS.add("S6", "A subscriber that subscribes again on another connection skips one message.")
def resubscription_skips_one(patch: Patch) -> None:
    right = Session._on_welcome

    def wrong(self: Session, line: Welcome, now: float) -> None:
        right(self, line, now)
        last = self._to_say[-1] if self._to_say else None
        if isinstance(last, Subscribe) and last.start > 1:
            self._to_say[-1] = Subscribe(last.start + 1)

    patch.set(Session, "_on_welcome", wrong)


@CLIENTS.add("S5", "A message whose outcome is unknown is reported as rejected.")
def unknown_reported_as_rejected(patch: Patch) -> None:
    right: Callable[[Session], list[Outcome]] = Session.take_outcomes

    def wrong(self: Session) -> list[Outcome]:
        return [replace(each, kind="rejected") if each.kind == "unknown" else each for each in right(self)]

    patch.set(Session, "take_outcomes", wrong)


@CLIENTS.add("S5", "Each message after one that passed its deadline renews the client's patience with its node.")
def patience_renewed_by_deadlines(patch: Patch) -> None:
    right = Session.submit

    def wrong(self: Session, payloads: Sequence[str], now: float) -> int:
        self._gave_up_at = 0.0
        return right(self, payloads, now)

    patch.set(Session, "submit", wrong)
