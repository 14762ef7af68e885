"""The process that plays and shrinks a campaign's seeds: orders on standard input, one answer each on standard output.

It is a process of its own, because coverage marks must be installed before any module with marks is imported, and the
CPU limit of a seed needs a main thread. It ends when its standard input ends. With the argument `native` it uses
compiled modules if there are any (nodeproc.native); it cannot apply mutants then.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time

from lab.campaign.code import code_version
from lab.campaign.orders import NATIVE, Order, Play, Ready, Reduced, Result, Shrink, decode_order, encode, file_stem
from lab.search import coverage
from lab.search.worker import limit_native_code, play
from nodeproc import native


def carry_out(order: Order) -> Result | Reduced:
    """Play or shrink one seed."""
    return _play(order) if isinstance(order, Play) else _shrink(order)


def _play(order: Play) -> Result:
    from lab.search.failure import as_mutant

    limit_native_code()
    began = time.perf_counter()
    with as_mutant(order.mutant):
        played = play(order.seed, order.sizes, order.changing)
    return Result(played, round(time.perf_counter() - began, 4))


def _shrink(order: Shrink) -> Reduced:
    from lab.search import failure
    from lab.search.draw import draw
    from lab.search.shrink import document, shrink

    limit_native_code(None)  # A shrinking plays hundreds of seeds.
    scenario = draw(order.seed, order.sizes, order.changing)
    shrunk = shrink(scenario, order.seed, order.mutant, simulations=order.simulations)
    if shrunk is None:
        return Reduced()
    coverage.reset()
    failure.play(shrunk.scenario, order.seed, order.mutant)
    return Reduced(
        invariant=shrunk.failure.invariant,
        text=shrunk.failure.text,
        scenario=document(shrunk, file_stem(order.mutant, order.seed)),
        steps=shrunk.scenario.step_count,
        simulations=shrunk.simulations,
        minimal=shrunk.minimal,
        marks=tuple(coverage.hits()),
    )


def main() -> None:
    """Announce the code's version, then answer orders until standard input ends."""
    if sys.argv[1:] == [NATIVE]:
        native.activate()
    coverage.install()
    from lab.live.children import orders_until, say

    say(encode(Ready(code_version())))
    for line in orders_until(lambda: os._exit(0)):
        say(encode(carry_out(decode_order(line))))


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError):  # The worker has ended.
        main()
