"""`send`: exact messages of named clients."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct

from lab.steps.step import Step
from lab.words import ClientId, Duration, Period


class Sender(Struct, frozen=True, forbid_unknown_fields=True):
    """Messages of one named client.

    via: node id that the client connects to; without it, the one it used last, at first the lowest. When that node is
        down the client goes to another one.
    messages: exact payloads, or how many to make (`message 1 of client 101`, counted on over the run).
    fresh: the client process ended and a new one comes: a new session.
    """

    client: ClientId
    messages: tuple[str, ...] | Annotated[int, Meta(ge=1, le=1_000_000)]
    via: int | None = None
    fresh: bool = False

    @property
    def count(self) -> int:
        """How many messages."""
        return self.messages if isinstance(self.messages, int) else len(self.messages)


class Send(Step, frozen=True):
    """Send exact messages, a client's one after the other without waiting; several clients at the same time.

    Done when all are acknowledged, in `within`; at once with `wait: false`. In YAML a single client's fields may stand
    here in place of `clients`.
    refused: done instead when each client's node has told it why it takes nothing: nobody leads, or there is no
        majority.
    """

    word = "send"
    short = "clients"
    clients: tuple[Sender, ...]
    within: Period = Duration(10)
    wait: bool = True
    refused: bool = False

    def sends(self, planned: int) -> int:
        return sum(each.count for each in self.clients)
