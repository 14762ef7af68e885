"""What the messages of a load and of `send` steps hold; it follows from the seed alone. Pure."""

from __future__ import annotations

import random
from functools import lru_cache

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
