"""The steps of a scenario: a closed set, done one after the other.

In YAML each is a mapping of one key, `- kill: leader`, beside which `name` may stand. A plain value stands for the
field named by `short`. A step ends when its evidence is there: a kill when the process is gone, a start when the node
answers STATUS. A `send` or `wait` that is not done within its time is a missed expectation: the remaining steps are
left out, and everything is healed and judged all the same.
"""

from __future__ import annotations

from lab.steps.add_node import AddNode as AddNode
from lab.steps.busy import Busy as Busy
from lab.steps.changes import ADDED, REMOVED
from lab.steps.changes import ChangeMembers as ChangeMembers
from lab.steps.chaos import Chaos as Chaos
from lab.steps.clock import Clock as Clock
from lab.steps.cut import Cut as Cut
from lab.steps.disk import Disk as Disk
from lab.steps.expect import Expect as Expect
from lab.steps.flap import Flap as Flap
from lab.steps.garbage import Garbage as Garbage
from lab.steps.hands import Hands as Hands
from lab.steps.heal import Heal as Heal
from lab.steps.hold import Hold as Hold
from lab.steps.kill import Kill as Kill
from lab.steps.link import Link as Link
from lab.steps.link import Reorder as Reorder
from lab.steps.load import LoadSwitch as LoadSwitch
from lab.steps.nemesis import Nemesis as Nemesis
from lab.steps.partition import Partition as Partition
from lab.steps.pause import Pause as Pause
from lab.steps.power_loss import PowerLoss as PowerLoss
from lab.steps.rebuild import Rebuild as Rebuild
from lab.steps.remove_node import RemoveNode as RemoveNode
from lab.steps.repeat import Repeat as Repeat
from lab.steps.replace_node import ReplaceNode as ReplaceNode
from lab.steps.reset import Reset as Reset
from lab.steps.restart import FullRestart as FullRestart
from lab.steps.restart import Restart as Restart
from lab.steps.resume import Resume as Resume
from lab.steps.send import Send as Send
from lab.steps.send import Sender as Sender
from lab.steps.sleep import Sleep as Sleep
from lab.steps.start import Start as Start
from lab.steps.step import Effect as Effect
from lab.steps.step import Fault as Fault
from lab.steps.step import Step as Step
from lab.steps.stop import Stop as Stop
from lab.steps.transfer_leader import TransferLeader as TransferLeader
from lab.steps.wait import Wait as Wait
from lab.steps.when import When as When

STEPS: tuple[type[Step], ...] = (
    Start,
    Stop,
    Kill,
    Pause,
    Resume,
    Restart,
    FullRestart,
    TransferLeader,
    AddNode,
    RemoveNode,
    ReplaceNode,
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
    Hold,
    Hands,
    Expect,
    When,
    Nemesis,
    Repeat,
)


def steps_by_word() -> dict[str, type[Step]]:
    """Return word in YAML -> step."""
    return {each.word: each for each in STEPS}


HEAL_ROWS = Heal.also
"""Words of the rows that a heal leaves; the lab also heals without a step."""
END_ROWS = tuple(each.word for each in STEPS if issubclass(each, Fault) and each.ends_process)
"""Words of the rows that have the exit code of a process which the lab ended, if they had an effect."""
OF_ITSELF = {"exit": Effect.DOWN, "refusal": Effect.NONE}
"""Words of rows about a node that exited, or refused to start, because of an injected disk fault."""
CHANGES = (ADDED, REMOVED)
"""Words of the rows of the steps that change the members."""
LEFT = "left"
"""Word of the row of a node that stopped by itself, because it is a member no more (G5)."""
EFFECTS: dict[str, Effect] = (
    OF_ITSELF
    | {LEFT: Effect.NONE}
    | {each.word: each.effect for each in STEPS if issubclass(each, Fault) and hasattr(each, "effect")}
)
"""Word of a row of faults.jsonl -> what the row means for the cluster."""


def effect_of(word: str) -> Effect:
    """Return what a row with this word means; NONE if the word is not known."""
    return EFFECTS.get(word, Effect.NONE)
