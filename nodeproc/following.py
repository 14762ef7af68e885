"""A client's subscription as an asynchronous generator. It is a module of its own, because mypyc compiles none."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import Final, Protocol

from nodeproc.core.messages import SeqNo
from nodeproc.lines import Shown

UNREAD_BYTES: Final = 4 << 20
"""The client stops reading while a subscriber has more bytes than this left to take."""


class Client(Protocol):
    """What a subscription needs of nodeproc.client.ChatClient."""

    @property
    def closed(self) -> bool: ...

    def follow(self, start: SeqNo | None, on_shown: Callable[[Shown], None]) -> None: ...

    def unfollow(self) -> None: ...

    def read(self, on: bool) -> None: ...

    async def until(self, condition: Callable[[], bool]) -> None: ...


async def runs(client: Client, start: SeqNo | None) -> AsyncIterator[Shown]:
    """See ChatClient.subscribe."""
    unread: deque[Shown] = deque()
    size = 0

    def on_shown(shown: Shown) -> None:
        nonlocal size
        unread.append(shown)
        size += len(shown.lines)
        client.read(size < UNREAD_BYTES)

    client.follow(start, on_shown)
    try:
        while not client.closed:
            await client.until(lambda: bool(unread) or client.closed)
            while unread:
                shown = unread.popleft()
                size -= len(shown.lines)
                client.read(size < UNREAD_BYTES)
                yield shown
    finally:  # A subscriber that stops must not stop the client from reading acknowledgements.
        client.unfollow()
