"""What a step may ask of its run and of the machines in it: the same on real processes and in virtual time."""

from __future__ import annotations

import random
import signal
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from lab.rows import NodeExit
from lab.steps.orders import Counts
from lab.steps.rules import LinkCounts, Pair, Rule
from lab.steps.targets import ClusterView
from lab.words import LinkEnd, Target
from nodeproc.client import Address, ChatClient
from nodeproc.core.messages import NodeId, SeqNo, Term
from nodeproc.lines import Status

if TYPE_CHECKING:
    from lab.steps.book import FaultBook
    from lab.steps.damage import Loss, Rot
    from lab.steps.expect import Expectation
    from lab.steps.garbage import Garbage
    from lab.steps.send import Sender
    from lab.steps.step import Fault, Step

Addresses: TypeAlias = dict[NodeId, Address]
Condition: TypeAlias = Callable[[], Awaitable[bool]]


class RunFailed(Exception):
    """The lab itself could not do its work: no verdict about the chat follows from it."""


class StepMissed(Exception):
    """A step did not come true in its time; the text says what was found instead."""


class Machine(Protocol):
    """One node's machine: the process on it, its disk and its clock."""

    node: NodeId

    @property
    def starts(self) -> int:
        """Processes so far."""

    @property
    def running(self) -> bool:
        """Its process is there."""

    @property
    def paused(self) -> bool: ...

    @property
    def exits(self) -> Sequence[NodeExit]: ...

    @property
    def role(self) -> str:
        """leader, follower or candidate when it was last looked at; down; unknown where it did not answer."""

    def identity(self) -> dict[str, Any]:
        """What rows call its process: `{"pid": 4711}`; in virtual time there is nothing to call it by."""

    # ---- its process -----------------------------------------------------------------------------

    async def end(self, how: signal.Signals) -> NodeExit | None:
        """SIGKILL or SIGTERM; done when the process is gone. None: it survived SIGKILL."""

    async def freeze(self) -> bool:
        """SIGSTOP; done when the process stands still. False: it never did."""

    def wake(self) -> None:
        """SIGCONT."""

    async def ready(self) -> float:
        """Seconds until it answers STATUS.

        Raises:
            RunFailed: it ended instead, or did not answer in time.
        """

    def state(self) -> str:
        """What the system says of the process: running, sleeping, stopped, …"""

    def says(self) -> str:
        """The last thing that its log says."""

    async def doomed(self, patience_s: float) -> bool:
        """Wait for an end that an order brings about. False: it did not come."""

    async def ended(self, patience_s: float) -> bool:
        """Wait for an end that has to come by itself. False: it did not come."""

    # ---- its disk and its clock ------------------------------------------------------------------

    def order(self, **changes: Any) -> None:
        """Change some of its disk's Orders."""

    def set_clock(self, drift: float, forward_s: float = 0.0) -> None:
        """From now on its clock runs fast or slow by this share; its wall clock is set forward, once."""

    def counts(self) -> Counts: ...

    def tearable(self) -> bool:
        """An entry of its WAL waits for its sync."""

    def cut_power(self, torn: bool) -> Loss:
        """Take from its disk what a power loss may take; the process is gone.

        torn: its WAL shall end in the middle of an entry, where one is not synced.
        """

    def rot(self, what: str, rng: random.Random) -> Rot | None:
        """Change a byte of its files; None where there was none to change. what: as in Disk.rot."""

    @property
    def rotten(self) -> list[str]:
        """The bytes that an `old_*` rot has changed and that the node has not repaired yet."""

    def lose(self, what: str) -> tuple[str, str]:
        """Delete a file, or all. Returns what is gone and where a node has to see it; "" where there was nothing."""

    async def copy(self) -> int:
        """Copy all that the node keeps, while it stands still; returns bytes."""

    def restore(self) -> str:
        """The latest copy takes the place of what the node keeps; returns what that changed, "" if nothing."""

    def wipe(self) -> int:
        """Lose the disk; an empty one takes its place. Returns the bytes that were on it."""


class World(Protocol):
    """The machines of a run and the links between them."""

    @property
    def machines(self) -> Mapping[NodeId, Machine]: ...

    @property
    def statuses(self) -> dict[NodeId, Status]:
        """The latest answers; a node that did not answer the latest question is missing."""

    @property
    def addresses(self) -> Addresses:
        """Where clients reach each node."""

    async def launch(self, nodes: Sequence[NodeId], *, rebuild: bool = False) -> dict[NodeId, float]:
        """Start those that are down, all at once, and wait until they answer.

        Returns:
            seconds that each took. One that its disk keeps from running stays down, and is missing.
        """

    async def together(self, parts: Sequence[Coroutine[Any, Any, Any]]) -> list[Any]:
        """Do what takes time on several machines at the same time."""

    async def breathe(self) -> None:
        """Let begin what a fault sets off, before anything else is done."""

    async def treat(self, pairs: Sequence[Pair], rule: Rule | None) -> dict[Pair, LinkCounts]:
        """Put a rule on links in place of the ones they have; None: straight again. Returns the evidence before it."""

    async def reset(self, pairs: Sequence[Pair]) -> int:
        """Break the connections of these links, once; returns how many there were."""

    async def start_busy(self, processes: int) -> None:
        """Other processes take processor time."""

    async def end_busy(self) -> list[float]:
        """End all of them; returns for each start_busy the CPU seconds that they took."""

    async def send_garbage(self, garbage: Garbage, nodes: Sequence[NodeId], rng: random.Random) -> dict[NodeId, Any]:
        """Connections that say nonsense; returns for each node what became of them."""

    def count_events(
        self, nodes: Sequence[NodeId], event: str, where: Mapping[str, str | int | bool]
    ) -> Callable[[], int]:
        """Counts these nodes' events of one kind since the latest fault began."""


class Total(Protocol):
    """Messages of a load so far."""

    @property
    def acknowledged(self) -> int: ...

    @property
    def pending(self) -> int: ...


class RunningLoad(Protocol):
    """The load of a run."""

    @property
    def finished(self) -> bool: ...

    @property
    def total(self) -> Total: ...


class SendingClient(Protocol):
    """A client of `send` steps."""

    client: int
    chat: ChatClient

    @property
    def outcomes(self) -> Mapping[str, int]: ...


class SendingClients(Protocol):
    """All clients that `send` steps name."""

    @property
    def waiting(self) -> int:
        """Their messages without an outcome."""

    async def send(self, sender: Sender, addresses: Addresses) -> SendingClient: ...


class Triggers(Protocol):
    """What `when` steps wait for, beside the steps that follow."""

    def arm(self, index: int, waiting: Coroutine[Any, Any, None]) -> None:
        """Begin to wait for what the step of this index is about."""

    def fired(self, index: int) -> None:
        """It has come true."""


class Run(Protocol):
    """The run that a step is part of. lab.course.runner has it."""

    term_before: Term
    """The highest that any node showed before the latest fault began."""
    delivered: dict[NodeId, SeqNo]
    """How far each node had delivered when it was last looked at."""
    seed: int
    is_foreign: bool
    """Its nodes are a program of somebody else's."""
    rng: random.Random
    """Draws what targets mean."""
    draws: random.Random
    """Draws all else that a fault leaves open."""
    view: ClusterView
    """The nodes when the latest fault began: what its targets mean."""
    book: FaultBook

    @property
    def world(self) -> World: ...

    @property
    def triggers(self) -> Triggers: ...

    @property
    def named(self) -> SendingClients: ...

    @property
    def load(self) -> RunningLoad | None: ...

    def now(self) -> float:
        """Monotonic seconds."""

    def now_ns(self) -> int: ...

    async def look(self) -> ClusterView:
        """The nodes as they are now; `delivered` is brought up to date."""

    async def view_now(self) -> ClusterView:
        """The same, and nothing is remembered of it."""

    def choose(self, target: Target) -> list[Machine]:
        """The machines that a target means.

        Raises:
            NoSuchTarget: one of its parts means nobody.
        """

    def pairs(self, source: LinkEnd, to: LinkEnd) -> tuple[Pair, ...]:
        """The directed links from nodes, or clients, to others."""

    def note(self, index: int, what: Step | Expectation, *, met: bool, found: str) -> None:
        """Write down what came of a step, or of one thing that it expects."""

    def tell(self, text: str) -> None:
        """A line of progress."""

    def check(self) -> None:
        """Tell now and then how the run goes on.

        Raises:
            whatever ended a part of the lab itself.
        """

    async def show(self) -> str:
        """How things stand, for a step that was missed."""

    async def start_load(self) -> None: ...

    async def stop_load(self) -> None:
        """Send nothing new, and wait for what is under way."""

    async def do_fault(self, fault: Fault, index: int, number: int = 0, *, of: Fault | None = None) -> None:
        """Do one when no other is being done.

        Args:
            number: of a nemesis's faults, from 1.
            of: the fault that it heals, in whose words its rows are asked for.
        """
