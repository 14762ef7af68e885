"""The steps of a scenario: a closed set, done one after the other.

In YAML each is a mapping of one key, `- kill: leader`, beside which `name` may stand. A plain value stands for the
field named by `short`. A step is done when its evidence is there: a kill when the process is gone, a start when the
node answers STATUS. A `send` or `wait` that is not done within its time is a missed expectation: the remaining steps
are left out, everything is healed and judged all the same.
"""

from __future__ import annotations

from typing import TypeAlias

from lab.steps.busy import Busy
from lab.steps.chaos import Chaos
from lab.steps.clock import Clock
from lab.steps.cut import Cut
from lab.steps.disk import Disk
from lab.steps.expect import Expect
from lab.steps.garbage import Garbage
from lab.steps.heal import Heal
from lab.steps.kill import Kill
from lab.steps.link import Link, Reorder
from lab.steps.load import LoadSwitch
from lab.steps.nemesis import Nemesis
from lab.steps.partition import Partition
from lab.steps.pause import Pause
from lab.steps.power_loss import PowerLoss
from lab.steps.rebuild import Rebuild
from lab.steps.repeat import MAX_STEPS, Repeat
from lab.steps.reset import Reset
from lab.steps.restart import FullRestart, Restart
from lab.steps.resume import Resume
from lab.steps.send import Send, Sender
from lab.steps.sleep import Sleep
from lab.steps.start import Start
from lab.steps.step import Step
from lab.steps.stop import Stop
from lab.steps.wait import (
    UNTILS,
    Until,
    UntilAcknowledged,
    UntilAny,
    UntilCaughtUp,
    UntilDelivered,
    UntilEnded,
    UntilEvent,
    UntilIdle,
    UntilLeader,
    UntilLoadDone,
    UntilNewLeader,
    UntilTermChange,
    Wait,
)
from lab.steps.when import When

__all__ = [
    "FAULT_STEPS",
    "INSIDE_STEPS",
    "LINK_STEPS",
    "MAX_STEPS",
    "NEMESIS_STEPS",
    "STEPS",
    "TRIGGERED_STEPS",
    "UNTILS",
    "Busy",
    "Chaos",
    "Clock",
    "Cut",
    "Disk",
    "Expect",
    "FullRestart",
    "Garbage",
    "Heal",
    "Kill",
    "Link",
    "LoadSwitch",
    "MachineStep",
    "Nemesis",
    "Partition",
    "Pause",
    "PowerLoss",
    "Rebuild",
    "Reorder",
    "Repeat",
    "Reset",
    "Restart",
    "Resume",
    "Send",
    "Sender",
    "Sleep",
    "Start",
    "Step",
    "Stop",
    "Until",
    "UntilAcknowledged",
    "UntilAny",
    "UntilCaughtUp",
    "UntilDelivered",
    "UntilEnded",
    "UntilEvent",
    "UntilIdle",
    "UntilLeader",
    "UntilLoadDone",
    "UntilNewLeader",
    "UntilTermChange",
    "Wait",
    "When",
    "is_about_clients",
    "needs_layer",
]

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
    """Whether it needs real nodes whose files and clocks pass the lab's layer: lab.live.inside.faulty_node."""
    return isinstance(step, PowerLoss | Clock) or (isinstance(step, Disk) and not step.changes_files)


def is_about_clients(step: Step) -> bool:
    """Whether it treats links between clients and nodes."""
    return isinstance(step, Link | Cut | Reset) and "clients" in (step.source, step.to)
