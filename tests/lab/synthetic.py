"""Honest runs made by hand, small to doctor and large to measure.

build_run() writes a run directory as three nodes, a load and one subscriber would leave it: the leader, node 3, is
killed in the middle and node 2 takes over. doctor_lines() and its neighbours spoil files of a finished run.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path
from zlib import crc32

import msgspec

from lab.payloads import payload
from lab.plan import scenario as plan
from lab.plan.workload import FIRST_SUBSCRIBER
from lab.rows import (
    Acked,
    Convergence,
    Expectation,
    FaultRow,
    Gen,
    HistoryRow,
    Invoke,
    Meta,
    NodeExit,
    NodeUse,
    Phase,
    Shown,
    encode_row,
)
from lab.rundir import RunDir
from nodeproc.core.messages import Line

MS = 1_000_000
T_START = 1_000 * MS
NODES = (1, 2, 3)
SIZE = 100
SEED = 7
SUBSCRIBER = FIRST_SUBSCRIBER
_lines_of = msgspec.json.Encoder().encode_lines

SCENARIO = """\
name: synthetic
description: made by hand
seed: 7
load: {clients: 3, first_client: 101, rate: 1000}
steps:
  - expect: {leader: 3}
  - kill: leader
  - load: start
  - load: stop
expectations:
  - numbering_continues: {over_terms: 2}
"""


def build_run(path: Path, *, batches: int = 40, batch: int = 5, clients: int = 3, scenario: str = SCENARIO) -> RunDir:
    """Write an honest run: `clients` sessions take turns, each sends `batch` messages and has them acknowledged.

    Args:
        path: an empty directory.
        batches: all clients added; half of them come in term 1, the others, 100 ms later, in term 2.
    """
    run, scenario = RunDir(path), scenario.replace("clients: 3,", f"clients: {clients},")
    for node in NODES:
        run.message_log(node).parent.mkdir(parents=True)
    logs = [run.message_log(node).open("wb") for node in NODES]
    steps = plan.load("synthetic.yml", text=scenario).unrolled()
    with run.history.open("wb") as history:
        for rows, body in _story(batches, batch, clients):
            history.write(b"".join(map(encode_row, rows)))
            for log in logs:
                log.write(body)
        # Behind all others, so that their line numbers are easy to tell.
        history.writelines(encode_row(Phase(_time(batches, batches), "step", step.show())) for step in steps)
    for log in logs:
        log.close()
    _write_events(run, batches, batch)
    _write_papers(run, batches, batch, scenario)
    return run


def _time(turn: int, batches: int) -> int:
    """When a batch is sent: one each millisecond, and 100 ms of silence in the middle."""
    return T_START + (turn + (100 if turn >= batches // 2 else 0)) * MS


def _killed(batches: int) -> int:
    """When the leader is killed."""
    return _time(batches // 2 - 1, batches) + MS


def _end(batches: int) -> int:
    """When the run ends."""
    return max(_time(batches, batches), _killed(batches) + 200 * MS) + 1000 * MS


def _story(batches: int, batch: int, clients: int) -> Iterator[tuple[list[HistoryRow], bytes]]:
    """Rows and log bytes of one batch after the other."""
    for turn in range(batches):
        t = _time(turn, batches)
        client = 101 + turn % clients
        session, n = f"session{client}", 1 + turn // clients * batch
        first = 1 + turn * batch
        last = first + batch - 1
        term = 1 if turn < batches // 2 else 2
        lines = [
            Line(first + i, term, client, f"{session}-{n + i}", 1.7e9, payload(SEED, client, n + i, SIZE))
            for i in range(batch)
        ]
        body = _lines_of(lines)
        rows: list[HistoryRow] = [
            Invoke(t, client, session, n, batch, t, gen=Gen(SEED, SIZE)),
            Acked(t + MS // 2, session, n + batch - 1, last),
            Shown(t + MS // 2, SUBSCRIBER, first, last, crc32(body)),
        ]
        yield rows, body
    yield [Phase(_time(batches, batches), "converged")], b""


def _event(t: int, node: int, event: str, **fields: object) -> bytes:
    return msgspec.json.encode({"t_ns": t, "node": node, "event": event, **fields}) + b"\n"


def _write_events(run: RunDir, batches: int, batch: int) -> None:
    killed = _killed(batches)
    half = batches // 2 * batch
    for node in NODES:
        events = [_event(1, node, "starting", term=0, last_seq=0)]
        if node == 3:
            events.append(_event(2, node, "became_leader", term=1, last_seq=0))
            events.append(_event(killed + 150 * MS, node, "starting", term=1, last_seq=half))
        else:
            events.append(_event(3, node, "new_coordinator", term=1, leader=3))
            events.append(_event(killed + 20 * MS, node, "leader_timeout", leader=3, reason="gone"))
        if node == 2:
            events.append(_event(killed + 40 * MS, node, "became_leader", term=2, last_seq=half))
        else:
            events.append(_event(killed + 160 * MS, node, "new_coordinator", term=2, leader=2))
        events.append(_event(_end(batches), node, "stopping", reason="SIGTERM"))
        run.events(node).write_bytes(b"".join(events))
        run.node_log(node).write_text("2024-10-21 12:34:58 - node - INFO - Starting node...\n")


def _write_papers(run: RunDir, batches: int, batch: int, scenario: str) -> None:
    run.scenario.write_text(scenario)
    killed = _killed(batches)
    back = killed + 155 * MS
    faults = [
        FaultRow("kill", 3, "leader", killed, killed + MS, {"signal": 9, "exit": -9}, True, 1, back, "kill: leader"),
        FaultRow("start", 3, "down", killed + 150 * MS, back, {"ready_s": 0.005}, True, -1),
    ]
    run.faults.write_bytes(b"".join(map(encode_row, faults)))
    t_end = _end(batches)
    ends: dict[int, tuple[NodeExit, ...]] = {node: (NodeExit(t_end, 0, True),) for node in NODES}
    ends[3] = (NodeExit(killed + MS // 2, -9, True), *ends[3])
    use = {node: NodeUse(len(ends[node]), 0.5, 50 << 20, ends[node]) for node in NODES}
    delivered = dict.fromkeys(NODES, batches * batch)
    run.write_meta(
        Meta(
            scenario="synthetic",
            kind="live",
            links="direct",
            seed=SEED,
            started_utc="2023-11-14T22:13:20Z",
            versions={},
            interpreter="CPython",
            host={},
            cluster={"nodes": 3, "durability": "fsync"},
            t_start=T_START,
            t_end=t_end,
            t_healed=back,
            recovery_bound_s=5.0,
            convergence=Convergence(15.0, True, 0.01, delivered, 2),
            nodes=use,
            samples=(),
            expectations=(Expectation(0, "leader: 3", True, "1 names 3", T_START),),
            load={},
            proxy={},
        )
    )


# ---- doctoring -----------------------------------------------------------------------------------


def doctor_lines(path: Path, change: Callable[[list[bytes]], None]) -> None:
    """Change a file as a list of its lines, newlines included."""
    lines = path.read_bytes().splitlines(keepends=True)
    change(lines)
    path.write_bytes(b"".join(lines))


def doctor_all_logs(run: RunDir, change: Callable[[list[bytes]], None]) -> None:
    """The same change in every node's log."""
    for node in NODES:
        doctor_lines(run.message_log(node), change)


def doctor_meta(run: RunDir, **fields: object) -> None:
    """Replace fields of meta.json."""
    run.write_meta(msgspec.structs.replace(run.read_meta(), **fields))


def main() -> None:
    parser = argparse.ArgumentParser(description="Write a large honest run, to measure how fast it is judged.")
    parser.add_argument("path", type=Path)
    parser.add_argument("--messages", type=int, default=1_000_000)
    parser.add_argument("--batch", type=int, default=100)
    parser.add_argument("--clients", type=int, default=6)
    args = parser.parse_args()
    args.path.mkdir(parents=True)
    build_run(args.path, batches=args.messages // args.batch, batch=args.batch, clients=args.clients)


if __name__ == "__main__":
    main()
