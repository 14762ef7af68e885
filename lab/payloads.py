"""Payloads of the messages of a load and of `send` steps. They follow from the seed alone. Pure."""

from __future__ import annotations

import random
from functools import lru_cache
from operator import itemgetter
from typing import Final

_FILLER_SPREAD: Final = 1 << 16
_WORDS: Final = (
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
_AT_ONCE: Final = 4096
_WORD_OF = [_WORDS[min(top >> 4, len(_WORDS) - 1)] for top in range(256)]
_NO_WORD: Final = bytes(top for top in range(256) if top >> 4 >= len(_WORDS))


@lru_cache(maxsize=8)
def _filler(seed: int, size: int) -> str:
    """Return random words, more than a payload needs, so that each payload can begin at another place in them.

    The words are those that random.choice would draw, but thousands are drawn at once: random.choice uses the highest
    four of every 32 random bits, and draws again if they are not the index of a word.
    """
    rng = random.Random(f"filler {seed}")
    parts: list[str] = []
    length = 0
    while length < _FILLER_SPREAD + size:
        drawn = rng.getrandbits(32 * _AT_ONCE).to_bytes(4 * _AT_ONCE, "little")[3::4].translate(None, _NO_WORD)
        parts.append(" ".join(itemgetter(*drawn)(_WORD_OF)))
        length += len(parts[-1]) + 1
    return " ".join(parts)


def payload(seed: int, client: int, n: int, size: int) -> str:
    """Return the payload of message n of a load's client: `size` ASCII characters that need no escape in JSON.

    It begins with client and n, so that payloads differ; if size is too small, this beginning is cut off.
    """
    return payloads(seed, client, n, 1, size)[0]


def payloads(seed: int, client: int, first: int, count: int, size: int) -> list[str]:
    """Return the payloads of messages first, first + 1, …; cheaper than single calls of payload()."""
    filler, offset = _filler(seed, size), client * 104_729
    texts = []
    for n in range(first, first + count):
        head = f"{client}:{n} "
        start = (n * 7919 + offset) % _FILLER_SPREAD
        rest = size - len(head)
        texts.append(head + filler[start : start + rest] if rest > 0 else head[:size])
    return texts


def numbered_message(client: int, number: int) -> str:
    """Return the text of a message of a `send` step with `messages: 10`; number counts such messages of the client,
    from 1.
    """
    return f"message {number} of client {client}"
