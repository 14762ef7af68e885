"""The outcome of messages, as the client library reports it."""

from __future__ import annotations

from typing import Literal, TypeAlias

from msgspec import Struct

from nodeproc.core.messages import SeqNo

OutcomeKind: TypeAlias = Literal["ok", "rejected", "unknown"]


class Outcome(Struct, frozen=True, gc=False):
    """The outcome of messages first..last of the session."""

    kind: OutcomeKind
    first: int
    last: int
    seq_no: SeqNo = 0
    """The seq_no of message `last` if the outcome is ok; 0 if it is not known."""
    reason: str = ""
    """Why the outcome is not ok, human-readable."""
