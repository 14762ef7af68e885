"""Try every order of events within small bounds: a breadth-first search through the states of a cluster of real cores.

Each node is nodeproc.core, unchanged. What can happen next in a cluster: a frame is taken, an fdatasync is done, the
client sends, a process or machine stops or starts, a node stands for the next term, a frame or a link is lost, a timer
fires. Every such order is tried; clusters with equal content are one state. In each state the rules of
lab.search.explore_cluster must hold; the first that does not is told with the shortest way to it.

What is bounded and what is left out is told in docs/exploring.md and with every result.
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

from lab.search.explore_cluster import Bounds, Clusters, Move, World
from lab.search.explore_node import Outcome, Violation
from nodeproc.core.messages import Append, Batch, Input, NodeId, Position, Record

TELL_EVERY_S: Final = 5.0
DEFAULTS: Final = Bounds()


@dataclass(frozen=True, slots=True)
class Finding:
    """What a search has come to.

    states, transitions: distinct clusters seen, and moves tried.
    depth: moves from the start to the farthest cluster seen.
    exhausted: there is nothing within the bounds that was not tried.
    trace: the shortest way to a violation; empty if there is none.
    problem: what does not hold at its end.
    """

    states: int
    transitions: int
    depth: int
    exhausted: bool
    trace: tuple[Move, ...] = ()
    problem: str = ""


def search(clusters: Clusters, depth: int | None, tell: Callable[[str], None]) -> Finding:
    """Go through everything within the bounds, the nearest first.

    Args:
        depth: go no farther than so many moves; None: until nothing is left.
        tell: takes a line about the progress now and then.
    """
    first = clusters.first()
    seen: dict[World, int] = {first: 0}
    parents, ways = array("q", [0]), array("q", [0])
    """Of each state, by number: from which one it was reached, and by which of MOVES."""
    moves: dict[Move, int] = {}
    level, reached, transitions = [first], 0, 0
    told = time.monotonic()
    while level and (depth is None or reached < depth):
        behind: list[World] = []
        for world in level:
            for move in clusters.moves(world):
                transitions += 1
                try:
                    after = clusters.after(world, move)
                except Violation as error:
                    trace = (*_way(list(moves), parents, ways, seen[world]), move)
                    return Finding(len(seen), transitions, len(trace), False, trace, str(error))
                if after not in seen:
                    parents.append(seen[world])
                    ways.append(moves.setdefault(move, len(moves)))
                    seen[after] = len(seen)
                    behind.append(after)
            if time.monotonic() - told >= TELL_EVERY_S:
                told = time.monotonic()
                tell(f"depth {reached}, {len(seen)} states, {transitions} transitions")
        level = behind
        reached += bool(level)
    return Finding(len(seen), transitions, reached, not level)


def _way(moves: list[Move], parents: array[int], ways: array[int], state: int) -> list[Move]:
    """The moves from the first state to this one."""
    way = []
    while state:
        way.append(moves[ways[state]])
        state = parents[state]
    return way[::-1]


# ---- for people ---------------------------------------------------------------------------------------


def trace_lines(clusters: Clusters, finding: Finding) -> list[str]:
    """A finding's trace, a line a move, what the nodes did below it."""
    world, lines = clusters.first(), []
    for number, move in enumerate(finding.trace, 1):
        lines.append(f"{number:3} {_move_line(clusters, world, move)}")
        with contextlib.suppress(Violation):  # The last move's: told below.
            world, outcomes = clusters.follow(world, move)
            lines += [f"      {line}" for a, outcome in outcomes for line in _outcome_lines(clusters, a, outcome)]
    return [*lines, f"    {finding.problem}"]


def _move_line(clusters: Clusters, world: World, move: Move) -> str:
    do, a, peer = move
    if do in ("take", "take_late", "lose"):
        frame = message_line(clusters.locals.messages.things[clusters.queue(world, peer, a)[0]])
        if do == "lose":
            return f"lost between node_{peer} and node_{a}: {frame}"
        late = ", after an election timeout in which it heard nothing," if do == "take_late" else ""
        return f"node_{a}{late} takes from node_{peer}: {frame}"
    if do == "submit":
        return f"the client sends message {clusters.next_n(world, a)} to node_{a}"
    if do == "relink":
        lost = len(clusters.queue(world, peer, a))
        return f"the link from node_{peer} to node_{a} breaks and is opened again; frames lost: {lost}"
    return {
        "sync": f"node_{a}'s fdatasync is done",
        "stand": f"node_{a} stands for the next term",
        "fire": f"node_{a}'s timer fires",
        "kill": f"node_{a}'s process is killed; what it has written stays",
        "lose_power": f"node_{a} loses power; what is not synced is gone, and its message log",
        "start": f"node_{a} starts",
    }[do]


def _outcome_lines(clusters: Clusters, a: NodeId, outcome: Outcome) -> list[str]:
    """What a node sent and delivered; one line for a frame that goes to several."""
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
    """A frame in one line, records as what they hold."""
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
    return f"mark of term {header.term} after {header.after}"


# ---- the command --------------------------------------------------------------------------------------


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `run_lab.py explore`: the bounds."""
    for name, least, most, what in (
        ("nodes", 1, 5, "members of the cluster"),
        ("messages", 0, 9, "chat messages of one client"),
        ("crashes", 0, 9, "processes killed and machines that lose power, together"),
        ("elections", 0, 9, "how often a node stands for the next term"),
        ("silences", 0, 9, "how often a leader that lives is taken for lost"),
        ("losses", 0, 9, "frames and links lost, together"),
        ("timeouts", 0, 9, "how often a timer fires; with any, times are told apart and polls are held"),
    ):
        parser.add_argument(
            f"--{name}",
            type=_between(least, most),
            default=getattr(DEFAULTS, name),
            metavar=name[0].upper(),
            help=f"{what} (%(default)s)",
        )
    parser.add_argument("--depth", type=_between(1, 10_000), metavar="D", help="at most so many moves (no limit)")
    parser.add_argument(
        "--slow-disks", action="store_true", help="an fdatasync takes its time also after the last crash"
    )
    parser.add_argument("--boot", action="store_true", help="begin without a leader, not behind the first election")
    parser.add_argument("--mutant", metavar="NAME", help="break one rule (lab/mutants): is it noticed?")


def _between(least: int, most: int) -> Callable[[str], int]:
    def number(text: str) -> int:
        if not text.isdecimal() or not least <= int(text) <= most:
            raise argparse.ArgumentTypeError(f"found {text!r}, allowed {least}..{most}")
        return int(text)

    return number


def main(options: argparse.Namespace) -> int:
    """Explore and tell what was found: 0 nothing, 1 a violation, 64 no such mutant."""
    bounds = Bounds(**{name: getattr(options, name) for name in Bounds._fields})
    with contextlib.ExitStack() as stack:
        if options.mutant is not None:
            from lab.mutants.catalogue import mutated

            try:
                mutant = stack.enter_context(mutated(options.mutant))
            except ValueError as error:
                print(error, file=sys.stderr)
                return 64
            print(f"mutant {mutant.name} ({mutant.rule}): {mutant.says}")
        return _explore(bounds, options.depth)


def _explore(bounds: Bounds, depth: int | None) -> int:
    print(_bounds_line(bounds, depth))
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
        return 1
    print("no invariant broke")
    return 0


def _bounds_line(bounds: Bounds, depth: int | None) -> str:
    """What is tried, for those who read only the result."""
    start = "before the first election" if bounds.boot else f"node_{bounds.nodes} leading term 1"
    disks = "always" if bounds.slow_disks else "until the last crash, then at once"
    most = "" if depth is None else f", depth {depth}"
    return (
        f"every order from {start}: nodes {bounds.nodes}, messages {bounds.messages}, crashes {bounds.crashes}, "
        f"elections {bounds.elections}, silences {bounds.silences}, losses {bounds.losses}, "
        f"timeouts {bounds.timeouts}{most}; fdatasync takes its time {disks}"
    )
