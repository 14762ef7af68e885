"""The command `hands`: a live run whose steps are read from standard input, one a line.

    kill: leader
    kill: leader: done in 14 ms
    end

The run ends with `end`, or with the end of standard input. It is judged like any run, and its steps are kept as a
scenario, by_hand.yml in the run directory. With --json each line of input is {"step": "kill: leader"}, and each line of
output a JSON object: first {"run": DIRECTORY}, then one Answer for each step. The run does not depend on a reader of
its output.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import sys
import threading
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Struct, structs

from lab.course.by_hand import Answer, Order
from lab.places import COMMAND, RESULTS, SCENARIOS, near
from lab.plan import scenario as plan
from lab.plan.choosing import find
from lab.plan.scenario import Scenario
from lab.plan.sense import load_checked
from lab.rundir import RunDir
from lab.runs import LIVE, USAGE, Progress, add_report, refusals, run_once, seed_of
from lab.steps import Hands
from lab.values import between, seed
from nodeproc.errors import ConfigError

NAME = "by_hand"
"""Of the scenario that a run by hand begins with, and of the scenario that it leaves."""
MOST_RATE = 100_000
LONGEST_LINE_BYTES = 1 << 20
END = b"end"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `run_lab.py hands`."""
    beginning = "scenario whose steps are done first, up to its step `hands` or its end (%(default)s)"
    parser.add_argument("scenario", metavar="SCENARIO", nargs="?", default=NAME, help=beginning)
    parser.add_argument(
        "--nodes", metavar="N", type=between(1, plan.MAX_NODES), help="number of nodes, instead of its own"
    )
    rate = "messages a second of the load, instead of its own"
    parser.add_argument("--rate", metavar="R", type=between(1, MOST_RATE), help=rate)
    parser.add_argument("--seed", metavar="S", type=seed, help="seed of the run (default: random)")
    parser.add_argument("--out", metavar="DIR", type=Path, default=RESULTS, help="directory for the run (%(default)s)")
    parser.add_argument("--json", action="store_true", help="read and write JSON lines, for other programs")


def main(options: argparse.Namespace) -> int:
    """Carry out one run by hand, judge it, and return its exit code; 64 for a scenario that does not fit."""
    try:
        scenario = planned(options.scenario, options.nodes, options.rate)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return USAGE
    if refused := refusals(scenario, LIVE):
        print("\n".join(refused), file=sys.stderr)
        return USAGE
    person = Terminal(as_json=options.json)
    progress = Progress(NAME)
    try:
        result = run_once(scenario, seed_of(scenario, options.seed, 0), options.out, progress=progress, person=person)
    finally:
        progress.close()
    add_report(result)
    if result.directory is not None:
        kept = near(RunDir(result.directory).by_hand)
        result = replace(result, again=f"{COMMAND} {kept} --seed {result.seed}")
        person.say(f"\n{result.text()}kept as a scenario: {kept}")
    elif not options.json:
        print(result.text(), file=sys.stderr)
    return result.exit_code


def planned(word: str = NAME, nodes: int | None = None, rate: int | None = None) -> Scenario:
    """Return the scenario of a run by hand, before its steps are known.

    Args:
        word: a file or the name of a scenario.
        nodes, rate: replace the scenario's own.

    Raises:
        ConfigError: there is no such scenario, or it cannot be changed in this way.
    """
    path = find(word, SCENARIOS)
    begun = load_checked(path)
    cluster, load, steps = begun.cluster, begun.load, begun.steps
    if nodes is not None:
        cluster = structs.replace(cluster, nodes=nodes)
    if rate is not None:
        if load is None:
            raise ConfigError(f"--rate: {near(path)} has no load")
        load = structs.replace(load, rate=float(rate), in_flight=None)
    if not any(isinstance(step, Hands) for step in begun.every_step()):
        steps = (*steps, Hands())
    date = datetime.now(UTC).date().isoformat()
    text = f"Steps done by hand on {date}" + ("." if begun.name == NAME else f", after those of {begun.name}.")
    changed = structs.replace(begun, name=NAME, description=text, tags=(), cluster=cluster, load=load, steps=steps)
    return plan.load(path, text=plan.encode(changed))


class Line(Struct, frozen=True, forbid_unknown_fields=True):
    """A line of standard input with --json."""

    step: Annotated[str, msgspec.Meta(max_length=LONGEST_LINE_BYTES)]


class Terminal:
    """The person at standard input; see lab.course.by_hand.Person.

    A thread reads, because standard input may be a terminal, a pipe or a file.
    """

    def __init__(self, *, as_json: bool) -> None:
        self._as_json = as_json
        self._lines: asyncio.Queue[bytes | None] = asyncio.Queue()
        if as_json:
            os.set_blocking(sys.stdout.fileno(), False)  # A reader that hangs must not hold up the run.

    def begin(self, run: RunDir) -> None:
        loop = asyncio.get_running_loop()
        threading.Thread(target=self._read, args=(loop,), daemon=True).start()
        if self._as_json:
            self._write(msgspec.json.encode({"run": str(run.path.resolve())}))
        else:
            self.say("one step a line, such as `kill: leader`; `end` ends the run")

    def _read(self, loop: asyncio.AbstractEventLoop) -> None:
        rest, data = b"", b"-"
        with contextlib.suppress(RuntimeError):  # The run is over.
            while data:
                data = os.read(sys.stdin.fileno(), 1 << 16)
                *lines, rest = (rest + data).split(b"\n")
                if len(rest) > LONGEST_LINE_BYTES:
                    break
                for line in lines if data else [*lines, rest]:
                    loop.call_soon_threadsafe(self._lines.put_nowait, line)
            loop.call_soon_threadsafe(self._lines.put_nowait, None)

    async def order(self, patience_s: float) -> Order | None:
        while True:
            async with asyncio.timeout(patience_s):
                line = await self._lines.get()
            if line is None or line.strip() == END:
                return None
            if not line.strip():
                continue
            try:
                words = msgspec.json.decode(line, type=Line).step if self._as_json else line.decode()
            except (msgspec.MsgspecError, UnicodeDecodeError) as error:
                self._answer(Answer(problem=str(error)))
                continue
            return Order(words, self._answer)

    def _answer(self, answer: Answer) -> None:
        if self._as_json:
            self._write(msgspec.json.encode(answer))
            return
        self.say(answer.problem or f"{answer.step}: done in {answer.took_ms:g} ms")
        if answer.warning:
            self.say(f"warning: {answer.warning}")

    def say(self, text: str) -> None:
        """Print for people; nothing with --json."""
        if not self._as_json:
            self._write(text.encode())

    def _write(self, line: bytes) -> None:
        with contextlib.suppress(OSError):  # Nobody reads, or not fast enough.
            os.write(sys.stdout.fileno(), line + b"\n")
