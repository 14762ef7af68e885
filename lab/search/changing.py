"""Random scenarios whose members change among other faults: nodes are added and removed, asked for at any moment.

No disk is lost here, so every committed message must survive. At the end all links are healed and all members run; they
must accept messages, and another change.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from typing import Final, TypeAlias

from lab.plan.scenario import Cluster, Load, Scenario
from lab.search.assumptions import BOUNDS, HEAL_ALL, LIVENESS, NAMED_CLIENT
from lab.steps import (
    AddNode,
    Cut,
    Disk,
    FullRestart,
    Heal,
    Kill,
    Link,
    LoadSwitch,
    Partition,
    Pause,
    PowerLoss,
    RemoveNode,
    Reset,
    Restart,
    Resume,
    Send,
    Sender,
    Sleep,
    Start,
    Step,
    TransferLeader,
)
from lab.steps.lot import Lot
from lab.steps.reducing import rounded
from lab.words import Duration
from nodeproc.core.messages import NodeId

Steps: TypeAlias = list[Step]

FRAMES: Final = (
    *("APPEND", "APPENDED", "CATCH_UP", "RESUME", "VOTE_REQUEST", "VOTE", "REMOVED"),
    *("ELECTION", "SUPPORT", "COORDINATOR", "HEARTBEAT", "HEARTBEAT_ACK"),
)
MESSAGES: Final = 150


class Changing(Lot):
    """The random choices of one seed, in the order in which they are made."""

    def __init__(self, seed: int, sizes: Sequence[int]) -> None:
        rng = random.Random(f"{seed} changing")
        self.founders = rng.choice(list(sizes))
        super().__init__(rng, min(self.founders + rng.choice((2, 3)), 9))
        self.seed = seed
        self.heartbeat = rng.choice((0.02, 0.05))
        self.timeout = self.heartbeat * rng.choice((3, 5))
        """Election timeout in seconds, the unit of all other times."""
        self.newcomers = list(self.ids[self.founders + 1 :])
        """Nodes that no step has added yet, without one that is added at the end."""
        self.left = self.founders
        """The least number of members, if every removal so far was done and no addition was."""

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
        ranks = dict(zip(self.ids, self.rng.sample(range(1, 10), self.nodes), strict=True)) if self.chance(0.5) else {}
        return Cluster(
            nodes=self.nodes,
            founders=self.founders,
            priorities=ranks,
            heartbeat_interval=rounded(self.heartbeat),
            election_timeout=rounded(self.timeout),
            answer_timeout=self._times(0.2, 0.5),
            coordinator_timeout=self._times(0.5, 1.0),
            limits={"segment_bytes": 4096} if self.chance(0.4) else {},  # Checkpoints are written all the time.
        )

    def _load(self, faults: Steps) -> Load:
        """Send messages from the first fault to the last."""
        lasts = sum(float(step.time) for step in faults if isinstance(step, Sleep))
        rate = float(min(max(round(MESSAGES / max(lasts, 0.5)), 10), 300))
        clients = self.rng.choice((1, 3, 5))
        return Load(clients=clients, rate=rate, size=10, count=MESSAGES, deadline=rounded(self.rng.choice((0.5, 10.0))))

    # ---- faults --------------------------------------------------------------------------------------

    def _faults(self) -> Steps:
        rng, makers = self.rng, self._makers()
        some = rng.sample(sorted(makers), rng.randint(3, 7))
        weights = [rng.choice((1, 1, 3)) for _ in some]
        changing = rng.choice((0.2, 0.4, 0.7))
        rest = self.timeout * rng.choice((0.1, 0.5, 1.5))
        steps: Steps = []
        for _ in range(rng.randint(6, 16)):
            if self.chance(changing):
                steps += self._change()
            steps += makers[rng.choices(some, weights)[0]]()
            steps.append(Sleep(time=rounded(rest * math.exp(rng.gauss(0.0, 1.0)))))
        return steps

    def _change(self) -> Steps:
        """Ask for an addition or a removal; whether it is done depends on the faults."""
        within = self._times(0.5, 2.0, 10.0)
        if self.newcomers and self.chance(0.5):
            return [AddNode(target=self.newcomers.pop(), within=within, must=False)]
        if self.left == 1:
            return []
        self.left -= 1
        return [RemoveNode(target=self.one(), within=within, must=False)]

    def _makers(self) -> dict[str, Callable[[], Steps]]:
        return {
            "kill": lambda: [Kill.draw(self)],
            "kill two": lambda: [Kill(target=self._two())],
            "start": lambda: [Start.draw(self)],
            "restart": lambda: [Restart.draw(self)],
            "restart two": lambda: [Restart(target=self._two(), how="kill", down=self.short())],
            "full restart": lambda: [FullRestart.draw(self)],
            "power": lambda: [PowerLoss(target=self.one()), Sleep(time=self.short()), Start(target="all")],
            "pause": lambda: [Pause.draw(self)],
            "resume": lambda: [Resume.draw(self)],
            "slow disk": lambda: [Disk(on=self.one(), slow=self._times(0.3, 1.0, 2.0))],
            "healed disks": lambda: [Heal(what="disks")],
            "isolate": lambda: [Partition(kind="isolate", node=self.one())],
            "bridge": lambda: [Cut(source=self.one(), to=self.one(), both=True)],
            "late": lambda: [
                Link(source=self.one(), to="all", frames=self._frames(), delay=self._times(0.5, 1.0, 3.0))
            ],
            "lost": lambda: [Cut(source=self.one(), to="all", frames=self._frames())],
            "reset": lambda: [Reset(source=self.one(), to="all")],
            "transfer": lambda: [TransferLeader(target="all")],
            "heal links": lambda: [Heal(what="links")],
            "heal": lambda: [Heal.draw(self)],
        }

    # ---- the end -------------------------------------------------------------------------------------

    def _ending(self) -> Steps:
        """All members accept messages, and then every newcomer that was not removed becomes a member."""
        steps: Steps = [LoadSwitch(switch="stop")] if self.chance(0.5) else []
        send = Send(clients=(Sender(client=NAMED_CLIENT, messages=2),), within=Duration(25), name=LIVENESS)
        return [*steps, HEAL_ALL, send, AddNode(target=tuple(self.ids[self.founders :]), within=Duration(25))]

    # ---- small choices -------------------------------------------------------------------------------

    def short(self) -> Duration:
        """Draw a time, in election timeouts like all times of this class."""
        return self._times(0.0, 0.5)

    def _two(self) -> tuple[NodeId, ...]:
        return tuple(sorted(self.rng.sample(self.ids, 2)))

    def _frames(self) -> tuple[str, ...]:
        return tuple(sorted(self.rng.sample(FRAMES, self.rng.choice((1, 1, 2)))))

    def _times(self, *factors: float) -> Duration:
        """Choose one of the factors; return it times the election timeout."""
        return rounded(self.timeout * self.rng.choice(factors))
