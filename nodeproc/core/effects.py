"""What one step of the core asks the outside to do.

The fields of Effects stand in the order of duty. The outside must

1. hand `persist` to the storage, in order, before anything that comes later is handed over;
2. write `emit` to the event log;
3. send `send`, each peer's messages in order, at once: nothing in it promises what is not durable yet;
4. append the bodies of `deliver` to the message log, acknowledge their sessions, push them to subscribers;
5. answer its own clients with `reply`;
6. read what `fetch` asks for and hand it back with Node.fetched;
7. put what `copied` holds in the place of what could not be read, and let those read again who wait for it;

and call Node.persisted(ticket) once all operations up to that ticket (Node.written, read after the step) are
durable, in whatever order fdatasync allows.
"""

from __future__ import annotations

from typing import NamedTuple, TypeAlias

from msgspec import Struct

from nodeproc.core.events import Event
from nodeproc.core.messages import Known, NodeId, PeerMessage, Position, Record, Refuse, Term


class Promise(Struct, frozen=True, gc=False, tag_field="kind", tag="promise"):
    """Term and vote, durable before any frame shows them. Rule: E3, E4, E6."""

    term: Term
    voted_for: NodeId


class Truncate(Struct, frozen=True, tag_field="kind", tag="truncate"):
    """Drop every record whose position is above `keep`. Rule: R2."""

    keep: Position


class Met(Struct, frozen=True, gc=False, tag_field="kind", tag="met"):
    """The identity of a member's data directory, to be remembered. Rule: M4."""

    peer: NodeId
    known: Known


class Readmitted(Struct, frozen=True, gc=False, tag_field="kind", tag="readmitted"):
    """This node's rebuild is over: it votes and counts again. Rule: M4."""

    term: Term


LocalOp: TypeAlias = Promise | Truncate | Met | Readmitted
PersistOp: TypeAlias = Record | Promise | Truncate | Met | Readmitted


class Fetch(NamedTuple):
    """Read consecutive records behind a position from the disk for a peer. Rule: R1, P1."""

    peer: NodeId
    after: Position
    max_bytes: int
    token: int
    """Handed back with the result; the core ignores an answer whose token is no longer the peer's."""


class Copied(NamedTuple):
    """The end of a search for records that our own disk can't give. Rule: K6."""

    after: Position
    records: tuple[Record, ...]
    """Consecutive, behind that position; none: no peer within reach has them."""


class Effects(Struct):
    """See the module's docstring for the duties. A Struct because every turn makes one: a third of a dataclass's cost.

    Empty lists as defaults are copied for each.
    """

    persist: list[PersistOp] = []
    emit: list[Event] = []
    send: list[tuple[NodeId, PeerMessage]] = []
    deliver: list[Record] = []
    reply: list[Refuse] = []
    fetch: list[Fetch] = []
    copied: list[Copied] = []
    halt: str = ""
    """Not empty: durable data contradicts the cluster; stop at once, do nothing else, exit code 3 (R2)."""

    def merge(self, later: Effects) -> None:
        """Join the effects of a later step behind these, field by field."""
        self.persist += later.persist
        self.emit += later.emit
        self.send += later.send
        self.deliver += later.deliver
        self.reply += later.reply
        self.fetch += later.fetch
        self.copied += later.copied
        self.halt = self.halt or later.halt
