"""Section bare: the cluster driven by a client in C, beside the other sections, whose Python client costs CPU too.

The client (client.c) is compiled for each measurement. Where that is not possible the section is left out, with the
reason. After each run, every message is looked for in the message logs of all nodes.
"""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec
import psutil
from msgspec import Struct

from lab.bench import floor
from lab.bench.figures import Collected
from lab.bench.loads import WINDOW
from lab.bench.pipeline import LINE_MESSAGES
from lab.bench.runs import LEADER_OF_THREE, Ran, Runs
from lab.steps import Step, Wait
from lab.steps.machine import Run, RunFailed
from lab.steps.wait import UntilIdle, UntilLeader
from lab.words import Duration
from nodeproc.core.messages import Line, NodeId

SOURCE = Path(__file__).with_name("client.c")
FIRST_CLIENT = 9001
NODES = (1, 2, 3)
PATIENCE_S = 120.0
_decode_line = msgspec.json.Decoder(Line).decode


class Unavailable(Exception):
    """The client cannot be compiled here; the text says why."""


def compiled(folder: Path) -> Path:
    """Return the compiled client, which is made in this directory if it is not there yet.

    Raises:
        Unavailable: there is no C compiler, or not the system that the client is written for.
    """
    program = folder / "client"
    if program.exists():
        return program
    compiler = shutil.which("gcc") or shutil.which("cc")
    if sys.platform != "linux" or compiler is None:
        raise Unavailable(
            "no gcc and no cc in PATH" if compiler is None else f"client.c needs Linux, not {sys.platform}"
        )
    command = [compiler, "-O2", "-o", str(program), str(SOURCE)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise Unavailable(f"{' '.join(command)}: {done.stderr.strip()[-300:]}")
    return program


class Driven(Struct, frozen=True):
    """What the client prints, and the CPU seconds of all nodes meanwhile."""

    seconds: float
    p50_ms: float
    p99_ms: float
    p999_ms: float
    cpu_s: float
    nodes_cpu_s: float = 0.0


class Drive(Step, frozen=True):
    """Let the client send its messages, and note its figures. Not a step of scenario files.

    in_flight: of each client. line_messages: most messages in one CHAT line. via: the nodes to which clients connect.
    """

    word = "drive"
    program: str
    clients: int
    in_flight: int
    line_messages: int
    count: int
    via: tuple[NodeId, ...]
    size: int = 100

    async def do(self, run: Run, index: int) -> None:
        processes = [psutil.Process(machine.identity()["pid"]) for machine in run.world.machines.values()]
        ports = [run.world.addresses[node][1] for node in self.via]
        numbers = (self.clients, self.in_flight, self.line_messages, self.count, self.size, FIRST_CLIENT, *ports)
        before = _cpu_s(processes)
        child = await asyncio.create_subprocess_exec(
            self.program, *map(str, numbers), stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        try:
            async with asyncio.timeout(PATIENCE_S):
                said, complaint = await child.communicate()
        finally:
            if child.returncode is None:
                child.kill()
                await child.wait()
        if child.returncode:
            raise RunFailed(f"the bare client ended with exit code {child.returncode}: {complaint.decode().strip()}")
        driven = msgspec.structs.replace(_decode_driven(said), nodes_cpu_s=_cpu_s(processes) - before)
        run.note(index, self, met=True, found=msgspec.json.encode(driven).decode())


_decode_driven = msgspec.json.Decoder(Driven).decode


def _cpu_s(processes: Iterable[psutil.Process]) -> float:
    return sum(sum(process.cpu_times()[:2]) for process in processes)


def drive(runs: Runs, step: Drive) -> Driven:
    """Start three nodes, let the client drive them, and verify their message logs.

    Raises:
        RunFailed: the client failed, or the logs are not what it has sent.
    """
    kept: list[Driven] = []
    patience = Duration(PATIENCE_S)
    steps = (Wait(until=UntilLeader(within=patience)), step, Wait(until=UntilIdle(within=patience)))

    def use(ran: Ran) -> None:
        verify(step, [ran.run.message_log(node).read_bytes() for node in NODES])
        kept.append(next(_decode_driven(each.found) for each in ran.meta.expectations if each.step == 1))

    runs.carry_out(runs.scenario("bench_bare", None, steps, subscribers=0), use)
    return kept[0]


def verify(step: Drive, logs: Sequence[bytes]) -> None:
    """Check that all logs hold the same bytes: each message of each client once, in its order, as it was sent.

    Raises:
        RunFailed: they do not.
    """
    if any(log != logs[0] for log in logs):
        raise RunFailed("the nodes' message logs differ")
    sent: Counter[int] = Counter()
    for number, data in enumerate(logs[0].splitlines(), 1):
        line = _decode_line(data)
        client = line.sender_id
        sent[client] += 1
        n = sent[client]
        expected = f"{client}:{n} ".ljust(step.size, "x")[: step.size]
        if (line.seq_no, line.payload) != (number, expected) or not line.msg_id.endswith(f"-{n}"):
            raise RunFailed(f"line {number} of the message logs is {line}, expected message {n} of client {client}")
    if sent.total() != step.count:
        raise RunFailed(f"{sent.total()} messages are in the message logs, {step.count} were acknowledged")


@dataclass(frozen=True, slots=True)
class Case:
    """One case of the section. rate_floor, cost_floor, time_floor: the figures of the bare pipeline to compare with."""

    name: str
    clients: int
    in_flight: int
    line_messages: int
    count: int
    via: tuple[NodeId, ...] = (LEADER_OF_THREE,)
    rate_floor: str = ""
    cost_floor: str = ""
    time_floor: str = ""


CASES: Final = (
    Case("1 client in closed loop", 1, 1, 1, 4_000, time_floor=floor.ONE),
    Case("64 clients in closed loop", 64, 1, 1, 80_000, NODES, rate_floor=floor.SIXTY_FOUR),
    Case("1 client, one message a line", 1, WINDOW, 1, 400_000, rate_floor=floor.SINGLE),
    Case(
        f"1 client, {LINE_MESSAGES} messages a line",
        1,
        WINDOW,
        LINE_MESSAGES,
        400_000,
        rate_floor=floor.PIPELINED,
        cost_floor=floor.PIPELINED_COST,
    ),
)


def bare(into: Collected, runs: Runs, quick: bool) -> None:
    """Measure closed loops, single lines and batches, and compare them with the bare pipeline of the same run."""
    try:
        program = str(compiled(runs.folder))
    except Unavailable as reason:
        runs.tell(f"section bare is left out: {reason}")
        return
    for case in CASES:
        count = case.count // 4 if quick else case.count
        driven = drive(runs, Drive(program, case.clients, case.in_flight, case.line_messages, count, case.via))
        into.add("bare", case.name, "messages/s", count / driven.seconds, "more", case.rate_floor)
        into.add("bare", case.name, "CPU µs/message", driven.nodes_cpu_s * 1e6 / count, floor=case.cost_floor)
        if case.in_flight == 1:
            into.add("bare", case.name, "p50 ms", driven.p50_ms, floor=case.time_floor)
            into.add("bare", case.name, "p99 ms", driven.p99_ms)
