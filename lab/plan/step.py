"""The steps of a scenario: a closed set, done one after the other.

In YAML each is a mapping of one key, `- kill: leader`, beside which `name` may stand. A plain value stands for the
field named by `short`. A step is done when its evidence is there: a kill when the process is gone, a start when the
node answers STATUS. A `send` or `wait` that is not done within its time is a missed expectation: the remaining steps
are left out, everything is healed and judged all the same.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, TypeAlias

from msgspec import Meta, Struct

from lab.plan.expectation import MomentExpectation
from lab.plan.words import (
    ClientId,
    Count,
    CountOrNone,
    Duration,
    LinkEnd,
    Period,
    Share,
    Target,
    Title,
)

MAX_STEPS = 10_000
"""Written out. More is a slip of the pen: nobody waits for so many."""
MOST_DRIFT = 0.5


class Step(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Base of all; the subclasses are listed below and nowhere else."""

    word: ClassVar[str]
    """The key that it has in YAML."""
    short: ClassVar[str] = ""
    """The field that a plain value stands for; "": none."""
    name: Title = ""
    """For progress lines and results; "": the step itself is shown."""


# ---- nodes --------------------------------------------------------------------------------------


class Start(Step, frozen=True):
    """Start nodes that are down, all at once. Done when all answer.

    refuses: each must refuse instead, for its disk is damaged: done when all have ended with the exit code of
        corruption and have named the damaged file.
    """

    word = "start"
    short = "target"
    target: Target
    refuses: bool = False


class Stop(Step, frozen=True):
    """SIGTERM, all at once. Done when the processes are gone."""

    word = "stop"
    short = "target"
    target: Target


class Kill(Step, frozen=True):
    """SIGKILL, all at once. Done when the processes are gone."""

    word = "kill"
    short = "target"
    target: Target


class Pause(Step, frozen=True):
    """SIGSTOP. Done when the processes are stopped."""

    word = "pause"
    short = "target"
    target: Target


class Resume(Step, frozen=True):
    """SIGCONT. Done when the nodes answer."""

    word = "resume"
    short = "target"
    target: Target


class Restart(Step, frozen=True, rename={"down": "down_for"}):
    """Take nodes down and start them again, one after the other. Done when the last one answers.

    how: stop (SIGTERM) or kill (SIGKILL).
    down: how long each stays down.
    """

    word = "restart"
    short = "target"
    target: Target
    how: Literal["stop", "kill"] = "stop"
    down: Duration = Duration(0)


class FullRestart(Step, frozen=True, rename={"down": "down_for"}):
    """Take all running nodes down at once, then start all nodes. Done when all answer."""

    word = "full_restart"
    short = "how"
    how: Literal["stop", "kill"]
    down: Duration = Duration(0)


# ---- the network --------------------------------------------------------------------------------


class Reorder(Struct, frozen=True, forbid_unknown_fields=True):
    """Hold back every `every`-th matching frame until `behind` later matching frames have overtaken it.

    at_most: it is let go after this time even when nothing overtook it.
    """

    every: Count = 2
    behind: Count = 1
    at_most: Period = Duration(0.1)


class Link(Step, frozen=True, rename={"source": "from"}):
    """From now on treat frames on the directed links from `source` to `to` so; a later rule for a link replaces it.

    frames: frame types ("APPEND") that it applies to; empty: all.
    delay: each such frame is held this long, in order, and longer as `distribution` says: by up to `jitter` (uniform),
        by `jitter` on average (exponential), or by around nothing with the deviation `jitter` (normal).
    loss, duplicate, corrupt: shares, 0..1, of such frames that vanish, arrive twice or arrive with one byte changed.
    bandwidth: bytes of such frames a second; 0: any number.
    chunk: such frames arrive in pieces of so many bytes, a millisecond apart; 0: whole.
    refuse: the connection is reset and none can be opened; alone.
    A scenario with such a step runs all its links through the proxy. Links of clients are TCP with nothing in between:
    what is on them is delayed, slowed or cut in pieces, or they are refused, and that is all.
    """

    word = "link"
    source: LinkEnd = "all"
    to: LinkEnd = "all"
    frames: tuple[str, ...] = ()
    reorder: Reorder | None = None
    delay: Duration = Duration(0)
    jitter: Duration = Duration(0)
    distribution: Literal["uniform", "exponential", "normal"] = "uniform"
    loss: Share = 0.0
    duplicate: Share = 0.0
    corrupt: Share = 0.0
    bandwidth: CountOrNone = 0
    chunk: CountOrNone = 0
    refuse: bool = False


class Cut(Step, frozen=True, rename={"source": "from"}):
    """Frames on the directed links from `source` to `to` vanish silently from now on; connections stay open.

    frames: frame types that it applies to; empty: all.
    both: in the other direction too.
    What is on a cut link of clients does not vanish but waits for the heal, as TCP has it.
    """

    word = "cut"
    source: LinkEnd = "all"
    to: LinkEnd = "all"
    frames: tuple[str, ...] = ()
    both: bool = False


class Partition(Step, frozen=True):
    """Cut links, all frames, so that not everybody hears everybody. lab.plan.faults.partition_pairs has the links.

    isolate: `node` hears nobody and nobody hears it; direction: only one of the two, in or out. halves: two random
    halves, a majority and the rest. majority, minority: so, `node` being on that side. bridge: two halves that both
    hear `node`, and it them, but not each other. ring: each node hears only its two neighbours by id. random: some
    directed links, at least one, not all.
    """

    word = "partition"
    short = "kind"
    kind: Literal["isolate", "halves", "majority", "minority", "bridge", "ring", "random"]
    node: Target = "leader"
    direction: Literal["in", "out", "both"] = "both"


class Reset(Step, frozen=True, rename={"source": "from"}):
    """The connections between these nodes are reset, in both directions; the nodes open them again."""

    word = "reset"
    source: LinkEnd = "all"
    to: LinkEnd = "all"


class Heal(Step, frozen=True):
    """Faults are over.

    links: all links are straight again. disks: no disk is slow, full or failing. clocks: none drifts; what was jumped
    stays. busy: the busy processes are gone. all: all of these; besides, what is paused is resumed and what is down is
    started.
    on: the nodes that `all` wakes and starts.
    """

    word = "heal"
    short = "what"
    what: Literal["links", "disks", "clocks", "busy", "all"] = "all"
    on: Target = "all"


# ---- machines, disks and clocks ------------------------------------------------------------------


class PowerLoss(Step, frozen=True):
    """The machine of these nodes loses its power: the process dies and what was not synced is lost, in part or whole.

    mid_write: in the middle of one of its next disk operations.
    tail: drawn: any part of what was not synced may be left. torn: the disk first stops answering, until an entry of
        the log waits for its sync; that entry is left in part.
    """

    word = "power_loss"
    short = "target"
    target: Target
    mid_write: bool = False
    tail: Literal["drawn", "torn"] = "drawn"


class Disk(Step, frozen=True):
    """The disks of these nodes go bad, or are copied, in exactly one of seven ways.

    slow: each fdatasync takes that much longer.
    full: nothing more can be written.
    failing: fdatasync (sync) or writes (append) fail.
    rot: one byte of synced data changes, in the log (wal), in the last delivered message of the log (last), in
        messages.jsonl (messages) or in the checkpoint; or in what is older than any restart looks at: lines of
        messages.jsonl, headers or index of the archive.
    lose: the checkpoint, messages.jsonl or the newest file of the log (wal) is gone, or all: an empty data directory is
        left.
    copy: nothing goes bad: the data directory is copied as it is now, for a later `restore`.
    restore: the latest copy takes the place of the data directory.
    lose, restore, and rot that is not old, happen while the node is down; a node that runs is killed first.
    """

    word = "disk"
    on: Target
    slow: Duration = Duration(0)
    full: bool = False
    failing: Literal["", "sync", "append"] = ""
    rot: Literal["", "wal", "last", "messages", "checkpoint", "old_lines", "old_headers", "old_index"] = ""
    lose: Literal["", "checkpoint", "messages", "wal", "all"] = ""
    copy: bool = False
    restore: bool = False

    @property
    def leaves(self) -> str:
        """What its evidence calls the change of the files."""
        if self.rot:
            return "rot"
        return "restored" if self.restore else "emptied" if self.lose == "all" else "lost"

    @property
    def changes_files(self) -> bool:
        """The lab does it to the files itself, or only reads them."""
        return bool(self.rot or self.lose) or self.copy or self.restore

    @property
    def needs_dead_node(self) -> bool:
        """It is found, and perhaps refused, by the next start only."""
        return bool(self.lose) or self.restore or self.rot in ("wal", "last", "messages", "checkpoint")


class Clock(Step, frozen=True):
    """The clocks of these nodes go wrong.

    drift: share by which they run fast (0.05) or slow (-0.05) from now on, -0.5..0.5.
    jump: the wall clock is set forward by so much, once; what measures time spans does not notice.
    """

    word = "clock"
    on: Target
    drift: Annotated[float, Meta(ge=-MOST_DRIFT, le=MOST_DRIFT)] = 0.0
    jump: Duration = Duration(0)


class Rebuild(Step, frozen=True):
    """The node loses its disk and starts again, empty, with --rebuild. Done when it answers."""

    word = "rebuild"
    short = "target"
    target: Target


# ---- the processor ------------------------------------------------------------------------------


class Chaos(Step, frozen=True, rename={"time": "for"}):
    """For a time these nodes get the processor by fits and starts. Done when the time is over and all go on.

    Each runs and stands still (SIGSTOP) in turn, for drawn times of 1 ms to `longest`.
    """

    word = "chaos"
    short = "time"
    time: Period
    on: Target = "running"
    longest: Period = Duration(2)


class Busy(Step, frozen=True, rename={"time": "for"}):
    """So many other processes of the host take all the processor time that they get.

    time: done when it is over; 0s: done when all have begun, and they go on until they are healed.
    """

    word = "busy"
    short = "processes"
    processes: Annotated[int, Meta(ge=1, le=1000)]
    time: Duration = Duration(0)


# ---- strangers ----------------------------------------------------------------------------------


class Garbage(Step, frozen=True, rename={"time": "for"}):
    """Strangers at the ports of these nodes. Done when the time is over and their connections are closed.

    connections: so many, over the time, that say nonsense: bytes, lines, frames, greetings with a wrong proof.
    half_open: besides, so many that say nothing whole, for all of the time. Both are dealt out to the nodes in turn.
    """

    word = "garbage"
    short = "connections"
    connections: Annotated[int, Meta(ge=0, le=1_000_000)] = 1000
    half_open: Annotated[int, Meta(ge=0, le=10_000)] = 100
    time: Period = Duration(5)
    on: Target = "running"


# ---- clients ------------------------------------------------------------------------------------


class Sender(Struct, frozen=True, forbid_unknown_fields=True):
    """Messages of one named client.

    via: node id that the client connects to; without it, the one it used last, at first the lowest. When that node is
        down the client goes to another one.
    messages: exact payloads, or how many to make (`message 1 of client 101`, counted on over the run).
    fresh: the client process ended and a new one comes: a new session.
    """

    client: ClientId
    messages: tuple[str, ...] | Annotated[int, Meta(ge=1, le=1_000_000)]
    via: int | None = None
    fresh: bool = False


class Send(Step, frozen=True):
    """Send exact messages, a client's one after the other without waiting; several clients at the same time.

    Done when all are acknowledged, in `within`; at once with `wait: false`. In YAML a single client's fields may stand
    here in place of `clients`.
    refused: done instead when each client's node has told it why it takes nothing: nobody leads, or there is no
        majority.
    """

    word = "send"
    short = "clients"
    clients: tuple[Sender, ...]
    within: Period = Duration(10)
    wait: bool = True
    refused: bool = False


class LoadSwitch(Step, frozen=True):
    """Start the scenario's load, or stop it: nothing new is sent, what is under way is waited for."""

    word = "load"
    short = "do"
    do: Literal["start", "stop"]


# ---- waiting and looking ------------------------------------------------------------------------


class Until(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, tag_field="for"):
    """Base of what can be waited for; `for` names it in YAML."""

    within: Period = Duration(10)


class UntilLeader(Until, frozen=True, tag="leader"):
    """All running nodes name the same leader of the same term, and it says so itself."""


class UntilNewLeader(Until, frozen=True, tag="new_leader"):
    """As leader, with a term above the highest that any node showed before the latest fault step began."""


class UntilTermChange(Until, frozen=True, tag="term_change"):
    """Some node shows a higher term than any did when the wait began."""


class UntilCaughtUp(Until, frozen=True, tag="caught_up"):
    """These nodes have delivered all that any running node knew to be committed when the wait began.

    share: or that part, 0..1, of what each of them lacked of it, counted from where it was last seen.
    One that is being rebuilt is not caught up before it has its vote again.
    """

    on: Target = "running"
    share: Annotated[float, Meta(gt=0, le=1)] = 1.0


class UntilDelivered(Until, frozen=True, tag="delivered"):
    """Each of these nodes has delivered at least `count` messages."""

    count: Count
    on: Target = "running"


class UntilAcknowledged(Until, frozen=True, tag="acknowledged"):
    """`count` more of the load's messages are acknowledged than when the wait began."""

    count: Count


class UntilLoadDone(Until, frozen=True, tag="load_done"):
    """A load with a count or duration has an outcome for each of its messages."""


class UntilIdle(Until, frozen=True, tag="idle"):
    """No client waits for an outcome, and all running nodes have delivered the same and all that is committed."""


class UntilEnded(Until, frozen=True, tag="ended"):
    """The processes of these nodes are gone: they have ended by themselves, or were taken down."""

    on: Target


class UntilEvent(Until, frozen=True, tag="event", rename={"event": "is"}):
    """These nodes have reported the event `count` more times, added up, than when the latest fault step began.

    where: as in the `event` expectation.
    """

    event: str
    on: Target = "all"
    where: dict[str, str | int | bool] = {}
    count: Count = 1


UntilAny: TypeAlias = (
    UntilLeader
    | UntilNewLeader
    | UntilTermChange
    | UntilCaughtUp
    | UntilDelivered
    | UntilAcknowledged
    | UntilLoadDone
    | UntilIdle
    | UntilEnded
    | UntilEvent
)


class Wait(Step, frozen=True):
    """Go on when something has come true; a plain word stands for `{for: word}`."""

    word = "wait"
    until: UntilAny


class Sleep(Step, frozen=True, rename={"time": "for"}):
    """Let time pass. For rest between faults, never for waiting until something is so."""

    word = "sleep"
    short = "time"
    time: Duration


class Expect(Step, frozen=True):
    """Look at the nodes' STATUS now; each must be so at this moment. A miss does not end the run."""

    word = "expect"
    that: tuple[MomentExpectation, ...]


class When(Step, frozen=True, rename={"until": "so", "steps": "do"}):
    """As soon as something comes true, faults are done, whatever step the run has come to by then.

    until: waited for from here on, while the steps behind are done. It fires once; what has not fired at the end of the
        steps is a missed expectation.
    steps: faults, and sleeps between them. A fault waits for one that is being done.
    """

    word = "when"
    until: UntilAny
    steps: tuple[StepAny, ...]


class Nemesis(Step, frozen=True, rename={"time": "for"}):
    """For a time one fault after the other, each healed before the next.

    every: from one fault to the next; longer where a heal takes longer. A fault holds for a drawn quarter to three
        quarters of it.
    faults: come in a drawn order, all of them before one comes again. One whose target means nobody is left out.
    """

    word = "nemesis"
    time: Period
    faults: tuple[StepAny, ...]
    every: Period = Duration(2)


class Repeat(Step, frozen=True):
    """The steps inside, so many times. lab.plan.scenario.Scenario.unrolled() has them one by one."""

    word = "repeat"
    times: Annotated[int, Meta(ge=1, le=MAX_STEPS)]
    steps: tuple[StepAny, ...]


StepAny: TypeAlias = (
    Start
    | Stop
    | Kill
    | Pause
    | Resume
    | Restart
    | FullRestart
    | Link
    | Cut
    | Partition
    | Reset
    | Heal
    | PowerLoss
    | Disk
    | Clock
    | Rebuild
    | Chaos
    | Busy
    | Garbage
    | Send
    | LoadSwitch
    | Wait
    | Sleep
    | Expect
    | When
    | Nemesis
    | Repeat
)

STEPS: dict[str, type[Step]] = {
    each.word: each
    for each in (
        Start,
        Stop,
        Kill,
        Pause,
        Resume,
        Restart,
        FullRestart,
        Link,
        Cut,
        Partition,
        Reset,
        Heal,
        PowerLoss,
        Disk,
        Clock,
        Rebuild,
        Chaos,
        Busy,
        Garbage,
        Send,
        LoadSwitch,
        Wait,
        Sleep,
        Expect,
        When,
        Nemesis,
        Repeat,
    )
}
FAULT_STEPS = (
    Start,
    Stop,
    Kill,
    Pause,
    Resume,
    Restart,
    FullRestart,
    Link,
    Cut,
    Partition,
    Reset,
    Heal,
    PowerLoss,
    Disk,
    Clock,
    Rebuild,
    Chaos,
    Busy,
    Garbage,
)
"""Steps that do something to nodes, links or the host; each leaves rows in faults.jsonl."""
TRIGGERED_STEPS = (*FAULT_STEPS, Sleep)
"""What a `when` may do."""
NEMESIS_STEPS = tuple(each for each in FAULT_STEPS if each not in (Start, Resume, Heal, Rebuild))
"""What a nemesis may do: what the heal behind it undoes."""
LINK_STEPS = (Link, Cut, Partition, Reset)
"""Steps that need the lab's proxy between real nodes."""
MachineStep: TypeAlias = PowerLoss | Disk | Clock | Rebuild
INSIDE_STEPS = (PowerLoss, Disk, Clock, Rebuild)
"""Steps that need to know what is inside of a node: for the lab's own."""


def needs_layer(step: Step) -> bool:
    """Whether it needs real nodes whose files and clocks pass the lab's layer: lab.run.faulty_node."""
    return isinstance(step, PowerLoss | Clock) or (isinstance(step, Disk) and not step.changes_files)


def is_about_clients(step: Step) -> bool:
    """Whether it treats links between clients and nodes."""
    return isinstance(step, Link | Cut | Reset) and "clients" in (step.source, step.to)


UNTILS: dict[str, type[Until]] = {
    str(each.__struct_config__.tag): each
    for each in (
        UntilLeader,
        UntilNewLeader,
        UntilTermChange,
        UntilCaughtUp,
        UntilDelivered,
        UntilAcknowledged,
        UntilLoadDone,
        UntilIdle,
        UntilEnded,
        UntilEvent,
    )
}
