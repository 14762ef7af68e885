"""The process that carries out one live run in namespaces of its own: `python -m lab.enclosed`, see lab.live.enclosed.

Its order is a JSON line on standard input, its answers are JSON lines on standard output. It dies with the process that
started it.
"""

from __future__ import annotations

import contextlib
import os
import sys
import traceback
from pathlib import Path

import msgspec

from lab.live import live
from lab.live.children import say
from lab.live.enclosed import Answer, Ended, Order, Told
from lab.live.kernel.namespaces import enter, explained
from lab.mutants.catalogue import mutated
from lab.plan import scenario as plan
from lab.rundir import RunDir
from lab.steps.machine import RunFailed
from nodeproc.__main__ import die_with_parent


def main() -> int:
    """Carry out the order; return the exit code."""
    parent = os.getppid()
    order = msgspec.json.decode(sys.stdin.buffer.readline(), type=Order)
    problem = ""
    try:
        enter()
        die_with_parent(parent)  # Not earlier: the kernel forgets this wish when a process gets new capabilities.
        carry_out(order)
    except KeyboardInterrupt:
        return 130
    except (OSError, RunFailed) as error:
        problem = explained(error)
    except Exception as error:
        traceback.print_exc()
        problem = f"{type(error).__name__}: {error}"
    tell(Ended(problem))
    return 0


def carry_out(order: Order) -> None:
    """Carry out the run in this process's network."""
    scenario = plan.load(f"{order.run}/scenario.yml", text=order.scenario)
    with contextlib.ExitStack() as stack:
        if order.mutant:
            stack.enter_context(mutated(order.mutant))  # The clients run in here.
        run = RunDir(Path(order.run))
        live.run(scenario, run, seed=order.seed, progress=lambda text: tell(Told(text)), mutant=order.mutant)


def tell(answer: Answer) -> None:
    """Write one answer."""
    say(msgspec.json.encode(answer))


if __name__ == "__main__":
    sys.exit(main())
