"""The steps of a scenario: a closed set, done one after the other.

In YAML each is a mapping of one key, `- kill: leader`, beside which `name` may stand. A plain value stands for the
field named by `short`. A step is done when its evidence is there: a kill when the process is gone, a start when the
node answers STATUS. A `send` or `wait` that is not done within its time is a missed expectation: the remaining steps
are left out, everything is healed and judged all the same.
"""

from __future__ import annotations

from lab.steps.busy import Busy
from lab.steps.chaos import Chaos
from lab.steps.clock import Clock
from lab.steps.cut import Cut
from lab.steps.disk import Disk
from lab.steps.expect import Expect
from lab.steps.flap import Flap
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
from lab.steps.step import Effect, Fault, Needs, Step
from lab.steps.stop import Stop
from lab.steps.wait import (
    UNTILS,
    Until,
    UntilAcknowledged,
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
    "AT_ONCE",
    "END_ROWS",
    "FAULT_STEPS",
    "HEAL_ROWS",
    "KINDS",
    "MAX_STEPS",
    "OF_ITSELF",
    "STEPS",
    "UNTILS",
    "Busy",
    "Chaos",
    "Clock",
    "Cut",
    "Disk",
    "Effect",
    "Expect",
    "Fault",
    "Flap",
    "FullRestart",
    "Garbage",
    "Heal",
    "Kill",
    "Link",
    "LoadSwitch",
    "Needs",
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
    "effect_of",
    "steps_by_word",
]

STEPS: tuple[type[Step], ...] = (
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
    Flap,
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


def steps_by_word() -> dict[str, type[Step]]:
    """Word in YAML -> step."""
    return {each.word: each for each in STEPS}


FAULT_STEPS: tuple[type[Fault], ...] = tuple(each for each in STEPS if issubclass(each, Fault))
"""Steps that do something to nodes, links or the host; each leaves rows in faults.jsonl."""
HEAL_ROWS = Heal.rows
"""Kinds of the rows that a heal leaves, also one that no step asks for."""
END_ROWS = tuple(each.word for each in FAULT_STEPS if each.ends_process)
"""Kinds of the rows that say that a process was ended."""
OF_ITSELF = {"exit": Effect.DOWN, "refusal": Effect.NONE}
"""Words of rows that no step leaves: a process ended by itself, or refused to start, of what was done to its disk."""
KINDS: dict[str, Effect] = {each.word: each.effect for each in FAULT_STEPS} | OF_ITSELF
"""What a row of faults.jsonl says of the cluster, by its word."""
AT_ONCE = tuple(each.word for each in FAULT_STEPS if each.at_once)


def effect_of(word: str) -> Effect:
    """What a row with this word says; nothing if no such row is known."""
    return KINDS.get(word, Effect.NONE)
