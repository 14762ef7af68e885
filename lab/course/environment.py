"""What a run takes from the world around it: the time, and clients of the chat."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any

from nodeproc.client import Address, ChatClient
from nodeproc.outcome import Outcome
from nodeproc.session import SessionSettings


class Environment:
    """The real environment; lab.sim.cluster has the simulated one.

    Args:
        client_token: the token that its clients send to the nodes; "": none.
    """

    def __init__(self, client_token: str = "") -> None:
        self.client_token = client_token

    def now(self) -> float:
        """Return monotonic seconds."""
        return time.monotonic()

    def now_ns(self) -> int:
        return time.monotonic_ns()

    def cpu_s(self) -> float:
        """Return the CPU seconds that this process has used."""
        return time.process_time()

    def chat(
        self,
        addresses: Sequence[Address],
        client: int,
        *,
        settings: SessionSettings | None = None,
        on_outcome: Callable[[Outcome], None] | None = None,
    ) -> ChatClient:
        """Return a client of the chat that is not started yet."""
        if self.client_token:
            settings = dataclasses.replace(settings or SessionSettings(), client_token=self.client_token)
        return ChatClient(addresses, client, settings=settings, on_outcome=on_outcome, **self._sources())

    def _sources(self) -> dict[str, Any]:
        """Return ChatClient's arguments for its time and its random numbers, where they are not the real ones."""
        return {}


REAL = Environment()
