"""Random scenarios with overlapping elections, catch-ups and crashes: many faults of few kinds, close together.

lab.search.draw draws from all faults, with pauses in between. Here pauses are measured in election timeouts, messages
flow from the first fault to the last, single kinds of frames are late or lost, and at the end the nodes outside of the
healed majority may still interfere with it. Situations that are rare in lab.search.draw occur here in one of a few
hundred seeds.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Literal

from lab.plan.scenario import Cluster, Scenario
from lab.search.assumptions import BOUNDS, CAUGHT_UP, HEAL_ALL, LIVENESS, NAMED_CLIENT, minority
from lab.search.dense import MESSAGES, Dense, Steps
from lab.steps import (
    Cut,
    Disk,
    Heal,
    Kill,
    Link,
    LoadSwitch,
    Partition,
    PowerLoss,
    Rebuild,
    Reorder,
    Reset,
    Restart,
    Send,
    Sender,
    Sleep,
    Start,
)
from lab.steps.cut import ELECTION_ANSWERS
from lab.steps.reducing import rounded
from lab.words import Duration, LinkEnd, Target
from nodeproc.core.messages import NodeId


class Overlap(Dense):
    """The random choices of one seed, in the order in which they are made."""

    frames = (*Dense.frames, "SUBMIT", "MEMBERS")

    def __init__(self, seed: int, sizes: Sequence[int]) -> None:
        rng = random.Random(f"{seed} storm")
        super().__init__(seed, rng, rng.choice(list(sizes)))
        self.losing = self.rng.sample(self.ids, minority(self.nodes))
        """Nodes whose disks may be lost."""
        self.lost = False

    def scenario(self) -> Scenario:
        cluster, faults = self._cluster(), self._faults()
        if self.lost:
            faults += [HEAL_ALL, CAUGHT_UP]
        first = [self._send(wait=False)] if self.chance(0.5) else []
        return Scenario(
            name=f"drawn_{self.seed}",
            description=f"Drawn from seed {self.seed}.",
            steps=(LoadSwitch(switch="start"), *first, *faults, *self._ending()),
            cluster=cluster,
            load=self._load(faults),
            subscribers=self.rng.choice((0, 1)),
            bounds=BOUNDS,
            seed=self.seed,
        )

    # ---- cluster and load ----------------------------------------------------------------------------

    def _cluster(self) -> Cluster:
        ranks = self._priorities()
        often = random.Random(f"{self.seed} segments").random() < 0.4  # Checkpoints are written all the time.
        return Cluster(
            nodes=self.nodes,
            priorities=ranks,
            heartbeat_interval=rounded(self.heartbeat),
            election_timeout=rounded(self.timeout),
            answer_timeout=self._times(0.2, 0.5),
            coordinator_timeout=self._times(0.5, 1.0),
            limits=({"batch_max_messages": 1} if self.chance(0.3) else {}) | ({"segment_bytes": 4096} if often else {}),
        )

    # ---- faults --------------------------------------------------------------------------------------

    def _faults(self) -> Steps:
        fault, rest = self._some_faults(), self._rest()
        steps: Steps = []
        for _ in range(self.rng.randint(6, 20)):
            steps += [*fault(), rest()]
        return steps

    def _makers(self) -> dict[str, Callable[[], Steps]]:
        return self._usual_makers() | {
            "power of two": lambda: [
                PowerLoss(target=self._two()),
                Sleep(time=self.short()),
                Start(target="all"),
            ],
            "failing sync": self._failing_sync,
            "bridge": self._bridge,
            "deaf": self._deaf,
            "late": self._late,
            "overtaken": self._overtaken,
            "lost disk": self._lost_disk,
            "undeclared loss": self._undeclared_loss,
            "missed election": self._missed_election,
            "late catch-up": self._late_catch_up,
            "slow disk then power": self._slow_then_power,
        }

    def _failing_sync(self) -> Steps:
        """The node restarts with data that is only in its cache, another node dies, a power loss drops the cache."""
        node, other = self.rng.sample(self.ids, 2)
        steps: Steps = [Disk(on=node, failing="sync"), Sleep(time=self._times(0.2, 1.0)), Heal(what="disks")]
        steps += [Start(target=node), Sleep(time=self._times(0.2, 1.0, 3.0)), PowerLoss(target=node)]
        if self.chance(0.5):
            steps.append(Kill(target=other))
        return [*steps, Start(target=node)]

    def _slow_then_power(self) -> Steps:
        """A node's fdatasync takes long; during it the node loses power, and perhaps another node dies."""
        node, other = self.rng.sample(self.ids, 2)
        steps: Steps = [Disk(on=node, slow=self._times(3.0, 10.0)), Sleep(time=self._times(0.5, 1.0, 2.0))]
        steps.append(PowerLoss(target=node))
        if self.chance(0.6):
            steps.append(Kill(target=other))
        return [*steps, Heal(what="disks"), Start(target=node)]

    def _lost_disk(self) -> Steps:
        """One of the nodes that may lose their disks loses it, while other faults continue."""
        node = self.rng.choice(self.losing)
        self.lost = True
        steps: Steps = [Rebuild(target=node)]
        if self.chance(0.5):
            steps += [Sleep(time=self._times(0.2, 1.0, 3.0)), Kill(target=self.one()), Start(target="all")]
        return steps

    def _undeclared_loss(self) -> Steps:
        """A node that has lost its disk is started as if it had not; all others know its identity (M4)."""
        node = self.rng.choice(self.losing)
        self.lost = True
        others = tuple(sorted(set(self.ids) - {node}))
        steps: Steps = [Disk(on=node, lose="all")]
        if self.chance(0.7):
            steps.append(Restart(target=others, how="kill"))
        return [*steps, Start(target=node), Sleep(time=self._times(1.0, 3.0)), Rebuild(target=node)]

    def _missed_election(self) -> Steps:
        """One node misses an election; then it meets its voters, which have restarted, without the leader."""
        lone, *others = self.rng.sample(self.ids, self.nodes)
        voters, leading = tuple(sorted(others[: self.nodes // 2])), tuple(sorted(others))
        steps: Steps = [Cut(source="all", to=voters, frames=("APPEND",))] if self.chance(0.7) else []
        steps += [Partition(kind="isolate", node=lone), Restart(target=leading, how="kill")]
        steps += [Sleep(time=self._times(1.0, 2.0, 4.0)), Kill(target=leading), Heal(what="links")]
        return [*steps, Start(target=voters), Sleep(time=self._times(1.0, 3.0))]

    def _late_catch_up(self) -> Steps:
        """A node asks for its records again before the first answer; meanwhile a minority gets no records."""
        node, *others = self.rng.sample(self.ids, self.nodes)
        late = Link(source=node, to="all", frames=("CATCH_UP",), delay=self._times(0.5, 1.0, 2.0))
        lagging = tuple(sorted(others[: minority(self.nodes)]))
        steps: Steps = [Cut(source="all", to=lagging, frames=("APPEND",)), late, Reset(source="all", to=node)]
        return [*steps, Sleep(time=self._times(1.0, 3.0)), Heal(what="links")]

    def _bridge(self) -> Steps:
        """Two nodes do not hear each other; the others hear both."""
        source, to = self._two()
        return [Cut(source=source, to=to, both=True)]

    def _deaf(self) -> Steps:
        source, to = self.rng.sample(self.ids, 2)
        return [Cut(source=source, to=to)]

    def _late(self) -> Steps:
        source, to = self.rng.sample(self.ids, 2)
        everywhere: tuple[LinkEnd, ...] = (to, "all")
        end = self.rng.choice(everywhere)
        late = self._times(0.5, 1.0, 3.0)
        if self.chance(0.5):
            return [Link(source=source, to=end, frames=self._frames(), delay=late)]
        held = Reorder(every=1, behind=MESSAGES, at_most=late)  # Hold back one frame, which all later ones pass.
        return [Link(source=source, to=end, frames=self._frames(), reorder=held)]

    def _overtaken(self) -> Steps:
        order = Reorder(every=self.rng.randint(1, 3), behind=self.rng.randint(1, 3), at_most=self._times(1.0, 3.0))
        return [Link(source=self.one(), to="all", frames=self._frames(), reorder=order)]

    # ---- the end -------------------------------------------------------------------------------------

    def _ending(self) -> Steps:
        """Heal a majority and have it accept messages, even with slow disks and interference by the other nodes."""
        rng = self.rng
        majority = tuple(sorted(rng.sample(self.ids, self.nodes // 2 + 1)))
        rest = tuple(node for node in self.ids if node not in majority)
        steps: Steps = [LoadSwitch(switch="stop")] if self.chance(0.5) else []
        if self.chance(0.3):
            steps.append(Kill(target=rest))
        if self.chance(0.3):
            steps.append(Kill(target=majority))
        steps.append(Heal(what="all", on=majority))
        if self.chance(0.3):
            one_is_fast = self.chance(0.3)  # Its own vote takes no time, those of the others take long (E3).
            slow = majority[:-1] if one_is_fast else majority
            steps.append(Disk(on=slow, slow=self._times(5.0) if one_is_fast else self._times(0.5, 1.0, 2.0)))
        if rest and self.chance(0.5):
            steps += self._one_way_cut(rest)
        steps.append(self._send(wait=True, via=rng.choice(majority)))
        return steps

    def _one_way_cut(self, rest: tuple[NodeId, ...]) -> Steps:
        """The nodes outside of the healed majority hear nobody, or nobody hears them.

        Or they win no election, or get no records, in spite of links that are open.
        """
        frames = self.rng.choice((tuple(sorted(ELECTION_ANSWERS)), ("APPEND",)))
        return [self.rng.choice((Cut(source=rest), Cut(to=rest), Cut(to=rest, frames=frames)))]

    def _send(self, wait: bool, via: NodeId | None = None) -> Send:
        sender = Sender(client=NAMED_CLIENT, messages=2, via=via)
        if not wait:
            return Send(clients=(sender,), wait=False)
        return Send(clients=(sender,), within=Duration(25), name=LIVENESS)

    # ---- small choices -------------------------------------------------------------------------------

    def some(self) -> Target:
        """One node."""
        return self.one()

    def how(self) -> Literal["stop", "kill"]:
        """Return "kill": nodes are always killed."""
        return "kill"
