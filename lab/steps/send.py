"""`send`: messages of named clients."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Self

from msgspec import Meta, Struct, structs

from lab.payloads import numbered_message
from lab.steps.entry import Entry
from lab.steps.machine import Run, SendingClient, StepMissed
from lab.steps.reducing import COUNTS, shifted
from lab.steps.step import Needs, Step
from lab.steps.wait import QUICK_LOOK_S
from lab.steps.writing import brief, fields_of, plain
from lab.words import ClientId, Duration, Period
from nodeproc.core.messages import NodeId
from nodeproc.session import Session


class Sender(Struct, frozen=True, forbid_unknown_fields=True):
    """Messages of one named client.

    via: id of the node that the client connects to; None: the node that it used last, at first the lowest. When that
        node is down the client connects to another one.
    messages: exact payloads, or how many to make (`message 1 of client 101`, counted over the whole run).
    fresh: a new client process, and so a new session.
    """

    client: ClientId
    messages: tuple[str, ...] | Annotated[int, Meta(ge=1, le=1_000_000)]
    via: int | None = None
    fresh: bool = False

    @property
    def count(self) -> int:
        """How many messages."""
        return self.messages if isinstance(self.messages, int) else len(self.messages)

    def check(self, entry: Entry) -> None:
        """Refuse a node that the cluster does not have, no messages, and messages that are too long."""
        if self.via is not None:
            entry.at("via").check_id(self.via)
        if not self.messages:
            entry.at("messages").wrong("a list of texts, or how many, 1 or more")
        for index, text in enumerate(self.messages if isinstance(self.messages, tuple) else ()):
            entry.at("messages", index).check_payload(text)

    def as_yaml(self, *, in_brief: bool) -> dict[str, Any]:
        """Return the fields, in brief without defaults."""
        return brief(self) if in_brief else plain(self)

    def without(self, gone: NodeId) -> Sender:
        """The sender in a cluster without this node, where higher ids are one lower."""
        return structs.replace(self, via=None if self.via in (None, gone) else shifted(self.via or gone, gone))

    def show(self) -> str:
        """Return a few words for people."""
        via = "" if self.via is None else f" via node {self.via}"
        several, new = "s" if self.count != 1 else "", "new " if self.fresh else ""
        return f"{self.count} message{several} of {new}client {self.client}{via}"


class Send(Step, frozen=True):
    """Send exact messages from one named client. Ends when all are acknowledged, or, with `refused: true`, when the
    node has refused them because there is no leader or no majority.

    A client sends its messages one after the other without waiting, several clients at the same time. With
    `wait: false` the step ends at once. In YAML the fields of a single client may replace `clients`.
    """

    word = "send"
    short = "clients"
    single = Sender
    hurts = frozenset[NodeId]()
    clients: tuple[Sender, ...]
    within: Period = Duration(10)
    wait: bool = True
    refused: bool = False

    @classmethod
    def _of(cls, entry: Entry) -> Self:
        if not _is_of_one(entry.value):
            return entry.struct(cls, "clients")
        of_sender = fields_of(Sender)
        read = entry.fields([*of_sender, *(each for each in fields_of(cls) if each.name != "clients")])
        sender = Sender(**{each.name: read.pop(each.name) for each in of_sender if each.name in read})
        return cls(clients=(sender,), **read)

    def check(self, entry: Entry) -> None:
        if not self.clients:
            entry.fail("no client, at least one is needed")
        for index, sender in enumerate(self.clients):
            sender.check(entry if _is_of_one(entry.value) else entry.of("clients").at(index))
        if self.refused and not self.wait:
            entry.at("wait").fail("wait: false cannot stand beside refused: true, which waits for the answer")

    def inside(self, *, in_brief: bool) -> Any:
        whole = brief(self) if in_brief else plain(self)
        if in_brief and len(self.clients) == 1:
            return whole.pop("clients")[0] | whole
        return whole

    def shown(self) -> Any:
        return " and ".join(each.show() for each in self.clients)

    def sends(self, planned: int) -> int:
        return sum(each.count for each in self.clients)

    @property
    def needs(self) -> Needs:
        return Needs(majority=self.wait and not self.refused)

    def texts(self, made: dict[int, int]) -> Iterator[str]:
        for each in self.clients:
            if isinstance(each.messages, tuple):
                yield from each.messages
                continue
            first = made.get(each.client, 0) + 1
            made[each.client] = first + each.messages - 1
            yield from (numbered_message(each.client, n) for n in range(first, first + each.messages))

    def reduce(self) -> Iterator[Self]:
        yield from super().reduce()
        if len(self.clients) > 1:
            yield from (structs.replace(self, clients=(each,)) for each in self.clients)
            return
        (sender,) = self.clients
        for count in (each for each in COUNTS if each < sender.count):
            yield structs.replace(self, clients=(structs.replace(sender, messages=count),))
        if sender.fresh:
            yield structs.replace(self, clients=(structs.replace(sender, fresh=False),))

    def without(self, gone: NodeId) -> Self | None:
        return structs.replace(self, clients=tuple(each.without(gone) for each in self.clients))

    def findings(self) -> Iterator[str]:
        if self.wait:
            yield self.show()

    async def do(self, run: Run, index: int) -> None:
        clients = [await run.named.send(sender, run.world.addresses) for sender in self.clients]
        if not self.wait:
            return
        if self.refused:
            run.note(index, self, met=True, found=await self._refusals(clients))
            return
        before = sum(map(_not_acknowledged, clients))
        try:
            async with asyncio.timeout(self.within):
                await asyncio.gather(*(each.chat.drained() for each in clients))
        except TimeoutError:
            left = sum(each.chat.session.unsettled for each in clients)
            heard = next(
                (f"; client {each.client} at {each.chat.last_error}" for each in clients if each.chat.last_error), ""
            )
            raise StepMissed(f"{left} messages without an acknowledgement after {self.within}{heard}") from None
        if refused := sum(map(_not_acknowledged, clients)) - before:
            raise StepMissed(f"{refused} messages were not acknowledged")
        run.note(index, self, met=True, found="all acknowledged")

    async def _refusals(self, clients: Sequence[SendingClient]) -> str:
        """Wait until each of these clients knows why its node accepts nothing; return the reasons."""
        sessions = [each.chat.session for each in clients]
        for session in sessions:
            session.refused = ""
        try:
            async with asyncio.timeout(self.within):
                while not all(map(_was_refused, sessions)):
                    await asyncio.sleep(QUICK_LOOK_S)
        except TimeoutError:
            raise StepMissed(f"no refusal within {self.within}: {', '.join(map(_reason, sessions))}") from None
        return ", ".join(map(_reason, sessions))


def _is_of_one(value: Any) -> bool:
    """Return whether the fields of a single client stand beside those of the step."""
    return not (isinstance(value, list) or (isinstance(value, dict) and "clients" in value))


def _not_acknowledged(client: SendingClient) -> int:
    return client.outcomes["rejected"] + client.outcomes["unknown"]


def _was_refused(session: Session) -> bool:
    """Return whether the client has a node, which accepts none of its messages now."""
    return bool(session.node) and bool(session.refused or not session.leader)


def _reason(session: Session) -> str:
    """Return what a client's node has reported to it."""
    words = session.refused or (f"node {session.leader} leads" if session.leader else "nobody leads")
    return f"node {session.node} says: {words}" if session.node else "no node"
