"""The effects of one step of the core: the work that the caller (the host of the node) must do next.

The fields of Effects are listed in the order in which the host must handle them:

1. pass the operations in `persist` to the storage, in order, before those of any later step;
2. write the events in `emit` to the event log;
3. send the messages in `send` immediately, each peer's messages in order: none of them promises anything that is not
   durable yet;
4. append the bodies of `deliver` to the message log, acknowledge their sessions, push them to subscribers;
5. send the refusals in `reply` to the node's own clients;
6. read the records that `fetch` asks for and return them with Node.fetched;
7. replace unreadable records by those in `copied`, and wake the readers that wait for them;
8. stop cleanly if `leave` gives a reason.

The host calls Node.persisted(ticket) as soon as all operations up to that ticket are durable. The ticket of a step is
the value of Node.written after the step. One fdatasync may cover many tickets.
"""

from __future__ import annotations

from typing import NamedTuple, TypeAlias

from msgspec import Struct

from nodeproc.core.events import Event
from nodeproc.core.messages import Known, NodeId, PeerMessage, Position, Record, Refuse, Term


class Promise(Struct, frozen=True, gc=False, tag_field="kind", tag="promise"):
    """Term and vote. They must be durable before any frame contains them. Rule: E3, E4, E6."""

    term: Term
    voted_for: NodeId


class Truncate(Struct, frozen=True, tag_field="kind", tag="truncate"):
    """Drop every record whose position is above `keep`. Rule: R2."""

    keep: Position


class Met(Struct, frozen=True, gc=False, tag_field="kind", tag="met"):
    """The identity by which a member's data directory is known from now on. Rule: M4."""

    peer: NodeId
    known: Known


class Readmitted(Struct, frozen=True, gc=False, tag_field="kind", tag="readmitted"):
    """This node's rebuild has ended: it votes and counts towards majorities again. Rule: M4."""

    term: Term


LocalOp: TypeAlias = Promise | Truncate | Met | Readmitted
PersistOp: TypeAlias = Record | Promise | Truncate | Met | Readmitted


class Fetch(NamedTuple):
    """Read consecutive records after a position from the disk, for a peer. Rule: R1, P1."""

    peer: NodeId
    after: Position
    max_bytes: int
    token: int
    """Returned with the result. The core ignores a result whose token is not the latest one for this peer."""


class Copied(NamedTuple):
    """The result of asking peers for records that this node's disk cannot read. Rule: K6."""

    after: Position
    records: tuple[Record, ...]
    """Consecutive records after that position; empty if no reachable peer has them."""


class Effects(Struct):
    """The effects of one step; the module docstring says how each field is handled.

    A msgspec Struct, because one is created in every turn and a dataclass costs three times as much. msgspec copies
    the empty default lists for each instance.
    """

    persist: list[PersistOp] = []
    emit: list[Event] = []
    send: list[tuple[NodeId, PeerMessage]] = []
    deliver: list[Record] = []
    reply: list[Refuse] = []
    fetch: list[Fetch] = []
    copied: list[Copied] = []
    halt: str = ""
    """The reason to stop at once with exit code 3, because durable data contradicts the cluster (R2, M6); "" if none.

    The host then handles no other field.
    """
    leave: str = ""
    """The reason to stop cleanly, because the node is a member no more (G5); "" if none. It is handled last."""

    def merge(self, later: Effects) -> None:
        """Append the effects of a later step, field by field."""
        self.persist += later.persist
        self.emit += later.emit
        self.send += later.send
        self.deliver += later.deliver
        self.reply += later.reply
        self.fetch += later.fetch
        self.copied += later.copied
        self.halt = self.halt or later.halt
        self.leave = self.leave or later.leave
