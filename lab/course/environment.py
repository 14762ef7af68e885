"""What a run takes from the world around it: the time, and chat clients that live in it."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Protocol

from lab.rows import HistoryRow
from nodeproc.client import Address, ChatClient
from nodeproc.session import Outcome, SessionSettings


class History(Protocol):
    """Where the clients' rows go, in the order of their t."""

    def write(self, row: HistoryRow) -> None: ...

    def outcome(self, session: str, outcome: Outcome) -> None: ...

    def flush(self) -> None: ...

    def close(self) -> None: ...


class Environment:
    """The real one; lab.sim has another.

    Args:
        client_token: what its clients show to the nodes.
    """

    def __init__(self, client_token: str = "") -> None:
        self.client_token = client_token

    def now(self) -> float:
        """Monotonic seconds."""
        return time.monotonic()

    def now_ns(self) -> int:
        return time.monotonic_ns()

    def cpu_s(self) -> float:
        """CPU seconds of this process."""
        return time.process_time()

    def chat(
        self,
        addresses: Sequence[Address],
        client: int,
        *,
        settings: SessionSettings | None = None,
        on_outcome: Callable[[Outcome], None] | None = None,
    ) -> ChatClient:
        """A client of the chat, not started."""
        if self.client_token:
            settings = dataclasses.replace(settings or SessionSettings(), client_token=self.client_token)
        return ChatClient(addresses, client, settings=settings, on_outcome=on_outcome)


REAL = Environment()
