"""A live run in namespaces of its own, seen from outside: a process enters them and carries out the whole run.

That process is `python -m lab.enclosed`. Clients, nodes and the lab's other processes belong to it, so all of them are
in its network. It dies with this one, and the others die with it; the kernel then removes the namespaces.
"""

from __future__ import annotations

import asyncio
import functools
import subprocess
import sys
from typing import TypeAlias

import msgspec
from msgspec import Struct

from lab.course.runner import Progress
from lab.live.children import Child, child_environment
from lab.plan import scenario as plan
from lab.plan.scenario import Scenario
from lab.rundir import RunDir
from lab.steps.machine import RunFailed

MODULE = "lab.enclosed"
TRIAL = "lab.live.kernel.links"
"""The module that tries the network of a run, and prints why it does not work."""
TRIAL_PATIENCE_S = 60.0


class Order(Struct, frozen=True):
    """The run to carry out, as lab.live.live.run() gets it. scenario: the content of its file."""

    scenario: str
    run: str
    seed: int
    mutant: str


class Told(Struct, frozen=True, tag=True):
    """A line of progress."""

    text: str


class Ended(Struct, frozen=True, tag=True):
    """The last answer. problem: why the run could not be carried out; "" if it was."""

    problem: str


Answer: TypeAlias = Told | Ended


async def carry_out(scenario: Scenario, run: RunDir, seed: int, progress: Progress, mutant: str) -> None:
    """Let another process carry out a scenario in namespaces. See lab.live.live.run().

    Raises:
        RunFailed: it could not.
    """
    if problem := missing():
        raise RunFailed(problem)
    child = await Child.spawn("the run in its own network", MODULE, run.network_log)
    try:
        order = Order(plan.encode(scenario), str(run.path.resolve()), seed, mutant)
        child.order(msgspec.json.encode(order))
        decode = msgspec.json.Decoder(Answer).decode
        while isinstance(answer := decode(await child.answer()), Told):
            progress(answer.text)
        await child.process.wait()
    except BaseException:
        child.terminate()
        await asyncio.shield(child.process.wait())
        raise
    if answer.problem:
        raise RunFailed(answer.problem)


@functools.cache
def missing() -> str:
    """Return why this machine has no network for a run in the kernel; "" if it has."""
    needs = "cluster.network: kernel needs"
    if sys.platform != "linux":
        return f"{needs} Linux, found {sys.platform}"
    try:
        done = subprocess.run(
            [sys.executable, "-m", TRIAL],
            env=child_environment(),
            capture_output=True,
            text=True,
            timeout=TRIAL_PATIENCE_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"{needs} network namespaces; a trial did not end within {TRIAL_PATIENCE_S:g} s"
    if done.returncode == 0:
        return ""
    said = (done.stdout or done.stderr).strip().splitlines() or [f"a trial ended with exit code {done.returncode}"]
    return f"{needs} network namespaces, ip and nft: {said[-1]}"
