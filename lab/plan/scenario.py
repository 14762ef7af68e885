"""A scenario: a cluster, a load, steps and expectations, read from YAML and written back.

docs/scenarios.md is the reference of the format. load() reads a file; encode() writes a scenario in the same format,
with its seed and every default.
"""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, TypeAlias

import yaml
from msgspec import Meta, Struct, structs

from lab.engines import catalogue
from lab.plan.command import split_command
from lab.plan.expectation import RUN_EXPECTATIONS, LatencyIs, Memory, RunExpectation, Throughput, Unavailable
from lab.steps import ChangeMembers, Step, steps_by_word
from lab.steps.entry import Entry, Setting
from lab.steps.expect import read_expectations
from lab.steps.repeat import MAX_STEPS
from lab.steps.writing import brief, plain
from lab.words import LARGEST_PAYLOAD_BYTES, ClientId, Count, Duration, Period, Target, decode_word
from nodeproc.config import Limits, check_limits
from nodeproc.core.messages import NodeId
from nodeproc.yamlfile import Place, parse, show_place

MAX_NODES = 9
MAX_SEED = 2**31 - 1
MAX_PRIORITY = 2**31 - 1
CLUSTER_TIMES = (Duration(0.001), Duration(3600))
"""The least and the greatest time that a node accepts."""
NAME_MAX = 100
"""Characters of a scenario's name."""
Name: TypeAlias = Annotated[str, Meta(max_length=NAME_MAX)]
Description: TypeAlias = Annotated[str, Meta(max_length=4000)]
Subscribers: TypeAlias = Annotated[int, Meta(ge=0, le=100)]
Seed: TypeAlias = Annotated[int, Meta(ge=0, le=MAX_SEED)]
MAX_SIM_MESSAGES = 200_000
MAX_SIM_IN_FLIGHT = 2_000
"""Of one client."""


class Cluster(Struct, frozen=True, forbid_unknown_fields=True):
    """The nodes. A time that is None has the node's own default.

    nodes: their number; their ids are 1, 2, 3, …
    founders: the first of them, which are the members at the beginning; the step `add_node` starts and adds the others.
        None: all.
    start: nodes that are started before the first step; the run waits until they answer and, if they are a majority,
        until they agree on a leader.
    priorities: node id -> priority; the default is the node's id.
    log_level: DEBUG is needed for events of that level (heartbeats, buffering).
    limits: as in a node's configuration.
    command: the program that is started in place of the lab's own node, see lab.plan.command; None: the lab's own.
    directory: the working directory of the command. In the file it is relative to the scenario file; load() makes it
        absolute.
    engine: the replicated store, NAME@VERSION, that keeps the messages in place of the lab's own nodes; see
        lab.engines. engine_options: its settings.
    client_token: the token that the nodes require of every client; the lab's own clients send it.
    network: what obeys rules of links in a live run: the lab's proxy, or the packet filter of namespaces of the run.
    disks: what injects disk faults and power losses in a live run: the lab's layer inside the nodes' processes, where a
        step needs it; or supervisors, which stand between the nodes' system calls and the kernel (lab.live.supervise).
    writeback: under supervisors, what was not synced for this long is durable all the same; None: never.
    """

    nodes: Annotated[int, Meta(ge=1, le=MAX_NODES)] = 3
    founders: Annotated[int, Meta(ge=1, le=MAX_NODES)] | None = None
    start: Literal["all", "none"] | tuple[NodeId, ...] = "all"
    priorities: dict[int, int] = {}
    heartbeat_interval: Period = Duration(0.1)
    election_timeout: Period = Duration(0.5)
    answer_timeout: Period | None = None
    coordinator_timeout: Period | None = None
    join_timeout: Period | None = None
    durability: Literal["fsync", "os"] = "fsync"
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    limits: dict[str, int] = {}
    command: str | tuple[str, ...] | None = None
    directory: str = ""
    engine: str = ""
    engine_options: dict[str, str] = {}
    client_token: Annotated[str, Meta(max_length=256)] = ""
    network: Literal["proxy", "kernel"] = "proxy"
    disks: Literal["layered", "supervised"] = "layered"
    writeback: Period | None = None

    @property
    def is_foreign(self) -> bool:
        """True if `command` or `engine` starts the nodes: the lab knows only their documented interface."""
        return self.command is not None or self.engine != ""

    @property
    def ids(self) -> tuple[NodeId, ...]:
        return tuple(range(1, self.nodes + 1))

    @property
    def founder_ids(self) -> tuple[NodeId, ...]:
        """The members at the beginning."""
        return self.ids if self.founders is None else self.ids[: self.founders]

    @property
    def started_ids(self) -> tuple[NodeId, ...]:
        """Nodes that are started before the first step."""
        if isinstance(self.start, tuple):
            return tuple(sorted(self.start))
        return self.founder_ids if self.start == "all" else ()


class Load(Struct, frozen=True, forbid_unknown_fields=True):
    """Many clients that send on their own from `load: start` until `load: stop`, count or duration.

    clients: their number; their ids are first_client, first_client + 1, …
    via: the nodes that the clients use, in turn; a client whose node is down goes to another one of them.
    rate: messages a second of all clients together. Open loop: each message is sent at its intended time, whether or
        not earlier ones have their outcome.
    in_flight: messages without outcome that each client keeps. Closed loop. Exactly one of rate and in_flight is set.
    size: bytes of each payload.
    count: messages, all clients added; duration: from the start. Neither: until stopped.
    deadline: past it a message's outcome is unknown.
    workers: worker processes; 0: as many as the rate needs.
    """

    clients: Annotated[int, Meta(ge=1, le=20_000)] = 1
    first_client: ClientId = 1001
    via: Target = "all"
    rate: Annotated[float, Meta(ge=0.001, le=10_000_000)] | None = None
    in_flight: Annotated[int, Meta(ge=1, le=1_000_000)] | None = None
    size: Annotated[int, Meta(ge=1, le=LARGEST_PAYLOAD_BYTES)] = 100
    count: Count | None = None
    duration: Period | None = None
    deadline: Period = Duration(30)
    workers: Annotated[int, Meta(ge=0, le=64)] = 0

    @property
    def planned(self) -> int:
        """The number of messages from one start on; 0 if only a stop ends the load."""
        if self.count is not None:
            return self.count
        return math.ceil(min((self.rate or 0.0) * (self.duration or 0.0), sys.maxsize))


class Bounds(Struct, frozen=True, forbid_unknown_fields=True):
    """The bounds by which A9 judges this scenario.

    recovery: once everything is healed, messages are acknowledged again within this time.
    convergence: once everything is healed and no message is sent, all nodes have delivered the same messages within
        this time.
    """

    recovery: Period = Duration(5)
    convergence: Period = Duration(15)


class Scenario(Struct, frozen=True, forbid_unknown_fields=True):
    """One scenario.

    name: the name of the file without .yml.
    tags: words by which the command line selects scenarios.
    subscribers: number of clients that read all messages during the whole run, on node 1, 2, … in turn (A8).
    seed: determines all random choices of a run; None: it is drawn when the run starts.
    """

    name: Name
    description: Description
    steps: tuple[Step, ...]
    cluster: Cluster = Cluster()
    load: Load | None = None
    expectations: tuple[RunExpectation, ...] = ()
    subscribers: Subscribers = 1
    bounds: Bounds = Bounds()
    seed: Seed | None = None
    tags: tuple[str, ...] = ()

    @property
    def step_count(self) -> int:
        """The number of steps that unrolled() yields."""
        return sum(step.unrolled_count for step in self.steps)

    def unrolled(self) -> Iterator[Step]:
        """Yield the steps as a run executes them, `repeat` written out; a step's index is its place here."""
        return (each for step in self.steps for each in step.unrolled())

    def every_step(self) -> Iterator[Step]:
        """Yield every step of the file once, also those inside others."""
        return (step for _, step in _placed(self.steps, ("steps",)))

    @property
    def changes_members(self) -> bool:
        """The members may change during the run."""
        return any(isinstance(step, ChangeMembers) for step in self.every_step())

    @property
    def proxied(self) -> bool:
        """Frames between nodes must pass the lab's proxy."""
        return self.cluster.network == "proxy" and any(step.needs.proxy for step in self.every_step())

    @property
    def proxies_clients(self) -> bool:
        """Bytes between clients and nodes must pass the proxy too."""
        return any(step.needs.client_proxy for step in self.every_step())

    @property
    def layered(self) -> bool:
        """The files and clocks of real nodes must pass the lab's layer."""
        return self.disks == "layered"

    @property
    def disks(self) -> Literal["direct", "layered", "supervised"]:
        """What stands between real nodes and their disks."""
        if self.cluster.disks == "supervised" or (self.cluster.engine and self.proxied):
            return "supervised"  # The supervisor of an engine also redirects its connections.
        return "layered" if any(step.needs.layer for step in self.every_step()) else "direct"

    def sim_refusals(self) -> list[str]:
        """Return the reasons why the scenario cannot be simulated, each with its place; empty if it can."""
        refused = [
            f"expectations[{index}].{each.word}: measures the machine, which virtual time does not have"
            for index, each in enumerate(self.expectations)
            if isinstance(each, Throughput | Memory)
        ]
        for place, step in _placed(self.steps, ("steps",)):
            if why := step.needs.real_time:
                field = step.needs.real_time_field
                refused.append(f"{show_place((*place, step.word, *((field,) if field else ())))}: {why}")
        if self.cluster.is_foreign:
            word = "engine" if self.cluster.engine else "command"
            refused.append(f"cluster.{word}: a program has no virtual time to run in")
        if self.cluster.client_token:
            refused.append("cluster.client_token: nobody can come to a simulated node but its own clients")
        if self.cluster.disks == "supervised":
            refused.append("cluster.disks: supervised: a simulated node makes no system calls")
        total = self.planned_messages
        if total > MAX_SIM_MESSAGES:
            at = "load" if self.load is not None else "steps"
            refused.append(f"{at}: {total} are too many messages for a simulation, allowed {MAX_SIM_MESSAGES}")
        in_flight = 0 if self.load is None else self.load.in_flight or 0
        if in_flight > MAX_SIM_IN_FLIGHT:
            refused.append(
                f"load.in_flight: {in_flight} are too many messages for a simulation, allowed {MAX_SIM_IN_FLIGHT}"
            )
        return refused

    def kernel_refusals(self) -> list[str]:
        """Return the reasons why the kernel's network cannot carry the scenario out, each with its place."""
        return [f"{show_place(place)}: {why}" for place, why in _not_in_the_kernel(self.steps)]

    def supervisor_refusals(self) -> list[str]:
        """Return the reasons why the scenario cannot be run under supervisors, each with its place."""
        return [f"{show_place(place)}: {why}" for place, why in _not_supervised(self.steps)]

    @property
    def planned_messages(self) -> int:
        """The number of messages of all clients together, as far as the file determines it."""
        planned = self.load.planned if self.load is not None else 0
        return sum(step.sends(planned) for step in self.unrolled())


class _Outline(Scenario, frozen=True, kw_only=True):
    """A scenario whose steps and expectations are still the plain values of the file."""

    steps: tuple[Any, ...]
    expectations: tuple[Any, ...] = ()


def load(path: Path | str, *, text: str | None = None, engine: Instead | None = None) -> Scenario:
    """Read and check a scenario file.

    Args:
        text: the file's content where the caller has it already.
        engine: runs in place of the nodes of the file.

    Raises:
        ConfigError: unreadable, not YAML, or not a scenario; names file, line, column, found and allowed.
    """
    document = parse(path, text=text)
    outline = document.convert(_Outline, dec_hook=decode_word)
    if engine is not None:
        outline = engine.put_into(outline)
    plan = outline.cluster
    root = Entry(document, _setting(plan))
    _check_outline(root, outline)
    if plan.limits:
        check_limits(document, root.at("cluster", "limits").convert(Limits), ("cluster", "limits"))
    _check_cluster(root.at("cluster"), plan)
    _check_engine(root.at("cluster"), plan)
    cluster = _with_command(root.at("cluster"), plan, Path(path).parent)
    if outline.load is not None:
        _check_load(root.at("load"), outline.load)
    read = {
        "description": outline.description.strip(),
        "cluster": cluster,
        "steps": root.at("steps").steps(),
        "expectations": read_expectations(root.at("expectations"), RUN_EXPECTATIONS) if outline.expectations else (),
    }
    scenario = Scenario(**(structs.asdict(outline) | read))
    if not 1 <= scenario.step_count <= MAX_STEPS:
        root.at("steps").fail(f"{scenario.step_count} steps with repeats written out, allowed 1..{MAX_STEPS}")
    for place, why in _misfits(scenario):
        root.at(*place).fail(why)
    _check_load_use(root, scenario)
    _check_named_steps(root.at("expectations"), scenario)
    return scenario


def read_step(words: str, scenario: Scenario) -> Step:
    """Read one step, as it stands in a scenario file, for a run of this scenario: `kill: leader`.

    Raises:
        ConfigError: no step, or one that this scenario cannot have; names column, found and allowed.
    """
    root = Entry(parse("step", text=words), _setting(scenario.cluster))
    step = root.step()
    for place, why in _misfits(structs.replace(scenario, steps=(step,))):
        root.at(*place[2:]).fail(why)
    return step


class Instead(NamedTuple):
    """An engine that runs in place of the nodes that a scenario file describes.

    disks: replaces `cluster.disks`; "": the scenario's own.
    """

    engine: str
    options: Mapping[str, str]
    disks: Literal["", "supervised"] = ""

    def put_into(self, outline: _Outline) -> _Outline:
        """Return the scenario with this engine, and with bounds that allow for the engine's own timeouts."""
        plan, options = outline.cluster, dict(self.options)
        disks = self.disks or plan.disks
        cluster = structs.replace(
            plan, command=None, directory="", engine=self.engine, engine_options=options, disks=disks
        )
        least = Duration(catalogue.parse(self.engine).kind.recovery_s)
        bounds = structs.replace(outline.bounds, recovery=max(outline.bounds.recovery, least))
        return structs.replace(outline, cluster=cluster, bounds=bounds)


def encode(scenario: Scenario) -> str:
    """Return the scenario as YAML with every default written out; load() reads it back equal."""
    return yaml.safe_dump(_values(scenario, False), sort_keys=False, allow_unicode=True, width=120)


def encode_brief(scenario: Scenario) -> str:
    """Return the scenario as people would write it, without defaults; load() reads it back equal."""
    lines = []
    for key, value in _values(scenario, True).items():
        if key in ("steps", "expectations"):
            lines += [f"{key}:"] if value else []
            for each in value:
                lines.append("  - " + "\n    ".join(f"{word}: {_flow(inside)}" for word, inside in each.items()))
        elif value not in (None, [], {}) and (key, value) != ("subscribers", 1):
            lines.append(f"{key}: {_flow(value)}")
    return "\n".join(lines) + "\n"


def _values(scenario: Scenario, in_brief: bool) -> dict[str, Any]:
    """Return the keys of the file in their order, each with its plain value."""
    fields = brief if in_brief else plain
    return {
        "name": scenario.name,
        "description": scenario.description,
        "tags": list(scenario.tags),
        "seed": scenario.seed,
        "cluster": fields(scenario.cluster),
        "load": None if scenario.load is None else fields(scenario.load),
        "subscribers": scenario.subscribers,
        "bounds": fields(scenario.bounds),
        "steps": [step.as_yaml(in_brief=in_brief) for step in scenario.steps],
        "expectations": [each.as_yaml(in_brief=in_brief) for each in scenario.expectations],
    }


def _flow(value: Any) -> str:
    """Return a value as one line of YAML."""
    text = yaml.dump(
        value, Dumper=_Dumper, default_flow_style=True, sort_keys=False, allow_unicode=True, width=math.inf
    )
    return str(text).removesuffix("...\n").rstrip("\n")


class _Dumper(yaml.SafeDumper):
    """Writes `on` without quotes, because nodeproc.yamlfile reads it as a word."""

    yaml_implicit_resolvers = {  # noqa: RUF012 (PyYAML's own table, replaced)
        first: rules for first, rules in yaml.SafeDumper.yaml_implicit_resolvers.items() if first not in ("o", "O")
    }


# ---- checks beyond the types -------------------------------------------------------------------

_NAME = re.compile(r"[a-z0-9]+(_[a-z0-9]+)*")
_TAG = re.compile(r"[a-z][a-z0-9]*(_[a-z0-9]+)*")


def _check_outline(root: Entry, outline: Scenario) -> None:
    if not _NAME.fullmatch(outline.name):
        root.at("name").fail(f"found {outline.name!r}, allowed small letters and digits joined by _")
    if outline.name == "latest":
        root.at("name").fail("latest is the link to the newest run; another name is needed")
    if not outline.description.strip():
        root.at("description").fail("is empty; say in a sentence what the scenario shows")
    for index, tag in enumerate(outline.tags):
        if not _TAG.fullmatch(tag) or tag in outline.tags[:index]:
            allowed = "small letters and digits joined by _, a letter first, each tag once"
            root.at("tags", index).fail(f"found {tag!r}, allowed {allowed}")
    if not outline.steps:
        root.at("steps").fail("no step, at least one is needed")
    root.at("description").check_title(" ".join(outline.description.split()))
    root.at("bounds").check_periods(outline.bounds)


def _check_cluster(entry: Entry, cluster: Cluster) -> None:
    if isinstance(cluster.start, tuple):
        for index, node in enumerate(cluster.start):
            entry.at("start", index).check_id(node)
            entry.at("start", index).check_once(node, cluster.start[:index])
    if cluster.founders is not None and cluster.founders > cluster.nodes:
        entry.at("founders").fail(f"found {cluster.founders}, allowed 1..{cluster.nodes}, the number of nodes")
    if cluster.founders is not None and cluster.is_foreign:
        entry.at("founders").fail("is for the lab's own nodes only")
    for node, priority in cluster.priorities.items():
        if node not in cluster.ids:
            entry.at("priorities", str(node)).fail(f"no node {node}, allowed 1..{cluster.nodes}", at_key=True)
        if not 0 <= priority <= MAX_PRIORITY:
            entry.at("priorities", str(node)).wrong(f"0..{MAX_PRIORITY}")
    least, most = CLUSTER_TIMES
    for name in cluster.__struct_fields__:
        value = getattr(cluster, name)
        if isinstance(value, Duration) and not least <= value <= most:
            entry.at(name).fail(f"found {value}, allowed {least}..{most}")
    if cluster.election_timeout < 2 * cluster.heartbeat_interval:
        allowed = f"twice heartbeat_interval ({cluster.heartbeat_interval}) or more"
        entry.at("election_timeout").fail(f"found {cluster.election_timeout}, allowed {allowed}")
    if cluster.writeback is not None and cluster.disks != "supervised":
        entry.at("writeback").fail("needs `disks: supervised`")


def _check_engine(entry: Entry, cluster: Cluster) -> None:
    if not cluster.engine:
        if cluster.engine_options:
            entry.at("engine_options").fail("are options of engine, and there is no engine")
        return
    try:
        spec = catalogue.parse(cluster.engine)
    except ValueError as error:
        entry.at("engine").fail(str(error))
    if why := catalogue.refusal(spec, cluster.engine_options):
        entry.at("engine_options").fail(why)
    if cluster.client_token:
        entry.at("client_token").fail("is not supported by the adapter of an engine")


def _with_command(entry: Entry, cluster: Cluster, home: Path) -> Cluster:
    """Return the cluster with its command split into arguments, and an absolute directory.

    Args:
        home: the scenario file's directory.
    """
    if cluster.command is None:
        if cluster.directory:
            entry.at("directory").fail("is the directory of command, and there is no command")
        return cluster
    if cluster.engine:
        entry.at("engine").fail("stands beside command; allowed is one of the two")
    try:
        command = split_command(cluster.command)
    except ValueError as error:
        entry.at("command").fail(str(error))
    return structs.replace(cluster, command=command, directory=str((home / cluster.directory).resolve()))


def _check_load(entry: Entry, load: Load) -> None:
    if "via" in entry.value:
        entry.at("via").check_target()
    if (load.rate is None) == (load.in_flight is None):
        entry.fail("give exactly one of rate (open loop) and in_flight (closed loop)")
    if load.count is not None and load.duration is not None:
        entry.fail("give count or duration, not both")
    entry.check_periods(load)


def _check_load_use(root: Entry, scenario: Scenario) -> None:
    """Refuse expectations about a load without one, and a load that no step starts."""
    load = scenario.load
    if load is not None and not any(step.starts_load for step in scenario.every_step()):
        root.at("load").fail("is never started; a step `load: start` is needed")
    for index, expectation in enumerate(scenario.expectations):
        if isinstance(expectation, Throughput | Unavailable) and load is None:
            root.at("expectations", index).fail("needs a load, and this scenario has none")


def _check_named_steps(entry: Entry, scenario: Scenario) -> None:
    """Refuse a `between` that names a step which does not exist."""
    names = sorted({step.name for step in scenario.every_step() if step.name})
    for index, expectation in enumerate(scenario.expectations):
        for end, name in enumerate(expectation.between or () if isinstance(expectation, LatencyIs) else ()):
            if name not in names:
                allowed = ", ".join(names) or "none, for no step has a `name`"
                entry.at(index, "latency", "between", end).wrong(f"the name of a step: {allowed}", names)


def _setting(plan: Cluster) -> Setting:
    supervised = plan.disks == "supervised"
    newcomers = plan.ids[len(plan.founder_ids) :]
    return Setting(steps_by_word(), plan.ids, plan.log_level, plan.is_foreign, plan.network, supervised, newcomers)


def _misfits(scenario: Scenario) -> Iterator[tuple[Place, str]]:
    """Yield the places of the steps that this cluster or load cannot have, each with the reason."""
    if scenario.cluster.network == "kernel":
        yield from _not_in_the_kernel(scenario.steps)
    if scenario.cluster.disks == "supervised":
        yield from _not_supervised(scenario.steps)
    load = scenario.load
    for place, step in _placed(scenario.steps, ("steps",)):
        if step.needs.load and load is None:
            yield place, "needs a load, and this scenario has none"
        if step.needs.load_end and load is not None and load.count is None and load.duration is None:
            yield place, "never comes true: the load has neither count nor duration"


def _not_in_the_kernel(steps: tuple[Step, ...]) -> Iterator[tuple[Place, str]]:
    """Yield the places of the steps and fields that only the lab's proxy can obey, each with the reason."""
    for place, step in _placed(steps, ("steps",)):
        for field in step.needs.proxy_fields:
            why = "network: kernel drops packets and does nothing else; allowed: cut, partition, flap, link with loss"
            yield (*place, step.word, *((field,) if field else ())), why


def _not_supervised(steps: tuple[Step, ...]) -> Iterator[tuple[Place, str]]:
    """Yield the places of the steps that only the layer inside the nodes' processes can do, each with the reason."""
    for place, step in _placed(steps, ("steps",)):
        if step.needs.clock:
            yield (*place, step.word), "disks: supervised does not change clocks"


def _placed(steps: tuple[Step, ...], place: Place) -> Iterator[tuple[Place, Step]]:
    """Yield every step, also inside `repeat`, `when` and `nemesis`, with its place in the file."""
    for index, step in enumerate(steps):
        yield (*place, index), step
        if step.inner:
            yield from _placed(step.inner, (*place, index, *step.inner_place))
