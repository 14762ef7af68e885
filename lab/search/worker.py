"""A worker process of a search: reads seeds from standard input, simulates their scenarios, writes the results.

It counts coverage marks, and is native unless it plays a mutant (nodeproc.native). Both begin with the imports of the
modules concerned, so it imports these only after its first order.
"""

from __future__ import annotations

import contextlib
import resource
import signal
import sys
import time
import traceback
from types import FrameType
from typing import TypeAlias

import msgspec
from msgspec import Struct

from lab.search import coverage
from nodeproc import native

SEED_CPU_S = 60.0
"""CPU time after which a seed counts as hung; most seeds need a hundredth of a second."""
KILLED_AFTER_S = 30
"""CPU time after that until the kernel ends a native worker with SIGXCPU: an endless loop of compiled code handles no
signal.
"""


class Begin(Struct, frozen=True, tag="begin"):
    """The first order: settings of the search.

    changing: share of the seeds that change the members.
    mutant: name of the mutant to apply (lab.mutants); "" for none.
    plain: do not use compiled modules.
    """

    sizes: tuple[int, ...]
    changing: float
    mutant: str = ""
    plain: bool = False


class Seed(Struct, frozen=True, gc=False, tag="seed"):
    """The order to play a seed."""

    seed: int


Order: TypeAlias = Begin | Seed


class Played(Struct, frozen=True):
    """The result of a seed.

    invariant, text: as in lab.search.failure.Failure; "" if nothing failed.
    endless: the simulation hung; it would hang again.
    trouble: the traceback of an error of the lab itself; "" if there was none.
    marks: the coverage marks that were hit.
    mode: "native" or "plain".
    cpu_s: CPU seconds that the seed took.
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
    mode: str = "plain"
    cpu_s: float = 0.0


decode_order = msgspec.json.Decoder(Order).decode
decode_played = msgspec.json.Decoder(Played).decode
encode = msgspec.json.Encoder().encode


class _Endless(BaseException):
    """A seed has used up its CPU time."""


class _Limit:
    """A limit of CPU time.

    The exception that the signal raises may end a task whose result is never read, so check `reached` as well.
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
        signal.setitimer(signal.ITIMER_PROF, 1.0)  # Raise again later, in case this exception is swallowed.
        raise _Endless


def play(seed: int, sizes: tuple[int, ...], changing: float, limit_s: float = SEED_CPU_S) -> Played:
    """Draw the seed's scenario, simulate it and return the result."""
    from lab.course.simfiles import PowerLost
    from lab.search.draw import draw
    from lab.search.failure import Failure, failure_of
    from lab.sim import simulator

    coverage.reset()
    begun = time.process_time()
    outcome, limit, trouble = simulator.Outcome(), _Limit(limit_s), ""
    try:
        with limit:
            outcome = simulator.simulate(draw(seed, sizes, changing), seed)
    except _Endless:
        pass
    except (Exception, PowerLost):  # A PowerLost that no node caught is an error of the lab, in this seed only.
        trouble = "" if limit.reached else traceback.format_exc()
    failure = failure_of(outcome)
    if limit.reached:
        failure = Failure("A9", f"no end within {limit_s:g} s of CPU time")
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
        mode=native.mode(),
        cpu_s=round(time.process_time() - begun, 6),
    )


def limit_native_code(seed_s: float | None = SEED_CPU_S) -> None:
    """Before a seed: have the kernel end this process if the seed hangs in compiled code; see KILLED_AFTER_S.

    Args:
        seed_s: CPU time of the seed; None for no limit.
    """
    if native.compiled():
        most = resource.getrlimit(resource.RLIMIT_CPU)[1]
        last_s = most if seed_s is None else int(time.process_time() + seed_s) + KILLED_AFTER_S
        resource.setrlimit(resource.RLIMIT_CPU, (last_s, most))


def main() -> None:
    """Play seeds until standard input ends."""
    search: Begin | None = None
    for line in sys.stdin.buffer:
        order = decode_order(line)
        if isinstance(order, Begin):
            search = order
            _prepare(search)
        else:
            from lab.live.children import say

            assert search is not None
            limit_native_code()
            say(encode(play(order.seed, search.sizes, search.changing)))


def _prepare(order: Begin) -> None:
    if not (order.mutant or order.plain):
        native.activate()
    coverage.install()
    if order.mutant:
        from lab.mutants.catalogue import apply_for_good

        apply_for_good(order.mutant)


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError):  # The search has ended.
        main()
