"""A process of a search: takes one seed after the other on standard input, plays it, and says what came of it.

It counts coverage marks from its start on, so it imports what is marked only when it has begun to.
"""

from __future__ import annotations

import contextlib
import signal
import sys
import traceback
from types import FrameType
from typing import TypeAlias

import msgspec
from msgspec import Struct

from lab.live.children import say
from lab.search import coverage

SEED_CPU_S = 60.0
"""Processor time after which a seed is taken for one that never ends: most need a hundredth of a second."""


class Begin(Struct, frozen=True, tag="begin"):
    """The first order.

    mutant: break the product like this (lab.mutants.catalogue); "": not at all.
    """

    sizes: tuple[int, ...]
    mutant: str = ""


class Seed(Struct, frozen=True, gc=False, tag="seed"):
    """Play this seed."""

    seed: int


Order: TypeAlias = Begin | Seed


class Played(Struct, frozen=True):
    """What came of a seed.

    invariant, text: as in lab.search.failure.Failure.
    endless: it did not come to its end, and would not the next time.
    trouble: the traceback of an error of the lab itself.
    marks: those that were hit.
    """

    seed: int
    invariant: str = ""
    text: str = ""
    endless: bool = False
    trouble: str = ""
    virtual_s: float = 0.0
    frames: int = 0
    elections: int = 0
    messages: int = 0
    faults: dict[str, int] = {}
    events: dict[str, int] = {}
    marks: tuple[str, ...] = ()


decode_order = msgspec.json.Decoder(Order).decode
decode_played = msgspec.json.Decoder(Played).decode
encode = msgspec.json.Encoder().encode


class _Endless(BaseException):
    """A seed used up its processor time."""


class _Limit:
    """A limit of processor time.

    The signal's exception may end a task that nobody waits for, so what counts is `reached`.
    """

    def __init__(self, seconds: float) -> None:
        self.reached = False
        self._seconds = seconds

    def __enter__(self) -> _Limit:
        signal.signal(signal.SIGPROF, self._on_signal)
        signal.setitimer(signal.ITIMER_PROF, self._seconds)
        return self

    def __exit__(self, *_: object) -> None:
        signal.setitimer(signal.ITIMER_PROF, 0)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.reached = True
        signal.setitimer(signal.ITIMER_PROF, 1.0)  # Once more, should this one be swallowed.
        raise _Endless


def play(seed: int, sizes: tuple[int, ...], limit_s: float = SEED_CPU_S) -> Played:
    """Draw the seed's scenario and simulate it."""
    from lab.course.simfiles import PowerLost
    from lab.search.draw import draw
    from lab.search.failure import Failure, failure_of
    from lab.sim import simulator

    coverage.reset()
    outcome, limit, trouble = simulator.Outcome(), _Limit(limit_s), ""
    try:
        with limit:
            outcome = simulator.simulate(draw(seed, sizes), seed)
    except _Endless:
        pass
    except (Exception, PowerLost):  # A lost power that no node caught is our error, and costs this seed only.
        trouble = "" if limit.reached else traceback.format_exc()
    failure = failure_of(outcome)
    if limit.reached:
        failure = Failure("A9", f"no end within {limit_s:g} s of processor time")
    return Played(
        seed=seed,
        invariant=failure.invariant if failure else "",
        text=failure.text if failure else "",
        endless=limit.reached,
        trouble=trouble,
        virtual_s=round(outcome.virtual_s, 3),
        frames=outcome.frames,
        elections=outcome.elections,
        messages=outcome.messages,
        faults=outcome.faults,
        events=outcome.events,
        marks=tuple(coverage.hits()),
    )


def main() -> None:
    """Play seeds until standard input ends."""
    coverage.install()
    sizes: tuple[int, ...] = ()
    for line in sys.stdin.buffer:
        order = decode_order(line)
        if isinstance(order, Begin):
            sizes = order.sizes
            if order.mutant:
                from lab.mutants.catalogue import apply_for_good

                apply_for_good(order.mutant)
        else:
            say(encode(play(order.seed, sizes)))


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError):  # A search that went away is no error.
        main()
