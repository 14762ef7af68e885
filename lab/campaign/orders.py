"""The orders that a campaign sends to its workers' child processes, and their answers, as JSON lines."""

from __future__ import annotations

from typing import Final, TypeAlias

import msgspec
from msgspec import Struct

from lab.search.worker import Played

NATIVE: Final = "native"
"""The argument of a child that may use compiled modules."""


class Play(Struct, frozen=True, tag="play"):
    """Simulate the scenario of a seed.

    sizes, changing: as in lab.search.draw.
    mutant: applied to the product; "" for none.
    """

    seed: int
    sizes: tuple[int, ...]
    changing: float
    mutant: str = ""


class Shrink(Struct, frozen=True, tag="shrink"):
    """Shrink the scenario of a seed that failed.

    simulations: the limit, as in lab.search.shrink.
    """

    seed: int
    sizes: tuple[int, ...]
    changing: float
    mutant: str
    simulations: int


class Ready(Struct, frozen=True, tag="ready"):
    """The first line of a child: the version of the code that it runs."""

    code: str


class Result(Struct, frozen=True, tag="result"):
    """The answer to Play. seconds: real time of the simulation."""

    played: Played
    seconds: float


class Reduced(Struct, frozen=True, tag="reduced"):
    """The answer to Shrink.

    scenario: the shrunk scenario as YAML; "" if the seed did not fail again.
    marks: the coverage marks that the shrunk scenario hits.
    minimal: False if the limit of simulations ended the reduction.
    """

    invariant: str = ""
    text: str = ""
    scenario: str = ""
    steps: int = 0
    simulations: int = 0
    minimal: bool = True
    marks: tuple[str, ...] = ()


class Lost(Struct, frozen=True, tag="lost"):
    """There is no answer: the process that should have given it ended, several times."""

    reason: str


def file_stem(mutant: str, seed: int) -> str:
    """Return the name of a finding's scenario, which is that of its file too."""
    return f"{mutant}_seed_{seed}" if mutant else f"seed_{seed}"


Order: TypeAlias = Play | Shrink
Answer: TypeAlias = Result | Reduced | Lost

decode_order = msgspec.json.Decoder(Order).decode
decode_line = msgspec.json.Decoder(Ready | Answer).decode
decode_answer = msgspec.json.Decoder(Answer).decode
encode = msgspec.json.Encoder().encode
