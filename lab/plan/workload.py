"""What a load sends, when and by whom: payloads and plans that follow from the seed alone. Pure."""

from __future__ import annotations

import random
from functools import lru_cache

from msgspec import Struct

from lab.plan.scenario import Load
from nodeproc.core.messages import NodeId

_FILLER_SPREAD = 1 << 16
_WORDS = (
    "we",
    "order",
    "every",
    "message",
    "once",
    "and",
    "the",
    "same",
    "way",
    "on",
    "all",
    "nodes",
    "then",
    "go",
    "on",
)
_AT_ONCE = 4096
_WORD_OF = [_WORDS[min(top >> 4, len(_WORDS) - 1)] for top in range(256)]
_NO_WORD = bytes(top for top in range(256) if top >> 4 >= len(_WORDS))

FIRST_SUBSCRIBER = 900_001
"""Client id of the first subscriber, out of the way of those that scenarios name."""


@lru_cache(maxsize=8)
def _filler(seed: int, size: int) -> str:
    """Plain words, long enough for every payload to start elsewhere in them.

    The words that random.choice would draw, thousands at once: of every 32 random bits it takes the highest four, and
    again where they are no word's number.
    """
    rng = random.Random(f"filler {seed}")
    parts: list[str] = []
    length = 0
    while length < _FILLER_SPREAD + size:
        drawn = rng.getrandbits(32 * _AT_ONCE).to_bytes(4 * _AT_ONCE, "little")[3::4].translate(None, _NO_WORD)
        parts.append(" ".join(map(_WORD_OF.__getitem__, drawn)))
        length += len(parts[-1]) + 1
    return " ".join(parts)


def payload(seed: int, client: int, n: int, size: int) -> str:
    """What message n of a load's client holds: `size` ASCII characters that need no escape in JSON.

    It starts with client and n, cut off where size is too small for them, so that payloads differ.
    """
    return payloads(seed, client, n, 1, size)[0]


def payloads(seed: int, client: int, first: int, count: int, size: int) -> list[str]:
    """payload() of messages first, first + 1, …, cheaper than one by one."""
    filler, offset = _filler(seed, size), client * 104_729
    texts = []
    for n in range(first, first + count):
        head = f"{client}:{n} "
        start = (n * 7919 + offset) % _FILLER_SPREAD
        texts.append((head + filler[start : start + size - len(head)])[:size])
    return texts


def numbered_message(client: int, number: int) -> str:
    """What `messages: 10` in a `send` step makes: the number-th such message of the client in this run, from 1."""
    return f"message {number} of client {client}"


class ClientPlan(Struct, frozen=True):
    """What one client of a load does.

    addresses: nodes in the order in which it tries them.
    interval_s: open loop: message n is due interval_s * (n - 1) + phase_s after the start; 0 for a closed loop.
    in_flight: closed loop: messages without outcome that it keeps; 0 for an open loop.
    count: messages that it sends; None: until stopped.
    """

    client: int
    addresses: tuple[NodeId, ...]
    interval_s: float
    phase_s: float
    in_flight: int
    count: int | None
    size: int
    seed: int

    def due_s(self, n: int) -> float:
        """When message n should be sent, seconds after the start. Open loop only."""
        return self.phase_s + (n - 1) * self.interval_s

    def due_count(self, elapsed_s: float) -> int:
        """How many messages should have been sent this long after the start. Open loop only."""
        if elapsed_s < self.phase_s:
            return 0
        due = int((elapsed_s - self.phase_s) / self.interval_s + 1e-9) + 1
        return due if self.count is None else min(due, self.count)


def client_plans(load: Load, via: tuple[NodeId, ...], seed: int) -> tuple[ClientPlan, ...]:
    """One plan a client.

    Args:
        via: load.via as it is when the load starts, at least one node.

    Returns:
        in the order of client ids; counts add up to load.count, rates to load.rate; phases are spread evenly.
    """
    interval_s = load.clients / load.rate if load.rate is not None else 0.0
    plans = []
    for index in range(load.clients):
        turn = index % len(via)
        count = None
        if load.count is not None:
            count = load.count // load.clients + (1 if index < load.count % load.clients else 0)
        plans.append(
            ClientPlan(
                client=load.first_client + index,
                addresses=via[turn:] + via[:turn],
                interval_s=interval_s,
                phase_s=interval_s * index / load.clients,
                in_flight=load.in_flight or 0,
                count=count,
                size=load.size,
                seed=seed,
            )
        )
    return tuple(plans)


def share(plans: tuple[ClientPlan, ...], workers: int) -> tuple[tuple[ClientPlan, ...], ...]:
    """The plans dealt out to worker processes in turn; none of them is empty, so there may be fewer than asked for."""
    return tuple(plans[index::workers] for index in range(min(workers, len(plans))))
