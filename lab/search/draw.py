"""Random scenarios: each seed draws its own cluster, load, kinds of faults and their frequencies.

A seed does not use all kinds of faults: leaving some out makes others more frequent, also in combination (Groce et al.,
Swarm Testing, ISSTA 2012). Each scenario keeps the protocol's assumptions (lab.search.assumptions): a majority of
the disks survives (M4), and at the end one random majority is healed, which must accept messages (A9). So every failure
of such a scenario is a finding. About half of the seeds draw overlapping faults instead (lab.search.overlap), a tenth
changes of the members (lab.search.changing).
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final, Literal, TypeAlias

from msgspec import structs

from lab.plan.scenario import Cluster, Load, Scenario
from lab.search.assumptions import BOUNDS, CAUGHT_UP, HEAL_ALL, LIVENESS, NAMED_CLIENT, QUIET, may_expire, minority
from lab.search.changing import Changing
from lab.search.overlap import Overlap
from lab.steps import (
    Clock,
    Cut,
    Disk,
    Flap,
    FullRestart,
    Heal,
    Kill,
    Link,
    LoadSwitch,
    Partition,
    Pause,
    PowerLoss,
    Rebuild,
    Restart,
    Resume,
    Send,
    Sender,
    Sleep,
    Start,
    Step,
    Stop,
    TransferLeader,
    steps_by_word,
)
from lab.steps.lot import Lot
from lab.steps.partition import DIRECTIONS
from lab.steps.reducing import rounded
from lab.words import Duration
from nodeproc.core.messages import NodeId

Steps: TypeAlias = list[Step]

SIZES: Final = (3, 5)
OVERLAP_MIN_NODES: Final = 3
"""Overlapping faults need at least this number of nodes."""
CHANGING_SHARE: Final = 0.1
"""Share of the seeds that change the members (lab.search.changing), unless another one is asked for."""
OVERLAP_SHARE: Final = 0.5
"""Share of the other seeds that draw overlapping faults."""
ROTTEN: Final[tuple[Literal["wal", "last", "messages", "checkpoint"], ...]] = ("wal", "last", "messages", "checkpoint")
OLD: Final[tuple[Literal["old_lines", "old_headers", "old_index"], ...]] = ("old_lines", "old_headers", "old_index")
SCRUBBED: Final = {"scrub_rest_ms": 1000}
LOST: Final[tuple[Literal["checkpoint", "messages", "wal"], ...]] = ("checkpoint", "messages", "wal")
OLDER_COPY_SHARE: Final = 0.1
"""Share of the scenarios that restore an older copy of a data directory."""
HUNG: Final = Duration(60)
"""Duration of an fdatasync on a disk that does not answer, seconds."""
HEAVY_SHARE: Final = 0.05
"""Share of the scenarios whose clients send more than a node may accept at once (S7)."""
LONGEST: Final = 1200
"""Bytes of the longest message that nodes with a limit accept; messages of the load are shorter."""


def draw(seed: int, sizes: Sequence[int] = SIZES, changing: float = CHANGING_SHARE) -> Scenario:
    """Return the scenario of a seed.

    Args:
        sizes: cluster sizes to choose from.
        changing: share of the seeds that change the members, 0 to 1. A larger share has all seeds of a smaller one.
    """
    if random.Random(f"{seed} members").random() < changing:
        return Changing(seed, sizes).scenario()
    large_enough = tuple(size for size in sizes if size >= OVERLAP_MIN_NODES)
    if large_enough and random.Random(f"{seed} weather").random() < OVERLAP_SHARE * len(large_enough) / len(sizes):
        return Overlap(seed, large_enough).scenario()
    return _Draw(seed, sizes).scenario()


class _Draw(Lot):
    """The random choices of one seed, in the order in which they are made."""

    def __init__(self, seed: int, sizes: Sequence[int]) -> None:
        rng = random.Random(f"{seed} draw")
        super().__init__(rng, rng.choice(list(sizes)))
        self.seed = seed
        self.lost: set[NodeId] = set()
        """Nodes that may still be rebuilding or have damaged data; at most a minority."""
        self.forgetful = False
        """Whether the session table is so small that sessions are dropped from it all the time."""

    def scenario(self) -> Scenario:
        cluster, faults = self._cluster(), self._faults()
        is_heavy = random.Random(f"{self.seed} heavy").random() < HEAVY_SHARE
        if is_heavy:
            cluster = structs.replace(cluster, limits={"intake_window_bytes": 4096})
        if self.forgetful:
            cluster = structs.replace(cluster, limits={**cluster.limits, "max_sessions": 2})
        if any(isinstance(step, Disk) and step.rot in OLD for step in faults):
            # Without this hardly any file is old enough, and the scrub pass that finds damage comes after the run.
            cluster = structs.replace(cluster, limits={"segment_bytes": 4096, **cluster.limits, **SCRUBBED})
        faults = self._put_back(faults)
        if self.lost:
            faults += [HEAL_ALL, CAUGHT_UP]
        ending = self._ending()
        if any(isinstance(step, Disk) for step in ending):  # Otherwise a leader's hung disk delays nobody (P1).
            cluster = structs.replace(cluster, limits={**cluster.limits, "inflight_max_bytes": 1024})
        load = self._load()
        if is_heavy:
            load = Load(clients=load.clients, in_flight=64, size=30_000, count=100, deadline=load.deadline)
        steps: Steps = [LoadSwitch(switch="start"), *faults, *ending]
        if may_expire(cluster):
            steps.pop()  # The messages of the last step might be refused.
        return Scenario(
            name=f"drawn_{self.seed}",
            description=f"Drawn from seed {self.seed}.",
            steps=tuple(steps),
            cluster=cluster,
            load=load,
            subscribers=self.rng.choice((0, 1, 1, 2)),
            bounds=BOUNDS,
            seed=self.seed,
        )

    # ---- cluster and load ----------------------------------------------------------------------------

    def _cluster(self) -> Cluster:
        rng = self.rng
        heartbeat = rng.choice((20, 50, 100)) / 1000
        election = heartbeat * rng.choice((3, 5, 8))
        priorities = dict(zip(self.ids, rng.sample(range(1, 10), self.nodes), strict=True)) if self.chance(0.5) else {}
        return Cluster(
            nodes=self.nodes,
            priorities=priorities,
            heartbeat_interval=rounded(heartbeat),
            election_timeout=rounded(election),
            answer_timeout=rounded(election * rng.choice((0.2, 0.3, 0.5))),
            coordinator_timeout=rounded(election * rng.choice((0.5, 1.0, 2.0))),
            limits=self._segments() | self._limits() | self._pipelining(),
        )

    def _pipelining(self) -> dict[str, int]:
        """In half of the clusters no message waits for the batch before it, so that many batches are under way."""
        return {"batch_least_messages": 1} if random.Random(f"{self.seed} pipelining").random() < 0.5 else {}

    def _segments(self) -> dict[str, int]:
        """In half of the clusters WAL segments are so short that checkpoints are written all the time."""
        return {"segment_bytes": 4096} if random.Random(f"{self.seed} segments").random() < 0.5 else {}

    def _limits(self) -> dict[str, int]:
        """Return no limits, or some that are so small that the cluster reaches them all the time."""
        tight = {
            "segment_bytes": (4096, 8192),
            "batch_max_messages": (1, 3),
            "inflight_max_bytes": (1024, 2048),
            "fetch_max_bytes": (1024, 2048),
            "buffer_max_bytes": (1024, 2048),
            "max_sessions": (2, 4),
            "max_payload_bytes": (LONGEST,),
            "subscriber_buffer_bytes": (1024, 2048),
            "intake_window_bytes": (1024, 2048),
        }
        if self.chance(0.4):
            return {}
        return {name: self.rng.choice(values) for name, values in tight.items() if self.chance(0.4)}

    def _load(self) -> Load:
        rng = self.rng
        if self.chance(0.5):
            pace: dict[str, float] = {"rate": rng.choice((10.0, 20.0, 40.0))}
        else:
            pace = {"in_flight": rng.choice((1, 4, 16))}
        return Load(
            clients=rng.choice((1, 2, 3, 5)),
            rate=pace.get("rate"),
            in_flight=int(pace["in_flight"]) if "in_flight" in pace else None,
            size=rng.choice((1, 10, 100, 1000)),
            count=rng.choice((60, 200, 400)),
            deadline=self.time(0.3, 2.0, 10.0),
        )

    # ---- faults --------------------------------------------------------------------------------------

    def _faults(self) -> Steps:
        """Draw kinds of faults, each with its own weight, and a sequence of them with pauses of varying lengths."""
        rng = self.rng
        makers = self._makers()
        some = rng.sample(sorted(makers), rng.randint(2, len(makers)))
        weights = [rng.choice((1, 1, 3, 10)) for _ in some]
        steps: Steps = []
        short = rng.choice((0.02, 0.2, 1.0))
        rot = random.Random(f"{self.seed} old rot")
        share, rotting = rot.choice((0.0, 0.0, 0.0, 0.3)), rot.choice(self.ids)
        flaps = Lot(random.Random(f"{self.seed} flap"), self.nodes)
        flapping = flaps.rng.choice((0.0, 0.0, 0.0, 0.3))
        transfers = Lot(random.Random(f"{self.seed} transfer"), self.nodes)
        transferring = transfers.rng.choice((0.0, 0.0, 0.0, 0.5))
        for _ in range(rng.randint(4, 16)):
            steps += makers[rng.choices(some, weights)[0]]()
            steps.append(Sleep(time=rounded(short * math.exp(rng.gauss(0.0, 1.2)))))
            spared = rotting in self.lost or len(self.lost) < minority(self.nodes)
            if rot.random() < share and spared:  # On one node only, so that another node has the records it loses.
                steps.append(Disk(on=rotting, rot=rot.choice(OLD)))
                self.lost.add(rotting)
            if self.nodes >= 2 and flaps.chance(flapping):
                steps.append(Flap.draw(flaps))
            if self.nodes >= 2 and transfers.chance(transferring):
                steps.append(TransferLeader.draw(transfers))
        return steps

    def _makers(self) -> dict[str, Callable[[], Steps]]:
        """Return kind of fault -> function that makes its steps, for the kinds that suit the size of the cluster."""
        makers: dict[str, Callable[[], Steps]] = {
            word.replace("_", " "): partial(self._alone, kind)
            for word, kind in steps_by_word().items()
            if 0 < kind.drawn_from <= self.nodes
        }
        makers |= self._stories_of_a_node()
        if self.nodes >= 2:
            makers |= {
                "reorder": lambda: [Link.draw_reorder(self)],
                "heal links": lambda: [Heal(what="links")],
            }
        if self.nodes >= 3:  # Of fewer no majority of the disks survives the loss of one.
            makers |= {
                "rebuild": self._rebuild,
                "lost disk": self._lost_disk,
                "rot": self._rot,
                "forgotten session": self._forgotten_session,
            }
        return makers

    def _alone(self, kind: type[Step]) -> Steps:
        return [kind.draw(self)]

    def _stories_of_a_node(self) -> dict[str, Callable[[], Steps]]:
        return {
            "kill most": lambda: [Kill(target=self.most())],
            "pause for a while": self._pause_for_a_while,
            "power": lambda: [PowerLoss.draw(self), Sleep(time=self.short())],
            "power of all": lambda: [PowerLoss(target="all"), Sleep(time=self.short()), Start(target="all")],
            "slow disk": lambda: [Disk.draw(self)],
            "bad disk": self._bad_disk,
            "bad stop": self._bad_stop,
            "clock jump": lambda: [Clock(on=self.one(), jump=self.time(0.5, 10.0, 3600.0))],
            "new client": self._new_client,
        }

    def _pause_for_a_while(self) -> Steps:
        pause = Pause.draw(self)
        return [pause, Sleep(time=self.time(0.05, 0.5, 2.0)), Resume(target=pause.target)]

    def _bad_disk(self) -> Steps:
        """The node exits; with the disk healed it is started again, and may lose its power after that."""
        node = self.one()
        full = self.chance(0.4)
        broken = Disk(on=node, full=True) if full else Disk(on=node, failing=self.rng.choice(("sync", "append")))
        again: Steps = [broken, Sleep(time=self.short())]
        if self.chance(0.3):
            again.append(Stop(target=node))  # The checkpoint of the clean stop fails.
        again += [Heal(what="disks"), Sleep(time=self.short()), Start(target=node)]
        if self.chance(0.3):
            again.append(Restart(target=node, how="stop", down=self.short()))
        if self.chance(0.5):
            again += [Sleep(time=self.short()), PowerLoss(target=node), Sleep(time=self.short()), Start(target="all")]
        return again

    def _bad_stop(self) -> Steps:
        """The last checkpoint of a stopped node fails at fdatasync, a later one succeeds; then the power fails."""
        node = self.one()
        steps: Steps = [Disk(on=node, failing="sync"), Stop(target=node), Heal(what="disks"), Start(target=node)]
        steps += (
            [Restart(target=node, how="stop", down=self.short())] if self.chance(0.7) else [Sleep(time=self.short())]
        )
        return [*steps, PowerLoss(target=node), Start(target="all")]

    def _quiet(self) -> Steps:
        """Heal all nodes and wait until they have the same records and no rebuild is under way."""
        self.lost.clear()
        return [*QUIET]

    def _rebuild(self) -> Steps:
        """Other faults continue while the node fetches its data, or wait until it has caught up."""
        waits, quiet, node = self.chance(0.5), self._quiet(), self.one()
        if not waits:
            self.lost.add(node)
        return [*quiet, Rebuild(target=node), *([CAUGHT_UP] if waits else [])]

    def _lost_disk(self) -> Steps:
        """A node loses its disk among the other faults, perhaps several times in a row."""
        steps: Steps = [] if len(self.lost) < minority(self.nodes) or self.chance(0.5) else self._quiet()
        node = self.one() if len(self.lost) < minority(self.nodes) else self.rng.choice(sorted(self.lost))
        self.lost.add(node)
        for _ in range(self.rng.choice((1, 1, 2))):
            steps += [Rebuild(target=node), Sleep(time=self.short())]
            if self.chance(0.4):
                steps += [Restart(target=self.one(), how=self.how(), down=self.short()), Sleep(time=self.short())]
        return steps

    def _forgotten_session(self) -> Steps:
        """A client resends a message that was ordered but not acknowledged, after its session was dropped."""
        self.forgetful = True
        node, other = self.rng.sample(self.ids, 2)
        client = NAMED_CLIENT + 10 + 10 * self.rng.randint(0, 99)
        lost = Sender(client=client, messages=1, via=node, fresh=True)
        later = tuple(Sender(client=client + each, messages=1, via=other, fresh=True) for each in range(1, 4))
        steps: Steps = [Cut(source="all", to=node, frames=("APPEND",)), Send(clients=(lost,), wait=False)]
        steps += [Sleep(time=rounded(0.2)), Send(clients=later, wait=False), Sleep(time=rounded(0.2))]
        if self.chance(0.6):
            steps.append(FullRestart.draw(self))
        return [*steps, Heal(what="links")]

    def _rot(self) -> Steps:
        """Damage or lose a file; the node runs with it for a while if it starts, then it is rebuilt."""
        node, rng = self.one(), self.rng
        damage = Disk(on=node, rot=rng.choice(ROTTEN)) if self.chance(0.7) else Disk(on=node, lose=rng.choice(LOST))
        return [*self._quiet(), damage, Start(target=node), Sleep(time=self.short()), Rebuild(target=node), CAUGHT_UP]

    def _put_back(self, faults: Steps) -> Steps:
        """In some scenarios, copy a data directory at the start or at the end, and restore the copy (M6)."""
        rng = random.Random(f"{self.seed} older copy")
        if self.nodes < 3 or rng.random() >= OLDER_COPY_SHARE:
            return faults
        node = rng.choice(self.ids)
        copy: Steps = [Disk(on=node, copy=True)]
        found: Steps = [*self._quiet(), Disk(on=node, restore=True), Start(target=node), Sleep(time=Duration(1))]
        before = [*copy, *faults] if rng.random() < 0.5 else [*faults, *copy]
        return [*before, *found, Rebuild(target=node), CAUGHT_UP]

    def _new_client(self) -> Steps:
        """Start a session late, when older ones may have been dropped, or send a message that is too long."""
        client, fresh = NAMED_CLIENT + self.rng.randint(1, 9), self.chance(0.5)
        if self.chance(0.3):
            return [Send(clients=(Sender(client=client, messages=("long " * LONGEST,), fresh=True),), wait=False)]
        sender = Sender(client=client, messages=self.rng.randint(1, 5), fresh=fresh)
        return [Send(clients=(sender,), wait=False)]

    # ---- the end -------------------------------------------------------------------------------------

    def _ending(self) -> Steps:
        """Heal a majority and have it accept messages.

        The other nodes are dead, or unchanged but with healed links, or cut off in one or both directions, or have
        disks that do not answer.
        """
        majority = tuple(sorted(self.rng.sample(self.ids, self.nodes // 2 + 1)))
        rest = tuple(node for node in self.ids if node not in majority)
        how = self.rng.choice(("dead", "dead", "linked", "isolated", "hung"))
        steps: Steps = [LoadSwitch(switch="stop")] if how != "hung" and self.chance(0.7) else []
        if rest and how == "dead":
            steps.append(Kill(target=rest))
        steps.append(Heal(what="all", on=majority))
        if rest and how == "isolated":
            steps.append(Partition(kind="isolate", node=rest, direction=self.rng.choice(DIRECTIONS)))
        if rest and how == "hung":
            steps += [Heal(what="all"), Sleep(time=Duration(1)), Disk(on=rest, slow=HUNG)]
            steps += [self._send_many(majority), Sleep(time=Duration(1))]
        sender = Sender(client=NAMED_CLIENT, messages=2, via=self.rng.choice(majority))
        return [*steps, Send(clients=(sender,), within=Duration(25), name=LIVENESS)]

    def _send_many(self, via: tuple[NodeId, ...]) -> Send:
        """Send more messages than a leader whose disk does not answer may hold undelivered."""
        senders = tuple(Sender(client=NAMED_CLIENT + each, messages=40, via=self.rng.choice(via)) for each in (91, 92))
        return Send(clients=senders, wait=False)
