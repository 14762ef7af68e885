"""Random scenarios whose members change among other faults: nodes are added and removed, asked for at any moment.

In a third of the seeds disks are lost and rebuilt (M4), of a minority of the members however the changes end, so every
committed message must survive. At the end all links are healed and all members run; they must accept messages, and
another change.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from lab.plan.scenario import Cluster, Scenario
from lab.search.assumptions import BOUNDS, CAUGHT_UP, HEAL_ALL, LIVENESS, NAMED_CLIENT, minority
from lab.search.dense import Dense, Steps
from lab.steps import (
    AddNode,
    Cut,
    Link,
    LoadSwitch,
    Rebuild,
    RemoveNode,
    ReplaceNode,
    Reset,
    Send,
    Sender,
    TransferLeader,
)
from lab.steps.reducing import rounded
from lab.words import Duration
from nodeproc.core.messages import NodeId


class Changing(Dense):
    """The random choices of one seed, in the order in which they are made."""

    frames = (*Dense.frames[:6], "REMOVED", *Dense.frames[6:])

    def __init__(self, seed: int, sizes: Sequence[int]) -> None:
        rng = random.Random(f"{seed} changing")
        self.founders = rng.choice(list(sizes))
        super().__init__(seed, rng, min(self.founders + rng.choice((2, 3)), 9))
        self.newcomers = list(self.ids[self.founders + 1 :])
        """Nodes that no step has added yet, without one that is added at the end."""
        self.left = self.founders
        """The least number of members, if every removal so far was done and no addition was."""
        self.losing = self.chance(1 / 3)
        """Whether disks are lost."""
        self.lost: set[NodeId] = set()
        """Nodes that may still be rebuilding."""
        self.machines = list(self.ids[: self.founders])
        """Nodes that were started: the founders, and the newcomers that a step has added, done or not."""

    def scenario(self) -> Scenario:
        faults = self._faults()
        return Scenario(
            name=f"drawn_{self.seed}",
            description=f"Drawn from seed {self.seed}.",
            steps=(LoadSwitch(switch="start"), *faults, *self._ending()),
            cluster=self._cluster(),
            load=self._load(faults),
            subscribers=self.rng.choice((0, 1)),
            bounds=BOUNDS,
            seed=self.seed,
        )

    # ---- cluster and load ----------------------------------------------------------------------------

    def _cluster(self) -> Cluster:
        return Cluster(
            nodes=self.nodes,
            founders=self.founders,
            priorities=self._priorities(),
            heartbeat_interval=rounded(self.heartbeat),
            election_timeout=rounded(self.timeout),
            answer_timeout=self._times(0.2, 0.5),
            coordinator_timeout=self._times(0.5, 1.0),
            limits={"segment_bytes": 4096} if self.chance(0.4) else {},  # Checkpoints are written all the time.
        )

    # ---- faults --------------------------------------------------------------------------------------

    def _faults(self) -> Steps:
        fault = self._some_faults()
        changing = self.rng.choice((0.2, 0.4, 0.7))
        rest = self._rest()
        steps: Steps = []
        for _ in range(self.rng.randint(6, 16)):
            if self.chance(changing):
                steps += self._change()
            if self.losing and self.chance(0.3):
                steps += self._lost_disk()
            steps += [*fault(), rest()]
        return steps

    def _change(self) -> Steps:
        """Ask for an addition or a removal; whether it is done depends on the faults."""
        within = self._times(0.5, 2.0, 10.0)
        if self.newcomers and self.chance(0.5):
            newcomer = self.newcomers.pop()
            self.machines = sorted((*self.machines, newcomer))
            if self.chance(0.5):
                old = self.rng.choice([each for each in self.machines if each != newcomer])
                return [ReplaceNode(target=old, newcomer=newcomer, within=within, must=False)]
            return [AddNode(target=newcomer, within=within, must=False)]
        if self.left == 1 or len(self.lost) > minority(self.left - 1):
            return []
        self.left -= 1
        return [RemoveNode(target=self.one(), within=within, must=False)]

    def _lost_disk(self) -> Steps:
        """A node loses its disk and starts again with --rebuild, if all others may be needed, also after changes."""
        node = self.rng.choice(self.machines)
        if len(self.lost | {node}) > minority(self.left):
            return []
        self.lost.add(node)
        return [Rebuild(target=node)]

    def _makers(self) -> dict[str, Callable[[], Steps]]:
        return self._usual_makers() | {
            "bridge": lambda: [Cut(source=self.one(), to=self.one(), both=True)],
            "late": lambda: [
                Link(source=self.one(), to="all", frames=self._frames(), delay=self._times(0.5, 1.0, 3.0))
            ],
            "reset": lambda: [Reset(source=self.one(), to="all")],
            "transfer": lambda: [TransferLeader(target="all")],
        }

    # ---- the end -------------------------------------------------------------------------------------

    def _ending(self) -> Steps:
        """All members accept messages, and then every newcomer that was not removed becomes a member."""
        steps: Steps = [HEAL_ALL, CAUGHT_UP] if self.lost else []
        if self.chance(0.5):
            steps.append(LoadSwitch(switch="stop"))
        send = Send(clients=(Sender(client=NAMED_CLIENT, messages=2),), within=Duration(25), name=LIVENESS)
        return [*steps, HEAL_ALL, send, AddNode(target=tuple(self.ids[self.founders :]), within=Duration(25))]
