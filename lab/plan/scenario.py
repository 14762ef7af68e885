"""A scenario: a cluster, a load, steps and expectations, read from YAML and written back resolved.

docs/scenarios.md is the reference of the format. load() reads a file, encode() writes what was run, seed included, in
the same format.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from msgspec import Struct

from lab.plan.expectation import RunExpectation
from lab.plan.step import Link, Repeat, StepAny
from lab.plan.words import Duration, Target
from nodeproc.core.messages import NodeId


class Cluster(Struct, frozen=True, forbid_unknown_fields=True):
    """The nodes. Times left out are the node's own defaults (None).

    nodes: how many; their ids are 1, 2, 3, …
    start: nodes that are started before the first step; the run waits until they answer and, when they are a majority,
        until they agree on a leader.
    priorities: node id -> priority; a node's id where left out.
    log_level: DEBUG is needed for events of that level (heartbeats, buffering).
    limits: as in a node's configuration.
    """

    nodes: int = 3
    start: Literal["all", "none"] | tuple[NodeId, ...] = "all"
    priorities: dict[int, int] = {}
    heartbeat_interval: Duration = Duration(0.1)
    election_timeout: Duration = Duration(0.5)
    answer_timeout: Duration | None = None
    coordinator_timeout: Duration | None = None
    join_timeout: Duration | None = None
    durability: Literal["fsync", "os"] = "fsync"
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    limits: dict[str, int] = {}

    @property
    def ids(self) -> tuple[NodeId, ...]:
        return tuple(range(1, self.nodes + 1))

    @property
    def started_ids(self) -> tuple[NodeId, ...]:
        """Nodes that are started before the first step."""
        if isinstance(self.start, tuple):
            return tuple(sorted(self.start))
        return self.ids if self.start == "all" else ()


class Load(Struct, frozen=True, forbid_unknown_fields=True):
    """Many clients that send by themselves between `load: start` and `load: stop`, or until count or duration are reached.

    clients: how many; ids are first_client, first_client + 1, …
    via: the nodes that they use, in turn; each goes to another one of them while its own is down.
    rate: messages a second, all clients added: open loop, sent at intended times whatever the answers do.
    in_flight: messages of one client without outcome: closed loop. Exactly one of rate and in_flight is set.
    size: bytes of each payload.
    count: messages, all clients added; duration: from the start. Neither: until stopped.
    deadline: past it a message's outcome is unknown.
    workers: worker processes; 0: as many as the rate needs.
    """

    clients: int = 1
    first_client: int = 1001
    via: Target = "all"
    rate: float | None = None
    in_flight: int | None = None
    size: int = 100
    count: int | None = None
    duration: Duration | None = None
    deadline: Duration = Duration(30)
    workers: int = 0

    @property
    def open_loop(self) -> bool:
        return self.rate is not None


class Bounds(Struct, frozen=True, forbid_unknown_fields=True):
    """What rule A9 promises of this scenario, stated before the run.

    recovery: with all healed, messages are acknowledged again within this time.
    convergence: with all healed and nothing more sent, all nodes have delivered the same within this time.
    """

    recovery: Duration = Duration(5)
    convergence: Duration = Duration(15)


class Scenario(Struct, frozen=True, forbid_unknown_fields=True):
    """One story.

    name: as the file is called, without .yml.
    subscribers: clients that read everything from seq_no 1 on from start to end, on node 1, 2, … in turn (A8).
    seed: all random choices of a run follow from it; None: drawn when the run starts.
    """

    name: str
    description: str
    steps: tuple[StepAny, ...]
    cluster: Cluster = Cluster()
    load: Load | None = None
    expectations: tuple[RunExpectation, ...] = ()
    subscribers: int = 1
    bounds: Bounds = Bounds()
    seed: int | None = None

    def unrolled(self) -> Iterator[StepAny]:
        """The steps as they are done, `repeat` written out; a step's index is its place here."""
        return _unrolled(self.steps)

    @property
    def proxied(self) -> bool:
        """Frames between nodes must pass the lab's proxy."""
        return any(isinstance(step, Link) for step in self.unrolled())


def _unrolled(steps: tuple[StepAny, ...]) -> Iterator[StepAny]:
    for step in steps:
        if isinstance(step, Repeat):
            for _ in range(step.times):
                yield from _unrolled(step.steps)
        else:
            yield step


def load(path: Path | str, *, text: str | None = None) -> Scenario:
    """Read and check a scenario file.

    Raises:
        ConfigError: unreadable, not YAML, or not a scenario; names file, line, column, found and allowed.
    """
    from lab.plan.reading import read_scenario

    return read_scenario(path, text=text)


def encode(scenario: Scenario) -> str:
    """The scenario as YAML, every default written out; load() reads it back equal."""
    from lab.plan.reading import write_scenario

    return write_scenario(scenario)
