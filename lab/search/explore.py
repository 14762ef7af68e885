"""`run_lab.py explore`: try every order of events within small bounds, by a breadth-first search of cluster states.

Each node runs nodeproc.core unchanged. A move is one event: a node receives a frame, an fdatasync ends, the client
sends, a process or machine stops or starts, a node becomes candidate for the next term, a leader changes the members, a
frame or link is lost, a timer fires. Every order of moves is tried; clusters with equal content are one state. In each
state the invariants of lab.search.explore_cluster must hold; the first violation is reported with the shortest sequence
of moves that leads to it.

docs/exploring.md and the output of each run describe the bounds and what is left out.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import time
from array import array
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from lab import runs, values
from lab.search.explore_cluster import Bounds, Clusters, Move, World, list_text
from lab.search.explore_node import Outcome, Violation
from lab.search.failure import as_mutant
from nodeproc.core.messages import Append, Batch, Input, MembersMark, NodeId, Position, Record

TELL_EVERY_S: Final = 5.0
DEFAULTS: Final = Bounds()


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of a search.

    states, transitions: numbers of distinct states and of moves tried.
    depth: number of moves from the start to the farthest state.
    exhausted: everything within the bounds was tried.
    trace: the shortest sequence of moves to a violation; empty if there is none.
    problem: the violation at its end; "" if there is none.
    """

    states: int
    transitions: int
    depth: int
    exhausted: bool
    trace: tuple[Move, ...] = ()
    problem: str = ""


def search(clusters: Clusters, depth: int | None, tell: Callable[[str], None]) -> Finding:
    """Search all states within the bounds, the nearest first.

    Args:
        depth: maximum number of moves; None for no limit.
        tell: called with a progress line every few seconds.
    """
    first = clusters.first()
    seen: dict[World, int] = {first: 0}
    parents, steps = array("q", [0]), array("q", [0])
    """For each state, by number: the state from which it was reached first, and the number of that move."""
    moves: dict[Move, int] = {}
    level, reached, transitions = [first], 0, 0
    last_told = time.monotonic()
    while level and (depth is None or reached < depth):
        next_level: list[World] = []
        for world in level:
            for move in clusters.moves(world):
                transitions += 1
                try:
                    after = clusters.after(world, move)
                except Violation as error:
                    trace = (*_path(list(moves), parents, steps, seen[world]), move)
                    return Finding(len(seen), transitions, len(trace), False, trace, str(error))
                if after not in seen:
                    parents.append(seen[world])
                    steps.append(moves.setdefault(move, len(moves)))
                    seen[after] = len(seen)
                    next_level.append(after)
            if time.monotonic() - last_told >= TELL_EVERY_S:
                last_told = time.monotonic()
                tell(f"depth {reached}, {len(seen)} states, {transitions} transitions")
        level = next_level
        reached += bool(level)
    return Finding(len(seen), transitions, reached, not level)


def _path(moves: list[Move], parents: array[int], steps: array[int], state: int) -> list[Move]:
    """Return the moves from the first state to this one."""
    path = []
    while state:
        path.append(moves[steps[state]])
        state = parents[state]
    return path[::-1]


# ---- output -------------------------------------------------------------------------------------------


def trace_lines(clusters: Clusters, finding: Finding) -> list[str]:
    """Return a finding's trace: one line for each move, followed by the nodes' reactions."""
    world, lines = clusters.first(), []
    for number, move in enumerate(finding.trace, 1):
        lines.append(f"{number:3} {move_line(clusters, world, move)}")
        with contextlib.suppress(Violation):  # That of the last move, which is added at the end.
            world, outcomes = clusters.follow(world, move)
            lines += [f"      {line}" for a, outcome in outcomes for line in outcome_lines(clusters, a, outcome)]
    return [*lines, f"    {finding.problem}"]


def move_line(clusters: Clusters, world: World, move: Move) -> str:
    """Return a move that is possible in a state, on one line."""
    do, a, peer = move
    if do in ("take", "take_late", "lose"):
        frame = message_line(clusters.locals.messages.things[clusters.queue(world, peer, a)[0]])
        if do == "lose":
            return f"lost between node_{peer} and node_{a}: {frame}"
        late = ", after an election timeout in which it heard nothing," if do == "take_late" else ""
        return f"node_{a}{late} receives from node_{peer}: {frame}"
    if do == "submit":
        return f"the client sends message {clusters.next_n(world, a)} to node_{a}"
    if do == "relink":
        lost = len(clusters.queue(world, peer, a))
        return f"the link from node_{peer} to node_{a} breaks and is opened again; frames lost: {lost}"
    return {
        "exchange": f"node_{a} receives all frames from node_{peer}, which receives the answers, until none is left",
        "add": f"node_{a} is asked to add node_{peer}, and becomes candidate for that change",
        "give_vote": f"node_{a} becomes candidate to give node_{peer} a vote",
        "remove": f"node_{a} is asked to remove node_{peer}, and becomes candidate for that change",
        "sync": f"node_{a}'s fdatasync ends",
        "stand": f"node_{a} becomes candidate for the next term",
        "fire": f"node_{a}'s timer fires",
        "kill": f"node_{a}'s process is killed; its written data stays",
        "lose_power": f"node_{a} loses power; its unsynced data and its message log are lost",
        "start": f"node_{a} starts",
    }[do]


def outcome_lines(clusters: Clusters, a: NodeId, outcome: Outcome) -> list[str]:
    """Return lines about the frames that a node sent and delivered; one line for a frame to several peers."""
    receivers: dict[int, list[NodeId]] = {}
    for peer, message in outcome.sends:
        receivers.setdefault(message, []).append(peer)
    lines = [
        f"node_{a} to {', '.join(f'node_{peer}' for peer in peers)}: "
        f"{message_line(clusters.locals.messages.things[message])}"
        for message, peers in receivers.items()
    ]
    return lines + [f"node_{a} delivers {clusters.batch(record)}" for record in outcome.delivered]


def message_line(message: Input) -> str:
    """Return a frame on one line, with its records in human-readable form."""
    config = message.__struct_config__
    fields = []
    for name in message.__struct_fields__:
        value = getattr(message, name)
        if isinstance(message, Append) and name == "records":
            value = "[" + ", ".join(map(_record_text, message.records)) + "]"
        elif isinstance(value, Position):
            value = f"{value.term}:{value.seq_no}"
        fields.append(f"{name}={value}")
    return f"{config.tag or type(message).__name__} {' '.join(fields)}".rstrip()


def _record_text(record: Record) -> str:
    header = record.header
    if isinstance(header, Batch):
        return f"message {header.first} of term {header.term}"
    members = f", {list_text(header.members)}" if isinstance(header, MembersMark) else ""
    return f"mark of term {header.term} after {header.after}{members}"


# ---- the command --------------------------------------------------------------------------------------


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `run_lab.py explore`: the bounds."""
    for name, least, most, description in (
        ("nodes", 1, 5, "number of members"),
        ("messages", 0, 9, "number of chat messages of one client"),
        ("crashes", 0, 9, "number of killed processes and power losses together"),
        ("elections", 0, 9, "how often a node becomes candidate"),
        ("silences", 0, 9, "how often a live leader is suspected"),
        ("losses", 0, 9, "number of lost frames and links together"),
        ("timeouts", 0, 9, "how often a timer fires; if above 0, times are part of the states and polls are held"),
        ("changes", 0, 9, "how often a leader begins to add a node, to give it a vote, or to remove a member"),
        ("newcomers", 0, 2, "number of nodes that are no members at the start"),
    ):
        parser.add_argument(
            f"--{name}",
            type=values.between(least, most),
            default=getattr(DEFAULTS, name),
            metavar=name[0].upper(),
            help=f"{description} (%(default)s)",
        )
    parser.add_argument("--depth", type=values.between(1, 10_000), metavar="D", help="limit of moves (no limit)")
    parser.add_argument(
        "--slow-disks", action="store_true", help="delay the end of an fdatasync also after the last crash"
    )
    parser.add_argument(
        "--exchanges",
        action="store_true",
        help="a move delivers all frames between two nodes and the answers to them, instead of one frame",
    )
    parser.add_argument("--boot", action="store_true", help="start without a leader, before the first election")
    values.add_mutant(parser)


def main(options: argparse.Namespace) -> int:
    """Explore and print the result; return 0, or 1 for a violation."""
    bounds = Bounds(**{name: getattr(options, name) for name in Bounds._fields})
    with as_mutant(options.mutant) as mutant:
        if mutant is not None:
            print(f"mutant {mutant.name} ({mutant.rule}): {mutant.says}")
        return _explore(bounds, options.depth)


def _explore(bounds: Bounds, depth: int | None) -> int:
    print(bounds_line(bounds, depth))
    begun = time.monotonic()
    clusters = Clusters(bounds)
    finding = search(clusters, depth, lambda line: print(line, file=sys.stderr, flush=True))
    seconds = time.monotonic() - begun
    print(
        f"states {finding.states}, transitions {finding.transitions}, depth {finding.depth}, "
        f"{'exhausted' if finding.exhausted else 'not exhausted'}, {seconds:.1f} s"
    )
    if finding.problem:
        print("\n".join(trace_lines(clusters, finding)))
        return runs.BROKEN
    print("no invariant broke")
    return runs.PASS


def bounds_line(bounds: Bounds, depth: int | None) -> str:
    """Return the line that describes the bounds."""
    start = "before the first election" if bounds.boot else f"node_{bounds.nodes} leading term 1"
    disks = "always" if bounds.slow_disks else "until the last crash, immediate after it"
    changes = f", changes {bounds.changes}, newcomers {bounds.newcomers}" if bounds.changes else ""
    frames = "; frames between two nodes delivered together" if bounds.exchanges else ""
    most = "" if depth is None else f", depth {depth}"
    return (
        f"every order from {start}: nodes {bounds.nodes}, messages {bounds.messages}, crashes {bounds.crashes}, "
        f"elections {bounds.elections}, silences {bounds.silences}, losses {bounds.losses}, "
        f"timeouts {bounds.timeouts}{changes}{most}{frames}; fdatasync delayed {disks}"
    )
